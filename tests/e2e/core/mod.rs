//! What every CRI server must show. Ids like SBX-13 name the behaviours.

mod container;
mod errors;
mod events;
mod exec;
mod exit;
mod image;
mod image_volumes;
mod list;
mod logs;
mod metrics;
mod namespaces;
mod network;
mod node;
mod process;
mod resources;
mod sandbox;
mod sandbox_end;
mod sandbox_files;
mod selinux;
mod stats;
mod stop;
mod user_namespaces;

use std::time::{SystemTime, UNIX_EPOCH};

use tonic::{Code, Status};

use crate::harness::Node;

/// The code that a call failed with; OK if it did not fail.
fn code<T>(result: Result<T, Status>) -> Code {
    result.err().map_or(Code::Ok, |status| status.code())
}

/// Whether the server is containerd's plugin of an older version than `major.minor`, which
/// does not show a behaviour yet.
fn is_plugin_before(node: &Node, major: u32, minor: u32) -> bool {
    let version = node.containerd_version();
    node.is_built_in() && (version.major, version.minor) < (major, minor)
}

/// Now, as the CRI tells times.
fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_nanos()).expect("before 2262")
}

/// An id that nothing has.
const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
