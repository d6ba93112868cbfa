//! What of a record can be played, and what has to wait for what.
//!
//! A call begins after all that had ended when it began in the record, and after those that
//! made what it names. So calls that were one after the other stay so on a target that is
//! slower, and calls that ran at the same time run at the same time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::format::{Call, Record};
use crate::proto::schema::{Method, SCHEMA};
use crate::trace::is_look;

/// Fields that hold the id of a pod or container.
const ID_FIELDS: [&str; 4] = ["id", "container_id", "pod_sandbox_id", "target_id"];
/// So many later answers are compared.
const LATER_MAX: usize = 8;
/// The shortest beginning of an id that is taken for it.
const PREFIX_MIN: usize = 6;

/// A call in its order.
pub(super) struct Planned {
    pub(super) call: Call,
    /// So many calls of the order of ends must have ended.
    pub(super) after: usize,
    /// Its place in the order of ends.
    pub(super) rank: usize,
    /// Earlier calls that made what this one names.
    pub(super) needs: Vec<usize>,
    /// What the record has as the answer to the same question later, and otherwise.
    pub(super) later: Vec<Arc<Json>>,
    pub(super) fate: Fate,
}

/// Whether a call is played.
pub(super) enum Fate {
    Play(&'static Method),
    /// It is not, for this reason.
    Leave(String),
}

pub(super) struct Plan {
    pub(super) calls: Vec<Planned>,
    /// Ids of pods and containers that were there when the record began.
    pub(super) before: BTreeSet<String>,
    /// Images that containers are made of and that no call of the record pulls.
    pub(super) images: BTreeSet<String>,
}

impl Plan {
    /// Orders the calls of a record.
    pub(super) fn new(record: Record) -> Plan {
        let mut made = HashMap::new();
        for (index, call) in record.calls.iter().enumerate() {
            if let Some(id) = made_by(call) {
                made.entry(id.to_owned()).or_insert(index);
            }
        }
        let seen = seen(&record.calls);
        let (mut before, mut images, mut pulled) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        before.extend(seen.into_iter().filter(|id| !made.contains_key(id)));

        let mut ends: Vec<u64> = record.calls.iter().map(Call::end_us).collect();
        let mut order: Vec<usize> = (0..ends.len()).collect();
        order.sort_by_key(|index| (ends[*index], *index));
        let mut ranks = vec![0; ends.len()];
        order.iter().enumerate().for_each(|(rank, index)| ranks[*index] = rank);
        ends.sort_unstable();

        let mut calls = Vec::with_capacity(record.calls.len());
        for (index, call) in record.calls.into_iter().enumerate() {
            let after = ends.partition_point(|end| *end <= call.at_us).min(ranks[index]);
            let mut needs = Vec::new();
            let mut unknown = None;
            if let Some(request) = &call.request {
                strings(request, &mut |field, text| {
                    let known = made.get(text).or_else(|| {
                        let full = ID_FIELDS.contains(&field).then(|| whole(text, made.keys()))??;
                        made.get(full)
                    });
                    match known {
                        Some(maker) if *maker < index => needs.push(*maker),
                        None if ID_FIELDS.contains(&field) && !text.is_empty() => {
                            unknown = Some(text.to_owned());
                        }
                        _ => {}
                    }
                });
            }
            if let Some(id) = unknown.as_ref().filter(|_| shows_existence(&call)) {
                before.insert(id.clone());
            }
            match (call.method.as_str(), image_of(&call)) {
                ("PullImage", Some(image)) => _ = pulled.insert(image.to_owned()),
                _ if call.code != "OK" => {}
                ("CreateContainer", Some(image)) if !pulled.contains(image) && !made.contains_key(image) => {
                    images.insert(image.to_owned());
                }
                _ => {}
            }
            let fate = fate(&call, unknown.as_ref().filter(|id| before.contains(*id)));
            needs.dedup();
            calls.push(Planned { call, after, rank: ranks[index], needs, later: Vec::new(), fate });
        }
        tell_later(&mut calls);
        Plan { calls, before, images }
    }
}

/// Gives each question the other answers that it got later.
fn tell_later(calls: &mut [Planned]) {
    let mut answers = HashMap::<(String, String), Vec<Arc<Json>>>::new();
    for planned in calls.iter_mut().rev().filter(|planned| is_look(&planned.call.method)) {
        let call = &planned.call;
        let (Some(request), Some(answer)) = (&call.request, &call.answer) else { continue };
        let known = answers.entry((call.method.clone(), request.to_string())).or_default();
        let others = known.iter().rev().filter(|other| ***other != *answer);
        planned.later = others.take(LATER_MAX).cloned().collect();
        if known.last().is_none_or(|last| **last != *answer) {
            known.push(Arc::new(answer.clone()));
        }
    }
}

fn fate(call: &Call, before: Option<&String>) -> Fate {
    let leave = |why: &str| Fate::Leave(why.to_owned());
    match (SCHEMA.methods.get(&call.method), before) {
        (None, _) => leave("a method that is not known"),
        (_, Some(id)) => Fate::Leave(format!("about {id}, which was there before the record")),
        _ if call.request.is_none() => match &call.omitted {
            Some(why) => Fate::Leave(format!("its request is not in the record ({why})")),
            None => leave("its client gave it up before it had sent its request"),
        },
        (Some(method), None) => Fate::Play(method),
    }
}

/// The id that a call gave to something that it made.
pub(super) fn made_by(call: &Call) -> Option<&str> {
    let field = made_field(&call.method)?;
    call.answer.as_ref()?.get(field)?.as_str().filter(|id| !id.is_empty())
}

/// Where a method's answer says what it made.
pub(super) fn made_field(method: &str) -> Option<&'static str> {
    match method {
        "RunPodSandbox" => Some("pod_sandbox_id"),
        "CreateContainer" => Some("container_id"),
        "PullImage" => Some("image_ref"),
        _ => None,
    }
}

