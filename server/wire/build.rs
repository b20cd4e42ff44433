//! Compiles the protocol definitions; no `protoc` is needed.

use std::error::Error;
use std::path::Path;

use protox::prost::Message;

const FILES: [&str; 10] = [
    "acls.proto",
    "cluster.proto",
    "error.proto",
    "fetch.proto",
    "groups.proto",
    "produce.proto",
    "record.proto",
    "topics.proto",
    "transactions.proto",
    "users.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let files = FILES.map(|file| root.join("trilog/v1").join(file));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    // For tools that ask a node what it serves.
    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no output directory")?;
    std::fs::write(
        Path::new(&out).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
