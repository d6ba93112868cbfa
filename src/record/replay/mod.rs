//! Plays a record to a server, and compares the answers.
//!
//! [`plan`] says what waits for what, [`player`] makes the calls, [`compare`] says what has to be
//! equal, [`report`] what came of it.

pub(super) mod compare;
mod plan;
mod player;
mod report;
pub(super) mod target;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value as Json};

use self::plan::Plan;
use self::player::{Player, lock};
use self::target::Target;
use super::format::{Call, Record};
use crate::trace::mask::MASKED;

pub use self::compare::Difference;
pub use self::report::Report;

/// What is played, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The record.
    pub file: PathBuf,
    /// The server's socket.
    pub target: PathBuf,
    /// How many times as fast as recorded; none for as fast as the order of calls allows.
    pub speed: Option<f64>,
    /// Texts of the record that are others on the target, such as paths.
    pub replacements: Vec<(String, String)>,
    /// Removes the pods that were made and that the record leaves.
    pub cleans: bool,
}

/// Plays a record.
///
/// # Errors
/// A record that cannot be read, a target that does not answer.
pub async fn replay(request: Request) -> anyhow::Result<Report> {
    let file = request.file.clone();
    let replacements = request.replacements.clone();
    let read = tokio::task::spawn_blocking(move || {
        let file = File::open(&file).with_context(|| format!("read {file:?}"))?;
        let mut record = Record::read(BufReader::new(file))?;
        plan::replace(&mut record, &replacements);
        anyhow::Ok(record)
    });
    let record = read.await?.with_context(|| format!("the record {:?}", request.file))?;
    let mut report = Report::new(&record, &request);
    let target = Target::connect(&request.target).await?;
    report.target.server = super::who(&request.target).await.unwrap_or_default();
    let there = target.objects().await.context("what the target has already")?;
    let plan = Plan::new(record);
    for image in &plan.images {
        if !target.has_image(image).await.unwrap_or(false) {
            report.note(format!(
                "image {image} was there before the record, and the target does not have it: pull it first"
            ));
        }
    }
    let player = Arc::new(Player::new(target.clone(), request.speed, &plan, there));
    player.clone().play(plan.calls, &mut report).await;
    let made = lock(&player.ids).pods().map(str::to_owned).collect::<Vec<_>>();
    let now = target.objects().await.unwrap_or_default();
    for pod in made.iter().filter(|pod| now.contains(*pod)) {
        match request.cleans {
            true => {
                if let Err(error) = target.remove_pod(pod).await {
                    report.note(format!("pod {pod} was not removed: {error}"));
                }
            }
            false => report.left.push(pod.clone()),
        }
    }
    Ok(report)
}

/// How a call went.
pub(super) struct Played {
    pub(super) call: Call,
    pub(super) took: Duration,
    pub(super) verdict: Verdict,
}

pub(super) enum Verdict {
    Same,
    /// Equal when asked again, after so long.
    Settled(Duration),
    /// Equal to what the record has later.
    Ahead,
    Different(Vec<Difference>),
    /// Played, but nobody knows what the answer would have been.
    Cut,
    NotPlayed(String),
}

impl Played {
    fn not(call: Call, why: String) -> Played {
        Played { call, took: Duration::ZERO, verdict: Verdict::NotPlayed(why) }
    }
}

/// The parts of a stream as one message: lists one behind the other.
pub(super) fn merged<'a>(parts: impl IntoIterator<Item = &'a Json>) -> Json {
    let mut all = Map::new();
    for part in parts {
        for (name, value) in part.as_object().into_iter().flatten() {
            match (all.get_mut(name), value) {
                (Some(Json::Array(list)), Json::Array(more)) => list.extend(more.iter().cloned()),
                _ => _ = all.insert(name.clone(), value.clone()),
            }
        }
    }
    Json::Object(all)
}

/// How many secrets of a request are masked.
pub(super) fn masked(json: &Json) -> usize {
    match json {
        Json::String(text) => usize::from(text == MASKED),
        Json::Array(list) => list.iter().map(masked).sum(),
        Json::Object(map) => map.values().map(masked).sum(),
        _ => 0,
    }
}
