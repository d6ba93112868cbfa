//! Attach: a client's streams, connected to those of a container.
//!
//! Output comes from the keeper, which reads it in any case and shows it from now on;
//! input goes straight into the container's FIFO. Who ends first:
//!
//! | who | what follows |
//! |---|---|
//! | the container | the rest of its output, then the end |
//! | the client's input | with `stdin_once` and no terminal the container's input is closed for good (EXE-15) and the output goes on; else the client is detached, as by containerd's plugin |
//! | the client | it is detached (EXE-16); `stdin_once` counts as if its input had ended |
//! | the keeper, or the server | an error; the container's input stays open |

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Containers;
use super::terminal::Sizes;
use crate::error::{Kind, Result, canceled, invalid, unavailable};
use crate::io::InputEnd;
use crate::io::session::{Incoming, Session};
use crate::proto::cri::AttachRequest;
use crate::state::Container;

impl Containers {
    /// Whether a request to attach can be met (EXE-12). The same is asked again
    /// when its client connects.
    ///
    /// # Errors
    /// InvalidArgument; NotFound; FailedPrecondition unless the container runs.
    pub fn check_attach(&self, request: &AttachRequest) -> Result<()> {
        self.attach_target(&request.container_id).map(drop)
    }

    /// Connects a client's streams with those of a running container, until the container
    /// has ended and its output was handed over, or the client has gone. Streams that the
    /// container does not have are passed over: input (EXE-13), standard error and sizes of
    /// a terminal.
    ///
    /// It runs on a task of its own: the caller may stop waiting when its client has gone.
    ///
    /// # Errors
    /// As [`Containers::check_attach`]; ResourceExhausted when the client does not keep up
    /// with the output (LOG-18); Unavailable when the keeper has gone, or the server stops;
    /// Canceled when the client has gone.
    pub async fn attach(&self, container_id: &str, session: Session) -> Result<()> {
        let container = self.attach_target(container_id)?;
        let this = self.clone();
        self.flow
            .detach(async move {
                let done = this.attach_session(&container, session).await;
                done.map_err(|error| error.context(format!("attach to container {}", container.id)))
            })
            .await
    }

    fn attach_target(&self, container_id: &str) -> Result<Arc<Container>> {
        if container_id.is_empty() {
            return Err(invalid("no container id is given"));
        }
        let container = self.store.container(container_id)?;
        container.require_running()?;
        Ok(container)
    }

    async fn attach_session(&self, container: &Container, session: Session) -> Result<()> {
        let Session { stdin, stdout, stderr, resizes, gone } = session;
        let (id, config) = (container.id.as_str(), &container.metadata.config);
        let attached = match self.keeper.attach(id, stdout.is_some(), stderr.is_some()).await {
            Err(error) if error.is_not_found() => {
                // It has just ended.
                container.require_running()?;
                return Err(error.with_kind(Kind::FailedPrecondition));
            }
            other => other?,
        };
        let stdin = stdin.filter(|_| config.stdin);
        let ends_input = stdin.is_some() && config.stdin_once && !config.tty;
        let (sizes, started) = (Sizes::new(resizes.filter(|_| config.tty)), CancellationToken::new());
        started.cancel();
        let ended = tokio::select! {
            ended = attached.forward(stdout, stderr) => ended,
            () = self.feed_container(container, stdin, ends_input) => Ok(()),
            () = sizes.apply(&self.containerd, (id, ""), &started) => Ok(()),
            () = gone.cancelled() => Err(canceled("the client went away")),
            () = self.flow.stopping() => Err(unavailable("the server is stopping")),
        };
        let is_ours = matches!(&ended, Err(error) if error.kind() == Kind::Unavailable);
        if ends_input && !is_ours {
            self.close_input(container).await;
        }
        ended
    }

    /// Brings the client's input to the container. Completes when that detaches the client.
    async fn feed_container(&self, container: &Container, stdin: Option<Incoming>, ends_input: bool) {
        if let Some(from) = stdin {
            let end = match self.keeper.stdin(container.id.as_str()) {
                Ok(Some(input)) => input.feed(from).await,
                Ok(None) => InputEnd::Container,
                Err(error) => {
                    debug!(container = %container.id, %error, "no input for a container");
                    InputEnd::Container
                }
            };
            match end {
                InputEnd::Client if ends_input => self.close_input(container).await,
                InputEnd::Client => return,
                InputEnd::Container => {}
            }
        }
        std::future::pending().await
    }

    /// Closes the container's standard input for good, at all who hold it open. Once is
    /// enough.
    async fn close_input(&self, container: &Container) {
        let id = container.id.as_str();
        let (keeper, shim) = tokio::join!(self.keeper.close_stdin(id), self.containerd.close_stdin(id, ""));
        for error in [keeper.err(), shim.err()].into_iter().flatten() {
            debug!(container = id, %error, "the input of a container was not closed");
        }
    }
}
