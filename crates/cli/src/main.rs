//! The command line of Tanglescope: arguments, progress, tables; the work is the library's.
mod allocator;
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
    allocator::keep_memory();
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