/// The image that a call names.
pub(super) fn image_of(call: &Call) -> Option<&str> {
    let request = call.request.as_ref()?;
    let spec = request.get("image").or_else(|| request.get("config")?.get("image"))?;
    spec.get("image")?.as_str()
}

/// Ids of pods and containers that answers tell of.
fn seen(calls: &[Call]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for call in calls.iter().filter(|call| !call.method.contains("Image")) {
        for answer in call.answer.iter().chain(&call.stream) {
            strings(answer, &mut |field, text| {
                if ID_FIELDS.contains(&field) && !text.is_empty() {
                    seen.insert(text.to_owned());
                }
            });
        }
    }
    seen
}

/// Whether what a call names must have been there: one that stops or removes something goes
/// well without it, and a filter matches nothing.
fn shows_existence(call: &Call) -> bool {
    let goes_without = ["Stop", "Remove", "List", "Stream"];
    call.code == "OK" && !goes_without.iter().any(|word| call.method.starts_with(word))
}

/// The one id that begins so.
pub(super) fn whole<'a>(text: &str, ids: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    if text.len() < PREFIX_MIN {
        return None;
    }
    let mut found = ids.filter(|id| id.starts_with(text));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Calls `look` with each text and the name of its field.
fn strings(json: &Json, look: &mut impl FnMut(&str, &str)) {
    fn walk(field: &str, json: &Json, look: &mut impl FnMut(&str, &str)) {
        match json {
            Json::String(text) => look(field, text),
            Json::Array(list) => list.iter().for_each(|json| walk(field, json, look)),
            Json::Object(map) => map.iter().for_each(|(field, json)| walk(field, json, look)),
            _ => {}
        }
    }
    walk("", json, look);
}

/// Ids of the record, and what they are on the target.
#[derive(Debug, Default)]
pub(in crate::record) struct Ids {
    known: BTreeMap<String, String>,
    /// Things that could not be made, by the number of the call.
    failed: HashMap<String, u64>,
    /// Pods of the target.
    pods: Vec<String>,
    /// Images that were pulled, as they were named.
    pulled: BTreeSet<String>,
}

