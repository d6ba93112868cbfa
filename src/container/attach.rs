//! Attach: a client's streams, connected to those of a container.

use super::Containers;
use super::exec::check_streams;
use crate::error::{Result, invalid, unimplemented};
use crate::io::session::Session;
use crate::proto::cri::AttachRequest;

impl Containers {
    /// Whether a request to attach can be met (EXE-11, EXE-12). The same is asked again
    /// when its client connects.
    ///
    /// # Errors
    /// InvalidArgument; NotFound; FailedPrecondition unless the container runs.
    pub fn check_attach(&self, request: &AttachRequest) -> Result<()> {
        check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        if request.container_id.is_empty() {
            return Err(invalid("no container id is given"));
        }
        self.store.container(&request.container_id)?.require_running()
    }

    /// Connects a client's streams with those of a running container, until the container
    /// has ended and its output was handed over, or the client has gone.
    ///
    /// # Errors
    /// As [`Containers::check_attach`]; ResourceExhausted when the client does not keep up
    /// with the output; Unavailable when the server stops.
    pub async fn attach(&self, container_id: &str, session: Session) -> Result<()> {
        let _ = (container_id, session);
        Err(unimplemented("attach"))
    }
}
