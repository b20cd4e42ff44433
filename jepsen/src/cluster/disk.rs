//! A disk of a node's own: a file with a file system on it, which can be filled, and cut off as if
//! the power had gone. Needs root and loop devices. The one module here with `unsafe` code: the
//! call that cuts a file system off.

#![expect(unsafe_code, reason = "an ioctl has no safe form")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::ioctl::{Setter, ioctl, opcode};
use tokio::time::{Instant, sleep};

use super::keeper::Keeper;

/// `EXT4_IOC_SHUTDOWN`, and the way of it that writes nothing more, not even its journal.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
const NO_LOG_FLUSH: u32 = 2;
/// What takes up the room on a disk that is to be full.
const BALLAST: &str = "ballast";
/// `FIFREEZE` and `FITHAW`: writes to a file system wait until it goes on.
const FREEZE: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'X', 119);
const THAW: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'X', 120);
/// How long the kernel may take to let go of a file system whose users are gone.
const LET_GO: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

/// What it said, if it succeeded.
fn run(program: &str, arguments: &[&Path]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", errors.trim())))
}

impl Disk {
    /// A new disk of so many bytes, mounted at `at`. Dropping it unmounts it; the image stays, for
    /// whoever wants to see what is on it.
    pub fn make(image: &Path, at: &Path, bytes: u64) -> io::Result<Self> {
        // A run that was killed may have left one there.
        let before = Self {
            image: image.to_owned(),
            at: at.to_owned(),
        };
        drop(before);
        File::create(image)?.set_len(bytes)?;
        fs::create_dir_all(at)?;
        // No blocks are set apart for root, whom nothing would be full for otherwise.
        let plain = ["-q", "-F", "-m", "0"].map(Path::new);
        run("mkfs.ext4", &[&plain[..], &[image]].concat())?;
        let disk = Self {
            image: image.to_owned(),
            at: at.to_owned(),
        };
        disk.mount()?;
        fs::remove_dir(at.join("lost+found"))?;
        Ok(disk)
    }

    /// On a loop device of its own each time. A name space that somebody made meanwhile may still
    /// have the former mount, and so keep the device and the file system on it, which may be cut off;
    /// mount(8) by itself would take that device again.
    fn mount(&self) -> io::Result<()> {
        let options = ["--find", "--show"].map(Path::new);
        let device = run("losetup", &[&options[..], &[&self.image]].concat())?;
        let device = Path::new(&device);
        let options = ["-o", "noatime"].map(Path::new);
        let mounted = run("mount", &[&options[..], &[device, &self.at]].concat());
        // It goes when nobody has it mounted any more.
        run("losetup", &[Path::new("--detach"), device])?;
        mounted.map(drop)
    }

    /// Its own directory, and surely not one of the disk below it.
    fn open(&self) -> io::Result<File> {
        let dir = File::open(&self.at)?;
        let below = fs::metadata(self.at.parent().unwrap_or(&self.at))?;
        if dir.metadata()?.dev() == below.dev() {
            return Err(io::Error::other("the disk is not mounted"));
        }
        Ok(dir)
    }

