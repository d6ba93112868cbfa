//! Addresses of Unix sockets.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Result, invalid};

/// A longer path does not fit into a socket's address.
const ADDRESS_BYTES_MAX: usize = 100;

/// The path of a socket in a form that fits into an address, however long it is.
pub struct Address {
    path: PathBuf,
    /// Held while `path` is used.
    _folder: Option<OwnedFd>,
}

impl Address {
    /// The address of `socket`.
    ///
    /// # Errors
    /// InvalidArgument for what is no path of a file; those of opening its folder.
    pub fn of(socket: &Path) -> Result<Address> {
        if socket.as_os_str().len() <= ADDRESS_BYTES_MAX {
            return Ok(Address { path: socket.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(invalid(format!("{socket:?} is no path of a socket")));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty()).context(|| format!("open {folder:?}"))?;
        let path = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(name);
        Ok(Address { path, _folder: Some(opened) })
    }

    /// What is bound or connected to, as long as this lives.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
