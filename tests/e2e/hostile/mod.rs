//! What strangers put into paths: clients of the CRI, images, CNI plugins, and containers that
//! have the folder of their logs mounted. Nothing outside of where it belongs is read, made,
//! changed or removed by that. docs/security.md says what is defended, and what is not.

mod images;
mod logs;
mod names;
mod removal;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::harness::Node;

/// What is written in the marked file.
const MARK: &str = "root:marked:0:0::/:/bin/sh\n";

/// A folder that is nobody's business, with a marked file and an empty folder.
struct Outside {
    folder: PathBuf,
    before: Vec<Seen>,
}

/// All of a file that a stranger could change: any change of owner, mode, links or content
/// shows in the time of change.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    inode: u64,
    mode: u32,
    changed: (i64, i64),
}

impl Outside {
    fn new(node: &Node) -> Outside {
        let folder = node.place().path("outside");
        std::fs::create_dir_all(folder.join("empty")).expect("a folder");
        std::fs::write(folder.join("file"), MARK).expect("a file");
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.join("file"), closed).expect("permissions");
        let before = seen(&folder);
        Outside { folder, before }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The folder as text.
    fn text(&self) -> String {
        self.folder.display().to_string()
    }

    /// It is as it was; `after` says what was tried.
    fn assert_untouched(&self, after: &str) {
        assert_eq!(seen(&self.folder), self.before, "after {after}");
        assert_eq!(std::fs::read_to_string(self.folder.join("file")).expect("a file"), MARK, "after {after}");
    }
}

fn seen(folder: &Path) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let found = std::fs::symlink_metadata(&path).expect("it is there");
        if found.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder");
            pending.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        let changed = (found.ctime(), found.ctime_nsec());
        all.push(Seen { path, inode: found.ino(), mode: found.mode(), changed });
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}
