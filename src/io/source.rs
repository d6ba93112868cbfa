//! One FIFO that is read, a turn at a time.
//!
//! A stream at rest costs no thread and no buffer: only its unfinished line is kept, of
//! at most the entry limit. A stream that floods gets a larger pipe; one that talks in
//! small pieces without pause is left alone for a millisecond at a time ([`Turn::Rest`]),
//! so that a container which writes each line by itself costs us a burst and not a wake-up
//! and four system calls a line. The first line after a silence is never delayed.
//!
//! The end of a stream: a reader that came before any writer gets no `EPOLLHUP` until a
//! writer has come and gone, and a read gives 0 as long as there is none. Therefore 0
//! means the end only together with `EPOLLHUP`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use super::fifo;
use super::gate::Gate;
use super::line::{self, Stream};
use super::output::{Burst, Output, Page, Sink};
use super::rest::REST;
use super::succession::StreamBequest;
use super::throttle::Throttle;
use crate::error::{Context, Result};
use crate::flow::lock;
use crate::sys::{inherit, process};

/// What one stream may move before the others have their turn.
const TURN_BYTES: usize = 4 << 20;
/// A stream that has as much waiting is busy and gets a larger pipe.
const BUSY_BYTES: usize = 32 << 10;
/// The size of a busy stream's pipe, which is what the kernel allows everybody.
const PIPE_BYTES: usize = 1 << 20;
/// Larger pipes at a time. They are the kernel's memory, and full when a disk hangs.
const LARGE_PIPES_MAX: usize = 128;
/// Memory of unfinished lines is given back when it is larger and mostly unused.
const CARRY_BYTES: usize = 1 << 10;

/// A FIFO and what belongs to it.
pub(super) struct Source {
    /// Its name in the epoll.
    pub(super) mark: u64,
    pub(super) output: Arc<Output>,
    /// Held during a turn.
    pub(super) state: Mutex<State>,
    stream: Stream,
    identity: fifo::Identity,
    /// Set when the container is being removed: the turn under way ends early.
    is_retired: AtomicBool,
    /// Who has a turn with a stream of the container is inside.
    gate: Arc<Gate<Source>>,
    large_pipes: Arc<LargePipes>,
}

/// What the streams of a container are opened with.
pub(super) struct Common {
    pub(super) output: Arc<Output>,
    pub(super) gate: Arc<Gate<Source>>,
    pub(super) large_pipes: Arc<LargePipes>,
}

pub(super) struct State {
    /// `None` after the end.
    pub(super) fd: Option<OwnedFd>,
    /// The unfinished line.
    carry: Vec<u8>,
    pipe_bytes: usize,
    pipe: Pipe,
    last_turn: Option<Instant>,
    throttle: Throttle,
    /// What [`Turn::Wait`] has said last.
    pub(super) waits_until: Option<Instant>,
}

/// What is known of a stream's pipe.
#[derive(Clone, Copy, PartialEq)]
enum Pipe {
    Usual,
    /// Enlarged, and to be given back to [`LargePipes`].
    Large,
    /// It could not be enlarged.
    Fixed,
}

/// What a turn is for.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    /// The fair share of a stream that may have something.
    Fair {
        /// Whether epoll said that there is no writer any more.
        is_hung_up: bool,
    },
    /// What is in the FIFO when the container is removed.
    Last,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more to read now, or the share is used up.
    Again,
    /// As before, but let more come together, or a change of the file go first.
    Rest,
    /// As before, but not until then: too much was read. Its end, though, may be told.
    Wait(Instant),
    /// The end of the stream: everything is written.
    End,
}

/// A worker's memory: of these pages those that bursts have touched.
pub(super) struct Buffers {
    /// Room for an unfinished line, then what is read: the two stand together.
    input: Vec<u8>,
    room: usize,
    page: Page,
}

impl Buffers {
    /// For streams of at most `line_bytes_max` and reads of at most `read_bytes`.
    pub(super) fn new(line_bytes_max: usize, read_bytes: usize) -> Buffers {
        let room = line_bytes_max + 1;
        // Prefixes make more of what is read: twice as much holds a burst of usual lines.
        let page = Page::new(line_bytes_max, 2 * read_bytes);
        Buffers { input: vec![0; room + read_bytes], room, page }
    }
}

