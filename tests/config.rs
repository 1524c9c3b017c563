//! Reading config.yaml and the environment: what is refused, and what is left to its owner.

#![cfg(feature = "suite")]

use std::collections::BTreeSet;
use std::path::Path;

use llm_concurrency::client::{Endpoint, Env};
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::{Plan, rules, visit_plan};
use llm_concurrency::prompts::Prompt;
use llm_concurrency::settings::{Config, Overrides, Settings};
use serde_yaml::{Mapping, Value};

fn settings(yaml: &str, env: &Env) -> Result<Settings, String> {
    settings_with(yaml, env, Overrides::default())
}

fn settings_with(yaml: &str, env: &Env, flags: Overrides) -> Result<Settings, String> {
    let path = Path::new("config.yaml");
    let config = Config::parse(yaml, path).map_err(|error| error.to_string())?;
    Settings::resolve(path.to_owned(), config, env, flags).map_err(|error| error.to_string())
}

#[test]
fn other_formats_say_the_same() {
    let read = |name: &str, text: &str| Config::parse(text, Path::new(name)).map_err(|error| error.to_string());
    let yaml =
        read("c.yaml", "llm: {endpoint: simulator, max_concurrent_requests: 7}\nbenchmark: {levels: [1, 2]}").unwrap();
    for (name, text) in [
        ("c.toml", "[llm]\nendpoint = 'simulator'\nmax_concurrent_requests = 7\n[benchmark]\nlevels = [1, 2]\n"),
        (
            "c.json",
            r#"{"llm": {"endpoint": "simulator", "max_concurrent_requests": 7}, "benchmark": {"levels": [1, 2]}}"#,
        ),
    ] {
        let read = serde_yaml::to_value(read(name, text).unwrap()).unwrap();
        assert_eq!(read, serde_yaml::to_value(&yaml).unwrap(), "{name}");
    }
    for (name, text, message) in [
        ("c.toml", "[llm]\nendpont = 'simulator'\n", "c.toml:2: "),
        ("c.toml", "[llm]\n\nendpoint =\n", "c.toml:3: "),
        ("c.json", "{\"llm\": {\"endpoint\": 1,}}", "c.json:1:"),
        ("c.toml", "[benchmark]\nlevel = [1]\n", "c.toml: "),
        ("c.toml", "[llm]\nrequest_timeout = 'x'\n", "c.toml: llm.request_timeout: "),
        ("c.toml", "[llm]\nmax_concurrent_requests = 'x'\n", "c.toml: llm: max_concurrent_requests: "),
        ("c.json", "{\"llm\": {\"model\": \"m\", \"model\": \"n\"}}", "c.json:1:30: duplicate "),
    ] {
        let error = read(name, text).unwrap_err();
        assert!(error.starts_with(message) && !error.contains(" at line"), "{error}");
    }
    // A file of variables is read as the environment; another `.env` beside it is not.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "LLM_MODEL=beside\n").unwrap();
    let prod = folder.path().join("prod.env");
    std::fs::write(&prod, "\u{feff}LLM_ENDPOINT=http://127.0.0.1:1/v1\nOTHER='# x'\n").unwrap();
    let settings = Settings::load(Some(&prod), Overrides::default()).unwrap();
    assert!(format!("{:?}", settings.endpoint).contains("127.0.0.1:1"));
    assert_eq!(settings.config.llm.model, "default");
    // The number that is written into it is read again, as programs read it: its first definition wins.
    let number = "LLM_MAX_CONCURRENT_REQUESTS=\nLLM_MAX_CONCURRENT_REQUESTS=7\n";
    for (text, expected) in [(number, 10), ("LLM_MAX_CONCURRENT_REQUESTS='12'\n#\n", 12)] {
        std::fs::write(&prod, format!("LLM_ENDPOINT=http://127.0.0.1:1/v1\n{text}LLM_ENDPOINT=x\n")).unwrap();
        let settings = Settings::load(Some(&prod), Overrides::default()).unwrap();
        assert_eq!(settings.config.llm.max_concurrent_requests, expected);
    }
    std::fs::write(&prod, "LLM_ENDPOINT=http://127.0.0.1:1/v1\nLLM_MAX_CONCURRENT_REQUESTS=many\n").unwrap();
    let error = Settings::load(Some(&prod), Overrides::default()).unwrap_err().to_string();
    assert!(error.contains("max_concurrent_requests"), "{error}");
}

