//! The network namespace of a pod: a pinned file below the configured directory (SBX-24).
//!
//! The path is chosen before the namespace is made, so that the pod's record can hold it
//! first (SBX-03); making and removing it may then be repeated or rolled back by path.

use std::path::{Path, PathBuf};

use crate::config::Loopback;
use crate::error::{Context, Result};
use crate::flow;
use crate::ids::random_hex;
use crate::points;
use crate::sys;
use crate::sys::userns::IdMaps;
use crate::trace;

/// A new, random path in `directory`: `cni-` and the text form of a UUID.
#[must_use]
pub fn new_path(directory: &Path) -> PathBuf {
    let hex = random_hex::<16>();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    directory.join(format!("cni-{a}-{b}-{c}-{d}-{e}"))
}

/// Makes a network namespace and pins it at `path`, which must not exist.
///
/// The directory is created when missing and made a shared mount point before its first
/// pin. With [`Loopback::Internal`] the namespace's `lo` is up (CNI-26).
///
/// # Errors
/// The system's.
pub async fn create(path: &Path, loopback: Loopback) -> Result<()> {
    let path = path.to_owned();
    sys::netns::on_own_thread(move || {
        prepare(&path)?;
        let _step = trace::namespace("make network", &path);
        points::before("make a network namespace")?;
        sys::netns::create(&path, loopback == Loopback::Internal)
    })
    .await
}

/// Makes a user namespace, pinned at `user_path`, and a network namespace that it owns,
/// pinned at `path` as by [`create`] (SBX-26). The folder of `user_path` is created when
/// missing; a failure leaves no pin.
///
/// # Errors
/// The system's.
pub async fn create_in_user_namespace(
    path: &Path,
    user_path: &Path,
    maps: IdMaps,
    loopback: Loopback,
) -> Result<()> {
    let (path, user_path) = (path.to_owned(), user_path.to_owned());
    sys::netns::on_own_thread(move || {
        prepare(&path)?;
        let folder = user_path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).context(|| format!("create {folder:?}"))?;
        let _step = trace::namespace("make user and network", &path);
        points::before("make a user and a network namespace")?;
        sys::netns::create_in_user_namespace(&path, &user_path, &maps, loopback == Loopback::Internal)
    })
    .await
}

/// Pins the namespace of the process `pid` at `path` again; a pin that is there is fine.
///
/// # Errors
/// The system's.
pub async fn pin_again(pid: u32, path: &Path) -> Result<()> {
    let path = path.to_owned();
    flow::blocking(move || {
        prepare(&path)?;
        sys::netns::pin_again(pid, &path)
    })
    .await
}

/// Prepares the directory of pins.
fn prepare(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).context(|| format!("create {directory:?}"))?;
    sys::netns::share_directory(directory)
}

/// Removes the pin at `path`, and with it the namespace unless processes still use it.
/// What is gone already is fine, and so is a file that is no namespace: it was left by a
/// reboot and is deleted (SBX-41).
///
/// # Errors
/// The system's.
pub async fn remove(path: &Path) -> Result<()> {
    let path = path.to_owned();
    flow::blocking(move || {
        let _step = trace::namespace("remove network", &path);
        points::before("remove a network namespace")?;
        sys::netns::remove(&path)
    })
    .await
}

/// Whether there is a namespace at `path`.
pub async fn is_alive(path: &Path) -> bool {
    let path = path.to_owned();
    flow::blocking(move || Ok(sys::netns::is_alive(&path))).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::testing::on_own_host;
    use std::process::Command;

    #[test]
    fn paths_look_like_the_plugins_and_differ() {
        let (a, b) = (new_path(Path::new("/var/run/netns")), new_path(Path::new("/var/run/netns")));
        assert_ne!(a, b);
        let name = a.file_name().and_then(|name| name.to_str()).expect("text");
        let groups: Vec<usize> = name.split('-').map(str::len).collect();
        assert_eq!((groups, name.starts_with("cni-")), (vec![3, 8, 4, 4, 4, 12], true));
        assert_eq!(a.parent(), Some(Path::new("/var/run/netns")));
    }

    fn ip(arguments: &[&str]) {
        let status = Command::new("ip").args(arguments).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {arguments:?}");
    }

    #[test]
    fn pins_survive_ip_netns_and_are_removed_after_it() {
        on_own_host(|| async {
            let directory = Path::new("/run/netns");
            let (first, second) = (new_path(directory), new_path(directory));
            create(&first, Loopback::Internal).await.expect("created");
            ip(&["netns", "add", "someone"]);
            create(&second, Loopback::Internal).await.expect("created");
            ip(&["netns", "add", "else"]);
            ip(&["netns", "del", "someone"]);
            for path in [&first, &second] {
                assert!(is_alive(path).await);
                remove(path).await.expect("removed");
                assert!(!is_alive(path).await && !path.exists());
                remove(path).await.expect("idempotent");
            }
            ip(&["netns", "del", "else"]);
        });
    }

    #[test]
    fn ip_netns_may_come_first() {
        on_own_host(|| async {
            ip(&["netns", "add", "someone"]);
            let path = new_path(Path::new("/run/netns"));
            create(&path, Loopback::Internal).await.expect("created");
            ip(&["netns", "del", "someone"]);
            remove(&path).await.expect("removed");
            assert!(!path.exists());
        });
    }

    #[test]
    fn many_at_once_all_stand() {
        on_own_host(|| async {
            let paths: Vec<PathBuf> = (0..16).map(|_| new_path(Path::new("/run/netns"))).collect();
            let made = paths.iter().map(|path| create(path, Loopback::Plugin));
            for result in futures_util::future::join_all(made).await {
                result.expect("created");
            }
            for path in &paths {
                assert!(is_alive(path).await);
                remove(path).await.expect("removed");
            }
            assert_eq!(std::fs::read_dir("/run/netns").expect("the directory").count(), 0);
        });
    }

    #[test]
    fn a_path_that_is_taken_is_refused_and_left_alone() {
        on_own_host(|| async {
            let path = new_path(Path::new("/run/netns"));
            create(&path, Loopback::Internal).await.expect("created");
            let error = create(&path, Loopback::Internal).await.expect_err("taken");
            assert!(!error.message().contains("cni-"), "random text in an event: {error}");
            assert!(is_alive(&path).await);
        });
    }
}
