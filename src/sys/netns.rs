//! Network namespaces: making, pinning, entering and removing them.
//!
//! A namespace that no process holds lives on as a bind mount of its file, the *pin*.
//! Two things are easily done wrong here and are kept in this file:
//!
//! - Whoever enters a namespace does so on a thread that ends afterwards
//!   ([`on_own_thread`]); a pooled thread that could not come back would run other
//!   pods' work in the wrong place (CNI-27).
//! - The directory of the pins must be a mount point of its own **before** the first
//!   pin ([`share_directory`]). If it is not, the first `ip netns add` on the host
//!   makes it one and so hides the pins that stand there: what was hidden can neither
//!   be unmounted nor deleted (EBUSY).

#![allow(unsafe_code)] // unshare and the interface ioctls have no safe form

use std::ffi::c_char;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, FsWord, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::userns::{self, IdMaps, Namespaces, Wanted};
use crate::error::{Context, Error, Result, internal, unknown};

/// The kernel's file system type of namespace files.
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// How many mounts on one pin are taken down; more than a handful means a bug.
const MOUNTS_ON_A_PIN_MAX: usize = 64;

/// How long to wait for another process that prepares the same directory.
const LOCK_TRIES: u32 = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Stack of a thread that makes a few system calls.
const STACK_BYTES: usize = 256 << 10;

/// Runs `work` on a new thread, which ends with it: for work that changes the
/// thread's namespaces.
///
/// The work goes on when the caller's future is dropped.
///
/// # Errors
/// Those of `work`; Internal if it panicked; the system's if there can be no more threads.
pub async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _ = sender.send(span.in_scope(work));
        })
        .context(|| "start a thread")?;
    receiver.await.unwrap_or_else(|_| Err(internal("a bug in longshore: a namespace thread panicked")))
}

/// Runs `work` inside the network namespace pinned at `path`, on a thread of its own.
///
/// # Errors
/// Those of `work`; NotFound if there is no namespace at `path`.
pub async fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = path.to_owned();
    on_own_thread(move || {
        enter(&path)?;
        work()
    })
    .await
}

/// Moves the calling thread into the network namespace at `path`, for good.
fn enter(path: &Path) -> Result<()> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| of_path(errno, path))
        .context(|| format!("open network namespace {path:?}"))?;
    enter_opened(&file).context(|| format!("enter network namespace {path:?}"))
}

fn enter_opened(namespace: &OwnedFd) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

fn of_path(errno: Errno, path: &Path) -> Error {
    match errno {
        Errno::NOENT => crate::error::not_found(format!("there is no {path:?}")),
        other => other.into(),
    }
}

/// Makes a network namespace and pins it at `path`, a new file in a directory that
/// [`share_directory`] has prepared. With `loopback_up` its `lo` is brought up.
///
/// The calling thread stays in the new namespace: call it in [`on_own_thread`].
///
/// # Errors
/// The system's. Messages leave out the file's random name: the kubelet tells repeated
/// events by their text (ERR-10).
pub fn create(path: &Path, loopback_up: bool) -> Result<()> {
    // SAFETY: NEWNET changes nothing but the calling thread's network namespace; no
    // memory or descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.context(|| "make a network namespace")?;
    if loopback_up {
        bring_loopback_up().context(|| "bring up \"lo\" in the new network namespace")?;
    }
    pin(Path::new("/proc/thread-self/ns/net"), path, "network namespace")
}

