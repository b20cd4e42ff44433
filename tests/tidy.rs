//! The house rules that a compiler does not know: who may import whom, where `unsafe` may be, that
//! every module says what it owns, and that no file grows without somebody asking why.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// For each module of the server: the modules it may import, and what of the lower crates. Only
/// the modules listed above a line may appear in it, so that every arrow points one way.
const SERVER_LAYERS: &[(&str, &[&str], &[&str])] = &[
    ("config", &[], &[]),
    // Connections of whatever edge, bounded.
    ("listen", &[], &[]),
    // What edges count.
    ("meter", &[], &[]),
    // Who somebody is, and what they may do.
    ("access", &[], &["trilog_model", "trilog_raft::controller"]),
    (
        "view",
        &[],
        &[
            "trilog_model",
            "trilog_raft",
            "trilog_storage::frame",
            "trilog_storage::kv",
        ],
    ),
    (
        "partition",
        &["view"],
        &[
            "trilog_model",
            "trilog_raft",
            "trilog_storage::frame",
            "trilog_storage::env",
            "trilog_storage::log",
            "trilog_storage::planted",
        ],
    ),
    (
        "cluster",
        &["view", "partition"],
        &[
            "trilog_model",
            "trilog_raft",
            "trilog_storage",
            "trilog_wire",
        ],
    ),
    (
        "group",
        &["access", "view", "partition", "cluster"],
        &[
            "trilog_model",
            "trilog_raft::controller",
            "trilog_storage::env",
        ],
    ),
    (
        "transaction",
        &["view", "partition", "cluster", "group"],
        &[
            "trilog_model",
            "trilog_raft::controller",
            "trilog_raft::transport",
            "trilog_storage::env",
        ],
    ),
    // The edges. They reach the log through `partition` and `cluster`, never through raft or
    // storage: of those they may name only the words that an answer is made of.
    ("http", &["listen"], &[]),
    (
        "admin",
        &[
            "access",
            "cluster",
            "partition",
            "group",
            "transaction",
            "listen",
            "meter",
        ],
        &[
            "trilog_model",
            "trilog_wire",
            "trilog_raft::controller",
            "trilog_storage::env",
            "trilog_storage::frame",
        ],
    ),
    (
        "kafka",
        &[
            "access",
            "cluster",
            "partition",
            "group",
            "transaction",
            "listen",
            "meter",
        ],
        &[
            "trilog_model",
            "trilog_wire",
            "trilog_raft::controller",
            "trilog_storage::env",
            "trilog_storage::frame",
        ],
    ),
    // Puts a node together: sees everything below.
    (
        "boot",
        &[
            "config",
            "listen",
            "access",
            "view",
            "partition",
            "cluster",
            "group",
            "transaction",
            "http",
            "admin",
            "kafka",
        ],
        &[
            "trilog_model",
            "trilog_raft",
            "trilog_storage",
            "trilog_wire",
        ],
    ),
    // Runs nodes as processes: knows their configuration and nothing of their inside.
    ("dev", &["config"], &[]),
    // Talks to nodes as any client does, and reads the files of stopped ones.
    (
        "cli",
        &["config", "access", "boot", "dev"],
        &[
            "trilog_model",
            "trilog_client",
            "trilog_raft::controller",
            "trilog_storage",
            "trilog_wire",
        ],
    ),
    ("main", &["cli"], &[]),
    ("lib", &[], &[]),
];

/// For each crate, the crates of this workspace that it may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("storage/model", &[]),
    ("storage", &["trilog-model"]),
    ("raft", &["trilog-model", "trilog-storage"]),
    ("server/wire", &["trilog-model"]),
    ("client", &["trilog-model", "trilog-wire"]),
    (
        "server",
        &[
            "trilog-client",
            "trilog-model",
            "trilog-raft",
            "trilog-storage",
            "trilog-wire",
        ],
    ),
    ("jepsen", &["trilog-client", "trilog-model", "trilog-wire"]),
    (
        "tests",
        &[
            "trilog-client",
            "trilog-model",
            "trilog-raft",
            "trilog-server",
            "trilog-storage",
            "trilog-wire",
        ],
    ),
];

/// Where `unsafe` may be: the file I/O; and, in what is not shipped, the allocator of a test that
/// counts what is asked of it.
const UNSAFE_UNDER: [&str; 2] = ["storage/src/io/", "server/tests/counting/"];

/// Beyond this many lines a file answers the question why it is not two.
const LINES_QUESTIONED: usize = 800;

/// The files that answered: path, and the reason.
const LONG_FILES: &[(&str, &str)] = &[(
    "client/tests/fake/mod.rs",
    "documentation examples include it, and can include one file only",
)];

/// Files that are included in the middle of others, where `//!` may not stand.
const INCLUDED: &[&str] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// One source file of the workspace.
struct Source {
    /// From the root, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The text with comments and the contents of strings blanked, line for line.
    fn code(&self) -> String {
        blank(&self.text)
    }
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut files = Vec::new();
    for folder in ["storage", "raft", "server", "client", "tests", "jepsen"] {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    assert!(files.len() > 20, "the sources are not where they should be");
    files
        .into_iter()
        .map(|file| Source {
            path: file
                .strip_prefix(&root)
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            text: fs::read_to_string(&file).unwrap(),
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Replaces comments and the contents of string and character literals by spaces.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest);
        let token = &rest[..length];
        if length > first.len_utf8() {
            out.extend(token.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            out.push(first);
        }
        rest = &rest[length..];
    }
    out
}

/// The length of the comment or literal that `text` begins with, else of its first character.
fn token_length(text: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |end| end + 2);
    }
    if let Some(raw) = text.strip_prefix('r')
        && (raw.starts_with('"') || raw.starts_with("#\"") || raw.starts_with("##\""))
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let body = &raw[hashes + 1..];
        return body
            .find(&end)
            .map_or(text.len(), |at| 1 + hashes + 1 + at + end.len());
    }
    if let Some(body) = text.strip_prefix('"') {
        return 1 + end_of_literal(body, '"');
    }
    if let Some(body) = text.strip_prefix('\'') {
        let mut chars = body.chars();
        let literal = match chars.next() {
            Some('\\') => true,
            Some(_) => chars.next() == Some('\''),
            None => false,
        };
        if literal {
            return 1 + end_of_literal(body, '\'');
        }
    }
    first
}

