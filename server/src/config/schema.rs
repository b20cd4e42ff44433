//! Every key a node can be configured with. The doc comment of a key is what `config init` says
//! about it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::section::{Section, Setting, quoted, section};
use super::{ByteSize, Duration};

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

section! {
    /// Who this node is.
    Node {
        /// The number of this node, unique in the cluster and never zero.
        id: u32 = 1,
        /// Where the log, the view state and the node's identity are kept.
        data_dir: PathBuf = PathBuf::from("/var/lib/trilog"),
        /// What this node would fail together with (a rack, a zone). Replicas of a partition
        /// spread over the racks there are.
        rack: Option<String> = None,
        /// How long a stop may take to hand over leaderships and write out what is in memory.
        shutdown_timeout: Duration = Duration::from_secs(30),
    }
}

section! {
    /// Which cluster it belongs to.
    Cluster {
        /// Peer addresses (host:port) of nodes to find the cluster by, the same list on each of
        /// them. None makes a cluster of one, which others can join.
        seeds: Vec<String> = Vec::new(),
        /// Take the place of the node of the same number whose data directory is lost. Only an
        /// empty directory is affected.
        replace: bool = false,
    }
}

section! {
    /// Where it listens. Without authentication only loopback addresses are accepted.
    Listen {
        /// The native gRPC API and the command line.
        grpc: SocketAddr = loopback(7400),
        /// The other nodes of the cluster.
        peer: SocketAddr = loopback(7401),
        /// Metrics and health.
        http: SocketAddr = loopback(8222),
        /// Kafka clients.
        kafka: SocketAddr = loopback(9092),
        /// Reserved for NATS clients.
        nats: SocketAddr = loopback(4222),
        /// Reserved for MQTT devices.
        mqtt: SocketAddr = loopback(1883),
    }
}

section! {
    /// What it tells others to connect to (host:port), where that differs from where it listens.
    Advertise {
        /// For clients of the native API.
        grpc: Option<String> = None,
        /// For the other nodes.
        peer: Option<String> = None,
        /// For Kafka clients, which go to the node that leads a partition.
        kafka: Option<String> = None,
    }
}

section! {
    /// Who clients are, and what they may do. All nodes of a cluster are to be told the same.
    Access {
        /// `none`: nobody is asked who they are, and only loopback addresses are listened on.
        /// `required`: everybody is, in every dialect, and may do what the rules allow.
        authentication: Authentication = Authentication::None,
        /// Users who may do everything.
        super_users: Vec<String> = Vec::new(),
        /// A file with one line `user:password` that nobody else can read: unless there is such a
        /// user, it is made when the node starts. It has to be one of the super users.
        admin_file: Option<PathBuf> = None,
        /// Whether everybody may use what no rule is about.
        allow_unruled: bool = false,
        /// After how long a client has to prove anew who it is; 0s: never.
        session_lifetime: Duration = Duration::from_secs(0),
    }
}

section! {
    /// TLS for Kafka clients, who are then served over nothing else. The files are looked at again
    /// while the node runs, so certificates can be replaced.
    Tls {
        /// A file with the node's certificate and those that vouch for it, in that order, as PEM.
        certificate: Option<PathBuf> = None,
        /// A file with the certificate's private key, as PEM.
        key: Option<PathBuf> = None,
    }
}

section! {
    /// The log on disk, and the memory before it.
    Storage {
        /// How files are written: `uring`, `threads`, or `auto` for io_uring where a probe at
        /// start finds it working.
        io: IoChoice = IoChoice::Auto,
        /// Size of one write-ahead log file; each is written whole once, when it is first made.
        wal_file_size: ByteSize = ByteSize::mib(64),
        /// How many such files are kept and used in turn.
        wal_files: u32 = 16,
        /// Memory for records that are not yet in a segment file; past it, produce is refused.
        pinned_size: ByteSize = ByteSize::mib(256),
        /// Memory for recent records, which readers at the tail are served from.
        cache_size: ByteSize = ByteSize::mib(256),
        /// Size at which a segment file is closed and the next one begun.
        segment_size: ByteSize = ByteSize::mib(128),
        /// How much is gathered before a segment file is written to.
        fill_size: ByteSize = ByteSize::kib(256),
        /// Bytes a second at which closed segment files are read again in the background, to
        /// find what has gone bad before it is needed. 0 turns it off.
        scrub_rate: ByteSize = ByteSize::mib(4),
        /// Bytes a second that compaction reads and writes, all topics together. 0 sets no limit.
        compaction_rate: ByteSize = ByteSize::mib(32),
        /// Memory for the keys that compaction remembers in one pass; more keys take more passes.
        compaction_memory: ByteSize = ByteSize::mib(64),
    }
}

