//! Container output: FIFOs, CRI log files, the keeper, and the capture of ExecSync.
pub mod capture;
mod client;
mod daemon;
mod engine;
pub mod fifo;
mod gate;
pub mod keeper;
mod lanes;
mod line;
mod link;
mod log_file;
mod output;
mod protocol;
mod rest;
mod source;
pub use client::{Keeper, KeeperOptions};
pub use line::LINE_BYTES_CAP;
pub use protocol::{ContainerIo, KeptIo};
