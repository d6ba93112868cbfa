//! How far a pull is: for the log, for `longshore images pulls`, and for the time-out.
//!
//! A pull is stuck when requests to registries are open and not one of them got a byte
//! for `image.pull_progress_timeout_s` (IMG-31). Time in which nothing is asked of a
//! registry (a queue, the unpacking) does not count.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::info;

use crate::containerd::Descriptor;
use crate::error::{Error, deadline};
use crate::flow::lock;
use crate::telemetry::METERS;

/// The most layers that an error names.
const LAYERS_NAMED_MAX: usize = 3;
/// How often a running pull is told in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A pull that runs, as others may see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullState {
    /// What is pulled, as a whole reference.
    pub reference: String,
    /// For which snapshotter.
    pub snapshotter: String,
    /// Seconds since its start.
    pub seconds: f64,
    /// Bytes that came from registries so far, in this pull.
    pub received_bytes: u64,
    /// Bytes a second over the whole pull.
    pub bytes_per_second: f64,
    /// Bytes of all layers; 0 as long as the manifest is not known.
    pub total_bytes: u64,
    /// The layers, lowest first.
    pub layers: Vec<LayerProgress>,
}

/// A layer of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Its digest.
    pub digest: String,
    /// Bytes as in the registry.
    pub size: u64,
    /// Bytes that are there.
    pub received_bytes: u64,
    /// What happens to it.
    pub state: LayerState,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Nothing yet.
    Waiting,
    /// Its bytes are on the way.
    Downloading,
    /// It is in the content store.
    Downloaded,
    /// It is being made a snapshot.
    Unpacking,
    /// Its snapshot is there.
    Done,
}

/// The progress of one pull.
pub(super) struct Progress {
    reference: String,
    snapshotter: String,
    started: Instant,
    layers: Mutex<Vec<LayerProgress>>,
    received: AtomicU64,
    silence: Mutex<Silence>,
}

/// How long requests were open without a byte. It goes on from one attempt to the next.
#[derive(Default)]
struct Silence {
    /// Requests that wait for bytes.
    open: usize,
    /// Until the last change of what follows.
    before: Duration,
    /// Since when a request is open, or the last byte came.
    since: Option<Instant>,
}

impl Silence {
    fn length(&self) -> Duration {
        self.before + self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

impl Progress {
    pub(super) fn new(reference: &str, snapshotter: &str) -> Progress {
        Progress {
            reference: reference.to_owned(),
            snapshotter: snapshotter.to_owned(),
            started: Instant::now(),
            layers: Mutex::default(),
            received: AtomicU64::new(0),
            silence: Mutex::default(),
        }
    }

    /// The layers are known from now on.
    pub(super) fn layers<'a>(&self, layers: impl Iterator<Item = &'a Descriptor>) {
        let progress = |layer: &Descriptor| LayerProgress {
            digest: layer.digest.clone(),
            size: u64::try_from(layer.size).unwrap_or(0),
            received_bytes: 0,
            state: LayerState::Waiting,
        };
        *lock(&self.layers) = layers.map(progress).collect();
    }

    /// A layer is in `state` from now on, and in no earlier one. What is known of its
    /// bytes follows from that.
    pub(super) fn layer(&self, digest: &str, state: LayerState) {
        for layer in lock(&self.layers).iter_mut().filter(|layer| layer.digest == digest) {
            layer.state = layer.state.max(state);
            if state >= LayerState::Downloaded {
                layer.received_bytes = layer.size;
            }
        }
    }

    /// So many bytes of a layer are there.
    pub(super) fn layer_has(&self, digest: &str, bytes: u64) {
        for layer in lock(&self.layers).iter_mut().filter(|layer| layer.digest == digest) {
            layer.received_bytes = bytes;
        }
    }

    /// What someone else tells of a layer that he pulls: its size, how many bytes of it
    /// he has by now, its state.
    pub(super) fn told(&self, digest: &str, size: u64, fetched: Option<u64>, state: LayerState) {
        let mut layers = lock(&self.layers);
        let index = layers.iter().position(|layer| layer.digest == digest).unwrap_or_else(|| {
            layers.push(LayerProgress { digest: digest.into(), size, received_bytes: 0, state });
            layers.len() - 1
        });
        let layer = &mut layers[index];
        layer.size = layer.size.max(size);
        layer.state = layer.state.max(state);
        if let Some(bytes) = fetched {
            let new = bytes.saturating_sub(layer.received_bytes);
            self.received.fetch_add(new, Ordering::Relaxed);
            METERS.pull_received(new);
            layer.received_bytes = layer.received_bytes.max(bytes);
        } else if state >= LayerState::Downloaded {
            layer.received_bytes = layer.size;
        }
    }

    /// A registry sent bytes.
    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        METERS.pull_received(bytes);
        let mut silence = lock(&self.silence);
        silence.before = Duration::ZERO;
        silence.since = (silence.open > 0).then(Instant::now);
    }

    /// A request is open until the guard is dropped.
    pub(super) fn request(self: &Arc<Progress>) -> OpenRequest {
        let mut silence = lock(&self.silence);
        silence.open += 1;
        silence.since.get_or_insert_with(Instant::now);
        drop(silence);
        OpenRequest(self.clone())
    }

