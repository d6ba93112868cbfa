//! The FIFOs between a shim and whoever reads a process's output.
//!
//! Their place is that of the built-in plugin (COX-09):
//! `<state>/containers/<id>/io/<digits>/<id>-{stdin,stdout,stderr}`, where an exec
//! process of the container has digits of its own and its exec id in the names. Those of
//! a task that runs already are taken from the task, never guessed.
//!
//! Both ends are opened without waiting for the other (VER-13): the reader here with
//! `O_NONBLOCK`, so that the shim's blocking open for writing returns at once.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde::{Deserialize, Serialize};

use crate::error::{Collected, Context, Result, precondition};
use crate::points;
use crate::trace;

/// How often a new random folder is tried.
const ATTEMPTS: usize = 16;

/// The standard streams that a process shall have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; with a terminal there is none (CTR-10).
    pub stderr: bool,
}

/// The FIFOs of a container or of an exec process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fifos {
    /// Standard input.
    pub stdin: Option<PathBuf>,
    /// Standard output.
    pub stdout: Option<PathBuf>,
    /// Standard error.
    pub stderr: Option<PathBuf>,
}

/// Which file a path named: a FIFO that was made anew is another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Fifos {
    /// Makes the FIFOs of `process` (the container's id, or an exec id) of the container
    /// `container_id`. Blocking.
    ///
    /// # Errors
    /// Those of the file system; nothing is left behind then.
    pub fn make(state: &Path, container_id: &str, process: &str, wanted: Wanted) -> Result<Fifos> {
        let _step = trace::file("make FIFOs", Path::new(process));
        points::before("make FIFOs")?;
        let container = state.join("containers").join(container_id);
        make_folders(&container, 0o755)?;
        let io = container.join("io");
        make_folders(&io, 0o700)?;
        let folder = make_random_folder(&io)?;
        let path = |name: &str, is_wanted: bool| is_wanted.then(|| folder.join(format!("{process}-{name}")));
        let fifos = Fifos {
            stdin: path("stdin", wanted.stdin),
            stdout: path("stdout", wanted.stdout),
            stderr: path("stderr", wanted.stderr),
        };
        for path in fifos.paths() {
            let made = mkfifoat(CWD, path, Mode::RWXU).context(|| format!("make FIFO {path:?}"));
            if let Err(error) = made {
                let _ = fifos.remove();
                let _ = std::fs::remove_dir(&folder);
                return Err(error);
            }
        }
        Ok(fifos)
    }

    /// The FIFOs of a process as containerd tells them; empty means none.
    #[must_use]
    pub fn from_task(stdin: &str, stdout: &str, stderr: &str) -> Fifos {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        Fifos { stdin: path(stdin), stdout: path(stdout), stderr: path(stderr) }
    }

    /// The sets of FIFOs in a folder, by the process whose they are. Blocking; what cannot
    /// be read is not there.
    #[must_use]
    pub fn found_in(folder: &Path) -> HashMap<String, Fifos> {
        let mut found: HashMap<String, Fifos> = HashMap::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some((process, stream)) = name.to_str().and_then(|name| name.rsplit_once('-')) else {
                continue;
            };
            let fifos = found.entry(process.to_owned()).or_default();
            let path = match stream {
                "stdin" => &mut fifos.stdin,
                "stdout" => &mut fifos.stdout,
                "stderr" => &mut fifos.stderr,
                _ => continue,
            };
            *path = Some(entry.path());
        }
        found
    }

    /// Opens the other ends of a shim's, which waits for nobody then. Nothing is read or
    /// written. What cannot be opened is left out. Blocking.
    #[must_use]
    pub fn hold(&self) -> Vec<OwnedFd> {
        let outputs = [&self.stdout, &self.stderr].into_iter().filter_map(|path| path.as_deref());
        let outputs = outputs.filter_map(|path| open_reader(path, false).ok()).map(|(fd, _)| fd);
        outputs.chain(self.stdin.as_deref().and_then(|path| open_writer(path).ok())).collect()
    }

    /// Removes the FIFOs and the folder that was made for them. What is gone already is
    /// fine, and so is a folder that holds something else. Blocking.
    ///
    /// # Errors
    /// Those of the file system, after all of it was tried.
    pub fn remove(&self) -> Result<()> {
        let _step = self.paths().next().map(|path| trace::file("remove FIFOs", path));
        points::before("remove FIFOs")?;
        let mut errors = Collected::default();
        for path in self.paths() {
            let removed = gone(std::fs::remove_file(path));
            errors.push(removed.context(|| format!("remove FIFO {path:?}")));
        }
        // All of one set stand in one folder.
        if let Some(folder) = self.paths().next().and_then(|path| path.parent()) {
            let removed = match std::fs::remove_dir(folder) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => gone(other),
            };
            errors.push(removed.context(|| format!("remove folder {folder:?}")));
        }
        errors.finish()
    }

    /// An empty path is containerd's form of "none".
    #[must_use]
    pub fn to_task(path: Option<&Path>) -> String {
        path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().filter_map(|path| path.as_deref())
    }
}

/// Opens a FIFO for reading, whether or not somebody writes.
///
/// `started` says that the writer has opened it before: if there is none now, this is
/// the end and not the time before the beginning.
///
/// # Errors
/// FailedPrecondition if it is something else than a FIFO; those of the file system.
pub(super) fn open_reader(path: &Path, started: bool) -> Result<(OwnedFd, Identity)> {
    let file = open(path, OpenOptions::new().read(true))?;
    let identity = identity_of(&file.metadata().context(|| format!("open FIFO {path:?}"))?);
    if started {
        // A reader is told of a hang-up only by writers that came after it: be one.
        let _ = open(path, OpenOptions::new().write(true))?;
    }
    Ok((file.into(), identity))
}

