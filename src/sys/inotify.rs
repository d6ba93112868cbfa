//! inotify on the async reactor.

#![allow(unsafe_code)] // the reactor takes descriptors on trust

use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags};
use tokio::io::unix::AsyncFd;

/// A new inotify instance, not blocking; to be called in a tokio runtime.
///
/// # Errors
/// The system's: there is a limit for each user.
pub fn open() -> std::io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // SAFETY: an OwnedFd is open and stays the same descriptor until it is dropped, and
    // the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}
