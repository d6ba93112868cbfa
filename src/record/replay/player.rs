//! Makes the calls of a plan, each when it is its turn.
//!
//! An answer that only looks and differs is asked for again for a while: what the record saw
//! may be about to happen, such as the end of a container. So what the client did next, having
//! seen it, comes after it on the target, too. And one may be ahead: then the record has it as a
//! later answer to the same question.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::super::codec::{to_json, to_wire};
use super::super::format::{Call, Keep};
use super::compare::{Difference, Side, differences, normal};
use super::plan::{Fate, Ids, Plan, Planned, image_of, made_by, made_field};
use super::report::Report;
use super::target::Target;
use super::{Played, Verdict, merged};
use crate::proto::schema::Method;
use crate::telemetry::meters::name_of;
use crate::trace::is_look;

/// The longest call: what takes longer is taken for stuck.
const CALL_LIMIT: Duration = Duration::from_secs(600);
/// How long an answer that differs in what passes, such as a state, is asked for again, and one
/// that differs in anything else.
const SETTLE_LIMITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// How long all of this may take in vain.
const PATIENCE: Duration = Duration::from_secs(30);
/// What passes.
const PASSING: [&str; 5] = ["state", "exit_code", "reason", "started_at", "finished_at"];
/// The first pause before that, and the longest.
const SETTLE_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long events that the record has are waited for.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);
/// How often they are looked for.
const EVENTS_PAUSE: Duration = Duration::from_millis(50);
const EVENTS: &str = "GetContainerEvents";

/// A replay.
pub(super) struct Player {
    target: Target,
    speed: Option<f64>,
    pub(super) ids: Mutex<Ids>,
    /// Pods and containers of before, in the record and on the target.
    before: BTreeSet<String>,
    there: BTreeSet<String>,
    ended: Mutex<Ended>,
    /// Sent with each end: how many leading calls of the order of ends have ended.
    news: watch::Sender<usize>,
    /// Fields whose differences waiting did not help against.
    hopeless: Mutex<HashSet<String>>,
    /// What is left of [`PATIENCE`].
    patience: Mutex<Duration>,
    begun: Instant,
}

/// Which calls have ended, in the record's order of ends.
struct Ended {
    done: Vec<bool>,
    prefix: usize,
}

