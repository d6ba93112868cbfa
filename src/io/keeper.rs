//! The keeper: the process that owns the log files of a node's containers.
//!
//! It is started by the server when first needed and outlives it, so that logs go on, and
//! no container blocks on a full pipe, while the server is restarted, upgraded or killed
//! (LOG-11, REC-19). The server speaks to it over a socket ([`super::protocol`]).
//!
//! One thread waits for everything: signals, clients, requests, ends of streams. It
//! never touches a container's files; requests that do run in [`Lanes`], and the output
//! itself is moved by the workers of the [`Engine`]. So neither a flood nor a disk that
//! hangs makes it deaf. It alone writes to the keeper's log, which may block.
//!
//! The end: as soon as there is neither a client nor a container with an open stream,
//! after a short grace. SIGTERM, SIGINT and SIGHUP end it only when it has no such
//! container: a service manager that stops the server, or a terminal that closes, must
//! not stop the node's logs.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::connection::Connection;
use super::daemon;
use super::engine::Engine;
use super::lanes::Lanes;
use super::place::Place;
use super::protocol::{self, Added, Drained, Hello, KeptIo, List, Request};
use super::succession;
use super::totals::COUNTED;
use crate::error::{Context, Error, Result, internal, invalid, not_found, precondition, unavailable};
use crate::sys::signal::Signals;

/// Connections at most that are no attachments: the server's, and tools that look.
const CONNECTIONS_MAX: usize = 32;
/// How long it waits for its first client, which is busy with its own start.
const FIRST_CLIENT_LIMIT: Duration = Duration::from_secs(10);
/// How long new clients wait when the descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a container's losses are told (LOG-10).
const LOSS_PAUSE: Duration = Duration::from_secs(60);
/// The longest that anybody waits for the end of a container's output.
const WAIT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an upgrade waits for what is in hand, and is refused then.
const SUCCESSION_LIMIT: Duration = Duration::from_secs(5);
/// What a service manager or terminal says.
const SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How a keeper is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; the lock file is beside it.
    pub socket: PathBuf,
    /// Threads that move output.
    pub workers: usize,
    /// How long it waits for work when it has none, once it has had a client.
    pub grace: Duration,
    /// The descriptor of what the program before has left, in an upgrade.
    pub will: Option<RawFd>,
}

impl Options {
    /// A keeper at `socket` with everything else as usual.
    #[must_use]
    pub fn new(socket: PathBuf) -> Options {
        // One keeps up with what a node's shims can bring; the second is for when a log
        // file blocks the first, or two containers flood.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Options { socket, workers: cpus.min(2), grace: Duration::from_secs(1), will: None }
    }
}

/// Runs a keeper until there is nothing left to do. Writes a line to standard output when
/// it is ready. At once fine if another keeper is there already. Blocking; for a process
/// of its own that has no other threads yet.
///
/// # Errors
/// Those of the system at start.
pub fn run(options: &Options) -> Result<()> {
    let signals = Signals::hold(&SIGNALS).context(|| "hold signals back")?;
    let Some(place) = Place::take(options)? else {
        debug!("another keeper is at work");
        return Ok(());
    };
    let mut keeper = Keeper {
        place,
        program: succession::identity_of(Path::new("/proc/self/exe")),
        succession: None,
        engine: Arc::new(Engine::start(options.workers)?),
        lanes: Lanes::new()?,
        connections: BTreeMap::new(),
        next_connection: 0,
        accept_at: None,
        waits: Vec::new(),
        losses: HashMap::new(),
        next_loss_check: None,
        idle_since: Some(Instant::now()),
        grace: FIRST_CLIENT_LIMIT.max(options.grace),
        is_over: false,
    };
    keeper.inherit();
    info!(socket = %options.socket.display(), workers = options.workers, "the log keeper is ready");
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
    daemon::close_stdout();
    while !keeper.is_over {
        keeper.step(&signals)?;
        if !keeper.connections.is_empty() {
            keeper.grace = options.grace;
        }
    }
    // The lock is still held: nobody else's socket is removed.
    let _ = std::fs::remove_file(&options.socket);
    keeper.place.cgroups.leave();
    info!("the log keeper ends: there is nothing left to keep");
    Ok(())
}

