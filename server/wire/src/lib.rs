//! What travels between Trilog and its callers, without any of the doing: the gRPC services of
//! administration and of the native client.
//!
//! Byte fields are `bytes::Bytes`, shared with the buffer a message was read from.

pub mod codec;
pub mod descriptors;
pub mod error;
#[cfg(feature = "kafka")]
pub mod kafka;

/// The definitions of everything here, as tools that ask a node for them expect it: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

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