section! {
    /// Consensus between the nodes.
    Raft {
        /// How often a leader is heard from.
        heartbeat_interval: Duration = Duration::from_millis(100),
        /// Shortest silence after which a follower stands for election; each draws a time between
        /// the two, so that they do not all stand at once.
        election_timeout_min: Duration = Duration::from_millis(300),
        /// Longest such silence.
        election_timeout_max: Duration = Duration::from_millis(400),
        /// A partition that saw no write for so long rests: its timers stop, and its nodes' own
        /// heartbeats stand in for it. The next write wakes it.
        quiesce_after: Duration = Duration::from_secs(10),
        /// Bytes a second this node sends to replicas that are far behind, all together, so that
        /// those which keep up are not held back. At least 1 MiB; 0 sets no limit.
        catch_up_rate: ByteSize = ByteSize::mib(100),
        /// A node whose clock is further than this from the others' gives up its leaderships and
        /// stands for none until it agrees again. A jump by more is not followed before they
        /// confirm it.
        clock_skew_max: Duration = Duration::from_secs(1),
    }
}

section! {
    /// Consumer groups.
    Groups {
        /// Partitions of the internal topic that holds groups and their offsets. It decides only
        /// how the topic is created, at its first use.
        partitions: u32 = 16,
        /// How long the first members of a group are waited for before it is balanced.
        initial_rebalance_delay: Duration = Duration::from_secs(3),
        /// Shortest session timeout a member may ask for.
        session_timeout_min: Duration = Duration::from_secs(6),
        /// Longest session timeout a member may ask for.
        session_timeout_max: Duration = Duration::from_secs(1800),
        /// How long a member may be silent where the coordinator assigns (the newer protocol,
        /// KIP-848).
        consumer_session_timeout: Duration = Duration::from_secs(45),
        /// How often such a member is told to speak.
        consumer_heartbeat_interval: Duration = Duration::from_secs(5),
        /// Members of one group at most.
        members_max: u32 = 2000,
        /// How long offsets are kept after the last member has left.
        offset_retention: Duration = Duration::from_secs(604_800),
        /// Longest note that a client may commit with an offset.
        offset_metadata_max: ByteSize = ByteSize::kib(4),
    }
}

section! {
    /// Transactions.
    Transactions {
        /// Partitions of the internal topic that holds transactions. It decides only how the topic
        /// is created, at its first use.
        partitions: u32 = 16,
        /// Longest time that a producer may ask for before its transaction is aborted.
        timeout_max: Duration = Duration::from_secs(900),
        /// How long a transactional id is kept that nobody uses.
        id_expiration: Duration = Duration::from_secs(604_800),
    }
}

section! {
    /// What one client may ask for.
    Limits {
        /// Largest record batch, in every dialect.
        batch_size: ByteSize = ByteSize::mib(1),
        /// Connections of native clients at once.
        connections: u32 = 4096,
        /// Bytes one connection may have on their way into the log.
        inflight_size: ByteSize = ByteSize::mib(16),
        /// Memory for requests that are coming in, of all connections of all dialects together.
        /// When it is taken, further requests wait; native ones are refused after ten seconds.
        request_memory: ByteSize = ByteSize::mib(256),
    }
}

section! {
    /// Kafka clients, beyond what holds for all.
    Kafka {
        /// Connections of Kafka clients at once.
        connections: u32 = 8192,
        /// Largest request.
        request_size: ByteSize = ByteSize::mib(32),
        /// Memory for records on their way to Kafka clients, of all connections together.
        memory: ByteSize = ByteSize::mib(256),
        /// Consumers at once for which is remembered what they read, so that each of their
        /// requests need not name all of it.
        fetch_sessions: u32 = 1000,
        /// Memory for that.
        fetch_session_memory: ByteSize = ByteSize::mib(32),
    }
}

