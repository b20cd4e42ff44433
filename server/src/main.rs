//! The `trilog` binary.

use std::process::ExitCode;

/// One allocator for Rust and RocksDB alike.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    trilog_server::cli::main()
}
