//! The commands as scripts use them: what they print for programs, and how they end.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn jepsen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trilog-jepsen"))
        .args(arguments)
        .output()
        .unwrap()
}

/// What `check -o json` says of a file, and how it ends.
fn check(file: &Path) -> (i32, Value) {
    let checked = jepsen(&["check", "-o", "json", file.to_str().unwrap()]);
    let errors = String::from_utf8_lossy(&checked.stderr);
    let said = serde_json::from_slice(&checked.stdout);
    let said = said.unwrap_or_else(|error| panic!("{error}: {errors}"));
    (checked.status.code().unwrap(), said)
}

/// A valid history of some thousand operations.
fn valid(dir: &Path) -> PathBuf {
    let file = dir.join("valid.jsonl");
    let path = file.to_str().unwrap();
    let made = jepsen(&["generate", path, "--operations", "3000", "--seed", "5"]);
    assert!(made.status.success());
    file
}

fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn written(dir: &Path, name: &str, lines: &[String]) -> PathBuf {
    let file = dir.join(name);
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    file
}

#[test]
fn a_valid_history_ends_with_zero() {
    let dir = tempfile::tempdir().unwrap();
    let file = valid(dir.path());
    let (code, said) = check(&file);
    assert_eq!((code, &said["validity"]), (0, &"valid".into()));
    assert!(said["counts"]["operations"].as_u64().unwrap() >= 3000);
    assert!(said["realtime_lag"]["p99_ns"].is_u64());
    assert_eq!(said["anomalies"].as_array().unwrap().len(), 0);
    let text = jepsen(&["check", file.to_str().unwrap()]);
    assert_eq!(text.status.code(), Some(0));
    assert!(String::from_utf8(text.stdout).unwrap().starts_with("VALID"));
}

#[test]
fn an_invalid_history_ends_with_one_and_shows_what_proves_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = lines(&valid(dir.path()));
    // One more replica with other bytes than the others.
    let replica = |node: u32, sum: &str, index: usize, time: &Value| {
        format!(
            r#"{{"index":{index},"time":{time},"type":"replica","key":0,"node":{node},"from":0,"upto":5,"checksum":"{sum}"}}"#
        )
    };
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    let next = lines.len() - 1;
    lines.push(replica(1, "aa", next, &last["time"]));
    lines.push(replica(2, "bb", next + 1, &last["time"]));
    let file = written(dir.path(), "invalid.jsonl", &lines);
    let (code, said) = check(&file);
    assert_eq!((code, &said["validity"]), (1, &"invalid".into()));
    assert_eq!(said["tally"]["replica-divergence"]["errors"], 1);
    let anomaly = &said["anomalies"][0];
    assert_eq!(anomaly["kind"], "replica-divergence");
    let slice = &said["slices"][0];
    assert_eq!(slice["kind"], "replica-divergence");
    let shown: Vec<_> = slice["events"].as_array().unwrap().iter().collect();
    let sums: Vec<_> = shown.iter().map(|event| &event["checksum"]).collect();
    assert_eq!(sums, [&Value::from("aa"), &Value::from("bb")]);
}

#[test]
fn a_history_that_was_broken_off_ends_with_three() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = lines(&valid(dir.path()));
    lines.truncate(lines.len() / 2);
    let (code, said) = check(&written(dir.path(), "half.jsonl", &lines));
    assert_eq!((code, &said["validity"]), (3, &"unknown".into()));
}

#[test]
fn what_is_no_history_ends_with_two_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let good = lines(&valid(dir.path()));
    let mut gap = good.clone();
    gap.remove(10);
    let mut field = good.clone();
    field[5] = field[5].replacen("\"type\"", "\"typ\"", 1);
    for (name, lines, told) in [
        ("gap", gap, "event"),
        ("field", field, "line 6"),
        ("empty", Vec::new(), "no history"),
    ] {
        let file = written(dir.path(), name, &lines);
        let checked = jepsen(&["check", "-o", "json", file.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(2), "{name}");
        assert!(checked.stdout.is_empty(), "{name}");
        let errors = String::from_utf8(checked.stderr).unwrap();
        assert!(errors.contains(told), "{name}: {errors}");
    }
    let absent = jepsen(&["check", "/nowhere/history.jsonl"]);
    assert_eq!(absent.status.code(), Some(2));
}

#[test]
fn what_is_no_report_has_found_nothing_and_ends_with_two() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    std::fs::write(&file, r#"{"validity": "valid"}"#).unwrap();
    for report in [file.to_str().unwrap(), "/nowhere/report.json"] {
        let found = jepsen(&["found", report]);
        assert_eq!(found.status.code(), Some(2), "{report}");
        assert!(found.stdout.is_empty(), "{report}");
    }
}

#[test]
fn a_run_of_what_is_not_there_ends_with_two() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let run = jepsen(&["run", "--trilog", "/nowhere/trilog", "--dir", dir]);
    assert_eq!(run.status.code(), Some(2));
    let run = jepsen(&[
        "run",
        "--trilog",
        "/nowhere/trilog",
        "--dir",
        dir,
        "--faults",
        "earthquake",
    ]);
    assert_eq!(run.status.code(), Some(2));
    let errors = String::from_utf8(run.stderr).unwrap();
    assert!(errors.contains("earthquake is no fault"), "{errors}");
}

/// The network interfaces of this machine.
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let lines = table.lines().skip(2);
    let names = lines.filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.collect()
}

#[test]
fn what_name_spaces_can_do_is_found_out_by_trying_and_nothing_is_left_of_it() {
    let before = interfaces();
    let said = jepsen(&["network"]);
    assert_eq!(said.status.code(), Some(0));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.lines().any(|line| line == "ports: yes"), "{said}");
    // What it takes, tried by other means.
    let takes = "ip link add name v0 type veth peer name v1 && ip link add name v2 type bridge && nsenter -V && \
                 echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet && \
                 tc qdisc add dev v0 root tbf rate 1mbit burst 16kb latency 50ms";
    for (name, flags) in [
        ("name-spaces", &["--net"][..]),
        ("user-name-spaces", &["--user", "--map-root-user", "--net"]),
    ] {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        let mut unshare = Command::new("unshare");
        let tried = unshare.args(flags).args(["sh", "-c", takes]).output();
        if tried.is_ok_and(|tried| tried.status.success()) {
            assert_eq!(line, ": yes");
        } else {
            eprintln!("SKIPPED: what {name} take, by unshare, ip and tc; found{line}");
        }
    }
    assert_eq!(interfaces(), before);
}

#[test]
fn a_campaign_of_what_is_not_there_ends_with_two() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, table) = (dir.path(), dir.path().join("proof.tsv"));
    std::fs::write(&table, "").unwrap();
    let ran = jepsen(&[
        "campaign",
        "leader-kill",
        "--network",
        "ports",
        "--trilog",
        "/nowhere/trilog",
        "--dir",
        dir.to_str().unwrap(),
        "--proof",
        table.to_str().unwrap(),
    ]);
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{errors}");
    assert_eq!(std::fs::read_to_string(&table).unwrap(), "");
}
