//! Who the first process is.
//!
//! | CRI / image | OCI | rule |
//! |---|---|---|
//! | `run_as_username`, else `run_as_user` (+ `run_as_group`), else image `User` | `process.user.uid`, `gid` | OCI-04 |
//! | a name | looked up in the image's passwd; not there: an error | OCI-05 |
//! | a number | its primary group from passwd when listed, else 0 | OCI-05 |
//! | `supplemental_groups`, policy Merge | `additionalGids`: primary, groups of the user in the image, CRI groups | OCI-07 |
//! | – | in a user namespace all of them must be mapped | SBX-25 |
//! | `supplemental_groups`, policy Strict | `additionalGids`: primary, CRI groups | OCI-07 |

use super::oci::User;
use super::{Accounts, ImageConfig};
use crate::error::{Result, invalid};
use crate::proto::cri::{Int64Value, SupplementalGroupsPolicy};
use crate::sys::userns::IdMaps;

/// The largest uid and gid: what runc takes.
const ID_MAX: i64 = i32::MAX as i64;

/// What decides the user of a process.
#[derive(Clone, Copy, Debug)]
pub struct UserRequest<'a> {
    /// `run_as_username`
    pub username: &'a str,
    /// `run_as_user`
    pub user: Option<&'a Int64Value>,
    /// `run_as_group`
    pub group: Option<&'a Int64Value>,
    /// `supplemental_groups`
    pub supplemental_groups: &'a [i64],
    /// `supplemental_groups_policy`
    pub policy: i32,
}

/// The user of a process.
///
/// # Errors
/// InvalidArgument: a group without a user, an id out of range, a name that the image
/// does not know, an unknown policy.
pub fn resolve(request: UserRequest<'_>, image: &ImageConfig, accounts: &Accounts) -> Result<User> {
    let asked = match (request.username, request.user) {
        ("", None) => None,
        ("", Some(uid)) => Some(uid.value.to_string()),
        (name, _) => Some(name.to_owned()),
    };
    let (user_part, group_part) = match (asked, request.group) {
        (None, Some(group)) => {
            return Err(invalid(format!("run_as_group {} is given without a user", group.value)));
        }
        (None, None) => match image.user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (image.user.clone(), None),
        },
        (Some(user), group) => (user, group.map(|group| group.value.to_string())),
    };
    let (uid, primary, name) = find_user(&user_part, accounts)?;
    let gid = match group_part.as_deref() {
        None | Some("") => primary,
        Some(group) => find_group(group, accounts)?,
    };
    let mut gids = vec![gid];
    match SupplementalGroupsPolicy::try_from(request.policy) {
        Ok(SupplementalGroupsPolicy::Merge) => {
            gids.extend(name.iter().flat_map(|name| accounts.groups_of_user(name)))
        }
        Ok(SupplementalGroupsPolicy::Strict) => {}
        Err(_) => return Err(invalid(format!("supplemental groups policy {} is not known", request.policy))),
    }
    for &group in request.supplemental_groups {
        gids.push(
            in_range(group).ok_or_else(|| invalid(format!("supplemental group {group} is out of range")))?,
        );
    }
    let mut seen = std::collections::HashSet::new();
    gids.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, additional_gids: gids, ..User::default() })
}

/// Refuses a user or group that the user namespace does not have, if there is one.
///
/// # Errors
/// InvalidArgument, naming the id.
pub fn require_mapped(user: &User, maps: Option<IdMaps>) -> Result<()> {
    let Some(IdMaps { uids, gids }) = maps else { return Ok(()) };
    let gid = std::iter::once(&user.gid).chain(&user.additional_gids);
    let groups = gid.map(|gid| ("group", *gid, gids));
    for (what, id, map) in std::iter::once(("user", user.uid, uids)).chain(groups) {
        if map.to_host(id).is_none() {
            return Err(invalid(format!("{what} {id} is not mapped in the pod's user namespace ({map})")));
        }
    }
    Ok(())
}

/// Uid, primary gid and, where the image knows it, the name.
fn find_user(text: &str, accounts: &Accounts) -> Result<(u32, u32, Option<String>)> {
    if text.is_empty() {
        let name = accounts.name_of_uid(0).map(str::to_owned);
        return Ok((0, 0, name));
    }
    match number(text) {
        Some(value) => {
            let uid =
                in_range(value).ok_or_else(|| invalid(format!("user {text:?}: the uid is out of range")))?;
            let name = accounts.name_of_uid(uid).map(str::to_owned);
            Ok((uid, accounts.gid_of_uid(uid).unwrap_or(0), name))
        }
        None => match accounts.lookup_user(text) {
            Some((uid, gid)) => Ok((uid, gid, Some(text.to_owned()))),
            None => Err(invalid(format!("user {text:?} is not in the image's /etc/passwd"))),
        },
    }
}

