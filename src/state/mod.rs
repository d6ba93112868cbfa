//! What is known of pods and containers: records, status files, tables.
//!
//! containerd's container records are the truth about identity and config, a small
//! status file per container about times, exit codes and reasons; the tables here are
//! made from both (design D1). Everything has the form of containerd's built-in plugin
//! (D2), so that it can take over and be taken over from.

pub mod checkpoint;
pub mod container;
pub mod levels;
pub mod paths;
pub mod pod;
pub mod record;
pub mod store;

pub use container::Container;
pub use levels::Levels;
pub use paths::Paths;
pub use pod::Pod;
pub use store::Store;
