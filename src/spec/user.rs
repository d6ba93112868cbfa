//! Who the first process is.
//!
//! | CRI / image | OCI | rule |
//! |---|---|---|
//! | `run_as_username`, else `run_as_user` (+ `run_as_group`), else image `User` | `process.user.uid`, `gid` | OCI-04 |
//! | a name | looked up in the image's passwd; not there: an error | OCI-05 |
//! | a number | its primary group from passwd when listed, else 0; with a group, passwd is not asked | OCI-05 |
//! | `supplemental_groups`, policy Merge | `additionalGids`: primary, groups of the user in the image, CRI groups | OCI-07 |
//! | – | in a user namespace all of them must be mapped | SBX-25 |
//! | `supplemental_groups`, policy Strict | `additionalGids`: primary where a user is given, CRI groups | OCI-07 |
//!
//! Groups are sorted, each once.

use std::collections::BTreeSet;

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

/// The user of a process; `start` is what it is where nobody gives one.
///
/// # Errors
/// InvalidArgument: a group without a user, an id out of range, a name that the image
/// does not know, an unknown policy.
pub fn resolve(
    request: UserRequest<'_>,
    image: &ImageConfig,
    accounts: &Accounts,
    start: User,
) -> Result<User> {
    let policy = SupplementalGroupsPolicy::try_from(request.policy)
        .map_err(|_| invalid(format!("supplemental groups policy {} is not known", request.policy)))?;
    let asked = match (request.username, request.user) {
        ("", None) => None,
        ("", Some(uid)) => Some(uid.value.to_string()),
        (name, _) => Some(name.to_owned()),
    };
    let whole = match (&asked, request.group) {
        (None, Some(group)) => {
            return Err(invalid(format!("run_as_group {} is given without a user", group.value)));
        }
        (None, None) => Some(image.user.clone()).filter(|user| !user.is_empty()),
        (Some(user), None) => Some(user.clone()),
        (Some(user), Some(group)) => Some(format!("{user}:{}", group.value)),
    };
    let mut user = start;
    let mut gids: BTreeSet<u32> = user.additional_gids.drain(..).collect();
    if let Some(whole) = &whole {
        (user.uid, user.gid) = find(whole, accounts)?;
        gids = [user.gid].into();
    }
    if policy == SupplementalGroupsPolicy::Merge {
        gids.insert(user.gid);
        let name = match &asked {
            Some(asked) => asked.as_str(),
            None if image.user.is_empty() => "0",
            None => image.user.split(':').next().unwrap_or_default(),
        };
        gids.extend(groups_of(name, accounts));
    }
    for &group in request.supplemental_groups {
        let in_range = in_range(group);
        gids.insert(in_range.ok_or_else(|| invalid(format!("supplemental group {group} is out of range")))?);
    }
    user.additional_gids = gids.into_iter().collect();
    Ok(user)
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

/// Uid and gid of `uid`, `name`, `uid:gid`, `name:group` and the two mixed forms.
fn find(text: &str, accounts: &Accounts) -> Result<(u32, u32)> {
    let Some((user, group)) = text.split_once(':') else {
        return match id("uid", text)? {
            Some(uid) => Ok((uid, accounts.gid_of_uid(uid).unwrap_or(0))),
            None => accounts.lookup_user(text).ok_or_else(|| unknown_user(text)),
        };
    };
    if group.contains(':') {
        return Err(invalid(format!("user {text:?} is not of the form user:group")));
    }
    // A part that is empty is the first of its kind: ":7" is root with the group 7.
    let uid = match id("uid", user)? {
        Some(uid) => uid,
        None if user.is_empty() => 0,
        None => accounts.lookup_user(user).ok_or_else(|| unknown_user(user))?.0,
    };
    let gid = match id("gid", group)? {
        Some(gid) => gid,
        None if group.is_empty() => 0,
        None => accounts
            .lookup_group(group)
            .ok_or_else(|| invalid(format!("group {group:?} is not in the image's /etc/group")))?,
    };
    Ok((uid, gid))
}

fn unknown_user(name: &str) -> crate::error::Error {
    invalid(format!("user {name:?} is not in the image's /etc/passwd"))
}

/// The groups that the image gives to a user, by name or number.
fn groups_of(user: &str, accounts: &Accounts) -> Vec<u32> {
    let name = match number(user) {
        Some(uid) => in_range(uid).and_then(|uid| accounts.name_of_uid(uid)),
        None => Some(user).filter(|name| !name.is_empty()),
    };
    name.map(|name| accounts.groups_of_user(name)).unwrap_or_default()
}

/// The id that `text` is, none where it is a name.
fn id(what: &str, text: &str) -> Result<Option<u32>> {
    let Some(value) = number(text) else { return Ok(None) };
    let id = in_range(value).ok_or_else(|| invalid(format!("user {text:?}: the {what} is out of range")))?;
    Ok(Some(id))
}

/// The number that `text` is; one too large for any integer is out of every range.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
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
        match resolve(request, &image(user), &accounts(), User::default()) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.additional_gids),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_kubelets_user_goes_before_the_images() {
        let (seven, nine) = (Int64Value { value: 7 }, Int64Value { value: 9 });
        for (request, image_user, want) in [
            (ask("", None, None), "", "0:0 [0, 10]"),
            (ask("", None, None), "web", "33:34 [4, 10, 34]"),
            (ask("", None, None), "33", "33:34 [4, 10, 34]"),
            (ask("", None, None), "+33", "33:34 [4, 10, 34]"),
            (ask("", None, None), "7:adm", "7:4 [4]"),
            (ask("", None, None), "web:9", "33:9 [4, 9, 10]"),
            (ask("", None, None), "web:", "33:0 [0, 4, 10]"),
            (ask("", None, None), ":9", "0:9 [9]"),
            (ask("", None, None), "33:34", "33:34 [4, 10, 34]"),
            (ask("web:adm", None, None), "", "33:4 [4]"),
            (ask("a:b:c", None, None), "", "user \"a:b:c\" is not of the form user:group"),
            (ask("", Some(&seven), None), "web", "7:0 [0]"),
            (ask("", Some(&seven), Some(&nine)), "web", "7:9 [9]"),
            (ask("web", Some(&seven), Some(&nine)), "root", "33:9 [4, 9, 10]"),
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
        assert_eq!(shown(request, ""), "33:34 [4, 10, 34, 1000]");
        request.policy = SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(shown(request, ""), "33:34 [34, 1000]");
        request.policy = 7;
        assert_eq!(shown(request, ""), "supplemental groups policy 7 is not known");
        request.policy = 0;
        request.supplemental_groups = &[-5];
        assert_eq!(shown(request, ""), "supplemental group -5 is out of range");
    }

    #[test]
    fn without_any_user_the_base_specs_stays() {
        let start = User { uid: 5, gid: 6, additional_gids: vec![9, 8], ..User::default() };
        let mut request = ask("", None, None);
        request.policy = SupplementalGroupsPolicy::Strict as i32;
        request.supplemental_groups = &[7];
        let user = resolve(request, &image(""), &accounts(), start.clone()).expect("valid");
        assert_eq!((user.uid, user.gid, user.additional_gids), (5, 6, vec![7, 8, 9]));
        let user = resolve(request, &image("web"), &accounts(), start).expect("valid");
        assert_eq!((user.uid, user.gid, user.additional_gids), (33, 34, vec![7, 34]));
    }
}