fn find_group(text: &str, accounts: &Accounts) -> Result<u32> {
    match number(text) {
        Some(value) => {
            in_range(value).ok_or_else(|| invalid(format!("group {text:?}: the gid is out of range")))
        }
        None => accounts
            .lookup_group(text)
            .ok_or_else(|| invalid(format!("group {text:?} is not in the image's /etc/group"))),
    }
}

/// The number that `text` is; one too large for any integer is out of every range.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(i64::MAX))
}

fn in_range(value: i64) -> Option<u32> {
    (0..=ID_MAX).contains(&value).then(|| u32::try_from(value).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:\nbroken\n:x:1:1:\n# c:x:9:9:\n",
            b"root:x:0:\nwheel:x:10:root,web\nweb:x:34:web\nadm:x:4:web\nbad:x:y:web\n",
        )
    }

    fn image(user: &str) -> ImageConfig {
        ImageConfig { user: user.into(), ..ImageConfig::default() }
    }

    fn ask<'a>(
        username: &'a str,
        user: Option<&'a Int64Value>,
        group: Option<&'a Int64Value>,
    ) -> UserRequest<'a> {
        UserRequest { username, user, group, supplemental_groups: &[], policy: 0 }
    }

    /// `uid:gid gids`, or the error.
    fn shown(request: UserRequest<'_>, user: &str) -> String {
        match resolve(request, &image(user), &accounts()) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.additional_gids),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_kubelets_user_goes_before_the_images() {
        let (seven, nine) = (Int64Value { value: 7 }, Int64Value { value: 9 });
        for (request, image_user, want) in [
            (ask("", None, None), "", "0:0 [0, 10]"),
            (ask("", None, None), "web", "33:34 [34, 10, 4]"),
            (ask("", None, None), "33", "33:34 [34, 10, 4]"),
            (ask("", None, None), "7:adm", "7:4 [4]"),
            (ask("", None, None), "web:9", "33:9 [9, 10, 4]"),
            (ask("", None, None), "web:", "33:34 [34, 10, 4]"),
            (ask("", Some(&seven), None), "web", "7:0 [0]"),
            (ask("", Some(&seven), Some(&nine)), "web", "7:9 [9]"),
            (ask("web", Some(&seven), Some(&nine)), "root", "33:9 [9, 10, 4]"),
            (ask("", None, Some(&nine)), "web", "run_as_group 9 is given without a user"),
            (ask("nobody", None, None), "", "user \"nobody\" is not in the image's /etc/passwd"),
            (ask("", None, None), "web:nope", "group \"nope\" is not in the image's /etc/group"),
            (ask("", None, None), "4294967296", "user \"4294967296\": the uid is out of range"),
            (ask("", None, None), "-1", "user \"-1\": the uid is out of range"),
        ] {
            assert_eq!(shown(request, image_user), want, "{request:?} {image_user:?}");
        }
    }

    #[test]
    fn a_user_namespace_must_have_the_user_and_its_groups() {
        let map = crate::sys::userns::IdMap::new(0, 100_000, 50).expect("a mapping");
        let maps = Some(IdMaps { uids: map, gids: map });
        let user = |uid, gid, additional_gids| User { uid, gid, additional_gids, ..User::default() };
        let text = |user: User| require_mapped(&user, maps).map_err(|error| error.to_string()).err();
        assert_eq!(text(user(49, 0, vec![0, 49])), None);
        let of = |text: &str| Some(format!("{text} is not mapped in the pod's user namespace (0:100000:50)"));
        assert_eq!(text(user(50, 0, vec![])), of("user 50"));
        assert_eq!(text(user(0, 51, vec![])), of("group 51"));
        assert_eq!(text(user(0, 0, vec![0, 52])), of("group 52"));
        assert_eq!(require_mapped(&user(50, 51, vec![52]), None), Ok(()));
    }

    #[test]
    fn strict_leaves_out_the_images_groups() {
        let mut request = ask("web", None, None);
        request.supplemental_groups = &[1000, 34, 1000];
        assert_eq!(shown(request, ""), "33:34 [34, 10, 4, 1000]");
        request.policy = SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(shown(request, ""), "33:34 [34, 1000]");
        request.policy = 7;
        assert_eq!(shown(request, ""), "supplemental groups policy 7 is not known");
        request.policy = 0;
        request.supplemental_groups = &[-5];
        assert_eq!(shown(request, ""), "supplemental group -5 is out of range");
    }
}
