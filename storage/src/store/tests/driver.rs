//! Drives a store and the model alongside.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use futures::poll;
use trilog_model::{Offset, Term};

use super::model::{Content, Group, Model, Op, SharedModel, check_reads, check_recovered};
use super::*;
use crate::inspect::{InspectError, inspect};
use crate::io::sim::PowerLoss;
use crate::log::{LogStart, Retention, Vote};

/// A step of a scenario. Numbers are taken modulo what is possible.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Append {
        group: u64,
        frames: u64,
        len: usize,
        new_term: bool,
        wait: bool,
    },
    Vote {
        group: u64,
        wait: bool,
    },
    Cut {
        group: u64,
        at: u64,
        wait: bool,
    },
    Commit {
        group: u64,
        at: u64,
    },
    /// X within what is committed.
    Trim {
        group: u64,
        at: u64,
        data: u64,
    },
    /// What retention by size lets go.
    Retain {
        group: u64,
        bytes: u64,
    },
    /// X beyond the log, or another entry than the log has there.
    Empty {
        group: u64,
        ahead: u64,
        wait: bool,
    },
    Read {
        group: u64,
        probe: u64,
    },
    Remove {
        group: u64,
    },
    Sleep(u64),
    Checkpoint,
    Crash(PowerLoss),
    Kill,
    Close,
}

pub(super) const GROUPS: u64 = 3;

/// A store under test.
pub(super) struct Driver {
    pub(super) disk: SimDisk,
    pub(super) model: SharedModel,
    config: StoreConfig,
    store: Option<Store>,
    term: u64,
    incarnation: u64,
}

type Unit = Pin<Box<dyn Future<Output = Result<(), StoreError>>>>;

impl Driver {
    pub(super) async fn start(disk: SimDisk, config: StoreConfig) -> Self {
        let mut driver = Self {
            store: None,
            disk,
            model: SharedModel::default(),
            config,
            term: 1,
            incarnation: 1,
        };
        driver.reopen().await;
        driver
    }

    fn log(&self, group: GroupId) -> GroupLog {
        self.store.as_ref().unwrap().group(group).unwrap()
    }

    pub(super) async fn perform_all(&mut self, steps: &[Step]) {
        for step in steps {
            let done = timeout(Duration::from_mins(5), self.step(step)).await;
            let stats = || self.store.as_ref().map(Store::stats);
            assert!(done.is_ok(), "{step:?} does not end: {:?}", stats());
        }
    }

    pub(super) async fn run(&mut self, steps: &[Step]) {
        self.perform_all(steps).await;
        self.step(&Step::Crash(PowerLoss::Any)).await;
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Append {
                group,
                frames,
                len,
                new_term,
                wait,
            } => {
                self.term += u64::from(new_term);
                let group = self.group(group).await;
                self.append(group, frames, len, wait).await;
            }
            Step::Vote { group, wait } => {
                self.term += 1;
                let group = self.group(group).await;
                let vote = Vote {
                    term: Term(self.term),
                    node: REPLICA,
                    committed: self.term.is_multiple_of(2),
                };
                let log = self.log(group);
                let save = async move { log.save_vote(vote).await };
                self.perform(group, Op::Vote(vote), Box::pin(save), wait)
                    .await;
            }
            Step::Cut { group, at, wait } => self.cut(group, at, wait).await,
            Step::Commit { group, at } => self.commit(group, at).await,
            Step::Trim { group, at, data } => self.trim(group, at, data).await,
            Step::Retain { group, bytes } => self.retain(group, bytes).await,
            Step::Empty { group, ahead, wait } => self.empty(group, ahead, wait).await,
            Step::Read { group, probe } => {
                let group = self.group(group).await;
                let content = self.content(group);
                check_reads(&self.log(group), &content, probe).await;
            }
            Step::Remove { group } => {
                let group = self.group(group).await;
                self.model.lock().get_mut(&group).unwrap().sure = false;
                self.store
                    .as_ref()
                    .unwrap()
                    .remove_group(group)
                    .await
                    .unwrap();
                self.model.lock().remove(&group);
            }
            Step::Sleep(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Checkpoint => self.store.as_ref().unwrap().checkpoint().await.unwrap(),
            Step::Crash(loss) => {
                self.disk.crash(loss);
                self.reopen().await;
            }
            Step::Kill => {
                self.disk.kill();
                self.reopen().await;
            }
            Step::Close => {
                let store = self.store.take().unwrap();
                store.close().await.unwrap();
                self.reopen().await;
            }
        }
    }