/// The same inside a new user namespace, which owns it and is pinned at `user_path`: so that
/// whoever is root there may administrate the network (SBX-26). A failure leaves no pin.
///
/// The calling thread stays in the new network namespace: call it in [`on_own_thread`].
///
/// # Errors
/// As for [`create`], and those of user namespaces.
pub fn create_in_user_namespace(
    path: &Path,
    user_path: &Path,
    maps: &IdMaps,
    loopback_up: bool,
) -> Result<()> {
    let Namespaces { user, network } = userns::create(maps, Wanted::UserAndNetwork)?;
    let network = network.ok_or_else(|| internal("a bug in longshore: there is no network namespace"))?;
    if loopback_up {
        enter_opened(&network).context(|| "enter the new network namespace")?;
        bring_loopback_up().context(|| "bring up \"lo\" in the new network namespace")?;
    }
    let opened = |fd: &OwnedFd| PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
    pin(&opened(&user), user_path, "user namespace")?;
    pin(&opened(&network), path, "network namespace").inspect_err(|_| {
        let _ = remove(user_path);
    })
}

/// Pins the network namespace of a process at `path`, where somebody has unmounted or removed
/// its pin. The directory must be shared ([`share_directory`]).
///
/// # Errors
/// The system's.
pub fn pin_again(pid: u32, path: &Path) -> Result<()> {
    if is_alive(path) {
        return Ok(());
    }
    // What is there is the file of the old pin.
    remove(path)?;
    pin(&PathBuf::from(format!("/proc/{pid}/ns/net")), path, "network namespace")
}

/// Mounts the namespace file `source` on a new file at `path`.
fn pin(source: &Path, path: &Path, what: &str) -> Result<()> {
    let create = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::open(path, create, Mode::from_raw_mode(0o444))
        .context(|| format!("create the file of a {what} in {directory:?}"))?;
    rustix::mount::mount_bind(source, path).map_err(|errno| {
        let _ = rustix::fs::unlink(path);
        Error::from(errno).context(format!("mount a {what} in {directory:?}"))
    })
}

/// Sets IFF_UP on `lo` of the calling thread's network namespace.
fn bring_loopback_up() -> std::io::Result<()> {
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq: it consists of integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as c_char;
    }
    // SAFETY: the descriptor is open, and SIOCGIFFLAGS reads the name and writes the
    // flags of the ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call above has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as above; SIOCSIFFLAGS only reads the ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `directory`, which exists, a mount point of its own with shared propagation,
/// as `ip netns add` does; does nothing if it is one.
///
/// Several processes may do it at once: they take turns by the lock on the directory
/// that iproute2 takes as well.
///
/// # Errors
/// The system's; Unknown if another process keeps the lock.
pub fn share_directory(directory: &Path) -> Result<()> {
    let share = || rustix::mount::mount_change(directory, MountPropagationFlags::SHARED);
    match share() {
        // EINVAL says that it is not a mount point.
        Err(Errno::INVAL) => {}
        other => return other.context(|| format!("share mount {directory:?}")),
    }
    // Opened before the mount: through it, what the mount hides stays in reach.
    let below = File::open(directory).context(|| format!("open {directory:?}"))?;
    lock(&below).context(|| format!("lock {directory:?}"))?;
    match share() {
        Err(Errno::INVAL) => {}
        other => return other.context(|| format!("share mount {directory:?}")),
    }
    let is_shared = mount_is_shared(&below).context(|| "read mountinfo")?;
    rustix::mount::mount_bind_recursive(directory, directory)
        .context(|| format!("bind {directory:?} onto itself"))?;
    if !is_shared {
        // Older pins now exist twice, and the hidden one would make the file's deletion
        // fail for ever. Below a shared mount the two go together.
        unmount_children(&below);
    }
    share().context(|| format!("share mount {directory:?}"))
}

fn lock(directory: &File) -> Result<()> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            other => return other.map_err(Error::from),
        }
    }
    Err(unknown("another process holds the lock"))
}

/// Whether the mount that `file` was opened on has shared propagation.
fn mount_is_shared(file: &File) -> Result<bool> {
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim)
        .ok_or_else(|| unknown("fdinfo has no mnt_id"))?;
    for line in BufReader::new(File::open("/proc/thread-self/mountinfo")?).lines() {
        let line = line?;
        // id parent major:minor root mountpoint options [optional fields] - type …
        let mut fields = line.split(' ');
        if fields.next() == Some(id) {
            return Ok(fields.skip(5).take_while(|&field| field != "-").any(|f| f.starts_with("shared:")));
        }
    }
    // A mount outside of this process' root.
    Ok(false)
}

