//! The host: every unsafe block and raw system call of the crate.
#![allow(unsafe_code)] // the one place for it

pub mod apparmor;
pub mod beneath;
pub mod cgroup;
pub mod copy;
pub mod idmap;
pub mod inherit;
pub mod inotify;
pub mod interfaces;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod netns;
pub mod owners;
pub mod process;
pub mod processes;
pub mod relabel;
pub mod remove;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod usage;
pub mod userns;
