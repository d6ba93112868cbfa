//! From calls to the file: a bounded queue, and a thread that masks and writes.
//!
//! ```text
//! call ─▶ Running ── ended ──▶ queue ─▶ thread: mask, JSON ─▶ file (0600)
//!                     full? ──▶ counted
//! ```
//! Nobody waits for the file. A line is in it whole or not at all.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;
use tokio::sync::watch;
use tonic::Code;

use super::codec;
use super::format::{Call, Cut, End, Header, Keep, Line, Lost, Part};
use super::tap::{Copied, Messages, Room};
use crate::proto::schema::{Method, SCHEMA};
use crate::telemetry::meters::name_of;

/// Calls and parts that wait for the thread.
const QUEUE_MAX: usize = 16 << 10;
/// Copies of messages that are in memory, of calls that run and of those that wait.
const COPIES_BYTES_MAX: usize = 64 << 20;
/// Kept for the last lines.
const LAST_BYTES: u64 = 4 << 10;

/// A record that is being made. Clones share it.
#[derive(Clone)]
pub(super) struct Recorder(Arc<Shared>);

struct Shared {
    begun: Instant,
    room: Room,
    queue: SyncSender<Event>,
    calls: AtomicU64,
    lost: AtomicU64,
    is_ending: AtomicBool,
    active: watch::Sender<Active>,
}

/// Calls that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Active {
    /// Those that end by themselves.
    pub(super) single: usize,
    pub(super) streams: usize,
}

/// What the thread gets.
enum Event {
    Call(Box<Ended>),
    Part { call: u64, at_us: u64, output: String, copy: Copied },
    Finish,
}

/// A call with the copies of its messages.
struct Ended {
    call: Call,
    request: Option<Copied>,
    answer: Option<Copied>,
}

/// The thread, and what it will have written.
pub(super) struct Writing(JoinHandle<anyhow::Result<End>>);

