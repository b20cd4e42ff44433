//! Real input: the source lines of a checkout and of the crates it depends on, as cargo has them
//! on disk.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Folders of a checkout that hold no source.
const PASSED_OVER: [&str; 4] = ["target", ".git", ".rocksdb", "trilog-data"];
/// What a source file's name ends with.
const ENDINGS: [&str; 10] = [
    "rs", "toml", "md", "proto", "sh", "c", "h", "cc", "cpp", "S",
];
/// A line longer than this is data rather than source, and its file is left out.
const LINE_BYTES_MAX: usize = 64 << 10;
const FILE_BYTES_MAX: u64 = 8 << 20;

/// One file: the name its lines are keyed by, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceFile {
    pub(super) name: String,
    path: PathBuf,
}

impl SourceFile {
    /// The file's bytes; nothing if it holds something else than lines of text.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let bytes = fs::read(&self.path)?;
        let text = !bytes.contains(&0) && lines(&bytes).all(|line| line.len() <= LINE_BYTES_MAX);
        Ok(text.then_some(bytes))
    }
}

/// The lines of a file, without their ends.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let lines = (!body.is_empty()).then(|| body.split(|byte| *byte == b'\n'));
    lines.into_iter().flatten()
}

/// Every source file of the checkout at `root`, then of the crates its lock file names, in an
/// order that depends on nothing else.
pub(super) fn gather(root: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let lock = root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| {
        format!(
            "{} cannot be read: run this in a checkout of Trilog",
            lock.display()
        )
    })?;
    let mut own = Vec::new();
    collect(root, "trilog", &mut own)?;
    own.sort();
    let mut others = Vec::new();
    for registry in registries()? {
        for package in packages(&lock) {
            let folder = registry.join(&package);
            if folder.is_dir() {
                collect(&folder, &package, &mut others)?;
            }
        }
    }
    others.sort();
    others.dedup_by(|left, right| left.name == right.name);
    if own.is_empty() || others.is_empty() {
        bail!("there are no sources of crates on this machine: cargo has downloaded none");
    }
    own.extend(others);
    Ok(own)
}

/// Where cargo keeps the sources of the crates it downloaded, one folder for each registry.
fn registries() -> anyhow::Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = cargo
        .or(home)
        .context("neither CARGO_HOME nor HOME is set")?;
    let folder = cargo.join("registry/src");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("{}: cargo has downloaded nothing", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    Ok(found)
}

/// `name-version` of every package in a lock file.
fn packages(lock: &str) -> BTreeSet<String> {
    let mut name = None;
    let mut found = BTreeSet::new();
    for line in lock.lines() {
        let value = |key: &str| {
            let rest = line.strip_prefix(key)?.strip_prefix(" = \"")?;
            rest.strip_suffix('"')
        };
        if let Some(value) = value("name") {
            name = Some(value);
        } else if let (Some(version), Some(name)) = (value("version"), name) {
            found.insert(format!("{name}-{version}"));
        }
    }
    found
}

fn collect(folder: &Path, name: &str, found: &mut Vec<SourceFile>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let Some(part) = path.file_name().and_then(|part| part.to_str()) else {
            continue;
        };
        let name = format!("{name}/{part}");
        if kind.is_dir() {
            if !PASSED_OVER.contains(&part) {
                collect(&path, &name, found)?;
            }
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str());
        let is_source = ending.is_some_and(|ending| ENDINGS.contains(&ending));
        if kind.is_file() && is_source && entry.metadata()?.len() <= FILE_BYTES_MAX {
            found.push(SourceFile { name, path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_lies_between_line_ends() {
        for (text, expected) in [
            ("", &[][..]),
            ("\n", &[]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("a\n\nb\r\n", &["a", "", "b\r"]),
        ] {
            let found: Vec<&[u8]> = lines(text.as_bytes()).collect();
            let expected: Vec<&[u8]> = expected.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn packages_are_read_from_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"axum\"\nversion = \"0.8.9\"\n\
                    dependencies = [\n \"bytes\",\n]\n\n[[package]]\nname = \"bytes\"\n\
                    version = \"1.10.0\"\n";
        let found: Vec<String> = packages(lock).into_iter().collect();
        assert_eq!(found, ["axum-0.8.9", "bytes-1.10.0"]);
    }

    #[test]
    fn binary_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            SourceFile {
                name: name.to_owned(),
                path,
            }
        };
        assert!(file("a.rs", b"fn main() {}\n").read().unwrap().is_some());
        assert!(file("b.rs", b"\0").read().unwrap().is_none());
        assert!(
            file("c.rs", &vec![b'x'; LINE_BYTES_MAX + 1])
                .read()
                .unwrap()
                .is_none()
        );
        fs::create_dir(dir.path().join("target")).unwrap();
        file("target/d.rs", b"");
        file("e.png", b"");
        let mut found = Vec::new();
        collect(dir.path(), "x", &mut found).unwrap();
        found.sort();
        let names: Vec<&str> = found.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["x/a.rs", "x/b.rs", "x/c.rs"]);
    }
}
