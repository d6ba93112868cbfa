//! Events of pods and containers: who subscribed, what they know, what they missed (area EVT).
//!
//! ```text
//!  a change is visible ─▶ tell ─▶ what is not told yet, in order ─┬─▶ ring ─▶ every subscription
//!                                                                 └─▶ kept, while nobody subscribes
//! ```
//! An object is told of by its state, not by what was done to it: [`Events::tell`] gets every
//! step that the object has gone through, and sends those that were not sent before. So one
//! that ends while its start is still being reported is first started, then stopped, whoever
//! comes first; nothing is sent twice; and a step that one place forgot comes with the next
//! (EVT-05).
//!
//! Nobody waits for a subscriber. All read from one ring of the last [`RING_EVENTS`] events;
//! who falls behind by more is told how many he lost, and his stream ends (EVT-07): the
//! kubelet then subscribes again and lists. Without a subscriber the latest events are kept
//! for the next one, for [`KEEP`] and within bounds (EVT-06).

mod subscription;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tracing::debug;

pub use subscription::Subscription;

use crate::error::{Result, exhausted, unavailable};
use crate::flow::lock;
use crate::proto::cri::{ContainerEventResponse, ContainerEventType, ContainerStatus, PodSandboxStatus};

/// How far a subscriber may fall behind.
const RING_EVENTS: usize = 1024;
/// How long events are kept while nobody subscribes, as in containerd's plugin.
const KEEP: Duration = Duration::from_secs(5 * 60);
/// How many events are kept.
const KEPT_EVENTS_MAX: usize = 1024;
/// How large the kept events may be together.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Subscriptions at the same time: the kubelet has one.
const SUBSCRIPTIONS_MAX: usize = 64;

/// The steps in the life of a pod or container, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// It is listed.
    Created = 1,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

impl Step {
    fn event_type(self) -> ContainerEventType {
        match self {
            Step::Created => ContainerEventType::ContainerCreatedEvent,
            Step::Started => ContainerEventType::ContainerStartedEvent,
            Step::Stopped => ContainerEventType::ContainerStoppedEvent,
            Step::Deleted => ContainerEventType::ContainerDeletedEvent,
        }
    }
}

/// The last step of an object that was told; a part of the object, so that nothing is told
/// of one that is gone.
#[derive(Debug, Default)]
pub struct Told(AtomicU8);

impl Told {
    /// Everything up to `step` counts as told: by the server before this one.
    pub fn known(&self, step: Step) {
        self.0.store(step as u8, Ordering::Relaxed);
    }
}

/// What an event says of the pod at that moment (EVT-03).
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The pod.
    pub pod: Option<PodSandboxStatus>,
    /// All of its containers.
    pub containers: Vec<ContainerStatus>,
}

/// The events of this server. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Mutex<Inner>>);

struct Inner {
    /// None when the server stops.
    ring: Option<broadcast::Sender<Arc<ContainerEventResponse>>>,
    kept: Kept,
    /// The time of the last event.
    last: i64,
}

/// Events that nobody has subscribed to yet, in their wire form: that is a third of what they
/// take else.
#[derive(Default)]
struct Kept {
    events: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Default for Events {
    fn default() -> Events {
        Events(Arc::new(Mutex::new(Inner {
            ring: Some(broadcast::Sender::new(RING_EVENTS)),
            kept: Kept::default(),
            last: 0,
        })))
    }
}

impl Events {
    /// Tells of each of `steps` that comes after the last one that was told of this object.
    /// `picture` is taken if there is anything to tell, and events are sent in the order in
    /// which their pictures were taken: a later one never shows an older state. `picture`
    /// must not tell of anything.
    pub fn tell(&self, id: &str, told: &Told, steps: &[Step], picture: impl FnOnce() -> Picture) {
        let mut inner = lock(&self.0);
        let last = told.0.load(Ordering::Relaxed);
        let due: Vec<Step> = steps.iter().copied().filter(|step| *step as u8 > last).collect();
        let Some(newest) = due.iter().max() else { return };
        told.known(*newest);
        if inner.ring.is_none() {
            return;
        }
        let Picture { pod, containers } = picture();
        for step in due {
            inner.send(ContainerEventResponse {
                container_id: id.to_owned(),
                container_event_type: step.event_type() as i32,
                created_at: 0,
                pod_sandbox_status: pod.clone(),
                containers_statuses: containers.clone(),
            });
        }
    }

    /// All events from now on, after those that were kept for the first who comes (EVT-01,
    /// EVT-06).
    ///
    /// # Errors
    /// ResourceExhausted for one subscription too many; Unavailable when the server stops.
    pub fn subscribe(&self) -> Result<Subscription> {
        let mut inner = lock(&self.0);
        let Some(ring) = &inner.ring else { return Err(unavailable("the server is stopping")) };
        if ring.receiver_count() >= SUBSCRIPTIONS_MAX {
            return Err(exhausted(format!("there are {SUBSCRIPTIONS_MAX} subscriptions to events already")));
        }
        let ring = ring.subscribe();
        Ok(Subscription::new(inner.kept.take(), ring))
    }

    /// How many subscribe now.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        lock(&self.0).ring.as_ref().map_or(0, broadcast::Sender::receiver_count)
    }

    /// Ends all subscriptions: the server stops.
    pub fn close(&self) {
        lock(&self.0).ring = None;
    }
}

impl Inner {
    fn send(&mut self, mut event: ContainerEventResponse) {
        // A clock that is set back must not turn the order around.
        self.last = self.last.max(now());
        event.created_at = self.last;
        let Some(ring) = &self.ring else { return };
        if let Err(unsent) = ring.send(Arc::new(event)) {
            self.kept.push(&unsent.0);
        }
    }
}

impl Kept {
    fn push(&mut self, event: &ContainerEventResponse) {
        self.drop_old();
        let event = event.encode_to_vec();
        self.bytes += event.len();
        self.events.push_back((Instant::now(), event));
        while self.events.len() > KEPT_EVENTS_MAX || self.bytes > KEPT_BYTES_MAX {
            debug!("an event that nobody has asked for gives way to newer ones");
            self.drop_first();
        }
    }

    fn take(&mut self) -> VecDeque<Vec<u8>> {
        self.drop_old();
        self.bytes = 0;
        self.events.drain(..).map(|(_, event)| event).collect()
    }

    fn drop_old(&mut self) {
        while self.events.front().is_some_and(|(since, _)| since.elapsed() > KEEP) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, event)) = self.events.pop_front() {
            self.bytes -= event.len();
        }
    }
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