    async fn reopen(&mut self) {
        // What was under way answers no more.
        self.store = None;
        self.disk = self.disk.reopen();
        verify(&self.disk).await;
        let (store, report) = open(&self.disk, self.config.clone()).await;
        assert!(!report.step_aside, "{report:?}");
        assert!(report.orphans.is_empty(), "{report:?}");
        let mut model = self.model.lock().clone();
        check_recovered(&store, &mut model).await;
        // Acknowledgements of the old store go nowhere.
        self.model = Arc::new(Mutex::new(model));
        self.store = Some(store);
    }

    /// The group, created if it is not there.
    async fn group(&mut self, group: u64) -> GroupId {
        let id = GroupId(10 + group % GROUPS);
        if !self.model.lock().contains_key(&id) {
            self.incarnation += 1;
            let replica = ReplicaId(self.incarnation);
            let store = self.store.as_ref().unwrap();
            self.model.lock().insert(id, Group::new(replica));
            store.create_group(id, replica).await.unwrap();
            self.model.lock().get_mut(&id).unwrap().sure = true;
        }
        id
    }

    fn content(&self, group: GroupId) -> Content {
        self.model.lock()[&group].now.clone()
    }

    async fn append(&mut self, group: GroupId, frames: u64, len: usize, wait: bool) {
        let next = self.content(group).next;
        let mut frames: Vec<_> = (next..next + frames)
            .map(|index| {
                let id = EntryId::new(self.term, index);
                match index % 5 {
                    0 => Frame::bare(FrameKind::Blank, group, id, Bytes::new()),
                    1 => Frame::bare(FrameKind::Data, group, id, Bytes::from(vec![7; len])),
                    _ => entry(id, u32::try_from(index % 4 + 1).unwrap(), len),
                }
            })
            .collect();
        for frame in &mut frames {
            frame.header.group = group;
        }
        let model = Arc::clone(&self.model);
        let number = Arc::new(Mutex::new(0));
        let (sender, receiver) = oneshot::channel();
        let told = Arc::clone(&number);
        let done = Box::new(move |result: Result<(), StoreError>| {
            if result.is_ok() {
                acknowledge(&model, group, *told.lock());
            }
            let _ = sender.send(());
        });
        let log = self.log(group);
        log.append(frames, Appending::Assign, done).unwrap();
        // As they became: with offsets and times.
        let read = log.read(LogIndex(next), LogIndex(u64::MAX), usize::MAX);
        let op = Op::Append(read.await.unwrap());
        *number.lock() = self.model.lock().get_mut(&group).unwrap().submit(op);
        if wait {
            receiver.await.unwrap();
        }
    }

    /// Starts what an op does and, if asked, waits for its end.
    async fn perform(&mut self, group: GroupId, op: Op, mut unit: Unit, wait: bool) {
        let model = Arc::clone(&self.model);
        let number = self.model.lock().get_mut(&group).unwrap().submit(op);
        if let Poll::Ready(done) = poll!(&mut unit) {
            assert!(done.is_ok(), "{done:?}");
            return acknowledge(&model, group, number);
        }
        let rest = async move {
            if unit.await.is_ok() {
                acknowledge(&model, group, number);
            }
        };
        if wait {
            rest.await;
        } else {
            tokio::task::spawn_local(rest);
        }
    }

    async fn commit(&mut self, group: u64, at: u64) {
        let group = self.group(group).await;
        let mut model = self.model.lock();
        let content = model.get_mut(&group).unwrap();
        let index = content.committed + at % (content.now.next - content.committed + 1);
        if index < content.now.next {
            content.committed = index + 1;
            self.log(group).commit(LogIndex(index));
        }
    }

