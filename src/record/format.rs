//! The file of a record: a line of JSON for everything that happened.
//!
//! ```text
//! {"header": {"version": 1, …}}
//! {"call": {"number": 1, "method": "RunPodSandbox", "at_us": 0, "took_us": 310022,
//!           "request": {…}, "code": "OK", "answer": {…}}}
//! {"part": {"call": 2, "at_us": 412, "answer": {…}}}       an answer of a stream, as it came
//! {"lost": {"calls": 3, …}}                                what there was no room for
//! {"end": {"calls": 2, "lost": 3, "at_us": 99120011}}
//! ```
//! A call stands where it ended, its parts before it. Offsets count from the header's time.
//! Without the last line the record was cut off, and is read as far as it goes.

use std::collections::HashMap;
use std::io::BufRead;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The form that is written.
const VERSION: u32 = 1;
/// The longest line: a message and its answer, escaped.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// What is written although it may be secret.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Values of environment variables.
    pub env: bool,
    /// What commands of ExecSync printed.
    pub output: bool,
}

impl Keep {
    /// Whether the secrets of this type of message are kept.
    pub(super) fn has(self, message: &str) -> bool {
        match message {
            ".runtime.v1.KeyValue" => self.env,
            ".runtime.v1.ExecSyncResponse" => self.output,
            _ => false,
        }
    }

    /// What is masked, for who reads the record.
    fn masked(self) -> Vec<String> {
        let mut masked =
            vec!["credentials", "stream URLs", "verbose info", "values of maps whose names say secret"];
        masked.extend((!self.env).then_some("values of environment variables"));
        masked.extend((!self.output).then_some("output of ExecSync"));
        masked.into_iter().map(str::to_owned).collect()
    }
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Header(Header),
    Call(Call),
    Part(Part),
    Lost(Lost),
    End(End),
}

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// That of the form.
    pub(super) version: u32,
    /// longshore's, which wrote it.
    pub(super) longshore: String,
    /// When it began.
    pub(super) begun: String,
    /// Name and version of the server, if it told them.
    pub(super) server: String,
    /// What is masked.
    pub(super) masked: Vec<String>,
}

impl Header {
    /// That of a record that begins now.
    pub(super) fn new(server: String, keep: Keep) -> Header {
        Header {
            version: VERSION,
            longshore: env!("CARGO_PKG_VERSION").to_owned(),
            begun: jiff::Timestamp::now().to_string(),
            server,
            masked: keep.masked(),
        }
    }
}

/// A call that has ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Call {
    /// In the order of arrival, from 1.
    pub(super) number: u64,
    /// The method of the CRI; the whole path where it is none.
    pub(super) method: String,
    /// When it came.
    pub(super) at_us: u64,
    pub(super) took_us: u64,
    /// The client's deadline, as gRPC has it in its header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<Json>,
    /// The code's name, OK among them.
    pub(super) code: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    /// The answer, where there is one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<Json>,
    /// How many answers came; of a stream.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) parts: u64,
    /// Who ended it before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<Cut>,
    /// What is not here, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) omitted: Option<String>,
    /// The answers of a stream; they have lines of their own.
    #[serde(skip)]
    pub(super) stream: Vec<Json>,
}

impl Call {
    /// When it ended.
    pub(super) fn end_us(&self) -> u64 {
        self.at_us.saturating_add(self.took_us)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who ended a call before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cut {
    /// Its client.
    Client,
    /// The end of the record.
    End,
}

/// An answer of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) call: u64,
    pub(super) at_us: u64,
    pub(super) answer: Json,
}

/// What there was no room for, or no disk; it passed all the same.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lost {
    /// Calls and parts, since the last such line.
    pub(super) calls: u64,
    pub(super) at_us: u64,
}

/// The last line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct End {
    /// Calls that are in the file.
    pub(super) calls: u64,
    /// Calls and parts that are not.
    pub(super) lost: u64,
    pub(super) at_us: u64,
}

