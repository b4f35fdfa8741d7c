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

/// Keeps memory that is free for good: giving it back and faulting it in again took a tenth of a pass's time.
pub fn keep_memory() {
    purge_after(-1);
}

/// Gives memory back as soon as it is free.
pub fn give_memory_back() {
    purge_after(0);
}
