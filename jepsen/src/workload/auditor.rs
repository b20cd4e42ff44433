//! Looks on from outside while others work: who leads what, and where the group is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use trilog_client::{Client as Native, ClientConfig};

use super::{GROUP, Stage, TOPIC};
use crate::history::{Function, Key, Note, Op, Stage as Half};
use crate::kafka::{Client, Fault, Member};

const LOOK: Duration = Duration::from_millis(250);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Auditor {
    stage: Arc<Stage>,
    kafka: Client,
    native: Option<Native>,
    process: u32,
    leaders: BTreeMap<Key, (u32, u64)>,
}

impl Auditor {
    pub fn new(stage: &Arc<Stage>) -> Self {
        Self {
            kafka: stage.kafka_client(0),
            native: None,
            process: stage.process(),
            stage: Arc::clone(stage),
            leaders: BTreeMap::new(),
        }
    }

    pub async fn look_on(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.look_at_leaders().await;
            // Whether it could be told stands in the history.
            let _where = self.look_at_group(PATIENCE).await;
            sleep(LOOK).await;
        }
    }

    async fn look_at_leaders(&mut self) {
        if self.native.is_none() {
            let config = ClientConfig {
                seeds: self.stage.seeds.clone(),
                connect_timeout: Duration::from_secs(1),
                call_timeout: PATIENCE,
                attempt_timeout: Duration::from_secs(1),
                ..ClientConfig::default()
            };
            self.native = Native::connect_with(config).await.ok();
        }
        let Some(native) = &self.native else { return };
        let Ok(topic) = native.admin().describe_topic(TOPIC).await else {
            return;
        };
        for partition in topic.partitions {
            let (key, now) = (Key(partition.partition), (partition.leader, partition.term));
            let before = self.leaders.get(&key).copied();
            // Nodes know of a leader one after the other: an older word is no news.
            if now.0 != 0 && before.is_none_or(|before| now.1 > before.1) {
                self.leaders.insert(key, now);
                self.stage.recorder.note(Note::Leader {
                    key,
                    node: now.0,
                    term: now.1,
                });
            }
        }
    }

    /// Where the group is in every key; why that was not told, if it was not in time.
    pub async fn look_at_group(&mut self, patience: Duration) -> Result<(), Fault> {
        let keys = self.stage.all_keys();
        let deadline = Instant::now() + patience;
        let look = Look {
            stage: &self.stage,
            process: self.process,
            member: None,
        };
        look.at(&mut self.kafka, &keys, deadline).await.map(drop)
    }
}

/// Somebody asks where the group is: that is an operation of the history, whoever it is.
#[derive(Debug)]
pub(super) struct Look<'a> {
    pub(super) stage: &'a Stage,
    pub(super) process: u32,
    pub(super) member: Option<&'a Member>,
}

impl Look<'_> {
    pub(super) async fn at(
        &self,
        client: &mut Client,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<BTreeMap<Key, u64>, Fault> {
        let recorder = &self.stage.recorder;
        let mut op = Op::new(Half::Invoke, self.process, Function::Committed);
        op.group = Some(GROUP.to_owned());
        recorder.op(op.clone());
        let found = client.committed(GROUP, self.member, keys, deadline).await;
        match &found {
            Ok(offsets) => {
                op.stage = Half::Ok;
                op.offsets = offsets.iter().map(|(key, at)| (*key, *at)).collect();
            }
            Err(fault) => {
                op.stage = Half::Fail;
                op.error = Some(fault.text().to_owned());
            }
        }
        recorder.op(op);
        found
    }
}