impl Source {
    /// Opens the FIFO; see [`fifo::open_reader`] for `started`.
    pub(super) fn open(
        (mark, stream): (u64, Stream),
        path: &Path,
        started: bool,
        common: &Common,
    ) -> Result<Source> {
        let (fd, identity) = fifo::open_reader(path, started)?;
        let state = State {
            pipe_bytes: fcntl_getpipe_size(&fd).context(|| format!("open FIFO {path:?}"))?,
            fd: Some(fd),
            carry: Vec::new(),
            pipe: Pipe::Usual,
            last_turn: None,
            throttle: Throttle::default(),
            waits_until: None,
        };
        Ok(Source::new((mark, stream), state, identity, common))
    }

    fn new((mark, stream): (u64, Stream), state: State, identity: fifo::Identity, common: &Common) -> Source {
        Source {
            mark,
            output: common.output.clone(),
            state: Mutex::new(state),
            stream,
            identity,
            is_retired: AtomicBool::new(false),
            gate: common.gate.clone(),
            large_pipes: common.large_pipes.clone(),
        }
    }

    /// One that the program before has read.
    ///
    /// # Errors
    /// If its descriptor was not passed on.
    pub(super) fn inherit(
        (mark, stream): (u64, Stream),
        bequest: StreamBequest,
        common: &Common,
    ) -> Result<Source> {
        let fd = bequest.fd.map(inherit::take).transpose().context(|| "take over a FIFO")?;
        let pipe_bytes = fd.as_ref().map_or(0, |fd| fcntl_getpipe_size(fd).unwrap_or(0));
        let pipe = match pipe_bytes >= PIPE_BYTES && common.large_pipes.take() {
            true => Pipe::Large,
            false => Pipe::Usual,
        };
        let state = State {
            fd,
            carry: bequest.carry,
            pipe_bytes,
            pipe,
            last_turn: None,
            throttle: Throttle::default(),
            waits_until: None,
        };
        Ok(Source::new((mark, stream), state, bequest.identity, common))
    }

