//! What is sent of a system prompt, of a conversation and of prompts with settings of their own, against the simulator.

#![cfg(feature = "suite")]

mod common;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use common::{Rig, plan};
use llm_concurrency::client::RequestKind::{self, Chat, Completion, Embedding, Messages, Responses};
use llm_concurrency::client::outcome::{Phase, RequestOutcome};
use llm_concurrency::client::{BodyTemplate, Cache, Message, Prompt, RequestSettings, System};
use llm_concurrency::figures::{self, Limits, Measurement};
use llm_concurrency::prompts::{self, DEFAULT_COUNT, DEFAULT_PATH, DEFAULT_SEED};
use llm_concurrency::simulator::{OutputTokens, SimulatorConfig};
use serde_json::{Map, Value, json};
use servers::{RawServer, ok};
use tokio::runtime::Builder;

const KINDS: [RequestKind; 4] = [Chat, Completion, Responses, Messages];

fn server() -> SimulatorConfig {
    SimulatorConfig {
        base_step_ms: 1.0,
        per_sequence_ms: 0.0,
        prefix_cache: true,
        output_tokens: OutputTokens::Fixed { tokens: 5 },
        ..SimulatorConfig::default()
    }
}

/// Twenty blocks of the server's cache, and tasks of two.
fn tasks() -> Vec<Prompt> {
    let system = Some("s".repeat(20 * 256 + 10).into());
    let task = |i| Prompt { system: system.clone(), ..Prompt::from(format!("{i:04}").repeat(150).as_str()) };
    (0..200).map(task).collect()
}

/// Of each kind, what the server finds in its cache at two levels one after the other, by its own log.
#[test]
fn in_every_kind_shared_shares_the_system_prompt_and_nothing_else() {
    for kind in KINDS {
        for (cache, expected) in [(Cache::Fresh, 0), (Cache::Shared, 20 * 64)] {
            let request = RequestSettings { kind, cache: Some(cache), ..RequestSettings::default() };
            let rig = Rig::start(server(), &tasks(), &request);
            let levels = [2, 4].map(|level| rig.measure(&plan(level, 40)));
            // The very first one finds nothing.
            let log = rig.simulator.log();
            let others = log.iter().filter(|record| record.cached_tokens != expected).count();
            assert!(others <= 1 && log.len() > 80, "{kind:?} {cache:?}: {others}");
            for level in levels {
                // All prompts are as long.
                let length = level.outcomes[0].input_tokens.unwrap();
                assert_eq!(level.summary.cached_rate, Some(f64::from(expected) / f64::from(length)), "{kind:?}");
            }
        }
    }
}

fn chat(turns: &[&str]) -> Prompt {
    let later = turns[1..].iter().map(|turn| (*turn).to_owned()).collect();
    Prompt { later, ..Prompt::from(turns[0]) }
}

/// Each turn is a request of its own, with all that was said before it; the level is conversations in flight.
#[test]
fn the_turns_of_a_conversation_follow_each_other_with_their_history() {
    let conversations: Vec<Prompt> = (0..50).map(|i| chat(&[&format!("task {i}"), "why?", "and then?"])).collect();
    for kind in KINDS {
        let server = RawServer::start(|request, stream| {
            let answer = ok("application/json", &answer_to(&said(request)).to_string());
            stream.write_all(answer.as_bytes()).is_ok()
        });
        let request = RequestSettings { kind, stream: false, cache: Some(Cache::Reuse), ..RequestSettings::default() };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let target = common::target(&server.base_url(), &conversations, &request);
        let lines = common::measure(&runtime, &target, &plan(4, 60)).outcomes;
        assert!(lines.iter().all(|line| line.is_success() && line.prompt_size.is_none()));
        let mut turns: BTreeMap<usize, usize> = BTreeMap::new();
        let mut open: BTreeSet<String> = BTreeSet::new();
        for text in server.requests.lock().unwrap().iter() {
            let said = said(text);
            let turn = said.len().div_ceil(2);
            *turns.entry(turn).or_default() += 1;
            let first = &said[0];
            match turn {
                1 => assert!(open.insert(first.clone()) && said.len() == 1),
                2 => assert_eq!(said[1..], ["1 said".to_owned(), "why?".to_owned()]),
                3 => {
                    let expected = ["1 said", "why?", "3 said", "and then?"];
                    assert_eq!(said[1..], expected.map(str::to_owned));
                    assert!(open.remove(first), "the conversations come in turn");
                }
                turn => panic!("turn {turn}"),
            }
            assert!(open.len() <= 4, "no more conversations are open than the level: {open:?}");
        }
        assert_eq!(turns.values().sum::<usize>(), lines.len());
        assert!(turns[&3] >= 15, "{turns:?}");
    }
}

