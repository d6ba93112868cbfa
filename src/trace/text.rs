//! Calls for people.
//!
//! ```text
//! 15:04:05.123 RunPodSandbox default/web-0  61.3 ms  OK  [trace 1a2b3c]
//!              pod 3f2a9c8d1b2e9
//!      +0.4 ms   3.1 ms |==                      | record
//!      +0.5 ms   2.9 ms |==                      |   containerd Containers.Create id=3f2a9c8d1b2e9
//! ```
//! Offsets from the call's arrival, durations, where in the call's time that was (side by
//! side is at the same time), and what for. What took a quarter of the call or more, by
//! itself, is marked.

use std::fmt::Write;

use jiff::tz::TimeZone;

use super::story::{Step, Story};

/// Cells of the bar.
const BAR: u64 = 24;
/// So much of an id is shown, as crictl does.
const ID_DIGITS: usize = 13;
/// From how many hexadecimal digits on a word is an id.
const ID_DIGITS_MIN: usize = 40;
/// The share of a call's time from which on a step is marked, in percent.
const SLOW_PERCENT: u64 = 25;
/// The share of the time without a step from which on it is told.
const UNKNOWN_PERCENT: u64 = 5;
/// Where the text of a step begins.
const MARGIN: usize = 53;

/// How it is shown.
#[derive(Clone, Debug)]
pub struct Look {
    /// With colours.
    pub color: bool,
    /// Whole requests, ids and what plugins read and wrote.
    pub verbose: bool,
    /// The time zone of times.
    pub zone: TimeZone,
}

#[derive(Clone, Copy)]
enum Paint {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

impl Look {
    fn paint(&self, paint: Paint, text: &str) -> String {
        if self.color { format!("\x1b[{}m{text}\x1b[0m", paint as u8) } else { text.to_owned() }
    }

    fn text(&self, text: &str) -> String {
        if self.verbose { text.to_owned() } else { short(text) }
    }
}

/// A time for people: `412 µs`, `61.3 ms`, `2.41 s`.
#[must_use]
pub fn time(us: u64) -> String {
    let value = us as f64;
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{:.1} ms", value / 1e3),
        1_000_000..100_000_000 => format!("{:.2} s", value / 1e6),
        _ => format!("{:.0} s", value / 1e6),
    }
}

/// Offsets and durations in a call: all with one unit, so that they can be compared at a glance.
fn milliseconds(us: u64) -> String {
    if us < 10_000_000 { format!("{:.1} ms", us as f64 / 1e3) } else { time(us) }
}

/// A text whose ids are cut to their beginnings.
#[must_use]
pub fn short(text: &str) -> String {
    cut_ids(text, ID_DIGITS)
}

/// A text whose ids are cut to so many digits.
pub(super) fn cut_ids(text: &str, digits_max: usize) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits >= ID_DIGITS_MIN {
            short.push_str(&rest[..digits_max]);
            rest = &rest[digits..];
            continue;
        }
        let next = rest[digits..].chars().next().map_or(0, char::len_utf8);
        short.push_str(&rest[..digits + next]);
        rest = &rest[digits + next..];
    }
    short
}

/// Writes a call with all its steps.
pub fn write_story(to: &mut String, story: &Story, look: &Look) {
    write_head(to, story, look);
    let end = story.end_us().max(1);
    write_steps(to, story, look, 0, 0, end);
    if story.left_out > 0 {
        let _ = writeln!(to, "{:MARGIN$}({} further steps were not kept)", "", story.left_out);
    }
    let answered = story.us.unwrap_or(end);
    let unknown = answered.saturating_sub(story.accounted_us());
    if !story.steps.is_empty() && unknown * 100 >= answered * UNKNOWN_PERCENT && unknown >= 1000 {
        let _ = writeln!(to, "{:MARGIN$}({} in none of these)", "", milliseconds(unknown));
    }
}

/// Writes a call in one line, and one for its error.
pub fn write_brief(to: &mut String, story: &Story, look: &Look) {
    write_line(to, story, look);
    if let Some(line) = story.error.lines().next() {
        let _ = writeln!(to, "             {}", look.paint(Paint::Red, line));
    }
}