impl Recorder {
    /// Begins the file.
    ///
    /// # Errors
    /// The file is there already, or cannot be made.
    pub(super) fn begin(
        path: &Path,
        server: String,
        keep: Keep,
        bytes_max: u64,
    ) -> anyhow::Result<(Recorder, Writing)> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("make {path:?}"))?;
        let (queue, events) = sync_channel(QUEUE_MAX);
        let recorder = Recorder(Arc::new(Shared {
            begun: Instant::now(),
            room: Room::new(COPIES_BYTES_MAX),
            queue,
            calls: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
            active: watch::Sender::default(),
        }));
        let mut lines =
            Lines { file, recorder: recorder.clone(), keep, written: 0, bytes_max, told: 0, failed: None };
        lines.write(&Line::Header(Header::new(server, keep)), LAST_BYTES)?;
        let thread = std::thread::Builder::new().name("record".into()).spawn(move || lines.run(&events))?;
        Ok((recorder, Writing(thread)))
    }

    /// A call comes in.
    pub(super) fn call(&self, path: &str, timeout: Option<String>) -> (Running, Slot) {
        let method = known(path);
        let is_stream = method.is_some_and(|(_, method)| method.is_stream);
        self.0.active.send_modify(|active| match is_stream {
            true => active.streams += 1,
            false => active.single += 1,
        });
        let call = Call {
            number: self.0.calls.fetch_add(1, Ordering::Relaxed) + 1,
            method: method.map_or(path, |(name, _)| name).to_owned(),
            at_us: self.now_us(),
            timeout,
            ..Call::default()
        };
        let slot = Slot::default();
        let running = Running {
            recorder: self.clone(),
            ended: Some(Box::new(Ended { call, request: None, answer: None })),
            slot: slot.clone(),
            method: method.map(|(_, method)| method),
        };
        (running, slot)
    }

    /// Finds messages for [`Running`].
    pub(super) fn messages(&self) -> Messages {
        Messages::new(self.0.room.clone())
    }

    /// How many calls run.
    pub(super) fn active(&self) -> watch::Receiver<Active> {
        self.0.active.subscribe()
    }

    /// From here on calls that break off are cut by the record's end.
    pub(super) fn is_ending(&self) {
        self.0.is_ending.store(true, Ordering::Relaxed);
    }

    /// Ends the file, with all that has ended so far.
    pub(super) fn finish(&self) {
        // Waits while the queue is full, which the thread empties.
        let _ = self.0.queue.send(Event::Finish);
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.0.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn hand_over(&self, event: Event) {
        if self.0.queue.try_send(event).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writing {
    /// Waits for the end of the file.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn wait(self) -> anyhow::Result<End> {
        self.0.join().map_err(|_| anyhow::anyhow!("the thread that writes the record panicked"))?
    }
}

/// The method of a path, if it is one of the CRI.
fn known(path: &str) -> Option<(&'static str, &'static Method)> {
    let (_, name) = path.rsplit_once('/')?;
    let (name, method) = SCHEMA.methods.get_key_value(name)?;
    (method.path == path).then_some((name.as_str(), method))
}

/// Where the copy of a request arrives.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Copied>>>);

impl Slot {
    /// The first one stays: the CRI has no streams of requests.
    pub(super) fn put(&self, copied: Copied) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(copied);
    }

    fn take(&self) -> Option<Copied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A call that runs. Dropped before its end, its client has given it up.
pub(super) struct Running {
    recorder: Recorder,
    ended: Option<Box<Ended>>,
    slot: Slot,
    method: Option<&'static Method>,
}

impl Running {
    /// An answer came.
    pub(super) fn answer(&mut self, copied: Copied) {
        let Some(ended) = &mut self.ended else { return };
        match self.method {
            Some(method) if method.is_stream => {
                ended.call.parts += 1;
                let (call, at_us) = (ended.call.number, self.recorder.now_us());
                let output = method.output.clone();
                self.recorder.hand_over(Event::Part { call, at_us, output, copy: copied });
            }
            _ => _ = ended.answer.get_or_insert(copied),
        }
    }

    /// The call has ended; only the first end counts.
    pub(super) fn end(&mut self, code: Code, message: &str) {
        self.finish(code, message, None);
    }

    fn finish(&mut self, code: Code, message: &str, cut: Option<Cut>) {
        let Some(mut ended) = self.ended.take() else { return };
        ended.request = self.slot.take();
        let call = &mut ended.call;
        call.took_us = self.recorder.now_us().saturating_sub(call.at_us);
        call.code = name_of(code).to_owned();
        message.clone_into(&mut call.message);
        call.cut = cut;
        self.recorder.hand_over(Event::Call(ended));
        let is_stream = self.method.is_some_and(|method| method.is_stream);
        self.recorder.0.active.send_modify(|active| match is_stream {
            true => active.streams -= 1,
            false => active.single -= 1,
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let is_ending = self.recorder.0.is_ending.load(Ordering::Relaxed);
        self.finish(Code::Cancelled, "", Some(if is_ending { Cut::End } else { Cut::Client }));
    }
}

/// The file.
struct Lines {
    file: File,
    recorder: Recorder,
    keep: Keep,
    written: u64,
    bytes_max: u64,
    /// Of those that were lost, so many are told already.
    told: u64,
    failed: Option<anyhow::Error>,
}

impl Lines {
    fn run(mut self, events: &Receiver<Event>) -> anyhow::Result<End> {
        let mut calls = 0;
        for event in events {
            self.tell_lost();
            let is_call = matches!(event, Event::Call(_));
            let line = match event {
                Event::Finish => break,
                Event::Call(ended) => Line::Call(self.call(*ended)),
                Event::Part { call, at_us, output, copy } => {
                    let answer = match &copy {
                        Ok(copy) => codec::to_json(&output, &copy.bytes, self.keep).unwrap_or_default(),
                        Err(_) => serde_json::Value::Null,
                    };
                    Line::Part(Part { call, at_us, answer })
                }
            };
            match self.write(&line, LAST_BYTES) {
                Ok(()) => calls += u64::from(is_call),
                Err(error) => {
                    self.recorder.0.lost.fetch_add(1, Ordering::Relaxed);
                    if self.failed.is_none() {
                        eprintln!("longshore: {error:#}; calls go on, and are no longer recorded");
                        self.failed = Some(error);
                    }
                }
            }
        }
        self.tell_lost();
        let end =
            End { calls, lost: self.recorder.0.lost.load(Ordering::Relaxed), at_us: self.recorder.now_us() };
        self.write(&Line::End(end), 0)?;
        self.file.sync_all().context("the record")?;
        match self.failed {
            Some(error) => Err(error.context(format!("{} calls and parts were not recorded", end.lost))),
            None => Ok(end),
        }
    }

    /// The call with its messages, masked.
    fn call(&self, ended: Ended) -> Call {
        let Ended { mut call, request, answer } = ended;
        let method = SCHEMA.methods.get(&call.method);
        let mut omitted = Vec::new();
        let mut told = |what: &str, kind: Option<&String>, copied: Option<Copied>| match (copied?, kind) {
            (Ok(copy), Some(kind)) => codec::to_json(kind, &copy.bytes, self.keep),
            (Ok(copy), None) => {
                omitted.push(format!("{what}: {} bytes of a method that is not known", copy.bytes.len()));
                None
            }
            (Err(why), _) => {
                omitted.push(format!("{what}: {why}"));
                None
            }
        };
        call.request = told("request", method.map(|method| &method.input), request);
        call.answer = told("answer", method.map(|method| &method.output), answer);
        call.omitted = (!omitted.is_empty()).then(|| omitted.join("; "));
        call
    }

    fn tell_lost(&mut self) {
        let lost = self.recorder.0.lost.load(Ordering::Relaxed);
        if lost > self.told && self.failed.is_none() {
            let line = Line::Lost(Lost { calls: lost - self.told, at_us: self.recorder.now_us() });
            if self.write(&line, LAST_BYTES).is_ok() {
                self.told = lost;
            }
        }
    }

    /// Writes a line, and leaves `spare` bytes of what the file may have.
    fn write(&mut self, line: &Line, spare: u64) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let after = self.written + text.len() as u64;
        anyhow::ensure!(
            after + spare <= self.bytes_max,
            "the record has the {} bytes that it may have",
            self.bytes_max
        );
        if let Err(error) = self.file.write_all(&text) {
            // Half a line would hide the next one.
            let _ = self.file.set_len(self.written);
            let _ = self.file.seek(SeekFrom::Start(self.written));
            return Err(error).context("write the record");
        }
        self.written = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::format::Record;
    use super::*;

    fn read(path: &Path) -> Record {
        let file = File::open(path).expect("a file");
        Record::read(std::io::BufReader::new(file)).expect("a record")
    }

    #[test]
    fn calls_are_written_as_they_end_and_the_file_is_the_owners_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("r");
        let (recorder, writing) =
            Recorder::begin(&path, "a server".into(), Keep::default(), 1 << 20).expect("a file");
        assert!(Recorder::begin(&path, String::new(), Keep::default(), 1 << 20).is_err(), "it is there");
        let (mut first, slot) = recorder.call("/runtime.v1.RuntimeService/StartContainer", Some("2S".into()));
        let (second, _) = recorder.call("/runtime.v1.RuntimeService/GetContainerEvents", None);
        let (third, _) = recorder.call("/other.Service/Call", None);
        assert_eq!(*recorder.active().borrow(), Active { single: 2, streams: 1 });
        let mut messages = recorder.messages();
        messages.push(b"\0\0\0\0\x04\x0a\x02c1").into_iter().for_each(|copied| slot.put(copied));
        first.end(Code::NotFound, "no c1");
        first.end(Code::Ok, "again");
        drop(third);
        recorder.is_ending();
        drop(second);
        recorder.finish();
        let end = writing.wait().expect("it is written");
        assert_eq!((end.calls, end.lost), (3, 0));
        let record = read(&path);
        assert!(record.is_whole);
        let [first, second, third] = &record.calls[..] else { panic!("{:?}", record.calls) };
        assert_eq!((first.code.as_str(), first.message.as_str()), ("NotFound", "no c1"));
        assert_eq!(first.request, Some(serde_json::json!({"container_id": "c1"})));
        assert_eq!((first.timeout.as_deref(), first.cut), (Some("2S"), None));
        assert_eq!((second.method.as_str(), second.cut), ("GetContainerEvents", Some(Cut::End)));
        assert_eq!((third.method.as_str(), third.cut), ("/other.Service/Call", Some(Cut::Client)));
        assert_eq!(path.metadata().expect("a file").mode() & 0o777, 0o600);
        assert_eq!(*recorder.active().borrow(), Active::default());
    }

    #[test]
    fn a_full_file_is_told_and_ends_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("r");
        let bytes_max = LAST_BYTES + 1000;
        let (recorder, writing) =
            Recorder::begin(&path, String::new(), Keep::default(), bytes_max).expect("a file");
        for _ in 0..100 {
            recorder.call("/runtime.v1.RuntimeService/Status", None).0.end(Code::Ok, "");
        }
        recorder.finish();
        let error = writing.wait().expect_err("not all fits");
        assert!(format!("{error:#}").contains("were not recorded"), "{error:#}");
        let record = read(&path);
        assert!(record.is_whole);
        assert_eq!(record.calls.len() as u64 + record.lost, 100);
        assert!(path.metadata().expect("a file").len() <= bytes_max);
    }
}
