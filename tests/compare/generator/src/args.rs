//! Words of the form KEY=VALUE, of which none may be left over: a key that is misspelt is no default.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use rdkafka::config::ClientConfig;

use crate::Outcome;

pub(crate) struct Args {
    given: BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
}

impl Args {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut given = BTreeMap::new();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?} is no KEY=VALUE"))?;
            given.insert(key.to_owned(), value.to_owned());
        }
        let used = RefCell::default();
        Ok(Self { given, used })
    }

    pub(crate) fn text(&self, key: &str) -> Outcome<&str> {
        self.used.borrow_mut().insert(key.to_owned());
        let found = self.given.get(key).map(String::as_str);
        Ok(found.ok_or_else(|| format!("{key}=... is missing"))?)
    }

    pub(crate) fn get<T: FromStr<Err: Error + 'static>>(&self, key: &str) -> Outcome<T> {
        Ok(self.text(key)?.parse()?)
    }

    pub(crate) fn or<T: FromStr<Err: Error + 'static>>(&self, key: &str, usual: T) -> Outcome<T> {
        if self.given.contains_key(key) {
            self.get(key)
        } else {
            Ok(usual)
        }
    }

    pub(crate) fn seconds(&self, key: &str) -> Outcome<Duration> {
        Ok(Duration::from_secs_f64(self.get(key)?))
    }

    /// Those that begin with `prefix.`, without it: settings that are handed on.
    pub(crate) fn under(&self, prefix: &str) -> Vec<(&str, &str)> {
        let mut found = Vec::new();
        for (key, value) in &self.given {
            if let Some(name) = key
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('.'))
            {
                self.used.borrow_mut().insert(key.clone());
                found.push((name, value.as_str()));
            }
        }
        found
    }

    /// What every client of this run is configured with; `client.NAME=VALUE` sets more.
    pub(crate) fn client(&self) -> Outcome<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.text("bootstrap")?);
        for (name, value) in self.under("client") {
            config.set(name, value);
        }
        Ok(config)
    }

    /// A producer as Java's is by default: idempotent, acknowledged by all.
    pub(crate) fn producer(&self) -> Outcome<ClientConfig> {
        let mut config = self.client()?;
        config.set("acks", "all").set("enable.idempotence", "true");
        for (name, value) in self.under("producer") {
            config.set(name, value);
        }
        Ok(config)
    }

    pub(crate) fn all_used(&self) -> Outcome {
        let used = self.used.borrow();
        match self.given.keys().find(|key| !used.contains(*key)) {
            Some(key) => Err(format!("nothing is called {key}").into()),
            None => Ok(()),
        }
    }
}
