//! What came of a replay, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value as Json;
use tokio::task::JoinError;

use super::super::format::Record;
use super::compare::Difference;
use super::{Played, Request, Verdict, masked};

/// The longest value of a difference in text.
const VALUE_CHARS_MAX: usize = 120;
/// So many calls of one reason are named.
const NUMBERS_MAX: usize = 8;

/// What came of a replay.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The record.
    pub record: Origin,
    /// The server that it was played to.
    pub target: Goal,
    /// How many calls there are of each sort.
    pub calls: Counts,
    /// The longest that an equal answer was waited for.
    pub settled_max_us: u64,
    /// Calls that were answered otherwise.
    pub different: Vec<Answered>,
    /// Why calls were not played, and which.
    pub not_played: BTreeMap<String, Vec<u64>>,
    /// By method.
    pub methods: BTreeMap<String, Figures>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// Pods that were made and are still there.
    pub left: Vec<String>,
}

/// A record.
#[derive(Debug, Default, Serialize)]
pub struct Origin {
    /// The file.
    pub file: String,
    /// When it began.
    pub begun: String,
    /// The server's name and version.
    pub server: String,
    /// What is masked in it.
    pub masked: Vec<String>,
    /// Calls that were lost on the way into it.
    pub lost: u64,
}

/// A target.
#[derive(Debug, Default, Serialize)]
pub struct Goal {
    /// Its socket.
    pub socket: String,
    /// Its name and version.
    pub server: String,
    /// How many times as fast as recorded; none for as fast as possible.
    pub speed: Option<f64>,
}

/// How many calls there are of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// In the record.
    pub recorded: usize,
    /// Answered equally.
    pub same: usize,
    /// Of these, only when asked again.
    pub settled: usize,
    /// Of these, as the record has it later: the target was faster.
    pub ahead: usize,
    /// Answered otherwise.
    pub different: usize,
    /// Given up by their clients, here as there; their answers are not known.
    pub cut: usize,
    /// Not played.
    pub not_played: usize,
}

/// A call that was answered otherwise.
#[derive(Debug, Serialize)]
pub struct Answered {
    /// The call's number in the record.
    pub call: u64,
    /// Its method.
    pub method: String,
    /// Where the answers differ.
    pub differences: Vec<Difference>,
}

/// Figures of a method.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Calls that were played to their end.
    pub calls: usize,
    /// Of these, answered otherwise.
    pub different: usize,
    /// How long they took in the record.
    pub recorded: Times,
    /// How long they took now.
    pub replayed: Times,
}

/// Times of calls.
#[derive(Debug, Default, Serialize)]
pub struct Times {
    #[serde(skip)]
    all_us: Vec<u64>,
    /// Half of them took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
}

impl Times {
    fn add(&mut self, us: u64) {
        let place = self.all_us.partition_point(|other| *other < us);
        self.all_us.insert(place, us);
        let at = |hundredths: usize| self.all_us[(self.all_us.len() * hundredths).div_ceil(100) - 1];
        (self.p50_us, self.p99_us) = (at(50), at(99));
    }
}