impl Ids {
    pub(super) fn made(&mut self, recorded: &str, target: &str) {
        self.known.insert(recorded.to_owned(), target.to_owned());
    }

    pub(super) fn made_pod(&mut self, recorded: &str, target: &str) {
        self.made(recorded, target);
        self.pods.push(target.to_owned());
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().map(String::as_str)
    }

    pub(super) fn pulled(&mut self, image: &str) {
        self.pulled.insert(image.to_owned());
    }

    pub(super) fn is_pulled(&self, image: &str) -> bool {
        self.pulled.contains(image)
    }

    pub(super) fn failed(&mut self, recorded: &str, call: u64) {
        if !self.known.contains_key(recorded) {
            self.failed.insert(recorded.to_owned(), call);
        }
    }

    /// The target's name for what the record calls so.
    pub(super) fn of(&self, recorded: &str) -> Option<&str> {
        self.known.get(recorded).map(String::as_str)
    }

    /// Whether the target calls something of the record so.
    pub(super) fn has(&self, target: &str) -> bool {
        self.known.values().any(|id| id == target)
    }

    /// Puts the target's ids into a request.
    ///
    /// # Errors
    /// The call that failed to make what it names.
    pub(super) fn fill(&self, request: &mut Json) -> Result<(), u64> {
        self.fill_field("", request)
    }

    fn fill_field(&self, field: &str, json: &mut Json) -> Result<(), u64> {
        match json {
            Json::String(text) => {
                let full = match ID_FIELDS.contains(&field) {
                    true => whole(text, self.known.keys().chain(self.failed.keys())).unwrap_or(text),
                    false => &*text,
                };
                if let Some(call) = self.failed.get(full) {
                    return Err(*call);
                }
                if let Some(id) = self.known.get(full) {
                    *text = id.clone();
                }
                Ok(())
            }
            Json::Array(list) => list.iter_mut().try_for_each(|json| self.fill_field(field, json)),
            Json::Object(map) => map.iter_mut().try_for_each(|(field, json)| self.fill_field(field, json)),
            _ => Ok(()),
        }
    }
}

