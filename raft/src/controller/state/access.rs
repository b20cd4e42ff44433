//! Users come, change and go; rules are added and taken away.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::access::{MAX_ACLS, MAX_USERS, Mechanism, User, check_user_name, invalid_user};
use super::super::command::{AlterAcls, AlterUser, Expect};
use super::super::reply::{ControllerError, Outcome, Reply};
use super::{ControllerState, malformed};

/// Bytes of the cluster's secret.
const SECRET_LEN: usize = 32;

impl ControllerState {
    pub(super) fn alter_user(&mut self, command: &AlterUser) -> Outcome {
        check_user_name(&command.name)?;
        let before = self.tables.users.get(&*command.name);
        match (Expect::try_from(command.expect), before) {
            (Err(_), _) => return Err(malformed("an unknown expectation of a user")),
            (Ok(Expect::New), Some(_)) => {
                let name = command.name.clone();
                return Err(ControllerError::UserExists { name });
            }
            (Ok(Expect::Present), None) => return Err(unknown(&command.name)),
            (Ok(Expect::Any | Expect::New | Expect::Present), _) => {}
        }
        let mut user = before.map_or_else(
            || User {
                name: command.name.as_str().into(),
                credentials: BTreeMap::new(),
            },
            |user| User::clone(user),
        );
        for mechanism in &command.remove {
            let mechanism = Mechanism::try_from(*mechanism)
                .map_err(|_| invalid_user(&command.name, "the mechanism is unknown"))?;
            if user.credentials.remove(&mechanism).is_none() {
                return Err(unknown(&command.name));
            }
        }
        user.learn(&command.set)?;
        if !command.secret.is_empty() && command.secret.len() != SECRET_LEN {
            return Err(malformed("a secret of another length"));
        }
        if before.is_none() && self.tables.users.len() >= MAX_USERS {
            return Err(ControllerError::Exhausted {
                what: "users".to_owned(),
            });
        }
        if self.tables.secret.is_empty() {
            self.tables.secret = command.secret.clone();
        }
        let users = Arc::make_mut(&mut self.tables.users);
        if user.credentials.is_empty() {
            users.remove(&user.name);
        } else {
            users.insert(Arc::clone(&user.name), Arc::new(user));
        }
        self.touch();
        Ok(Reply::Done)
    }

    /// All of it, or nothing; what is there already, or gone already, is no failure.
    pub(super) fn alter_acls(&mut self, command: &AlterAcls) -> Outcome {
        for acl in command.add.iter().chain(&command.remove) {
            acl.check()?;
        }
        let mut acls = (*self.tables.acls).clone();
        for acl in &command.remove {
            acls.remove(acl);
        }
        for acl in &command.add {
            acls.insert(acl);
        }
        if acls.len() > MAX_ACLS && acls.len() > self.tables.acls.len() {
            return Err(ControllerError::Exhausted {
                what: "rules".to_owned(),
            });
        }
        if acls != *self.tables.acls {
            self.tables.acls = Arc::new(acls);
            self.touch();
        }
        Ok(Reply::Done)
    }
}

fn unknown(name: &str) -> ControllerError {
    ControllerError::UnknownUser {
        name: name.to_owned(),
    }
}
