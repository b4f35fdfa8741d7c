//! The command line of Tanglescope: arguments, progress, tables; the work is the library's.
//!
//! It is a library for the sake of the Python package, which brings the command and reads its calls' options as the command line does.
pub mod allocator;
pub mod cli;
mod commands;
mod console;
mod demo;
mod error;
pub mod hub;
pub mod options;
pub mod print;
mod table;
mod train_config;

pub use error::{Error, Result};

use std::ffi::OsString;

/// Gives the Vulkan loader a folder to look for a display in: without one it says so, several times, on our standard error. To be called before
/// there are threads that look at the environment.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn without_a_display() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the program has no other thread yet; in Python it is the import, under the lock that `os.environ` is set under.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) }
    }
}

/// Runs the command of some words, of which the first is the program's name, and returns the process's exit code. It is to be the first thing
/// that the process does.
#[must_use]
pub fn run(words: Vec<OsString>) -> u8 {
    allocator::keep_memory();
    #[cfg(unix)]
    without_a_display();
    match train_config::parse(words).and_then(commands::run) {
        Ok(()) => 0,
        Err(error) => {
            console::tell_line(format_args!("error: {error}"));
            error.exit_code()
        }
    }
}
