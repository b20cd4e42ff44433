//! The configuration of a node: what can be set, how it is read, and where each value came from.
//!
//! Knows nothing of the parts it configures: whoever builds a part hands it the values it needs.
//! Precedence is default, file, environment, flag. An unknown key is an error that names its line
//! and the key that was probably meant.

mod bytesize;
mod duration;
mod error;
mod load;
mod nearest;
mod schema;
mod section;
mod show;
mod validate;

pub use bytesize::ByteSize;
pub use duration::Duration;
pub use error::{ConfigError, Problem};
pub use load::{Loaded, Origin, Sources, load};
pub use nearest::nearest;
pub use schema::{
    Access, Advertise, Authentication, Cluster, Config, IoChoice, Limits, Listen, Log, LogFormat,
    Node, Raft, Storage,
};
pub use section::{Field, Section};
pub use show::{annotated, as_json, commented};