/// The name with one letter dropped, doubled, swapped with the next or changed, at every place.
fn slips(name: &str) -> BTreeSet<String> {
    let letters: Vec<char> = name.chars().collect();
    let mut slips = BTreeSet::new();
    for at in (0..letters.len()).filter(|&at| letters[at].is_alphabetic()) {
        let mut with = |edit: &dyn Fn(&mut Vec<char>)| {
            let mut changed = letters.clone();
            edit(&mut changed);
            slips.insert(changed.into_iter().collect::<String>());
        };
        with(&|name| {
            name.remove(at);
        });
        with(&|name| name.insert(at, name[at]));
        with(&|name| name[at] = if name[at].is_uppercase() { 'X' } else { 'x' });
        if at + 1 < letters.len() {
            with(&|name| name.swap(at, at + 1));
        }
    }
    slips.remove(name);
    slips.retain(|slip| !slip.is_empty());
    slips
}

/// All sections with all their keys, as the program itself writes them.
fn whole_config() -> Value {
    let settings = settings("llm: {endpoint: simulator}", &Env::default()).unwrap();
    serde_yaml::to_value(&settings.config).unwrap()
}

/// Each mapping of ours with its path; those that hold the caller's own keys (`extra_body`) are empty.
fn sections(value: &Value, path: &[String], found: &mut Vec<(Vec<String>, Vec<String>)>) {
    let Some(mapping) = value.as_mapping() else { return };
    let names: Vec<String> = mapping.keys().filter_map(|key| key.as_str().map(str::to_owned)).collect();
    for name in &names {
        sections(&value[name.as_str()], &[path, std::slice::from_ref(name)].concat(), found);
    }
    found.push((path.to_vec(), names));
}

/// The whole config with one key renamed.
fn renamed(whole: &Value, section: &[String], from: &str, to: &str) -> String {
    let mut config = whole.clone();
    let mut place = &mut config;
    for name in section {
        place = place.get_mut(name.as_str()).unwrap();
    }
    let mapping: &Mapping = place.as_mapping().unwrap();
    let changed: Mapping = mapping
        .iter()
        .map(
            |(key, value)| {
                if key.as_str() == Some(from) { (to.into(), value.clone()) } else { (key.clone(), value.clone()) }
            },
        )
        .collect();
    *place = Value::Mapping(changed);
    serde_yaml::to_string(&config).unwrap()
}

#[test]
fn every_key_with_a_slip_of_the_pen_is_refused() {
    let whole = whole_config();
    let mut found = Vec::new();
    sections(&whole, &[], &mut found);
    let mut tried = 0;
    for (section, names) in &found {
        for name in names {
            for slip in slips(name).into_iter().filter(|slip| !names.contains(slip)) {
                let text = renamed(&whole, section, name, &slip);
                let error = settings(&text, &Env::default()).err();
                let error = error.unwrap_or_else(|| panic!("{}.{slip} was taken", section.join(".")));
                // The simulator tells a distribution by its key, so there the right one is missed.
                assert!(error.contains(&format!("`{slip}`")) || error.contains(&format!("`{name}`")), "{error}");
                tried += 1;
            }
        }
    }
    println!("{tried} keys with one letter dropped, doubled, swapped or changed, all refused");
    assert!(tried > 1_000);
}

