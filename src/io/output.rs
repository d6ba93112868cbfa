//! What the streams of a container share: its log file, its time and what it has lost.
//!
//! Who reads a stream holds the container's [`Sink`] from before the read until what was
//! read is written. So entries of stdout and stderr do not mix (LOG-09), times rise in the
//! order of the file, and a change of the file (LOG-13, LOG-14) falls between two bursts
//! by construction.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::attachment::{Attachment, Standing};
use super::engine::signal;
use super::line::{self, PREFIX_BYTES, Prefix, Stream, Tag};
use super::log_file::{LogFile, Loss};
use super::protocol::KeptIo;
use super::succession::OutputBequest;
use super::totals::COUNTED;
use crate::error::{Context, Error, Result};
use crate::flow::lock;
use crate::sys::inherit;

/// The common part of a container's streams.
pub(super) struct Output {
    id: String,
    /// Whether there is a log at all; otherwise output is dropped (CTR-07).
    pub(super) has_log: bool,
    pub(super) line_bytes_max: usize,
    /// How fast each stream is read; 0 means as fast as it comes.
    rate: AtomicU64,
    sink: Mutex<Sink>,
    /// Changes of the file that wait for the sink.
    switches: AtomicUsize,
    open_streams: AtomicUsize,
    lost_entries: AtomicU64,
    lost_bytes: AtomicU64,
    last_error: Mutex<Option<String>>,
    changed: Arc<OwnedFd>,
}

/// Where entries go.
pub(super) struct Sink {
    /// `None` without a log, and when all streams have ended.
    file: Option<LogFile>,
    /// The time of the last entry.
    last: u64,
    /// Streams that have not ended.
    open: Vec<Stream>,
    /// Those who see what is read.
    attached: Vec<Arc<Attachment>>,
}

impl Sink {
    /// Shows what was just read of `stream` to those who are attached.
    #[inline]
    pub(super) fn show(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.attached.is_empty() {
            self.show_all(stream, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn show_all(&mut self, stream: Stream, bytes: &[u8]) {
        self.attached.retain(|attachment| attachment.show(stream, bytes) == Standing::Open);
    }
}

impl Output {
    /// `changed` is made readable when all of `streams` have ended, and when output is
    /// lost for the first time.
    pub(super) fn new(
        id: &str,
        file: Option<LogFile>,
        line_bytes_max: usize,
        streams: Vec<Stream>,
        changed: Arc<OwnedFd>,
    ) -> Output {
        let has_log = file.is_some();
        let open_streams = AtomicUsize::new(streams.len());
        let file = file.filter(|_| !streams.is_empty());
        Output {
            id: id.to_owned(),
            has_log,
            line_bytes_max: line::effective_max(line_bytes_max),
            rate: AtomicU64::new(0),
            sink: Mutex::new(Sink { file, last: 0, open: streams, attached: Vec::new() }),
            switches: AtomicUsize::new(0),
            open_streams,
            lost_entries: AtomicU64::new(0),
            lost_bytes: AtomicU64::new(0),
            last_error: Mutex::default(),
            changed,
        }
    }

    /// Goes on where the program before has ended.
    pub(super) fn resume(&self, bequest: &OutputBequest) {
        self.sink().last = bequest.last;
        self.lost_entries.store(bequest.lost_entries, Ordering::Relaxed);
        self.lost_bytes.store(bequest.lost_bytes, Ordering::Relaxed);
        lock(&self.last_error).clone_from(&bequest.last_error);
    }

    /// What the next program needs to go on; nobody has the sink now.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn bequeath(&self) -> Result<OutputBequest> {
        let sink = self.sink();
        Ok(OutputBequest {
            file: sink.file.as_ref().map(inherit::pass_on).transpose().context(|| "pass on a log file")?,
            last: sink.last,
            lost_entries: self.lost_entries(),
            lost_bytes: self.lost_bytes.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        })
    }

    /// Takes back what [`bequeath`](Output::bequeath) did.
    pub(super) fn keep(&self) {
        self.sink().file.as_ref().into_iter().for_each(inherit::keep);
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// How many bytes of each stream may be read in a second; 0 means no limit.
    pub(super) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Sets that. Tells whether it is another than before.
    pub(super) fn set_rate(&self, rate: u64) -> bool {
        self.rate.swap(rate, Ordering::Relaxed) != rate
    }

    /// The sink for a burst; waits for whoever has it.
    pub(super) fn sink(&self) -> MutexGuard<'_, Sink> {
        lock(&self.sink)
    }

    /// The sink for a burst, unless a change of the file waits for it.
    pub(super) fn try_sink(&self) -> Option<MutexGuard<'_, Sink>> {
        (self.switches.load(Ordering::Acquire) == 0).then(|| self.sink())
    }

    /// Lets later entries go to `file`. Waits at most for a burst that is being written.
    pub(super) fn switch_to(&self, file: LogFile) {
        self.switches.fetch_add(1, Ordering::AcqRel);
        let mut sink = self.sink();
        self.switches.fetch_sub(1, Ordering::AcqRel);
        // A container that has drained needs no descriptor; the file exists now.
        let old = if sink.file.is_some() { sink.file.replace(file) } else { None };
        drop(sink);
        drop(old);
    }

    /// Lets `attachment` see all that is read from now on (EXE-14). Waits at most for a
    /// burst that is being written.
    ///
    /// # Errors
    /// Those of the system: no memory.
    pub(super) fn attach(&self, attachment: Arc<Attachment>) -> Result<()> {
        self.switches.fetch_add(1, Ordering::AcqRel);
        let mut sink = self.sink();
        self.switches.fetch_sub(1, Ordering::AcqRel);
        attachment.watch()?;
        sink.attached.retain(|attachment| !attachment.is_over());
        let ended = [Stream::Stdout, Stream::Stderr].into_iter().filter(|stream| !sink.open.contains(stream));
        ended.for_each(|stream| _ = attachment.show(stream, &[]));
        if sink.open.is_empty() {
            attachment.finish();
        } else {
            sink.attached.push(attachment);
        }
        Ok(())
    }

    /// Notes that one of the streams has ended, with everything written to `sink`.
    pub(super) fn stream_ended(&self, sink: &mut Sink, stream: Stream) {
        sink.open.retain(|open| *open != stream);
        sink.show(stream, &[]);
        if sink.open.is_empty() {
            std::mem::take(&mut sink.attached).iter().for_each(|attachment| attachment.finish());
        }
        if self.open_streams.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _closed = sink.file.take();
            signal(&self.changed);
        }
    }