/// Puts other texts into all messages of a record: paths, say, that are others on the target.
pub(super) fn replace(record: &mut Record, pairs: &[(String, String)]) {
    fn walk(json: &mut Json, pairs: &[(String, String)]) {
        match json {
            Json::String(text) => {
                for (from, to) in
                    pairs.iter().filter(|(from, _)| text.contains(from.as_str())).cloned().collect::<Vec<_>>()
                {
                    *text = text.replace(&from, &to);
                }
            }
            Json::Array(list) => list.iter_mut().for_each(|json| walk(json, pairs)),
            Json::Object(map) => map.values_mut().for_each(|json| walk(json, pairs)),
            _ => {}
        }
    }
    for call in &mut record.calls {
        let messages = call.request.iter_mut().chain(&mut call.answer).chain(&mut call.stream);
        messages.for_each(|json| walk(json, pairs));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::format::{Header, Keep};
    use super::*;

    fn call(number: u64, span: (u64, u64), method: &str, request: Json, answer: Json) -> Call {
        Call {
            number,
            method: method.into(),
            at_us: span.0,
            took_us: span.1 - span.0,
            request: Some(request),
            code: "OK".into(),
            answer: Some(answer),
            ..Call::default()
        }
    }

    fn plan(calls: Vec<Call>) -> Plan {
        let header = Header::new(String::new(), Keep::default());
        Plan::new(Record { header, calls, lost: 0, is_whole: true })
    }

    #[test]
    fn a_call_waits_for_those_that_had_ended_and_for_what_it_names() {
        let plan = plan(vec![
            call(1, (0, 50), "RunPodSandbox", json!({}), json!({"pod_sandbox_id": "pod-one"})),
            call(2, (10, 20), "Status", json!({}), json!({})),
            // It learnt of the pod before the call that made it was answered.
            call(3, (30, 40), "PodSandboxStatus", json!({"pod_sandbox_id": "pod-one"}), json!({})),
            call(4, (60, 70), "StopPodSandbox", json!({"pod_sandbox_id": "pod-o"}), json!({})),
        ]);
        let orders: Vec<(usize, usize)> = plan.calls.iter().map(|call| (call.after, call.rank)).collect();
        assert_eq!(orders, [(0, 2), (0, 0), (1, 1), (3, 3)]);
        assert_eq!((&plan.calls[2].needs[..], &plan.calls[3].needs[..]), (&[0][..], &[][..]));
        assert!(plan.before.is_empty());
    }

    #[test]
    fn what_was_there_before_is_found_and_what_never_was_is_played() {
        let list = json!({"items": [{"id": "older-pod"}]});
        let mut missing = call(4, (6, 7), "ContainerStatus", json!({"container_id": "no-such"}), json!({}));
        missing.code = "NotFound".into();
        let plan = plan(vec![
            call(1, (0, 1), "ListPodSandbox", json!({}), list),
            call(2, (2, 3), "PodSandboxStatus", json!({"pod_sandbox_id": "older-pod"}), json!({})),
            call(3, (4, 5), "StartContainer", json!({"container_id": "older-container"}), json!({})),
            missing,
            call(5, (8, 9), "RemoveContainer", json!({"container_id": "long-gone"}), json!({})),
            call(6, (10, 11), "Unheard", json!({}), json!({})),
        ]);
        let plays: Vec<bool> =
            plan.calls.iter().map(|planned| matches!(planned.fate, Fate::Play(_))).collect();
        assert_eq!(plays, [true, false, false, true, true, false]);
        assert_eq!(plan.before.iter().collect::<Vec<_>>(), ["older-container", "older-pod"]);
    }

    #[test]
    fn a_question_knows_what_it_is_answered_later() {
        let status = |number: u64, state: &str| {
            let request = json!({"container_id": "no-such-one"});
            call(number, (number * 10, number * 10 + 1), "ContainerStatus", request, json!({ "s": state }))
        };
        let plan = plan(vec![status(1, "a"), status(2, "a"), status(3, "b"), status(4, "b")]);
        let later: Vec<Vec<&Json>> =
            plan.calls.iter().map(|planned| planned.later.iter().map(|it| &**it).collect()).collect();
        assert_eq!(later, [vec![&json!({"s": "b"})], vec![&json!({"s": "b"})], vec![], vec![]]);
    }

    #[test]
    fn images_that_nobody_pulls_are_told() {
        let create = |image: &str| json!({"config": {"image": {"image": image}}});
        let plan = plan(vec![
            call(
                1,
                (0, 1),
                "PullImage",
                json!({"image": {"image": "a:1"}}),
                json!({"image_ref": "sha256:a"}),
            ),
            call(2, (2, 3), "CreateContainer", create("a:1"), json!({"container_id": "c1"})),
            call(3, (4, 5), "CreateContainer", create("sha256:a"), json!({"container_id": "c2"})),
            call(4, (6, 7), "CreateContainer", create("b:1"), json!({"container_id": "c3"})),
        ]);
        assert_eq!(plan.images.iter().collect::<Vec<_>>(), ["b:1"]);
    }

    #[test]
    fn requests_name_what_the_target_made() {
        let mut ids = Ids::default();
        ids.made("recorded-one", "target-1");
        ids.failed("recorded-two", 7);
        let mut request = json!({"container_id": "recorded-o", "config": {"labels": {"a": "recorded-one"}}});
        ids.fill(&mut request).expect("all is known");
        assert_eq!(request, json!({"container_id": "target-1", "config": {"labels": {"a": "target-1"}}}));
        assert_eq!(ids.fill(&mut json!({"filter": {"id": "recorded-two"}})), Err(7));
        assert!(ids.has("target-1") && !ids.has("recorded-one"));
    }
}