struct Keeper {
    place: Place,
    /// What [`Hello`] says of its program.
    program: Option<String>,
    /// A request to become another one.
    succession: Option<Succession>,
    engine: Arc<Engine>,
    lanes: Lanes<Done>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// When clients are accepted again, while they are not.
    accept_at: Option<Instant>,
    waits: Vec<Wait>,
    losses: HashMap<String, Told>,
    next_loss_check: Option<Instant>,
    /// Since when there is nothing to do.
    idle_since: Option<Instant>,
    /// For how long that may be so.
    grace: Duration,
    is_over: bool,
}

/// A request to go on as another program.
struct Succession {
    connection: u64,
    seq: u64,
    program: PathBuf,
    until: Instant,
}

/// A job's result, for whom it is.
struct Done {
    connection: u64,
    seq: u64,
    result: Result<Value>,
}

/// A `wait_drained` that has no answer yet.
struct Wait {
    connection: u64,
    seq: u64,
    id: String,
    until: Instant,
}

/// What was told of a container's losses.
struct Told {
    entries: u64,
    at: Instant,
}

/// How the descriptors of one step are told apart.
const FIXED: usize = 4;

impl Keeper {
    /// Waits for something to happen and does what it asks for.
    fn step(&mut self, signals: &Signals) -> Result<()> {
        let timeout = self.timeout();
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        let ready = {
            let has_room = ids.len() < CONNECTIONS_MAX && self.accept_at.is_none();
            let wanted = if has_room { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = vec![
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&self.place.listener, wanted),
                PollFd::from_borrowed_fd(self.engine.changed(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.lanes.ready(), PollFlags::IN),
            ];
            fds.extend(self.connections.values().map(|connection| {
                let writes = if connection.has_output() { PollFlags::OUT } else { PollFlags::empty() };
                PollFd::new(connection, PollFlags::IN | writes)
            }));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "wait for requests"),
            }
            fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>()
        };
        if ready[0] {
            self.heed(signals);
        }
        for (id, _) in ids.iter().zip(&ready[FIXED..]).filter(|(_, is_ready)| **is_ready) {
            self.serve(*id);
        }
        for Done { connection, seq, result } in self.lanes.take() {
            self.answer(connection, seq, result);
        }
        self.succeed();
        if ready[2] {
            let _ = rustix::io::read(self.engine.changed(), &mut [0; 8]);
            self.next_loss_check.get_or_insert_with(Instant::now);
        }
        self.answer_waits();
        self.tell_losses();
        if ready[1] || self.accept_at.is_some_and(|at| at <= Instant::now()) {
            self.accept();
        }
        self.connections.retain(|_, connection| !connection.is_broken());
        self.waits.retain(|wait| self.connections.contains_key(&wait.connection));
        self.rest();
        Ok(())
    }

    /// How long nothing needs to be done.
    fn timeout(&self) -> Option<Timespec> {
        let idle = self.idle_since.map(|since| since + self.grace);
        let waits = self.waits.iter().map(|wait| wait.until);
        let asked = self.succession.as_ref().map(|succession| succession.until);
        let next = waits.chain(idle).chain(self.next_loss_check).chain(self.accept_at).chain(asked).min()?;
        Timespec::try_from(next.saturating_duration_since(Instant::now())).ok()
    }

    /// Ends when there was nothing to do for long enough.
    fn rest(&mut self) {
        let nobody = self.connections.is_empty() && self.engine.attached_len() == 0;
        let is_idle = nobody && self.has_nothing_open();
        if !is_idle {
            self.idle_since = None;
        } else if self.idle_since.get_or_insert_with(Instant::now).elapsed() >= self.grace {
            self.is_over = true;
        }
    }

    fn has_nothing_open(&self) -> bool {
        self.lanes.len() == 0 && self.engine.open_len() == 0
    }

    fn heed(&mut self, signals: &Signals) {
        while let Some(signal) = signals.next() {
            if self.has_nothing_open() {
                self.is_over = true;
            } else {
                let containers = self.engine.open_len();
                info!(signal, containers, "the log keeper goes on: there are containers");
            }
        }
    }

    fn accept(&mut self) {
        self.accept_at = None;
        while self.connections.len() < CONNECTIONS_MAX {
            match Connection::accept(&self.place.listener) {
                Ok(Some(connection)) => {
                    self.connections.insert(self.next_connection, connection);
                    self.next_connection += 1;
                }
                Ok(None) => return,
                Err(error) => {
                    // The client still waits, so that polling would not.
                    warn!(%error, "a client of the log keeper could not be accepted");
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Reads requests and writes answers, as far as it goes.
    fn serve(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        for (seq, request) in connection.serve() {
            // What follows an attachment is none of ours.
            if !self.connections.contains_key(&id) {
                return;
            }
            match request {
                Ok(request) => self.obey(id, seq, request),
                Err(error) => self.answer(id, seq, Err(error)),
            }
        }
    }

    fn obey(&mut self, connection: u64, seq: u64, request: Request) {
        match request {
            Request::Hello { protocol, version } => {
                debug!(protocol, version, "a client");
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let hello = Hello {
                    protocol: protocol::PROTOCOL,
                    version,
                    pid: std::process::id(),
                    program: self.program.clone(),
                };
                self.answer(connection, seq, to_value(&hello));
            }
            Request::List => {
                let containers = self.engine.list();
                self.answer(connection, seq, to_value(&List { containers }));
            }
            Request::Totals => self.answer(connection, seq, to_value(&COUNTED.totals())),
            Request::WaitDrained { id, limit_ms } => {
                let limit = Duration::from_millis(limit_ms).min(WAIT_LIMIT);
                self.engine.lift_rate(&id);
                self.waits.push(Wait { connection, seq, id, until: Instant::now() + limit });
            }
            Request::Add { io } => {
                self.lane(connection, seq, io.id.clone(), move |engine, id| {
                    engine.add(io)?;
                    to_value(&Added { is_stdin_closed: engine.is_stdin_closed(id) })
                });
            }
            Request::Reopen { id } => {
                self.lane(connection, seq, id, |engine, id| engine.reopen(id).map(|()| json!({})));
            }
            Request::CloseStdin { id } => {
                self.lane(connection, seq, id, |engine, id| engine.close_stdin(id).map(|()| json!({})));
            }
            Request::Attach { id, stdout, stderr } => self.attach(connection, seq, id, (stdout, stderr)),
            // The one that was asked for first has its answer to come.
            Request::Succeed { .. } if self.succession.is_some() => {
                let error = precondition("the log keeper is about to go on as another program");
                self.answer(connection, seq, Err(error));
            }
            Request::Succeed { program } => {
                let until = Instant::now() + SUCCESSION_LIMIT;
                self.succession = Some(Succession { connection, seq, program, until });
            }
            Request::Remove { id } => {
                self.losses.remove(&id);
                self.lane(connection, seq, id, |engine, id| {
                    engine.remove(id);
                    Ok(json!({}))
                });
            }
        }
    }

    /// Gives the connection to the engine, in the container's lane: an attachment comes
    /// after what was asked for before it.
    fn attach(&mut self, connection: u64, seq: u64, id: String, wanted: (bool, bool)) {
        let Some(taken) = self.connections.remove(&connection) else { return };
        match taken.into_stream() {
            Ok(stream) => self.lane(connection, seq, id, move |engine, id| {
                engine.attach(id, seq, wanted, stream);
                Ok(json!({}))
            }),
            Err(busy) => {
                self.connections.insert(connection, busy);
                let error = invalid("attaching needs a connection of its own");
                self.answer(connection, seq, Err(error));
            }
        }
    }

    /// Takes over what the program before has left, if there is something.
    fn inherit(&mut self) {
        self.engine.inherit(std::mem::take(&mut self.place.bequests));
        let now = Instant::now();
        let told = |kept: KeptIo| (kept.id, Told { entries: kept.lost_entries, at: now });
        self.losses = self.engine.losses().into_iter().map(told).collect();
    }

    /// Becomes another program, if that was asked for and nothing is in hand.
    fn succeed(&mut self) {
        let Some(asked) = self.succession.take() else { return };
        let Succession { connection, seq, program, until } = &asked;
        let error = if self.lanes.len() == 0 {
            info!(program = %program.display(), "the log keeper goes on as another program");
            self.become_program(program)
        } else if *until <= Instant::now() {
            unavailable("the log keeper has requests in hand that take too long")
        } else {
            self.succession = Some(asked);
            return;
        };
        warn!(%error, "the log keeper goes on as it is");
        self.answer(*connection, *seq, Err(error));
    }

    /// Comes back only with an error, and then everything is as it was.
    fn become_program(&self, program: &Path) -> Error {
        let error = match self.engine.halt(SUCCESSION_LIMIT).and_then(|()| self.engine.bequeath()) {
            Ok(bequests) => self.place.pass_on(program, bequests, &SIGNALS),
            Err(error) => error,
        };
        self.engine.keep();
        self.engine.go_on();
        error
    }

    /// Does `work` in the container's lane.
    fn lane(
        &mut self,
        connection: u64,
        seq: u64,
        id: String,
        work: impl FnOnce(&Engine, &str) -> Result<Value> + Send + 'static,
    ) {
        let (engine, lane) = (self.engine.clone(), id.clone());
        self.lanes.run(lane, move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&engine, &id)));
            let result = result.unwrap_or_else(|_| Err(internal("a bug in the log keeper")));
            Done { connection, seq, result }
        });
    }

    fn answer(&mut self, connection: u64, seq: u64, result: Result<Value>) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.answer(seq, result);
        }
    }

    fn answer_waits(&mut self) {
        for wait in std::mem::take(&mut self.waits) {
            let drained = |is_drained| to_value(&Drained { is_drained });
            match self.engine.get(&wait.id) {
                None => {
                    let error = not_found(format!("the log keeper has no container {:?}", wait.id));
                    self.answer(wait.connection, wait.seq, Err(error));
                }
                Some(kept) if kept.is_drained => self.answer(wait.connection, wait.seq, drained(true)),
                Some(_) if wait.until <= Instant::now() => {
                    self.answer(wait.connection, wait.seq, drained(false));
                }
                Some(_) => self.waits.push(wait),
            }
        }
    }

    /// Warns of output that could not be written, of each container at most once in
    /// [`LOSS_PAUSE`].
    fn tell_losses(&mut self) {
        let now = Instant::now();
        if self.next_loss_check.is_none_or(|at| at > now) {
            return;
        }
        let lossy = self.engine.losses();
        self.losses.retain(|id, _| lossy.iter().any(|kept| kept.id == *id));
        self.next_loss_check = None;
        for kept in lossy {
            let told = self.losses.get(&kept.id);
            let before = told.map_or(0, |told| told.entries);
            let due = told.map_or(now, |told| told.at + LOSS_PAUSE);
            let next = if due > now { due } else { now + LOSS_PAUSE };
            if due <= now && kept.lost_entries > before {
                warn!(
                    container = kept.id,
                    entries = kept.lost_entries - before,
                    all_entries = kept.lost_entries,
                    error = kept.last_error.as_deref().unwrap_or(""),
                    "output of a container could not be written to its log and is lost"
                );
                self.losses.insert(kept.id, Told { entries: kept.lost_entries, at: now });
            }
            self.next_loss_check = Some(self.next_loss_check.map_or(next, |at| at.min(next)));
        }
    }
}

fn to_value(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| internal(format!("a bug in the log keeper: {error}")))
}
