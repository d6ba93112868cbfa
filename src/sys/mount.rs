//! Mounts as containerd's snapshotters describe them: a type, a source and options as
//! in fstab.
//!
//! [`mount_all`] makes them at a place of the host, [`unmount_all`] takes them away
//! again. What is only looked at for a moment is mounted in [`private_namespace`]: a
//! mount namespace that goes away with the call, so that no mount can be left behind
//! however the call ends, and that nobody else ever sees.
//!
//! mount(2) takes one page of options. An image of many layers has more than that in
//! its `lowerdir` list; its paths are then given relative to the folder that they
//! share, from a thread with a working directory of its own (which also works on
//! kernels whose overlay file system lacks the newer mount calls).
//!
//! All functions block.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::mountinfo;
use crate::error::{Collected, Context, Result, internal, invalid, unimplemented, unknown};
use crate::points;
use crate::trace;

/// The most options that mount(2) takes, with the NUL at the end: one page.
const OPTIONS_BYTES_MAX: usize = 4096;

/// The most mounts over one another that are taken away.
const STACK_MAX: usize = 64;

/// A mount as snapshotters give it and tasks take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// bind, overlay, …
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, below the root file system; mostly empty.
    pub target: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

/// Mounts `mounts` in order at `target`, which exists, or none of them.
///
/// # Errors
/// InvalidArgument or Unimplemented for options that cannot be meant or are not
/// served; else the kernel's reason, with type and source.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    let _step = trace::mount("mount", target);
    points::before("mount")?;
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            let mut errors = Collected::default();
            errors.push(Err(error));
            for _ in 0..done {
                errors.push(unmount(target).map(drop));
            }
            return errors.finish();
        }
    }
    Ok(())
}

/// Makes the mount at `target` read-only if it is not: for everybody who comes by this
/// path, whatever the file system underneath allows.
///
/// # Errors
/// The kernel's reason.
pub fn set_read_only(target: &Path) -> Result<()> {
    let _step = trace::mount("make read-only", target);
    points::before("make a mount read-only")?;
    let what = || format!("make the mount at {target:?} read-only");
    let now = rustix::fs::statvfs(target).context(what)?.f_flag;
    if now.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").context(what)
}

/// Takes away everything that is mounted at `target`; nothing there is fine.
///
/// # Errors
/// The kernel's reason.
pub fn unmount_all(target: &Path) -> Result<()> {
    let _step = trace::mount("unmount", target);
    points::before("unmount")?;
    for _ in 0..STACK_MAX {
        if !unmount(target)? {
            return Ok(());
        }
    }
    Err(unknown(format!("unmount {target:?}: still a mount point after {STACK_MAX} times")))
}

/// Takes away everything that is mounted at `folder` or below it, the deepest first. Links in
/// the path to it are followed: the kernel's table has none. No folder is fine.
///
/// # Errors
/// The kernel's reason.
pub fn unmount_below(folder: &Path) -> Result<()> {
    let _step = trace::mount("unmount below", folder);
    points::before("unmount what is below a folder")?;
    let folder = match folder.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("find {folder:?}"))?,
    };
    let mut below: Vec<PathBuf> = mountinfo::read()?
        .into_iter()
        .map(|mount| mount.path)
        .filter(|path| path.starts_with(&folder))
        .collect();
    below.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let mut errors = Collected::default();
    for path in below {
        errors.push(unmount(&path).map(drop));
    }
    errors.finish()
}

/// Mounts a tmpfs at `target`, as a pod's /dev/shm wants it (SBX-20): nosuid, nodev,
/// noexec, and `options` (`mode=…,size=…`).
///
/// # Errors
/// The kernel's reason.
pub fn tmpfs(target: &Path, options: &str) -> Result<()> {
    let _step = trace::mount("tmpfs", target);
    points::before("mount a tmpfs")?;
    let what = || format!("mount {target:?} as tmpfs");
    let options = CString::new(options).map_err(|_| invalid("a mount option holds a NUL")).context(what)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("shm", target, "tmpfs", flags, Some(options.as_c_str())).context(what)
}

/// Takes away the topmost mount, and says whether there was one.
fn unmount(target: &Path) -> Result<bool> {
    // Detached, so that a process that still has a file open does not keep it.
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context(|| format!("unmount {target:?}")),
    }
}

