//! README says what the program says: the same words for the same trouble, and every key of config.yaml.

use std::fs;
use std::path::{Path, PathBuf};

use llm_concurrency::config::{Config, Env, Overrides, Settings};
use llm_concurrency::outcome::Failure;
use llm_concurrency::prompts::PromptError;
use llm_concurrency::report::text::endpoint_problem;
use serde_json::{Value, json};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the project")
}

fn shipped() -> Config {
    Config::parse(&read("config.yaml"), Path::new("config.yaml")).expect("the shipped config.yaml")
}

#[test]
fn troubleshooting_uses_the_words_of_the_errors() {
    let settings = Settings::resolve("config.yaml".into(), shipped(), &Env::default(), Overrides::default())
        .expect("the shipped settings");
    let problem = |kind| endpoint_problem(kind, "what was said", &settings);
    let errors = [
        PromptError::NotFound(PathBuf::from("prompts.json")).to_string(),
        problem(Failure::Connect),
        problem(Failure::Timeout),
        problem(Failure::ServerError),
    ];
    let readme = read("README.md");
    for error in errors {
        let words = error.split(':').next().unwrap_or_default();
        assert!(readme.contains(&format!("**{words}.**")), "README has no entry for `{words}`");
    }
}

#[test]
fn every_key_of_the_config_has_its_line() {
    let config = json!(shipped());
    let readme = read("README.md");
    let mut keys = Vec::new();
    for section in ["llm", "benchmark", "policy"] {
        collect_keys(section, &config[section], &mut keys);
    }
    let missing: Vec<_> = keys.iter().filter(|key| !readme.contains(&format!("| `{key}` |"))).collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert!(keys.contains(&"benchmark.request.max_tokens".to_owned()), "{keys:?}");
}

/// The dotted keys below `prefix`; an empty mapping is a value.
fn collect_keys(prefix: &str, value: &Value, keys: &mut Vec<String>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => map.iter().for_each(|(key, value)| collect_keys(&format!("{prefix}.{key}"), value, keys)),
        None => keys.push(prefix.to_owned()),
    }
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let readme = read("README.md");
    let development = readme.split("## Development").nth(1).expect("the section");
    let command = development.lines().find(|line| line.starts_with("cargo test")).expect("a test command");
    let command = command.split('#').next().unwrap_or_default().trim();
    assert!(read(".ci/run").lines().any(|line| line == command), ".ci/run does not run `{command}`");
}
