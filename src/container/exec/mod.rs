//! ExecSync and Exec: further processes in a container.

mod ending;
mod session;
mod sync;

use std::time::Duration;

use crate::container::Containers;
use crate::containerd::Exit;
use crate::error::{Kind, Result, precondition};
use crate::state::Container;

/// The longest that the OCI runtime may take to start a process.
const START_LIMIT: Duration = Duration::from_secs(110);
/// How long a killed process may take to be reaped.
const REAP_LIMIT: Duration = Duration::from_secs(30);
/// How often is asked again while containerd is away.
const PAUSE: Duration = Duration::from_secs(1);

impl Containers {
    /// The end of an exec process, however long it takes and however often containerd is
    /// restarted meanwhile.
    async fn exec_ended(&self, container: &Container, exec_id: &str) -> Result<Exit> {
        loop {
            match self.containerd.wait(container.id.as_str(), exec_id).await {
                Err(error) if error.kind() == Kind::Unavailable => {
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = container.ended() => return Err(precondition("the container has ended")),
                    }
                }
                // With the container everything of it goes.
                Err(error) if error.is_not_found() => return Err(error.with_kind(Kind::Unknown)),
                other => return other,
            }
        }
    }
}