impl Report {
    pub(super) fn new(record: &Record, request: &Request) -> Report {
        let header = &record.header;
        let mut report = Report {
            record: Origin {
                file: request.file.display().to_string(),
                begun: header.begun.clone(),
                server: header.server.clone(),
                masked: header.masked.clone(),
                lost: record.lost,
            },
            target: Goal {
                socket: request.target.display().to_string(),
                server: String::new(),
                speed: request.speed,
            },
            ..Report::default()
        };
        report.calls.recorded = record.calls.len();
        if !record.is_whole {
            report.note("the record has no end: it was cut off".into());
        }
        if record.lost > 0 {
            report.note(format!("{} calls and parts of streams were lost while recording", record.lost));
        }
        let requests = || record.calls.iter().filter_map(|call| call.request.as_ref());
        let pulls = requests().filter(|request| request.get("auth").is_some()).count();
        if pulls > 0 {
            report.note(format!("{pulls} pulls had credentials, which are masked: they go without"));
        }
        let values: usize =
            requests().filter_map(|request| request.get("config")?.get("envs")).map(masked).sum();
        if values > 0 {
            report.note(format!("{values} environment variables are masked: containers get <masked>"));
        }
        report
    }

    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(super) fn add(&mut self, played: Result<Played, JoinError>) {
        let Played { call, took, verdict } = match played {
            Ok(played) => played,
            Err(error) => return self.note(format!("a call was not played to its end: {error}")),
        };
        let is_different = matches!(verdict, Verdict::Different(_));
        match verdict {
            Verdict::NotPlayed(why) => {
                self.calls.not_played += 1;
                self.not_played.entry(why).or_default().push(call.number);
                return;
            }
            Verdict::Cut => {
                self.calls.cut += 1;
                return;
            }
            Verdict::Same => self.calls.same += 1,
            Verdict::Ahead => {
                self.calls.same += 1;
                self.calls.ahead += 1;
            }
            Verdict::Settled(after) => {
                let after_us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
                self.settled_max_us = self.settled_max_us.max(after_us);
                self.calls.same += 1;
                self.calls.settled += 1;
            }
            Verdict::Different(differences) => {
                self.calls.different += 1;
                let method = call.method.clone();
                self.different.push(Answered { call: call.number, method, differences });
            }
        }
        if call.cut.is_some() {
            // Its time is its client's.
            return;
        }
        let figures = self.methods.entry(call.method).or_default();
        figures.calls += 1;
        figures.different += usize::from(is_different);
        figures.recorded.add(call.took_us);
        figures.replayed.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Whether everything that could be compared is equal.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.calls.different == 0
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        let or_unknown = |name: &str| if name.is_empty() { "unknown".to_owned() } else { name.to_owned() };
        writeln!(
            to,
            "record  {} of {}, {}",
            self.record.file,
            or_unknown(&self.record.server),
            self.record.begun
        )?;
        let pace = match self.target.speed {
            None => "as fast as possible".to_owned(),
            Some(1.0) => "at its own pace".to_owned(),
            Some(speed) => format!("{speed} times as fast"),
        };
        writeln!(to, "target  {} of {}, {pace}", self.target.socket, or_unknown(&self.target.server))?;
        writeln!(to, "masked  {}", self.record.masked.join(", "))?;
        for note in &self.notes {
            writeln!(to, "note    {note}")?;
        }
        for answered in &self.different {
            writeln!(to, "\ncall {} {} differs:", answered.call, answered.method)?;
            for it in &answered.differences {
                writeln!(to, "  {}: {} → {}", it.path, short(&it.recorded), short(&it.replayed))?;
            }
        }
        if !self.not_played.is_empty() {
            writeln!(to, "\nnot played:")?;
            for (why, numbers) in &self.not_played {
                let mut named: Vec<String> = numbers.iter().take(NUMBERS_MAX).map(u64::to_string).collect();
                if numbers.len() > NUMBERS_MAX {
                    named.push(format!("… ({} calls)", numbers.len()));
                }
                writeln!(to, "  {why}: {}", named.join(", "))?;
            }
        }
        if !self.left.is_empty() {
            writeln!(to, "\nleft on the target, as the record leaves them: pods {}", self.left.join(", "))?;
        }
        if !self.methods.is_empty() {
            writeln!(
                to,
                "\n{:<26} {:>6} {:>6}  {:>19}  {:>19}",
                "METHOD", "CALLS", "DIFFER", "RECORDED p50/p99", "REPLAYED p50/p99"
            )?;
        }
        for (method, figures) in &self.methods {
            let Figures { calls, different, recorded, replayed } = figures;
            let times = |it: &Times| format!("{} / {}", milliseconds(it.p50_us), milliseconds(it.p99_us));
            writeln!(
                to,
                "{method:<26} {calls:>6} {different:>6}  {:>19}  {:>19}",
                times(recorded),
                times(replayed)
            )?;
        }
        let Counts { recorded, same, settled, ahead, different, cut, not_played } = self.calls;
        write!(to, "\n{}: {recorded} calls, {same} same", if self.is_same() { "SAME" } else { "DIFFERENT" })?;
        if settled > 0 {
            let after = milliseconds(self.settled_max_us);
            write!(to, " ({settled} of them when asked again, for {after} at most)")?;
        }
        if ahead > 0 {
            write!(to, " ({ahead} of them as the record has it later)")?;
        }
        for (count, what) in
            [(different, "different"), (cut, "given up by their clients"), (not_played, "not played")]
        {
            if count > 0 {
                write!(to, ", {count} {what}")?;
            }
        }
        writeln!(to)
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

/// A value of a difference.
fn short(value: &Json) -> String {
    if value.is_null() {
        return "(nothing)".to_owned();
    }
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_halves_and_hundredths() {
        let mut times = Times::default();
        times.add(7);
        assert_eq!((times.p50_us, times.p99_us), (7, 7));
        (1..=100).rev().for_each(|us| times.add(us));
        assert_eq!((times.p50_us, times.p99_us), (50, 99));
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(short(&Json::Null), "(nothing)");
        assert_eq!(short(&"é".repeat(200).into()).chars().count(), VALUE_CHARS_MAX + 1);
    }
}
