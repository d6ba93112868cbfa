//! The workers that move output from FIFOs into log files: the hot path of a node.
//!
//! ```text
//! FIFO ─┐                        ┌─ worker ─ read ─ entries ─ write ─ log file
//! FIFO ─┼─ one epoll, one-shot ──┤
//! FIFO ─┘                        └─ worker …
//! ```
//!
//! All FIFOs of the node are in one epoll. An event goes to exactly one worker, which
//! owns the stream until it arms it again: it reads what is there, turns the burst into
//! entries in its own memory and appends them with one `write`, for a fair share before
//! the others have their turn. So a burst costs four system calls however many lines it
//! has. Nothing that a log file does stops the reading (LOG-10): what cannot be written is
//! counted and forgotten. A disk that takes its time is another matter: it holds up the
//! container, whose pipe fills, and one worker.
//!
//! Everything here is blocking and has no clock but the streams' rests ([`super::rest`]);
//! who waits for what is the business of [`super::keeper`].

use std::collections::HashMap;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::{EventfdFlags, epoll, eventfd};
use tracing::error;

use self::crew::{Crew, Workers};
use super::attachment::{Attachment, Standing};
use super::fifo;
use super::gate::Gate;
use super::line::{LINE_BYTES_CAP, Stream};
use super::log_file::LogFile;
use super::output::Output;
use super::protocol::{self, ContainerIo, KeptIo};
use super::rest::Resting;
use super::source::{Buffers, Common, LargePipes, Pass, Source, State, Turn};
use crate::error::{Context, Result, exhausted, not_found};
use crate::flow::lock;

/// What a worker reads at once. Four times as much saves less than a tenth of its time.
const READ_BYTES: usize = 256 << 10;
/// What is read at once when a container is removed.
const LAST_READ_BYTES: usize = 64 << 10;
/// epoll's mark of the event that ends the workers.
const STOP: u64 = 0;
/// epoll's mark of the timer of streams that rest; those of streams come after it.
const RESTED: u64 = 1;
/// Those of attachments have this bit.
const ATTACHMENT: u64 = 1 << 63;
/// Attachments at a time, whose queues are memory of the keeper.
const ATTACHMENTS_MAX: usize = 64;
/// Readable or hung up, told to one worker once.
const ARMED: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ONESHOT);

/// Moves container output. Dropping it ends the workers; what is in the FIFOs stays there.
pub(super) struct Engine {
    shared: Arc<Shared>,
    workers: Workers,
}

struct Shared {
    epoll: Arc<OwnedFd>,
    /// Readable when the workers shall end.
    stop: OwnedFd,
    crew: Mutex<Crew>,
    changed: Arc<OwnedFd>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Open streams by their mark in the epoll.
    sources: Mutex<HashMap<u64, Arc<Source>>>,
    /// Those who see output as it comes, likewise.
    attachments: Mutex<HashMap<u64, Arc<Attachment>>>,
    next_mark: AtomicU64,
    resting: Resting<Source>,
    large_pipes: Arc<LargePipes>,
}

/// A container whose output is moved.
struct Container {
    io: ContainerIo,
    output: Arc<Output>,
    sources: Vec<Arc<Source>>,
    /// The writing end: as long as it is held, the container's input has no end.
    stdin: Mutex<Option<OwnedFd>>,
}

