//! The `sluice` binary.

use std::process::ExitCode;

/// Returns memory to the system sooner than the C library's allocator and keeps threads apart.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    agent::cli::run()
}
