//! Nothing that is secret comes out again: the API key, the headers of the config file, the userinfo and the query of the
//! endpoint, and of a proxy.
//!
//! Every secret here begins with the same letters, so that half of one is found as well. The servers echo all they are
//! sent, in every place that a message may quote from; everything is run, and all that is printed or written is read.

#![cfg(feature = "suite")]

mod bench_executable;
mod servers;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use llm_concurrency::client::redact::{lines, one_line, secrets, value_in_lines, without_secrets};
use serde_json::json;
use servers::{RawServer, ok};

/// How each secret begins.
const MARK: &str = "zqxj";
const KEY: &str = "zqxj-key-0123456789abcdefghij";
/// The userinfo as it stands in the URL, and as it travels: `zqxjuser:zqxj/p+ss` in base64.
const USERINFO: &str = "zqxjuser:zqxj%2Fp+ss";
const BASIC: &str = "enF4anVzZXI6enF4ai9wK3Nz";
const QUERY: &str = "token=zqxj%20query%2B1&zqxj-second=zqxj-2";
/// What `extra_body` holds.
const IN_BODY: &str = r#"{temperature: 0.5, gateway: {x-api-key: zqxj-body-"1"/2, password: 76543210}}"#;
const PIN: &str = "76543210";
/// Further keys of `llm`, and what of the variable `TEAM` and of the file is sent.
const IN_HEADERS: &str = r#"api_key_header: Api-Key, headers: {X-Team: '${TEAM}', X-Pin: 76543210,
    Cookie: 'a=1; id=zqxj-"cookie"', X-Auth: 'Custom zqxj-literal', X-Basic: 'Basic enF4anVzZXI6enF4ai9wK3Nz'}"#;
const TEAM: &str = "zqxj-team-0123456789";

/// Kinds of failing answers.
const INVALID_ANSWERS: usize = 13;

