//! Somebody who outlives this program, and takes disks away when it is gone, however that was: a file
//! system that stands still and that nobody mounts any more cannot even be found again.
//!
//! A shell that is told of mount points by its standard input, which ends with this program. It is
//! in the same name spaces, and so keeps them until it is done.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What was mounted last may lie on what was before.
const KEEP: &str = "trap '' HUP INT TERM
disks=
while read -r at; do
    disks=\"$at
$disks\"
done
echo \"$disks\" | while read -r at; do
    [ -n \"$at\" ] || continue
    fsfreeze --unfreeze \"$at\"
    umount -l \"$at\"
done 2>/dev/null";

/// Dropping it has it do its work, which is nothing if that was done.
#[derive(Debug)]
pub(super) struct Keeper(Child);

impl Keeper {
    pub(super) fn start() -> io::Result<Self> {
        let child = Command::new("sh")
            .args(["-c", KEEP])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Of its own, so that what ends this program from a terminal does not end it.
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }

    /// Says where a disk is about to be mounted.
    pub(super) fn keep(&mut self, at: &Path) -> io::Result<()> {
        let bytes = at.as_os_str().as_bytes();
        if bytes.contains(&b'\n') {
            return Err(io::Error::other("a line break in a path"));
        }
        let Some(stdin) = &mut self.0.stdin else {
            return Ok(());
        };
        stdin.write_all(&[bytes, b"\n"].concat())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _reaped = self.0.wait();
    }
}
