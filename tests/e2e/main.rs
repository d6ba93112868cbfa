//! The server as a process against real parts: containerd, runc, CNI plugins, a registry.
//!
//! `core` holds what every CRI server must show; it runs against containerd's own plugin
//! too (`LONGSHORE_TEST_SERVER=built-in`), which proves the tests. [`harness`] makes the
//! nodes, and says which variables change them.

#[allow(dead_code, unused_imports)] // offers more than the tests use today
mod harness;

mod cdi;
mod chaos;
mod check;
mod choices;
mod command;
mod config_import;
mod core;
mod debugging;
mod events;
mod explain;
mod faults;
mod fuzz;
mod handlers;
mod harness_check;
mod hostile;
mod image_volumes;
mod load;
mod log_limit;
mod metrics;
mod neighbours;
mod overload;
mod page;
mod pull_kills;
mod reconcile;
mod record;
mod restart;
mod secrets;
mod smoke;
mod soak;
mod stats;
mod streaming;
mod telemetry;
mod trace;
mod traces;
mod user_namespaces;
mod vm;
