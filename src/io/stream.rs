/// What the streams of a container have in common.
struct Output {
    id: String,
    has_log: bool,
    sink: Mutex<Sink>,
    open_streams: AtomicUsize,
    lost_entries: AtomicU64,
    lost_bytes: AtomicU64,
    last_error: Mutex<Option<String>>,
    changed: Arc<OwnedFd>,
}

/// Where entries go, and the time of the last one.
struct Sink {
    file: Option<LogFile>,
    last: u64,
}

/// One FIFO that is read.
struct Source {
    mark: u64,
    stream: Stream,
    line_bytes_max: usize,
    output: Arc<Output>,
    /// Set when the container is being removed: the turn under way ends early.
    is_leaving: AtomicBool,
    inner: Mutex<SourceState>,
    identity: fifo::Identity,
}

struct SourceState {
    /// `None` after the end.
    fd: Option<OwnedFd>,
    /// The unfinished line.
    carry: Vec<u8>,
    /// Whether a larger pipe may still be asked for.
    may_grow: bool,
    pipe_bytes: usize,
    last_turn: Option<Instant>,
}

/// What a turn is for.
#[derive(Clone, Copy)]
enum Pass {
    /// The fair share of a stream that had an event.
    Fair {
        /// Whether the event said that there is no writer any more.
        is_hung_up: bool,
    },
    /// What is in the FIFO when the container is removed.
    Last,
}

/// How a turn ended.
enum Turn {
    /// Nothing more to read now, or the share is used up.
    Again,
    /// As before, but the stream talks in small pieces: let some come together.
    Rest(Instant),
    /// The end of the stream.
    End,
}

impl Output {
    fn describe(&self) -> KeptIo {
        KeptIo {
            id: self.id.clone(),
            is_drained: self.open_streams.load(Ordering::Acquire) == 0,
            lost_entries: self.lost_entries.load(Ordering::Relaxed),
            lost_bytes: self.lost_bytes.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }
}

/// A worker's memory: the pages of it that bursts have touched.
struct Buffers {
    /// Room for an unfinished line, then what is read: the two stand together.
    input: Vec<u8>,
    room: usize,
    output: Vec<u8>,
    prefix: Prefix,
}

impl Buffers {
    fn new(line_bytes_max: usize, read_bytes: usize) -> Buffers {
        let room = line_bytes_max + 1;
        let entry = PREFIX_BYTES + line_bytes_max + 1;
        Buffers {
            input: vec![0; room + read_bytes],
            room,
            output: vec![0; FLUSH_BYTES.min(2 * read_bytes) + entry],
            prefix: Prefix::new(),
        }
    }
}

impl Source {
    /// Moves what is waiting in the FIFO.
    fn turn(&self, inner: &mut SourceState, buffers: &mut Buffers, pass: Pass) -> Turn {
        let (share, is_hung_up) = match pass {
            Pass::Fair { is_hung_up } => (TURN_BYTES, is_hung_up),
            Pass::Last => (PIPE_BYTES, false),
        };
        let mut moved = 0;
        while moved < share {
            let Some(fd) = &inner.fd else { return Turn::Again };
            let to = &mut buffers.input[buffers.room..];
            let asked = to.len();
            match rustix::io::read(fd, to) {
                Ok(0) if is_hung_up => return Turn::End,
                Ok(0) | Err(Errno::AGAIN) => return Turn::Again,
                Err(Errno::INTR) => {}
                Err(_) => return Turn::End,
                Ok(count) => {
                    if inner.may_grow && count >= BUSY_BYTES {
                        inner.may_grow = false;
                        // Where it is refused the default size has to do.
                        if rustix::pipe::fcntl_setpipe_size(fd, PIPE_BYTES).is_ok() {
                            inner.pipe_bytes = PIPE_BYTES;
                        }
                    }
                    self.take(inner, buffers, count);
                    moved += count;
                    // Less than asked for: the FIFO was empty. epoll tells of more.
                    let is_empty = count < asked && !is_hung_up;
                    let is_cut = matches!(pass, Pass::Fair { .. }) && self.is_leaving.load(Ordering::Acquire);
                    if is_cut {
                        return Turn::Again;
                    }
                    if is_empty {
                        return inner.pause(count);
                    }
                }
            }
        }
        Turn::Again
    }

