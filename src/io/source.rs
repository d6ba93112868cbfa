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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use super::fifo;
use super::line::{self, Stream};
use super::output::{Burst, Output, Page};
use crate::error::{Context, Result};
use crate::sys::process;

/// What one stream may move before the others have their turn.
const TURN_BYTES: usize = 4 << 20;
/// A stream that has as much waiting is busy and gets a larger pipe.
const BUSY_BYTES: usize = 32 << 10;
/// The size of a busy stream's pipe, which is what the kernel allows everybody.
const PIPE_BYTES: usize = 1 << 20;
/// How long a stream that talks without pause is left alone.
const REST: Duration = Duration::from_millis(1);
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
    is_leaving: AtomicBool,
}

pub(super) struct State {
    /// `None` after the end.
    pub(super) fd: Option<OwnedFd>,
    /// The unfinished line.
    carry: Vec<u8>,
    pipe_bytes: usize,
    /// Whether a larger pipe may still be asked for.
    may_grow: bool,
    last_turn: Option<Instant>,
}

/// What a turn is for.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    /// The fair share of a stream that had an event.
    Fair {
        /// Whether the event said that there is no writer any more.
        is_hung_up: bool,
    },
    /// What is in the FIFO when the container is removed.
    Last,
}

/// How a turn ended.
pub(super) enum Turn {
    /// Nothing more to read now, or the share is used up.
    Again,
    /// As before, but let more come together until then.
    Rest(Instant),
    /// The end of the stream.
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
        mark: u64,
        stream: Stream,
        path: &Path,
        started: bool,
        output: &Arc<Output>,
    ) -> Result<Source> {
        let (fd, identity) = fifo::open_reader(path, started)?;
        let state = State {
            pipe_bytes: fcntl_getpipe_size(&fd).context(|| format!("open FIFO {path:?}"))?,
            fd: Some(fd),
            carry: Vec::new(),
            may_grow: may_grow_pipes(),
            last_turn: None,
        };
        let is_leaving = AtomicBool::new(false);
        Ok(Source { mark, output: output.clone(), state: Mutex::new(state), stream, identity, is_leaving })
    }

    /// Whether `path` still names the FIFO that is read.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        fifo::identity(path) == Some(self.identity)
    }

    /// Asks the turn under way to end early.
    pub(super) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    /// Moves what is waiting in the FIFO.
    pub(super) fn turn(&self, state: &mut State, buffers: &mut Buffers, pass: Pass) -> Turn {
        let (share, is_hung_up) = match pass {
            Pass::Fair { is_hung_up } => (TURN_BYTES, is_hung_up),
            Pass::Last => (PIPE_BYTES, false),
        };
        let mut moved = 0;
        while moved < share {
            let Some(fd) = &state.fd else { return Turn::Again };
            let to = &mut buffers.input[buffers.room..];
            let asked = to.len();
            let count = match rustix::io::read(fd, to) {
                Ok(0) if is_hung_up => return Turn::End,
                Ok(0) | Err(Errno::AGAIN) => return Turn::Again,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(_) => return Turn::End,
            };
            state.grow(count);
            self.take(state, buffers, count);
            moved += count;
            // Less than asked for: the FIFO was empty, and epoll tells of more.
            if count < asked && !is_hung_up {
                return state.pause(count);
            }
            if matches!(pass, Pass::Fair { .. }) && self.is_leaving.load(Ordering::Acquire) {
                return Turn::Again;
            }
        }
        Turn::Again
    }

    /// Appends the lines of the `count` bytes just read and keeps the unfinished one.
    fn take(&self, state: &mut State, buffers: &mut Buffers, count: usize) {
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
        let mut burst = Burst::begin(&self.output, self.stream, page);
        let used = line::split(data, max, |tag, content| burst.push(tag, content));
        burst.end();
        carry.clear();
        if carry.capacity() > CARRY_BYTES.max(4 * (data.len() - used)) {
            *carry = Vec::new();
        }
        carry.extend_from_slice(&data[used..]);
    }

    /// Appends the line that will not be finished (LOG-06) and notes the end. The
    /// descriptor is given back, to be taken out of the epoll first.
    pub(super) fn end(&self, state: &mut State, buffers: &mut Buffers) -> Option<OwnedFd> {
        let fd = state.fd.take()?;
        let rest = std::mem::take(&mut state.carry);
        if !rest.is_empty() {
            let mut burst = Burst::begin(&self.output, self.stream, &mut buffers.page);
            line::split_rest(&rest, self.output.line_bytes_max, |tag, content| burst.push(tag, content));
            burst.end();
        }
        self.output.stream_ended();
        Some(fd)
    }
}

impl State {
    /// Asks once for a larger pipe when `count` bytes have come in one piece. Where it is
    /// refused the default size has to do.
    fn grow(&mut self, count: usize) {
        if self.may_grow && count >= BUSY_BYTES {
            self.may_grow = false;
            if let Some(Ok(bytes)) = self.fd.as_ref().map(|fd| fcntl_setpipe_size(fd, PIPE_BYTES)) {
                self.pipe_bytes = bytes;
            }
        }
    }

    /// What to do after a turn that has emptied the FIFO with its last `count` bytes.
    fn pause(&mut self, count: usize) -> Turn {
        let now = Instant::now();
        let before = self.last_turn.replace(now);
        let is_busy = before.is_some_and(|before| now.duration_since(before) < 2 * REST);
        // A flood needs no help, and must not fill the pipe meanwhile.
        let is_small = count < self.pipe_bytes / 4;
        if is_busy && is_small { Turn::Rest(now + REST) } else { Turn::Again }
    }
}

/// Whether larger pipes are free of the kernel's limit for each user. A keeper that
/// enlarged them without would use up what the user's other pipes need.
fn may_grow_pipes() -> bool {
    process::has_cap_sys_resource() || process::has_cap_sys_admin()
}
