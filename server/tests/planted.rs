//! Bugs that are planted on purpose (`make chaos-mutants`) are in no build but their own.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_trilog");

/// Whether the binary has these bytes in it anywhere.
fn has(text: &str) -> bool {
    let mut file = File::open(BINARY).unwrap();
    let mut bytes = Vec::new();
    loop {
        let kept = bytes.len().min(text.len());
        bytes.drain(..bytes.len() - kept);
        if (&mut file).take(4 << 20).read_to_end(&mut bytes).unwrap() == 0 {
            return false;
        }
        if String::from_utf8_lossy(&bytes).contains(text) {
            return true;
        }
    }
}

#[test]
fn a_build_has_planted_bugs_only_if_it_is_made_for_them() {
    assert!(has("TRILOG_CONFIG"), "nothing is found in the binary");
    let planted = cfg!(feature = "planted");
    for text in ["TRILOG_PLANTED", "ack-before-sync", "WRONG ON PURPOSE"] {
        assert_eq!(has(text), planted, "{text}");
    }
}

#[test]
fn a_build_does_not_run_with_a_bug_that_it_has_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ack-before-sync", "none", "nonsense", ""] {
        if cfg!(feature = "planted") && name != "nonsense" && !name.is_empty() {
            continue;
        }
        let output = Command::new(BINARY)
            .args(["server", "--data-dir"])
            .arg(dir.path().join("data"))
            .env("TRILOG_PLANTED", name)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{name:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("TRILOG_PLANTED"), "{name:?}: {said}");
    }
}
