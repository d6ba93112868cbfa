//! The users and groups of an image: its /etc/passwd and /etc/group.
//!
//! A container's user may be a name of the image (OCI-04 … OCI-07). Both files are a
//! function of the image's layers alone, and are read once for each: through a view
//! snapshot that is mounted, read-only, in a mount namespace which exists for the time
//! of the reading. No link of the image leads out of it, and what is read has bounds.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tracing::debug;

use super::{Image, Images};
use crate::error::{Context, Kind, Result};
use crate::flow::{Disk, lock, on_disk};
use crate::ids::random_hex;
use crate::spec::Accounts;
use crate::sys::beneath;
use crate::sys::mount::{Mount, mount_all, private_namespace};

/// The largest passwd or group file.
const FILE_BYTES_MAX: usize = 1 << 20;
/// The most images whose files are remembered.
const CACHED_MAX: usize = 64;
/// The most bytes of all files that are remembered.
const CACHED_BYTES_MAX: usize = 8 << 20;

/// What was read, the most recently used last.
#[derive(Default)]
pub(super) struct AccountsCache(Mutex<VecDeque<(String, Arc<Accounts>)>>);

impl AccountsCache {
    fn get(&self, chain_id: &str) -> Option<Arc<Accounts>> {
        let mut cache = lock(&self.0);
        let place = cache.iter().position(|(known, _)| known == chain_id)?;
        let entry = cache.remove(place)?;
        let accounts = entry.1.clone();
        cache.push_back(entry);
        Some(accounts)
    }

    fn put(&self, chain_id: &str, accounts: &Arc<Accounts>) {
        let mut cache = lock(&self.0);
        cache.retain(|(known, _)| known != chain_id);
        cache.push_back((chain_id.to_owned(), accounts.clone()));
        let weight = |cache: &VecDeque<(String, Arc<Accounts>)>| -> usize {
            cache.iter().map(|(_, accounts)| accounts.weight()).sum()
        };
        while cache.len() > CACHED_MAX || weight(&cache) > CACHED_BYTES_MAX {
            cache.pop_front();
        }
    }
}

impl Images {
    /// The users and groups of `image`, which is unpacked for `snapshotter` if it is not.
    /// An image without the files has none.
    ///
    /// # Errors
    /// What the mount or the reading met; ResourceExhausted for files that are too large.
    pub async fn accounts(&self, image: &Image, snapshotter: &str) -> Result<Arc<Accounts>> {
        let chain_id = &image.chain_id;
        if chain_id.is_empty() {
            return Ok(Arc::default());
        }
        if let Some(known) = self.0.accounts.get(chain_id) {
            return Ok(known);
        }
        let _turn = self.0.snapshots.lock(format!("accounts of {chain_id}")).await;
        if let Some(known) = self.0.accounts.get(chain_id) {
            return Ok(known);
        }
        let accounts = Arc::new(
            self.read_accounts(image, snapshotter)
                .await
                .context(|| format!("read the users of image {}", image.id))?,
        );
        self.0.accounts.put(chain_id, &accounts);
        Ok(accounts)
    }

    async fn read_accounts(&self, image: &Image, snapshotter: &str) -> Result<Accounts> {
        let work = self.0.leases.begin(&self.0.containerd).await?;
        let read = async {
            let chain_id = self.unpacked(image, snapshotter, Some(work.lease())).await?;
            let key = format!("users-{}", random_hex::<8>());
            work.snapshot(snapshotter, &key);
            let mounts =
                self.0.containerd.view_snapshot(snapshotter, &key, &chain_id, Some(work.lease())).await?;
            let place = self.0.settings.state.clone();
            on_disk(Disk::Images, move || read_files(mounts, &place)).await
        };
        let result = read.await;
        work.end(&result).await;
        // Nothing that is missing here is what the kubelet asked for (ERR-12).
        result.map_err(
            |error| if error.is_not_found() { error.with_kind(Kind::FailedPrecondition) } else { error },
        )
    }
}

/// Mounts the view over `place`, which only the reader sees, and reads.
fn read_files(mounts: Vec<Mount>, place: &Path) -> Result<Accounts> {
    std::fs::create_dir_all(place).context(|| format!("make {}", place.display()))?;
    let mounts: Vec<Mount> = mounts.into_iter().map(read_only).collect();
    private_namespace(|| {
        mount_all(&mounts, place)?;
        let file = |path| beneath::read(place, path, FILE_BYTES_MAX).map(Option::unwrap_or_default);
        let (passwd, group) = (file("etc/passwd")?, file("etc/group")?);
        debug!(passwd = passwd.len(), group = group.len(), "read the users of an image");
        Ok(Accounts::parse(&passwd, &group))
    })
}

/// A view is read-only by itself; a snapshotter that forgets it is helped.
fn read_only(mut mount: Mount) -> Mount {
    mount.options.push("ro".to_owned());
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_is_used_and_has_bounds() {
        let cache = AccountsCache::default();
        for i in 0..CACHED_MAX {
            cache.put(&i.to_string(), &Arc::default());
        }
        assert!(cache.get("0").is_some());
        cache.put("new", &Arc::default());
        assert!(cache.get("0").is_some() && cache.get("1").is_none() && cache.get("new").is_some());
        let heavy = Arc::new(Accounts::parse(&vec![b'x'; CACHED_BYTES_MAX - 1], b""));
        cache.put("heavy", &heavy);
        cache.put("heavier", &heavy);
        assert!(cache.get("heavy").is_none() && cache.get("heavier").is_some());
    }
}
