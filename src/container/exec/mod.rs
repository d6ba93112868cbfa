//! ExecSync and Exec: further processes in a container.

mod session;
mod sync;

use std::time::Duration;

/// The longest that the OCI runtime may take to start a process.
const START_LIMIT: Duration = Duration::from_secs(110);
