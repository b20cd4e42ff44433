//! One stream of produce requests to one node, shared by every partition that the node leads.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::{ProduceRequest, ProduceResponse};

use crate::connections::Connections;
use crate::error::Failure;

/// Requests queued for one node before their partitions wait.
const QUEUE: usize = 64;

/// How one attempt ended.
pub(super) type Answer = Result<ProduceResponse, Failure>;

/// Where an attempt's answer will be found. If the link ends before it took the request, the
/// sender is dropped without a word: then the request was certainly not executed.
pub(super) type Waiting = oneshot::Receiver<Answer>;

#[derive(Debug)]
struct Job {
    request: ProduceRequest,
    answer: oneshot::Sender<Answer>,
}

/// The links of one producer, by address.
#[derive(Debug)]
pub(super) struct Links {
    connections: Connections,
    open: Mutex<BTreeMap<String, Link>>,
}

#[derive(Debug)]
struct Link {
    jobs: mpsc::Sender<Job>,
    task: AbortHandle,
}

impl Links {
    pub(super) fn new(connections: Connections) -> Self {
        Self {
            connections,
            open: Mutex::default(),
        }
    }

    /// Queues a request for the node at `address`, behind those queued before.
    pub(super) async fn submit(&self, address: &str, request: ProduceRequest) -> Waiting {
        let (answer, waiting) = oneshot::channel();
        let jobs = self.jobs(address);
        // A link that has just ended drops the job, which tells the waiting side all it must know.
        let _ = jobs.send(Job { request, answer }).await;
        waiting
    }

    fn jobs(&self, address: &str) -> mpsc::Sender<Job> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = open.get(address)
            && !link.jobs.is_closed()
        {
            return link.jobs.clone();
        }
        let (jobs, queue) = mpsc::channel(QUEUE);
        let connections = self.connections.clone();
        let task = tokio::spawn(run(address.to_owned(), connections, queue)).abort_handle();
        let link = Link {
            jobs: jobs.clone(),
            task,
        };
        open.insert(address.to_owned(), link);
        jobs
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        for link in open.values() {
            link.task.abort();
        }
    }
}

/// Requests that the transport has taken and no response has answered.
#[derive(Debug, Default)]
struct Pending {
    next_id: u64,
    /// Once the stream is known to be over, nothing more may be taken.
    over: bool,
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
}

#[derive(Clone, Debug, Default)]
struct SharedPending(Arc<Mutex<Pending>>);

impl SharedPending {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, response: ProduceResponse) {
        let waiting = self.lock().answers.remove(&response.request_id);
        let Some(waiting) = waiting else { return };
        let answer = match response.error {
            Some(error) => Err(error.into()),
            None => Ok(response),
        };
        // Nobody waits for an answer that came too late.
        let _ = waiting.send(answer);
    }

    /// The stream is over: what was taken and not answered may have been executed.
    fn end(&self, failure: &Failure) {
        let mut pending = self.lock();
        pending.over = true;
        for (_, waiting) in std::mem::take(&mut pending.answers) {
            let _ = waiting.send(Err(failure.clone()));
        }
    }
}

/// The request half of the stream, from which the transport takes at its own pace. Whatever it
/// has taken counts as sent.
#[derive(Debug)]
struct Requests {
    queue: mpsc::Receiver<Job>,
    pending: SharedPending,
}

impl Stream for Requests {
    type Item = ProduceRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ProduceRequest>> {
        let Some(mut job) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        let mut pending = self.pending.lock();
        if pending.over {
            return Poll::Ready(None);
        }
        job.request.request_id = pending.next_id;
        pending.next_id += 1;
        pending.answers.insert(job.request.request_id, job.answer);
        Poll::Ready(Some(job.request))
    }
}

async fn run(address: String, connections: Connections, queue: mpsc::Receiver<Job>) {
    let channel = match connections.get(&address).await {
        Ok(channel) => channel,
        Err(error) => {
            // Dropping the queue tells everybody in it that nothing was sent.
            debug!(address, %error, "cannot reach a node to produce to");
            return;
        }
    };
    let pending = SharedPending::default();
    let requests = Requests {
        queue,
        pending: pending.clone(),
    };
    let failure = match read(ProducerClient::new(channel), requests, &pending).await {
        Ok(()) => Failure::Unknown(format!("{address} ended the stream")),
        Err(status) => match Failure::from(status) {
            Failure::Unknown(reason) | Failure::Retry { reason, .. } => {
                Failure::Unknown(format!("{address}: {reason}"))
            }
            refused @ Failure::Refused(_) => refused,
        },
    };
    debug!(address, ?failure, "a produce stream ended");
    pending.end(&failure);
    connections.forget(&address);
}

async fn read(
    mut client: ProducerClient<crate::connections::Channel>,
    requests: Requests,
    pending: &SharedPending,
) -> Result<(), tonic::Status> {
    let mut responses = client.produce(requests).await?.into_inner();
    while let Some(response) = responses.message().await? {
        pending.answer(response);
    }
    Ok(())
}
