//! What the server counts of its own work, in the form that Prometheus reads.
//!
//! docs/metrics.md is the list. The rules of all of it:
//!
//! - Counting costs a look into a table and a few atomic operations: labels are fixed texts,
//!   nothing is allocated for a call, and it is done whether or not somebody reads.
//! - Labels have few values, and never the name of a pod, an image or a container.
//! - What can be looked at is looked at only when somebody reads: [`Snapshot`].

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use super::snapshot::{Looked, Snapshot};
use super::traces;
use crate::error::{Error, Kind, Result};
use crate::flow::lock;

/// The content type of [`Meters::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The meters of this process.
pub static METERS: LazyLock<Meters> = LazyLock::new(Meters::default);

/// What all names begin with.
const PREFIX: &str = "longshore";
/// Seconds that calls take: from what memory answers to what an OCI runtime may take.
const CALL_SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Seconds that pulls take.
const PULL_SECONDS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// The most CNI plugins that have a label of their own.
const PLUGINS_MAX: usize = 64;
/// The label of all others.
const OTHER: &str = "other";

/// Names and values.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Everything that is counted.
pub struct Meters {
    registry: Registry,
    cri: Calls<1>,
    containerd: Calls<2>,
    cni: Calls<2>,
    stages: Calls<1>,
    pulls: Calls<0>,
    pull_bytes: Counter,
    events_lost: Counter,
    repairs: Family<Labels<1>, Counter>,
    looked: Looked,
    plugins: Mutex<BTreeSet<&'static str>>,
}

impl Default for Meters {
    fn default() -> Meters {
        let mut registry = Registry::with_prefix(PREFIX);
        let list = &mut registry;
        let cri = Calls::new(calls, list, "cri_call", "CRI calls, up to the first answer of a stream");
        cri.register_running(list, "cri_calls", "CRI calls that are being served");
        let containerd = Calls::new(calls, list, "containerd_call", "Calls of containerd's API");
        containerd.register_running(list, "containerd_calls", "Calls that wait for containerd");
        let cni = Calls::new(calls, list, "cni_plugin", "Runs of CNI plugins");
        cni.register_running(list, "cni_plugins", "CNI plugins that run");
        let stages = Calls::new(calls, list, "pod_start_stage", "Stages of RunPodSandbox");
        let pulls = Calls::new(pulls, list, "image_pull", "Pulls of images");
        pulls.register_running(list, "image_pulls", "Pulls that run");
        // Without labels it is there from the start.
        drop(pulls.seconds.get_or_create(&[]));
        let (pull_bytes, events_lost) = (Counter::default(), Counter::default());
        let help = "Bytes that registries have sent";
        list.register_with_unit("image_pull_received", help, Unit::Bytes, pull_bytes.clone());
        let help = "Events that subscribers were too slow for";
        list.register("events_lost", help, events_lost.clone());
        let repairs = Family::default();
        let help = "What was not as it should be, and was put right";
        list.register("repairs", help, repairs.clone());
        let looked = Looked::new(list);
        let plugins = Mutex::default();
        Meters {
            registry,
            cri,
            containerd,
            cni,
            stages,
            pulls,
            pull_bytes,
            events_lost,
            repairs,
            looked,
            plugins,
        }
    }
}

