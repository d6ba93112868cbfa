//! Everything about the files of a folder, as text.

use std::collections::HashMap;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::fixture::digest;

/// A line for each file below `root`, and one for itself: path, type, mode, owner, device,
/// content, times, extended attributes, and which path has the same inode. A time after
/// `start` is that of the unpacking, and only told as "now".
pub(crate) fn listing(root: &Path, start: i64) -> Vec<String> {
    let mut list = Listing { root, start, inodes: HashMap::new(), lines: Vec::new() };
    list.add(root.to_owned());
    list.lines
}

struct Listing<'a> {
    root: &'a Path,
    start: i64,
    inodes: HashMap<u64, PathBuf>,
    lines: Vec<String>,
}

impl Listing<'_> {
    fn add(&mut self, path: PathBuf) {
        // Before anything is read, which changes the access time.
        let status = std::fs::symlink_metadata(&path).expect("there");
        let kind = status.file_type();
        let name = path.strip_prefix(self.root).expect("below").to_owned();
        let mut line = format!("/{} ", name.as_os_str().as_bytes().escape_ascii());
        let letter = match () {
            () if kind.is_dir() => 'd',
            () if kind.is_file() => '-',
            () if kind.is_symlink() => 'l',
            () if kind.is_char_device() => 'c',
            () if kind.is_block_device() => 'b',
            () if kind.is_fifo() => 'p',
            () => '?',
        };
        let time = |seconds: i64, nanoseconds: i64| {
            if seconds >= self.start { "now".into() } else { format!("{seconds}.{nanoseconds:09}") }
        };
        let (mtime, atime) = (
            time(status.mtime(), status.mtime_nsec()),
            // A folder's is changed by whoever looks into it.
            if kind.is_dir() { String::new() } else { time(status.atime(), status.atime_nsec()) },
        );
        write!(
            line,
            "{letter}{:o} {}:{} rdev {:x} links {} mtime {mtime} atime {atime}",
            status.mode() & 0o7777,
            status.uid(),
            status.gid(),
            if kind.is_char_device() || kind.is_block_device() { status.rdev() } else { 0 },
            if kind.is_dir() { 0 } else { status.nlink() },
        )
        .expect("a string grows");
        for (name, value) in xattrs(&path) {
            write!(line, " {}={}", name.escape_ascii(), value.escape_ascii()).expect("a string grows");
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).expect("a link");
            write!(line, " -> {}", target.as_os_str().as_bytes().escape_ascii()).expect("a string grows");
        }
        if !kind.is_dir() {
            let first = self.inodes.entry(status.ino()).or_insert_with(|| name.clone());
            if *first != name {
                write!(line, " same as {}", first.display()).expect("a string grows");
            }
        }
        if kind.is_file() {
            let content = std::fs::read(&path).expect("reads");
            write!(line, " {} {}", content.len(), digest(&content)).expect("a string grows");
        }
        self.lines.push(line);
        if kind.is_dir() {
            let mut inner: Vec<PathBuf> = std::fs::read_dir(&path)
                .expect("reads")
                .map(|entry| entry.expect("an entry").path())
                .collect();
            inner.sort();
            inner.into_iter().for_each(|path| self.add(path));
        }
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).expect("attributes");
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut list: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).expect("a value");
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    list.sort();
    list
}
