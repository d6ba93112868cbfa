//! Where a keeper is at home: its lock, its socket, its cgroups. They are made, or taken
//! over from the program before.

use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::daemon::{self, Lock, OwnCgroups};
use super::keeper::Options;
use super::succession::{Bequest, Will};
use crate::error::{Context, Error, Result};
use crate::sys::{inherit, signal};

pub(super) struct Place {
    socket: PathBuf,
    lock: Lock,
    pub(super) listener: UnixListener,
    pub(super) cgroups: OwnCgroups,
    /// Containers of the program before that are still to be taken over.
    pub(super) bequests: Vec<Bequest>,
}

impl Place {
    /// `None` if there is another keeper, which answers.
    ///
    /// # Errors
    /// Those of the system; if there is a will and it cannot be read.
    pub(super) fn take(options: &Options) -> Result<Option<Place>> {
        let socket = options.socket.clone();
        if let Some(number) = options.will {
            let Will { lock, listener, cgroups, containers: bequests } = Will::read(number)?;
            let (lock, listener) = daemon::inherit(lock, listener)?;
            let cgroups = OwnCgroups::inherit(cgroups);
            return Ok(Some(Place { socket, lock, listener, cgroups, bequests }));
        }
        let Some(lock) = Lock::take(&socket)? else { return Ok(None) };
        daemon::detach();
        let cgroups = OwnCgroups::enter();
        let listener = daemon::listen(&socket)?;
        Ok(Some(Place { socket, lock, listener, cgroups, bequests: Vec::new() }))
    }

    /// Runs `program` in place of this one, with `bequests`. Until it holds `signals` back
    /// itself they have no effect. Comes back only with an error.
    pub(super) fn pass_on(&self, program: &Path, bequests: Vec<Bequest>, signals: &[i32]) -> Error {
        let execute = || -> Result<Error> {
            let will = Will {
                lock: pass_on(&self.lock)?,
                listener: pass_on(&self.listener)?,
                cgroups: self.cgroups.paths().to_vec(),
                containers: bequests,
            };
            signal::ignore(signals);
            Ok(will.execute(program, &self.socket))
        };
        let error = execute().unwrap_or_else(|error| error);
        signal::heed(signals);
        inherit::keep(&self.lock);
        inherit::keep(&self.listener);
        error
    }
}

fn pass_on(fd: impl std::os::fd::AsFd) -> Result<RawFd> {
    inherit::pass_on(fd).context(|| "pass on the log keeper's lock and socket")
}
