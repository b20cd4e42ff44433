//! The client itself: seeds, connections and beliefs, shared by all its parts.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status};
use tracing::debug;
use trilog_wire::v1::topics_client::TopicsClient;
use trilog_wire::v1::{DescribeTopicsRequest, Leader};

use crate::admin::Admin;
use crate::backoff::{Backoff, Chance};
use crate::config::{ClientConfig, ProducerConfig};
use crate::connections::{Channel, Connections};
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, Failure};
use crate::metadata::{Metadata, TopicView, check_partition};
use crate::producer::Producer;

/// A handle on a cluster; clones share connections and knowledge.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    connections: Connections,
    metadata: Metadata,
    chance: Chance,
}

/// Whether a call that may have been executed can simply be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Safe,
    Unsafe,
}

impl Client {
    /// Connects through whichever of `seeds`, each a `host:port`, answers first.
    pub async fn connect<S: Into<String>>(
        seeds: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        Self::connect_with(ClientConfig {
            seeds: seeds.into_iter().map(Into::into).collect(),
            ..ClientConfig::default()
        })
        .await
    }

    /// Connects with settings of one's own.
    pub async fn connect_with(config: ClientConfig) -> Result<Self, Error> {
        if config.seeds.is_empty() {
            return Err(Error::Unreachable("no seed address was given".to_owned()));
        }
        let inner = Inner {
            connections: Connections::new(config.connect_timeout, config.credentials.clone()),
            metadata: Metadata::default(),
            chance: Chance::new(config.seed),
            config,
        };
        let client = Self {
            inner: Arc::new(inner),
        };
        client.admin().status().await?;
        Ok(client)
    }

    /// Topics and nodes: making, changing, looking.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A producer with default settings.
    #[must_use]
    pub fn producer(&self) -> Producer {
        self.producer_with(ProducerConfig::default())
    }

    #[must_use]
    pub fn producer_with(&self, config: ProducerConfig) -> Producer {
        Producer::new(self.clone(), config)
    }

