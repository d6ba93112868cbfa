//! How the keeper becomes a process of its own: session, cgroup, lock, socket.
//!
//! The keeper is a child of the server, and must live on when the server's terminal,
//! service or process group ends. One keeper serves a state folder: it holds a lock for
//! as long as it lives, and only its holder touches the socket.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid, umask};
use tracing::debug;

use crate::error::{Context, Result, deadline, invalid};
use crate::sys::inherit;
use crate::sys::socket::Address;

/// How long a keeper that is about to end may take to let go of the lock.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Descriptors wanted: what the kernel allows a process at most, unless told otherwise.
const DESCRIPTORS: u64 = 1 << 20;

/// Leaves the server's session, sets the usual umask, so that log files get the modes that
/// are promised, and raises the limit of descriptors: each container needs up to four.
/// What is refused is done without.
pub(super) fn detach() {
    umask(Mode::WGRP | Mode::WOTH);
    // Refused to the leader of a process group, which then is no server's child.
    let _ = setsid();
    let _ = rustix::process::chdir("/");
    let limit = getrlimit(Resource::Nofile);
    // A higher hard limit is for the privileged; what there is, is for everybody.
    let higher = limit.maximum.map(|maximum| maximum.max(DESCRIPTORS));
    for limit in [higher, limit.maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).is_ok() {
            break;
        }
    }
}

/// Lets go of standard output: whoever started the keeper may wait for its end.
pub(super) fn close_stdout() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// The lock of the folder that the keeper's socket is in.
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock; `None` if there is a keeper already that answers at the socket.
    ///
    /// # Errors
    /// Those of the file system; DeadlineExceeded if the holder neither answers nor ends.
    pub(super) fn take(socket: &Path) -> Result<Option<Lock>> {
        let folder = socket.parent().ok_or_else(|| invalid(format!("{socket:?} is no path of a socket")))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.context(|| format!("make folder {folder:?}"))?;
        let path = socket.with_extension("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        let file = options.open(&path).context(|| format!("open lock file {path:?}"))?;
        let end = Instant::now() + LOCK_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // One that answers although the lock is free has lost its lock file to
                // somebody who tidied up. It has the containers.
                Ok(()) => return Ok(connect(socket).is_err().then_some(Lock(file))),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(error).context(|| format!("lock {path:?}")),
            }
            if connect(socket).is_ok() {
                return Ok(None);
            }
            if Instant::now() > end {
                return Err(deadline(format!("lock {path:?}: its holder does not answer at {socket:?}")));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lock and socket that the program before has left.
///
/// # Errors
/// If they were not passed on.
pub(super) fn inherit(lock: RawFd, listener: RawFd) -> Result<(Lock, UnixListener)> {
    let lock = inherit::take(lock).context(|| "take over the log keeper's lock")?;
    let listener = inherit::take(listener).context(|| "take over the log keeper's socket")?;
    Ok((Lock(lock.into()), listener.into()))
}

/// Listens at `socket`, for this user only. The lock must be held: what is left there of
/// another keeper is removed.
///
/// # Errors
/// Those of the system.
pub(super) fn listen(socket: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(socket);
    let address = Address::of(socket)?;
    let old = umask(Mode::RWXG | Mode::RWXO);
    let listener = UnixListener::bind(address.path());
    umask(old);
    let listener = listener.context(|| format!("listen at {socket:?}"))?;
    listener.set_nonblocking(true).context(|| format!("listen at {socket:?}"))?;
    Ok(listener)
}

/// Connects to the keeper at `socket`. The connection is non-blocking, and so is this: a
/// keeper that does not accept clients, and has many waiting, refuses further ones.
///
/// # Errors
/// Those of the system: nobody listens there.
pub(super) fn connect(socket: &Path) -> Result<UnixStream> {
    let address = Address::of(socket)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = || -> Result<UnixStream, Errno> {
        let address = SocketAddrUnix::new(address.path())?;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&stream, &address)?;
        Ok(stream.into())
    };
    connected().context(|| format!("connect to {socket:?}"))
}

/// The cgroups that the keeper has made for itself, below those it was started in. So a
/// service manager that ends "the processes of the server's cgroup" finds it apart, and
/// what it uses can be told from what the server uses.
#[derive(Default)]
pub(super) struct OwnCgroups(Vec<PathBuf>);

/// Name of the keeper's cgroup.
const CGROUP: &str = "keeper";

impl OwnCgroups {
    /// Moves this process, in the v2 hierarchy and in v1's `name=systemd`. What is refused
    /// is done without; a process in the root of a hierarchy stays there.
    pub(super) fn enter() -> OwnCgroups {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let mut entered = Vec::new();
        for own in own_cgroups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo")) {
            let path = own.join(CGROUP);
            let moved = match std::fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
                _ => join(&path),
            };
            match moved {
                Ok(()) => entered.push(path),
                Err(error) => debug!(path = %path.display(), %error, "no cgroup of my own"),
            }
        }
        OwnCgroups(entered)
    }

    /// Those that the program before has made for this process.
    pub(super) fn inherit(paths: Vec<PathBuf>) -> OwnCgroups {
        OwnCgroups(paths)
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Goes back and removes them, as far as possible: a last courtesy.
    pub(super) fn leave(self) {
        for path in self.0 {
            let left = path.parent().map(join);
            if left.is_some_and(|left| left.is_ok()) {
                let _ = std::fs::remove_dir(&path);
            }
        }
    }
}

