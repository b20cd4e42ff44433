//! One node: topics and the state of the cluster.

use tonic::{Request, Response, Status};
use trilog_wire::v1::cluster_server::Cluster;
use trilog_wire::v1::topics_server::Topics;
use trilog_wire::v1::{self, Error, ErrorCode};

use super::node::Node;
use super::state::Topic;

#[tonic::async_trait]
impl Topics for Node {
    async fn create(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.lock();
        let created = !state.topics.contains_key(&request.name);
        if created {
            state.create(&request.name, request.partitions.max(1));
        } else if !request.if_not_exists {
            return Err(Error::new(ErrorCode::TopicExists, "it exists").into());
        }
        let mut response = v1::CreateTopicResponse {
            topic: None,
            created,
        };
        let described = state.describe(&request.name).result;
        if let Some(v1::described_topic::Result::Topic(topic)) = described {
            response.topic = Some(topic);
        }
        Ok(Response::new(response))
    }

    async fn alter(
        &self,
        _: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        Err(Error::new(ErrorCode::Unsupported, "not here").into())
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        match self.shared.lock().topics.remove(&name) {
            Some(_) => Ok(Response::new(v1::DeleteTopicResponse {})),
            None => Err(Error::new(ErrorCode::UnknownTopic, "no such topic").into()),
        }
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeTopicsRequest>,
    ) -> Result<Response<v1::DescribeTopicsResponse>, Status> {
        let state = self.shared.lock();
        let mut names = request.into_inner().names;
        if names.is_empty() {
            names = state.topics.keys().cloned().collect();
        }
        let node = |(node, address): (u32, &String)| v1::NodeAddress {
            node,
            address: address.clone(),
        };
        Ok(Response::new(v1::DescribeTopicsResponse {
            topics: names.iter().map(|name| state.describe(name)).collect(),
            nodes: (1..).zip(&state.addresses).map(node).collect(),
        }))
    }

    async fn list(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let state = self.shared.lock();
        let summary = |(name, topic): (&String, &Topic)| v1::TopicSummary {
            name: name.clone(),
            partitions: u32::try_from(topic.partitions.len()).expect("few"),
            ..v1::TopicSummary::default()
        };
        Ok(Response::new(v1::ListTopicsResponse {
            topics: state.topics.iter().map(summary).collect(),
        }))
    }
}

// Calls that no test of the client makes.
macro_rules! unsupported {
    ($($method:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl Cluster for Node {
            async fn status(
                &self,
                _: Request<v1::StatusRequest>,
            ) -> Result<Response<v1::StatusResponse>, Status> {
                Ok(Response::new(v1::StatusResponse {
                    cluster_id: "fake".to_owned(),
                    answered_by: self.id,
                    ..v1::StatusResponse::default()
                }))
            }
            $(
                async fn $method(
                    &self,
                    _: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    Err(Error::new(ErrorCode::Unsupported, "not here").into())
                }
            )*
        }
    };
}

unsupported! {
    drain: DrainRequest => DrainResponse,
    remove: RemoveRequest => RemoveResponse,
    replace: ReplaceRequest => ReplaceResponse,
    transfer: TransferRequest => TransferResponse,
    r#move: MoveRequest => MoveResponse,
    balance: BalanceRequest => BalanceResponse,
    upgrade: UpgradeRequest => UpgradeResponse,
    configure: ConfigureRequest => ConfigureResponse,
}
