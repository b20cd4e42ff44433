//! Who a client is: what goes with each of its calls to a cluster that asks.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// A user and a password, which are shown nowhere.
#[derive(Clone)]
pub struct Credentials(MetadataValue<Ascii>);

impl Credentials {
    /// # Panics
    ///
    /// Never: base64 is text that a header may hold.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        let value = MetadataValue::try_from(format!("Basic {encoded}"));
        let mut value = value.unwrap_or_else(|_| MetadataValue::from_static(""));
        value.set_sensitive(true);
        Self(value)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Puts credentials, if there are any, on each call.
#[derive(Clone, Debug)]
pub(crate) struct Naming(pub(crate) Option<Credentials>);

impl Interceptor for Naming {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(Credentials(value)) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}
