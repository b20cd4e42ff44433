//! The binary as a shell meets it: output, errors and exit codes of commands that need no cluster.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::process::{Command, Output};

fn trilog(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trilog"))
        .args(arguments)
        .env_remove("TRILOG_CONFIG")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_configuration_is_written_once_checked_and_printed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trilog.toml");
    let file = path.to_str().unwrap();

    let written = trilog(&["config", "init", file]);
    assert!(written.status.success(), "{}", stderr(&written));
    let again = trilog(&["config", "init", file]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("--force overwrites it"),
        "{}",
        stderr(&again)
    );
    assert!(
        trilog(&["config", "init", "--force", file])
            .status
            .success()
    );

    assert!(trilog(&["config", "check", file]).status.success());
    let printed = trilog(&[
        "config",
        "print",
        "-c",
        file,
        "--node-id",
        "4",
        "-o",
        "json",
    ]);
    let values: serde_json::Value = serde_json::from_str(&stdout(&printed)).unwrap();
    assert_eq!(values[0]["key"], "node.id");
    assert_eq!(values[0]["value"], 4);
    assert_eq!(values[0]["place"], "--node-id");
}

#[test]
fn a_mistyped_key_fails_with_its_line_and_the_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trilog.toml");
    std::fs::write(&path, "[storage]\n\ncache_sise = \"1GiB\"\n").unwrap();
    for command in [["config", "check", "-c"], ["config", "print", "-c"]] {
        let mut arguments = command.to_vec();
        arguments.push(path.to_str().unwrap());
        let output = trilog(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let message = stderr(&output);
        assert!(
            message.contains("trilog.toml:3: [storage] has no key \"cache_sise\""),
            "{message}"
        );
        assert!(message.contains("did you mean cache_size?"), "{message}");
    }
    let output = trilog(&["server", "-c", path.to_str().unwrap()]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "a node does not start on it either"
    );
}

#[test]
fn variables_of_the_environment_are_read_and_checked() {
    let run = |name: &str, value: &str| {
        Command::new(env!("CARGO_BIN_EXE_trilog"))
            .args(["config", "print", "-o", "table"])
            .env(name, value)
            .output()
            .unwrap()
    };
    let output = run("TRILOG_STORAGE_IO", "threads");
    let table = stdout(&output);
    let line = table
        .lines()
        .find(|line| line.starts_with("storage.io "))
        .unwrap();
    assert!(
        line.contains("threads") && line.ends_with("TRILOG_STORAGE_IO"),
        "{line}"
    );
    assert_eq!(
        run("TRILOG_LISTEN_GRPC", "0.0.0.0:7400").status.code(),
        Some(1)
    );
    assert_eq!(run("TRILOG_NODE_IDS", "1").status.code(), Some(1));
}

#[test]
fn arguments_that_make_no_sense_exit_with_two() {
    for arguments in [
        &["frobnicate"][..],
        &["dev", "kill"],
        &["config", "print", "-o", "xml"],
    ] {
        assert_eq!(trilog(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = trilog(&["completions", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("trilog"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trilog"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}
