//! What server and keeper say to each other, over the keeper's socket.
//!
//! One JSON object a line in either direction. A request has a number (`seq`) and says
//! what to `do`; its answer has the same number and either `ok` or `error`. Answers may
//! come in another order than the requests.
//!
//! ```text
//! → {"seq":1,"do":"hello","protocol":2,"version":"0.1.0"}
//! ← {"seq":1,"ok":{"protocol":2,"version":"0.1.0","pid":4711}}
//! → {"seq":2,"do":"reopen","id":"c1"}
//! ← {"seq":2,"error":{"kind":"not_found","message":"the log keeper has no container \"c1\""}}
//! ```
//!
//! A keeper outlives the server that started it, upgrades included, so both sides bear
//! with another version: fields that one does not know are ignored, a request that the
//! keeper does not know is answered with an error of kind `unimplemented` and changes
//! nothing. [`PROTOCOL`] is raised only for what cannot be told apart that way.
//!
//! Attaching to output is a request on a connection of its own, which after the answer
//! carries [frames](super::frame) to the client and nothing else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// The version of what is described here. Since 2 a keeper heeds
/// [`ContainerIo::bytes_per_second_max`].
pub(super) const PROTOCOL: u32 = 2;
/// The first version with limits of how fast output is read.
pub(super) const PROTOCOL_WITH_RATES: u32 = 2;
/// The longest request. A keeper hangs up on a longer one.
pub(super) const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest answer: a list of thousands of containers.
pub(super) const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A container whose output is to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIo {
    /// The container.
    pub id: String,
    /// FIFO of its standard input, whose writing end is held open.
    #[serde(default)]
    pub stdin: Option<PathBuf>,
    /// FIFO of its standard output.
    #[serde(default)]
    pub stdout: Option<PathBuf>,
    /// FIFO of its standard error; `None` with a terminal (CTR-10).
    #[serde(default)]
    pub stderr: Option<PathBuf>,
    /// The log file; without one output is read and dropped (CTR-07).
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// The pod's log folder, which the log file is in: from it on no link is followed. Without
    /// it that holds from the file's own folder on.
    #[serde(default)]
    pub log_root: Option<PathBuf>,
    /// The longest content of an entry in bytes; 0 means [`super::LINE_BYTES_CAP`], which
    /// is also what a larger one means (LOG-04).
    #[serde(default)]
    pub line_bytes_max: usize,
    /// How fast each stream is read; 0 means as fast as it comes. It may change while the
    /// container runs.
    #[serde(default)]
    pub bytes_per_second_max: u64,
    /// Whether the task exists, so that its shim has opened the FIFOs: one that has no
    /// writer is at its end then, and not before its beginning (REC-12).
    #[serde(default)]
    pub started: bool,
}

/// A container that the keeper knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptIo {
    /// The container.
    pub id: String,
    /// Whether all outputs have ended and everything is written.
    pub is_drained: bool,
    /// Entries that could not be written (LOG-10).
    #[serde(default)]
    pub lost_entries: u64,
    /// Their bytes.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Why the last of them could not be.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Request {
    /// Who is there? Answer: [`Hello`].
    Hello { protocol: u32, version: String },
    /// [`super::engine::Engine::add`]
    Add { io: ContainerIo },
    /// [`super::engine::Engine::reopen`]
    Reopen { id: String },
    /// [`super::engine::Engine::close_stdin`]
    CloseStdin { id: String },
    /// [`super::engine::Engine::remove`]
    Remove { id: String },
    /// Answers as soon as the container has drained, or after `limit_ms`: [`Drained`].
    WaitDrained { id: String, limit_ms: u64 },
    /// Answer: [`List`].
    List,
    /// Answer: [`super::Totals`].
    Totals,
    /// Makes the connection an attachment: [`super::engine::Engine::attach`]
    Attach { id: String, stdout: bool, stderr: bool },
    /// Lets the keeper go on as another program ([`super::succession`]). There is an answer
    /// only if that fails; otherwise the connection ends, as all do.
    Succeed { program: PathBuf },
}