/// Runs `work` on a thread with a mount namespace of its own, which ends with it.
///
/// Mounts that `work` makes are seen by nobody else; mounts that others take away
/// meanwhile are taken away here as well.
///
/// # Errors
/// Those of `work`, or the kernel's refusal of a new namespace.
pub fn private_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_thread(UnshareFlags::NEWNS, || {
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags)
            .context(|| "keep the mounts of a new mount namespace to itself")?;
        work()
    })
}

fn on_thread<T: Send>(own: UnshareFlags, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".into()).spawn_scoped(scope, move || {
            unshare(own).context(|| format!("unshare {own:?}"))?;
            work()
        });
        let joined = thread.context(|| "start a thread for mounts")?.join();
        joined.unwrap_or_else(|_| Err(internal("a bug in longshore: the mount thread panicked")))
    })
}

#[allow(unsafe_code)] // see SAFETY
fn unshare(what: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the call is unsafe for UnshareFlags::FILES alone, which would part the
    // calling thread from descriptors that others hold. on_thread, the only caller,
    // is given NEWNS or FS, which part its fresh thread from the others' mounts and
    // working directory.
    unsafe { rustix::thread::unshare_unsafe(what) }
}

/// fstab-style options, sorted by how mount(2) wants them.
#[derive(Debug, Default, PartialEq)]
struct Options {
    is_bind: bool,
    is_recursive: bool,
    flags: Vec<(bool, MountFlags)>,
    propagation: Option<MountPropagationFlags>,
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Result<Options> {
        let mut parsed = Options::default();
        for option in options {
            match option.as_str() {
                "defaults" => {}
                "bind" => parsed.is_bind = true,
                "rbind" => (parsed.is_bind, parsed.is_recursive) = (true, true),
                "loop" | "remount" => {
                    return Err(unimplemented(format!("the mount option {option:?} is not served")));
                }
                other if other.starts_with("uidmap=") || other.starts_with("gidmap=") => {
                    return Err(unimplemented("mounts with mapped ids are not served"));
                }
                other => {
                    if let Some(flag) = flag(other) {
                        parsed.flags.push(flag);
                    } else if let Some(propagation) = propagation(other) {
                        parsed.propagation = Some(propagation);
                    } else if other.contains('\0') {
                        return Err(invalid(format!("the mount option {other:?} holds a NUL")));
                    } else if !other.is_empty() {
                        parsed.data.push(other.to_owned());
                    }
                }
            }
        }
        Ok(parsed)
    }

    /// The flags that are on in the end: a later option goes over an earlier one.
    fn flags(&self) -> MountFlags {
        self.flags.iter().fold(MountFlags::empty(), |mut all, (on, flag)| {
            all.set(*flag, *on);
            all
        })
    }
}

