//! Names with links in them: where containerd finds what they mean below a root.
//!
//! It is no lookup as the kernel does it. Links are replaced in the text of the name, one
//! level of them in each pass, until none is left; `..` goes up in the text, also behind
//! something that is not there or is a link; what is not there is taken as it stands. The
//! same rules are followed here (those of RootPath in containerd's continuity), since a
//! layer with such names would come out differently otherwise. Only one thing is not
//! followed: links on the way of a look at a link, which containerd lets lead out of the
//! root, lead nowhere here.

use std::os::fd::BorrowedFd;

use super::name::{clean, join, shown};
use super::{At, Result, unsupported};
use crate::error::unknown;
use crate::sys::beneath;

/// The most links that one name leads over.
const LINKS_MAX: usize = 255;
/// The most components of a name: looking at each of them costs time that grows with the
/// square. No real image comes near.
const COMPONENTS_MAX: usize = 255;

/// The path below `root` that `name` means: without links, relative, empty for the root.
/// Whether it exists is another question.
///
/// # Errors
/// Too many links; a folder on the way that is none; Unsupported for very deep names.
pub(super) fn resolve(root: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let mut path = name.to_vec();
    let mut links = 0;
    loop {
        let before = links;
        path = pass(root, &path, &mut links)?;
        if links == before {
            let path = join(b"/", &path);
            return Ok(path[1..].to_vec());
        }
    }
}

/// Replaces links once.
fn pass(root: BorrowedFd<'_>, path: &[u8], links: &mut usize) -> Result<Vec<u8>> {
    let mut at = path.starts_with(b"/").then(|| b"/".to_vec());
    let parts = || path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    if parts().count() > COMPONENTS_MAX {
        return Err(unsupported(format!("the name {} is too deep", shown(path))));
    }
    for part in parts() {
        if *links > LINKS_MAX {
            return Err(unknown(format!("the name {} leads over too many links", shown(path))).into());
        }
        let place = at.as_ref().map_or_else(|| part.to_vec(), |at| join(at, part));
        let place = clean(&[b"/", &place[..]].concat());
        let target = match place.as_slice() {
            b"/" => None,
            _ => beneath::link_target(root, &place[1..]).at(|| format!("look at {}", shown(&place)))?,
        };
        *links += usize::from(target.is_some());
        at = Some(match (target, at) {
            (None, _) => place,
            (Some(target), None) => target,
            (Some(target), Some(_)) if target.starts_with(b"/") => target,
            (Some(target), Some(at)) => join(&at, &target),
        });
    }
    Ok(at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_mean_what_they_mean_to_containerd() {
        let dir = tempfile::tempdir().expect("folder");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("d/e/f")).expect("folders");
        for (name, to) in [
            ("link", "d/e"),
            ("absolute", "/d/e"),
            ("up", "../../../d"),
            ("dangling", "/new/folder"),
            ("gone", "missing/../d"),
            ("loop", "loop"),
            ("d/back", "../link"),
            ("d/e/f/two", "../.."),
            ("chain", "absolute/f"),
            ("quirk", "chain/two/x"),
            ("out", "/etc"),
        ] {
            symlink(to, root.join(name)).expect("link");
        }
        let root = std::fs::File::open(root).expect("opens");
        let resolve = |name: &str| {
            resolve(root.as_fd(), name.as_bytes()).map(|path| String::from_utf8(path).expect("text")).ok()
        };
        for (name, want) in [
            ("", ""),
            ("/", ""),
            ("..", ""),
            ("../../d", "d"),
            ("d/e", "d/e"),
            ("/link/f", "d/e/f"),
            ("absolute/f", "d/e/f"),
            ("up", "d"),
            ("up/e", "d/e"),
            ("dangling/x", "new/folder/x"),
            ("gone/e", "d/e"),
            ("d/back/f", "d/e/f"),
            // The text counts: up from "link", not from what it leads to.
            ("link/../x", "d/x"),
            ("/link/../x", "d/x"),
            ("none/../x", "x"),
            ("chain/two", "d"),
            ("out/passwd", "etc/passwd"),
        ] {
            assert_eq!(resolve(name).as_deref(), Some(want), "{name}");
        }
        assert_eq!(resolve("loop/x"), None);
        assert_eq!(resolve(&"a/".repeat(300)), None);
    }
}
