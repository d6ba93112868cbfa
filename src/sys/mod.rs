//! The host: every unsafe block and raw system call of the crate.

pub mod beneath;
pub mod inotify;
pub mod mount;
pub mod netns;
pub mod process;
