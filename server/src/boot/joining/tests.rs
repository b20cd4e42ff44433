use std::sync::Arc;

use trilog_raft::KV_FAMILY;
use trilog_raft::controller::ACCESS_LEVEL;
use trilog_raft::controller::commands::ActivateLevel;
use trilog_raft::testkit::{SimClock, block_on};
use trilog_raft::transport::sim::SimNet;
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::SimDisk;
use trilog_storage::kv::MemoryKv;

use super::super::{Footing, Ground, Server, Surroundings};
use super::*;
use crate::config::ByteSize;

fn config(dir: &std::path::Path, authentication: Authentication) -> Config {
    let mut config = Config::default();
    config.node.id = 1;
    config.node.data_dir = dir.to_owned();
    config.access.authentication = authentication;
    config.storage.wal_file_size = ByteSize::kib(256);
    config.storage.wal_files = 6;
    config.storage.pinned_size = ByteSize::kib(512);
    config.storage.cache_size = ByteSize::kib(128);
    config
}

/// A node with an empty directory, before anything is proposed to its controller.
async fn founder(config: &Config) -> (Server, Identity) {
    let surroundings = Surroundings {
        backend: SimDisk::new(7).backend(),
        clock: Arc::new(SimClock::default()),
        entropy: Entropy::from_seed(7),
    };
    let footing = Footing::find(config, surroundings).await.unwrap();
    let transport = SimNet::new(7).transport(footing.transport_config());
    let kv = MemoryKv::new(&[KV_FAMILY]).kv();
    let ground = Ground::new(footing, kv, transport, &config.node.data_dir);
    let identity = join(config, &ground.transport, ground.identity.clone());
    let identity = identity.await.unwrap();
    Server::take_part(config, ground, identity).await.unwrap()
}

/// Forms the cluster as a build would that follows no more than a level.
async fn bootstrap(cluster: &Cluster, node: RegisterNode, level: u32) {
    let bootstrap = Command::Bootstrap(Bootstrap {
        cluster: node.cluster.clone(),
        node,
        level,
    });
    cluster.propose_when_led(&bootstrap).await.unwrap();
}

fn asks(cluster: &Cluster) -> Option<bool> {
    let map = cluster.map();
    map.node(NodeId(1)).expect("it is a member").asks
}

#[test]
fn a_cluster_hears_whether_a_node_asks_once_its_level_is_raised() {
    for authentication in [Authentication::Required, Authentication::None] {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let config = config(dir.path(), authentication);
            let (server, identity) = founder(&config).await;
            let cluster = server.cluster().clone();
            let node = registration(&config, &identity);
            bootstrap(&cluster, node, ACCESS_LEVEL - 1).await;

            let registered = register(&config, &cluster, &identity).await.unwrap();
            let unsaid = registered.expect("the level of users is yet to come");
            assert_eq!(asks(&cluster), None);
            let saying = tokio::spawn(unsaid.say(cluster.clone()));
            let level = Command::ActivateLevel(ActivateLevel {
                level: ACCESS_LEVEL,
            });
            cluster.propose_when_led(&level).await.unwrap();
            saying.await.unwrap();
            let expected = Some(authentication == Authentication::Required);
            assert_eq!(asks(&cluster), expected);

            // After a restart there is nothing to wait for.
            let again = register(&config, &cluster, &identity).await.unwrap();
            assert!(again.is_none(), "{again:?}");
            assert_eq!(asks(&cluster), expected);
            server.stop(Duration::from_secs(30)).await;
        });
    }
}

#[test]
fn a_cluster_of_this_build_hears_it_when_it_is_founded() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), Authentication::Required);
        let (server, identity) = founder(&config).await;
        let cluster = server.cluster().clone();
        let unsaid = register(&config, &cluster, &identity).await.unwrap();
        assert!(unsaid.is_none(), "{unsaid:?}");
        assert_eq!(asks(&cluster), Some(true));
        server.stop(Duration::from_secs(30)).await;
    });
}
