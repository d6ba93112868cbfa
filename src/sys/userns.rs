//! User namespaces: their id mappings, and how one is made without being in it.
//!
//! A process of several threads cannot enter a new user namespace, so a child is made for
//! the moment, a copy that makes system calls and nothing else:
//!
//! ```text
//! server ── clone ──▶ child: effective uid of the namespace's root, unshare
//!        ◀─ done ───
//!        ── uid_map, gid_map; opens the namespaces ──▶
//!        ── SIGKILL, wait ──▶ ✗
//! ```
//! The kernel counts namespaces by the effective uid of who made the user namespace they
//! are in: that is the pod's own root, so that a pod which makes namespaces without end
//! meets a limit of its own, not that of the host's root. What was opened keeps the
//! namespaces; the child is gone when [`create`] returns, and when this process is killed.
//!
//! All functions block.

use std::ffi::{c_int, c_long};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::error::{Context, Error, Result, invalid, unknown};

/// Ids of a namespace and the host's ids that they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdMap {
    /// The first id inside.
    pub container_id: u32,
    /// The host's id for it.
    pub host_id: u32,
    /// How many ids follow one another.
    pub length: u32,
}

impl IdMap {
    /// A mapping.
    ///
    /// # Errors
    /// InvalidArgument for an empty one and for one that ends behind the last id.
    pub fn new(container_id: u32, host_id: u32, length: u32) -> Result<IdMap> {
        let map = IdMap { container_id, host_id, length };
        let is_within = |first: u32| first.checked_add(length).is_some();
        if length == 0 || !is_within(container_id) || !is_within(host_id) {
            return Err(invalid(format!("{map} is not a mapping of ids (inside:host:length)")));
        }
        Ok(map)
    }

    /// The host's id for one inside; none if it is not mapped.
    #[must_use]
    pub fn to_host(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container_id).filter(|offset| *offset < self.length)?;
        self.host_id.checked_add(offset)
    }
}

/// As snapshotters and mount options have it: `inside:host:length`.
impl std::fmt::Display for IdMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.container_id, self.host_id, self.length)
    }
}

/// The mappings of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdMaps {
    /// Of users.
    pub uids: IdMap,
    /// Of groups.
    pub gids: IdMap,
}

impl IdMaps {
    /// The host's user and group for those inside; none if either is not mapped.
    #[must_use]
    pub fn to_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((self.uids.to_host(uid)?, self.gids.to_host(gid)?))
    }
}

/// Namespaces that exist for as long as they are open or pinned.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace.
    pub user: OwnedFd,
    /// A network namespace that it owns, where one was asked for.
    pub network: Option<OwnedFd>,
}

/// Which namespaces are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A user namespace.
    User,
    /// A user namespace, and a network namespace that it owns.
    UserAndNetwork,
}

/// Makes a user namespace with these mappings.
///
/// # Errors
/// The system's: it may have no user namespaces, or no more of them.
pub fn create(maps: &IdMaps, wanted: Wanted) -> Result<Namespaces> {
    let mut flags = libc::CLONE_NEWUSER;
    if wanted == Wanted::UserAndNetwork {
        flags |= libc::CLONE_NEWNET;
    }
    let child = Child::start(maps.uids.to_host(0).unwrap_or(0), flags).context(|| "make a user namespace")?;
    child.wait_until_unshared().context(|| "make a user namespace")?;
    let of_child = |name: &str| format!("/proc/{}/{name}", child.pid);
    for (name, map) in [("uid_map", maps.uids), ("gid_map", maps.gids)] {
        let IdMap { container_id, host_id, length } = map;
        // The kernel takes the text in one write only.
        std::fs::write(of_child(name), format!("{container_id} {host_id} {length}\n"))
            .context(|| format!("map the ids {map} in a new user namespace"))?;
    }
    let open = |name: &str| {
        File::open(of_child(name))
            .map(OwnedFd::from)
            .context(|| format!("open {name} of a new user namespace"))
    };
    let network = if wanted == Wanted::UserAndNetwork { Some(open("ns/net")?) } else { None };
    Ok(Namespaces { user: open("ns/user")?, network })
}

/// The child; dropping it ends it.
struct Child {
    pid: c_long,
    handle: OwnedFd,
    /// The other end of the child's socket: its word, and while it is open the child stays.
    socket: OwnedFd,
}

/// `struct clone_args` of the kernel.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// No handler of the server runs in the child (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

