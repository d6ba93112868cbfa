//! Addresses of Unix sockets, and who is at their other end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Context, Result, invalid, precondition};

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

/// Binds a socket with the permissions `mode`. A stale one is replaced, a living one never
/// (SVC-02).
///
/// # Errors
/// Somebody answers there, or it is a file; what the kernel says.
pub async fn bind(path: &Path, mode: u32) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(|| format!("folder {folder:?}"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(precondition(format!("{path:?} exists and is not a socket")));
        }
        Ok(_) => {
            if UnixStream::connect(Address::of(path)?.path()).await.is_ok() {
                return Err(precondition(format!("another server answers on {path:?}")));
            }
            std::fs::remove_file(path).context(|| format!("remove the stale socket {path:?}"))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(Address::of(path)?.path()).context(|| format!("bind {path:?}"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .context(|| format!("permissions of {path:?}"))?;
    Ok(listener)
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; `None` if this pid namespace does not show it.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
}

/// Who has connected `stream`, or made the socket that it was connected to.
///
/// # Errors
/// It is no Unix socket.
pub fn peer(stream: &impl AsFd) -> std::io::Result<Peer> {
    // Not rustix's: its process id can't be the 0 that the kernel gives for one out of sight.
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let (socket, into) = (stream.as_fd().as_raw_fd(), std::ptr::from_mut(&mut found).cast());
    // SAFETY: the kernel writes `size` bytes at most, which `found` has and which may be any.
    let result =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut size) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Peer { pid: u32::try_from(found.pid).ok().filter(|pid| *pid > 0), uid: found.uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_known() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let own = Peer { pid: Some(std::process::id()), uid: rustix::process::geteuid().as_raw() };
        assert_eq!(peer(&one).expect("known"), own);
        peer(&std::fs::File::open("/dev/null").expect("a file")).expect_err("no socket");
    }
}