    /// What the next program needs to go on; nobody has a turn now.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn bequeath(&self) -> Result<StreamBequest> {
        let state = lock(&self.state);
        let fd = state.fd.as_ref().map(inherit::pass_on).transpose().context(|| "pass on a FIFO")?;
        Ok(StreamBequest { fd, identity: self.identity, carry: state.carry.clone() })
    }

    /// Takes back what [`bequeath`](Source::bequeath) did.
    pub(super) fn keep(&self) {
        lock(&self.state).fd.as_ref().into_iter().for_each(inherit::keep);
    }

    /// Whether `path` still names the FIFO that is read.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        fifo::identity(path) == Some(self.identity)
    }

    /// Asks the turn under way to end early, and lets no other begin.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Whether the container is being removed.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Goes in for a turn; false if another stream of the container has one, at whose end
    /// this one is handed out.
    pub(super) fn enter(self: &Arc<Source>) -> bool {
        self.gate.enter(self)
    }

    /// Goes out, with the streams that came meanwhile.
    #[must_use]
    pub(super) fn exit(&self) -> Vec<Arc<Source>> {
        self.gate.leave()
    }

    /// Moves what is waiting in the FIFO.
    pub(super) fn turn(&self, state: &mut State, buffers: &mut Buffers, pass: Pass) -> Turn {
        let (share, is_hung_up) = match pass {
            Pass::Fair { is_hung_up } => (TURN_BYTES, is_hung_up),
            Pass::Last => (PIPE_BYTES, false),
        };
        // What a container leaves behind, no more than its pipe holds, is read at once.
        let rate = if matches!(pass, Pass::Last) || is_hung_up { 0 } else { self.output.rate() };
        state.throttle.set(rate);
        let mut moved = 0;
        while moved < share {
            if rate > 0
                && let Some(until) = state.throttle.wait(Instant::now())
            {
                return Turn::Wait(until);
            }
            let Some(fd) = &state.fd else { return Turn::Again };
            let sink = match pass {
                Pass::Fair { .. } => self.output.try_sink(),
                Pass::Last => Some(self.output.sink()),
            };
            let Some(mut sink) = sink else { return Turn::Rest };
            let to = &mut buffers.input[buffers.room..];
            let asked = state.throttle.read_bytes(to.len());
            let to = &mut to[..asked];
            let count = match rustix::io::read(fd, to) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Turn::Again,
                Ok(0) if !is_hung_up => return Turn::Again,
                Ok(0) | Err(_) => {
                    self.end(state, &mut sink, buffers);
                    return Turn::End;
                }
                Ok(count) => count,
            };
            sink.show(self.stream, &buffers.input[buffers.room..buffers.room + count]);
            self.take(state, &mut sink, buffers, count);
            drop(sink);
            moved += count;
            if rate > 0 {
                state.throttle.pay(count, Instant::now());
            } else if count >= BUSY_BYTES {
                self.enlarge_pipe(state);
            }
            if matches!(pass, Pass::Last) {
                continue;
            }
            // Less than asked for: the FIFO was empty, and epoll tells of more.
            if count < asked && !is_hung_up {
                return state.pause(moved);
            }
            if self.is_retired() {
                return Turn::Again;
            }
        }
        Turn::Again
    }

    /// Appends the lines of the `count` bytes just read and keeps the unfinished one.
    fn take(&self, state: &mut State, sink: &mut Sink, buffers: &mut Buffers, count: usize) {
        if !self.output.has_log {
            return;
        }
        let (carry, max) = (&mut state.carry, self.output.line_bytes_max);
        let Buffers { input, room, page } = buffers;
        let end = *room + count;
        let is_unfinished = memchr::memchr(b'\n', &input[*room..end]).is_none();
        if is_unfinished && carry.len() + count <= max {
            carry.extend_from_slice(&input[*room..end]);
            return;
        }
        let start = *room - carry.len();
        input[start..*room].copy_from_slice(carry);
        let data = &input[start..end];
        let mut burst = Burst::begin(&self.output, sink, self.stream, page);
        let used = line::split(data, max, |tag, content| burst.push(tag, content));
        burst.end();
        carry.clear();
        if carry.capacity() > CARRY_BYTES.max(4 * (data.len() - used)) {
            *carry = Vec::new();
        }
        carry.extend_from_slice(&data[used..]);
    }

    /// Appends the line that will not be finished (LOG-06), notes the end and closes the
    /// FIFO, which takes it out of the epoll. Once is enough.
    pub(super) fn end(&self, state: &mut State, sink: &mut Sink, buffers: &mut Buffers) {
        let Some(_closed) = state.fd.take() else { return };
        let rest = std::mem::take(&mut state.carry);
        if !rest.is_empty() {
            let mut burst = Burst::begin(&self.output, sink, self.stream, &mut buffers.page);
            line::split_rest(&rest, self.output.line_bytes_max, |tag, content| burst.push(tag, content));
            burst.end();
        }
        if state.pipe == Pipe::Large {
            self.large_pipes.give_back();
        }
        self.output.stream_ended(sink, self.stream);
    }

    /// Where that is refused the usual size has to do.
    fn enlarge_pipe(&self, state: &mut State) {
        let State { fd: Some(fd), pipe: Pipe::Usual, .. } = state else { return };
        if !self.large_pipes.take() {
            return;
        }
        state.pipe = match fcntl_setpipe_size(&*fd, PIPE_BYTES) {
            Ok(bytes) => {
                state.pipe_bytes = bytes;
                Pipe::Large
            }
            Err(_) => {
                self.large_pipes.give_back();
                Pipe::Fixed
            }
        };
    }
}

impl State {
    /// What to do after a turn that has emptied the FIFO of `moved` bytes.
    fn pause(&mut self, moved: usize) -> Turn {
        let now = Instant::now();
        let before = self.last_turn.replace(now);
        let is_busy = before.is_some_and(|before| now.duration_since(before) < 2 * REST);
        // A flood needs no help, and must not fill the pipe meanwhile.
        let is_small = moved < self.pipe_bytes / 4;
        if is_busy && is_small { Turn::Rest } else { Turn::Again }
    }

    /// Forgets what a turn that was cut off may have left behind.
    pub(super) fn mend(&mut self) {
        self.carry = Vec::new();
    }
}

/// How many pipes may still be enlarged.
pub(super) struct LargePipes(AtomicUsize);

impl LargePipes {
    /// None unless larger pipes are free of the kernel's limit for each user: a keeper that
    /// enlarged them within it would use up what the user's other pipes need.
    pub(super) fn new() -> LargePipes {
        let is_free = process::has_cap_sys_resource() || process::has_cap_sys_admin();
        LargePipes(AtomicUsize::new(if is_free { LARGE_PIPES_MAX } else { 0 }))
    }

    fn take(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
