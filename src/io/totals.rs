//! What has become of all output, in this process, since its start: containers come and go,
//! and take their own counts with them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::log_file::Loss;

/// Counted by the workers, once a burst.
pub(super) static COUNTED: Counted = Counted::new();

/// The counters.
pub(super) struct Counted {
    written_bytes: AtomicU64,
    lost_entries: AtomicU64,
    lost_bytes: AtomicU64,
    write_errors: AtomicU64,
}

/// What they stand at. An older keeper does not tell it at all, and fields may be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// The keeper's process.
    pub pid: u32,
    /// Bytes that were written into log files.
    pub written_bytes: u64,
    /// Entries that could not be written (LOG-10).
    pub lost_entries: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
}

impl Counted {
    const fn new() -> Counted {
        Counted {
            written_bytes: AtomicU64::new(0),
            lost_entries: AtomicU64::new(0),
            lost_bytes: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
        }
    }

    /// So many bytes were to be written; `loss` says what of it was not.
    pub(super) fn count(&self, bytes: usize, loss: Option<&Loss>) {
        let lost = loss.map_or(0, |loss| loss.bytes);
        self.written_bytes.fetch_add((bytes as u64).saturating_sub(lost), Ordering::Relaxed);
        if let Some(loss) = loss {
            self.lost_entries.fetch_add(loss.entries, Ordering::Relaxed);
            self.lost_bytes.fetch_add(loss.bytes, Ordering::Relaxed);
            self.write_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What they stand at.
    pub(super) fn totals(&self) -> Totals {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            pid: std::process::id(),
            written_bytes: of(&self.written_bytes),
            lost_entries: of(&self.lost_entries),
            lost_bytes: of(&self.lost_bytes),
            write_errors: of(&self.write_errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_not_written() {
        let counted = Counted::new();
        counted.count(100, None);
        let error = std::io::Error::from_raw_os_error(libc::ENOSPC);
        counted.count(50, Some(&Loss { entries: 2, bytes: 30, error }));
        let pid = std::process::id();
        let totals = Totals { pid, written_bytes: 120, lost_entries: 2, lost_bytes: 30, write_errors: 1 };
        assert_eq!(counted.totals(), totals);
        let told = serde_json::from_str::<Totals>(r#"{"pid":7,"new":1}"#).expect("another version's");
        assert_eq!(told, Totals { pid: 7, ..Totals::default() });
    }
}
