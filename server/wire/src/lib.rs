//! What travels between Trilog and its callers, without any of the doing: the gRPC services of
//! administration and of the native client.
//!
//! Byte fields are `bytes::Bytes`, shared with the buffer a message was read from.

pub mod error;

/// The generated messages, clients and servers of package `trilog.v1`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code keeps its generator's style"
)]
pub mod v1 {
    tonic::include_proto!("trilog.v1");
}
