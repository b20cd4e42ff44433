//! Looks on from outside while others work: who leads what, and what the group has committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use trilog_client::{Client as Native, ClientConfig};

use super::{GROUP, Stage, TOPIC};
use crate::history::{Function, Key, Note, Op, Stage as Half};
use crate::kafka::{Client, Fault};

const LOOK: Duration = Duration::from_millis(250);

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
            kafka: Client::new(TOPIC, stage.nodes.clone(), Arc::clone(&stage.lives), 0),
            native: None,
            process: stage.process(),
            stage: Arc::clone(stage),
            leaders: BTreeMap::new(),
        }
    }

    pub async fn look_on(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.look_at_leaders().await;
            self.look_at_group().await;
            sleep(LOOK).await;
        }
    }

    async fn look_at_leaders(&mut self) {
        if self.native.is_none() {
            let config = ClientConfig {
                seeds: self.stage.seeds.clone(),
                connect_timeout: Duration::from_secs(1),
                call_timeout: Duration::from_secs(2),
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

    async fn look_at_group(&mut self) {
        let mut op = Op::new(Half::Invoke, self.process, Function::Committed);
        op.group = Some(GROUP.to_owned());
        self.stage.recorder.op(op.clone());
        let keys = self.stage.all_keys();
        let deadline = Instant::now() + Duration::from_secs(2);
        let found = self.kafka.committed(GROUP, None, &keys, deadline).await;
        op.stage = Half::Ok;
        match found {
            Ok(offsets) => op.offsets = offsets.into_iter().collect(),
            Err(fault) => {
                op.stage = Half::Fail;
                op.error = Some(Fault::text(&fault).to_owned());
            }
        }
        self.stage.recorder.op(op);
    }
}