impl Engine {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// Those of the system: no descriptors, no threads.
    pub(super) fn start(workers: usize) -> Result<Engine> {
        let shared = Arc::new(Shared {
            epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "make an epoll")?),
            stop: new_event()?,
            crew: Mutex::default(),
            changed: Arc::new(new_event()?),
            containers: Mutex::default(),
            sources: Mutex::default(),
            attachments: Mutex::default(),
            next_mark: AtomicU64::new(RESTED + 1),
            resting: Resting::new()?,
            large_pipes: Arc::new(LargePipes::new()),
        });
        shared.watch_stop(STOP)?;
        let (rested, edge) =
            (epoll::EventData::new_u64(RESTED), epoll::EventFlags::IN | epoll::EventFlags::ET);
        epoll::add(&shared.epoll, shared.resting.timer(), rested, edge).context(|| "watch a timer")?;
        let workers = Workers::start(workers.max(1), &shared)?;
        Ok(Engine { shared, workers })
    }

    /// Begins to move the output of a container. When it returns, the FIFOs are open for
    /// reading and the log file exists (LOG-19). The same again changes nothing; other
    /// parameters, or FIFOs made anew, replace what was there.
    ///
    /// # Errors
    /// What could not be opened, with its path (CTR-17). Nothing is left open then.
    pub(super) fn add(&self, io: ContainerIo) -> Result<()> {
        if let Some(old) = self.shared.container(&io.id) {
            if old.is_same(&io) {
                if old.output.set_rate(io.bytes_per_second_max) {
                    self.shared.wake(&old);
                }
                return Ok(());
            }
            self.remove(&io.id);
        }
        let file = io.open_log()?;
        let fifos = [(Stream::Stdout, io.stdout.as_deref()), (Stream::Stderr, io.stderr.as_deref())];
        let fifos = || fifos.iter().filter_map(|(stream, path)| Some((*stream, (*path)?)));
        let changed = self.shared.changed.clone();
        let output = Arc::new(Output::new(
            &io.id,
            file,
            io.line_bytes_max,
            fifos().map(|(stream, _)| stream).collect(),
            changed,
        ));
        output.set_rate(io.bytes_per_second_max);
        let large_pipes = self.shared.large_pipes.clone();
        let common = Common { output: output.clone(), gate: Arc::new(Gate::new()), large_pipes };
        let sources = fifos().map(|(stream, path)| {
            let mark = self.shared.next_mark.fetch_add(1, Ordering::Relaxed);
            Source::open((mark, stream), path, io.started, &common).map(Arc::new)
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let stdin = Mutex::new(io.stdin.as_deref().map(fifo::open_writer).transpose()?);
        let container = Arc::new(Container { io, output, sources, stdin });
        self.shared.watch(&container).inspect_err(|_| self.remove(&container.io.id))
    }

    /// Switches to a newly opened log file at the container's path (LOG-12 … LOG-16).
    /// When it returns, the old file does not grow any more.
    ///
    /// # Errors
    /// NotFound; those of the file system, and then the old file stays in use.
    pub(super) fn reopen(&self, id: &str) -> Result<()> {
        let container = self.shared.known(id)?;
        if let Some(file) = container.io.open_log()? {
            container.output.switch_to(file);
        }
        Ok(())
    }

    /// Lets go of the writing end of a container's standard input (EXE-15).
    ///
    /// # Errors
    /// NotFound.
    pub(super) fn close_stdin(&self, id: &str) -> Result<()> {
        lock(&self.shared.known(id)?.stdin).take();
        Ok(())
    }

    /// Whether a container's standard input was let go of.
    pub(super) fn is_stdin_closed(&self, id: &str) -> bool {
        let container = self.shared.container(id);
        container.is_some_and(|container| container.io.stdin.is_some() && lock(&container.stdin).is_none())
    }

    /// Lets a client, which has asked by request `seq`, see what comes of `stdout` and
    /// `stderr` from now on: its connection, which must not block, is answered and belongs
    /// to the engine then ([`frame`](super::frame)).
    pub(super) fn attach(&self, id: &str, seq: u64, (stdout, stderr): (bool, bool), mut stream: UnixStream) {
        let container = match self.shared.attachable(id) {
            Ok(container) => container,
            Err(error) => {
                // Nothing was sent to it before, so that this needs no waiting.
                let _ = stream.write_all(&protocol::answer_line(seq, Err(error)));
                return;
            }
        };
        let mark = ATTACHMENT | self.shared.next_mark.fetch_add(1, Ordering::Relaxed);
        let answer = protocol::answer_line(seq, Ok(serde_json::json!({})));
        let wanted = (stdout, stderr);
        let attachment = Arc::new(Attachment::new(mark, self.shared.epoll.clone(), wanted, stream, answer));
        lock(&self.shared.attachments).insert(mark, attachment.clone());
        if let Err(error) = container.output.attach(attachment) {
            error!(container = id, %error, "nobody can be attached");
            lock(&self.shared.attachments).remove(&mark);
        }
    }

    /// Attachments that have not ended.
    pub(super) fn attached_len(&self) -> usize {
        lock(&self.shared.attachments).len()
    }

    /// Forgets a container, after a last look into its FIFOs; an unfinished line is
    /// written as `P`. One that is not known is fine.
    pub(super) fn remove(&self, id: &str) {
        let Some(container) = lock(&self.shared.containers).remove(id) else { return };
        for source in &container.sources {
            source.retire();
            lock(&self.shared.sources).remove(&source.mark);
        }
        let new_buffers = || Buffers::new(container.output.line_bytes_max, LAST_READ_BYTES);
        let mut buffers = None;
        for source in &container.sources {
            let mut state = lock(&source.state);
            if state.fd.is_some() {
                let buffers = buffers.get_or_insert_with(new_buffers);
                source.turn(&mut state, buffers, Pass::Last);
                source.end(&mut state, &mut source.output.sink(), buffers);
            }
        }
    }

    /// All containers, in no order.
    pub(super) fn list(&self) -> Vec<KeptIo> {
        lock(&self.shared.containers).values().map(|container| container.output.describe()).collect()
    }

    /// Containers that have lost output, and how many entries of it.
    pub(super) fn losses(&self) -> Vec<KeptIo> {
        let containers = lock(&self.shared.containers);
        let lossy = containers.values().filter(|container| container.output.lost_entries() > 0);
        lossy.map(|container| container.output.describe()).collect()
    }

    /// One container.
    pub(super) fn get(&self, id: &str) -> Option<KeptIo> {
        self.shared.container(id).map(|container| container.output.describe())
    }

    /// How many containers need somebody: those whose output has not ended, or whose
    /// input is held open.
    pub(super) fn open_len(&self) -> usize {
        lock(&self.shared.containers).values().filter(|container| container.is_open()).count()
    }

    /// Reads as fast as it can what a container that has ended has left: whoever waits for it
    /// gives up the rest. Does not block: a stream that has a turn sees it at its next.
    pub(super) fn lift_rate(&self, id: &str) {
        let Some(container) = self.shared.container(id).filter(|container| container.output.set_rate(0))
        else {
            return;
        };
        for source in &container.sources {
            if let Ok(state) = source.state.try_lock() {
                self.shared.arm(source, &state);
            }
        }
    }

    /// An eventfd that becomes readable when a container has drained, and when one has
    /// lost output for the first time.
    pub(super) fn changed(&self) -> BorrowedFd<'_> {
        self.shared.changed.as_fd()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.workers.join(&self.shared);
    }
}