    /// A consumer of all partitions of a topic, unless told otherwise.
    #[must_use]
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    pub(crate) fn chance(&self) -> &Chance {
        &self.inner.chance
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.inner.config.backoff, self.inner.chance.clone())
    }

    /// The topic as last described, if that is not too long ago.
    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<TopicView>> {
        let view = self.inner.metadata.topic(name)?;
        (view.described_at.elapsed() < self.inner.config.metadata_max_age).then_some(view)
    }

    /// The topic, asked for if need be.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<TopicView>, Error> {
        match self.known_topic(name) {
            Some(view) => Ok(view),
            None => self.describe(name, None).await,
        }
    }

    /// Asks the cluster about a topic, unless somebody else has since `seen` was the answer.
    ///
    /// One asks for all, in a task of its own: whoever wants to know may be a stream that its owner
    /// does not poll for a while, and must not hold up all others meanwhile.
    async fn describe(
        &self,
        name: &str,
        seen: Option<&Arc<TopicView>>,
    ) -> Result<Arc<TopicView>, Error> {
        let (client, name, seen) = (self.clone(), name.to_owned(), seen.cloned());
        let mut asking = JoinSet::new();
        asking.spawn(async move { client.ask_in_turn(&name, seen.as_ref()).await });
        match asking.join_next().await {
            Some(Ok(described)) => described,
            Some(Err(_)) | None => Err(Error::Unreachable("the client is ending".to_owned())),
        }
    }

    async fn ask_in_turn(
        &self,
        name: &str,
        seen: Option<&Arc<TopicView>>,
    ) -> Result<Arc<TopicView>, Error> {
        let metadata = &self.inner.metadata;
        let _asking = metadata.asking.lock().await;
        if let Some(view) = self.known_topic(name)
            && seen.is_none_or(|seen| !Arc::ptr_eq(seen, &view))
        {
            return Ok(view);
        }
        let described = self
            .on_any_node(Repeat::Safe, |channel| async move {
                let request = DescribeTopicsRequest {
                    names: vec![name.to_owned()],
                    include_internal: true,
                    with_config: false,
                };
                TopicsClient::new(channel).describe(request).await
            })
            .await?;
        metadata.learn(name, described).map_err(Failure::into_error)
    }

    /// The address of a partition's leader; `doubted` asks the cluster even if one is believed.
    pub(crate) async fn leader_address(
        &self,
        topic: &str,
        partition: u32,
        doubted: bool,
    ) -> Result<Option<String>, Error> {
        let view = self.topic(topic).await?;
        check_partition(topic, partition, &view)?;
        let believed = self.inner.metadata.leader_address(topic, partition);
        if believed.is_some() && !doubted {
            return Ok(believed);
        }
        self.describe(topic, Some(&view)).await?;
        Ok(self.inner.metadata.leader_address(topic, partition))
    }

    /// Takes a node's word for it that the topic known by this name and id is no more.
    pub(crate) fn forget_topic(&self, topic: &str, id: &[u8]) {
        self.inner.metadata.forget(topic, id);
    }

    /// Takes a node's word for who leads; tells whether it was news.
    pub(crate) fn learn_leader(&self, topic: &str, partition: u32, leader: &Leader) -> bool {
        self.inner.metadata.learn_leader(topic, partition, leader)
    }

    /// Makes a call that any node can answer, on one after the other until one does.
    pub(crate) async fn on_any_node<T, F, Fut>(&self, repeat: Repeat, call: F) -> Result<T, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.inner.config.call_timeout;
        let mut backoff = self.backoff();
        let mut hint = None;
        let mut reason = String::new();
        loop {
            for address in self.candidates(hint.take()) {
                let until = match repeat {
                    // Another node may know what this one keeps waiting for.
                    Repeat::Safe => {
                        deadline.min(Instant::now() + self.inner.config.attempt_timeout)
                    }
                    Repeat::Unsafe => deadline,
                };
                let attempt = self.attempt(&address, &call);
                let failure = match timeout_at(until, attempt).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Unknown(format!("{address} did not answer in time")),
                };
                let failure = match repeat {
                    Repeat::Safe => failure.of_read(),
                    Repeat::Unsafe => failure,
                };
                match failure {
                    Failure::Retry {
                        reason: why,
                        leader,
                    } => {
                        debug!(address, reason = why, "trying another node");
                        reason = why;
                        hint = leader.map(|leader| leader.address);
                    }
                    failure => return Err(failure.into_error()),
                }
                if Instant::now() >= deadline {
                    return Err(Error::Timeout(reason));
                }
                if hint.is_some() {
                    break;
                }
            }
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(Error::Unreachable(reason));
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Makes a call of one node that changes nothing; once.
    pub(crate) async fn on_node<T, F, Fut>(&self, address: &str, call: F) -> Result<T, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let patience = self.inner.config.attempt_timeout;
        match tokio::time::timeout(patience, self.attempt(address, &call)).await {
            Ok(outcome) => outcome.map_err(Failure::into_error),
            Err(_) => Err(Error::Timeout(format!("{address} did not answer in time"))),
        }
    }

    async fn attempt<T, F, Fut>(&self, address: &str, call: &F) -> Result<T, Failure>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let connections = &self.inner.connections;
        let channel = connections.get(address).await.map_err(Failure::retry)?;
        match call(channel).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => {
                let failure = Failure::from(status);
                if matches!(failure, Failure::Unknown(_)) {
                    connections.forget(address);
                }
                Err(failure)
            }
        }
    }

    /// Addresses to try: the one hinted at, then all others, beginning anywhere so that clients
    /// spread over the nodes.
    fn candidates(&self, hint: Option<String>) -> Vec<String> {
        let mut others: Vec<String> = self.inner.config.seeds.clone();
        let known: BTreeSet<String> = others.iter().cloned().collect();
        let nodes = self.inner.metadata.node_addresses();
        others.extend(nodes.into_iter().filter(|node| !known.contains(node)));
        if !others.is_empty() {
            let first = self.inner.chance.below(others.len());
            others.rotate_left(first);
        }
        let hint = hint.filter(|hint| !hint.is_empty());
        hint.into_iter().chain(others).collect()
    }
}