section! {
    /// What it says while it runs, on standard error.
    Log {
        /// `text`, `json`, or `auto` for text on a terminal and JSON elsewhere.
        format: LogFormat = LogFormat::Auto,
        /// `error`, `warn`, `info`, `debug` or `trace`; per module as in `info,trilog_raft=debug`.
        level: String = "info".to_owned(),
    }
}

/// A choice among words: how it is written in the file, in variables and in flags.
macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            #[default]
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl Setting for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                match text.trim() {
                    $( $text => Ok(Self::$variant), )+
                    _ => Err(format!("expected {}, found {text:?}", [$($text),+].join(", "))),
                }
            }

            fn to_toml(&self) -> Option<String> {
                Some(quoted(match self { $( Self::$variant => $text, )+ }))
            }
        }
    };
}

choice! {
    /// Which back-end does file I/O.
    IoChoice {
        /// io_uring if a probe at start succeeds, else threads.
        Auto = "auto",
        /// io_uring, or refuse to start.
        Uring = "uring",
        /// Plain system calls on threads.
        Threads = "threads",
    }
}

choice! {
    /// Whether clients are asked who they are.
    Authentication {
        /// Nobody is asked.
        None = "none",
        /// Everybody is.
        Required = "required",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// One readable line per event.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// Declares the whole configuration from its sections.
macro_rules! config {
    ($( $name:ident : $section:ident, )+) => {
        /// Everything a node can be configured with, as it is in force.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $( pub $name: $section, )+
        }

        impl Config {
            /// The sections in the order they are shown.
            pub fn sections(&self) -> Vec<(&'static str, &dyn Section)> {
                vec![$( (stringify!($name), &self.$name as &dyn Section) ),+]
            }

            /// One section by its name.
            pub(super) fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
                match name {
                    $( stringify!($name) => Some(&mut self.$name), )+
                    _ => None,
                }
            }
        }
    };
}

config! {
    node: Node,
    cluster: Cluster,
    listen: Listen,
    advertise: Advertise,
    access: Access,
    tls: Tls,
    storage: Storage,
    raft: Raft,
    groups: Groups,
    transactions: Transactions,
    limits: Limits,
    kafka: Kafka,
    log: Log,
}

impl Config {
    /// Where clients of the native API are told to connect.
    pub fn advertised_grpc(&self) -> String {
        let advertised = self.advertise.grpc.clone();
        advertised.unwrap_or_else(|| self.listen.grpc.to_string())
    }

    /// Where the other nodes are told to connect.
    pub fn advertised_peer(&self) -> String {
        let advertised = self.advertise.peer.clone();
        advertised.unwrap_or_else(|| self.listen.peer.to_string())
    }

    /// Where Kafka clients are told to connect.
    pub fn advertised_kafka(&self) -> String {
        let advertised = self.advertise.kafka.clone();
        advertised.unwrap_or_else(|| self.listen.kafka.to_string())
    }

    /// Every key as `section.field`.
    pub fn keys(&self) -> Vec<String> {
        self.sections()
            .iter()
            .flat_map(|(name, section)| {
                let fields = section.fields().iter();
                fields.map(move |field| format!("{name}.{}", field.name))
            })
            .collect()
    }

    /// The value of `section.field` as TOML; nothing when unset or unknown.
    pub fn get(&self, key: &str) -> Option<String> {
        let (section, field) = key.split_once('.')?;
        let sections = self.sections();
        let (_, section) = sections.iter().find(|(name, _)| *name == section)?;
        section.get(field)
    }

    /// Reads one key from text, as a variable or a flag gives it.
    pub(super) fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let (section, field) = key
            .split_once('.')
            .ok_or_else(|| format!("{key:?} is not of the form section.key"))?;
        self.section_mut(section)
            .ok_or_else(|| format!("there is no section {section:?}"))?
            .set(field, text)
    }
}
