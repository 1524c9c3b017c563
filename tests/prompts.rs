//! What is sent of a system prompt, of a conversation and of prompts with settings of their own, against the simulator.

#![cfg(feature = "suite")]

mod common;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use common::{Rig, plan};
use llm_concurrency::client::{Cache, Prompt, RequestKind, RequestSettings};
use llm_concurrency::simulator::{OutputTokens, SimulatorConfig};
use serde_json::{Value, json};
use servers::{RawServer, ok};
use tokio::runtime::Builder;

const KINDS: [RequestKind; 4] =
    [RequestKind::Chat, RequestKind::Completion, RequestKind::Responses, RequestKind::Messages];

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
fn prompts() -> Vec<Prompt> {
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
            let rig = Rig::start(server(), &prompts(), &request);
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
    let args = ["run", "--levels", "1,2", "--total-requests", "20", "--quiet"];
    let (folder, code, said) = run("{system: {file: system.txt}}", &[("system.txt", &system)], &args);
    assert!(matches!(code, Some(0 | 3)), "{said}");
    let header = said.lines().find(|line| line.starts_with("level")).unwrap();
    assert!(header.contains("tok/s  cached  errors"), "{header}");
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
    for (request, files, what) in [
        ("{system: {file: none.txt}}", &[][..], "cannot read benchmark.request.system"),
        ("{system: {file: s.txt}}", &[("s.txt", " \n")], "cannot read benchmark.request.system"),
        ("{system: s.txt}", &[("s.txt", "You are")], "write {file: s.txt}"),
        ("{system: {path: s.txt}}", &[], "expected a text, or {file: PATH}"),
        ("{kind: messages, system: Be brief, extra_body: {system: x}}", &[], "leave one of the two out"),
        (
            "{system: Be brief, prompts: p.jsonl}",
            &[("p.jsonl", own)],
            "the prompt prompt-0001 has a system prompt of its own",
        ),
        ("{prompts: p.jsonl}", &[("p.jsonl", line)], "p.jsonl:2: no prompt: its `text` is a number"),
    ] {
        let (_folder, code, said) = run(request, files, &["check"]);
        assert!(code == Some(1) && said.contains(what), "{request}: {said}");
    }
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