/// What came of a call.
struct Outcome {
    status: Status,
    answers: Vec<Json>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Player {
    /// Plays to `target`, which has the pods and containers `there` already.
    pub(super) fn new(target: Target, speed: Option<f64>, plan: &Plan, there: BTreeSet<String>) -> Player {
        Player {
            target,
            speed,
            ids: Mutex::default(),
            before: plan.before.clone(),
            there,
            ended: Mutex::new(Ended { done: vec![false; plan.calls.len()], prefix: 0 }),
            news: watch::Sender::new(0),
            hopeless: Mutex::default(),
            patience: Mutex::new(PATIENCE),
            begun: Instant::now(),
        }
    }

    /// Makes all calls.
    pub(super) async fn play(self: Arc<Self>, calls: Vec<Planned>, report: &mut Report) {
        let mut running = JoinSet::new();
        let ranks: Vec<usize> = calls.iter().map(|planned| planned.rank).collect();
        for planned in calls {
            let needs: Vec<usize> = planned.needs.iter().map(|index| ranks[*index]).collect();
            self.wait_for(|ended| {
                ended.prefix >= planned.after && needs.iter().all(|rank| ended.done[*rank])
            })
            .await;
            if let Some(due) = self.due(planned.call.at_us) {
                tokio::time::sleep_until(due).await;
            }
            while let Some(done) = running.try_join_next() {
                report.add(done);
            }
            let player = self.clone();
            running.spawn(async move {
                let rank = planned.rank;
                let played = player.one(planned).await;
                player.end(rank);
                played
            });
        }
        while let Some(done) = running.join_next().await {
            report.add(done);
        }
    }

    /// When something of the record is due, where its pace is kept.
    fn due(&self, at_us: u64) -> Option<Instant> {
        let after = Duration::try_from_secs_f64(at_us as f64 / 1e6 / self.speed?).ok()?;
        self.begun.checked_add(after)
    }

    fn end(&self, rank: usize) {
        let prefix = {
            let mut ended = lock(&self.ended);
            ended.done[rank] = true;
            while ended.done.get(ended.prefix) == Some(&true) {
                ended.prefix += 1;
            }
            ended.prefix
        };
        // Who waits looks at what has ended while the channel is locked: never the other way round.
        self.news.send_replace(prefix);
    }

    async fn wait_for(&self, is_so: impl Fn(&Ended) -> bool) {
        // The sender lives as long as this.
        let _ = self.news.subscribe().wait_for(|_| is_so(&lock(&self.ended))).await;
    }

    async fn one(&self, planned: Planned) -> Played {
        let Planned { call, rank, fate, later, .. } = planned;
        let method = match fate {
            Fate::Play(method) => method,
            Fate::Leave(why) => return Played::not(call, why),
        };
        let mut request = call.request.clone().unwrap_or_default();
        let filled = lock(&self.ids).fill(&mut request);
        if let Err(failed) = filled {
            if let Some(id) = made_by(&call) {
                lock(&self.ids).failed(id, call.number);
            }
            return Played::not(call, format!("needs what call {failed} made, which failed"));
        }
        if let Some(request) = request.as_object_mut() {
            // Its credentials are masked.
            request.remove("auth");
        }
        let encoded = match to_wire(&method.input, &request) {
            Ok(encoded) => encoded,
            Err(error) => return Played::not(call, format!("cannot be sent: {error:#}")),
        };
        let begun = Instant::now();
        if method.is_stream && call.cut.is_some() {
            let parts = self.listen(method, encoded, &call, rank).await;
            let verdict = self.judge_events(&call, parts);
            return Played { call, took: begun.elapsed(), verdict };
        }
        let asking = self.ask(method, encoded.clone(), call.timeout.as_deref());
        let outcome = match call.cut {
            None => asking.await,
            Some(_) => tokio::select! {
                _ = asking => return Played { call, took: begun.elapsed(), verdict: Verdict::Cut },
                () = self.cut(&call, rank) => return Played { call, took: begun.elapsed(), verdict: Verdict::Cut },
            },
        };
        let took = begun.elapsed();
        self.learn(&call, &outcome);
        let found = self.judge(method, &call, &outcome);
        if found.is_empty() {
            return Played { call, took, verdict: Verdict::Same };
        }
        if later.iter().any(|answer| self.compare(method, &call, answer, &outcome).is_empty()) {
            return Played { call, took, verdict: Verdict::Ahead };
        }
        let verdict = self.settle(method, &call, encoded, found).await;
        Played { call, took, verdict }
    }

    /// Asks again, until the answer is the record's or has had its time.
    async fn settle(
        &self,
        method: &'static Method,
        call: &Call,
        encoded: Vec<u8>,
        mut found: Vec<Difference>,
    ) -> Verdict {
        if !is_look(&call.method) || call.method == EVENTS {
            return Verdict::Different(found);
        }
        let (begun, mut pause) = (Instant::now(), SETTLE_PAUSES.0);
        loop {
            let passes = found.iter().any(|it| passes(&it.path));
            let limit = if passes { SETTLE_LIMITS.0 } else { SETTLE_LIMITS.1 };
            let limit = limit.min(*lock(&self.patience));
            let is_hopeless = || {
                let known = lock(&self.hopeless);
                found.iter().all(|it| known.contains(field(&it.path)))
            };
            if begun.elapsed() >= limit || (!passes && is_hopeless()) {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SETTLE_PAUSES.1);
            let outcome = self.ask(method, encoded.clone(), call.timeout.as_deref()).await;
            found = self.judge(method, call, &outcome);
            if found.is_empty() {
                return Verdict::Settled(begun.elapsed());
            }
        }
        let mut patience = lock(&self.patience);
        *patience = patience.saturating_sub(begun.elapsed());
        drop(patience);
        lock(&self.hopeless).extend(found.iter().map(|it| field(&it.path).to_owned()));
        Verdict::Different(found)
    }

    async fn ask(&self, method: &Method, encoded: Vec<u8>, timeout: Option<&str>) -> Outcome {
        let mut answers = Vec::new();
        let asked = async {
            let mut stream = self.target.call(method, encoded, timeout).await?;
            while let Some(message) = stream.message().await? {
                answers.extend(to_json(&method.output, &message, Keep { env: true, output: true }));
            }
            Ok(())
        };
        let status = match tokio::time::timeout(CALL_LIMIT, asked).await {
            Ok(Ok(())) => Status::ok(""),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer within {} s", CALL_LIMIT.as_secs())),
        };
        Outcome { status, answers }
    }

    /// Waits until a call is due to be given up, as it was in the record.
    async fn cut(&self, call: &Call, rank: usize) {
        self.wait_for(|ended| ended.prefix >= rank).await;
        if let Some(due) = self.due(call.end_us()) {
            tokio::time::sleep_until(due).await;
        }
    }

    /// A stream that its client ended: as long as there, and then until it has what the record
    /// has of it, or has had its time.
    async fn listen(&self, method: &Method, encoded: Vec<u8>, call: &Call, rank: usize) -> Outcome {
        let answers = Mutex::new(Vec::new());
        let listening = async {
            let mut stream = self.target.call(method, encoded, None).await?;
            while let Some(message) = stream.message().await? {
                lock(&answers).extend(to_json(&method.output, &message, Keep { env: true, output: true }));
            }
            Ok(())
        };
        let limit = async {
            self.cut(call, rank).await;
            let end = Instant::now() + EVENTS_LIMIT;
            while Instant::now() < end && !self.has_all(call, &lock(&answers)) {
                tokio::time::sleep(EVENTS_PAUSE).await;
            }
        };
        let status = tokio::select! {
            ended = listening => ended.err().unwrap_or_else(|| Status::ok("")),
            () = limit => Status::ok(""),
        };
        Outcome { status, answers: answers.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    fn has_all(&self, call: &Call, answers: &[Json]) -> bool {
        let (recorded, replayed) = self.events(call, answers);
        let begins = |(id, types): (&String, &Vec<String>)| {
            replayed.get(id).is_some_and(|others| others.starts_with(types))
        };
        recorded.iter().all(begins)
    }

    /// What happened to each object, in the target's ids.
    fn events(&self, call: &Call, answers: &[Json]) -> (Events, Events) {
        let ids = lock(&self.ids);
        let (mut recorded, mut replayed) = (Events::new(), Events::new());
        let event = |part: &Json| {
            let text = |key: &str| part.get(key).and_then(Json::as_str).map(str::to_owned);
            let kind = text("container_event_type").unwrap_or_else(|| "CONTAINER_CREATED_EVENT".to_owned());
            text("container_id").map(|id| (id, kind))
        };
        for (id, kind) in call.stream.iter().filter_map(event).filter(|(id, _)| !self.before.contains(id)) {
            let id = ids.of(&id).map_or(id.clone(), str::to_owned);
            recorded.entry(id).or_default().push(kind);
        }
        for (id, kind) in answers.iter().filter_map(event).filter(|(id, _)| !self.there.contains(id)) {
            replayed.entry(id).or_default().push(kind);
        }
        (recorded, replayed)
    }

    fn judge_events(&self, call: &Call, outcome: Outcome) -> Verdict {
        if outcome.status.code() != Code::Ok {
            return Verdict::Different(vec![code_difference("OK", &outcome.status)]);
        }
        if call.method != EVENTS {
            return Verdict::Cut;
        }
        let (recorded, replayed) = self.events(call, &outcome.answers);
        let mut found = Vec::new();
        for (id, types) in &recorded {
            let others = replayed.get(id).map_or(&[][..], Vec::as_slice);
            if !others.starts_with(types) {
                found.push(Difference {
                    path: format!("events[{}]", crate::trace::short(id)),
                    recorded: types.clone().into(),
                    replayed: others.to_vec().into(),
                });
            }
        }
        if found.is_empty() { Verdict::Same } else { Verdict::Different(found) }
    }

    /// Keeps what the target calls what it made.
    fn learn(&self, call: &Call, outcome: &Outcome) {
        let Some(recorded) = made_by(call) else { return };
        let field = made_field(&call.method).unwrap_or_default();
        let made = outcome.answers.first().and_then(|answer| answer.get(field)?.as_str());
        let mut ids = lock(&self.ids);
        match made {
            Some(id) if call.method == "RunPodSandbox" => ids.made_pod(recorded, id),
            Some(id) => ids.made(recorded, id),
            None => ids.failed(recorded, call.number),
        }
        if call.method == "PullImage"
            && let Some(image) = image_of(call)
        {
            ids.pulled(image);
        }
    }

    fn judge(&self, method: &Method, call: &Call, outcome: &Outcome) -> Vec<Difference> {
        if call.code != name_of(outcome.status.code()) {
            return vec![code_difference(&call.code, &outcome.status)];
        }
        let has_all = call.omitted.is_none() && call.parts == call.stream.len() as u64;
        if outcome.status.code() != Code::Ok || !has_all {
            return Vec::new();
        }
        self.compare(method, call, &merged(call.answer.iter().chain(&call.stream)), outcome)
    }

    /// Compares an answer of the record with the target's.
    fn compare(&self, method: &Method, call: &Call, recorded: &Json, outcome: &Outcome) -> Vec<Difference> {
        if outcome.status.code() != Code::Ok {
            return vec![code_difference(&call.code, &outcome.status)];
        }
        let ids = lock(&self.ids);
        let recorded = normal(&method.output, recorded, &Side::Record(&ids, &self.before));
        let replayed = merged(&outcome.answers);
        let replayed = normal(&method.output, &replayed, &Side::Target(&ids, &self.there));
        // An image that the record does not pull is there or not whatever the server does.
        let is_other_image = call.method == "ImageStatus"
            && image_of(call).is_some_and(|image| !ids.is_pulled(image) && ids.of(image).is_none());
        let mut found = differences(&recorded, &replayed);
        found.retain(|it| !(is_other_image && it.path.starts_with("image")));
        found
    }
}

type Events = BTreeMap<String, Vec<String>>;

fn code_difference(recorded: &str, status: &Status) -> Difference {
    let replayed = match status.code() {
        Code::Ok => "OK".to_owned(),
        code => format!("{}: {}", name_of(code), status.message()),
    };
    Difference { path: "code".into(), recorded: recorded.into(), replayed: replayed.into() }
}

/// The last field of a path.
fn field(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Whether a difference may pass by itself: a state, or a member of a list that is not there
/// yet, or still.
fn passes(path: &str) -> bool {
    PASSING.contains(&field(path)) || path.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_members_of_lists_may_pass() {
        assert!(passes("status.state") && passes("containers[a.b/c].state") && passes("items[x]"));
        assert!(!passes("status.image_id") && !passes("code"));
        assert_eq!(field("status.image.user_specified_image"), "user_specified_image");
    }
}
