//! The sizes of a client's terminal, on their way to that of a process.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::containerd::Containerd;
use crate::io::session::TerminalSize;

/// The sizes that a client sends.
pub(super) struct Sizes {
    /// `None` after the end.
    receiver: Option<mpsc::Receiver<TerminalSize>>,
    newest: Option<TerminalSize>,
}

impl Sizes {
    pub(super) fn new(receiver: Option<mpsc::Receiver<TerminalSize>>) -> Sizes {
        Sizes { receiver, newest: None }
    }

    /// Applies them to a process that has a terminal once it has `started` (STM-21). A
    /// size that cannot be applied is passed over. Never completes.
    pub(super) async fn apply(
        mut self,
        containerd: &Containerd,
        (container_id, exec_id): (&str, &str),
        started: &CancellationToken,
    ) {
        loop {
            let size = self.next(started).await;
            if let Err(error) = containerd.resize_pty(container_id, exec_id, size.width, size.height).await {
                debug!(container = container_id, ?size, %error, "a terminal was not resized");
            }
        }
    }

    /// The next size once `started` is there; of several that wait the newest. Does not
    /// complete after the end.
    async fn next(&mut self, started: &CancellationToken) -> TerminalSize {
        loop {
            while let Some(Ok(size)) = self.receiver.as_mut().map(mpsc::Receiver::try_recv) {
                self.take(size);
            }
            if started.is_cancelled()
                && let Some(size) = self.newest.take()
            {
                return size;
            }
            tokio::select! {
                size = receive(&mut self.receiver) => match size {
                    Some(size) => self.take(size),
                    None => self.receiver = None,
                },
                () = started.cancelled(), if self.newest.is_some() => {}
            }
        }
    }

    /// A terminal without columns or lines is none (STM-20).
    fn take(&mut self, size: TerminalSize) {
        if size.width > 0 && size.height > 0 {
            self.newest = Some(size);
        }
    }
}

async fn receive(receiver: &mut Option<mpsc::Receiver<TerminalSize>>) -> Option<TerminalSize> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_many_sizes_the_newest_is_applied_once_there_is_a_process() {
        let (sender, receiver) = mpsc::channel(4);
        let started = CancellationToken::new();
        let size = |width, height| TerminalSize { width, height };
        let mut sizes = Sizes::new(Some(receiver));
        let client = async {
            // More than the queue holds.
            for width in 1..=10 {
                sender.send(size(width, 5)).await.expect("it is taken");
            }
            sender.send(size(0, 5)).await.expect("it is taken");
            while sender.capacity() < sender.max_capacity() {
                tokio::task::yield_now().await;
            }
            started.cancel();
        };
        let (first, ()) = tokio::join!(sizes.next(&started), client);
        assert_eq!(first, size(10, 5));
        sender.send(size(81, 25)).await.expect("it is taken");
        sender.send(size(80, 24)).await.expect("it is taken");
        // The last one counts although its client has gone.
        drop(sender);
        assert_eq!(sizes.next(&started).await, size(80, 24));
        tokio::select! {
            biased;
            _ = sizes.next(&started) => panic!("there is no other"),
            () = tokio::task::yield_now() => {}
        }
    }
}