/// A record as read.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) header: Header,
    /// In the order in which they came.
    pub(super) calls: Vec<Call>,
    pub(super) lost: u64,
    /// It has its last line.
    pub(super) is_whole: bool,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// What cannot be read, with its line. That the last line was cut off is none.
    pub(super) fn read(mut from: impl BufRead) -> anyhow::Result<Record> {
        let (mut header, mut calls, mut parts) = (None, Vec::new(), HashMap::<u64, Vec<Json>>::new());
        let (mut lost, mut is_whole) = (0, false);
        let mut text = Vec::new();
        for number in 1_usize.. {
            text.clear();
            let bytes = std::io::Read::take(&mut from, LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
            if bytes == 0 {
                break;
            }
            if text.last() != Some(&b'\n') {
                // The writer was killed while it wrote this.
                break;
            }
            let line = serde_json::from_slice(&text).with_context(|| format!("line {number}"))?;
            match (line, &header) {
                (Line::Header(first), None) => {
                    if first.version != VERSION {
                        bail!("this record has version {}, and version {VERSION} is known", first.version);
                    }
                    header = Some(first);
                }
                (_, None) => bail!("line {number}: a record begins with its header"),
                (Line::Header(_), Some(_)) => bail!("line {number}: a second header"),
                (Line::Call(mut call), Some(_)) => {
                    call.stream = parts.remove(&call.number).unwrap_or_default();
                    calls.push(call);
                }
                (Line::Part(part), Some(_)) => parts.entry(part.call).or_default().push(part.answer),
                (Line::Lost(more), Some(_)) => lost += more.calls,
                (Line::End(end), Some(_)) => (lost, is_whole) = (end.lost, true),
            }
        }
        calls.sort_by_key(|call: &Call| (call.at_us, call.number));
        Ok(Record { header: header.context("this is no record: it has no header")?, calls, lost, is_whole })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(lines: &[Line]) -> String {
        let lines = lines.iter().map(|line| serde_json::to_string(line).expect("JSON") + "\n");
        lines.collect()
    }

    fn call(number: u64, at_us: u64) -> Line {
        Line::Call(Call { number, at_us, method: "Status".into(), code: "OK".into(), ..Call::default() })
    }

    #[test]
    fn a_record_is_read_as_it_was_written_in_the_order_of_arrival() {
        let header = Header::new("containerd 1".into(), Keep::default());
        let part = |answer| Line::Part(Part { call: 1, at_us: 3, answer });
        let end = Line::End(End { calls: 2, lost: 4, at_us: 9 });
        let lines = [Line::Header(header), part(json!(1)), call(2, 5), part(json!(2)), call(1, 2), end];
        let record = Record::read(text(&lines).as_bytes()).expect("a record");
        let numbers: Vec<u64> = record.calls.iter().map(|call| call.number).collect();
        assert_eq!((numbers, record.lost, record.is_whole), (vec![1, 2], 4, true));
        assert_eq!(record.calls[0].stream, [json!(1), json!(2)]);
        assert!(record.header.masked.iter().any(|what| what.contains("environment")));
    }

    #[test]
    fn what_was_cut_off_is_read_as_far_as_it_goes() {
        let header = Header::new(String::new(), Keep::default());
        let whole = text(&[Line::Header(header), call(1, 0), call(2, 1)]);
        let record = Record::read(&whole.as_bytes()[..whole.len() - 4]).expect("a record");
        assert_eq!((record.calls.len(), record.is_whole), (1, false));
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        let header = text(&[Line::Header(Header::new(String::new(), Keep::default()))]);
        for (text, want) in [
            (String::new(), "no header"),
            (text(&[call(1, 0)]), "line 1"),
            (format!("{header}{{\"call\": 3}}\n"), "line 2"),
            (header.replace("\"version\":1", "\"version\":9"), "version 9"),
        ] {
            let error = Record::read(text.as_bytes()).expect_err("no record");
            assert!(format!("{error:#}").contains(want), "{error:#}");
        }
    }
}
