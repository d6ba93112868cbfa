//! Descriptors that a process hands on to the program that it becomes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Lets a descriptor outlive an exec; gives its number, for the program to find it.
///
/// # Errors
/// Those of the system.
pub fn pass_on(fd: impl AsFd) -> io::Result<RawFd> {
    fcntl_setfd(&fd, FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Takes back what [`pass_on`] did, where there was no exec.
pub fn keep(fd: impl AsFd) {
    // Refused only for what is no descriptor.
    let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
}

/// Takes over a descriptor that the program before has passed on. Each can be taken once.
///
/// # Errors
/// If the number is none of a descriptor that was passed on and not taken yet.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let refused = || io::Error::other(format!("descriptor {number} was not passed on"));
    // The standard streams belong to everybody.
    if number <= libc::STDERR_FILENO {
        return Err(refused());
    }
    // SAFETY: nothing but the number is used, by a call that fails where it is no descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(|_| refused())?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(refused());
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: what this program opens is closed on exec, save what it passes on at its own
    // end. So this one came from the program before, and from now on looks taken.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_it_was_passed_on() {
        let file = std::fs::File::open("/dev/null").expect("opened");
        let number = file.as_raw_fd();
        assert!(take(number).is_err(), "it is this program's own");
        pass_on(&file).expect("passed on");
        keep(&file);
        assert!(take(number).is_err(), "it was taken back");
        let passed = file.try_clone().expect("cloned");
        let number = pass_on(&passed).expect("passed on");
        // What the exec would do.
        std::mem::forget(passed);
        let taken = take(number).expect("it is there");
        assert!(take(number).is_err(), "it is taken");
        drop(taken);
        for number in [-1, 0, 2, i32::MAX] {
            assert!(take(number).is_err());
        }
    }
}