/// The texts of a request's messages; a completion has them in one.
fn said(request: &str) -> Vec<String> {
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    match [&body["messages"], &body["input"]].into_iter().find_map(Value::as_array) {
        Some(list) => list.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect(),
        None => {
            let text = [&body["prompt"], &body["input"]].into_iter().find_map(Value::as_str).unwrap();
            text.split("\n\n").map(str::to_owned).collect()
        }
    }
}

/// Tells how many messages there were, in the words of every kind.
fn answer_to(said: &[String]) -> Value {
    let text = format!("{} said", said.len());
    let content = json!([{"type": "text", "text": text}]);
    json!({
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "content": content, "stop_reason": "end_turn",
        "output": [{"type": "message", "content": content}], "status": "completed",
    })
}

/// `config` is what stands under `benchmark.request`.
fn run(request: &str, files: &[(&str, &str)], args: &[&str]) -> (tempfile::TempDir, Option<i32>, String) {
    let folder = servers::folder(&format!(
        "llm: {{endpoint: simulator}}\nbenchmark:\n  request: {request}\nsimulator: {{prefix_cache: true, base_step_ms: 0.5, \
         output_tokens: {{distribution: fixed, tokens: 4}}}}\n"
    ));
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let output = servers::binary(folder.path()).args(args).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (folder, output.status.code(), said)
}

fn files_below(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn a_run_shows_what_was_cached_and_saves_nothing_of_the_system_prompt() {
    let system = format!("You are CANARY. {}", "Be brief. ".repeat(200));
    let args = ["run", "--levels", "1,2", "--total-requests", "20", "--quiet", "--verbose"];
    let (folder, code, said) = run("{system: {file: system.txt}}", &[("system.txt", &system)], &args);
    assert!(matches!(code, Some(0 | 3)), "{said}");
    let header = said.lines().find(|line| line.starts_with("level")).unwrap();
    assert!(header.contains("  cached  "), "{header}");
    let mut files = Vec::new();
    files_below(folder.path(), &mut files);
    let written: Vec<_> = files.iter().filter(|path| !path.ends_with("system.txt")).collect();
    for path in &written {
        assert!(!std::fs::read(path).unwrap().windows(6).any(|bytes| bytes == b"CANARY"), "{}", path.display());
    }
    let results = written.iter().find(|path| path.to_string_lossy().contains("concurrency_results")).unwrap();
    let results: Value = serde_json::from_slice(&std::fs::read(results).unwrap()).unwrap();
    assert_eq!(results["settings"]["request"]["cache"], "shared");
    // Seven whole blocks of 64 tokens, at levels that meet each other's prompts.
    for level in results["levels"].as_array().unwrap() {
        let cached = level["cached_rate"].as_f64().unwrap() * level["mean_input_tokens"].as_f64().unwrap();
        assert!((cached - 7.0 * 64.0).abs() < 1e-6, "{cached}");
    }
    let page = written.iter().find(|path| path.to_string_lossy().contains("concurrency_report")).unwrap();
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<th scope=\"col\">cached</th>") && page.contains("cache shared"), "the report");

    // Another system prompt is another measurement.
    std::fs::write(folder.path().join("system.txt"), "You are another.").unwrap();
    let output = servers::binary(folder.path()).arg("recommend").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("prompts (hash): measured with"), "{said}");
}

#[test]
fn without_a_cache_at_the_server_there_is_no_such_column() {
    let args = ["run", "--levels", "1", "--total-requests", "10", "--quiet"];
    let (_folder, _, said) = run("{kind: embedding}", &[], &args);
    let header = said.lines().find(|line| line.starts_with("level")).unwrap();
    assert!(!header.contains("cached"), "{header}");
}