fn write_line(to: &mut String, story: &Story, look: &Look) {
    let about = &story.about;
    let at = jiff::Timestamp::from_microsecond(i64::try_from(story.at_us).unwrap_or(0)).unwrap_or_default();
    let clock = look.zone.to_offset(at).to_datetime(at).strftime("%H:%M:%S%.3f").to_string();
    let mut words = vec![look.paint(Paint::Bold, &story.method)];
    let names = [&about.pod, &about.container];
    words.extend(names.into_iter().filter(|name| !name.is_empty()).cloned());
    if about.pod.is_empty() && !about.object.is_empty() {
        words.push(look.text(&about.object));
    }
    let took = story.us.map_or_else(|| "still runs".to_owned(), milliseconds);
    let code = match story.code.as_str() {
        "" => String::new(),
        "OK" => look.paint(Paint::Green, "OK"),
        code => look.paint(Paint::Red, code),
    };
    let id = if story.failure.is_empty() { &story.id } else { &story.failure };
    let id = look.paint(Paint::Dim, &format!("[trace {id}]"));
    let _ = writeln!(to, "{} {}  {took}  {code}  {id}", look.paint(Paint::Dim, &clock), words.join(" "));
}

fn write_head(to: &mut String, story: &Story, look: &Look) {
    write_line(to, story, look);
    let about = &story.about;
    let ids = [("pod", &about.pod_id), ("container", &about.container_id)];
    let ids: Vec<String> = ids
        .iter()
        .filter(|(_, id)| !id.is_empty())
        .map(|(what, id)| format!("{what} {}", look.text(id)))
        .collect();
    if !ids.is_empty() {
        let _ = writeln!(to, "             {}", look.paint(Paint::Dim, &ids.join("  ")));
    }
    for line in story.error.lines() {
        let _ = writeln!(to, "             {}", look.paint(Paint::Red, line));
    }
    let after = story.us.map_or(0, |us| story.end_us().saturating_sub(us));
    if after >= 1000 {
        let why = if story.code == "Canceled" { "the client went away; " } else { "" };
        let _ = writeln!(to, "             ({why}work went on for {} after that)", milliseconds(after));
    }
    if look.verbose && !story.request.is_empty() {
        let _ = writeln!(to, "             request {}", story.request);
    }
}

/// The steps that were done for one, each with its own below it.
fn write_steps(to: &mut String, story: &Story, look: &Look, parent: u32, depth: usize, end: u64) {
    for (place, step) in story.steps.iter().enumerate() {
        // A step begins after the one that it is done for, so this comes to an end.
        let number = u32::try_from(place + 1).unwrap_or(u32::MAX);
        if step.parent != parent || number <= parent {
            continue;
        }
        let has_own = story.steps[place + 1..].iter().any(|inner| inner.parent == number);
        write_step(to, step, look, depth, end, !has_own);
        if has_own {
            write_steps(to, story, look, number, depth + 1, end);
        }
    }
}

fn write_step(to: &mut String, step: &Step, look: &Look, depth: usize, end: u64, is_leaf: bool) {
    let us = step.us.unwrap_or_else(|| end.saturating_sub(step.at_us));
    let took = step.us.map_or_else(|| "runs".to_owned(), milliseconds);
    let percent = us * 100 / end;
    let is_slow = is_leaf && percent >= SLOW_PERCENT;
    let kind = match step.kind.as_str() {
        "stage" => String::new(),
        "wait" => "wait for ".to_owned(),
        kind => format!("{kind} "),
    };
    let name = look.paint(if is_slow { Paint::Yellow } else { Paint::Bold }, &look.text(&step.name));
    let kind = look.paint(Paint::Cyan, &kind);
    let args = if step.args.is_empty() { String::new() } else { format!(" {}", look.text(&step.args)) };
    let slow = if is_slow { look.paint(Paint::Yellow, &format!("  <- {percent} %")) } else { String::new() };
    let offset = format!("+{}", milliseconds(step.at_us));
    let bar = look.paint(Paint::Dim, &bar(step.at_us, us, end));
    let indent = "  ".repeat(depth);
    let _ = writeln!(to, "{offset:>12} {took:>11} {bar}  {indent}{kind}{name}{args}{slow}");
    let margin = MARGIN + 2 * depth;
    for line in step.error.lines() {
        let line = look.paint(Paint::Red, &look.text(line));
        let _ = writeln!(to, "{:margin$}! {line}", "");
    }
    for (key, text) in &step.notes {
        // What it was told and answered is long; what it complains of is what is looked for.
        if look.verbose || key == "stderr" {
            for line in text.lines() {
                let _ = writeln!(to, "{:margin$}{key}: {line}", "");
            }
        }
    }
}

