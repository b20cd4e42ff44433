//! Nodes in this process, on real sockets and real files, for the native client to talk to.

use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;
use tokio::net::TcpListener;
use trilog_client::{BackoffConfig, Client, ClientConfig};
use trilog_server::boot::{Listeners, Server};
use trilog_server::config::{Config, Sources, load};

const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A cluster, whole or of what is left of it.
pub(crate) struct Nodes {
    configs: Vec<Config>,
    running: Vec<Option<Server>>,
    _dir: TempDir,
}

impl Nodes {
    pub(crate) async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(count * 2).await;
        let seeds: Vec<String> = ports
            .chunks(2)
            .map(|ports| format!("127.0.0.1:{}", ports[1]))
            .collect();
        let configs: Vec<Config> = (0..count)
            .map(|node| config(&dir, node, &ports[node * 2..], &seeds.join(",")))
            .collect();
        let started = join_all(configs.iter().map(start)).await;
        Self {
            running: started.into_iter().map(Some).collect(),
            configs,
            _dir: dir,
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let address = |config: &Config| config.listen.grpc.to_string();
        self.configs.iter().map(address).collect()
    }

    pub(crate) async fn client(&self) -> Client {
        let config = ClientConfig {
            seeds: self.addresses(),
            backoff: BackoffConfig {
                min: Duration::from_millis(5),
                max: Duration::from_millis(100),
            },
            ..ClientConfig::default()
        };
        Client::connect_with(config).await.unwrap()
    }

    /// Stops one node in order. It cannot be started again here: open connections keep its files
    /// locked for as long as this process lives.
    pub(crate) async fn stop_one(&mut self, node: usize) {
        let server = self.running[node].take().unwrap();
        server.stop(STOP_PATIENCE).await;
    }

    pub(crate) async fn stop(self) {
        join_all(
            self.running
                .into_iter()
                .flatten()
                .map(|server| server.stop(STOP_PATIENCE)),
        )
        .await;
    }
}

async fn start(config: &Config) -> Server {
    let listeners = Listeners::bind(config).await.unwrap();
    Server::start(config, listeners).await.unwrap()
}

fn config(dir: &TempDir, node: usize, ports: &[u16], seeds: &str) -> Config {
    let data = dir.path().join(format!("node-{}", node + 1));
    let set = |key: &str, value: String| ("a test".to_owned(), key.to_owned(), value);
    let sources = Sources {
        flags: vec![
            set("node.id", (node + 1).to_string()),
            set("node.data_dir", data.display().to_string()),
            set("cluster.seeds", seeds.to_owned()),
            set("listen.grpc", format!("127.0.0.1:{}", ports[0])),
            set("listen.peer", format!("127.0.0.1:{}", ports[1])),
            set("listen.kafka", "127.0.0.1:0".to_owned()),
            set("storage.wal_file_size", "4MiB".to_owned()),
            set("storage.wal_files", "8".to_owned()),
        ],
        ..Sources::default()
    };
    load(&sources).unwrap().config
}

/// Ports that were free a moment ago; all are held until all are found.
async fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    held.iter().map(port).collect()
}