#[test]
fn every_variable_with_a_slip_of_the_pen_is_refused() {
    let refused = settings("llm: {endpoint: simulator}", &Env::of([("LLM_BENCH_", "1")])).unwrap_err();
    let bench = refused.split("one of ").nth(1).unwrap().split(", ").map(|name| format!("LLM_BENCH_{name}"));
    let others = ["LLM_CONFIG", "LLM_ENDPOINT", "LLM_MODEL", "LLM_API_KEY", "OPENAI_API_KEY"].map(str::to_owned);
    let ours: Vec<String> = bench.chain(others).collect();
    assert_eq!(ours.len(), 19);
    for name in ours.iter().filter(|name| name.starts_with("LLM_BENCH_")) {
        let error = settings("llm: {endpoint: simulator}", &Env::of([(name, "?")])).unwrap_err();
        assert!(error.starts_with(&format!("{name}: `?` is n")), "{error}");
    }
    let mut tried = 0;
    for name in &ours {
        for slip in slips(name).into_iter().filter(|slip| !ours.contains(slip)) {
            let error = settings("llm: {endpoint: simulator}", &Env::of([(&slip, "1")])).expect_err(&slip);
            assert!(error.contains(&slip), "{error}");
            tried += 1;
        }
    }
    println!("{tried} variables with one letter dropped, doubled, swapped or changed, all refused");
    assert!(tried > 500);
}

#[test]
fn keys_and_variables_of_other_programs_are_left_alone() {
    let keys = [
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "stream",
        "timeout",
        "max_tokens",
        "api_key_env",
        "api_base",
        "base_url",
        "provider",
        "deployment",
        "organization",
        "project",
        "system_prompt",
        "embedding_model",
        "fallback_model",
        "cache_dir",
        "log_level",
        "retry_delay",
        "backoff",
        "rate_limit",
        "headers",
        "proxy",
        "verify_ssl",
        "keep_alive",
        "batch_size",
        "context_length",
        "presence_penalty",
        "frequency_penalty",
        "max_retries",
        "user_agent",
        "region",
        "name",
        "model_name",
        "read_timeout",
        "concurrency",
        "log_file",
        "key_file",
        "seed",
    ];
    assert!(keys.len() >= 30);
    for key in keys {
        settings(&format!("llm: {{endpoint: simulator, {key}: 1}}"), &Env::default()).unwrap();
    }
    for section in ["logging", "database", "server", "app", "log", "cache", "auth", "metrics", "db", "rag", "tools"] {
        settings(&format!("llm: {{endpoint: simulator}}\n{section}: {{a: 1}}"), &Env::default()).unwrap();
    }
    for name in
        ["VLLM_API_KEY", "VLLM_MODEL", "GLM_API_KEY", "LLM_TEMPERATURE", "LLM_PROVIDER", "OPENAI_BASE_URL", "PATH"]
    {
        settings("llm: {endpoint: simulator}", &Env::of([(name, "1")])).unwrap();
    }
}

#[test]
fn an_endpoint_is_asked_for_and_may_come_from_anywhere() {
    let error = settings("llm: {model: m}", &Env::default()).unwrap_err();
    assert!(error.contains("llm.endpoint is missing") && error.contains("LLM_ENDPOINT"), "{error}");
    let env = Env::of([("LLM_ENDPOINT", "http://h:1/v1")]);
    assert_eq!(settings("llm: {model: m}", &env).unwrap().endpoint.redacted(), "http://h:1/v1");
    // Nobody may take the simulator's figures for those of a real model.
    let simulated = settings("llm: {endpoint: simulator, model: Q3-30B}", &Env::default()).unwrap();
    assert_eq!(simulated.config.llm.model, "simulated");
}

