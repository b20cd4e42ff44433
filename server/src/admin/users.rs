//! Users: listed, made, changed, removed.

use tonic::{Request, Response, Status};
use trilog_raft::controller::Operation;
use trilog_raft::controller::commands::{AlterUser, Command, Expect};
use trilog_raft::controller::{Credential, Mechanism};
use trilog_wire::v1::users_server::Users;
use trilog_wire::v1::{
    Error, ErrorCode, ListUsersRequest, ListUsersResponse, PutUserRequest, PutUserResponse,
    RemoveUserRequest, RemoveUserResponse, ScramCredential, UserSummary,
};

use super::door::Caller;
use super::{Api, errors};
use crate::access::random;

#[tonic::async_trait]
impl Users for Api {
    async fn list(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Describe)?;
        self.cluster.is_current().await;
        let map = self.cluster.map();
        let users = map.users().map(|user| UserSummary {
            name: user.name.to_string(),
            mechanisms: user
                .credentials
                .keys()
                .map(|mechanism| mechanism.name().to_owned())
                .collect(),
        });
        Ok(Response::new(ListUsersResponse {
            users: users.collect(),
        }))
    }

    async fn put(
        &self,
        request: Request<PutUserRequest>,
    ) -> Result<Response<PutUserResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let set: Result<Vec<Credential>, Error> =
            request.credentials.into_iter().map(credential).collect();
        let set = set?;
        if set.is_empty() {
            let text = "a user has to have a credential";
            return Err(Error::new(ErrorCode::InvalidRequest, text).into());
        }
        let expect = if request.exists {
            Expect::Present
        } else {
            Expect::New
        };
        self.alter_user(AlterUser {
            name: request.name,
            expect: expect.into(),
            set,
            remove: Vec::new(),
            secret: random::<32>().to_vec().into(),
        })
        .await?;
        Ok(Response::new(PutUserResponse {}))
    }

    async fn remove(
        &self,
        request: Request<RemoveUserRequest>,
    ) -> Result<Response<RemoveUserResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let name = request.into_inner().name;
        self.cluster.is_current().await;
        let map = self.cluster.map();
        let has = map.user(&name).map(|user| user.credentials.keys());
        self.alter_user(AlterUser {
            expect: Expect::Present.into(),
            remove: has.into_iter().flatten().map(|one| (*one).into()).collect(),
            name,
            ..AlterUser::default()
        })
        .await?;
        Ok(Response::new(RemoveUserResponse {}))
    }
}

impl Api {
    async fn alter_user(&self, command: AlterUser) -> Result<(), Error> {
        let proposed = self.cluster.propose(&Command::AlterUser(command)).await;
        proposed.map(drop).map_err(|error| errors::propose(&error))
    }
}

fn credential(message: ScramCredential) -> Result<Credential, Error> {
    let mut all = Mechanism::ALL.into_iter();
    let Some(mechanism) = all.find(|mechanism| mechanism.name() == message.mechanism) else {
        let text = format!("there is no mechanism '{}'", message.mechanism);
        return Err(Error::new(ErrorCode::InvalidRequest, text));
    };
    Ok(Credential {
        mechanism: mechanism.into(),
        salt: message.salt,
        iterations: message.iterations,
        stored_key: message.stored_key,
        server_key: message.server_key,
    })
}
