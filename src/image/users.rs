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
use crate::flow::{self, lock};
use crate::ids::random_hex;
use crate::sys::beneath;
use crate::sys::mount::{Mount, mount_all, private_namespace};

/// The largest passwd or group file.
const FILE_BYTES_MAX: usize = 1 << 20;
/// The most images whose files are remembered.
const CACHED_MAX: usize = 64;
/// The most bytes of all files that are remembered.
const CACHED_BYTES_MAX: usize = 8 << 20;

/// The users and groups of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
    /// Bytes of both files.
    weight: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads both files. A line that is not one of theirs is passed over, never taken
    /// for root.
    #[must_use]
    pub fn parse(passwd: &[u8], group: &[u8]) -> Accounts {
        let users = String::from_utf8_lossy(passwd).lines().filter_map(user).collect();
        let groups = String::from_utf8_lossy(group).lines().filter_map(self::group).collect();
        Accounts { users, groups, weight: passwd.len() + group.len() }
    }

    /// Uid and primary gid of the user `name`.
    #[must_use]
    pub fn lookup_user(&self, name: &str) -> Option<(u32, u32)> {
        self.users.iter().find(|user| user.name == name).map(|user| (user.uid, user.gid))
    }

    /// The name of the user `uid`.
    #[must_use]
    pub fn name_of_uid(&self, uid: u32) -> Option<&str> {
        self.users.iter().find(|user| user.uid == uid).map(|user| user.name.as_str())
    }

    /// The primary gid of the user `uid` (OCI-05).
    #[must_use]
    pub fn gid_of_uid(&self, uid: u32) -> Option<u32> {
        self.users.iter().find(|user| user.uid == uid).map(|user| user.gid)
    }

    /// The gid of the group `name`.
    #[must_use]
    pub fn lookup_group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|group| group.name == name).map(|group| group.gid)
    }

    /// The groups that list the user `name` as a member (OCI-07), in the file's order.
    #[must_use]
    pub fn groups_of_user(&self, name: &str) -> Vec<u32> {
        let lists = |group: &&Group| group.members.iter().any(|member| member == name);
        self.groups.iter().filter(lists).map(|group| group.gid).collect()
    }
}

/// `name:password:uid:gid:…`
fn user(line: &str) -> Option<User> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| is_name(name))?;
    let _password = fields.next()?;
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(User { name: name.to_owned(), uid, gid })
}

/// `name:password:gid:member,member`
fn group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| is_name(name))?;
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default().split(',').map(str::trim);
    let members = members.filter(|member| !member.is_empty()).map(str::to_owned).collect();
    Some(Group { name: name.to_owned(), gid, members })
}

/// Comments, and the marks of network databases, are no names.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['#', '+', '-'])
}

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
            cache.iter().map(|(_, accounts)| accounts.weight).sum()
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
            flow::blocking(move || read_files(mounts, &place)).await
        };
        let result = read.await;
        work.end().await;
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
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# web:x:1:1::/:\nweb:x:1000:33::/:/bin/sh\n\
        broken:x:abc:0::\nshort:x\n+nis::0:0::\n:x:0:0::\nweb:x:7:7::/:\nlate:x:1000:44::/:\nhuge:x:99999999999:0::\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwww:x:33:web\nextra:x:50000:root, web,\nbad:x:x:web\nother:x:51:webmaster";

    #[test]
    fn users_and_groups_are_found() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        assert_eq!(accounts.lookup_user("web"), Some((1000, 33)));
        assert_eq!((accounts.gid_of_uid(1000), accounts.name_of_uid(1000)), (Some(33), Some("web")));
        assert_eq!(accounts.lookup_group("extra"), Some(50000));
        assert_eq!(accounts.groups_of_user("web"), [33, 50000]);
        assert_eq!(accounts.groups_of_user("root"), [50000]);
    }

    #[test]
    fn what_is_not_a_line_of_the_file_is_nobody() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        for name in ["broken", "short", "+nis", "", "# web", "huge", "nobody"] {
            assert_eq!(accounts.lookup_user(name), None, "{name}");
        }
        assert_eq!((accounts.lookup_group("bad"), accounts.gid_of_uid(4)), (None, None));
        assert_eq!(Accounts::parse(b"", b"").lookup_user("root"), None);
    }

    #[test]
    fn the_cache_keeps_what_is_used_and_has_bounds() {
        let cache = AccountsCache::default();
        for i in 0..CACHED_MAX {
            cache.put(&i.to_string(), &Arc::default());
        }
        assert!(cache.get("0").is_some());
        cache.put("new", &Arc::default());
        assert!(cache.get("0").is_some() && cache.get("1").is_none() && cache.get("new").is_some());
        let heavy = Arc::new(Accounts { weight: CACHED_BYTES_MAX - 1, ..Accounts::default() });
        cache.put("heavy", &heavy);
        cache.put("heavier", &heavy);
        assert!(cache.get("heavy").is_none() && cache.get("heavier").is_some());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(passwd in any::<Vec<u8>>(), group in any::<Vec<u8>>()) {
            let accounts = Accounts::parse(&passwd, &group);
            let _ = accounts.groups_of_user("a");
        }
    }
}
