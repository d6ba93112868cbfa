//! ImageFsInfo: what the snapshots of each snapshotter take (STA-15).
//!
//! A layer's size never changes, so it is asked once and remembered. A container's
//! writable snapshot changes all the time, and containerd walks it when asked: never
//! while a call waits. A call answers with the last sum; one that is older than
//! [`STALE`] is made anew in the background, at most once at a time, and never more than a
//! quarter of the time. Only the very first call has to wait, for the layers alone. What
//! single containers take ([`super::writable`]) comes from the same walks.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::{Instrument, Span, debug};

use super::Images;
use crate::containerd::{SnapshotKind, SnapshotUsage};
use crate::error::{Result, precondition};
use crate::flow::lock;
use crate::proto::cri;

/// The age at which a sum is made anew.
const STALE: Duration = Duration::from_secs(10);
/// How much longer the pause after a measurement is than the measurement.
const PAUSE_PER_COST: u32 = 3;

/// What one snapshotter's snapshots take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// When it was measured, in nanoseconds since the epoch.
    pub timestamp: i64,
    /// The snapshotter's folder.
    pub mountpoint: String,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

impl From<FsUsage> for cri::FilesystemUsage {
    fn from(from: FsUsage) -> Self {
        Self {
            timestamp: from.timestamp,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: from.mountpoint }),
            used_bytes: Some(cri::UInt64Value { value: from.used_bytes }),
            inodes_used: Some(cri::UInt64Value { value: from.inodes_used }),
        }
    }
}

/// The last sums, by snapshotter.
#[derive(Default)]
pub(super) struct UsageCache(pub(super) Mutex<HashMap<String, Sum>>);

#[derive(Default)]
pub(super) struct Sum {
    /// Layers, by name.
    layers: HashMap<String, SnapshotUsage>,
    /// What every other snapshot took at the last look, by name.
    pub(super) others: HashMap<String, Measured>,
    /// Names of snapshots that are looked at for the first time.
    pub(super) looked_at: HashSet<String>,
    measured: Option<(Instant, i64)>,
    /// How long the last measurement took.
    cost: Duration,
    is_being_measured: bool,
}

/// What a snapshot took at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What it took.
    pub usage: SnapshotUsage,
    /// When that was, in nanoseconds since the epoch.
    pub timestamp: i64,
}

/// Which snapshots are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Layers,
    All,
}

