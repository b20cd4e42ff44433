//! One node: its configuration, its files, and its process, which is started, killed, paused and
//! waited for by the handle of the child, so never by a number that belongs to somebody else.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::spaces;

/// How often a process is looked at that is to end.
const POLL: Duration = Duration::from_millis(20);
/// How long looking through a stopped node's files may take.
const VERIFY: Duration = Duration::from_mins(3);

/// Where one node listens, and what others are told.
#[derive(Debug, Clone)]
pub struct Place {
    /// From one on.
    pub number: u32,
    pub grpc: u16,
    pub peer: u16,
    pub http: u16,
    pub kafka: u16,
    /// Where other nodes reach it, if that is not `peer`.
    pub advertised_peer: Option<u16>,
    /// Where clients reach it, and where other nodes do.
    pub host: Ipv4Addr,
    pub peer_host: Ipv4Addr,
}

impl Place {
    /// A node whose four ports follow `first`.
    pub fn new(number: u32, first: u16) -> Self {
        Self {
            number,
            grpc: first,
            peer: first + 1,
            http: first + 2,
            kafka: first + 3,
            advertised_peer: None,
            host: Ipv4Addr::LOCALHOST,
            peer_host: Ipv4Addr::LOCALHOST,
        }
    }

    /// Where other nodes reach it.
    pub fn reached_at(&self) -> String {
        let port = self.advertised_peer.unwrap_or(self.peer);
        format!("{}:{port}", self.peer_host)
    }

    /// Where clients of the native API go.
    pub fn grpc_address(&self) -> SocketAddr {
        (self.host, self.grpc).into()
    }

    pub fn kafka_address(&self) -> SocketAddr {
        (self.host, self.kafka).into()
    }
}

/// A node of this machine; dropping it ends its process.
#[derive(Debug)]
pub struct Node {
    pub place: Place,
    binary: PathBuf,
    config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    /// The network name space that it is started in, if not this program's.
    space: Option<PathBuf>,
    process: Option<Child>,
    /// How often it was started.
    boots: u32,
}

impl Node {
    /// A node under `dir` that is yet to be started. `storage` are further lines of the section on
    /// storage, and sections behind it.
    pub fn prepare(
        binary: &Path,
        dir: &Path,
        place: Place,
        seeds: &[String],
        storage: &str,
    ) -> io::Result<Self> {
        let home = dir.join(format!("node-{}", place.number));
        std::fs::create_dir_all(&home)?;
        let disk = Self::disk_of(dir, &place);
        let data = if disk.is_dir() { disk } else { home.clone() }.join("data");
        let config = home.join("trilog.toml");
        std::fs::write(&config, config_text(&place, &data, seeds, storage))?;
        Ok(Self {
            binary: binary.to_owned(),
            log: home.join("log"),
            place,
            config,
            data,
            space: None,
            process: None,
            boots: 0,
        })
    }

    /// Where a node under `dir` has a disk of its own, if it has one before it is prepared.
    pub fn disk_of(dir: &Path, place: &Place) -> PathBuf {
        dir.join(format!("node-{}", place.number)).join("disk")
    }

    /// Another program runs the next time that it is started.
    pub fn runs(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Whenever it is started from now on, it is in this network name space.
    pub fn lives_in(&mut self, space: Option<PathBuf>) {
        self.space = space;
    }

    /// Its program, to be given arguments.
    fn program(&self) -> Command {
        let Some(space) = &self.space else {
            return Command::new(&self.binary);
        };
        // Becomes that program: the process is the same.
        let mut command = Command::new("nsenter");
        command
            .arg(spaces::inside(space))
            .arg("--")
            .arg(&self.binary);
        command
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Whether it was started and has not been found ended.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    pub fn spawn(&mut self, arguments: &[&str]) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let process = self
            .program()
            .args(["server", "--stop-with-stdin", "-c"])
            .arg(&self.config)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Of its own, so that what a terminal or a time-out sends to this program does not
            // reach it, and the kernel wakes it, if it is paused, when this program is gone.
            .process_group(0)
            .spawn()?;
        self.boots += 1;
        self.process = Some(process);
        Ok(())
    }

    /// As `kill -9` does. Works on a paused process, too.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(process) = &mut self.process {
            process.kill()?;
        }
        Ok(())
    }

    /// Waits for a process that was killed. How it ended, if it had before that by itself.
    pub fn bury(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(mut process) = self.process.take() else {
            return Ok(None);
        };
        let status = process.wait()?;
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        Ok((!killed).then_some(status))
    }

    /// How a process has ended by itself, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else {
            return Ok(None);
        };
        let status = process.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Stands still, as a machine does that is suspended.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // The child was not waited for yet, so its number is still its own.
        let pid = self.process.as_ref().map(Child::id);
        let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.map_or(Ok(()), |pid| Ok(kill_process(pid, signal)?))
    }

    /// Tells a running process to stop, which closing its standard input does.
    pub fn close(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.stdin.take());
        }
    }

    /// Waits until a process has ended; nothing if it goes on.
    pub async fn await_end(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if self.process.is_none() || Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits, for as long as it takes, until a process that was closed has ended.
    pub fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let process = self.process.take();
        process.map(|mut process| process.wait()).transpose()
    }

    /// Loses a stopped node's disk.
    pub fn wipe(&self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.data)
    }

    /// What its own program finds damaged in a stopped node's files, place by place.
    pub async fn damage_found(&self) -> io::Result<Vec<String>> {
        let late = || io::Error::other("looking through files takes too long");
        verify(&self.binary, &self.data).await?.ok_or_else(late)
    }

    /// What it has said last.
    pub fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _gone = self.kill();
        let _reaped = self.bury();
    }
}

