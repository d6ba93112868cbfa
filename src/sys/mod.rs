//! The host: every unsafe block and raw system call of the crate.

pub mod inotify;
pub mod netns;
pub mod process;
