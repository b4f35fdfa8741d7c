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

/// Gives the Vulkan loader a folder to look for a display in: without one it says so, several times, on our standard error.
#[cfg(unix)]
#[allow(unsafe_code)]
fn without_a_display() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread is there yet that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) }
    }
}

fn main() -> ExitCode {
    keep_memory();
    #[cfg(unix)]
    without_a_display();
    match train_config::parse().and_then(commands::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::tell_line(format_args!("error: {error}"));
            error.exit_code()
        }
    }
}