/// A place that is damaged, as `trilog log verify -o json` says it.
#[derive(Debug, Deserialize)]
struct Damaged {
    path: String,
    what: String,
}

#[derive(Debug, Deserialize)]
struct Verified {
    damage: Vec<Damaged>,
}

/// What `trilog log verify` finds damaged in a stopped node's directory, place by place; `None` if
/// it takes too long.
pub async fn verify(program: &Path, data: &Path) -> io::Result<Option<Vec<String>>> {
    let verifying = tokio::process::Command::new(program)
        .args(["log", "verify", "-o", "json"])
        .arg(data)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Ok(verified) = timeout(VERIFY, verifying).await else {
        return Ok(None);
    };
    let verified = verified?;
    let whole = verified.status.success();
    damage_in(whole, &verified.stdout, &verified.stderr).map(Some)
}

/// The damage that was found; what cannot be read at all is damaged, too.
fn damage_in(whole: bool, said: &[u8], errors: &[u8]) -> io::Result<Vec<String>> {
    match serde_json::from_slice::<Verified>(said) {
        Ok(Verified { damage }) if whole || !damage.is_empty() => Ok(damage
            .into_iter()
            .map(|Damaged { path, what }| format!("{path}: {what}"))
            .collect()),
        Err(error) if whole => Err(error.into()),
        Ok(_) | Err(_) => Ok(vec![String::from_utf8_lossy(errors).trim().to_owned()]),
    }
}

fn config_text(place: &Place, data: &Path, seeds: &[String], storage: &str) -> String {
    let seeds: Vec<String> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let advertise = place.advertised_peer.map_or(String::new(), |_| {
        format!("[advertise]\npeer = \"{}\"\n", place.reached_at())
    });
    format!(
        "[node]\nid = {0}\nrack = \"rack-{0}\"\ndata_dir = \"{1}\"\n[cluster]\nseeds = [{2}]\n\
         [listen]\ngrpc = \"{3}\"\npeer = \"{4}:{5}\"\nhttp = \"127.0.0.1:{6}\"\n\
         kafka = \"{7}\"\n{advertise}[storage]\n{storage}\n",
        place.number,
        data.display(),
        seeds.join(", "),
        place.grpc_address(),
        place.peer_host,
        place.peer,
        place.http,
        place.kafka_address(),
    )
}

/// A program under `dir` that does what a shell is told.
#[cfg(test)]
pub(crate) fn shell_program(dir: &Path, script: &str) -> PathBuf {
    let (text, program) = (dir.join("text"), dir.join("program"));
    std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // By somebody else: while a file is open for writing it is no program, and whatever else this
    // process starts meanwhile might hold it open.
    let mut copy = Command::new("install");
    copy.args(["-m", "755"]).args([&text, &program]);
    assert!(copy.status().unwrap().success());
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose program does what a shell is told.
    fn node(dir: &Path, script: &str) -> Node {
        let program = shell_program(dir, script);
        let mut node = Node::prepare(&program, dir, Place::new(1, 1), &[], "").unwrap();
        node.spawn(&[]).unwrap();
        node
    }

    #[test]
    fn who_ended_before_being_killed_is_told_from_who_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node(dir.path(), "exit 3");
        // Over, but yet to be waited for.
        let pid = Pid::from_raw(node.pid().unwrap().cast_signed()).unwrap();
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        node.kill().unwrap();
        assert_eq!(node.bury().unwrap().unwrap().code(), Some(3));
        assert_eq!(node.bury().unwrap(), None);

        let mut node = super::tests::node(dir.path(), "cat > /dev/null");
        node.kill().unwrap();
        assert_eq!(node.bury().unwrap(), None);
    }

    #[test]
    fn what_a_look_through_files_says_is_understood() {
        let said = br#"{"frames": 5, "damage": [{"path": "a/1.wal", "what": "it ends early", "grave": true}]}"#;
        let found = damage_in(false, said, b"one damaged place").unwrap();
        assert_eq!(found, ["a/1.wal: it ends early"]);
        let found = damage_in(true, br#"{"damage": []}"#, b"").unwrap();
        assert_eq!(found, Vec::<String>::new());
        // That it failed is enough, whatever it lists.
        for said in [&b""[..], br#"{"damage": []}"#] {
            let found = damage_in(false, said, b"cannot be read\n").unwrap();
            assert_eq!(found, ["cannot be read"]);
        }
        damage_in(true, b"everything is fine", b"").unwrap_err();
    }

    #[test]
    fn a_node_leads_a_process_group_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path(), "cat > /dev/null");
        let pid = Pid::from_raw(node.pid().unwrap().cast_signed()).unwrap();
        assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    }
}
