//! Events, and the connection's state.
//!
//! [`Containerd::watch`] holds one subscription. It is opened before anything is
//! loaded, so that nothing in between is lost (REC-03); its end is how a dead
//! containerd is noticed, and after every reconnect the capabilities are asked again
//! and the consumer compares everything (design D10).

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events as messages;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::events_client::EventsClient;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::any::decode;
use super::{Containerd, Exit, Link, MESSAGE_BYTES_MAX, nanoseconds};
use crate::error::Result;

/// What happened in containerd.
#[derive(Clone, Debug)]
pub enum Event {
    /// Connected, for the first time or again: whatever happened before is unknown.
    Connected,
    /// A process ended.
    Exit {
        /// The container.
        container_id: String,
        /// The process: the container's id for its main process, else an exec id (CTR-45).
        process_id: String,
        /// How it ended.
        exit: Exit,
    },
    /// The kernel killed something in the container's cgroup for memory.
    OutOfMemory {
        /// The container.
        container_id: String,
    },
    /// An image name was created, moved or deleted.
    Image {
        /// The name.
        name: String,
    },
}

/// Waits between attempts to connect: short at first (REC-17).
const BACKOFF: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(700),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

impl Containerd {
    /// Keeps [`Link`] true and sends events until `stop`.
    pub async fn watch(self, events: mpsc::Sender<Event>, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let reason = tokio::select! {
                ended = self.follow(&events, &mut failures) => match ended {
                    Ok(()) => "the event stream ended".to_owned(),
                    Err(error) => error.message().to_owned(),
                },
                () = stop.cancelled() => return,
            };
            if failures == 0 {
                warn!(%reason, "containerd does not answer; retrying");
            }
            self.link.send_replace(Link::Down(reason));
            let pause = BACKOFF[failures.min(BACKOFF.len() - 1)];
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection, from its introspection to its end.
    async fn follow(&self, events: &mpsc::Sender<Event>, failures: &mut usize) -> Result<()> {
        let capabilities = self.introspect().await?;
        let namespace = self.wire.namespace();
        let topics = ["/tasks/exit", "/tasks/oom", "/images/create", "/images/update", "/images/delete"];
        let request = api::SubscribeRequest {
            filters: topics
                .iter()
                .map(|topic| format!("namespace==\"{namespace}\",topic==\"{topic}\""))
                .collect(),
        };
        let mut client = EventsClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        // Subscribe sends its headers with the first event only: the call is polled
        // beside the rest, never awaited alone.
        let mut subscription = std::pin::pin!(client.subscribe(request));
        let started = tokio::select! {
            early = &mut subscription => Some(early),
            // containerd has the subscription when it answers a later call on this connection.
            answered = self.version(Duration::from_secs(10)) => { answered?; None }
        };
        info!(version = capabilities.raw_version(), "connected to containerd");
        *failures = 0;
        self.link.send_replace(Link::Up(Arc::new(capabilities)));
        if events.send(Event::Connected).await.is_err() {
            return Ok(());
        }
        let stream = match started {
            Some(early) => early,
            None => subscription.await,
        };
        let mut stream =
            stream.map_err(|status| super::error::from_status("Events.Subscribe", &status))?.into_inner();
        while let Some(envelope) =
            stream.message().await.map_err(|status| super::error::from_status("Events.Subscribe", &status))?
        {
            if let Some(event) = envelope.event.as_ref().and_then(event_of)
                && events.send(event).await.is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn event_of(any: &prost_types::Any) -> Option<Event> {
    if let Some(exit) = decode::<messages::TaskExit>(any, "containerd.events.TaskExit") {
        return Some(Event::Exit {
            container_id: exit.container_id,
            process_id: exit.id,
            exit: Exit { code: exit.exit_status, at: nanoseconds(exit.exited_at) },
        });
    }
    if let Some(oom) = decode::<messages::TaskOom>(any, "containerd.events.TaskOOM") {
        return Some(Event::OutOfMemory { container_id: oom.container_id });
    }
    // Created, updated, deleted: one shape as far as the name goes.
    let kind = any.type_url.rsplit('.').next().unwrap_or_default();
    if !["ImageCreate", "ImageUpdate", "ImageDelete"].contains(&kind) {
        return None;
    }
    let image = api::ImageDelete::decode(any.value.as_slice()).ok()?;
    Some(Event::Image { name: image.name })
}