/// Moves this process into the cgroup at `path`.
fn join(path: &Path) -> std::io::Result<()> {
    std::fs::write(path.join("cgroup.procs"), "0")
}

/// Folders of this process's cgroups that matter here, given `/proc/self/cgroup` and
/// `/proc/self/mountinfo`.
fn own_cgroups(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let own = |controllers: &str| {
        cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == controllers).then(|| fields.next()).flatten()
        })
    };
    let mounted = |is_it: &dyn Fn(&str, &str) -> bool| {
        mountinfo.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let (kind, rest) = file_system.split_once(' ')?;
            let options = rest.rsplit(' ').next()?;
            let mut fields = mount.split(' ').skip(3);
            let (root, at) = (fields.next()?, fields.next()?);
            is_it(kind, options).then_some((root, at))
        })
    };
    let v2 = own("").zip(mounted(&|kind, _| kind == "cgroup2"));
    let is_systemd = |kind: &str, options: &str| {
        kind == "cgroup" && options.split(',').any(|option| option == "name=systemd")
    };
    let v1 = own("name=systemd").zip(mounted(&is_systemd));
    [v2, v1]
        .into_iter()
        .flatten()
        .filter_map(|(path, (root, at))| {
            // The mount shows the hierarchy from `root` on.
            let below = Path::new(path).strip_prefix(root).ok()?;
            let is_root = below.as_os_str().is_empty();
            let is_entered = below.file_name().is_some_and(|name| name == CGROUP);
            (!is_root && !is_entered).then(|| Path::new(at).join(below))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_in_both_versions() {
        let mountinfo = "\
30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
31 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
32 24 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let paths = |cgroup| own_cgroups(cgroup, mountinfo);
        assert_eq!(
            paths("0::/system.slice/longshore.service\n"),
            [Path::new("/sys/fs/cgroup/system.slice/longshore.service")]
        );
        assert_eq!(
            paths("9:name=systemd:/system.slice/x.service\n4:memory:/m\n0::/\n"),
            [Path::new("/sys/fs/cgroup/systemd/system.slice/x.service")]
        );
        // The root, and the keeper's own, are left as they are.
        assert!(paths("0::/\n").is_empty());
        assert!(paths("0::/x.service/keeper\n").is_empty());
        assert!(paths("").is_empty());
        // A hierarchy of which a part is mounted.
        let part = "30 24 0:27 /a /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_cgroups("0::/a/b\n", part), [Path::new("/mnt/b")]);
        assert!(own_cgroups("0::/c\n", part).is_empty());
    }

    #[test]
    fn long_paths_can_be_listened_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("x".repeat(120));
        let socket = deep.join("keeper.sock");
        let lock = Lock::take(&socket).expect("taken").expect("nobody has it");
        let _listener = listen(&socket).expect("it listens");
        connect(&socket).expect("it is reached");
        // Another one finds the first at work.
        assert!(Lock::take(&socket).expect("looked").is_none());
        // Also when its lock file was tidied away.
        std::fs::remove_file(socket.with_extension("lock")).expect("removed");
        assert!(Lock::take(&socket).expect("looked").is_none());
        drop(lock);
    }
}
