//! Where a development cluster keeps things, and which ports its nodes have.
//!
//! ```text
//! DATA/dev.json          the layout itself, so that the next start finds the same ports
//! DATA/dev.lock          held by the supervisor
//! DATA/dev.sock          where it listens to other terminals
//! DATA/node-N/trilog.toml, data/, trilog.log
//! ```

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DevError;

/// The version of `dev.json`.
const VERSION: u32 = 1;
/// Ports of one node to the next.
const STRIDE: u16 = 10;
const NODES_MAX: u32 = 9;
/// A log that has grown past this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The ports of one node, and where its things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub node: u32,
    pub grpc: u16,
    pub peer: u16,
    pub http: u16,
    pub kafka: u16,
    pub nats: u16,
    pub mqtt: u16,
}

impl Place {
    /// The ports of `node`: the usual ones and every tenth after, or one block from `base` on.
    fn new(node: u32, base: Option<u16>) -> Result<Self, DevError> {
        let nth = u16::try_from(node.saturating_sub(1)).map_err(|_| DevError::NodeCount(node))?;
        let starts = match base {
            None => [7400, 7401, 8222, 9092, 4222, 1883],
            Some(base) if base < u16::MAX - 8 => {
                [base, base + 1, base + 2, base + 3, base + 4, base + 5]
            }
            Some(base) => return Err(DevError::PortRange(base)),
        };
        let port = |start: u16| {
            start
                .checked_add(nth * STRIDE)
                .ok_or(DevError::PortRange(start))
        };
        let [grpc, peer, http, kafka, nats, mqtt] = starts;
        Ok(Self {
            node,
            grpc: port(grpc)?,
            peer: port(peer)?,
            http: port(http)?,
            kafka: port(kafka)?,
            nats: port(nats)?,
            mqtt: port(mqtt)?,
        })
    }

    pub fn grpc_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.grpc).into()
    }

    pub fn peer_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.peer).into()
    }

    pub fn http_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.http).into()
    }

    pub fn kafka_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.kafka).into()
    }

    /// The ports that a node binds.
    fn ports(&self) -> [u16; 4] {
        [self.grpc, self.peer, self.http, self.kafka]
    }
}

/// A development cluster as it is laid out on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The absolute path of its directory.
    pub data: PathBuf,
    pub places: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    nodes: Vec<Place>,
}

