//! The users and groups of an image: the texts of its /etc/passwd and /etc/group.

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

    /// Bytes of both files.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
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

    /// The groups that list the user `name` as a member (OCI-07), in the file's order; a
    /// group of the user's own name is no supplemental one.
    #[must_use]
    pub fn groups_of_user(&self, name: &str) -> Vec<u32> {
        let lists = |group: &&Group| group.name != name && group.members.iter().any(|member| member == name);
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

    proptest! {
        #[test]
        fn parsing_never_panics(passwd in any::<Vec<u8>>(), group in any::<Vec<u8>>()) {
            let accounts = Accounts::parse(&passwd, &group);
            let _ = accounts.groups_of_user("a");
        }
    }
}
