//! The server's side of the keeper.
//!
//! A [`Keeper`] connects when first used and starts the process when nobody listens at the
//! socket. Should the process die, all that was added and not removed is added to a new one,
//! whichever caller notices first; the others wait for the same restart, and calls under way
//! are sent again, which all of them bear. Nothing is lost meanwhile: the client holds a
//! reading end of each output FIFO itself, so that what is in the pipe stays there even if
//! the container ends just then, and a writing end of the input's, so that the container
//! does not see its end. What a keeper that was killed had in hand is lost: the burst that
//! it was writing, and unfinished lines.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::fs::FileType;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::attached::{Attached, ContainerInput};
use super::link::Link;
use super::pipe::InputPipe;
use super::protocol::{
    Added, ContainerIo, Drained, Hello, KeptIo, List, PROTOCOL, PROTOCOL_WITH_RATES, Request,
};
use super::totals::Totals;
use super::{daemon, fifo, succession};
use crate::error::{Context, Error, Kind, Result, internal, unavailable};
use crate::flow::{blocking, limited, lock};
use crate::points;
use crate::trace;

/// Pauses between attempts to reach a keeper, doubled each time up to the second.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A keeper that dies again and again is started once in this time.
const START_PAUSE: Duration = Duration::from_secs(1);
/// How soon the end of a keeper that does not listen any more is seen.
const NOTICE_LIMIT: Duration = Duration::from_secs(1);

/// How the keeper is used.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The limit of each call, a restart of the keeper included.
    pub call_limit: Duration,
    /// The limit of the start of the process.
    pub start_limit: Duration,
    /// Further arguments of the process.
    pub arguments: Vec<OsString>,
}

impl Default for KeeperOptions {
    fn default() -> KeeperOptions {
        KeeperOptions {
            call_limit: Duration::from_secs(30),
            start_limit: Duration::from_secs(10),
            arguments: Vec::new(),
        }
    }
}

/// The keeper, as the server sees it. Cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

struct Inner {
    exe: PathBuf,
    socket: PathBuf,
    options: KeeperOptions,
    /// Held while a keeper is connected to or started: there is one such attempt at a time.
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    kept: Mutex<HashMap<String, Held>>,
    /// The keeper is of a version that reads everything as fast as it comes, and that was
    /// not said yet.
    lacks_rates: AtomicBool,
    last_start: Mutex<Option<Instant>>,
    /// Whether a keeper was asked to become this server's program: once is enough.
    asked_to_succeed: AtomicBool,
}

/// A container that was added.
struct Held {
    io: ContainerIo,
    /// Reading ends of its FIFOs. Nothing is read from them.
    readers: Vec<OwnedFd>,
    /// The writing end of its standard input. Nothing is written to it.
    stdin: Option<OwnedFd>,
    /// Cancelled when its standard input is let go of, by everybody.
    stdin_closed: CancellationToken,
    /// Whether the keeper has told that it drained.
    is_drained: bool,
}

/// Whether a call is worth starting a keeper for.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// If there is none.
    Always,
    /// Only if something was added; otherwise there is nothing it could know.
    WhenNeeded,
}

impl Keeper {
    /// A client of the keeper of the folder `state`, which is started as `exe` when needed.
    #[must_use]
    pub fn new(exe: PathBuf, state: &Path, options: KeeperOptions) -> Keeper {
        Keeper(Arc::new(Inner {
            exe,
            socket: state.join("keeper.sock"),
            options,
            link: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
            lacks_rates: AtomicBool::new(false),
            last_start: Mutex::default(),
            asked_to_succeed: AtomicBool::new(false),
        }))
    }

    /// Begins to move the output of a container. When it returns, its FIFOs are open for
    /// reading and the log file exists. The same again is fine; other parameters replace.
    ///
    /// # Errors
    /// What could not be opened, with its path (CTR-17); Unavailable or DeadlineExceeded
    /// when there is no keeper to be had.
    pub async fn add(&self, io: ContainerIo) -> Result<()> {
        let id = io.id.clone();
        let has_rate = io.bytes_per_second_max > 0;
        let held = blocking({
            let io = io.clone();
            move || Held::open(io)
        })
        .await?;
        lock(&self.0.kept).insert(id.clone(), held);
        let added = self.call(Start::Always, "add", &Request::Add { io }).await;
        match &added {
            Ok(answer) if read(answer.clone()).is_ok_and(|added: Added| added.is_stdin_closed) => {
                self.let_go_of_stdin(&id);
            }
            Ok(_) => {}
            Err(_) => _ = lock(&self.0.kept).remove(&id),
        }
        if has_rate && self.0.lacks_rates.swap(false, Ordering::Relaxed) {
            warn!(
                container = id,
                "the log keeper is of an older version, which limits no logs; it stays until the \
                 containers that it has have ended"
            );
        }
        added.map(drop).context(|| format!("log output of container {id:?}"))
    }