impl Container {
    /// Whether adding `io` would change nothing but how fast it is read. `started` says how
    /// to open, not what.
    fn is_same(&self, io: &ContainerIo) -> bool {
        let ContainerIo { started, bytes_per_second_max, .. } = self.io;
        // A server of before does not tell the folder.
        let log_root = self.io.log_root.clone();
        let is_equal = ContainerIo { started, bytes_per_second_max, log_root, ..io.clone() } == self.io;
        let paths = [&io.stdout, &io.stderr].into_iter().flatten();
        is_equal && paths.zip(&self.sources).all(|(path, source)| source.is_at(path))
    }

    fn is_open(&self) -> bool {
        !self.output.is_drained() || lock(&self.stdin).is_some()
    }
}

impl ContainerIo {
    fn open_log(&self) -> Result<Option<LogFile>> {
        let open = |path| LogFile::open(path, self.log_root.as_deref());
        self.log_path.as_deref().map(open).transpose()
    }
}

impl Shared {
    fn container(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.containers).get(id).cloned()
    }

    fn known(&self, id: &str) -> Result<Arc<Container>> {
        self.container(id).ok_or_else(|| not_found(format!("the log keeper has no container {id:?}")))
    }

    fn attachable(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.known(id)?;
        if lock(&self.attachments).len() >= ATTACHMENTS_MAX {
            return Err(exhausted(format!("{ATTACHMENTS_MAX} clients are attached to containers already")));
        }
        Ok(container)
    }

    /// Puts the container's FIFOs into the epoll.
    fn watch(&self, container: &Arc<Container>) -> Result<()> {
        lock(&self.containers).insert(container.io.id.clone(), container.clone());
        for source in &container.sources {
            let state = lock(&source.state);
            let Some(fd) = &state.fd else { continue };
            lock(&self.sources).insert(source.mark, source.clone());
            epoll::add(&self.epoll, fd, epoll::EventData::new_u64(source.mark), ARMED)
                .context(|| format!("watch the FIFOs of container {:?}", container.io.id))?;
        }
        if container.sources.is_empty() {
            signal(&self.changed);
        }
        Ok(())
    }

    /// A worker's life: one event after the other until the end of the engine. One at a
    /// time, so that a long turn does not hold up events that another worker could take.
    fn work(&self) {
        let mut buffers = Buffers::new(LINE_BYTES_CAP, READ_BYTES);
        loop {
            let mut events = [MaybeUninit::uninit(); 1];
            // Refused only when a signal comes.
            let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, None) else { continue };
            let Some(event) = events.first() else { continue };
            let flags = event.flags;
            let is_hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            let source = match event.data.u64() {
                STOP if self.leaves() => return,
                // Who told it has taken it back.
                STOP => continue,
                // It may have hung up: then there is nothing to read, and epoll tells.
                RESTED => self.resting.take(),
                mark if mark & ATTACHMENT != 0 => {
                    self.serve_attachment(mark, is_hung_up || flags.intersects(epoll::EventFlags::RDHUP));
                    continue;
                }
                mark => lock(&self.sources).get(&mark).cloned(),
            };
            if let Some(source) = source {
                self.serve(source, &mut buffers, Pass::Fair { is_hung_up });
            }
        }
    }

    /// Gives `source` its turn and sees to it that it gets another.
    fn serve(&self, source: Arc<Source>, buffers: &mut Buffers, pass: Pass) {
        if source.is_retired() || !source.enter() {
            return;
        }
        let mut state = lock(&source.state);
        let turn = catch_unwind(AssertUnwindSafe(|| source.turn(&mut state, buffers, pass)));
        let waiting = source.exit();
        self.go_on_with(&source, state, turn, buffers);
        // It may be among them itself: where it rests, its end is told as well.
        self.hand_out(waiting);
    }

    /// Sees to it that `source` gets another turn after this one.
    fn go_on_with(
        &self,
        source: &Arc<Source>,
        mut state: MutexGuard<'_, State>,
        turn: std::thread::Result<Turn>,
        buffers: &mut Buffers,
    ) {
        match turn {
            Ok(Turn::Again) => self.arm(source, &state),
            Ok(Turn::Rest) => {
                drop(state);
                self.resting.push(source.clone());
            }
            Ok(Turn::Wait(until)) => {
                // Otherwise it is among those that rest already, for the same time.
                let is_new = state.waits_until.replace(until) != Some(until);
                self.watch_end(source, &state);
                drop(state);
                if is_new {
                    self.resting.push_until(until, source.clone());
                }
            }
            Ok(Turn::End) => {
                lock(&self.sources).remove(&source.mark);
            }
            Err(_) => {
                // A bug. Neither this container nor the others may block for it.
                error!(container = source.output.id(), "a bug in the log keeper: output is lost");
                *buffers = Buffers::new(LINE_BYTES_CAP, READ_BYTES);
                state.mend();
                self.arm(source, &state);
            }
        }
    }

    fn serve_attachment(&self, mark: u64, is_hung_up: bool) {
        let Some(attachment) = lock(&self.attachments).get(&mark).cloned() else { return };
        if attachment.serve(is_hung_up) == Standing::Over {
            lock(&self.attachments).remove(&mark);
            signal(&self.changed);
        }
    }

    /// Lets streams that had to wait for another of their container have their turn.
    fn hand_out(&self, waiting: Vec<Arc<Source>>) {
        for source in waiting.iter().filter(|source| !source.is_retired()) {
            self.arm(source, &lock(&source.state));
        }
    }

    /// Lets the streams of a container have turns that they would wait for.
    fn wake(&self, container: &Container) {
        for source in &container.sources {
            self.arm(source, &lock(&source.state));
        }
    }

    /// Lets epoll tell the end of a stream only: that needs no asking for.
    fn watch_end(&self, source: &Source, state: &State) {
        if let Some(fd) = &state.fd {
            let end = epoll::EventFlags::ONESHOT;
            let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(source.mark), end);
        }
    }

    fn arm(&self, source: &Source, state: &State) {
        if let Some(fd) = &state.fd {
            // Refused only for descriptors that are not in the epoll; these are.
            let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(source.mark), ARMED);
        }
    }
}

pub(super) fn new_event() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "make an eventfd")
}

/// Makes an eventfd readable.
pub(super) fn signal(event: &OwnedFd) {
    // Refused only when it is readable in any case.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

mod crew;
mod succession;

#[cfg(test)]
mod tests;
