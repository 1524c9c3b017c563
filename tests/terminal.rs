//! What a terminal shows of `cargo bench` and of `run`, by script(1) of util-linux.

#![cfg(all(target_os = "linux", feature = "suite"))]

mod bench_executable;
mod servers;

use std::path::Path;
use std::process::Command;

use regex::Regex;

const CONFIG: &str = "llm: {endpoint: simulator}\nsimulator: {base_step_ms: 0.2, per_sequence_ms: 0.01}\n\
                      benchmark: {levels: [1, 2, 4], total_requests: 30, request: {max_tokens: 8}}\n";

/// What the terminal holds at the end, line by line.
fn on_terminal(folder: &Path, columns: usize, command: &str) -> Vec<String> {
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty cols {columns} rows 50; {command}"), "/dev/null"]);
    servers::clean(&mut script, folder);
    let output = script.output().expect("script, of Debian's package bsdutils");
    let text = String::from_utf8(output.stdout).unwrap();
    let (mut lines, mut row, mut column): (Vec<Vec<char>>, usize, usize) = (vec![Vec::new()], 0, 0);
    let parts = Regex::new(r"\x1b\[([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+").unwrap();
    for part in parts.captures_iter(&text) {
        let count = part.get(1).and_then(|n| n.as_str().parse().ok()).unwrap_or(1);
        match (&part[0], part.get(2).map(|command| command.as_str())) {
            (_, Some("A")) => row = row.saturating_sub(count),
            (_, Some("B")) => row += count,
            (_, Some("K")) => lines[row].clear(),
            // Bold and colours.
            (_, Some(_)) => {}
            ("\r", None) => column = 0,
            ("\n", None) => row += 1,
            (text, None) => {
                for c in text.chars() {
                    if column == columns {
                        (row, column) = (row + 1, 0);
                    }
                    lines.resize(lines.len().max(row + 1), Vec::new());
                    let length = lines[row].len().max(column + 1);
                    lines[row].resize(length, ' ');
                    lines[row][column] = c;
                    column += 1;
                }
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

#[test]
fn a_bench_leaves_criterions_results_and_fifteen_lines() {
    let folder = servers::folder(CONFIG);
    let bench = bench_executable::path().display();
    let lines = on_terminal(folder.path(), 80, &format!("{bench} --bench"));
    let shown = lines.join("\n");
    for residue in
        ["Warming up", "Collecting", "Analyzing", "Unable to complete", "Gnuplot", "measuring", "░", " s left"]
    {
        assert!(!shown.contains(residue), "{residue}:\n{shown}");
    }
    for level in [1, 2, 4] {
        let at = lines.iter().position(|line| line.starts_with(&format!("concurrency/level/{level} "))).expect(&shown);
        assert!(lines[at].contains("time:   [") && lines[at + 1].trim_start().starts_with("thrpt:  ["), "{shown}");
    }
    let last = lines.iter().rposition(|line| line.contains("thrpt:")).expect(&shown);
    let end: Vec<&String> = lines[last + 1..].iter().skip_while(|line| !line.starts_with("SIMULATED: ")).collect();
    assert!(end.len() <= 15 && end.iter().all(|line| line.chars().count() <= 80), "{shown}");
    assert!(end.iter().any(|line| line.starts_with("Report: ")), "{shown}");
}

/// Criterion's own lines need 78 columns; `run` has none of them on a terminal.
#[test]
fn a_run_leaves_its_plan_and_fifteen_lines_at_any_width() {
    for columns in [60, 80, 120] {
        for quick in ["", " --quick"] {
            let folder = servers::folder(CONFIG);
            let command = format!("{} run{quick}", env!("CARGO_BIN_EXE_llm-concurrency"));
            let lines = on_terminal(folder.path(), columns, &command);
            let shown = lines.join("\n");
            let answer = lines.iter().position(|line| line.starts_with("SIMULATED: ")).expect(&shown);
            let plan = lines[..answer].iter().filter(|line| !line.is_empty());
            assert!(plan.clone().all(|line| line.starts_with("Plan: ") || line.starts_with("      ")), "{shown}");
            // A line that is too long would have gone on at the left edge.
            let report = lines[answer..].iter().position(|line| line.starts_with("Report: ")).expect(&shown);
            assert!(report < 15, "{columns}:\n{shown}");
            let table = lines[answer..].iter().skip_while(|line| !line.starts_with("level ")).skip(1);
            let rows = table.take_while(|line| line.starts_with("    "));
            assert_eq!(rows.count(), 3, "{columns}:\n{shown}");
        }
    }
}

/// Criterion prints by `println!`, which panics where nobody reads.
#[test]
fn nobody_has_to_read_on() {
    let folder = servers::folder(CONFIG);
    let bench = bench_executable::path().display();
    for command in
        [format!("{bench} --bench"), format!("{} recommend --verbose", env!("CARGO_BIN_EXE_llm-concurrency"))]
    {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{{ {command}; echo $? > code; }} 2> errors | head -1")]);
        servers::clean(&mut shell, folder.path());
        shell.output().unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(!read("errors").contains("panicked"), "{}", read("errors"));
        assert!(["0\n", "3\n"].contains(&read("code").as_str()), "{command}: {}{}", read("code"), read("errors"));
    }
}