    /// Switches to a newly opened log file at the container's path (LOG-13).
    ///
    /// # Errors
    /// NotFound; those of the file system, and then the old file stays in use.
    pub async fn reopen(&self, id: &str) -> Result<()> {
        let request = Request::Reopen { id: id.to_owned() };
        self.call(Start::WhenNeeded, "reopen", &request).await.map(drop)
    }

    /// Lets the container's standard input end, as far as it is the keeper that holds it
    /// open; the shim has to be told as well (EXE-15).
    ///
    /// # Errors
    /// NotFound.
    pub async fn close_stdin(&self, id: &str) -> Result<()> {
        self.let_go_of_stdin(id);
        let request = Request::CloseStdin { id: id.to_owned() };
        self.call(Start::WhenNeeded, "close stdin", &request).await.map(drop)
    }

    fn let_go_of_stdin(&self, id: &str) {
        if let Some(held) = lock(&self.0.kept).get_mut(id) {
            // Not to be opened again with a new keeper.
            held.io.stdin = None;
            held.stdin = None;
            held.stdin_closed.cancel();
        }
    }

    /// The standard input of a container, to be written to; `None` if it has none, or if it
    /// was closed. Several may write.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn stdin(&self, id: &str) -> Result<Option<ContainerInput>> {
        let open = lock(&self.0.kept)
            .get(id)
            .and_then(|held| Some((held.io.stdin.clone()?, held.stdin_closed.clone())));
        let Some((path, closed)) = open else { return Ok(None) };
        Ok(InputPipe::open_now(&path)?.map(|pipe| ContainerInput { pipe, closed }))
    }

    /// Shows the output of a container from now on (EXE-14). It ends with the container, or
    /// with the keeper: what one that is gone had in hand nobody knows, and a new one would
    /// go on behind a gap.
    ///
    /// # Errors
    /// NotFound; ResourceExhausted when too many are attached; Unimplemented if the keeper
    /// is of an older version, which stays as long as its containers; Unavailable.
    pub async fn attach(&self, id: &str, stdout: bool, stderr: bool) -> Result<Attached> {
        let request = Request::Attach { id: id.to_owned(), stdout, stderr };
        limited(self.0.options.call_limit, "attach (log keeper)", async {
            loop {
                // The keeper that is there now has all containers.
                let link = self.0.connected(Start::WhenNeeded).await?;
                let socket = self.0.socket.clone();
                let error = match blocking(move || daemon::connect(&socket)).await {
                    Ok(stream) => return Attached::begin(stream, &request).await,
                    Err(error) => error,
                };
                // One that has died just now is about to be missed.
                if tokio::time::timeout(NOTICE_LIMIT, link.closed().cancelled()).await.is_err() {
                    return Err(error.with_kind(Kind::Unavailable));
                }
            }
        })
        .await
    }

    /// Waits until all outputs of a container have ended and everything is written; false
    /// if `limit` passes before (CTR-46).
    ///
    /// # Errors
    /// NotFound.
    pub async fn drained(&self, id: &str, limit: Duration) -> Result<bool> {
        if self.is_drained(id) {
            return Ok(true);
        }
        let end = Instant::now() + limit;
        let limit_ms = || {
            let rest = end.saturating_duration_since(Instant::now());
            u64::try_from(rest.as_millis()).unwrap_or(u64::MAX)
        };
        let request = || Request::WaitDrained { id: id.to_owned(), limit_ms: limit_ms() };
        let all = limit.saturating_add(self.0.options.call_limit);
        let answer = limited(all, "wait for the end of output", self.0.ask(Start::WhenNeeded, request)).await;
        let Drained { is_drained } = read(answer?)?;
        if is_drained && let Some(held) = lock(&self.0.kept).get_mut(id) {
            held.is_drained = true;
            held.readers.clear();
        }
        Ok(is_drained)
    }

    /// Forgets a container; what is in its FIFOs is written first, an unfinished line as
    /// `P`. One that is not known is fine.
    ///
    /// # Errors
    /// Unavailable or DeadlineExceeded when the keeper does not answer.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let request = Request::Remove { id: id.to_owned() };
        let removed = self.call(Start::WhenNeeded, "remove", &request).await;
        lock(&self.0.kept).remove(id);
        match removed {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// All containers that the keeper knows, whoever added them.
    ///
    /// # Errors
    /// Unavailable or DeadlineExceeded when the keeper does not answer.
    pub async fn list(&self) -> Result<Vec<KeptIo>> {
        match self.call(Start::WhenNeeded, "list", &Request::List).await {
            Ok(answer) => Ok(read::<List>(answer)?.containers),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// What has become of the output of all containers since the keeper's start.
    ///
    /// # Errors
    /// NotFound without a keeper; Unimplemented if it is of an older version; Unavailable or
    /// DeadlineExceeded when it does not answer.
    pub async fn totals(&self) -> Result<Totals> {
        read(self.call(Start::WhenNeeded, "totals", &Request::Totals).await?)
    }

    async fn call(&self, start: Start, what: &str, request: &Request) -> Result<Value> {
        let step = format!("{what} (log keeper)");
        points::before(&step)?;
        let span = tracing::debug_span!("keeper", name = what);
        let asked = self.0.ask(start, || request.clone());
        let done = limited(self.0.options.call_limit, &step, asked).instrument(span.clone()).await;
        if let Err(error) = &done {
            trace::failed(&span, error.message());
        }
        points::after(&step)?;
        done
    }

    fn is_drained(&self, id: &str) -> bool {
        lock(&self.0.kept).get(id).is_some_and(|held| held.is_drained)
    }
}

impl Inner {
    /// Sends a request until it has an answer. Ends early only when there is no keeper and
    /// none is needed: NotFound.
    async fn ask(self: &Arc<Self>, start: Start, request: impl Fn() -> Request) -> Result<Value> {
        loop {
            let link = self.connected(start).await?;
            if let Some(answer) = link.ask(&request()).await? {
                return answer;
            }
            debug!("the log keeper went away during a call");
        }
    }

    /// The connection; a new one, with all containers added, if there is none.
    async fn connected(self: &Arc<Self>, start: Start) -> Result<Arc<Link>> {
        let inner = self.clone();
        // A task of its own: a caller that goes away does not cut a restart in half.
        let connect = tokio::spawn(async move {
            let mut link = inner.link.lock().await;
            if let Some(link) = link.as_ref().filter(|link| link.is_alive()) {
                return Ok(link.clone());
            }
            *link = None;
            let new = inner.connect(start).await?;
            *link = Some(new.clone());
            inner.clone().reconnect_after(&new);
            Ok(new)
        });
        connect.await.unwrap_or_else(|error| Err(internal(format!("a bug in longshore: {error}"))))
    }

    async fn connect(&self, start: Start) -> Result<Arc<Link>> {
        let mut pause = RETRY_PAUSES.0;
        let end = Instant::now() + self.options.start_limit;
        loop {
            let error = match self.try_connect(start).await {
                Ok(link) => return Ok(link),
                // There is no keeper and no need for one, or its program cannot be run.
                Err(error) if error.is_not_found() => return Err(error),
                Err(error) if error.kind() == Kind::FailedPrecondition => {
                    return Err(error.with_kind(Kind::Unavailable));
                }
                Err(error) => error,
            };
            if Instant::now() > end {
                return Err(error.with_kind(Kind::Unavailable).context("reach the log keeper"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSES.1);
        }
    }

    async fn try_connect(&self, start: Start) -> Result<Arc<Link>> {
        let dial = || {
            let socket = self.socket.clone();
            blocking(move || daemon::connect(&socket))
        };
        let stream = match dial().await {
            Ok(stream) => stream,
            Err(_) if start == Start::WhenNeeded && lock(&self.kept).is_empty() => {
                return Err(crate::error::not_found("there is no log keeper and so no container"));
            }
            Err(_) => {
                self.start().await?;
                dial().await?
            }
        };
        let link = Link::new(stream).context(|| "connect to the log keeper")?;
        let hello = Request::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
        let hello: Hello = read(self.ask_once(&link, &hello).await?)?;
        debug!(pid = hello.pid, version = hello.version, protocol = hello.protocol, "the log keeper answers");
        self.upgrade(&link, &hello).await?;
        self.lacks_rates.store(hello.protocol < PROTOCOL_WITH_RATES, Ordering::Relaxed);
        self.add_again(&link).await?;
        Ok(Arc::new(link))
    }

    /// Lets a keeper of another program go on as this server's.
    ///
    /// # Errors
    /// Unavailable if it does, which ends the connection.
    async fn upgrade(&self, link: &Link, hello: &Hello) -> Result<()> {
        let own = succession::identity_of(&self.exe);
        if own.is_none() || own == hello.program || self.asked_to_succeed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let request = Request::Succeed { program: self.exe.clone() };
        match self.ask_once(link, &request).await {
            Ok(_) => Ok(()),
            Err(error) if link.is_alive() => {
                warn!(version = hello.version, %error, "the log keeper stays the program that it is");
                Ok(())
            }
            Err(error) => {
                info!(from = hello.version, to = env!("CARGO_PKG_VERSION"), "the log keeper is upgraded");
                Err(error)
            }
        }
    }

    /// Adds what a keeper that is gone had; one that is still there knows it already.
    async fn add_again(&self, link: &Link) -> Result<()> {
        let all: Vec<ContainerIo> = { lock(&self.kept).values_mut().map(Held::again).collect() };
        for io in all {
            let id = io.id.clone();
            match self.ask_once(link, &Request::Add { io }).await {
                Ok(_) => {}
                Err(error) if link.is_alive() => {
                    warn!(container = id, %error, "the log of a container could not be taken up again");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn ask_once(&self, link: &Link, request: &Request) -> Result<Value> {
        let gone = || Err(unavailable("the log keeper hung up"));
        limited(self.options.start_limit, "log keeper", async {
            link.ask(request).await?.unwrap_or_else(gone)
        })
        .await
    }

    /// Notices the end of `link` and connects again, also when nobody calls: containers
    /// fill their pipes meanwhile.
    fn reconnect_after(self: Arc<Self>, link: &Link) {
        let (closed, weak) = (link.closed(), Arc::downgrade(&self));
        tokio::spawn(async move {
            closed.cancelled().await;
            while let Some(inner) = Weak::upgrade(&weak).filter(|inner| inner.has_open()) {
                match inner.connected(Start::WhenNeeded).await {
                    Ok(_) => {
                        info!("the log keeper was gone and is back");
                        return;
                    }
                    Err(error) => warn!(%error, "container logs are not written: no log keeper"),
                }
                drop(inner);
                tokio::time::sleep(RETRY_PAUSES.1).await;
            }
        });
    }

    /// Whether a container was added whose output has not ended.
    fn has_open(&self) -> bool {
        lock(&self.kept).values().any(|held| !held.is_drained)
    }

    /// Starts the process and waits until it listens, or finds that another does.
    async fn start(&self) -> Result<()> {
        let last = *lock(&self.last_start);
        if let Some(last) = last {
            tokio::time::sleep_until(last + START_PAUSE).await;
        }
        *lock(&self.last_start) = Some(Instant::now());
        let mut command = Command::new(&self.exe);
        command.arg("keeper").arg("--socket").arg(&self.socket).args(&self.options.arguments);
        // It lives for long: nothing of the server's environment should.
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(own_stderr());
        let what = || format!("start the log keeper {:?}", self.exe);
        let mut child = command
            .spawn()
            .map_err(|error| Error::from(error).with_kind(Kind::FailedPrecondition))
            .context(what)?;
        let stdout = child.stdout.take();
        // It is reaped whenever it ends.
        tokio::spawn(async move { child.wait().await });
        let Some(mut stdout) = stdout else { return Ok(()) };
        // Either a line, or the end because another keeper is there.
        limited(self.options.start_limit, &what(), async {
            stdout.read(&mut [0; 16]).await.map(drop).context(what)
        })
        .await
    }
}

impl Held {
    fn open(io: ContainerIo) -> Result<Held> {
        let paths = [&io.stdout, &io.stderr].into_iter().flatten();
        let readers = paths.map(|path| fifo::open_reader(path, io.started).map(|(fd, _)| fd));
        let readers = readers.collect::<Result<Vec<_>>>()?;
        let stdin = io.stdin.as_deref().map(fifo::open_writer).transpose()?;
        Ok(Held { io, readers, stdin, stdin_closed: CancellationToken::new(), is_drained: false })
    }

    /// The parameters for a new keeper. Its reader comes late and cannot know whether a
    /// writer was there before: this one, which was in time, does.
    fn again(&mut self) -> ContainerIo {
        // A shim opens all before it closes one.
        self.io.started |= self.is_drained || self.readers.iter().any(fifo::is_hung_up);
        self.io.clone()
    }
}

/// The server's standard error where the keeper may hold it open for long: a journal's
/// socket, a file, a terminal. A pipe belongs to somebody who waits for its end.
fn own_stderr() -> Stdio {
    let kind = rustix::fs::fstat(std::io::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Socket | FileType::RegularFile | FileType::CharacterDevice) => Stdio::inherit(),
        _ => Stdio::null(),
    }
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|error| internal(format!("the log keeper's answer: {error}")))
}