    /// Comes back with the error of a pull that is stuck; without a limit never.
    pub(super) async fn stuck(&self, limit: Option<Duration>) -> Error {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let silence = lock(&self.silence).length();
            if silence >= limit {
                return deadline(format!(
                    "no registry sent a byte for {} s (image.pull_progress_timeout_s){}",
                    limit.as_secs_f32(),
                    self.unfinished(),
                ));
            }
            tokio::time::sleep(limit - silence).await;
        }
    }

    /// The layers that are on the way, for a message.
    fn unfinished(&self) -> String {
        let layers = lock(&self.layers);
        let layers =
            layers.iter().filter(|layer| layer.state == LayerState::Downloading).take(LAYERS_NAMED_MAX);
        let layers = layers.map(|layer| {
            format!(": layer {} has {} of {} bytes", layer.digest, layer.received_bytes, layer.size)
        });
        layers.collect()
    }

    /// Says now and then how far it is; never comes back.
    pub(super) async fn tell(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOG_INTERVAL).await;
            let state = self.state();
            let done = state.layers.iter().filter(|layer| layer.state == LayerState::Done).count();
            info!(
                reference = state.reference,
                received_bytes = state.received_bytes,
                total_bytes = state.total_bytes,
                bytes_per_second = state.bytes_per_second as u64,
                layers = state.layers.len(),
                layers_done = done,
                "pulling an image"
            );
        }
    }

    /// Bytes that came from registries.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn total_bytes(&self) -> u64 {
        lock(&self.layers).iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    fn state(&self) -> PullState {
        let seconds = self.started.elapsed().as_secs_f64();
        let received = self.received.load(Ordering::Relaxed);
        PullState {
            reference: self.reference.clone(),
            snapshotter: self.snapshotter.clone(),
            seconds,
            received_bytes: received,
            bytes_per_second: if seconds > 0.0 { received as f64 / seconds } else { 0.0 },
            total_bytes: self.total_bytes(),
            layers: lock(&self.layers).clone(),
        }
    }
}

/// An open request.
pub(super) struct OpenRequest(Arc<Progress>);

impl OpenRequest {
    /// The pull that it belongs to.
    pub(super) fn progress(&self) -> &Progress {
        &self.0
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut silence = lock(&self.0.silence);
        silence.open -= 1;
        if silence.open == 0 {
            (silence.before, silence.since) = (silence.length(), None);
        }
    }
}

/// The pulls that run.
#[derive(Default)]
pub(super) struct Running(Arc<Mutex<BTreeMap<u64, Arc<Progress>>>>);

/// A place in the list of running pulls; leaves it when dropped.
pub(super) struct Listed {
    list: Arc<Mutex<BTreeMap<u64, Arc<Progress>>>>,
    number: u64,
}

impl Running {
    /// Lists `progress` as long as what this gives lives.
    pub(super) fn list(&self, progress: Arc<Progress>) -> Listed {
        let mut list = lock(&self.0);
        let number = list.last_key_value().map_or(0, |(number, _)| number + 1);
        list.insert(number, progress);
        Listed { list: self.0.clone(), number }
    }

    /// All, the oldest first.
    pub(super) fn states(&self) -> Vec<PullState> {
        lock(&self.0).values().map(|progress| progress.state()).collect()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.list).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, size: i64) -> Descriptor {
        Descriptor { digest: digest.into(), size, ..Default::default() }
    }

    #[test]
    fn a_pull_is_listed_while_it_runs_with_the_state_of_its_layers() {
        let (running, progress) = (Running::default(), Arc::new(Progress::new("r.io/a:1", "overlayfs")));
        let listed = running.list(progress.clone());
        progress.layers([layer("a", 10), layer("b", 20)].iter());
        progress.layer("a", LayerState::Unpacking);
        progress.layer("a", LayerState::Downloaded);
        progress.layer("b", LayerState::Downloading);
        progress.layer_has("b", 7);
        progress.received(17);
        let state = running.states().remove(0);
        assert_eq!((state.total_bytes, state.received_bytes), (30, 17));
        let layers: Vec<_> = state.layers.iter().map(|layer| (layer.state, layer.received_bytes)).collect();
        assert_eq!(layers, [(LayerState::Unpacking, 10), (LayerState::Downloading, 7)]);
        drop(listed);
        assert!(running.states().is_empty());
    }

    #[test]
    fn what_is_told_of_a_layer_adds_up() {
        let progress = Progress::new("r.io/a:1", "overlayfs");
        progress.told("a", 0, None, LayerState::Waiting);
        progress.told("a", 10, Some(4), LayerState::Downloading);
        progress.told("a", 10, Some(9), LayerState::Downloading);
        assert_eq!((progress.state().received_bytes, progress.state().layers[0].received_bytes), (9, 9));
        progress.told("a", 0, None, LayerState::Done);
        let layer = progress.state().layers.remove(0);
        assert_eq!((layer.size, layer.received_bytes, layer.state), (10, 10, LayerState::Done));
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_open_request_without_bytes_is_stuck() {
        let progress = Arc::new(Progress::new("r.io/a:1", "overlayfs"));
        let limit = Some(Duration::from_secs(10));
        let wait = |seconds| tokio::time::timeout(Duration::from_secs(seconds), progress.stuck(limit));
        assert!(wait(100).await.is_err(), "nothing is asked of a registry");
        let open = progress.request();
        assert!(wait(9).await.is_err());
        progress.received(1);
        assert!(wait(6).await.is_err());
        drop(open);
        assert!(wait(100).await.is_err(), "it pauses before the next attempt");
        let open = progress.request();
        assert!(wait(3).await.is_err());
        progress.received(1);
        assert!(wait(9).await.is_err(), "a byte came");
        let error = wait(2).await.expect("stuck");
        assert!(error.message().starts_with("no registry sent a byte for 10 s"), "{error}");
        drop(open);
        assert!(tokio::time::timeout(Duration::from_secs(1000), progress.stuck(None)).await.is_err());
    }
}