/// Answer to `hello`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) version: String,
    pub(super) pid: u32,
    /// The program that it was started from ([`super::succession::identity_of`]).
    #[serde(default)]
    pub(super) program: Option<String>,
}

/// Answer to `add`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Added {
    /// The container was known, and its input was let go of before (EXE-15).
    pub(super) is_stdin_closed: bool,
}

/// Answer to `wait_drained`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Drained {
    pub(super) is_drained: bool,
}

/// Answer to `list`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct List {
    pub(super) containers: Vec<KeptIo>,
}

#[derive(Serialize)]
struct Numbered<'a> {
    seq: u64,
    #[serde(flatten)]
    request: &'a Request,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
}

#[derive(Serialize, Deserialize)]
struct Refusal {
    kind: String,
    message: String,
}

/// A request as a line.
pub(super) fn request_line(seq: u64, request: &Request) -> Result<Vec<u8>> {
    let line = to_line(&Numbered { seq, request })?;
    if line.len() > REQUEST_BYTES_MAX {
        return Err(crate::error::invalid(format!("a request of {} bytes is too long", line.len())));
    }
    Ok(line)
}

/// Reads a request: its number and what it asks for, or why that is not understood.
///
/// # Errors
/// If there is no number, so that no answer can be given.
pub(super) fn read_request(line: &[u8]) -> Result<(u64, Result<Request>)> {
    let value: Value = serde_json::from_slice(line).map_err(|error| malformed(&error))?;
    let seq = value.get("seq").and_then(Value::as_u64);
    let seq = seq.ok_or_else(|| crate::error::invalid("a request without a number"))?;
    let asked = value.get("do").and_then(Value::as_str).unwrap_or_default().to_owned();
    let request = serde_json::from_value(value).map_err(|error| match REQUESTS.contains(&&*asked) {
        true => malformed(&error),
        false => crate::error::unimplemented(format!("this log keeper does not know {asked:?}")),
    });
    Ok((seq, request))
}

/// What [`Request`] knows.
const REQUESTS: [&str; 10] = [
    "hello",
    "add",
    "reopen",
    "close_stdin",
    "remove",
    "wait_drained",
    "list",
    "totals",
    "attach",
    "succeed",
];

/// An answer as a line.
pub(super) fn answer_line(seq: u64, result: Result<Value>) -> Vec<u8> {
    let answer = match result {
        Ok(value) => Answer { seq, ok: Some(value), error: None },
        Err(error) => {
            let kind =
                KINDS.iter().find(|(kind, _)| *kind == error.kind()).map_or("unknown", |(_, name)| name);
            let refusal = Refusal { kind: kind.to_owned(), message: error.message().to_owned() };
            Answer { seq, ok: None, error: Some(refusal) }
        }
    };
    to_line(&answer).unwrap_or_default()
}

/// Reads an answer and the number of its request.
///
/// # Errors
/// If it is not one.
pub(super) fn read_answer(line: &[u8]) -> Result<(u64, Result<Value>)> {
    let Answer { seq, ok, error } = serde_json::from_slice(line).map_err(|error| malformed(&error))?;
    let result = match error {
        None => Ok(ok.unwrap_or_default()),
        Some(Refusal { kind, message }) => {
            let kind = KINDS.iter().find(|(_, name)| *name == kind).map_or(Kind::Unknown, |(kind, _)| *kind);
            Err(Error::new(kind, message))
        }
    };
    Ok((seq, result))
}

/// The names of the kinds of errors.
const KINDS: [(Kind, &str); 11] = [
    (Kind::NotFound, "not_found"),
    (Kind::AlreadyExists, "already_exists"),
    (Kind::InvalidArgument, "invalid_argument"),
    (Kind::FailedPrecondition, "failed_precondition"),
    (Kind::Unavailable, "unavailable"),
    (Kind::Unimplemented, "unimplemented"),
    (Kind::Canceled, "canceled"),
    (Kind::DeadlineExceeded, "deadline_exceeded"),
    (Kind::ResourceExhausted, "resource_exhausted"),
    (Kind::Internal, "internal"),
    (Kind::Unknown, "unknown"),
];

fn to_line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|error| malformed(&error))?;
    line.push(b'\n');
    Ok(line)
}