fn flag(option: &str) -> Option<(bool, MountFlags)> {
    Some(match option {
        "ro" => (true, MountFlags::RDONLY),
        "rw" => (false, MountFlags::RDONLY),
        "nosuid" => (true, MountFlags::NOSUID),
        "suid" => (false, MountFlags::NOSUID),
        "nodev" => (true, MountFlags::NODEV),
        "dev" => (false, MountFlags::NODEV),
        "noexec" => (true, MountFlags::NOEXEC),
        "exec" => (false, MountFlags::NOEXEC),
        "sync" => (true, MountFlags::SYNCHRONOUS),
        "async" => (false, MountFlags::SYNCHRONOUS),
        "dirsync" => (true, MountFlags::DIRSYNC),
        "noatime" => (true, MountFlags::NOATIME),
        "atime" => (false, MountFlags::NOATIME),
        "nodiratime" => (true, MountFlags::NODIRATIME),
        "diratime" => (false, MountFlags::NODIRATIME),
        "relatime" => (true, MountFlags::RELATIME),
        "norelatime" => (false, MountFlags::RELATIME),
        "strictatime" => (true, MountFlags::STRICTATIME),
        "nostrictatime" => (false, MountFlags::STRICTATIME),
        "lazytime" => (true, MountFlags::LAZYTIME),
        "nosymfollow" => (true, MountFlags::NOSYMFOLLOW),
        "silent" => (true, MountFlags::SILENT),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    use MountPropagationFlags as P;
    Some(match option {
        "private" => P::PRIVATE,
        "rprivate" => P::PRIVATE | P::REC,
        "shared" => P::SHARED,
        "rshared" => P::SHARED | P::REC,
        "slave" => P::DOWNSTREAM,
        "rslave" => P::DOWNSTREAM | P::REC,
        "unbindable" => P::UNBINDABLE,
        "runbindable" => P::UNBINDABLE | P::REC,
        _ => return None,
    })
}

fn mount_one(mount: &Mount, target: &Path) -> Result<()> {
    let what = || format!("mount {:?} ({}) at {target:?}", mount.source, mount.kind);
    let options = Options::parse(&mount.options).context(what)?;
    if mount.target.is_empty() {
        return mount_at(mount, &options, target).context(what);
    }
    // A path within what was mounted before, whose links are not to be trusted.
    let root = rustix::fs::openat(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let below = rustix::fs::openat2(
        root.context(what)?,
        mount.target.as_str(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .context(|| format!("{}: {:?} within it", what(), mount.target))?;
    mount_at(mount, &options, Path::new(&format!("/proc/self/fd/{}", below.as_raw_fd()))).context(what)
}

fn mount_at(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    let flags = options.flags();
    if options.is_bind {
        if options.is_recursive {
            rustix::mount::mount_bind_recursive(mount.source.as_str(), target)?;
        } else {
            rustix::mount::mount_bind(mount.source.as_str(), target)?;
        }
        // A bind mount takes its flags in a second step only.
        if !flags.is_empty() {
            let flags = MountFlags::BIND | flags;
            if let Err(error) = rustix::mount::mount_remount(target, flags, c"") {
                unmount(target)?;
                return Err(error).context(|| "change the flags of the bind mount");
            }
        }
    } else {
        let (data, base) = overlay_relative(mount, &options.data)?;
        let data = CString::new(data).map_err(|_| invalid("a mount option holds a NUL"))?;
        let call = || {
            rustix::mount::mount(
                mount.source.as_str(),
                target,
                mount.kind.as_str(),
                flags,
                Some(data.as_c_str()),
            )
            .map_err(crate::error::Error::from)
        };
        match base {
            None => call()?,
            Some(base) => on_thread(UnshareFlags::FS, || {
                std::env::set_current_dir(&base).context(|| format!("change to {base:?}"))?;
                call()
            })?,
        }
    }
    if let Some(propagation) = options.propagation {
        rustix::mount::mount_change(target, propagation).context(|| "change the propagation")?;
    }
    Ok(())
}

/// The options as one text; where they are too long for mount(2) and of an overlay,
/// with `lowerdir` relative to a folder, which is given too.
fn overlay_relative(mount: &Mount, data: &[String]) -> Result<(String, Option<PathBuf>)> {
    let text = data.join(",");
    if text.len() < OPTIONS_BYTES_MAX {
        return Ok((text, None));
    }
    let too_long = || {
        Err(unimplemented(format!(
            "{} bytes of mount options are more than the kernel takes ({OPTIONS_BYTES_MAX})",
            text.len()
        )))
    };
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="));
    // A backslash escapes a colon within a path: too rare to take apart.
    let Some(lower) = lower.filter(|lower| mount.kind == "overlay" && !lower.contains('\\')) else {
        return too_long();
    };
    let Some(base) = common_folder(lower.split(':')) else { return too_long() };
    let relative: Vec<&str> = lower.split(':').filter_map(|path| path.strip_prefix(&base)).collect();
    let relative = format!("lowerdir={}", relative.join(":"));
    let options = data
        .iter()
        .map(|option| if option.starts_with("lowerdir=") { relative.as_str() } else { option.as_str() });
    let short = options.collect::<Vec<_>>().join(",");
    if short.len() < OPTIONS_BYTES_MAX { Ok((short, Some(base.into()))) } else { too_long() }
}

/// The longest folder, with the slash at its end, that all `paths` are below.
pub(super) fn common_folder<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let first = paths.next()?;
    let mut common = &first[..=first.get(..first.len().checked_sub(1)?)?.rfind('/')?];
    for path in paths {
        while !path.starts_with(common) || path.len() == common.len() {
            common = &common[..=common[..common.len() - 1].rfind('/')?];
        }
    }
    (common.starts_with('/')).then(|| common.to_owned())
}

#[cfg(test)]
mod tests;
