//! Signals as something that can be read and waited for.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Signals that are held back from this thread, and from threads that it starts later,
/// to be read here instead.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Holds back `signals` (numbers of `libc::SIG…`). For a whole process: call it before
    /// other threads are started.
    ///
    /// # Errors
    /// Those of the system, also for a number that is no signal.
    pub fn hold(signals: &[i32]) -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given, which lives on this
        // stack; the other calls get it initialised, and no old set to write to.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                if libc::sigaddset(set.as_mut_ptr(), signal) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just made this descriptor; nobody else knows it.
        Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that has come; `None` if there is none.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        const BYTES: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = [0u8; BYTES];
        let count = rustix::io::read(&self.0, &mut info).ok()?;
        // The number is the first field, of four bytes.
        let (number, _) = info.split_first_chunk::<4>()?;
        (count == BYTES).then(|| i32::from_ne_bytes(*number))
    }
}

/// Lets `signals` have no effect, in this program and in the one that it becomes until that
/// one holds them back itself: an exec gives up what is held back.
pub fn ignore(signals: &[i32]) {
    for &signal in signals {
        // SAFETY: no handler is set, only that there is nothing to do.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Takes back what [`ignore`] did.
pub fn heed(signals: &[i32]) {
    for &signal in signals {
        // SAFETY: as before; this is what each signal does from the start.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_instead_of_ending_the_thread() {
        // A thread of its own: the mask stays with it.
        let signal = std::thread::spawn(|| {
            let signals = Signals::hold(&[libc::SIGUSR1]).expect("held");
            assert_eq!(signals.next(), None);
            // SAFETY: signals this very thread, which holds the signal back.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            signals.next()
        });
        assert_eq!(signal.join().expect("it lives"), Some(libc::SIGUSR1));
        assert!(Signals::hold(&[4096]).is_err());
    }
}
