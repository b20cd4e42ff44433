//! A network name space for each node, with a wire to the other nodes and another one to this
//! program, by which clients come. Links are cut by packets that leave for a machine which is not
//! there: nobody is told, and what the kernel was to send it sends again when that is over.
//!
//! ```text
//!   node 1 ── nodes ── bridge ── nodes ── node 2        127.77.0.N, as other nodes know it
//!      └── clients ─ this program ─ clients ──┘         127.88.N.2, as clients do
//! ```
//!
//! All of it lies within a name space of this program, which runs itself again by `unshare` to be
//! in one. So the machine's own network is not touched, and when this program and its nodes are
//! gone, however they ended, the kernel removes everything. Needs root or user name spaces, and the
//! programs `unshare`, `nsenter`, `ip` and `tc`.
//!
//! The addresses are loopback ones, on wires: nodes that ask nobody who they are take no others.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ways::{Pair, Way};

/// Says to this program, run again, which name space it was in, and by which right it left it. Nodes
/// take variables that begin as theirs do for settings.
const ENTERED: &str = "JEPSEN_ENTERED";
/// The hardware address of nobody.
const NOBODY: &str = "02:00:00:00:00:01";
/// What may wait for a wire with a limit at most, in bytes and in time.
const QUEUE: &str = "burst 16kb latency 500ms";
/// After how long without an answer a knock is not answered.
const SILENCE: Duration = Duration::from_millis(600);
/// A port that nobody listens at.
const CLOSED: u16 = 9;

/// By whose right there are name spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Root,
    User,
}

impl Right {
    pub const ALL: [Self; 2] = [Self::Root, Self::User];

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "name-spaces",
            Self::User => "user-name-spaces",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Root => &["--net"],
            Self::User => &["--user", "--map-root-user", "--net"],
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name space that this program is in.
fn here() -> Option<String> {
    let link = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(link.to_str()?.to_owned())
}

/// By which right this program is in a name space of its own, if it is in one.
pub fn entered() -> Option<Right> {
    let said = std::env::var(ENTERED).ok()?;
    let (name, outside) = said.split_once(' ')?;
    let right = Right::ALL.into_iter().find(|right| right.name() == name)?;
    (outside != here()?).then_some(right)
}

/// This program in a name space of its own, with these arguments.
fn again<S: AsRef<OsStr>>(
    right: Right,
    arguments: impl Iterator<Item = S>,
) -> Result<Command, String> {
    let outside = here().ok_or("this system has no name spaces")?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command
        .args(right.flags())
        .arg("--")
        .arg(program)
        .args(arguments)
        .env(ENTERED, format!("{right} {outside}"));
    Ok(command)
}

/// Whether nodes can have name spaces by this right; why not, if not. Tries all that a run needs.
pub fn probe(right: Right) -> Result<(), String> {
    let tried = again(right, ["network"].iter())?
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if tried.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&tried.stderr);
    Err(errors.trim().replace('\n', "; "))
}

/// Runs this program again, with the same arguments and in its own place, in a name space of its
/// own. Returns only if that cannot be had, with the reasons.
pub fn enter() -> Vec<String> {
    let mut why = Vec::new();
    for right in Right::ALL {
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let reason = match probe(right).and_then(|()| again(right, arguments.iter())) {
            Ok(mut command) => command.exec().to_string(),
            Err(reason) => reason,
        };
        why.push(format!("{right}: {reason}"));
    }
    why
}

/// What comes of knocking at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// There is somebody, whether it is let in or not.
    Heard,
    Silent,
}

impl fmt::Display for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
        })
    }
}

pub async fn knock(address: SocketAddr) -> io::Result<Knock> {
    match timeout(SILENCE, TcpStream::connect(address)).await {
        Err(_) => Ok(Knock::Silent),
        Ok(Ok(_)) => Ok(Knock::Heard),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Knock::Heard),
        Ok(Err(error)) => Err(error),
    }
}

/// Where other nodes reach a node.
pub(super) fn among_nodes(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, last_byte(number))
}

/// Where clients reach a node.
pub(super) fn for_clients(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 88, last_byte(number), 2)
}