/// Opens a FIFO for writing, whether or not somebody reads, so that a reader sees no end
/// as long as this is held.
///
/// # Errors
/// As [`open_reader`].
pub(super) fn open_writer(path: &Path) -> Result<OwnedFd> {
    // Without a reader only opening both ends succeeds. The reading one is let go of
    // again: writers shall notice when the process has gone.
    let _both = open(path, OpenOptions::new().read(true).write(true))?;
    open(path, OpenOptions::new().write(true)).map(OwnedFd::from)
}

/// Opens a FIFO for writing to whoever reads it; `None` if nobody does.
///
/// # Errors
/// As [`open_reader`].
pub(super) fn open_to_reader(path: &Path) -> Result<Option<OwnedFd>> {
    let mut options = OpenOptions::new();
    match options.write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error).context(|| format!("open FIFO {path:?}")),
        Ok(file) => Ok(Some(file.into())),
    }
}

/// Whether a writer has come and all have gone, as far as `reader` was there to see it.
pub(super) fn is_hung_up(reader: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&reader, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// What `path` names now; `None` if it is gone.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|metadata| identity_of(&metadata))
}

fn identity_of(metadata: &std::fs::Metadata) -> Identity {
    Identity { device: metadata.dev(), inode: metadata.ino() }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).context(|| format!("open FIFO {path:?}"))?;
    let metadata = file.metadata().context(|| format!("open FIFO {path:?}"))?;
    if !metadata.file_type().is_fifo() {
        return Err(precondition(format!("open FIFO {path:?}: it is not a FIFO")));
    }
    Ok(file)
}

fn make_folders(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.context(|| format!("make folder {path:?}"))
}

/// A new folder below `io`, named with random digits as the plugin does.
fn make_random_folder(io: &Path) -> Result<PathBuf> {
    let mut attempt = 0;
    loop {
        let number = u64::from_str_radix(&crate::ids::random_hex::<4>(), 16).unwrap_or(attempt as u64);
        let folder = io.join(number.to_string());
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                attempt += 1
            }
            Err(error) => return Err(error).context(|| format!("make folder {folder:?}")),
        }
    }
}

fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it exists").permissions().mode()
    }

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

    #[test]
    fn the_set_has_the_plugins_place_and_modes() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = Fifos::make(state.path(), "c1", "c1", ALL).expect("made");
        let stdout = fifos.stdout.clone().expect("wanted");
        let folder = stdout.parent().expect("it has a folder").to_owned();
        assert_eq!(stdout.file_name().expect("a name"), "c1-stdout");
        let digits = folder.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits}");
        assert_eq!(folder.parent(), Some(&*state.path().join("containers/c1/io")));
        assert_eq!(mode(&stdout), 0o10700);
        assert_eq!(mode(&folder), 0o40700);
        assert_eq!(mode(folder.parent().expect("io")), 0o40700);
        assert_eq!(mode(&state.path().join("containers/c1")), 0o40755);

        let exec = Fifos::make(state.path(), "c1", "e1", Wanted { stdin: false, ..ALL }).expect("made");
        assert_eq!(exec.stdin, None);
        let exec_folder = exec.stdout.as_deref().and_then(Path::parent).expect("it has a folder");
        assert_eq!(Fifos::found_in(exec_folder), HashMap::from([("e1".to_owned(), exec.clone())]));
        assert_ne!(exec.stderr.as_deref().and_then(Path::parent), Some(&*folder));
        for _ in 0..2 {
            fifos.remove().expect("removing is idempotent");
            assert!(!folder.exists());
        }
        exec.remove().expect("removed");
        assert!(state.path().join("containers/c1/io").exists());
    }

    #[test]
    fn the_sets_of_a_task_are_taken_as_told() {
        let fifos = Fifos::from_task("", "/a/o", "/a/e");
        assert_eq!((fifos.stdin.as_deref(), fifos.stdout.as_deref()), (None, Some(Path::new("/a/o"))));
        assert_eq!(Fifos::to_task(fifos.stderr.as_deref()), "/a/e");
        assert_eq!(Fifos::to_task(None), "");
    }

    #[test]
    fn what_is_no_fifo_is_refused_and_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        std::fs::write(&path, "x").expect("written");
        for error in [open_reader(&path, false).map(drop), open_writer(&path).map(drop)] {
            let error = error.expect_err("it is a file");
            assert!(error.message().contains("f\": it is not a FIFO"), "{error}");
        }
        let error = open_reader(&folder.path().join("none"), false).map(drop).expect_err("it is missing");
        assert!(error.message().contains("none\": No such file"), "{error}");
    }

    #[test]
    fn a_writer_is_held_without_a_reader() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = Fifos::make(state.path(), "c1", "c1", ALL).expect("made");
        let path = fifos.stdin.as_deref().expect("wanted");
        let writer = open_writer(path).expect("opened");
        // Nobody reads yet, and this end is not a reader itself.
        assert!(open_to_reader(path).expect("looked").is_none());
        assert_eq!(rustix::io::write(&writer, b"x"), Err(rustix::io::Errno::PIPE));
        let (reader, _) = open_reader(path, false).expect("opened");
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte), Err(rustix::io::Errno::AGAIN));
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut byte), Ok(0));
        assert!(open_to_reader(path).expect("looked").is_some());
    }
}
