//! Tells the code which commit it is built from, where that is known.
//!
//! Only builds for use ask: elsewhere each commit would compile the crate anew for nothing. Runs
//! again when the commit changes, and in a folder without a repository never.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TRILOG_COMMIT");
    let given = env::var("TRILOG_COMMIT").ok();
    let commit = given.filter(|commit| !commit.is_empty()).or_else(head);
    let commit = commit.as_deref().unwrap_or("unknown");
    println!("cargo::rustc-env=TRILOG_COMMIT={commit}");
}

/// The commit that is checked out.
fn head() -> Option<String> {
    if env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    // Unpacked somewhere inside another repository, that one's commit would say nothing.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()?
        .canonicalize();
    if Path::new(&top).canonicalize().ok() != ours.ok() {
        return None;
    }
    // Which commit HEAD is, directly or through a branch, is logged whenever it changes.
    for name in ["HEAD", "logs/HEAD"] {
        // A file that is not there would have the script run each time.
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// What a question to git is answered; nothing if there is no git, or no repository of ours.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let answer = String::from_utf8(output.stdout).ok()?;
    let answer = answer.trim();
    (output.status.success() && !answer.is_empty()).then(|| answer.to_owned())
}
