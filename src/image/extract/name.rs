//! Names of an archive's files as containerd understands them: lexically, as Go's
//! path/filepath does.

/// The shortest name that means the same: no empty, `.` and inner `..` components, no
/// slash at the end. Only a relative one can still begin with `..`.
pub(super) fn clean(name: &[u8]) -> Vec<u8> {
    let is_rooted = name.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(&last) if last != b".." => drop(parts.pop()),
                _ if is_rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    match (is_rooted, parts.join(&b"/"[..])) {
        (true, name) => [b"/", &name[..]].concat(),
        (false, name) if name.is_empty() => b".".to_vec(),
        (false, name) => name,
    }
}

/// `base` below `folder`, cleaned.
pub(super) fn join(folder: &[u8], base: &[u8]) -> Vec<u8> {
    clean(&[folder, b"/", base].concat())
}

/// What comes before the last slash, and what comes after it. The slash itself belongs to
/// neither, but where it is the root.
pub(super) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b'/', name) {
        None => (b"", name),
        Some(0) => (b"/", &name[1..]),
        Some(slash) => (&name[..slash], &name[slash + 1..]),
    }
}

/// A name for an error's text: not too long, and no control characters.
pub(super) fn shown(name: &[u8]) -> String {
    const BYTES_MAX: usize = 200;
    let end = name.len().min(BYTES_MAX);
    let dots = if end < name.len() { "…" } else { "" };
    format!("\"{}{dots}\"", name[..end].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_lexically() {
        for (name, want) in [
            ("", "."),
            (".", "."),
            ("./", "."),
            ("/", "/"),
            ("//", "/"),
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("a/../b", "b"),
            ("a/..", "."),
            ("/a/../../b", "/b"),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/..", "/"),
            ("../../a/..", "../.."),
            ("...", "..."),
        ] {
            assert_eq!(clean(name.as_bytes()).escape_ascii().to_string(), want, "{name}");
        }
        assert_eq!(join(b"/a/b", b"../c"), b"/a/c");
        assert_eq!((split(b"a/b/c"), split(b"a/")), ((&b"a/b"[..], &b"c"[..]), (&b"a"[..], &b""[..])));
        assert_eq!((split(b"/"), split(b"/a")), ((&b"/"[..], &b""[..]), (&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }

    #[test]
    fn names_in_errors_are_short_and_plain() {
        assert_eq!(shown(b"a\n\xff"), "\"a\\n\\xff\"");
        assert!(shown(&[b'a'; 5000]).len() < 220);
    }
}