    /// Cuts it off: nothing is written any more, and what was not synced never will be.
    pub fn cut_off(&self) -> io::Result<()> {
        let dir = self.open()?;
        // SAFETY: the call reads the u32 that it is given a pointer to, and `Setter` gives one that
        // is valid during the call; `SHUTDOWN` is the number of that very call.
        unsafe { ioctl(&dir, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
        Ok(())
    }

    /// Has all writes to it wait. What was written before is on it: this syncs.
    pub fn freeze(&self) -> io::Result<()> {
        let dir = self.open()?;
        // SAFETY: the call ignores what it is given; `FREEZE` is the number of that very call.
        unsafe { ioctl(&dir, Setter::<FREEZE, i32>::new(0)) }?;
        Ok(())
    }

    /// Has writes go on; nothing if they do.
    pub fn thaw(&self) -> io::Result<()> {
        let dir = self.open()?;
        // SAFETY: the call ignores what it is given; `THAW` is the number of that very call.
        match unsafe { ioctl(&dir, Setter::<THAW, i32>::new(0)) } {
            Err(rustix::io::Errno::INVAL) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has it again as it was when it was cut off. Nobody may use it.
    pub async fn mount_again(&self) -> io::Result<()> {
        let deadline = Instant::now() + LET_GO;
        while let Err(error) = run("umount", &[&self.at]) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.mount()
    }

    /// Leaves no room on it.
    pub fn fill(&self) -> io::Result<()> {
        let mut ballast = File::create(self.at.join(BALLAST))?;
        for size in [1 << 20, 4096] {
            let bytes = vec![0xB5; size];
            while let Ok(()) = ballast.write_all(&bytes) {}
        }
        Ok(())
    }

    /// Takes away what filled it.
    pub fn make_room(&self) -> io::Result<()> {
        match fs::remove_file(self.at.join(BALLAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever waits for it to go on could not even be killed.
        let _going = self.thaw();
        let lazily = [Path::new("-l"), &self.at];
        let _gone = run("umount", &lazily);
    }
}

/// Unmounts what a run that was killed has left in its directory of nodes.
pub fn clear(nodes: &Path) -> io::Result<()> {
    for home in fs::read_dir(nodes)? {
        let at = home?.path().join("disk");
        if at.is_dir() {
            let image = PathBuf::new();
            drop(Disk { image, at });
        }
    }
    Ok(())
}

/// The same for all runs under a directory.
pub fn clear_all(dir: &Path) -> io::Result<()> {
    for run in fs::read_dir(dir)? {
        let nodes = run?.path().join("nodes");
        if nodes.is_dir() {
            clear(&nodes)?;
        }
    }
    Ok(())
}

/// Whether a disk can be made here, cut off and had again, and is taken away when this program is
/// gone; why not, if not.
pub async fn probe(dir: &Path) -> Result<(), String> {
    let probing = async {
        let at = dir.join("probe");
        let mut keeper = Keeper::start()?;
        keeper.keep(&at)?;
        let disk = Disk::make(&dir.join("probe.img"), &at, 8 << 20)?;
        disk.freeze()?;
        disk.thaw()?;
        disk.cut_off()?;
        disk.mount_again().await?;
        disk.freeze()?;
        drop(keeper);
        match disk.open() {
            Ok(_) => Err(io::Error::other("what is mounted stays so (no fsfreeze?)")),
            Err(_) => Ok(()),
        }
    };
    let probed = probing.await.map_err(|error| error.to_string());
    let _removed = fs::remove_file(dir.join("probe.img"));
    let _gone = fs::remove_dir(dir.join("probe"));
    probed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_synced_is_gone_and_a_full_disk_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        if let Err(why) = probe(dir.path()).await {
            eprintln!("SKIPPED: disks of a node's own: {why}");
            return;
        }
        let at = dir.path().join("at");
        let disk = Disk::make(&dir.path().join("image"), &at, 16 << 20).unwrap();
        let write = |name: &str, sync: bool| {
            let mut file = File::create(at.join(name)).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
            if sync {
                file.sync_all().unwrap();
                File::open(&at).unwrap().sync_all().unwrap();
            }
        };
        write("synced", true);
        write("unsynced", false);
        disk.cut_off().unwrap();
        assert!(File::create(at.join("later")).is_err());
        disk.mount_again().await.unwrap();
        assert_eq!(fs::read(at.join("synced")).unwrap(), [7; 10_000]);
        let unsynced = fs::read(at.join("unsynced")).unwrap_or_default();
        assert_ne!(unsynced, [7; 10_000]);

        disk.fill().unwrap();
        let more = File::create(at.join("more")).and_then(|mut file| file.write_all(&[1; 8_000]));
        assert!(more.is_err());
        disk.make_room().unwrap();
        fs::write(at.join("more"), [1; 8_000]).unwrap();
    }

    #[tokio::test]
    async fn disks_are_gone_with_the_program_also_if_they_stand_still_or_are_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        if let Err(why) = probe(dir.path()).await {
            eprintln!("SKIPPED: disks of a node's own: {why}");
            return;
        }
        let mut keeper = Keeper::start().unwrap();
        let mut images = Vec::new();
        for (nth, name) in ["well", "frozen", "off", "frozen and off"]
            .iter()
            .enumerate()
        {
            let (image, at) = (dir.path().join(format!("{nth}.img")), dir.path().join(name));
            keeper.keep(&at).unwrap();
            // Nobody drops it, as when this program is killed.
            let disk = std::mem::ManuallyDrop::new(Disk::make(&image, &at, 8 << 20).unwrap());
            if name.contains("frozen") {
                disk.freeze().unwrap();
            }
            if name.contains("off") {
                disk.cut_off().unwrap();
            }
            images.push(image);
        }
        drop(keeper);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let dir = dir.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        // The kernel lets go of it when it has written what is left.
        let deadline = Instant::now() + LET_GO;
        for image in images {
            let held = || {
                Command::new("losetup")
                    .arg("-j")
                    .arg(&image)
                    .output()
                    .unwrap()
            };
            while !held().stdout.is_empty() {
                assert!(Instant::now() < deadline, "{image:?} is held");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// As a container, or a service with mounts of its own, does that starts at the wrong moment.
    #[tokio::test]
    async fn a_disk_is_had_again_though_another_name_space_has_it_mounted() {
        let dir = tempfile::tempdir().unwrap();
        if let Err(why) = probe(dir.path()).await {
            eprintln!("SKIPPED: disks of a node's own: {why}");
            return;
        }
        let at = dir.path().join("at");
        let disk = Disk::make(&dir.path().join("image"), &at, 16 << 20).unwrap();
        let mut other = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It answers, so it has its name space.
        let (mut to, mut from) = (other.stdin.take().unwrap(), other.stdout.take().unwrap());
        to.write_all(b"!").unwrap();
        std::io::Read::read_exact(&mut from, &mut [0]).unwrap();
        disk.cut_off().unwrap();
        disk.mount_again().await.unwrap();
        let written = fs::write(at.join("file"), [1; 100]);
        drop(to);
        other.wait().unwrap();
        written.unwrap();
    }

    #[tokio::test]
    async fn a_frozen_disk_takes_nothing_until_it_goes_on_and_forgets_what_waits_when_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        if let Err(why) = probe(dir.path()).await {
            eprintln!("SKIPPED: disks of a node's own: {why}");
            return;
        }
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        let disk = Disk::make(&image, &at, 16 << 20).unwrap();
        for cut_off in [false, true] {
            fs::write(at.join("before"), [1; 100]).unwrap();
            disk.freeze().unwrap();
            let path = at.join("waits");
            let mut write = tokio::task::spawn_blocking(move || fs::write(path, [2; 100]));
            let waits = tokio::time::timeout(Duration::from_millis(200), &mut write).await;
            assert!(waits.is_err(), "a frozen disk took something");
            if cut_off {
                disk.cut_off().unwrap();
            }
            disk.thaw().unwrap();
            disk.thaw().unwrap();
            let written = write.await.unwrap();
            assert_eq!(written.is_err(), cut_off);
            if cut_off {
                disk.mount_again().await.unwrap();
            }
            assert_eq!(fs::read(at.join("before")).unwrap(), [1; 100]);
            assert_eq!(at.join("waits").exists(), !cut_off);
            let _gone = fs::remove_file(at.join("waits"));
        }
        // Left behind frozen, as by a program that was killed, it is out of the way at once.
        disk.freeze().unwrap();
        drop(Disk::make(&image, &at, 16 << 20).unwrap());
        assert!(!at.join("before").exists());

        let runs = dir.path().join("runs");
        let nodes = runs.join("7").join("nodes");
        let at = nodes.join("node-1").join("disk");
        for clear in [
            |_: &Path, nodes: &Path| clear(nodes),
            |runs: &Path, _: &Path| clear_all(runs),
        ] {
            let disk = Disk::make(&image, &at, 16 << 20).unwrap();
            fs::write(at.join("file"), [1; 100]).unwrap();
            disk.freeze().unwrap();
            clear(&runs, &nodes).unwrap();
            assert!(!at.join("file").exists());
        }
    }
}
