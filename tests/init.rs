//! From an empty folder to a number in config.yaml.

mod servers;

use std::fs;

use llm_concurrency::settings::Config;
use llm_concurrency::simulator::{Simulator, SimulatorConfig};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn quick_server() -> Simulator {
    Simulator::start(SimulatorConfig { base_step_ms: 0.1, ..SimulatorConfig::default() }, 0).unwrap()
}

#[test]
fn init_writes_a_config_that_the_other_commands_take_and_never_over_another() {
    let (server, folder) = (quick_server(), tempfile::tempdir().unwrap());
    let url = server.base_url().replacen("http://", "http://user:hush@", 1);
    let init = || {
        let mut command = servers::binary(folder.path());
        command.args(["init", "--llm-endpoint", &url, "--llm-model", "my \"model\""]).output().unwrap()
    };
    let first = init();
    let stdout = text(&first.stdout);
    assert_eq!(first.status.code(), Some(0), "{stdout}{}", text(&first.stderr));
    assert!(stdout.contains("answers as my \"model\"") && stdout.contains("keep the whole URL"), "{stdout}");
    let path = folder.path().join("config.yaml");
    let written = fs::read_to_string(&path).unwrap();
    assert!(!written.contains("hush") && written.contains("# ") && !written.contains("simulator:"), "{written}");
    let config = Config::parse(&written, &path).unwrap();
    assert_eq!(config.llm.model, "my \"model\"");
    assert_eq!(config.llm.endpoint.unwrap().redacted(), server.base_url());
    assert_eq!(config.benchmark.request.prompts, None);
    assert_eq!(server.log().len(), 1);

    let again = init();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("already exists"), "{}", text(&again.stderr));
    assert_eq!(fs::read_to_string(&path).unwrap(), written);
    assert_eq!(server.log().len(), 1);
    let check = servers::binary(folder.path()).arg("check").output().unwrap();
    assert_eq!(check.status.code(), Some(0), "{}", text(&check.stderr));
}

#[test]
fn init_writes_nothing_for_an_endpoint_that_does_not_work() {
    let folder = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["--llm-endpoint", "http://127.0.0.1:9/v1"][..], "LLM connection error"),
        (&[], "there is no config.yaml: llm.endpoint is missing"),
    ] {
        let output = servers::binary(folder.path()).arg("init").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_run_needs_no_file_where_the_endpoint_is_named_and_writes_into_none() {
    let (server, folder) = (quick_server(), tempfile::tempdir().unwrap());
    let run = |more: &[&str]| {
        let mut command = servers::binary(folder.path());
        command.args(["run", "--levels", "1,2", "--total-requests", "30", "--llm-endpoint", &server.base_url()]);
        command.args(more).output().unwrap()
    };
    let refused = run(&["--update-config"]);
    assert_eq!((refused.status.code(), server.log().len()), (Some(1), 0), "{}", text(&refused.stderr));
    let ran = run(&["--llm-model", "m"]);
    assert!(text(&ran.stdout).contains("req/s"), "{}", text(&ran.stderr));
    assert!(!text(&ran.stdout).contains("oncurrency from"), "there is no number yet: {}", text(&ran.stdout));
    assert!(!folder.path().join("config.yaml").exists());
    let named = run(&["--config", "absent.yaml"]);
    assert!(text(&named.stderr).contains("config file not found: absent.yaml"), "{}", text(&named.stderr));
}
