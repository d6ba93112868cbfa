//! The end of an exec process: nothing of it is left in the container, in the shim or on disk.

use std::sync::Arc;

use tracing::{info, warn};

use super::{PAUSE, REAP_LIMIT};
use crate::container::Containers;
use crate::containerd::Link;
use crate::error::{Error, Kind, Result, deadline};
use crate::flow;
use crate::io::fifo::Fifos;
use crate::state::Container;

const SIGKILL: u32 = 9;

impl Containers {
    /// Deletes an exec process, killed first if it runs, and then its FIFOs (EXE-09). `false` if
    /// containerd cannot be asked now: that goes on in the background then, and the FIFOs stay,
    /// since by them the next server finds the process (REC-14).
    pub(crate) async fn end_exec(&self, container: &Arc<Container>, exec_id: &str, fifos: &Fifos) -> bool {
        let is_done = self.try_to_end(container, exec_id, fifos).await;
        if !is_done {
            self.end_exec_later(container, exec_id, fifos);
        }
        is_done
    }

    /// Does that in the background, as soon as containerd answers.
    pub(super) fn end_exec_later(&self, container: &Arc<Container>, exec_id: &str, fifos: &Fifos) {
        info!(container = %container.id, exec = exec_id, "an exec process is ended once containerd answers");
        let (this, container) = (self.clone(), container.clone());
        let (exec_id, fifos) = (exec_id.to_owned(), fifos.clone());
        let mut link = self.containerd.link_changes();
        tokio::spawn(async move {
            let ended = async {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let _ = link.wait_for(|link| matches!(link, Link::Up(_))).await;
                    if this.try_to_end(&container, &exec_id, &fifos).await {
                        return;
                    }
                }
            };
            tokio::select! {
                () = ended => {}
                // With the container everything of it goes.
                () = container.ended() => {}
                () = this.flow.stopping() => {}
            }
        });
    }

    async fn try_to_end(&self, container: &Container, exec_id: &str, fifos: &Fifos) -> bool {
        let id = container.id.as_str();
        match self.delete_exec(id, exec_id).await {
            Err(error) if is_unanswered(&error) => return false,
            Err(error) => {
                warn!(container = id, exec = exec_id, %error, "an exec process could not be deleted");
            }
            Ok(()) => {}
        }
        let fifos = fifos.clone();
        if let Err(error) = flow::blocking(move || fifos.remove()).await {
            warn!(container = id, %error, "the FIFOs of an exec could not be removed");
        }
        true
    }

    async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let refused = match self.containerd.delete_exec(id, exec_id).await {
            Err(error) if !is_unanswered(&error) => error,
            done => return done,
        };
        // One that runs is not deleted.
        match self.kill_exec(id, exec_id).await {
            Err(error) if is_unanswered(&error) => Err(error),
            Err(_) => Err(refused),
            Ok(()) => self.containerd.delete_exec(id, exec_id).await,
        }
    }

    /// SIGKILL, and waits until the process is reaped. One that is gone is fine.
    pub(super) async fn kill_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        match self.containerd.kill(id, exec_id, SIGKILL, false).await {
            Err(error) if !error.is_not_found() && !error.message().contains("process already finished") => {
                return Err(error);
            }
            _ => {}
        }
        match tokio::time::timeout(REAP_LIMIT, self.containerd.wait(id, exec_id)).await {
            Ok(Err(error)) if !error.is_not_found() => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(deadline("the process did not end after SIGKILL")),
        }
    }
}

/// Whether it is not known what became of a call.
pub(super) fn is_unanswered(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded)
}