    async fn cut(&mut self, group: u64, at: u64, wait: bool) {
        let group = self.group(group).await;
        let (next, committed) = {
            let model = self.model.lock();
            (model[&group].now.next, model[&group].committed)
        };
        let floor = self
            .content(group)
            .start
            .map_or(0, |start| start.purged.index.get() + 1);
        let floor = floor.max(committed);
        let end = floor + at % (next - floor + 1);
        if end == next {
            return;
        }
        self.term += 1;
        let log = self.log(group);
        let last = end.checked_sub(1).map(LogIndex);
        let cut = async move { log.truncate_after(last).await };
        self.perform(group, Op::Cut(end), Box::pin(cut), wait).await;
    }

    async fn trim(&mut self, group: u64, at: u64, data: u64) {
        let group = self.group(group).await;
        let (content, committed) = {
            let model = self.model.lock();
            (model[&group].now.clone(), model[&group].committed)
        };
        let old = content
            .start
            .as_ref()
            .map_or(0, |start| start.purged.index.get() + 1);
        if committed <= old {
            return;
        }
        let index = old + at % (committed - old);
        let Some(frame) = content.entries.get(&index) else {
            return;
        };
        let next_offset = frame.header.next_offset();
        let data_old = content.start.map_or(0, |start| start.data_start.get());
        let start = LogStart {
            purged: frame.header.id(),
            next_offset,
            next_time: frame.header.append_time,
            data_start: Offset(data_old + data % (next_offset.get() - data_old + 1)),
            meta: Bytes::from_static(b"meta"),
        };
        self.set_log_start(group, start, false, true).await;
    }

    /// As a leader does it: whole segments of its own go, up to the last entry in them.
    async fn retain(&mut self, group: u64, bytes: u64) {
        let group = self.group(group).await;
        let retention = Retention {
            age: None,
            bytes: Some(bytes),
        };
        let plan = retention.plan(&self.log(group).segments(), Timestamp(0));
        let content = self.content(group);
        let Some(data_start) = plan else {
            return;
        };
        let within = |frame: &&Frame| frame.header.next_offset() <= data_start;
        let Some(last) = content.entries.values().rev().find(within) else {
            return;
        };
        let start = match content.start {
            Some(start) if start.data_start >= data_start => return,
            // X stays where it is.
            Some(start) if start.purged.index >= last.header.index => LogStart {
                data_start,
                ..start
            },
            _ => LogStart {
                purged: last.header.id(),
                next_offset: last.header.next_offset(),
                next_time: last.header.append_time,
                data_start,
                meta: Bytes::from_static(b"retained"),
            },
        };
        self.set_log_start(group, start, false, true).await;
    }

    async fn empty(&mut self, group: u64, ahead: u64, wait: bool) {
        self.term += 1;
        let group = self.group(group).await;
        let (content, committed) = {
            let model = self.model.lock();
            (model[&group].now.clone(), model[&group].committed)
        };
        let index = committed.max(content.next.saturating_sub(ahead % 3)) + ahead % 5;
        let next_offset = content.next_offset + ahead;
        let start = LogStart {
            purged: EntryId::new(self.term, index),
            next_offset: Offset(next_offset),
            next_time: Timestamp(1),
            data_start: Offset(next_offset.saturating_sub(ahead / 2)),
            meta: Bytes::new(),
        };
        self.set_log_start(group, start, true, wait).await;
        let mut model = self.model.lock();
        model.get_mut(&group).unwrap().committed = index + 1;
    }

    async fn set_log_start(&mut self, group: GroupId, start: LogStart, emptied: bool, wait: bool) {
        let log = self.log(group);
        let op = Op::Start {
            start: start.clone(),
            emptied,
        };
        let set = async move { log.set_log_start(start).await };
        self.perform(group, op, Box::pin(set), wait).await;
    }
}

/// What `trilog log verify` says of a directory that no process has open: it is sound, whatever
/// became of the last one.
pub(super) async fn verify(disk: &SimDisk) {
    let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
    match found {
        Ok(found) => assert_eq!(found.damage, []),
        Err(InspectError::NoLog(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Tells the model of an acknowledgement, unless the group was removed or came anew.
fn acknowledge(model: &Mutex<Model>, group: GroupId, op: usize) {
    if let Some(group) = model.lock().get_mut(&group) {
        group.acknowledge(op);
    }
}