#[test]
fn what_is_wrong_with_prompts_and_system_prompt_is_said_before_anything_is_sent() {
    let own = r#"{"body": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}}"#;
    let line = "{\"text\": \"a\"}\n{\"text\": 3}\n";
    let several = "{\"body\": {\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"n\": 3}}\n";
    for (request, files, what) in [
        ("{system: {file: none.txt}}", &[][..], "cannot read benchmark.request.system"),
        ("{system: {file: s.txt}}", &[("s.txt", " \n")], "cannot read benchmark.request.system"),
        ("{system: s.txt}", &[("s.txt", "You are")], "write {file: s.txt}"),
        ("{system: {path: s.txt}}", &[], "expected a string, or {file: PATH}"),
        ("{kind: messages, system: Be brief, extra_body: {system: x}}", &[], "remove one of the two"),
        (
            "{system: Be brief, prompts: p.jsonl}",
            &[("p.jsonl", own)],
            "the prompt prompt-0001 has a system prompt of its own",
        ),
        ("{prompts: p.jsonl}", &[("p.jsonl", line)], "p.jsonl:2: no prompt: its `text` is a number"),
        // More answers than the budget counts.
        ("{extra_body: {n: 4}}", &[], "benchmark.request.extra_body.n: must be 1"),
        ("{kind: completion, extra_body: {n: 1, best_of: 2}}", &[], "benchmark.request.extra_body.best_of: must be 1"),
        ("{prompts: p.jsonl}", &[("p.jsonl", several)], "p.jsonl:1: no prompt: its `n` must be 1"),
    ] {
        let (_folder, code, said) = run(request, files, &["check"]);
        assert!(code == Some(1) && said.contains(what), "{request}: {said}");
    }
}

/// Some servers state what was cached only where something was.
#[test]
fn of_a_level_where_any_answer_says_so_the_others_had_nothing_cached() {
    let rate = |cached: &[Option<u32>]| {
        let of = |&cached_tokens: &Option<u32>| RequestOutcome {
            phase: Phase::Measured,
            end_s: Some(1.0),
            input_tokens: Some(100),
            cached_tokens,
            ..RequestOutcome::default()
        };
        let outcomes: Vec<RequestOutcome> = cached.iter().map(of).collect();
        let limits = Limits { request_timeout_s: 1.0, max_error_rate: 1.0, ..Limits::default() };
        figures::summarize(&[(&Measurement::default(), &outcomes.iter().collect())], limits).cached_rate
    };
    assert_eq!(rate(&[Some(50), None, Some(0), Some(30)]), Some(0.2));
    assert_eq!(rate(&[None, None]), None);
    assert_eq!(rate(&[Some(300), None]), None, "more than there was");
}

/// The plan and the budget go by the longest answer that a prompt asks for.
#[test]
fn a_prompts_own_max_tokens_counts_for_the_budget() {
    let prompts = r#"[{"prompt": "a", "max_tokens": 200}, "b"]"#;
    let args = ["run", "--levels", "1,2", "--total-requests", "20", "--max-output-tokens", "8000", "--quiet"];
    let (_folder, _, said) = run("{prompts: p.json}", &[("p.json", prompts)], &args);
    assert!(said.contains("requests of up to 200 output tokens"), "{said}");
    assert!(said.contains("max_output_tokens"), "{said}");
}

// ---- bodies ----

const MARK: &str = "0123 ";

fn body(settings: &RequestSettings, prompt: &Prompt) -> Value {
    serde_json::from_slice(&BodyTemplate::new("m", settings, prompt).fill(MARK)).unwrap()
}

#[test]
fn the_prompt_stands_where_it_belongs_whatever_else_is_sent() {
    let extra_body = Map::from_iter([
        ("messages".to_owned(), json!("x")),
        ("a".to_owned(), json!({"\u{1}prefix\u{1}": [1]})),
        ("z".to_owned(), Value::Null),
    ]);
    let prompt = "say \"hi\" \u{1}prefix\u{1}\n";
    for (kind, place, limit, asks_for_usage) in [
        (Chat, "/messages/0/content", Some("max_tokens"), true),
        (Completion, "/prompt", Some("max_tokens"), true),
        (Embedding, "/input", None, false),
        (Responses, "/input", Some("max_output_tokens"), false),
        (Messages, "/messages/0/content", Some("max_tokens"), false),
    ] {
        let settings = RequestSettings { kind, extra_body: extra_body.clone(), ..RequestSettings::default() };
        let body = body(&settings, &prompt.into());
        assert_eq!(body.pointer(place).unwrap(), &format!("{MARK}{prompt}"), "{body}");
        assert_eq!((&body["model"], &body["a"]), (&json!("m"), &extra_body["a"]));
        assert!(limit.is_none_or(|limit| body[limit] == 64));
        let theirs = ["max_tokens", "max_output_tokens"].into_iter().find(|key| body.get(key).is_some());
        assert_eq!((theirs, body.get("stream_options").is_some()), (limit, asks_for_usage));
    }
}

