//! The command line of Tanglescope: arguments, progress, tables; the work is the library's.
mod cli;
mod commands;
mod console;
mod demo;
mod error;
mod hub;
mod options;
mod print;
mod table;
mod train_config;

use std::process::ExitCode;

/// Keeps freed memory for the next result; the system's gives large blocks back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps memory that is free for good: giving it back and faulting it in again took a tenth of a pass's time.
#[allow(unsafe_code)]
fn keep_memory() {
    /// `mi_option_purge_delay`: milliseconds until free memory is given back; none for a negative number.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number in the allocator, before any other thread is there.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

fn main() -> ExitCode {
    keep_memory();
    match train_config::parse().and_then(commands::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}
