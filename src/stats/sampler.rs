//! Samples of many pods and containers at once, each with its rate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::watch;
use tracing::{Instrument, Span, debug};

use super::READS_MAX;
use super::cgroup::{Cgroup, Hierarchies};
use super::rate::{History, SHORT, Usage};
use super::reading::Reading;
use crate::containerd::Containerd;
use crate::flow::{self, lock};
use crate::state::container::now;

/// How many shims are asked at once for one answer: that is waiting, not work.
pub(super) const TASKS_MAX: usize = 64;
/// How long a shim may take before answers go without it.
const TASK_WAIT: Duration = Duration::from_secs(2);
/// How long a shim may take. It is asked again only after its answer or this long: it keeps
/// every question that it does not answer, and would grow with each one (STA-11).
const TASK_LIMIT: Duration = Duration::from_secs(120);

/// Takes samples, and remembers those that rates are made from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sampler(Arc<Inner>);

struct Inner {
    hierarchies: Option<Hierarchies>,
    containerd: Containerd,
    known: Mutex<HashMap<String, Known>>,
    /// Questions that shims have not answered yet, by container.
    asked: Mutex<HashMap<String, Question>>,
}

/// A question to a shim.
#[derive(Clone)]
struct Question {
    since: tokio::time::Instant,
    answer: watch::Receiver<Option<Answer>>,
}

/// What is remembered of a pod or container.
#[derive(Default)]
struct Known {
    cgroup: Option<Arc<Cgroup>>,
    history: History,
}

/// Something to take a sample of.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The pod's or container's id.
    pub(super) id: String,
    /// Where it is counted.
    pub(super) source: Source,
}

/// Where something is counted.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In the cgroup of this process that has the subject's id in its path.
    Process(u32),
    /// In the cgroup that this `cgroup_parent` names.
    Parent(String),
    /// By its shim.
    Task,
}

/// A sample.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// What is used.
    pub(super) reading: Reading,
    /// When it was read, in nanoseconds since the epoch.
    pub(super) timestamp: i64,
    /// The rate of cpu use.
    pub(super) nano_cores: Option<u64>,
}

/// A reading and its time on both clocks; none where there is nothing to read.
type Answer = Option<Taken>;

#[derive(Clone, Debug)]
struct Taken {
    reading: Reading,
    timestamp: i64,
    at: Instant,
    /// The cgroup, where it was read from one.
    cgroup: Option<Arc<Cgroup>>,
}

impl Taken {
    fn usage(&self) -> Option<Usage> {
        self.reading.cpu.as_ref().map(|cpu| Usage { at: self.at, cpu_ns: cpu.usage_ns })
    }
}

impl Sampler {
    pub(super) fn new(hierarchies: Option<Hierarchies>, containerd: Containerd) -> Sampler {
        let (known, asked) = Default::default();
        Sampler(Arc::new(Inner { hierarchies, containerd, known, asked }))
    }

    /// How many pods and containers are remembered.
    pub(super) fn known(&self) -> usize {
        lock(&self.0.known).len()
    }

    /// Forgets those that are gone.
    pub(super) fn forget(&self, is_gone: impl Fn(&str) -> bool) {
        lock(&self.0.known).retain(|id, _| !is_gone(id));
    }

    /// Samples of all subjects that can be read, by id.
    pub(super) async fn samples(&self, subjects: Vec<Subject>) -> HashMap<String, Sample> {
        let (tasks, here): (Vec<Subject>, Vec<Subject>) =
            subjects.into_iter().partition(|subject| matches!(subject.source, Source::Task));
        let (tasks, here) = tokio::join!(self.take_all(tasks, TASKS_MAX), self.take_all(here, READS_MAX));

        let mut samples = HashMap::with_capacity(tasks.len() + here.len());
        let mut without_rate = Vec::new();
        for (subject, taken) in tasks.into_iter().chain(here) {
            let Some(taken) = taken else { continue };
            let nano_cores = taken.usage().and_then(|usage| self.rate(&subject.id, usage));
            if taken.reading.cpu.is_some() && nano_cores.is_none() {
                without_rate.push((subject.clone(), taken.cgroup.clone()));
            }
            let Taken { reading, timestamp, .. } = taken;
            samples.insert(subject.id, Sample { reading, timestamp, nano_cores });
        }
        for (id, rate) in self.second_rates(without_rate).await {
            if let Some(sample) = samples.get_mut(&id) {
                sample.nano_cores = rate;
            }
        }
        samples
    }

    async fn take_all(&self, subjects: Vec<Subject>, at_once: usize) -> Vec<(Subject, Answer)> {
        let reads = subjects.into_iter().map(|subject| async move {
            let taken = self.take(&subject).await;
            (subject, taken)
        });
        futures_util::stream::iter(reads).buffer_unordered(at_once).collect().await
    }