/// Where in the call's time a step was.
fn bar(at: u64, us: u64, end: u64) -> String {
    let from = (at * BAR / end).min(BAR - 1);
    let to = ((at + us) * BAR).div_ceil(end).clamp(from + 1, BAR);
    let cells = |count: u64, cell: &str| cell.repeat(usize::try_from(count).unwrap_or(0));
    format!("|{}{}{}|", cells(from, " "), cells(to - from, "="), cells(BAR - to, " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::About;

    fn step(parent: u32, kind: &str, name: &str, at_us: u64, us: u64) -> Step {
        Step { parent, kind: kind.into(), name: name.into(), at_us, us: Some(us), ..Step::default() }
    }

    fn story() -> Story {
        let mut create = step(2, "containerd", "Containers.Create", 1000, 2900);
        create.args = format!("id={}", "3f2a".repeat(16));
        let mut cni = step(0, "cni", "ADD bridge", 4000, 40_000);
        cni.error = "plugin \"bridge\": no room".into();
        cni.notes = vec![("stdin".into(), "{}".into()), ("stderr".into(), "boom\nbang".into())];
        Story {
            id: "00000a".into(),
            failure: "1a2b3c".into(),
            method: "RunPodSandbox".into(),
            at_us: 1_700_000_000_123_456,
            us: Some(48_000),
            code: "Unknown".into(),
            error: "run pod sandbox \"web-0\": network: no room".into(),
            about: About {
                pod: "default/web-0".into(),
                pod_id: "3f2a".repeat(16),
                object: "default/web-0".into(),
                ..About::default()
            },
            request: "{\"config\":{}}".into(),
            steps: vec![
                step(0, "stage", "image", 0, 900),
                step(0, "stage", "record", 1000, 3000),
                create,
                cni,
                step(0, "stage", "pause_create", 4000, 20_000),
            ],
            left_out: 3,
        }
    }

    fn look(color: bool, verbose: bool) -> Look {
        Look { color, verbose, zone: TimeZone::UTC }
    }

    #[test]
    fn a_call_reads_as_a_tree() {
        let mut text = String::new();
        write_story(&mut text, &story(), &look(false, false));
        let want = r#"
22:13:20.123 RunPodSandbox default/web-0  48.0 ms  Unknown  [trace 1a2b3c]
             pod 3f2a3f2a3f2a3
             run pod sandbox "web-0": network: no room
     +0.0 ms      0.9 ms |=                       |  image
     +1.0 ms      3.0 ms |==                      |  record
     +1.0 ms      2.9 ms |==                      |    containerd Containers.Create id=3f2a3f2a3f2a3
     +4.0 ms     40.0 ms |  ====================  |  cni ADD bridge  <- 83 %
                                                     ! plugin "bridge": no room
                                                     stderr: boom
                                                     stderr: bang
     +4.0 ms     20.0 ms |  ==========            |  pause_create  <- 41 %
                                                     (3 further steps were not kept)
                                                     (4.1 ms in none of these)
"#;
        assert_eq!(text, want[1..]);
    }

    #[test]
    fn with_more_words_ids_requests_and_all_texts_are_whole() {
        let mut text = String::new();
        write_story(&mut text, &story(), &look(false, true));
        assert!(text.contains(&format!("pod {}\n", "3f2a".repeat(16))), "{text}");
        assert!(text.contains("request {\"config\":{}}\n") && text.contains("stdin: {}\n"), "{text}");
    }

    #[test]
    fn colours_add_nothing_but_colours() {
        let (mut plain, mut colored) = (String::new(), String::new());
        write_story(&mut plain, &story(), &look(false, false));
        write_story(&mut colored, &story(), &look(true, false));
        assert!(colored.contains("\x1b[31m! ") || colored.contains("\x1b[31mUnknown"));
        let mut stripped = String::new();
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            stripped.push_str(before);
            rest = after.split_once('m').expect("the end of a colour").1;
        }
        stripped.push_str(rest);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn a_client_that_went_away_is_told() {
        let story = Story {
            method: "RunPodSandbox".into(),
            us: Some(10_000),
            code: "Canceled".into(),
            steps: vec![step(0, "stage", "cni", 0, 50_000)],
            ..Story::default()
        };
        let mut text = String::new();
        write_story(&mut text, &story, &look(false, false));
        assert!(text.contains("(the client went away; work went on for 40.0 ms after that)"), "{text}");
    }

    #[test]
    fn ids_are_cut_and_other_words_are_not() {
        let id = "0a".repeat(32);
        assert_eq!(
            short(&format!("id={id} ä sha256:{id}/cafe")),
            "id=0a0a0a0a0a0a0 ä sha256:0a0a0a0a0a0a0/cafe"
        );
        assert_eq!(short("deadbeef déjà"), "deadbeef déjà");
        assert_eq!(short(""), "");
    }

    #[test]
    fn times_are_for_people() {
        for (us, want) in [(7, "7 µs"), (61_300, "61.3 ms"), (2_410_000, "2.41 s"), (240_000_000, "240 s")] {
            assert_eq!(time(us), want);
        }
    }
}
