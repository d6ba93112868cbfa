//! The C library's allocator: what was freed goes back to the kernel.
//!
//! By itself glibc gives each of the many threads that block now and then a heap of its own,
//! and after the first large message that was freed it takes the next ones from these heaps,
//! too, where a small piece that stays holds all that was around it. A server that has seen a
//! burst would keep its memory for good.

/// Heaps that threads share: so many work at a time.
const HEAPS: i32 = 2;
/// From here on a piece is mapped on its own, and unmapped when it is freed.
const MAPPED_BYTES: i32 = 4 << 20;
/// So much free memory at a heap's end is kept.
const KEPT_BYTES: i32 = 256 << 10;

/// Sets the bounds; to be called before there are threads.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    for (key, value) in [
        (libc::M_ARENA_MAX, HEAPS),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
    ] {
        // SAFETY: no other thread allocates yet; a value that is refused changes nothing.
        unsafe { libc::mallopt(key, value) };
    }
}
