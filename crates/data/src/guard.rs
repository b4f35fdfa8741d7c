//! Libraries that panic on files that nobody vouches for: such a panic is an error of the file, and says nothing of its own.
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    /// Whether this thread is inside `guarded`.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Number of threads inside `guarded`.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Leaves out what a reader's panic would print, on its own thread and on those that it works with.
fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            let helps = || std::thread::current().name().is_some_and(|name| name.starts_with("polars"));
            if !(READING.get() || READERS.load(Ordering::Relaxed) > 0 && helps()) {
                before(panic);
            }
        }));
    });
}

/// What a reader returns; what it panics with becomes an error.
pub(crate) fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    install();
    READERS.fetch_add(1, Ordering::Relaxed);
    let outer = READING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    READING.set(outer);
    READERS.fetch_sub(1, Ordering::Relaxed);
    result.unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("its structure is damaged: {}", text.unwrap_or_default().lines().next().unwrap_or_default()))
    })
}