impl Meters {
    /// A call of the CRI begins.
    pub fn cri_call(&self, method: &'static str) -> Call<'_, 1> {
        self.cri.begin([("method", method)])
    }

    /// A call of containerd begins: `Service.Method`.
    pub fn containerd_call(&self, call: &'static str) -> Call<'_, 2> {
        let (service, method) = call.split_once('.').unwrap_or((call, ""));
        self.containerd.begin([("service", service), ("method", method)])
    }

    /// A CNI plugin is run.
    pub fn cni_plugin(&self, plugin: &str, command: &'static str) -> Call<'_, 2> {
        self.cni.begin([("plugin", self.plugin(plugin)), ("command", command)])
    }

    /// A stage of making a pod.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn pod_stage<T>(
        &self,
        stage: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let call = self.stages.begin([("stage", stage)]);
        let result = traces::stage(stage, work).await;
        call.end_as(result.as_ref().err().map(Error::kind));
        result
    }

    /// A pull begins.
    pub fn pull(&self) -> Call<'_, 0> {
        self.pulls.begin([])
    }

    /// A registry has sent bytes.
    pub fn pull_received(&self, bytes: u64) {
        self.pull_bytes.inc_by(bytes);
    }

    /// A subscriber was too slow for so many events.
    pub fn events_lost(&self, events: u64) {
        self.events_lost.inc_by(events);
    }

    /// The server has put right something of this kind, by comparing.
    pub fn repaired(&self, kind: &'static str) {
        self.repairs.get_or_create(&[("kind", kind)]).inc();
    }

    /// Everything, with what was just looked at, in OpenMetrics' text form.
    #[must_use]
    pub fn text(&self, snapshot: &Snapshot) -> String {
        self.looked.set(snapshot);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string can be written to");
        text
    }

    /// The label of a plugin, whose name is the node's configuration: kept for ever, and so
    /// only the first [`PLUGINS_MAX`].
    fn plugin(&self, name: &str) -> &'static str {
        let mut known = lock(&self.plugins);
        match known.get(name) {
            Some(name) => name,
            None if known.len() >= PLUGINS_MAX => OTHER,
            None => {
                let name: &'static str = name.to_owned().leak();
                known.insert(name);
                name
            }
        }
    }
}

fn calls() -> Histogram {
    Histogram::new(CALL_SECONDS)
}

fn pulls() -> Histogram {
    Histogram::new(PULL_SECONDS)
}

/// How long calls of one sort take, with which codes they fail, and how many there are now.
struct Calls<const N: usize> {
    seconds: Family<Labels<N>, Histogram, fn() -> Histogram>,
    errors: Family<(Labels<N>, Labels<1>), Counter>,
    running: Gauge,
}

impl<const N: usize> Calls<N> {
    fn new(buckets: fn() -> Histogram, list: &mut Registry, name: &str, what: &str) -> Calls<N> {
        let calls = Calls {
            seconds: Family::new_with_constructor(buckets),
            errors: Family::default(),
            running: Gauge::default(),
        };
        let (duration, errors) = (format!("{name}_duration"), format!("{name}_errors"));
        list.register_with_unit(duration, format!("{what}: time"), Unit::Seconds, calls.seconds.clone());
        list.register(errors, format!("{what}: failures by gRPC code"), calls.errors.clone());
        calls
    }

    fn register_running(&self, list: &mut Registry, name: &str, help: &str) {
        list.register(format!("{name}_running"), help, self.running.clone());
    }

    fn begin(&self, labels: Labels<N>) -> Call<'_, N> {
        self.running.inc();
        Call { calls: self, labels, begun: Instant::now(), code: Some(Code::Cancelled) }
    }
}

/// A call that runs. One that is dropped before its end was given up: `Canceled`.
pub struct Call<'a, const N: usize> {
    calls: &'a Calls<N>,
    labels: Labels<N>,
    begun: Instant,
    code: Option<Code>,
}

impl<const N: usize> Call<'_, N> {
    /// It ended with `code`.
    pub fn end(mut self, code: Code) {
        self.code = Some(code).filter(|code| *code != Code::Ok);
    }

    /// It ended with an error of that kind, or well.
    pub fn end_as(self, failed: Option<Kind>) {
        self.end(failed.map_or(Code::Ok, Kind::code));
    }
}

impl<const N: usize> Drop for Call<'_, N> {
    fn drop(&mut self) {
        self.calls.running.dec();
        self.calls.seconds.get_or_create(&self.labels).observe(self.begun.elapsed().as_secs_f64());
        if let Some(code) = self.code {
            self.calls.errors.get_or_create(&(self.labels, [("code", name_of(code))])).inc();
        }
    }
}

/// A code as it is written in Kubernetes' world.
pub fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests;
