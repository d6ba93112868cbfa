//! Layers as longshore unpacks them, and as containerd does: the same, file by file.
//!
//! Every case is pulled four times: by longshore's own extraction and by containerd's
//! Diff.Apply, into overlayfs and native snapshots. The folders of all layers are then
//! compared as they lie on the disk, whiteouts included.

mod abort;
#[path = "../../../src/image/extract/tests/archive.rs"]
mod archive;
mod case;
mod escapes;
mod listing;
mod names;
mod pair;
mod random;
mod streams;
mod types;
mod whiteouts;