impl Layout {
    /// The layout of `data`: the one it was made with, grown to `nodes`, or a new one.
    pub fn plan(data: &Path, nodes: Option<u32>, base: Option<u16>) -> Result<Self, DevError> {
        let data = std::path::absolute(data).map_err(|source| DevError::File {
            what: "there is no such path",
            path: data.to_owned(),
            source,
        })?;
        let there = Self::load(&data)?.map_or_else(Vec::new, |layout| layout.places);
        let had = u32::try_from(there.len()).unwrap_or(u32::MAX);
        let nodes = nodes.unwrap_or(if had == 0 { 3 } else { had });
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(DevError::NodeCount(nodes));
        }
        if nodes < had {
            return Err(DevError::FewerNodes { data, there: had });
        }
        let base = base.or_else(|| base_of(&there));
        let places = (1..=nodes)
            .map(|node| Place::new(node, base))
            .collect::<Result<_, _>>()?;
        Ok(Self { data, places })
    }

    /// The layout `data` was made with, if it is one of a development cluster.
    pub fn load(data: &Path) -> Result<Option<Self>, DevError> {
        let path = data.join("dev.json");
        let unreadable = |source| DevError::File {
            what: "the layout cannot be read",
            path: path.clone(),
            source,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let saved: Saved = serde_json::from_slice(&text).map_err(|e| unreadable(e.into()))?;
        if saved.version != VERSION {
            let version = saved.version;
            return Err(unreadable(io::Error::other(format!(
                "it has version {version}, this program knows {VERSION}"
            ))));
        }
        Ok(Some(Self {
            data: data.to_owned(),
            places: saved.nodes,
        }))
    }

    /// Writes `dev.json`, whole or not at all.
    pub(super) fn save(&self) -> Result<(), DevError> {
        let path = self.data.join("dev.json");
        let write = || -> io::Result<()> {
            let saved = Saved {
                version: VERSION,
                nodes: self.places.clone(),
            };
            let beside = self.data.join("dev.json.new");
            fs::write(&beside, serde_json::to_vec_pretty(&saved)?)?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| DevError::File {
            what: "the layout cannot be written",
            path: path.clone(),
            source,
        })
    }

    /// Removes what the nodes have written; of a directory that is no development cluster, nothing.
    pub(super) fn clean(data: &Path) -> Result<(), DevError> {
        let Some(layout) = Self::load(data)? else {
            return Ok(());
        };
        for place in &layout.places {
            let path = layout.node_dir(place.node);
            match fs::remove_dir_all(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DevError::File {
                        what: "the data cannot be removed",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        let path = data.join("dev.json");
        fs::remove_file(&path).map_err(|source| DevError::File {
            what: "the layout cannot be removed",
            path,
            source,
        })
    }

    pub fn node_dir(&self, node: u32) -> PathBuf {
        self.data.join(format!("node-{node}"))
    }

    /// Where the node's log and view state are.
    pub fn data_dir(&self, node: u32) -> PathBuf {
        self.node_dir(node).join("data")
    }

    pub fn config_path(&self, node: u32) -> PathBuf {
        self.node_dir(node).join("trilog.toml")
    }

    /// What the node said on its standard output and error.
    pub fn log_path(&self, node: u32) -> PathBuf {
        self.node_dir(node).join("trilog.log")
    }

    pub(super) fn place(&self, node: u32) -> Result<&Place, DevError> {
        let place = self.places.iter().find(|place| place.node == node);
        place.ok_or(DevError::NoSuchNode(node))
    }

    /// The addresses that clients connect to.
    pub fn servers(&self) -> Vec<String> {
        let addresses = self.places.iter().map(Place::grpc_addr);
        addresses.map(|address| address.to_string()).collect()
    }

    /// Makes the node's directory and writes its configuration file.
    pub(super) fn prepare(&self, place: &Place) -> Result<(), DevError> {
        let path = self.config_path(place.node);
        let write = || -> io::Result<()> {
            // As a node does: everything is in it.
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(self.data_dir(place.node))?;
            fs::write(&path, self.config_text(place))
        };
        write().map_err(|source| DevError::File {
            what: "the configuration cannot be written",
            path: path.clone(),
            source,
        })
    }

    fn config_text(&self, place: &Place) -> String {
        let quoted = |text: String| toml::Value::String(text).to_string();
        let seeds = self.places.iter().map(Place::peer_addr);
        let seeds: Vec<String> = seeds.map(|seed| quoted(seed.to_string())).collect();
        let listen = [
            ("grpc", place.grpc),
            ("peer", place.peer),
            ("http", place.http),
            ("kafka", place.kafka),
            ("nats", place.nats),
            ("mqtt", place.mqtt),
        ];
        let listen: Vec<String> = listen
            .iter()
            .map(|(name, port)| format!("{name} = \"127.0.0.1:{port}\""))
            .collect();
        format!(
            "# Written by `trilog dev` at each start.\n\
             [node]\nid = {node}\ndata_dir = {data_dir}\nrack = \"{node}\"\n\n\
             [cluster]\nseeds = [{seeds}]\n\n\
             [listen]\n{listen}\n\n\
             [storage]\nwal_file_size = \"16MiB\"\nwal_files = 8\n\n\
             [log]\nformat = \"text\"\n",
            node = place.node,
            data_dir = quoted(self.data_dir(place.node).to_string_lossy().into_owned()),
            seeds = seeds.join(", "),
            listen = listen.join("\n"),
        )
    }

    /// The variables of the environment that would override what [`prepare`](Self::prepare) wrote.
    pub(super) const OWN_SECTIONS: [&'static str; 4] = [
        "TRILOG_NODE_",
        "TRILOG_CLUSTER_",
        "TRILOG_LISTEN_",
        "TRILOG_ADVERTISE_",
    ];

    /// Opens the node's log to append to, an overlong one set aside first.
    pub(super) fn open_log(&self, node: u32) -> io::Result<fs::File> {
        let path = self.log_path(node);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.old"))?;
        }
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        writeln!(log, "--- node {node} starts")?;
        Ok(log)
    }

    /// Fails if somebody else has one of the ports that the nodes bind.
    pub(super) fn check_ports(&self) -> Result<(), DevError> {
        for place in &self.places {
            for port in place.ports() {
                let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
                bound.map_err(|source| DevError::PortTaken {
                    node: place.node,
                    port,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// The base port `places` were laid out from; none if they have the usual ports.
fn base_of(places: &[Place]) -> Option<u16> {
    let first = places.first()?;
    (first.http == first.grpc.checked_add(2)?).then_some(first.grpc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn nodes_have_the_usual_ports_or_a_block_of_their_own() {
        let usual = Place::new(3, None).unwrap();
        assert_eq!((usual.grpc, usual.peer, usual.http), (7420, 7421, 8242));
        let block = Place::new(2, Some(17_400)).unwrap();
        assert_eq!(
            (block.grpc, block.peer, block.http),
            (17_410, 17_411, 17_412)
        );
        assert!(matches!(
            Place::new(9, Some(65_500)),
            Err(DevError::PortRange(_))
        ));
        assert!(matches!(
            Place::new(1, Some(65_535)),
            Err(DevError::PortRange(_))
        ));
    }

    #[test]
    fn a_layout_is_found_again_and_can_grow_but_not_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let made = Layout::plan(dir.path(), None, Some(20_000)).unwrap();
        assert_eq!(made.places.len(), 3);
        made.save().unwrap();
        let again = Layout::plan(dir.path(), None, None).unwrap();
        assert_eq!(again, made);
        let grown = Layout::plan(dir.path(), Some(5), None).unwrap();
        assert_eq!(grown.places[..3], made.places[..]);
        assert_eq!(grown.places[4].grpc, 20_040);
        assert!(matches!(
            Layout::plan(dir.path(), Some(2), None),
            Err(DevError::FewerNodes { there: 3, .. })
        ));
        assert!(matches!(
            Layout::plan(dir.path(), Some(10), None),
            Err(DevError::NodeCount(10))
        ));
    }

    #[test]
    fn what_is_written_for_a_node_is_a_valid_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::plan(&dir.path().join("with \"quotes\""), None, None).unwrap();
        for place in &layout.places {
            layout.prepare(place).unwrap();
            let sources = config::Sources {
                file: Some(layout.config_path(place.node)),
                ..config::Sources::default()
            };
            let config = config::load(&sources).unwrap().config;
            assert_eq!(config.node.id, place.node);
            assert_eq!(config.node.data_dir, layout.data_dir(place.node));
            assert_eq!(config.listen.http, place.http_addr());
            assert_eq!(config.cluster.seeds.len(), 3);
        }
    }

    #[test]
    fn only_a_development_cluster_is_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("node-1");
        fs::create_dir(&kept).unwrap();
        Layout::clean(dir.path()).unwrap();
        assert!(kept.exists(), "there was no dev.json, so it is not ours");

        Layout::plan(dir.path(), Some(1), None)
            .unwrap()
            .save()
            .unwrap();
        let other = dir.path().join("notes.txt");
        fs::write(&other, "mine").unwrap();
        Layout::clean(dir.path()).unwrap();
        assert!(!kept.exists() && other.exists());
        assert_eq!(Layout::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_damaged_layout_is_an_error_and_not_a_new_cluster() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", r#"{"version":9,"nodes":[]}"#] {
            fs::write(dir.path().join("dev.json"), text).unwrap();
            assert!(Layout::plan(dir.path(), None, None).is_err(), "{text}");
        }
    }
}
