//! Paths as text: compared and joined without a look at any file system, by the rules of
//! Go's `path/filepath`, since targets of mounts count as equal where containerd's plugin
//! says so.

/// The shortest path that says the same: no `.`, no doubled or trailing slashes, `..`
/// taken together with what is before it. An empty path is `.`; a relative one stays so.
#[must_use]
pub fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if is_rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    match (is_rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// `name` below `folder`, clean. A `name` that begins with a slash is below it all the same.
#[must_use]
pub fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", "") => String::new(),
        ("", only) | (only, "") => clean(only),
        (folder, name) => clean(&format!("{folder}/{name}")),
    }
}

/// How deep a path is, for the order of mounts: the slashes of its clean form.
#[must_use]
pub fn depth(path: &str) -> usize {
    clean(path).matches('/').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_cleaned_as_text() {
        for (path, want) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("//", "/"),
            ("/a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../a", "/a"),
            ("a/b/..", "a"),
            ("a/..", "."),
            ("../a/../..", "../.."),
            ("/a/b/../../..", "/"),
            ("etc/hosts", "etc/hosts"),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }

    #[test]
    fn what_is_joined_stays_below() {
        for (folder, name, want) in [
            ("/logs", "a/0.log", "/logs/a/0.log"),
            ("/logs/", "/etc/passwd", "/logs/etc/passwd"),
            ("/logs", "../x", "/x"),
            ("", "/a//b", "/a/b"),
            ("/a/../b", "", "/b"),
            ("", "", ""),
        ] {
            assert_eq!(join(folder, name), want, "{folder:?} {name:?}");
        }
        assert_eq!([depth("/"), depth("/a"), depth("/a/b/"), depth("a/b")], [1, 1, 2, 1]);
    }

    proptest! {
        #[test]
        fn a_clean_path_is_its_own_clean_form(path in "[./a]{0,16}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once.clone());
            prop_assert_eq!(path.starts_with('/'), once.starts_with('/'));
        }
    }
}
