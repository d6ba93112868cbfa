//! A subscriber of container events.

use std::time::Duration;

use longshore::proto::cri::{ContainerEventResponse, ContainerEventType, ContainerStatus, GetEventsRequest};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::{Cri, LIMIT, patient};

/// An event: whose, and which.
pub(crate) type Seen = (String, ContainerEventType);

/// A subscriber. What comes is taken in at once, by a task of its own.
pub(crate) struct Events {
    arrived: mpsc::UnboundedReceiver<Result<ContainerEventResponse, Status>>,
    answered: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Events {
    /// Subscribes, sooner or later: a Go server answers with its first event.
    pub(crate) fn of(cri: &Cri) -> Events {
        let (sender, arrived) = mpsc::unbounded_channel();
        let (answer, answered) = watch::channel(false);
        let mut runtime = cri.runtime();
        let task = tokio::spawn(async move {
            let mut stream = match runtime.get_container_events(GetEventsRequest {}).await {
                Ok(stream) => stream.into_inner(),
                Err(error) => return drop(sender.send(Err(error))),
            };
            answer.send_replace(true);
            loop {
                match stream.message().await {
                    Ok(Some(event)) => drop(sender.send(Ok(event))),
                    Ok(None) => return,
                    Err(error) => return drop(sender.send(Err(error))),
                }
            }
        });
        Events { arrived, answered, task }
    }

    /// Waits until the subscription stands; only a server that answers at once shows it.
    pub(crate) async fn subscribed(mut self) -> Events {
        self.answered.wait_for(|answered| *answered).await.expect("an answer");
        self
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> ContainerEventResponse {
        self.next_or_end().await.expect("no end").expect("an event")
    }

    /// The next event, or how the stream ended.
    pub(crate) async fn next_or_end(&mut self) -> Option<Result<ContainerEventResponse, Status>> {
        let limit: Duration = patient(LIMIT);
        tokio::time::timeout(limit, self.arrived.recv()).await.expect("waited in vain for an event")
    }

    /// All events up to this one.
    pub(crate) async fn up_to(&mut self, id: &str, kind: ContainerEventType) -> Vec<ContainerEventResponse> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let is_last = seen(&event) == (id.to_owned(), kind);
            events.push(event);
            if is_last {
                return events;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whose event it is, and which.
pub(crate) fn seen(event: &ContainerEventResponse) -> Seen {
    (event.container_id.clone(), event.container_event_type())
}

/// What an event says of a container.
pub(crate) fn status_in<'a>(event: &'a ContainerEventResponse, id: &str) -> Option<&'a ContainerStatus> {
    event.containers_statuses.iter().find(|status| status.id == id)
}
