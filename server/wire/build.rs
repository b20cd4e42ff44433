//! Compiles the protocol definitions; no `protoc` is needed.

use std::error::Error;
use std::path::Path;

const FILES: [&str; 6] = [
    "cluster.proto",
    "error.proto",
    "fetch.proto",
    "produce.proto",
    "record.proto",
    "topics.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let files = FILES.map(|file| root.join("trilog/v1").join(file));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
