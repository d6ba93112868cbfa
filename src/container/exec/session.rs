//! Exec: a command whose streams are a client's.

use crate::container::Containers;
use crate::error::{Result, invalid, unimplemented};
use crate::io::session::Session;
use crate::proto::cri::ExecRequest;

impl Containers {
    /// Whether a request to exec can be met (EXE-11, EXE-12). The same is asked again when
    /// its client connects.
    ///
    /// # Errors
    /// InvalidArgument; NotFound; FailedPrecondition unless the container runs.
    pub fn check_exec(&self, request: &ExecRequest) -> Result<()> {
        if request.container_id.is_empty() {
            return Err(invalid("no container id is given"));
        }
        if request.cmd.is_empty() {
            return Err(invalid("no command is given"));
        }
        self.store.container(&request.container_id)?.require_running()
    }

    /// Runs a command in a container with a client's streams, and gives its exit code.
    /// When this returns, all output was handed over and the session's streams have ended;
    /// the status is for the caller to send.
    ///
    /// The process is looked after on a task of its own: the caller may stop waiting.
    ///
    /// # Errors
    /// As [`Containers::check_exec`]; the runtime's whole text when the process does not
    /// start (EXE-08); Unavailable when the server stops.
    pub async fn exec(
        &self,
        container_id: &str,
        cmd: Vec<String>,
        tty: bool,
        session: Session,
    ) -> Result<i32> {
        let _ = (container_id, cmd, tty, session);
        Err(unimplemented("exec"))
    }
}
