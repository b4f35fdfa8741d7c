//! The allocator, and what becomes of memory that was freed.

/// Keeps freed memory for the next result; the system's gives large blocks back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds until free memory is given back; never for a negative number.
#[allow(unsafe_code)]
fn purge_after(milliseconds: std::ffi::c_long) {
    /// `mi_option_purge_delay`.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: stores a number of the allocator's, which it reads anew whenever memory is freed.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) }
}

/// Whether the process may have only some addresses (`ulimit -v`), as Linux says.
fn has_few_addresses() -> bool {
    const NAME: &str = "Max address space";
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let of_addresses = limits.lines().find_map(|line| line.strip_prefix(NAME));
    of_addresses.is_some_and(|values| !values.trim_start().starts_with("unlimited"))
}

/// Reserves no addresses ahead, of which a GiB may be most that there are. It costs a quarter of the speed.
#[allow(unsafe_code)]
fn reserve_nothing() {
    /// `mi_option_arena_reserve`.
    const ARENA_RESERVE: libmimalloc_sys::mi_option_t = 23;
    // SAFETY: stores a number of the allocator's, which it reads when it asks the system for more.
    unsafe { libmimalloc_sys::mi_option_set(ARENA_RESERVE, 0) }
}

/// Keeps memory that is free for good: giving it back and faulting it in again took a tenth of a pass's time.
pub fn keep_memory() {
    purge_after(-1);
    if has_few_addresses() {
        reserve_nothing();
    }
}

/// Gives memory back as soon as it is free.
pub fn give_memory_back() {
    purge_after(0);
}