fn end_of_literal(body: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    body.len()
}

/// Every path in `code` that begins with `prefix::`, two segments deep, groups opened.
fn paths(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let needle = format!("{prefix}::");
    for (at, _) in code.match_indices(&needle) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let after = &code[at + needle.len()..];
        if let Some(group) = after.strip_prefix('{') {
            found.extend(members(group));
        } else {
            found.insert(identifier(after));
        }
    }
    found.remove("");
    found
}

/// The first identifiers of the members of a `{a::b, c::{d, e}}` whose brace is already open.
fn members(group: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut names = Vec::new();
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> String {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    text[..end].to_owned()
}

/// The module of the server that a file belongs to.
fn server_module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("server/src/")?;
    let first = inside.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// What `code` imports that its layer does not allow.
fn trespasses(code: &str, module: &str, modules: &[&str], crates: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in paths(code, "crate") {
        if name != module && !modules.contains(&name.as_str()) {
            wrong.push(format!("crate::{name}"));
        }
    }
    for lower in [
        "trilog_model",
        "trilog_raft",
        "trilog_storage",
        "trilog_wire",
        "trilog_client",
    ] {
        for name in paths(code, lower) {
            let full = format!("{lower}::{name}");
            if !crates.contains(&lower) && !crates.contains(&full.as_str()) {
                wrong.push(full);
            }
        }
    }
    wrong
}

#[test]
fn modules_of_the_server_import_downward_only() {
    let mut above: Vec<&str> = Vec::new();
    for (module, modules, _) in SERVER_LAYERS {
        for lower in *modules {
            assert!(
                above.contains(lower),
                "{module} may import {lower}, which is not below it"
            );
        }
        above.push(module);
    }
    let layers: BTreeMap<&str, _> = SERVER_LAYERS
        .iter()
        .map(|(module, modules, crates)| (*module, (*modules, *crates)))
        .collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(module) = server_module(&source.path) else {
            continue;
        };
        let Some((modules, crates)) = layers.get(module) else {
            wrong.push(format!("{}: module {module} has no layer", source.path));
            continue;
        };
        for name in trespasses(&source.code(), module, modules, crates) {
            wrong.push(format!("{}: {module} must not import {name}", source.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn crates_depend_downward_only() {
    let mut wrong = Vec::new();
    for (folder, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in manifest.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            }
            // What only its tests or its build need does not bind the crate.
            if section != "[dependencies]" || !line.starts_with("trilog-") {
                continue;
            }
            let name = line.split(['.', ' ', '=']).next().unwrap();
            if !allowed.contains(&name) {
                wrong.push(format!("{folder} must not depend on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_where_file_io_is_and_nowhere_else() {
    let mut wrong = Vec::new();
    for source in sources() {
        let mut folders = UNSAFE_UNDER.into_iter().chain(["jepsen/"]);
        let here = folders.any(|folder| source.path.starts_with(folder));
        for (nth, line) in source.code().lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !here && words.any(|word| word == "unsafe") {
                wrong.push(format!("{}:{}: unsafe", source.path, nth + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_owns() {
    let mut wrong = Vec::new();
    for source in sources() {
        // The tests of a module beside it are spoken for by the module.
        let spoken_for = source.path.ends_with("/tests.rs")
            || source.path.ends_with("/tests/mod.rs")
            || INCLUDED.contains(&source.path.as_str());
        if !spoken_for && !source.text.starts_with("//!") {
            wrong.push(format!("{} does not begin with a //! comment", source.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_long_file_answers_why() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let answered = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if lines > LINES_QUESTIONED && !answered {
            wrong.push(format!(
                "{} has {lines} lines: why is it not two files?",
                source.path
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let code = blank(
        "use crate::view::{Drain, Place};\n\
         use crate::{admin, cluster::{Cluster, error::Lookup}, http::Http};\n\
         // crate::comment::Thing\n\
         let text = \"crate::string::Thing\"; let quote = '\"'; let other = crate::boot::run();\n\
         fn f<'a>(x: &'a str) { my_crate::other::f(r#\"crate::raw\"#) }\n",
    );
    let found: Vec<String> = paths(&code, "crate").into_iter().collect();
    assert_eq!(found, ["admin", "boot", "cluster", "http", "view"]);
    let wrong = trespasses(&code, "cluster", &["view", "admin"], &[]);
    assert_eq!(wrong, ["crate::boot", "crate::http"]);
    let storage = "use trilog_storage::frame::Frame; use trilog_storage::{env::Clock, log::Log};";
    let wrong = trespasses(
        storage,
        "admin",
        &[],
        &["trilog_storage::frame", "trilog_storage::env"],
    );
    assert_eq!(wrong, ["trilog_storage::log"]);
}