#[test]
fn what_the_patcher_can_fill_can_be_read() {
    let limit = |text: &str| {
        let yaml = format!("llm: {{endpoint: simulator, max_concurrent_requests: {text}}}");
        settings(&yaml, &Env::default()).map(|settings| settings.config.llm.max_concurrent_requests)
    };
    assert_eq!(limit("null"), Ok(10));
    assert_eq!(limit(""), Ok(10));
    assert_eq!(limit("\"12\""), Ok(12));
    for wrong in ["\"many\"", "0", "-1", "1.5", "[]", "18446744073709551615"] {
        assert!(limit(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_merge_key_is_followed() {
    let yaml =
        "base: &b {endpoint: 'http://h:1/v1', model: merged, max_concurrent_requests: 7}\nllm: {<<: *b, model: own}\n";
    let merged = settings(yaml, &Env::default()).unwrap();
    assert_eq!(merged.endpoint.redacted(), "http://h:1/v1");
    assert_eq!((merged.config.llm.model.as_str(), merged.config.llm.max_concurrent_requests), ("own", 7));
    let slip = settings("base: &b {endpont: 'http://h:1/v1'}\nllm: {<<: *b}\n", &Env::default()).unwrap_err();
    assert!(slip.contains("`endpont`"), "{slip}");
}

#[test]
fn what_is_too_deep_is_refused_at_once() {
    for deep in
        ["[".repeat(100_000) + &"]".repeat(100_000), format!("\n  {}1", "- ".repeat(100_000)), "{? ".repeat(50_000)]
    {
        let error = settings(&format!("llm: {{endpoint: simulator}}\nx: {deep}\n"), &Env::default()).unwrap_err();
        assert!(error.contains("nested deeper"), "{error}");
    }
}

#[test]
fn numbers_that_would_overflow_are_refused() {
    for (key, value) in [
        ("total_requests", "18446744073709551615"),
        ("warmup_requests", "9000000000"),
        ("max_concurrency", "9000000000"),
    ] {
        let error = settings(&format!("llm: {{endpoint: simulator}}\nbenchmark: {{{key}: {value}}}"), &Env::default())
            .unwrap_err();
        assert!(error.contains(key), "{error}");
    }
}

const YAML: &str = "llm: {endpoint: 'http://localhost:8000', model: m}\nbenchmark: {max_concurrency: 10}\n";

#[test]
fn levels_named_for_this_run_are_not_left_out_by_bounds_from_elsewhere() {
    let bound = ("LLM_BENCH_MAX_CONCURRENCY", "50");
    let named = ("LLM_BENCH_LEVELS", "5,80");
    for (env, flags, expected) in [
        (Env::of([named]), Overrides::default(), &[5, 80][..]),
        // A bound given beside them counts.
        (Env::of([named, bound]), Overrides::default(), &[5]),
        (Env::of([named]), Overrides::of(["--max-concurrency=50"]), &[5]),
        (Env::of([bound]), Overrides::of(["--levels=5,80"]), &[5, 80]),
        // So do the file's bounds for the file's levels, and for auto.
        (Env::default(), Overrides::default(), &[1, 2, 5, 10]),
        (Env::default(), Overrides::of(["--levels=auto"]), &[1, 2, 4, 8]),
    ] {
        assert_eq!(settings_with(YAML, &env, flags.clone()).unwrap().config.benchmark.levels(), expected, "{flags:?}");
    }
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let env = Env::of([
        ("LLM_BENCH_SEED", "2"),
        ("LLM_BENCH_TOTAL_REQUESTS", " 200 "),
        ("LLM_BENCH_QUICK", "1"),
        ("LLM_BENCH_QUIET", "off"),
    ]);
    let settings = settings_with(YAML, &env, Overrides::of(["--seed=3", "--server-metrics"])).unwrap();
    let benchmark = &settings.config.benchmark;
    assert_eq!((benchmark.seed, benchmark.total_requests, benchmark.max_concurrency), (3, 200, 10));
    assert_eq!((settings.quick, settings.quiet, settings.server_metrics), (true, false, true));
    // Set and empty is as good as not set.
    let empty = Env::of([("LLM_BENCH_SEED", ""), ("LLM_MODEL", " ")]);
    let settings = settings_with(YAML, &empty, Overrides::default()).unwrap();
    assert_eq!((settings.config.llm.model.as_str(), settings.config.benchmark.seed), ("m", 42));
}

#[test]
fn the_key_comes_from_the_environment_and_shows_nowhere() {
    use secrecy::ExposeSecret;
    let key = |env: Env| {
        let settings = settings(YAML, &env).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
        settings.api_key.map(|key| key.expose_secret().to_owned())
    };
    assert_eq!(key(Env::of([("LLM_API_KEY", "hunter2"), ("OPENAI_API_KEY", "b")])).as_deref(), Some("hunter2"));
    assert_eq!(key(Env::of([("LLM_API_KEY", ""), ("OPENAI_API_KEY", "b")])).as_deref(), Some("b"));
    assert_eq!(key(Env::default()), None);
}

#[test]
fn base_urls() {
    for (written, base) in [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h:8000/v1", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/openai/v1//", "https://h/openai/v1"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/embeddings", "http://h/v1"),
        ("http://h/v1/responses", "http://h/v1"),
        ("http://h/v1/messages/", "http://h/v1"),
        ("http://user:pw@h/v1?key=1#x", "http://h/v1"),
        (" simulator ", "simulator"),
    ] {
        assert_eq!(written.parse::<Endpoint>().map(|e| e.redacted()), Ok(base.to_owned()), "{written}");
    }
    for wrong in ["", "localhost:8000", "ftp://h", "http://", "/v1", "simulators"] {
        assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
    }
}

// ---- what a run of these settings will send ----

fn valid(yaml: &str) -> Settings {
    let config = Config::parse(yaml, Path::new("config.yaml")).expect("valid");
    Settings::resolve("config.yaml".into(), config, &Env::of([]), Overrides::default()).expect("valid")
}

fn plan(yaml: &str) -> Plan {
    let prompt = Prompt::from("x".repeat(250).as_str());
    Plan::whole(&valid(yaml), &[prompt])
}

fn levels(plan: &Plan) -> Vec<usize> {
    plan.levels.iter().map(|plan| plan.level).collect()
}

#[test]
fn a_level_takes_at_least_ten_times_itself() {
    let plan = plan("llm: {endpoint: simulator}\nbenchmark: {levels: [1, 10, 11, 50]}");
    let measured: Vec<_> = plan.levels.iter().map(|plan| plan.measured).collect();
    assert_eq!(measured, [100, 100, 110, 500]);
    assert_eq!(
        plan.levels.iter().map(LoopPlan::tickets).sum::<u64>(),
        // The first may begin anew once, where the engine was cold.
        (5 + 100 + 100 + 1) + (10 + 100 + 10) + (11 + 110 + 11) + (50 + 500 + 50)
    );
}

#[test]
fn a_conversation_costs_what_its_last_turn_does() {
    let prompt = Prompt { later: vec!["y".repeat(250), "z".repeat(250)], ..Prompt::from("x".repeat(250).as_str()) };
    // 750 characters by 2.5 a token, and two answers of 64 tokens; 4 requests beforehand, 106 of the level, and
    // 100 more where it begins anew.
    let yaml = "llm: {endpoint: simulator}\nbenchmark: {levels: [1], budget: {usd_per_million_input: 1000}}";
    let text = Plan::whole(&valid(yaml), &[prompt]).describe(&valid(yaml));
    assert!(text.contains("at most 210 requests") && text.contains(&format!("{:.2} USD", 210.0 * 0.428)), "{text}");
}

#[test]
fn each_budget_leaves_out_the_levels_it_has_no_room_for() {
    // The preflight sends at most 4 requests of 64 tokens, level 1 another 106, level 10 another 120. There is a hundred for a
    // cold engine only where there is room for them beside all levels.
    for (budget, key, expected) in [
        ("max_requests: 230", None, vec![1, 10]),
        ("max_requests: 229", Some("max_requests"), vec![1]),
        ("max_output_tokens: 14720", None, vec![1, 10]),
        ("max_output_tokens: 14719", Some("max_output_tokens"), vec![1]),
        ("max_cost_usd: 0.0148, usd_per_million_output: 1", None, vec![1, 10]),
        // 230 prompts of 100 tokens at 1 USD per million are 0.0230 USD more.
        ("max_cost_usd: 0.0300, usd_per_million_output: 1, usd_per_million_input: 1", Some("max_cost_usd"), vec![1]),
        ("max_requests: 10", Some("max_requests"), vec![]),
    ] {
        let plan = plan(&format!("llm: {{endpoint: simulator}}\nbenchmark: {{levels: [1, 10], budget: {{{budget}}}}}"));
        assert_eq!(levels(&plan), expected, "{budget}");
        assert_eq!(plan.over_budget.as_ref().map(|over| over.1), key, "{budget}");
        assert_eq!(plan.configured, expected, "{budget}");
        assert!(plan.levels.iter().all(|level| level.cold == 0), "{budget}");
    }
}

#[test]
fn the_description_names_what_is_sent_and_what_is_not() {
    let yaml = "llm: {endpoint: 'http://user:secret@host/v1?key=secret', model: m}\nbenchmark: {levels: [1, 10], budget: {max_requests: 110, usd_per_million_output: 10}}";
    let text = plan(yaml).describe(&valid(yaml));
    for part in [
        "level 1 against http://host/v1, model m",
        "at most 110 requests of",
        "7040 in all",
        "0.07 USD",
        "Level 10 was not measured",
        "max_requests",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

/// A list, the same in a hurry, and `auto`.
#[test]
fn the_race_chooses_among_the_levels_and_its_most_is_said() {
    let yaml = "llm: {endpoint: simulator}\nbenchmark: {levels: [1, 10]}";
    let listed = plan(yaml);
    assert_eq!((levels(&listed), listed.race.clone()), (vec![1, 10], vec![1, 10]));
    let text = listed.describe(&valid(yaml));
    assert!(text.contains("probably about 470 requests, at most 4890 requests of"), "{text}");
    assert!(text.contains("each level in full, then short visits"), "{text}");
    let mut quick = valid(yaml);
    quick.quick = true;
    let plan_of = |settings: &Settings| Plan::whole(settings, &[]);
    assert_eq!((levels(&plan_of(&quick)), plan_of(&quick).race), (vec![], vec![1, 10]));
    let auto = "llm: {endpoint: simulator}\nbenchmark: {levels: auto, max_concurrency: 8}";
    let text = plan(auto).describe(&valid(auto));
    assert!(text.contains("levels auto, from 1 to at most 8, against"), "{text}");
    assert_eq!(plan(auto).race, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(plan(auto).configured, [0; 0]);
    // Bounds that no power of two lies between.
    let narrow = auto.replace("max_concurrency: 8", "min_concurrency: 33, max_concurrency: 50");
    assert_eq!(plan(&narrow).race, [33, 38, 44, 50]);
    assert_eq!(Plan::new(&valid(&narrow), &[], |_| true).configured, [33]);
    // A filter names levels that are known beforehand, and one level has nothing to race with.
    let filtered = Plan::new(&valid(auto), &[], |level| level == 4);
    assert_eq!((levels(&filtered), filtered.configured, filtered.race), (vec![4], vec![1, 2, 4, 8], vec![]));
    assert!(plan("llm: {endpoint: simulator}\nbenchmark: {levels: [5]}").race.is_empty());
    let poor = plan(&auto.replace("max_concurrency: 8", "budget: {max_requests: 10}"));
    assert_eq!((poor.highest(), poor.over_budget), (None, Some((vec![1], "max_requests"))));
}

#[test]
fn a_visit_that_could_pass_the_budget_is_not_begun() {
    let budget = "llm: {endpoint: simulator}\nbenchmark: {levels: [1, 10], budget: {max_requests: 400}}";
    let listed = plan(budget);
    let text = listed.describe(&valid(budget));
    assert!(text.contains("at most 400 requests of"), "{text}");
    assert!(text.contains("nothing is started that could exceed benchmark.budget.max_requests"), "{text}");
    // 20 completions of level 10 and what is in flight: after 370 they still fit.
    let further = visit_plan(&valid(budget), rules(&valid(budget)).visit_to(10));
    assert_eq!(listed.no_room(&valid(budget), 370, &further), None);
    assert_eq!(listed.no_room(&valid(budget), 371, &further), Some("max_requests"));
}