/// Each kind's way, whole, with the mark where the cache says.
#[test]
fn a_system_prompt_goes_where_the_kind_has_it_and_the_mark_after_what_is_shared() {
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let (system, user, before, then) = ("Be \"brief\".", "Why?\n", "So", "Yes");
    let of = |kind, [s, b, u]: [&str; 3]| match kind {
        Chat => json!({"messages": [said("system", s), said("user", b), said("assistant", then), said("user", u)]}),
        Messages => json!({"system": s, "messages": [said("user", b), said("assistant", then), said("user", u)]}),
        Responses => {
            json!({"instructions": s, "input": [said("user", b), said("assistant", then), said("user", u)]})
        }
        _ => json!({"prompt": format!("{s}\n\n{b}\n\n{then}\n\n{u}")}),
    };
    let short = |kind, s: &str, u: &str| match kind {
        Chat => json!({"messages": [said("system", s), said("user", u)]}),
        Messages => json!({"system": s, "messages": [said("user", u)]}),
        Responses => json!({"instructions": s, "input": u}),
        _ => json!({"prompt": format!("{s}\n\n{u}")}),
    };
    let marked = |text: &str| format!("{MARK}{text}");
    let text = Prompt { system: Some(system.into()), ..Prompt::from(user) };
    let history = [("user", before), ("assistant", then)]
        .map(|(role, content)| Message { role: role.to_owned(), content: content.to_owned() });
    let long = Prompt { history: history.to_vec(), ..text.clone() };
    for kind in [Chat, Completion, Responses, Messages] {
        for (cache, expected, alone) in [
            (Cache::Fresh, of(kind, [&marked(system), before, user]), short(kind, &marked(system), user)),
            (Cache::Shared, of(kind, [system, &marked(before), user]), short(kind, system, &marked(user))),
        ] {
            let settings = RequestSettings { kind, cache: Some(cache), ..RequestSettings::default() };
            for (prompt, expected) in [(&long, expected), (&text, alone)] {
                let mut body = body(&settings, prompt);
                body.as_object_mut().unwrap().retain(|key, _| expected.get(key).is_some());
                assert_eq!(body, expected, "{cache:?}");
            }
        }
    }
}

#[test]
fn shared_is_the_default_where_there_is_something_to_share() {
    let with = RequestSettings { system: Some(System::Text("s".to_owned())), ..RequestSettings::default() };
    assert_eq!((RequestSettings::default().cache(), with.cache()), (Cache::Fresh, Cache::Shared));
    let fresh = RequestSettings { cache: Some(Cache::Fresh), ..with };
    assert_eq!(fresh.cache(), Cache::Fresh);
    // Not into any file: it may be a page of somebody's own.
    assert_eq!(json!(fresh).get("system"), None);
}

#[test]
fn a_prompts_own_limit_and_keys_come_before_the_settings_but_not_before_extra_body() {
    let settings = RequestSettings {
        extra_body: Map::from_iter([("top_p".to_owned(), json!(0.5)), ("max_completion_tokens".to_owned(), json!(64))]),
        ..RequestSettings::default()
    };
    let own = Map::from_iter([("top_p".to_owned(), json!(1)), ("seed".to_owned(), json!(7))]);
    let body = body(&settings, &Prompt { max_tokens: Some(9), extra_body: own, ..Prompt::from("a") });
    let read = ["max_tokens", "max_completion_tokens", "top_p", "seed"].map(|key| body[key].clone());
    assert_eq!(read, [json!(9), json!(9), json!(0.5), json!(7)]);
}

#[test]
fn what_cannot_be_a_system_prompt_is_refused() {
    let check = |kind, text: &str| {
        let system = Some(System::Text(text.to_owned()));
        RequestSettings { kind, system, ..RequestSettings::default() }.check().map_err(|error| error.to_string())
    };
    assert_eq!(check(Chat, "You are a reviewer of code."), Ok(()));
    assert_eq!(check(Chat, "Hello."), Ok(()));
    for (kind, text, why) in [
        (Chat, " \n", "is blank"),
        (Chat, "prompts/system.txt", "write {file: prompts/system.txt}"),
        (Embedding, "You are", "no system prompt"),
    ] {
        let error = check(kind, text).unwrap_err();
        assert!(error.contains(why) && error.contains("benchmark.request.system"), "{error}");
    }
}

