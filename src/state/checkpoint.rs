//! The status file of a container: `<root>/containers/<id>/status` (COX-08).
//!
//! It is replaced atomically: written beside, synced, renamed, folder synced (REC-11).
//! `BootId` is a key of our own: pids of another boot mean nothing (REC-22).

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Context, Result, precondition};
use crate::points;
use crate::proto::cri::ContainerResources;
use crate::trace;

const NAME: &str = "status";
const VERSION: &str = "v1";
/// A status file has at most this many bytes; a larger one is not ours.
const BYTES_MAX: u64 = 1 << 20;

/// What is stored of a container's state. Times in nanoseconds since the epoch, 0 for not yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct StatusFile {
    /// `v1`
    pub version: String,
    /// Pid on the host while running.
    pub pid: u32,
    /// Time of creation.
    pub created_at: i64,
    /// Time of start.
    pub started_at: i64,
    /// Time of the end.
    pub finished_at: i64,
    /// Exit code.
    pub exit_code: i32,
    /// OOMKilled, StartError, Unknown; empty where the exit code says it all.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Limits in force.
    pub resources: Option<ContainerResources>,
    /// The boot of this status.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// Keys of others.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Reads the status file in `dir`.
///
/// # Errors
/// NotFound-like texts of the file system; FailedPrecondition when it is not one.
pub fn read(dir: &Path) -> Result<StatusFile> {
    let path = dir.join(NAME);
    let what = || format!("status file {path:?}");
    if std::fs::metadata(&path).context(what)?.len() > BYTES_MAX {
        return Err(precondition(format!("{}: larger than {BYTES_MAX} bytes", what())));
    }
    let text = std::fs::read(&path).context(what)?;
    let file: StatusFile =
        serde_json::from_slice(&text).map_err(|error| precondition(format!("{}: {error}", what())))?;
    if file.version != VERSION {
        return Err(precondition(format!("{}: version {:?} is not known", what(), file.version)));
    }
    Ok(file)
}

/// Replaces the status file in `dir`.
///
/// # Errors
/// Those of the file system; the old file is then still whole.
pub fn write(dir: &Path, status: &StatusFile) -> Result<()> {
    let path = dir.join(NAME);
    let what = || format!("status file {path:?}");
    let versioned = StatusFile { version: VERSION.to_owned(), ..status.clone() };
    let text = serde_json::to_vec(&versioned).expect("a status has text keys only");
    let _step = trace::file("write the status", &path);
    points::before("write a status file")?;
    let mut beside = tempfile::Builder::new().prefix(".status-").tempfile_in(dir).context(what)?;
    beside.write_all(&text).context(what)?;
    beside.as_file().sync_data().context(what)?;
    points::before("put a status file in place")?;
    beside.persist(&path).map_err(|error| error.error).context(what)?;
    File::open(dir).and_then(|dir| dir.sync_data()).context(what)
}

/// The id of this boot; empty where the kernel does not tell.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back_with_keys_of_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let text = r#"{"Version":"v1","Pid":7,"CreatedAt":1,"StartedAt":2,"FinishedAt":0,"ExitCode":0,"Reason":"","Message":"","Resources":{"linux":{"cpu_shares":102}},"Restore":false}"#;
        std::fs::write(dir.path().join(NAME), text).expect("written");
        let status = read(dir.path()).expect("reads");
        assert_eq!((status.pid, status.started_at), (7, 2));
        write(dir.path(), &status).expect("writes");
        let again: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(NAME)).expect("file")).expect("JSON");
        assert_eq!(again, serde_json::from_str::<Value>(text).expect("JSON"));
    }

    #[test]
    fn status_files_of_the_builtin_plugin_are_read() {
        use crate::proto::cri::ContainerState;
        use crate::state::container::Status;
        for version in ["1.6.20", "1.7.24", "2.3.4"] {
            for (name, state, reason) in [
                ("created", ContainerState::ContainerCreated, ""),
                ("running", ContainerState::ContainerRunning, ""),
                ("exited", ContainerState::ContainerExited, "Error"),
            ] {
                let path =
                    format!("{}/tests/data/records/{version}/{name}.status.json", env!("CARGO_MANIFEST_DIR"));
                let dir = tempfile::tempdir().expect("a folder");
                std::fs::copy(&path, dir.path().join(NAME)).expect(&path);
                let status = Status::from(read(dir.path()).expect("reads"));
                assert_eq!(status.state(), state, "{version} {name}");
                assert_eq!(status.shown_reason(), reason);
                assert_eq!(status.resources.cpu_shares, 102);
            }
        }
    }

    #[test]
    fn what_is_no_status_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        for text in ["", "{", "{\"Version\":\"v2\"}", "[]"] {
            std::fs::write(dir.path().join(NAME), text).expect("written");
            assert!(read(dir.path()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_old_file_survives_a_failed_write() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &StatusFile { pid: 1, ..Default::default() }).expect("writes");
        assert!(write(&dir.path().join("gone"), &StatusFile::default()).is_err());
        assert_eq!(read(dir.path()).map(|status| status.pid), Ok(1));
        assert_eq!(std::fs::read_dir(dir.path()).expect("folder").count(), 1);
    }
}
