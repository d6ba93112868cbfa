//! What one subscriber reads.

use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::error::{Result, exhausted, internal, unavailable};
use crate::proto::cri::ContainerEventResponse;
use crate::telemetry::METERS;

/// A subscription to all events. It ends with an error.
pub struct Subscription {
    /// What happened before, and nobody has seen; in wire form.
    kept: VecDeque<Vec<u8>>,
    ring: Receiver<Arc<ContainerEventResponse>>,
    sent: u64,
}

impl Subscription {
    pub(super) fn new(kept: VecDeque<Vec<u8>>, ring: Receiver<Arc<ContainerEventResponse>>) -> Subscription {
        Subscription { kept, ring, sent: 0 }
    }

    /// The next event.
    ///
    /// # Errors
    /// ResourceExhausted, with counts, when the subscriber was too slow and has lost some
    /// (EVT-07); Unavailable when the server stops. Nothing comes after an error.
    pub async fn next(&mut self) -> Result<ContainerEventResponse> {
        let event = match self.kept.pop_front() {
            Some(event) => ContainerEventResponse::decode(event.as_slice())
                .map_err(|error| internal(format!("a bug in longshore: a kept event: {error}")))?,
            None => match self.ring.recv().await {
                Ok(event) => Arc::unwrap_or_clone(event),
                Err(RecvError::Lagged(lost)) => {
                    let sent = self.sent;
                    METERS.events_lost(lost);
                    return Err(exhausted(format!(
                        "the subscriber is too slow: {lost} events were lost after {sent} were sent; \
                         subscribe again, and list"
                    )));
                }
                Err(RecvError::Closed) => return Err(unavailable("the server is stopping")),
            },
        };
        self.sent += 1;
        Ok(event)
    }
}