/// Nodes are few, and numbered from one.
fn last_byte(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A program, within a name space if one is given.
fn program(name: &str, within: Option<&Path>) -> Command {
    let Some(space) = within else {
        return Command::new(name);
    };
    let mut command = Command::new("nsenter");
    command.arg(inside(space)).arg("--").arg(name);
    command
}

/// What `nsenter` is told to enter a name space.
pub(super) fn inside(space: &Path) -> OsString {
    let mut flag = OsString::from("--net=");
    flag.push(space);
    flag
}

fn finished(name: &str, output: &std::process::Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{name}: {}", errors.trim())))
}

fn run(within: Option<&Path>, name: &str, arguments: &[&str]) -> io::Result<()> {
    let output = program(name, within).args(arguments).output()?;
    finished(name, &output)
}

/// Does what these lines say, one after the other; with `force` whatever comes of each.
fn ip(within: Option<&Path>, lines: &str, force: bool) -> io::Result<()> {
    let mut command = program("ip", within);
    if force {
        command.arg("-force");
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if force {
        return Ok(());
    }
    finished("ip", &output)
}

/// Loopback addresses but 127.0.0.1 are free for wires, where they are let through.
const OWN_LOOPBACK: &str = "link set lo up\naddr flush dev lo\naddr add 127.0.0.1/32 dev lo\n";
const THROUGH: &str = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet";

/// A name space, which is there as long as somebody in it is.
#[derive(Debug)]
struct Space {
    /// Ends with its standard input, and so with this program.
    keeper: Child,
}

impl Space {
    fn make() -> io::Result<Self> {
        let keeper = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What a terminal sends to this program is not to take the wires away first.
            .process_group(0)
            .spawn()?;
        let mut space = Self { keeper };
        let mut line = String::new();
        if let Some(stdout) = space.keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line != "there\n" {
            return Err(io::Error::other("unshare makes no name space"));
        }
        Ok(space)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.keeper.id()))
    }

    /// Has both wires drawn, and the addresses of this node.
    fn wire(&self, number: u32) -> io::Result<()> {
        let (n, keeper) = (number, self.keeper.id());
        let ours = format!(
            "link add n{n} type veth peer name nodes netns {keeper}\n\
             link set n{n} master bridge\n\
             link set n{n} up\n\
             link add c{n} type veth peer name clients netns {keeper}\n\
             addr add 127.88.{n}.1/30 scope global dev c{n}\n\
             link set c{n} up\n"
        );
        let (among_nodes, for_clients) = (among_nodes(number), for_clients(number));
        let theirs = format!(
            "{OWN_LOOPBACK}addr add {among_nodes}/24 scope global dev nodes\n\
             addr add {for_clients}/30 scope global dev clients\n\
             link set nodes up\n\
             link set clients up\n"
        );
        ip(None, &ours, false)?;
        let path = self.path();
        run(Some(&path), "sh", &["-c", THROUGH])?;
        ip(Some(&path), &theirs, false)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _gone = self.keeper.kill();
        let _reaped = self.keeper.wait();
    }
}

/// Makes the name space that this program is in one where wires can be drawn and ports be opened;
/// any number of times. Only one of this program's own.
pub(super) fn make_ready() -> io::Result<()> {
    if entered().is_none() {
        return Err(io::Error::other("this is the network of the machine"));
    }
    run(None, "sh", &["-c", THROUGH])?;
    ip(None, OWN_LOOPBACK, false)
}

type Ways = BTreeMap<Pair, Way>;

/// A name space for each node; dropping it takes the wires away.
#[derive(Debug)]
pub struct Spaces {
    spaces: BTreeMap<u32, Space>,
    ways: Ways,
}

impl Spaces {
    /// In what was made ready.
    pub fn start(numbers: &[u32]) -> io::Result<Self> {
        make_ready()?;
        let mut all = Self {
            spaces: BTreeMap::new(),
            ways: Ways::new(),
        };
        ip(
            None,
            "link add bridge type bridge\nlink set bridge up\n",
            false,
        )?;
        for number in numbers.iter().copied() {
            all.spaces.insert(number, Space::make()?);
            if let Some(space) = all.spaces.get(&number) {
                space.wire(number)?;
            }
        }
        Ok(all)
    }

    /// Where a node's name space is found.
    pub fn path(&self, number: u32) -> Option<PathBuf> {
        Some(self.spaces.get(&number)?.path())
    }

