//! The bench, for tests that run it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The bench as `cargo test --benches` builds it; all but its few lines is there already.
pub fn path() -> &'static Path {
    static BENCH: OnceLock<PathBuf> = OnceLock::new();
    BENCH.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--bench", "concurrency", "--no-run", "--message-format", "json", "--target-dir"]);
        cargo.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // What cargo tells this test about its package would have build scripts run again.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST")) {
                cargo.env_remove(name);
            }
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut executables = messages
            .filter(|message| message["target"]["name"] == "concurrency" && message["target"]["kind"][0] == "bench")
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from));
        executables.next().expect("cargo names the executable")
    })
}