impl Images {
    /// What the snapshots take: the default snapshotter first, then those of handlers.
    ///
    /// # Errors
    /// Unavailable without containerd; FailedPrecondition if the default snapshotter's
    /// folder is not known.
    pub async fn fs_info(&self) -> Result<Vec<FsUsage>> {
        let capabilities = self.0.containerd.capabilities()?;
        let mut list = Vec::new();
        for (index, snapshotter) in self.0.settings.snapshotters.iter().enumerate() {
            let usage = async {
                let mountpoint = capabilities.snapshotter_root(snapshotter).ok_or_else(|| {
                    precondition(format!(
                        "containerd does not tell the folder of snapshotter {snapshotter:?}"
                    ))
                })?;
                let (sum, timestamp) = self.usage(snapshotter).await?;
                Ok(FsUsage { timestamp, mountpoint, used_bytes: sum.bytes, inodes_used: sum.inodes })
            };
            match usage.await {
                Ok(usage) => list.push(usage),
                // One that a handler names and nobody has does not hide the others.
                Err(error) if index > 0 => debug!(snapshotter, %error, "no usage of a snapshotter"),
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    async fn usage(&self, snapshotter: &str) -> Result<(SnapshotUsage, i64)> {
        let known = lock(&self.0.usage.0).get(snapshotter).and_then(Sum::total);
        if known.is_none() {
            self.measure(snapshotter, Scope::Layers).await?;
        }
        self.measure_when_due(snapshotter);
        let known = lock(&self.0.usage.0).get(snapshotter).and_then(Sum::total);
        Ok(known.unwrap_or_default())
    }

    /// Measures everything of a snapshotter in the background, if that is due.
    pub(super) fn measure_when_due(&self, snapshotter: &str) {
        if !self.0.usage.begin(snapshotter) {
            return;
        }
        let (images, snapshotter) = (self.clone(), snapshotter.to_owned());
        let measure = async move {
            let _end = End { images: &images, snapshotter: &snapshotter };
            if let Err(error) = images.measure(&snapshotter, Scope::All).await {
                debug!(snapshotter, %error, "the usage of snapshots could not be measured");
            }
        };
        tokio::spawn(measure.instrument(Span::current()));
    }

    async fn measure(&self, snapshotter: &str, scope: Scope) -> Result<()> {
        let (begun, begun_at) = (Instant::now(), now());
        let snapshots = self.0.containerd.list_snapshots(snapshotter).await?;
        let known = lock(&self.0.usage.0).get(snapshotter).map(|sum| sum.layers.clone()).unwrap_or_default();
        let mut layers = HashMap::with_capacity(known.len());
        let mut others = HashSet::new();
        for snapshot in snapshots {
            let is_layer = snapshot.kind == SnapshotKind::Committed;
            let usage = match known.get(&snapshot.name) {
                Some(usage) if is_layer => *usage,
                _ if !is_layer && scope == Scope::Layers => continue,
                _ if !is_layer => {
                    self.look_at(snapshotter, &snapshot.name).await;
                    others.insert(snapshot.name);
                    continue;
                }
                _ => match self.0.containerd.snapshot_usage(snapshotter, &snapshot.name).await {
                    Ok(usage) => usage,
                    // Gone since the list was made.
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
            };
            layers.insert(snapshot.name, usage);
        }
        let mut cache = lock(&self.0.usage.0);
        let sum = cache.entry(snapshotter.to_owned()).or_default();
        sum.layers = layers;
        // What layers alone take is stale at once: the containers' part follows.
        let age = if scope == Scope::All { Duration::ZERO } else { STALE };
        if scope == Scope::All {
            // Those that were made since are not in the list.
            sum.others.retain(|name, last| others.contains(name) || last.timestamp >= begun_at);
            sum.cost = begun.elapsed();
        }
        sum.measured = Some((Instant::now().checked_sub(age).unwrap_or_else(Instant::now), now()));
        Ok(())
    }

    /// Looks at one snapshot that is no layer. Where that fails, the last look stands.
    pub(super) async fn look_at(&self, snapshotter: &str, name: &str) {
        let timestamp = now();
        match self.0.containerd.snapshot_usage(snapshotter, name).await {
            Ok(usage) => {
                let mut cache = lock(&self.0.usage.0);
                let sum = cache.entry(snapshotter.to_owned()).or_default();
                sum.others.insert(name.to_owned(), Measured { usage, timestamp });
            }
            Err(error) => debug!(snapshotter, name, %error, "the usage of a snapshot is not known"),
        }
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl UsageCache {
    /// Whether a new measurement is due, and this caller's to make.
    fn begin(&self, snapshotter: &str) -> bool {
        let mut cache = lock(&self.0);
        let Some(sum) = cache.get_mut(snapshotter) else { return false };
        let pause = STALE.max(sum.cost * PAUSE_PER_COST);
        let is_due = sum.measured.is_none_or(|(at, _)| at.elapsed() >= pause);
        let begins = is_due && !sum.is_being_measured;
        sum.is_being_measured |= begins;
        begins
    }
}

/// Ends a measurement, however it ends.
struct End<'a> {
    images: &'a Images,
    snapshotter: &'a str,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Some(sum) = lock(&self.images.0.usage.0).get_mut(self.snapshotter) {
            sum.is_being_measured = false;
        }
    }
}

impl Sum {
    fn total(&self) -> Option<(SnapshotUsage, i64)> {
        let (_, timestamp) = self.measured?;
        let others = self.others.values().map(|last| &last.usage);
        let all = self.layers.values().chain(others);
        Some((all.fold(SnapshotUsage::default(), |sum, usage| plus(sum, *usage)), timestamp))
    }
}

fn plus(a: SnapshotUsage, b: SnapshotUsage) -> SnapshotUsage {
    SnapshotUsage { bytes: a.bytes.saturating_add(b.bytes), inodes: a.inodes.saturating_add(b.inodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_measurement_at_a_time_and_only_when_due() {
        let cache = UsageCache::default();
        assert!(!cache.begin("overlayfs"), "nothing was ever measured: the caller waits for that");
        lock(&cache.0).entry("overlayfs".into()).or_default();
        assert!(cache.begin("overlayfs"));
        assert!(!cache.begin("overlayfs"));
        let mut inner = lock(&cache.0);
        let sum = inner.get_mut("overlayfs").expect("there");
        (sum.is_being_measured, sum.measured) = (false, Some((Instant::now(), 1)));
        drop(inner);
        assert!(!cache.begin("overlayfs"), "it is fresh");
    }

    #[test]
    fn the_sum_is_of_layers_and_all_others() {
        let usage = |bytes| SnapshotUsage { bytes, inodes: 1 };
        let sum = Sum {
            layers: HashMap::from([("a".into(), usage(1)), ("b".into(), usage(2))]),
            others: HashMap::from([("c".into(), Measured { usage: usage(4), timestamp: 1 })]),
            measured: Some((Instant::now(), 9)),
            ..Sum::default()
        };
        assert_eq!(sum.total(), Some((SnapshotUsage { bytes: 7, inodes: 3 }, 9)));
        assert_eq!(Sum::default().total(), None);
    }
}
