use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Streaming};
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::producer_server::{Producer, ProducerServer};
use trilog_wire::v1::{
    InitProducerRequest, InitProducerResponse, ProduceRequest, ProduceResponse, PublishRequest,
    PublishResponse,
};

use super::*;

const MESSAGE: usize = 1 << 20;
const MEMORY: usize = 4 << 20;
const MESSAGE_MAX: usize = MESSAGE + 1024;

/// A producer service that is as slow as it is told to be, and counts what it holds.
#[derive(Clone, Debug)]
struct Slow {
    held: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

impl Slow {
    fn new() -> Self {
        Self {
            held: Arc::default(),
            most: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    /// Holds a message until it may go.
    async fn hold(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(held, Ordering::SeqCst);
        drop(self.go.acquire().await);
        self.held.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Producer for Slow {
    type ProduceStream = ReceiverStream<Result<ProduceResponse, Status>>;

    async fn init_producer(
        &self,
        _: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        Ok(Response::new(InitProducerResponse::default()))
    }

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let this = self.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            loop {
                let answer = match requests.next().await {
                    None => return,
                    Some(Err(status)) => Err(status),
                    Some(Ok(request)) => {
                        this.hold(request.batch.len()).await;
                        Ok(ProduceResponse::default())
                    }
                };
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let value = request.into_inner().value.unwrap_or_default();
        self.hold(value.len()).await;
        Ok(Response::new(PublishResponse::default()))
    }
}

struct Node {
    slow: Slow,
    memory: RequestMemory,
    address: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Node {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (slow, memory) = (Slow::new(), RequestMemory::new(MEMORY));
        let service = ProducerServer::new(slow.clone()).max_decoding_message_size(MESSAGE_MAX);
        let service = Gate::new(service, memory.clone(), MESSAGE_MAX, Door::OPEN);
        let serving = tokio::spawn(async move {
            let router = Server::builder().add_service(service);
            let incoming = TcpIncoming::from(listener);
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            slow,
            memory,
            address,
            serving,
        }
    }

    /// A connection of its own.
    async fn client(&self) -> ProducerClient<Channel> {
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        ProducerClient::new(endpoint.connect().await.unwrap())
    }

    /// Waits until the handlers hold as much as the memory allows.
    async fn until_full(&self) {
        let full = async {
            while self.slow.held.load(Ordering::SeqCst) < MEMORY - MESSAGE_MAX {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let full = tokio::time::timeout(Duration::from_secs(20), full).await;
        full.expect("the handlers get messages");
    }

    /// What the handlers held at most, once all is done.
    async fn most(&self) -> usize {
        let empty = async {
            while self.memory.taken() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let empty = tokio::time::timeout(Duration::from_secs(20), empty).await;
        empty.expect("everything claimed is given back");
        self.slow.most.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn many_connections_with_large_messages_stay_within_the_memory() {
    const CONNECTIONS: usize = 24;
    let node = Node::start().await;
    let mut calls = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = node.client().await;
        calls.push(tokio::spawn(async move {
            let request = PublishRequest {
                value: Some(vec![7; MESSAGE].into()),
                ..PublishRequest::default()
            };
            client.publish(request).await.map(drop)
        }));
    }
    node.until_full().await;
    node.slow.go.add_permits(1);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let most = node.most().await;
    assert!(most <= MEMORY, "{most} bytes were held at once");
}

#[tokio::test]
async fn streams_of_batches_stay_within_the_memory_and_all_arrive() {
    const STREAMS: usize = 12;
    const BATCHES: usize = 8;
    let node = Node::start().await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut client = node.client().await;
        streams.push(tokio::spawn(async move {
            // Large ones, and small ones of which a frame holds many.
            let len = if number % 3 == 0 { 100 } else { MESSAGE };
            let batches = (0..BATCHES).map(move |_| ProduceRequest {
                batch: vec![7; len].into(),
                ..ProduceRequest::default()
            });
            let batches = futures::stream::iter(batches);
            let answers = client.produce(batches).await.unwrap().into_inner();
            answers
                .filter(|answer| futures::future::ready(answer.is_ok()))
                .count()
                .await
        }));
    }
    node.until_full().await;
    node.slow.go.add_permits(STREAMS);
    for stream in streams {
        assert_eq!(stream.await.unwrap(), BATCHES);
    }
    let most = node.most().await;
    assert!(most <= MEMORY, "{most} bytes were held at once");
}

fn message(len: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
    bytes.resize(HEADER + len, 9);
    bytes
}

/// A body of these frames, and how much of it comes before it is silent.
fn gated(frames: Vec<Vec<u8>>, memory: &RequestMemory, silent: bool) -> Gated {
    let frames = frames
        .into_iter()
        .map(|frame| Ok::<_, Status>(frame.into()));
    let frames = futures::stream::iter(frames);
    let body = if silent {
        let silence = futures::stream::pending::<Result<Bytes, Status>>();
        axum::body::Body::from_stream(frames.chain(silence))
    } else {
        axum::body::Body::from_stream(frames)
    };
    Gated {
        body: Body::new(body),
        memory: memory.clone(),
        message_max: MESSAGE_MAX,
        kept: Arc::new(Mutex::new(Kept::Answered)),
        rest: Bytes::new(),
        passing: 0,
        claim: None,
        claiming: None,
        patience: ARRIVAL,
        pause: None,
    }
}

async fn next(body: &mut Gated) -> Option<Result<Bytes, Status>> {
    let frame = std::future::poll_fn(|cx| {
        let body = Pin::new(&mut *body);
        http_body::Body::poll_frame(body, cx)
    });
    let frame = frame.await?;
    Some(frame.map(|frame| frame.into_data().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_body_is_passed_on_whole_however_it_is_cut() {
    let whole = [message(10), message(0), message(300), message(1)].concat();
    for cut in 1..whole.len() {
        let memory = RequestMemory::new(MEMORY);
        let frames = whole.chunks(cut).map(<[u8]>::to_vec).collect();
        let mut body = gated(frames, &memory, false);
        let mut passed = Vec::new();
        while let Some(data) = next(&mut body).await {
            passed.extend_from_slice(&data.unwrap());
        }
        assert_eq!(passed, whole, "cut into pieces of {cut}");
        assert_eq!(memory.taken(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_send_what_was_announced_loses_the_memory_for_it() {
    let memory = RequestMemory::new(MEMORY);
    let mut begun = message(MESSAGE);
    begun.truncate(100);
    let mut body = gated(vec![begun], &memory, true);
    assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 100);
    assert_eq!(memory.taken(), MESSAGE + HEADER);
    let began = Instant::now();
    let late = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(late.code(), tonic::Code::ResourceExhausted);
    assert_eq!(began.elapsed(), ARRIVAL);
    drop(body);
    assert_eq!(memory.taken(), 0);

    // A stream that is silent between messages holds nothing and may stay.
    let mut idle = gated(vec![message(5)], &memory, true);
    next(&mut idle).await.unwrap().unwrap();
    let silent = tokio::time::timeout(ARRIVAL * 10, next(&mut idle)).await;
    assert!(silent.is_err());
    assert_eq!(memory.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_is_the_readers_to_refuse_and_claims_nothing() {
    let memory = RequestMemory::new(MEMORY);
    let mut begun = message(MESSAGE_MAX + 1);
    begun.truncate(100);
    let mut body = gated(vec![begun], &memory, true);
    assert_eq!(next(&mut body).await.unwrap().unwrap().len(), HEADER);
    assert_eq!(memory.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_for_which_there_is_no_memory_is_refused_as_overload() {
    let memory = RequestMemory::new(MEMORY);
    let _all = memory.claim(MEMORY).await.unwrap();
    let mut body = gated(vec![message(10)], &memory, true);
    let refused = next(&mut body).await.unwrap().unwrap_err();
    let error = Error::from_status(&refused).unwrap();
    assert_eq!(error.code(), ErrorCode::Overloaded);
}