    /// Rates by a second reading of the cpu time, of subjects that have no earlier sample.
    async fn second_rates(
        &self,
        subjects: Vec<(Subject, Option<Arc<Cgroup>>)>,
    ) -> Vec<(String, Option<u64>)> {
        if subjects.is_empty() {
            return Vec::new();
        }
        tokio::time::sleep(SHORT).await;
        let reads = subjects.into_iter().map(|(subject, cgroup)| async move {
            let usage = match cgroup {
                Some(cgroup) => {
                    let read = flow::blocking(move || {
                        let at = Instant::now();
                        Ok(cgroup.cpu_ns().map(|cpu_ns| Usage { at, cpu_ns }))
                    });
                    read.await.ok().flatten()
                }
                None => self.ask(&subject.id).await.and_then(|taken| taken.usage()),
            };
            let rate = usage.and_then(|usage| self.rate(&subject.id, usage));
            (subject.id, rate)
        });
        futures_util::stream::iter(reads).buffer_unordered(READS_MAX).collect().await
    }

    fn rate(&self, id: &str, usage: Usage) -> Option<u64> {
        lock(&self.0.known).entry(id.to_owned()).or_default().history.rate(usage)
    }

    /// The cgroup that a subject is counted in; none where it is none of this host's.
    pub(super) async fn cgroup(&self, subject: &Subject) -> Option<Arc<Cgroup>> {
        if let Source::Task = subject.source {
            return None;
        }
        let known = lock(&self.0.known).get(&subject.id).and_then(|known| known.cgroup.clone());
        if known.is_some() {
            return known;
        }
        let (sampler, wanted) = (self.clone(), subject.clone());
        flow::blocking(move || Ok(sampler.find(&wanted))).await.ok().flatten()
    }

    /// What the shim of a task tells.
    pub(super) async fn told(&self, id: &str) -> Option<Reading> {
        self.ask(id).await.map(|taken| taken.reading)
    }

    async fn take(&self, subject: &Subject) -> Answer {
        if let Source::Task = subject.source {
            return self.ask(&subject.id).await;
        }
        let known = lock(&self.0.known).get(&subject.id).and_then(|known| known.cgroup.clone());
        let (sampler, wanted) = (self.clone(), subject.clone());
        let read = flow::blocking(move || {
            let Some(cgroup) = known.or_else(|| sampler.find(&wanted)) else { return Ok(None) };
            let (timestamp, at) = (now(), Instant::now());
            let reading = cgroup.read();
            Ok(Some(Taken { reading, timestamp, at, cgroup: Some(cgroup) }))
        });
        match read.await {
            Ok(Some(taken)) => (!taken.reading.is_empty()).then_some(taken),
            // No cgroup that could be the container's: whoever made it knows.
            Ok(None) if matches!(subject.source, Source::Process(_)) => self.ask(&subject.id).await,
            Ok(None) => None,
            Err(error) => {
                debug!(id = subject.id, %error, "a cgroup was not read");
                None
            }
        }
    }

    /// Finds the cgroup of a subject, and remembers it: it stays the same for life.
    fn find(&self, subject: &Subject) -> Option<Arc<Cgroup>> {
        let hierarchies = self.0.hierarchies.as_ref()?;
        let cgroup = match &subject.source {
            Source::Process(pid) => {
                let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
                hierarchies.of_container(&table, &subject.id)?
            }
            Source::Parent(parent) => hierarchies.of_pod(parent)?,
            Source::Task => return None,
        };
        let cgroup = Arc::new(cgroup);
        lock(&self.0.known).entry(subject.id.clone()).or_default().cgroup = Some(cgroup.clone());
        Some(cgroup)
    }

    /// Asks the shim of a task, or waits for the answer to a question that is out already. One
    /// that is out for long is not waited for.
    async fn ask(&self, id: &str) -> Answer {
        let mut question = {
            let mut asked = lock(&self.0.asked);
            match asked.get(id) {
                Some(question) => question.clone(),
                None => {
                    let (sender, answer) = watch::channel(None);
                    let question = Question { since: tokio::time::Instant::now(), answer };
                    asked.insert(id.to_owned(), question.clone());
                    // Not cut off with the caller: the shim would go on with it anyway.
                    tokio::spawn(self.clone().question(id.to_owned(), sender).instrument(Span::current()));
                    question
                }
            }
        };
        let answered = question.answer.wait_for(Option::is_some);
        let answered = tokio::time::timeout_at(question.since + TASK_WAIT, answered).await;
        answered.ok()?.ok()?.clone().flatten()
    }

    async fn question(self, id: String, answer: watch::Sender<Option<Answer>>) {
        let at = Instant::now();
        let metrics = self.0.containerd.task_metrics(&id, TASK_LIMIT).await;
        lock(&self.0.asked).remove(&id);
        if let Err(error) = &metrics {
            debug!(id, %error, "no figures of a task");
        }
        let taken = metrics.ok().map(|metrics| Taken {
            reading: Reading::from(metrics.figures),
            timestamp: metrics.at,
            at,
            cgroup: None,
        });
        answer.send_replace(Some(taken));
    }
}