/// What an echoing server says to a request. One of three answers is invalid, of another kind each time.
fn echo(number: usize, request: &str, stream: &mut TcpStream) -> bool {
    let kind = if number % 3 == 2 { 1 + number / 3 % INVALID_ANSWERS } else { 0 };
    let (first, rest) = request.split_once("\r\n").unwrap();
    let line = format!("{first} {}", rest.replace("\r\n", " "));
    // Also decoded, as a server's log shows it; and at changing places, so that quotes end in the midst of a secret.
    let decoded = line.replace("%2F", "/").replace("%20", " ").replace("%2B", "+");
    // With characters in it that are not seen once they are printed, or not to be printed at all.
    let split: Vec<String> =
        ["\u{1}", "\u{202e}", "\u{200b}"].iter().map(|hidden| split_at_all(&decoded, hidden)).collect();
    let echo = format!("{}{line} {decoded} zqxjuser zqxj/p+ss {}", "x ".repeat(number * 7 % 120), split.join(" "));
    let quoted = serde_json::json!(echo).to_string();
    let header = request
        .lines()
        .find(|line| ["authorization:", "api-key:"].iter().any(|name| line.to_ascii_lowercase().starts_with(name)))
        .unwrap_or("a: x");
    let header = header.split_once(": ").unwrap().1;
    let json = |status: &str, body: String| ok("application/json", &body).replacen("200 OK", status, 1);
    let events = |body: String| ok("text/event-stream", &body);
    let good = format!(r#"{{"model":{quoted},"choices":[{{"delta":{{"content":{quoted}}},"finish_reason":"stop"}}]}}"#);
    let answer = if request.starts_with("GET ") {
        json("200 OK", format!(r#"{{"data":[{{"id":{quoted}}}]}}"#))
    } else {
        match kind {
            1 => json("401 Unauthorized", echo.clone()),
            2 => json("500 Error", format!(r#"{{"error":{{"message":{quoted}}}}}"#)),
            3 => json("200 OK", echo.clone()),
            4 => json("200 OK", format!(r#"{{"choices":{quoted}}}"#)),
            5 => format!("HTTP/1.1 302 Found\r\nlocation: http://h/{header}?{header}\r\ncontent-length: 0\r\n\r\n"),
            6 => events(format!("data: {echo}\n\n")),
            7 => events(format!("data: {{\"error\":{quoted}}}\n\n")),
            8 => json("422 Wrong", format!(r#"{{"detail":[{{"msg":{quoted}}}]}}"#)),
            9 => format!("HTTP/1.1 200 OK\r\ncontent-encoding: {header}\r\ncontent-length: 2\r\n\r\n{{}}"),
            10 => format!("HTTP/1.1 503 {header}\r\ncontent-length: 0\r\n\r\n"),
            11 => json("404 Not found", format!("<html>{echo}")),
            12 => json("429 Slow", format!(r#"{{"error":{quoted}}}"#)),
            13 => format!("{echo}\r\n\r\n"),
            _ => events(format!("data: {good}\n\ndata: [DONE]\n\n")),
        }
    };
    stream.write_all(answer.as_bytes()).is_ok() && kind != 13
}

/// Every secret in it, split by such a character.
fn split_at_all(text: &str, hidden: &str) -> String {
    text.replace(MARK, &format!("zq{hidden}xj")).replace("body", &format!("bo{hidden}dy"))
}

/// The number of the next answer can be set; each request takes `step` of them.
fn echoing_server(next: &Arc<AtomicUsize>, step: usize) -> RawServer {
    let next = next.clone();
    RawServer::start(move |request, stream| {
        let number = next.fetch_add(if request.starts_with("POST ") { step } else { 0 }, Relaxed);
        echo(number, request, stream)
    })
}

/// Where a secret shows in what was printed.
#[track_caller]
fn assert_silent(what: &str, output: &Output) {
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let text = String::from_utf8_lossy(bytes);
        let line = text.lines().find(|line| shows_secret(line.as_bytes()));
        assert_eq!(line, None, "{name} of {what}");
    }
}

fn shows_secret(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    // Of the base64 a part is enough, too.
    text.contains(MARK) || text.contains(PIN) || text.contains(&BASIC[..8].to_ascii_lowercase())
}

/// Reads all files below; returns how many.
fn assert_files_silent(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += assert_files_silent(&path);
        } else if !path.ends_with("config.yaml") && !path.ends_with(".env") {
            assert!(!shows_secret(&std::fs::read(&path).unwrap()), "{}", path.display());
            count += 1;
        }
    }
    count
}

/// The doors, each as talkative as it can be.
fn doors(folder: &Path) -> Vec<(&'static str, Command)> {
    let mut doors = Vec::new();
    let door = |name, mut command: Command, args: &[&str]| {
        command.args(args).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
        (name, command)
    };
    let mut bench = Command::new(bench_executable::path());
    servers::clean(&mut bench, folder);
    bench.env("LLM_BENCH_LEVELS", "1,2").env("LLM_BENCH_TOTAL_REQUESTS", "60");
    let mut recommend = Command::new(env!("CARGO_BIN_EXE_recommend"));
    servers::clean(&mut recommend, folder);
    doors.push(door("check", servers::binary(folder), &["check"]));
    doors.push(door("run", servers::binary(folder), &["run", "--levels", "1,2", "--total-requests", "60"]));
    doors.push(door("the bench", bench, &["--bench", "--verbose"]));
    doors.push(door("the bench's list", Command::new(bench_executable::path()), &["--list"]));
    doors.last_mut().unwrap().1.current_dir(folder);
    doors.push(door("recommend", recommend, &["--dry-run", "--allow-provisional"]));
    doors.push(door("recommend --json", servers::binary(folder), &["recommend", "--json"]));
    doors.push(door("--explain", servers::binary(folder), &["simulate", "--explain"]));
    doors
}

#[test]
fn no_door_shows_a_secret_that_the_server_echoes() {
    for (userinfo, more, sent) in [
        (format!("{USERINFO}@"), "", BASIC),
        (String::new(), "", KEY),
        (String::new(), IN_HEADERS, KEY),
        (format!("{USERINFO}@"), IN_HEADERS, TEAM),
    ] {
        let next = Arc::new(AtomicUsize::new(0));
        let server = echoing_server(&next, 1);
        let endpoint = format!("http://{userinfo}{}/v1?{QUERY}", server.address);
        let folder = servers::folder(&format!(
            "llm: {{endpoint: '{endpoint}', model: m, {more}}}\nbenchmark: {{request: {{extra_body: {IN_BODY}}}}}\n"
        ));
        std::fs::write(folder.path().join(".env"), format!("LLM_API_KEY={KEY}\nTEAM={TEAM}\n")).unwrap();
        // A refusal may pass the second time, so that this one always says the same.
        let stubborn = echoing_server(&next, 0);
        let always_invalid = endpoint.replace(&server.address.to_string(), &stubborn.address.to_string());
        for invalid in 0..INVALID_ANSWERS {
            next.store(3 * invalid + 2, Relaxed);
            let check = ["check", "--llm-endpoint", &always_invalid];
            let output = servers::binary(folder.path()).args(check).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "answer {invalid}");
            assert_silent("check", &output);
        }
        for (name, mut door) in doors(folder.path()) {
            next.store(0, Relaxed);
            let output = door.output().unwrap();
            assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{name} says something");
            assert_silent(name, &output);
        }
        // The secrets were there to be echoed.
        let requests = server.requests.lock().unwrap().clone();
        assert!(requests.len() > 100, "{}", requests.len());
        let without = requests.iter().find(|request| !request.contains(sent));
        assert_eq!(without, None, "every request carries {sent}");
        assert!(requests.iter().all(|request| request.lines().next().unwrap().contains(QUERY)));
        // Sidecars, run.json, results, and Criterion's.
        let target = folder.path().join("target");
        assert!(std::fs::read_dir(target.join("concurrency")).unwrap().count() >= 2);
        assert!(std::fs::read_dir(folder.path().join("results")).unwrap().count() >= 2);
        assert!(assert_files_silent(folder.path()) > 20);
        let sidecars = sidecar_text(&target.join("concurrency"));
        assert!(sidecars.contains("[redacted]"), "the echoes were quoted, without the secrets");
        assert!(requests.iter().filter(|request| request.starts_with("POST")).all(|request| request.contains(PIN)));
        // What is no secret is kept, and that there was one.
        let run = sidecars.lines().find(|line| line.contains("x-api-key")).unwrap();
        assert!(run.contains("[redacted ") && sidecars.contains(r#""temperature": 0.5"#), "{run}");
    }
}

/// Neither the key nor another header, whatever a redirect says.
#[test]
fn a_redirect_to_another_origin_gets_nothing_and_is_said_without_a_secret() {
    let elsewhere =
        RawServer::start(|_, stream| stream.write_all(ok("application/json", servers::GOOD).as_bytes()).is_ok());
    for (status, kind) in
        [(301, "chat"), (302, "responses"), (303, "embedding"), (307, "messages"), (308, "completion")]
    {
        let to = format!("{}/{KEY}?{TEAM}", elsewhere.base_url());
        let answer = format!("HTTP/1.1 {status} {TEAM}\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
        let server = RawServer::start(move |_, stream| stream.write_all(answer.as_bytes()).is_ok());
        let folder = servers::folder(&format!(
            "llm: {{endpoint: '{}', {IN_HEADERS}}}\nbenchmark: {{request: {{kind: {kind}}}}}\n",
            server.base_url()
        ));
        for args in [&["check"][..], &["run", "--levels", "1", "--total-requests", "30", "--server-metrics"]] {
            let env = [("LLM_API_KEY", KEY), ("TEAM", TEAM)];
            let output = servers::binary(folder.path()).args(args).envs(env).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8_lossy(&output.stderr).contains("not followed"));
            assert_silent("a redirect", &output);
        }
        assert!(server.requests.lock().unwrap().iter().all(|request| request.contains(TEAM) && request.contains(KEY)));
        assert!(assert_files_silent(folder.path()) > 1);
    }
    assert!(elsewhere.requests.lock().unwrap().is_empty());
}

fn sidecar_text(runs: &Path) -> String {
    let files = std::fs::read_dir(runs).unwrap().flat_map(|run| std::fs::read_dir(run.unwrap().path()).unwrap());
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// Mistakes in the settings themselves, which a message could quote.
#[test]
fn no_message_about_the_settings_shows_a_secret() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = [
        format!("ftp://{USERINFO}@h/v1"),
        format!("http://{USERINFO}@h:port/v1?{QUERY}"),
        format!("http://{USERINFO}@"),
        format!("{USERINFO}@h/v1"),
        format!("http://{USERINFO}@{dead}/v1?{QUERY}"),
    ];
    let good = "llm: {endpoint: simulator}\n".to_owned();
    let run = |config: &str, args: &[&str], env: &[(&str, &str)]| {
        let folder = servers::folder(config);
        let mut command = servers::binary(folder.path());
        let output = command.arg("check").args(args).envs(env.iter().copied()).output().unwrap();
        assert!(!output.status.success(), "{args:?} {env:?}: it is a mistake");
        assert!(!output.stderr.is_empty());
        assert_silent(&format!("{config} {args:?} {env:?}"), &output);
    };
    for url in &urls {
        run(&format!("llm:\n  endpoint: '{url}'\n"), &[], &[]);
        run(&good, &["--llm-endpoint", url], &[]);
        run(&good, &[], &[("LLM_ENDPOINT", url)]);
    }
    run(&format!("llm:\n  endpoint: [{KEY}]\n"), &[], &[]);
    run(&format!("llm:\n  endpoint: 'http://{USERINFO}@h/v1\n"), &[], &[]);
    let elsewhere = ("LLM_ENDPOINT", "http://llm.example/v1");
    run(&good, &[], &[elsewhere, ("LLM_API_KEY", &format!("{KEY}\n{KEY}"))]);
    for proxy in [format!("http://{USERINFO}@{dead}"), format!("http://{USERINFO}@h:port")] {
        run(&good, &[], &[elsewhere, ("HTTP_PROXY", &proxy), ("NO_PROXY", "")]);
    }
}

#[test]
fn no_message_about_the_env_file_shows_a_secret() {
    for text in [format!("LLM_API_KEY='{KEY}\n"), format!("{KEY}\n"), format!("LLM_API_KEY={KEY} {KEY}\n")] {
        let folder = servers::folder("llm: {endpoint: simulator}\n");
        std::fs::write(folder.path().join(".env"), &text).unwrap();
        let output = servers::binary(folder.path()).arg("check").output().unwrap();
        assert!(!output.status.success(), "{text}");
        assert_silent(&text, &output);
    }
}

/// A proxy that refuses, and says whom.
#[test]
fn no_door_shows_a_secret_of_the_proxy() {
    let proxy = RawServer::start(|request, stream| {
        let header = request.lines().find_map(|line| line.split_once("roxy-authorization: Basic ")).unwrap().1;
        let body = format!("{header} of zqxjuser:zqxj/p+ss is not known");
        stream.write_all(ok("text/plain", &body).replacen("200 OK", "407 X", 1).as_bytes()).is_ok()
    });
    let folder = servers::folder("llm: {endpoint: 'http://llm.example/v1', model: m}\n");
    for args in [&["check"][..], &["run", "--levels", "1", "--total-requests", "30"]] {
        let url = format!("http://{USERINFO}@{}/", proxy.address);
        let output = servers::binary(folder.path()).args(args).env("HTTP_PROXY", url).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_silent("a door", &output);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            printed.contains("HTTP 407: [redacted]") && printed.contains(&format!("http://{}/", proxy.address)),
            "{printed}"
        );
    }
}

// ---- what would act on a terminal ----

/// Characters that no output may hold: they act on a terminal, turn text around, or are not seen.
#[track_caller]
fn assert_plain(what: &str, output: &Output) {
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let text = String::from_utf8_lossy(bytes);
        let found =
            text.chars().find(|c| c.is_control() && !matches!(c, '\r' | '\n') || matches!(c, '\u{200b}' | '\u{202e}'));
        assert_eq!(found, None, "{name} of {what}: {text:?}");
    }
}

const ODD: &str = "m\u{1b}]0;title\u{7}\u{202e}x\u{200b}";

#[test]
fn a_model_with_characters_that_are_not_seen_is_refused_and_not_printed() {
    let folder = servers::folder("llm: {endpoint: 'http://127.0.0.1:9/v1'}\n");
    for args in [&["check"][..], &["run", "--levels", "1"], &["run", "--llm-model", ODD]] {
        let output = servers::binary(folder.path()).args(args).env("LLM_MODEL", ODD).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("llm.model: holds an invisible character"),
            "{args:?}"
        );
        assert_plain("LLM_MODEL", &output);
    }
}

#[test]
fn nothing_in_a_file_acts_on_a_terminal() {
    let level = |level: usize| {
        serde_json::json!({
            "concurrency": level, "requests": 100, "succeeded": 90, "failures": {ODD: 10}, "notes": [ODD],
            "throughput_rps": {"estimate": 5.0}, "state": "hopeless", "reason": ODD, "by_size": [{"size": ODD}],
        })
    };
    let results = serde_json::json!({
        "schema": "llm-concurrency/results/v1", "model": ODD, "endpoint": ODD, "started_at": ODD, "run_id": "m",
        "levels": [level(1), level(2)],
    });
    let cases = [
        ("results.json", results.to_string(), vec!["recommend", "--results", "results.json"], "Measured: m]0;titlex"),
        ("results.json", results.to_string(), vec!["report", "results.json", "--format", "csv"], "5"),
        (
            "broken.json",
            serde_json::json!({"schema": ODD}).to_string(),
            vec!["recommend", "--results", "broken.json"],
            "schema",
        ),
        (
            "prompts.json",
            serde_json::json!([{"size": ODD, "text": "x"}, {"size": "y", "text": "y"}]).to_string(),
            vec!["run", "--levels", "1", "--total-requests", "30"],
            "",
        ),
        (
            "config.yaml",
            format!("llm: {{endpoint: simulator}}\nbenchmark: {{{}: 1}}\n", serde_json::json!(ODD)),
            vec!["check"],
            "unknown field",
        ),
    ];
    for (file, text, args, part) in cases {
        let folder = servers::folder("llm: {endpoint: simulator}\nbenchmark: {request: {prompts: prompts.json}}\n");
        std::fs::write(folder.path().join("prompts.json"), r#"["x"]"#).unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let output = servers::binary(folder.path()).args(&args).output().unwrap();
        let printed =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
        assert!(printed.contains(part), "{args:?}: {printed}");
        assert_plain(&format!("{args:?}"), &output);
        for report in std::fs::read_dir(folder.path().join("results")).into_iter().flatten() {
            let text = std::fs::read_to_string(report.unwrap().path()).unwrap();
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{200b}']), "{args:?}: a file in results");
        }
    }
}

#[test]
fn what_acts_on_a_terminal_or_hides_is_left_out() {
    for (text, shown) in [
        ("m\u{1b}[31m\u{7}x\u{9b}1m", "m[31mx1m"),
        ("a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{ad}f\u{e0041}g", "abcdefg"),
        (" two\r\n\tlines\u{2028}here ", "two lines here"),
        ("grüße, 模型 é́", "grüße, 模型 é́"),
    ] {
        assert_eq!(one_line(text), shown);
    }
    assert_eq!(lines("one\r\n\u{1b}two"), "one\ntwo");
    let file = value_in_lines(json!({"m\u{1b}": ["a\u{202e}", 1.5, null]}));
    assert_eq!(file, json!({"m": ["a", 1.5, null]}));
}

#[test]
fn secrets_are_found_at_any_depth_and_settings_are_none() {
    let body = json!({
        "api_key": "s1", "x": {"headers": [{"X-Auth-Token": "s2"}]}, "auth": {"pin": 4711, "on": true},
        "clientSecret": ["s3"], "HF_TOKEN": "s4", "apikey": null, "temperature": 0.5, "max_completion_tokens": 9,
        "stop_token_ids": [2], "keyword": "k", "tokenizer": "t", "monkey": "m",
    });
    let body = body.as_object().unwrap();
    let mut found = secrets(body);
    found.sort_unstable();
    assert_eq!(found, ["4711", "s1", "s2", "s3", "s4"]);
    let kept = json!(without_secrets(body));
    assert_eq!((&kept["temperature"], &kept["auth"]["on"], &kept["keyword"]), (&json!(0.5), &json!(true), &json!("k")));
    for secret in ["s1", "s2", "s3", "s4", "4711"] {
        assert!(!kept.to_string().contains(secret), "{kept}");
    }
    let other = without_secrets(json!({"api_key": "s2"}).as_object().unwrap());
    assert_ne!(json!(other)["api_key"], kept["api_key"]);
    assert!(other["api_key"].as_str().unwrap().starts_with("[redacted "));
}