// ---- files ----

fn load_named(name: &str, text: &str) -> Result<Vec<Prompt>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    prompts::load(&path).map_err(|error| error.to_string())
}

#[test]
fn a_prompt_a_line() {
    let texts = |name: &str, text: &str| -> Vec<String> {
        load_named(name, text).unwrap().into_iter().map(|prompt| prompt.text).collect()
    };
    assert_eq!(texts("p.txt", "Say \"hi\".\r\n\n [1]\n"), ["Say \"hi\".", " [1]"]);
    assert_eq!(texts("p.jsonl", "\"a\"\n\n{\"prompt\": \"b\"}\n"), ["a", "b"]);
    // By what is in it, where the name does not say it; and a single line is one, too.
    assert_eq!(texts("p.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n"), ["a", "b"]);
    assert_eq!(texts("p.JSONL", "{\"text\": \"a\"}"), ["a"]);
}

#[test]
fn conversations_are_the_users_turns_under_their_system_prompt() {
    let share_gpt = r#"[{"id": "c1", "conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": ""}]}]"#;
    let chat = r#"{"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "value": "b"}, {"role": "user", "content": [{"type": "text", "text": "c"}]}],
        "max_tokens": 9}"#;
    let [of_gpt] = &load_named("p.json", share_gpt).unwrap()[..] else { panic!("one") };
    let [of_chat] = &load_named("p.jsonl", &chat.replace('\n', " ")).unwrap()[..] else { panic!("one") };
    let later = vec!["c".to_owned()];
    let expected = Prompt { id: "c1".to_owned(), size: "small".to_owned(), later, ..Prompt::from("a") };
    assert_eq!(*of_gpt, expected);
    let id = "prompt-0001".to_owned();
    assert_eq!(*of_chat, Prompt { id, system: Some("s".into()), max_tokens: Some(9), ..expected });
}

