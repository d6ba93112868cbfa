//! What single containers wrote: the size of their writable snapshots (STA-10).
//!
//! containerd finds it by a walk through the files, so no call waits for a walk that was
//! made before: it gets the last size, with the time of that look, and sees to it that
//! sizes older than ten seconds are made anew in the background, by the same walk that
//! serves ImageFsInfo. While nobody asks, nothing is walked. A container that was never
//! looked at is looked at on its own, and a call waits a moment for that, since the files
//! of a new container are few.

use std::time::Duration;

use futures_util::StreamExt;

use super::Images;
use super::fs_info::Measured;
use crate::flow::lock;

/// How long a call waits for the first look at a container.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// How many containers are looked at for the first time at once.
const LOOKS_MAX: usize = 4;

impl Images {
    /// What the writable snapshot `name` took at the last look.
    #[must_use]
    pub fn writable_usage(&self, snapshotter: &str, name: &str) -> Option<Measured> {
        lock(&self.0.usage.0).get(snapshotter)?.others.get(name).copied()
    }

    /// Sees to it that the sizes of the writable snapshots `names` are known and not too
    /// old. Returns when all of them are known, or after a moment.
    pub async fn look_at_writable(&self, snapshotter: &str, names: &[&str]) {
        let new: Vec<String> = {
            let mut cache = lock(&self.0.usage.0);
            let sum = cache.entry(snapshotter.to_owned()).or_default();
            let unknown = names.iter().filter(|name| !sum.others.contains_key(**name));
            let unknown: Vec<String> = unknown.map(|name| (*name).to_owned()).collect();
            unknown.into_iter().filter(|name| sum.looked_at.insert(name.clone())).collect()
        };
        self.measure_when_due(snapshotter);
        if new.is_empty() {
            return;
        }
        let (images, snapshotter) = (self.clone(), snapshotter.to_owned());
        let looks = tokio::spawn(async move {
            let (images, snapshotter) = (&images, &snapshotter);
            futures_util::stream::iter(new)
                .for_each_concurrent(LOOKS_MAX, |name| async move {
                    images.look_at(snapshotter, &name).await;
                    if let Some(sum) = lock(&images.0.usage.0).get_mut(snapshotter) {
                        sum.looked_at.remove(&name);
                    }
                })
                .await;
        });
        let _ = tokio::time::timeout(FIRST_LOOK, looks).await;
    }
}