fn unmount_children(directory: &File) {
    let path = format!("/proc/thread-self/fd/{}", directory.as_raw_fd());
    let Ok(entries) = std::fs::read_dir(&path) else { return };
    for entry in entries.flatten() {
        // EINVAL: not a mount point.
        let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// Unmounts and deletes the pin at `path`; what is gone already, or was never mounted
/// (a file left by a reboot, SBX-41), is fine.
///
/// # Errors
/// The system's, for example if the pin is hidden by a later mount.
pub fn remove(path: &Path) -> Result<()> {
    for _ in 0..MOUNTS_ON_A_PIN_MAX {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point.
            Err(Errno::INVAL) => break,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno).context(|| format!("unmount {path:?}")),
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(unknown(format!(
            "delete {path:?}: it is still a mount point, hidden by a mount that was put over its directory later"
        ))),
        Err(errno) => Err(errno).context(|| format!("delete {path:?}")),
    }
}

/// Whether a namespace file is at `path`: a pin, or a link into /proc.
#[must_use]
pub fn is_alive(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}

#[cfg(test)]
pub(crate) mod testing {
    //! A host of a test's own.

    use super::*;

    /// Runs `test` on a thread with network and mount namespaces of its own, which stand
    /// for the host's: bridges, rules and pins vanish with the thread, whatever happens.
    /// /run is an empty folder; mounts are private. Without the right to do so the test
    /// is skipped.
    pub(crate) fn on_own_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if let Err(error) = isolate() {
                    eprintln!("skipped: {error}");
                    return;
                }
                // All threads of this runtime are children of this one and inherit.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .thread_keep_alive(Duration::from_millis(1))
                    .build()
                    .expect("a runtime");
                runtime.block_on(test());
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn isolate() -> Result<()> {
        // SAFETY: only this thread's namespaces and its view of root and working
        // directory change; descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
            .context(|| "make namespaces for the test")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context(|| "make mounts private")?;
        rustix::mount::mount("tmpfs", "/run", "tmpfs", rustix::mount::MountFlags::empty(), None)
            .context(|| "mount /run")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::on_own_host;
    use super::*;
    use crate::sys::userns::IdMap;

    async fn pin(path: &Path) {
        let path = path.to_owned();
        on_own_thread(move || create(&path, true)).await.expect("a namespace");
    }

    fn mounts_on(path: &Path) -> usize {
        let info = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let path = path.to_str().expect("text");
        info.lines().filter(|line| line.split(' ').nth(4) == Some(path)).count()
    }

    fn new_directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("pins").tempdir_in("/run").expect("a folder")
    }

    #[test]
    fn a_new_namespace_is_another_one_and_has_loopback_up() {
        on_own_host(|| async {
            let directory = new_directory();
            let path = directory.path().join("a");
            pin(&path).await;
            assert!(is_alive(&path));
            let address = within(&path, || {
                let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
                std::net::TcpStream::connect(socket.local_addr()?)?;
                Ok(std::fs::read_link("/proc/thread-self/ns/net")?)
            });
            let inside = address.await.expect("lo answers");
            let outside = std::fs::read_link("/proc/thread-self/ns/net").expect("a link");
            assert_ne!(inside, outside, "the caller's thread stayed where it was");
            remove(&path).expect("removed");
            assert!(!path.exists());
            remove(&path).expect("removing is idempotent");
            let gone = within(&path, || Ok(())).await.expect_err("gone");
            assert!(gone.is_not_found(), "{gone:?}");
        });
    }

    /// SBX-26.
    #[test]
    fn a_network_namespace_can_belong_to_a_user_namespace() {
        on_own_host(|| async {
            let directory = new_directory();
            let (path, user_path) = (directory.path().join("net"), directory.path().join("user"));
            let map = IdMap::new(0, 1_000_000, 65536).expect("a mapping");
            let make = |path: PathBuf, user_path: PathBuf| {
                let maps = IdMaps { uids: map, gids: map };
                on_own_thread(move || create_in_user_namespace(&path, &user_path, &maps, true))
            };
            make(path.clone(), user_path.clone()).await.expect("namespaces");
            assert!(is_alive(&path) && is_alive(&user_path));
            within(&path, || std::net::TcpListener::bind("127.0.0.1:0").map(drop).map_err(Error::from))
                .await
                .expect("lo is up");
            let owner = std::process::Command::new("nsenter")
                .arg(format!("--user={}", user_path.display()))
                .arg(format!("--net={}", path.display()))
                .args(["ip", "link", "set", "lo", "down"])
                .status()
                .expect("nsenter runs");
            assert!(owner.success(), "its root administrates the network");
            // Neither is left where the other cannot be made.
            let other = directory.path().join("other");
            make(path.clone(), other.clone()).await.expect_err("taken");
            assert!(is_alive(&path) && !other.exists());
            for path in [&path, &user_path] {
                remove(path).expect("removed");
                assert!(!path.exists());
            }
        });
    }

    #[test]
    fn a_file_left_by_a_reboot_counts_as_gone_and_is_deleted() {
        on_own_host(|| async {
            let directory = new_directory();
            let path = directory.path().join("a");
            std::fs::write(&path, "").expect("a file");
            assert!(!is_alive(&path));
            remove(&path).expect("removed");
            assert!(!path.exists());
        });
    }

    #[test]
    fn a_pin_in_use_and_one_mounted_twice_are_removed() {
        on_own_host(|| async {
            let directory = new_directory();
            let path = directory.path().join("a");
            pin(&path).await;
            rustix::mount::mount_bind(&path, &path).expect("a second mount");
            let _open = File::open(&path).expect("the namespace");
            remove(&path).expect("removed");
            assert!(!path.exists());
        });
    }

    #[test]
    fn the_directory_is_shared_once_whatever_the_number_of_callers() {
        on_own_host(|| async {
            let directory = new_directory();
            let calls = (0..8).map(|_| {
                let path = directory.path().to_owned();
                on_own_thread(move || share_directory(&path))
            });
            for result in futures_util::future::join_all(calls).await {
                result.expect("shared");
            }
            assert_eq!(mounts_on(directory.path()), 1);
            assert!(mount_is_shared(&File::open(directory.path()).expect("open")).expect("known"));
            rustix::mount::unmount(directory.path(), UnmountFlags::DETACH).expect("unmounted");
        });
    }

    #[test]
    fn pins_older_than_the_mount_can_be_removed() {
        for parent_is_shared in [false, true] {
            on_own_host(move || async move {
                if parent_is_shared {
                    rustix::mount::mount_change("/run", MountPropagationFlags::SHARED).expect("shared");
                }
                let directory = new_directory();
                let path = directory.path().join("a");
                pin(&path).await;
                share_directory(directory.path()).expect("shared");
                assert!(is_alive(&path), "the older pin still stands");
                remove(&path).expect("removed");
                assert!(!path.exists());
                rustix::mount::unmount(directory.path(), UnmountFlags::DETACH).expect("unmounted");
            });
        }
    }

    #[test]
    fn a_hidden_pin_is_reported_as_such() {
        on_own_host(|| async {
            let directory = new_directory();
            let path = directory.path().join("a");
            pin(&path).await;
            rustix::mount::mount_bind_recursive(directory.path(), directory.path()).expect("hidden");
            let error = remove(&path).expect_err("the file is busy");
            assert!(error.message().contains("hidden by a mount"), "{error}");
        });
    }
}
