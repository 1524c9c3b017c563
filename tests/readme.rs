//! The texts say what the program says: the same words for the same trouble, every key of config.yaml, and of figures
//! only those that were measured.

use std::fs;
use std::path::{Path, PathBuf};

use llm_concurrency::client::Env;
use llm_concurrency::client::outcome::{Failure, Reply};
use llm_concurrency::prompts::PromptError;
use llm_concurrency::report::words::endpoint_problem;
use llm_concurrency::settings::{Config, Overrides, Settings};
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
    let problem = |kind| {
        let reply = Reply::failed(kind, "what was answered");
        endpoint_problem(&reply.failure.unwrap(), &settings)
    };
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
    let table = read("docs/configuration.md");
    let mut keys = Vec::new();
    for section in ["llm", "benchmark", "policy"] {
        collect_keys(section, &config[section], &mut keys);
    }
    let missing: Vec<_> = keys.iter().filter(|key| !table.contains(&format!("| `{key}` |"))).collect();
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
fn readme_is_no_longer_than_its_reader_has_patience() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 220, "{lines} lines: what only some need belongs into docs/");
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("a file").path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let texts: Vec<PathBuf> =
        ["README.md", "METHOD.md", "CHANGELOG.md"].map(|name| root.join(name)).into_iter().chain(docs).collect();
    let (mut links, mut broken) = (0, Vec::new());
    for text in &texts {
        let content = fs::read_to_string(text).expect("a text");
        for target in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            if file.contains("://") {
                continue;
            }
            links += 1;
            let file = if file.is_empty() { text.clone() } else { text.with_file_name(file) };
            let found = file.is_file() && (heading.is_empty() || anchors(&file).iter().any(|anchor| anchor == heading));
            if !found {
                broken.push(format!("{}: {target}", text.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
    assert!(links > 10, "{links} links");
}

/// The headings of a text as links name them.
fn anchors(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a text");
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_matches(['#', ' ']).to_lowercase());
    let plain = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.chars().filter(plain).collect::<String>().replace(' ', "-")).collect()
}

/// When the tables are made anew, the verdict is to be written anew.
#[test]
fn the_verdict_of_method_has_its_figures_from_the_tables() {
    let method = read("METHOD.md");
    let (text, tables) = method.split_once("<!-- made by").expect("tables");
    let verdict =
        text.split("## ").nth(1).and_then(|rest| rest.strip_prefix("Verdict\n")).expect("the verdict comes first");
    let is_figure =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && (word.contains('.') || word.len() > 3);
    let words = |text: &str| -> Vec<String> {
        let bare = text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()));
        bare.filter(is_figure).map(str::to_owned).collect()
    };
    let measured = words(tables);
    let told = words(verdict);
    assert!(told.len() > 10, "{told:?}");
    assert_eq!(told.iter().filter(|figure| !measured.contains(figure)).collect::<Vec<_>>(), Vec::<&String>::new());
    let missed = tables.matches("**missed** |").count();
    assert!(verdict.contains(&format!("**Bars missed: {missed}.**")), "the tables have {missed}");
    assert_eq!(text.lines().filter(|line| line.chars().count() > 100).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let readme = read("README.md");
    let development = readme.split("## Development").nth(1).expect("the section");
    let command = development.lines().find(|line| line.starts_with("cargo test")).expect("a test command");
    let command = command.split('#').next().unwrap_or_default().trim();
    assert!(read(".ci/run").lines().any(|line| line == command), ".ci/run does not run `{command}`");
}

/// `cargo publish` leaves out what `exclude` names; these tests are to pass on what is left.
#[test]
fn the_package_holds_what_these_tests_read_and_says_where_it_comes_from() {
    let manifest = read("Cargo.toml");
    let excluded = manifest.split("exclude = [").nth(1).and_then(|rest| rest.split(']').next()).expect("a list");
    let mut excluded =
        excluded.split(',').map(|name| name.trim().trim_matches(['"', '/'])).filter(|name| !name.is_empty());
    let needed =
        [".ci/run", "README.md", "METHOD.md", "CHANGELOG.md", "docs/", "config.yaml", "test-data/test_snippets.json"];
    assert_eq!(excluded.find(|name| needed.iter().any(|path| path.starts_with(name))), None);
    assert!(env!("CARGO_PKG_REPOSITORY").starts_with("https://"));
}