    /// Whether all streams have ended.
    pub(super) fn is_drained(&self) -> bool {
        self.open_streams.load(Ordering::Acquire) == 0
    }

    /// Entries that could not be written.
    pub(super) fn lost_entries(&self) -> u64 {
        self.lost_entries.load(Ordering::Relaxed)
    }

    fn lose(&self, loss: Loss) {
        *lock(&self.last_error) = Some(Error::from(loss.error).message().to_owned());
        self.lost_bytes.fetch_add(loss.bytes, Ordering::Relaxed);
        if self.lost_entries.fetch_add(loss.entries, Ordering::Relaxed) == 0 {
            signal(&self.changed);
        }
    }

    pub(super) fn describe(&self) -> KeptIo {
        KeptIo {
            id: self.id.clone(),
            is_drained: self.is_drained(),
            lost_entries: self.lost_entries(),
            lost_bytes: self.lost_bytes.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }
}

/// A worker's memory for entries.
pub(super) struct Page {
    bytes: Vec<u8>,
    /// Entries are written out when there are as many bytes of them.
    flush_bytes: usize,
    prefix: Prefix,
}

impl Page {
    /// Room for about `flush_bytes` of entries, each of at most `line_bytes_max` bytes of
    /// content. Memory is taken when it is written to.
    pub(super) fn new(line_bytes_max: usize, flush_bytes: usize) -> Page {
        let entry_bytes = PREFIX_BYTES + line_bytes_max + 1;
        Page { bytes: vec![0; flush_bytes + entry_bytes], flush_bytes, prefix: Prefix::new() }
    }
}

/// The entries of one read.
pub(super) struct Burst<'a> {
    output: &'a Output,
    sink: &'a mut Sink,
    page: &'a mut Page,
    filled: usize,
    /// In nanoseconds since the epoch.
    now: u64,
}

impl<'a> Burst<'a> {
    pub(super) fn begin(
        output: &'a Output,
        sink: &'a mut Sink,
        stream: Stream,
        page: &'a mut Page,
    ) -> Burst<'a> {
        let now = line::now();
        page.prefix.begin(stream, now, sink.last);
        Burst { output, sink, page, filled: 0, now }
    }

    #[inline]
    pub(super) fn push(&mut self, tag: Tag, content: &[u8]) {
        if self.filled >= self.page.flush_bytes {
            self.flush();
        }
        let Page { bytes, prefix, .. } = &mut *self.page;
        self.filled += prefix.write(&mut bytes[self.filled..], tag, content);
    }

    pub(super) fn end(mut self) {
        self.flush();
        self.sink.last = self.page.prefix.last();
    }

    #[cold]
    #[inline(never)]
    fn flush(&mut self) {
        let entries = &self.page.bytes[..std::mem::take(&mut self.filled)];
        let Some(file) = self.sink.file.as_mut().filter(|_| !entries.is_empty()) else { return };
        let written = file.write(entries, self.now);
        COUNTED.count(entries.len(), written.as_ref().err());
        if let Err(loss) = written {
            self.output.lose(loss);
        }
    }
}
