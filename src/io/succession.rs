//! The keeper goes on as another program: an upgrade.
//!
//! A server that finds a keeper of another program than its own asks it to become that
//! program. The keeper lets its workers finish what they have in hand, writes down what the
//! next program has to know, and runs it in its place (`execve`): the process stays, with its
//! session and cgroup, and so do its descriptors, which are the lock, the socket, the FIFOs
//! and the log files. Nothing is closed and opened again, no unfinished line is torn, and a
//! log that was just renamed is still written to until it is reopened. Clients are hung up
//! on, connect again, and ask again.
//!
//! Should the program not start, the keeper goes on as it was. Fields of the will that the
//! next program does not know are ignored, missing ones have a default: it may be older.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fifo::Identity;
use super::protocol::ContainerIo;
use crate::error::{Context, Error, Result, internal};
use crate::sys::{inherit, signal};

/// What a keeper leaves to the next program.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Will {
    /// The lock file, locked.
    pub(super) lock: RawFd,
    /// The socket, listening.
    pub(super) listener: RawFd,
    /// Cgroups that the keeper has made.
    #[serde(default)]
    pub(super) cgroups: Vec<PathBuf>,
    #[serde(default)]
    pub(super) containers: Vec<Bequest>,
}

/// A container, with numbers of descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Bequest {
    pub(super) io: ContainerIo,
    pub(super) output: OutputBequest,
    /// In the order stdout, stderr; those that it has.
    pub(super) streams: Vec<StreamBequest>,
    /// The writing end of its standard input, unless that was let go of.
    #[serde(default)]
    pub(super) stdin: Option<RawFd>,
}

/// What its streams share.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OutputBequest {
    pub(super) file: Option<RawFd>,
    /// The time of the last entry.
    pub(super) last: u64,
    pub(super) lost_entries: u64,
    pub(super) lost_bytes: u64,
    pub(super) last_error: Option<String>,
}

/// A stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StreamBequest {
    /// `None` after its end.
    pub(super) fd: Option<RawFd>,
    pub(super) identity: Identity,
    /// The unfinished line.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(super) carry: Vec<u8>,
}

impl Will {
    /// Runs `program` in place of this one, as a keeper at `socket` with this will. Comes back
    /// only with an error.
    pub(super) fn execute(&self, program: &Path, socket: &Path) -> Error {
        let write = || -> Result<File> {
            let mut file: File =
                memfd_create("longshore-keeper", MemfdFlags::CLOEXEC).context(|| "make a memfd")?.into();
            let text = serde_json::to_vec(self).map_err(|error| internal(error.to_string()))?;
            file.write_all(&text).and_then(|()| file.rewind()).context(|| "write a memfd")?;
            Ok(file)
        };
        let passed = write().and_then(|file| {
            let number = inherit::pass_on(&file).context(|| "pass on a memfd")?;
            Ok((file, number))
        });
        match passed {
            Err(error) => error,
            // The file is closed again if there is no exec.
            Ok((_file, number)) => {
                let mut command = Command::new(program);
                command.arg("keeper").arg("--socket").arg(socket).arg("--will").arg(number.to_string());
                let error = Error::from(command.exec()).context(format!("run {program:?}"));
                // The attempt has set it to what it is by default: to end a process that writes
                // to somebody who has gone.
                signal::ignore(&[libc::SIGPIPE]);
                error
            }
        }
    }

    /// Reads the will that the program before has left in descriptor `number`.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn read(number: RawFd) -> Result<Will> {
        let mut file: File = inherit::take(number).context(|| "read the will of a log keeper")?.into();
        let mut text = Vec::new();
        file.read_to_end(&mut text).context(|| "read the will of a log keeper")?;
        serde_json::from_slice(&text)
            .map_err(|error| internal(format!("the will of a log keeper cannot be read: {error}")))
    }
}

/// Which file a program is, to be told from its successor.
pub(super) fn identity_of(program: &Path) -> Option<String> {
    let metadata = std::fs::metadata(program).ok()?;
    let (device, inode) =
        (std::os::unix::fs::MetadataExt::dev(&metadata), std::os::unix::fs::MetadataExt::ino(&metadata));
    Some(format!("{device}:{inode}"))
}

fn to_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    BASE64_STANDARD.encode(bytes).serialize(to)
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_is_read_by_newer_and_older_programs() {
        let text = r#"{"lock":4,"listener":5,"new":1,"containers":[
            {"io":{"id":"c"},"output":{"file":7,"later":true},"streams":[{"fd":8,"carry":"aGE="},{}],"x":0}]}"#;
        let will: Will = serde_json::from_str(text).expect("it is read");
        let [container] = &will.containers[..] else { panic!("one container: {will:?}") };
        assert_eq!((will.lock, will.listener, container.output.file, container.stdin), (4, 5, Some(7), None));
        assert_eq!((container.streams[0].fd, &*container.streams[0].carry), (Some(8), &b"ha"[..]));
        assert_eq!((container.streams[1].fd, &*container.streams[1].carry), (None, &b""[..]));
        let again = serde_json::to_string(&will).expect("it is written");
        let again: Will = serde_json::from_str(&again).expect("it is read");
        assert_eq!(again.containers[0].streams[0].carry, b"ha");
    }

    #[test]
    fn a_program_is_the_file_that_it_was_started_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = std::env::current_exe().expect("it has a path");
        let copy = folder.path().join("copy");
        std::fs::copy(&own, &copy).expect("copied");
        assert_eq!(identity_of(&own), identity_of(Path::new("/proc/self/exe")));
        assert_ne!(identity_of(&own), identity_of(&copy));
        assert_eq!(identity_of(&folder.path().join("none")), None);
    }

    #[test]
    fn a_program_that_cannot_be_run_leaves_everything_as_it_was() {
        let error = Will::default().execute(Path::new("/no/such/program"), Path::new("/s"));
        assert!(error.message().contains("/no/such/program"), "{error}");
    }
}