#[test]
fn a_line_of_a_batch_file_is_the_request_that_it_is() {
    let line = r#"{"custom_id": "x-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "stream": true,
        "max_completion_tokens": 9, "temperature": 0}}"#;
    let [prompt] = &load_named("p.jsonl", &line.replace('\n', " ")).unwrap()[..] else { panic!("one") };
    let said = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let expected = Prompt {
        id: "x-1".to_owned(),
        size: "small".to_owned(),
        system: Some("s".into()),
        history: vec![said("user", "a"), said("assistant", "b")],
        max_tokens: Some(9),
        extra_body: Map::from_iter([("temperature".to_owned(), 0.into())]),
        ..Prompt::from("c")
    };
    assert_eq!(*prompt, expected);
    for (line, system) in [
        (r#"{"body": {"instructions": "s", "input": "c", "max_output_tokens": 9}}"#, Some("s")),
        (r#"{"params": {"system": "s", "messages": [{"role": "user", "content": "c"}], "max_tokens": 9}}"#, Some("s")),
        (r#"{"body": {"prompt": "c", "max_tokens": 9}}"#, None),
    ] {
        let prompt = load_named("p.jsonl", line).unwrap().remove(0);
        assert_eq!((&*prompt.text, prompt.system.as_deref(), prompt.max_tokens), ("c", system, Some(9)));
        assert!(prompt.extra_body.is_empty());
    }
}

#[test]
fn a_bad_line_is_named() {
    for (line, what) in [
        ("{\"text\": \"b\"", "it is not valid JSON, column"),
        ("7", "it is a number"),
        (r#"{"text": "b", "max_tokens": 0}"#, "its `max_tokens` is 0"),
        (r#"{"text": "b", "max_tokens": "9"}"#, "its `max_tokens` is \"9\""),
        (r#"{"conversations": [{"from": "gpt", "value": "b"}]}"#, "none of its messages is the user's"),
        (r#"{"messages": []}"#, "none of its messages is the user's"),
        (r#"{"conversations": [{"from": "bing", "value": "b"}]}"#, "the role `bing`"),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
            "one of its user messages has no text",
        ),
        (r#"{"body": {"messages": [{"role": "assistant", "content": "b"}]}}"#, "its last message is not the user's"),
        (r#"{"body": {"model": "m"}}"#, "it has no key that holds a prompt"),
        (r#"{"body": {"input": ["a", "b"]}}"#, "has the role ``"),
    ] {
        let error = load_named("p.jsonl", &format!("\"a\"\n\n{line}\n")).unwrap_err();
        assert!(error.contains("/p.jsonl:3: no prompt: ") && error.contains(what), "{error}");
    }
}

#[test]
fn own_files_of_every_shape() {
    // Two bytes a character: it is characters that count.
    let [small, medium, last_medium, large] = [799, 800, 2999, 3000].map(|length| "é".repeat(length));
    let sizes = json!([small, medium, last_medium, large]).to_string();
    let mixed = r#"[{"prompt": "a"}, {"text": "b", "id": 7}, {"content": "c", "id": "x", "size": "huge"},
        {"text": null, "content": "d"}]"#;
    for (text, expected) in [
        ("\u{feff}[\"one\", \"two\"]", &[("prompt-0001", "small", "one"), ("prompt-0002", "small", "two")][..]),
        (
            mixed,
            &[("prompt-0001", "small", "a"), ("7", "small", "b"), ("x", "huge", "c"), ("prompt-0004", "small", "d")],
        ),
        (r#"{"prompts": ["a"]}"#, &[("prompt-0001", "small", "a")]),
        (r#"{"snippets": [{"text": "b"}], "note": 1}"#, &[("prompt-0001", "small", "b")]),
        (
            &sizes,
            &[
                ("prompt-0001", "small", &small),
                ("prompt-0002", "medium", &medium),
                ("prompt-0003", "medium", &last_medium),
                ("prompt-0004", "large", &large),
            ],
        ),
    ] {
        let prompts = load_named("p.json", text).unwrap();
        let read: Vec<_> = prompts.iter().map(|p| (p.id.as_str(), p.size.as_str(), p.text.as_str())).collect();
        assert_eq!(read, expected);
    }
}

#[test]
fn code_of_other_origin_gets_an_instruction() {
    for (entry, noun, fenced) in [
        (r#"{"code": "fn main() {}\n", "language": "rust"}"#, " rust code", "```rust\nfn main() {}\n```"),
        (r#"{"code": "x = 1"}"#, " this code", "```\nx = 1\n```"),
        (r#"{"code": "y = 2", "language": "python"}"#, " Python code", "```python\ny = 2\n```"),
    ] {
        let text = load_named("p.json", &format!("[{entry}]")).unwrap().remove(0).text;
        assert!(text.contains(noun) && text.ends_with(fenced), "{text}");
    }
}

#[test]
fn each_mistake_has_its_own_message() {
    for (text, part) in [
        (" \n", "/p.json is empty"),
        ("[]", "/p.json has an empty list"),
        (r#"{"snippets": []}"#, "has an empty list"),
        ("[\"a\",\n  oops]", "is not valid JSON: expected value at line 2 column 3"),
        ("[\"a\"", "is not valid JSON: EOF while parsing a list at line 1 column 4"),
        ("3", "holds a number, not a list of prompts"),
        (r#"{"items": []}"#, "holds an object without `snippets` or `prompts`, not a list"),
        (r#"{"prompts": "a"}"#, "holds a string as `prompts`, not a list"),
        (r#"["a", {"id": "x"}]"#, "has no text in entry 1 (counted from 0): it has no key that holds a prompt"),
        (r#"["a", "b", "  "]"#, "has no text in entry 2 (counted from 0): it is blank"),
        ("[5]", "has no text in entry 0 (counted from 0): it is a number"),
        (r#"[{"prompt": ["a"]}]"#, "entry 0 (counted from 0): its `prompt` is an array"),
        (r#"[{"code": ""}]"#, "entry 0 (counted from 0): its `code` is blank"),
    ] {
        let message = load_named("p.json", text).unwrap_err();
        assert!(message.contains(part) && message.contains("/p.json"), "{message}");
    }
    let folder = prompts::load(".").unwrap_err().to_string();
    assert!(folder.starts_with("cannot read the test data file .: "), "{folder}");
}

#[test]
fn what_is_generated_is_saved_whole_and_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/test_snippets.json");
    let file = prompts::generate(1, 20);
    prompts::save(&path, &prompts::generate(2, 30)).unwrap();
    prompts::save(&path, &file).unwrap();
    let in_folder = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!(in_folder(path.parent().unwrap()), 1, "a temporary file was left");
    let loaded: Vec<_> = prompts::load(&path).unwrap().into_iter().map(|p| (p.id, p.size, p.text)).collect();
    let made = file.snippets.iter().map(|s| (s.id.clone(), s.size.to_owned(), s.prompt()));
    assert_eq!(loaded, made.collect::<Vec<_>>());

    let error = prompts::save(folder.path().join("a"), &file).unwrap_err();
    assert!(error.to_string().contains("/a: choose a path"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(in_folder(folder.path()), 1, "a temporary file was left");

    #[cfg(unix)]
    {
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        prompts::save(&link, &prompts::generate(1, 3)).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(prompts::load(&path).unwrap().len(), 3);
    }
}

// ---- the shipped file ----

#[test]
fn the_shipped_file_is_the_generated_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.json");
    let file = prompts::generate(DEFAULT_SEED, DEFAULT_COUNT);
    prompts::save(&path, &file).unwrap();
    let [made, shipped] = [&*path, Path::new(DEFAULT_PATH)].map(|path| std::fs::read(path).unwrap());
    assert!(made == shipped, "make {DEFAULT_PATH} anew with `generate-test-data`");
    assert_ne!(file.snippets, prompts::generate(DEFAULT_SEED + 1, DEFAULT_COUNT).snippets);
    let languages = ["javascript", "typescript", "python", "react"];
    let languages = languages.map(|name| file.snippets.iter().filter(|snippet| snippet.language == name).count());
    let sizes = ["small", "medium", "large"];
    let sizes = sizes.map(|name| file.snippets.iter().filter(|snippet| snippet.size == name).count());
    assert_eq!((languages, sizes), ([30, 30, 20, 20], [50, 36, 14]));
}

#[test]
fn no_two_alike_at_1000_and_all_well_formed() {
    let snippets = prompts::generate(7, 1000).snippets;
    assert_eq!(snippets.iter().map(|s| &s.code).collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(snippets.iter().map(|s| &s.id).collect::<BTreeSet<_>>().len(), 1000);
    for snippet in &snippets {
        let (id, code) = (&snippet.id, &snippet.code);
        let lines = match snippet.size {
            "small" => 8..=22,
            "medium" => 30..=60,
            _ => 90..=180,
        };
        assert!(lines.contains(&code.lines().count()), "{id}\n{code}");
        assert!(!code.contains(['«', '»', '‹', '›', '\r']) && !code.contains("===="), "{code}");
        assert!(!code.contains("```") && code.ends_with('\n') && !code.ends_with("\n\n"), "{code}");
        assert!(!code.contains("Revision"), "the safeguard should not be needed at this count");
        for pair in ["()", "{}", "[]"] {
            let of = |c: &str| code.matches(c).count();
            assert_eq!(of(&pair[..1]), of(&pair[1..]), "{pair} in\n{code}");
        }
        assert!(code.lines().all(|line| line == line.trim_end()), "blanks at the end of a line:\n{code}");
        let is_in_language = match snippet.language {
            "javascript" => !code.contains(": string") && !code.contains("interface "),
            "typescript" => code.contains("export ") && code.contains(": "),
            "python" => code.contains("def ") || code.contains("class "),
            _ => code.contains("</") && code.contains("return"),
        };
        assert!(is_in_language, "{id} is no {}:\n{code}", snippet.language);
        let defined = code.lines().filter(|line| {
            ["def ", "class ", "function ", "const "]
                .iter()
                .any(|word| line.trim_start_matches("export ").trim_start_matches("async ").starts_with(word))
        });
        let mut names = BTreeSet::new();
        assert!(defined.map(|line| line.split(['(', ':', '=']).next()).all(|name| names.insert(name)), "{code}");
    }
}

#[test]
fn prompts_ask_about_the_code() {
    let mut instructions = BTreeSet::new();
    for snippet in prompts::generate(42, 100).snippets {
        let prompt = snippet.prompt();
        let (noun, fence) = match snippet.language {
            "javascript" => ("JavaScript", "js"),
            "typescript" => ("TypeScript", "ts"),
            "python" => ("Python", "python"),
            _ => ("React", "tsx"),
        };
        let (instruction, fenced) = prompt.split_once("\n\n").unwrap();
        assert!(instruction.contains(&format!("this {noun} code")), "{instruction}");
        assert_eq!(fenced, format!("```{fence}\n{}\n```", snippet.code.trim_end()));
        instructions.insert(instruction.to_owned());
    }
    assert!(instructions.len() > 20, "{instructions:?}");
}