    /// Has all wires be as these say, and all others good.
    pub fn set(&mut self, ways: BTreeMap<Pair, Way>) -> io::Result<()> {
        let lossy = |way: &Way| way.loss > 0.0 || !(way.delay + way.jitter).is_zero();
        if ways.values().any(lossy) {
            return Err(io::Error::other("wires neither lose nor delay anything"));
        }
        let before = std::mem::replace(&mut self.ways, ways);
        for (from, space) in &self.spaces {
            self.apply(&before, *from, &space.path())?;
        }
        Ok(())
    }

    /// Does what has changed of what one node says.
    fn apply(&self, before: &Ways, from: u32, space: &Path) -> io::Result<()> {
        let is_cut = |ways: &Ways, to: u32| ways.get(&(from, to)).is_some_and(|way| way.cut);
        let mut lines = String::new();
        for to in self.spaces.keys().copied() {
            let address = among_nodes(to);
            let _text = match (is_cut(before, to), is_cut(&self.ways, to)) {
                (false, true) => writeln!(
                    lines,
                    "neigh replace {address} lladdr {NOBODY} dev nodes nud permanent"
                ),
                (true, false) => writeln!(lines, "neigh del {address} dev nodes"),
                (true, true) | (false, false) => Ok(()),
            };
        }
        if !lines.is_empty() {
            ip(Some(space), &lines, false)?;
        }
        match (slowest(before, from), slowest(&self.ways, from)) {
            (before, now) if before == now => Ok(()),
            (_, Some(rate)) => limit(Some(space), "nodes", rate),
            (_, None) => run(Some(space), "tc", &["qdisc", "del", "dev", "nodes", "root"]),
        }
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        // Name spaces go by and by, and the next ones have wires of the same names.
        let mut lines = String::new();
        for number in self.spaces.keys() {
            let _text = writeln!(lines, "link del n{number}\nlink del c{number}");
        }
        lines.push_str("link del bridge\n");
        let _gone = ip(None, &lines, true);
    }
}

/// A wire has one limit, whoever is at its other end.
fn slowest(ways: &Ways, from: u32) -> Option<u32> {
    let of_node = ways.iter().filter(|((node, _), _)| *node == from);
    of_node.filter_map(|(_, way)| way.rate).min()
}

fn limit(within: Option<&Path>, wire: &str, rate: u32) -> io::Result<()> {
    let (rate, head) = (format!("{}bps", rate.max(1)), "qdisc replace dev");
    let arguments = format!("{head} {wire} root tbf rate {rate} {QUEUE}");
    let arguments: Vec<&str> = arguments.split(' ').collect();
    run(within, "tc", &arguments)
}

/// Tries all that a run needs in the name space that this program is in.
pub fn try_out() -> anyhow::Result<()> {
    let mut spaces = Spaces::start(&[1, 2])?;
    let own = std::env::current_exe()?;
    let from_node = |from: u32, to: u32, spaces: &Spaces| -> anyhow::Result<String> {
        let space = spaces.path(from).unwrap_or_default();
        let address = SocketAddr::from((among_nodes(to), CLOSED)).to_string();
        let output = Command::new("nsenter")
            .arg(inside(&space))
            .arg("--")
            .arg(&own)
            .args(["knock", &address])
            .output()?;
        finished("knock", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let expect = |found: &str, expected: Knock, what: &str| -> anyhow::Result<()> {
        let expected = expected.to_string();
        anyhow::ensure!(found == expected, "{what} is {found} and not {expected}");
        Ok(())
    };
    expect(&from_node(1, 2, &spaces)?, Knock::Heard, "a node")?;
    for cut in [(1, 2), (2, 1)] {
        let way = Way {
            cut: true,
            ..Way::default()
        };
        spaces.set(BTreeMap::from([(cut, way)]))?;
        expect(
            &from_node(1, 2, &spaces)?,
            Knock::Silent,
            "a node behind a cut",
        )?;
        spaces.set(BTreeMap::new())?;
        expect(
            &from_node(1, 2, &spaces)?,
            Knock::Heard,
            "a node behind no cut",
        )?;
    }
    let limited = Way {
        rate: Some(1_000_000),
        ..Way::default()
    };
    spaces.set(BTreeMap::from([((1, 2), limited)]))?;
    expect(
        &from_node(1, 2, &spaces)?,
        Knock::Heard,
        "a node behind a limit",
    )?;
    spaces.set(BTreeMap::new())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let near = runtime.block_on(knock((for_clients(2), CLOSED).into()))?;
    expect(&near.to_string(), Knock::Heard, "a node for clients")?;
    Ok(())
}