fn malformed(error: &serde_json::Error) -> Error {
    crate::error::invalid(format!("the log keeper's protocol: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::not_found;
    use proptest::prelude::*;

    #[test]
    fn requests_and_answers_come_back_as_they_went() {
        let io = ContainerIo {
            id: "c1".into(),
            stdout: Some("/a/o".into()),
            line_bytes_max: 7,
            bytes_per_second_max: 1 << 20,
            started: true,
            ..ContainerIo::default()
        };
        let id = || "c1".to_owned();
        for request in [
            Request::Hello { protocol: PROTOCOL, version: "1".into() },
            Request::Add { io },
            Request::Reopen { id: id() },
            Request::CloseStdin { id: id() },
            Request::Remove { id: id() },
            Request::WaitDrained { id: id(), limit_ms: 5 },
            Request::List,
            Request::Totals,
            Request::Attach { id: id(), stdout: true, stderr: false },
            Request::Succeed { program: "/usr/bin/longshore".into() },
        ] {
            let line = request_line(3, &request).expect("it fits");
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let (seq, read) = read_request(&line).expect("it has a number");
            assert_eq!((seq, read), (3, Ok(request)));
        }
        let refused = Err(not_found("no \"c1\"\n"));
        assert_eq!(read_answer(&answer_line(4, refused.clone())), Ok((4, refused)));
        let fine = Ok(serde_json::json!({"a": 1}));
        assert_eq!(read_answer(&answer_line(5, fine.clone())), Ok((5, fine)));
    }

    #[test]
    fn a_newer_peer_is_understood_as_far_as_it_goes() {
        let line = br#"{"seq":1,"do":"reopen","id":"c1","how":"gently"}"#;
        let (_, request) = read_request(line).expect("it has a number");
        assert_eq!(request, Ok(Request::Reopen { id: "c1".into() }));
        let (seq, request) = read_request(br#"{"seq":9,"do":"rewind","id":"c1"}"#).expect("it has a number");
        assert_eq!((seq, request.expect_err("unknown").kind()), (9, Kind::Unimplemented));
        let (_, request) = read_request(br#"{"seq":9,"do":"reopen"}"#).expect("it has a number");
        assert_eq!(request.expect_err("no id").kind(), Kind::InvalidArgument);
        for line in [&b"{}"[..], b"", b"[1]", b"\xff", br#"{"seq":-1}"#] {
            assert!(read_request(line).is_err());
        }
        let answer = read_answer(br#"{"seq":1,"error":{"kind":"odd","message":"m","x":1},"y":2}"#);
        assert_eq!(answer, Ok((1, Err(crate::error::unknown("m")))));
    }

    #[test]
    fn a_request_that_is_too_long_is_not_sent() {
        let request = Request::Reopen { id: "x".repeat(REQUEST_BYTES_MAX) };
        assert_eq!(request_line(1, &request).expect_err("it is too long").kind(), Kind::InvalidArgument);
    }

    /// JSON that has a request's fields, of whatever types and values.
    fn odd_request() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("null".to_owned()),
            Just("{}".to_owned()),
            Just(r#"{"id":"c","stdout":7}"#.to_owned()),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| Value::from(text).to_string()),
            (0..200usize).prop_map(|depth| "[".repeat(depth) + &"]".repeat(depth)),
        ];
        let names = vec!["seq", "do", "id", "io", "limit_ms", "protocol", "version", "x"];
        let name = proptest::sample::select(names);
        let does = proptest::sample::select(&REQUESTS[..]).prop_map(|does| ("do", format!("{does:?}")));
        let field = prop_oneof![3 => (name, value), 1 => does];
        proptest::collection::vec(field, 0..6).prop_map(|fields| {
            let fields = fields.iter().map(|(name, value)| format!("{name:?}:{value}"));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(line in odd_request(), bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (read_request(&bytes), read_answer(&bytes), read_answer(line.as_bytes()));
            if let Ok((seq, Err(error))) = read_request(line.as_bytes()) {
                // The refusal reaches its client.
                prop_assert_eq!(read_answer(&answer_line(seq, Err(error.clone()))), Ok((seq, Err(error))));
            }
        }
    }
}