impl Child {
    fn start(euid: u32, unshare: c_int) -> Result<Child> {
        let (socket, inner) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut handle: RawFd = -1;
        let mut arguments = CloneArgs {
            flags: libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
            pidfd: (&raw mut handle).expose_provenance() as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        // SAFETY: the structure is the kernel's, and lives through the call, which writes to
        // `handle` alone. Without CLONE_VM the child has memory of its own, a copy, in which
        // locks may be held by threads that it does not have: `run_child` takes none.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
        match pid {
            0 => run_child(inner.as_raw_fd(), euid, unshare),
            1.. => {
                // SAFETY: the kernel has just opened this descriptor for the caller.
                let handle = unsafe { OwnedFd::from_raw_fd(handle) };
                Ok(Child { pid, handle, socket })
            }
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    /// Waits for the child's word.
    fn wait_until_unshared(&self) -> Result<()> {
        let mut word = [0; size_of::<c_int>()];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, word.as_mut_slice(), RecvFlags::empty())
        })?;
        if length != word.len() {
            return Err(unknown("the process for it was killed"));
        }
        match c_int::from_ne_bytes(word) {
            0 => Ok(()),
            errno => Err(Error::from(std::io::Error::from_raw_os_error(errno))),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.handle, Signal::KILL);
        let wait = || rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED);
        if let Err(error) = rustix::io::retry_on_intr(wait) {
            tracing::warn!(pid = self.pid, %error, "the process of a user namespace was not waited for");
        }
    }
}

/// What the child does: system calls, and nothing that could take a lock or allocate.
fn run_child(socket: RawFd, euid: u32, unshare: c_int) -> ! {
    const CAPABILITIES_V3: u32 = 0x2008_0522;
    let mut header = [CAPABILITIES_V3, 0u32];
    let mut capabilities = [0u32; 6];
    // SAFETY: each call is given numbers, or pointers to arrays of the size that the kernel
    // reads or writes, which live here. The process has this one thread and never returns:
    // closing every descriptor but one cannot take one away from anybody.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // So that nothing of the server stays open because of a child (Linux 5.9).
        libc::syscall(libc::SYS_close_range, 0, socket - 1, 0);
        libc::syscall(libc::SYS_close_range, socket + 1, u32::MAX, 0);
        let is_done = libc::syscall(libc::SYS_capget, header.as_mut_ptr(), capabilities.as_mut_ptr()) == 0
            && libc::syscall(libc::SYS_setresuid, u32::MAX, euid, u32::MAX) == 0
            // Another effective uid takes them away, and some systems want them here.
            && libc::syscall(libc::SYS_capset, header.as_mut_ptr(), capabilities.as_ptr()) == 0
            && libc::syscall(libc::SYS_unshare, unshare) == 0;
        let word: c_int = if is_done { 0 } else { *libc::__errno_location() };
        libc::syscall(libc::SYS_write, socket, &raw const word, size_of::<c_int>());
        // Until the server is gone, should it not have killed this process before.
        let mut byte = 0u8;
        libc::syscall(libc::SYS_read, socket, &raw mut byte, 1);
        libc::syscall(libc::SYS_exit_group, 0);
    }
    // Not reached: the call above does not return.
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn maps(host: u32, length: u32) -> IdMaps {
        let map = IdMap::new(0, host, length).expect("a mapping");
        IdMaps { uids: map, gids: map }
    }

    #[test]
    fn ids_are_mapped_within_their_range_alone() {
        let map = IdMap::new(10, 100_000, 5).expect("a mapping");
        assert_eq!((map.to_host(10), map.to_host(14)), (Some(100_000), Some(100_004)));
        assert_eq!((map.to_host(9), map.to_host(15)), (None, None));
        assert_eq!(map.to_string(), "10:100000:5");
        for (container, host, length) in [(0, 0, 0), (0, u32::MAX, 1), (u32::MAX, 0, 1), (1, 1, u32::MAX)] {
            let error = IdMap::new(container, host, length).expect_err("no mapping");
            assert_eq!(error.kind(), Kind::InvalidArgument);
        }
        IdMap::new(0, 0, u32::MAX).expect("all that there are");
    }

    #[test]
    fn a_namespace_has_its_mappings_and_outlives_the_child() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let mut maps = maps(1_000_000, 65536);
        maps.gids.host_id = 2_000_000;
        let made = create(&maps, Wanted::UserAndNetwork).expect("namespaces");
        let network = made.network.expect("a network namespace");
        let owner = rustix::fs::readlink(format!("/proc/self/fd/{}", made.user.as_raw_fd()), Vec::new());
        assert!(owner.expect("a link").to_string_lossy().starts_with("user:["));
        // Whoever joins it sees the mappings, and owns the network namespace.
        let inside = std::process::Command::new("nsenter")
            .arg(format!("--user=/proc/{}/fd/{}", std::process::id(), made.user.as_raw_fd()))
            .arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()))
            .args([
                "sh",
                "-c",
                "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; ip link set lo up; id -u",
            ])
            .output()
            .expect("nsenter runs");
        let text = String::from_utf8_lossy(&inside.stdout);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words,
            ["0", "1000000", "65536", "0", "2000000", "65536", "allow", "0"],
            "{}",
            String::from_utf8_lossy(&inside.stderr)
        );
    }

    #[test]
    fn a_mapping_that_the_kernel_does_not_take_is_an_error() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let wrong = IdMap { container_id: 0, host_id: u32::MAX, length: 5 };
        let error = create(&IdMaps { uids: wrong, gids: wrong }, Wanted::User).expect_err("overflows");
        assert!(error.message().contains("map the ids 0:4294967295:5"), "{error}");
    }
}