    /// Appends the lines of the `count` bytes just read and keeps the unfinished one.
    fn take(&self, inner: &mut SourceState, buffers: &mut Buffers, count: usize) {
        if !self.output.has_log {
            return;
        }
        let Buffers { input, room, output, prefix } = buffers;
        let new = &input[*room..*room + count];
        let carry = &mut inner.carry;
        if carry.len() + count <= self.line_bytes_max && memchr::memchr(b'\n', new).is_none() {
            carry.extend_from_slice(new);
            return;
        }
        let start = *room - carry.len();
        input[start..*room].copy_from_slice(carry);
        let data = &input[start..*room + count];
        let mut burst = Burst::begin(self, output, prefix);
        let used = line::split(data, self.line_bytes_max, |tag, content| burst.push(tag, content));
        burst.end();
        carry.clear();
        if carry.capacity() > CARRY_BYTES.max(4 * (data.len() - used)) {
            *carry = Vec::new();
        }
        carry.extend_from_slice(&data[used..]);
    }

    /// Appends a line that will never be finished (LOG-06).
    fn finish(&self, rest: &[u8], buffers: &mut Buffers) {
        if !rest.is_empty() {
            let mut burst = Burst::begin(self, &mut buffers.output, &mut buffers.prefix);
            line::split_rest(rest, self.line_bytes_max, |tag, content| burst.push(tag, content));
            burst.end();
        }
    }
}

impl SourceState {
    /// What to do after a turn that has emptied the FIFO with its last `count` bytes.
    fn pause(&mut self, count: usize) -> Turn {
        let now = Instant::now();
        let before = self.last_turn.replace(now);
        let is_busy = before.is_some_and(|before| now.duration_since(before) < 2 * REST);
        // The rest must not be long enough to fill the pipe.
        let is_small = count < self.pipe_bytes / 4;
        if is_busy && is_small { Turn::Rest(now + REST) } else { Turn::Again }
    }
}

/// The entries of one read, with the container's sink held.
struct Burst<'a> {
    output: &'a Output,
    sink: MutexGuard<'a, Sink>,
    buffer: &'a mut [u8],
    filled: usize,
    prefix: &'a mut Prefix,
}

impl<'a> Burst<'a> {
    fn begin(source: &'a Source, buffer: &'a mut [u8], prefix: &'a mut Prefix) -> Burst<'a> {
        let sink = lock(&source.output.sink);
        prefix.begin(source.stream, line::now(), sink.last);
        Burst { output: &source.output, sink, buffer, filled: 0, prefix }
    }

    #[inline]
    fn push(&mut self, tag: Tag, content: &[u8]) {
        if self.filled + PREFIX_BYTES + content.len() >= self.buffer.len() || self.filled >= FLUSH_BYTES {
            self.flush();
        }
        self.filled += self.prefix.write(&mut self.buffer[self.filled..], tag, content);
    }

    fn end(mut self) {
        self.flush();
        self.sink.last = self.prefix.last();
    }

    #[cold]
    #[inline(never)]
    fn flush(&mut self) {
        let entries = &self.buffer[..self.filled];
        self.filled = 0;
        let Some(file) = self.sink.file.as_mut().filter(|_| !entries.is_empty()) else { return };
        if let Err(loss) = file.write(entries) {
            *lock(&self.output.last_error) = Some(Error::from(loss.error).message().to_owned());
            self.output.lost_bytes.fetch_add(loss.bytes, Ordering::Relaxed);
            if self.output.lost_entries.fetch_add(loss.entries, Ordering::Relaxed) == 0 {
                signal(&self.output.changed);
            }
        }
    }
}
