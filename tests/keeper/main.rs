//! The keeper as a process of its own, with real FIFOs and files: what it writes, whom it
//! outlives, who replaces it, whom it listens to, and when it ends.
//!
//! Each test has a state folder, and so a keeper, of its own, and ends it.

mod attach;
mod clients;
mod disk;
mod fixture;
mod life;
mod limit;
mod output;
mod upgrade;
