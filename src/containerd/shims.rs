//! Shims that containerd has lost.
//!
//! When a client goes away while its call makes or deletes a task, containerd gives the
//! call up half-way, and a shim may be left: a process that serves nothing, in no list of
//! containerd's, which nobody will ever end (seen with 1.6, 1.7 and 2.3; containerd's own
//! log calls it "might be leaked"). A server that is killed is such a client.
//!
//! Such a shim still has its socket, whose name follows from what it serves. Over it, it is
//! told what containerd failed to tell it: to delete its task, and to shut down. A shim
//! that still serves another container refuses to shut down. One whose bundle containerd
//! has removed can delete nothing any more, and one that hangs answers nothing: these are
//! killed if they have no processes.
//!
//! A shim that is not lost may serve a container that is: containerd was killed while the shim
//! made it. Once the pod of both has ended, all that the shim still has is ended with it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::{debug, info, warn};

use super::Containerd;
use crate::error::{Context, Result, deadline};
use crate::flow;
use crate::sys::processes::{self, Process};
use crate::sys::{cgroup, process};

/// Where shims have their sockets, whatever containerd's own folders are.
const SOCKETS: &str = "/run/containerd/s";
/// Whom else a shim serves.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    /// Maybe somebody who runs.
    Possible,
    /// Nobody: what it has besides, containerd has lost.
    Lost,
}

/// How long a shim may take to end.
const LIMIT: Duration = Duration::from_secs(10);
/// How long one that has nothing to do may take before it is looked for what it has.
const GRACE: Duration = Duration::from_secs(2);
/// How long one that was killed may take.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How often a task that is about to die is tried to be deleted.
const DELETE_PAUSE: Duration = Duration::from_millis(50);
const DELETE_TRIES: usize = 10;
/// The versions of the shims' service.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];
/// gRPC codes that ttrpc uses.
const NOT_FOUND: i32 = 5;
const UNIMPLEMENTED: i32 = 12;
/// The ttrpc message type of a request.
const REQUEST: u8 = 1;
/// Bytes before each ttrpc message: length, stream (both big endian), type, flags.
const HEADER_BYTES: usize = 10;
/// No answer to what is asked here is longer.
const ANSWER_BYTES_MAX: usize = 1 << 16;
const SIGKILL: u32 = 9;

/// A ttrpc request.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    timeout_ns: i64,
}

/// A ttrpc answer.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// How a ttrpc call went.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What a shim says of itself.
#[derive(Clone, PartialEq, Message)]
struct Connected {
    #[prost(uint32, tag = "1")]
    shim_pid: u32,
}

/// The shim service's Kill; Connect, Delete and Shutdown take its first field alone.
#[derive(Clone, PartialEq, Message)]
struct Kill {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint32, tag = "3")]
    signal: u32,
    #[prost(bool, tag = "4")]
    all: bool,
}

impl Containerd {
    /// Ends the task `id` and its shim, if there is a shim that containerd has no task of.
    /// Costs next to nothing where there is none.
    ///
    /// # Errors
    /// Those of containerd; DeadlineExceeded if the shim goes on.
    pub async fn end_lost_shim(&self, id: &str) -> Result<()> {
        let Some(path) = self.shim_socket(id) else { return Ok(()) };
        match self.process(id, "").await {
            Err(error) if error.is_not_found() => self.end_shim(id, &path, Others::Possible).await.map(drop),
            other => other.map(drop),
        }
    }

    /// Ends the shim of a pod whose tasks are deleted, if there is one still: also one that keeps
    /// a task which its OCI runtime has forgotten, or a container that containerd has lost, which
    /// may still run. Gives those containers: their cgroups may be left.
    ///
    /// # Errors
    /// DeadlineExceeded if the shim goes on.
    pub async fn end_empty_shim(&self, id: &str) -> Result<Vec<String>> {
        match self.shim_socket(id) {
            Some(path) => self.end_shim(id, &path, Others::Lost).await,
            None => Ok(Vec::new()),
        }
    }

    async fn end_shim(&self, id: &str, path: &Path, others: Others) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        let talked = tokio::time::timeout(LIMIT, shut_down(path, id, others, &mut lost)).await;
        if talked.is_err() {
            self.kill_hung_shim(id, others, &mut lost).await?;
        }
        // One that was killed may close its connections before it stops to listen.
        let end = Instant::now() + KILL_LIMIT;
        let listens = async || UnixStream::connect(path).await.is_ok();
        while listens().await {
            if Instant::now() > end {
                let left = || format!("end the shim of {id}, which containerd has lost");
                return match talked {
                    Ok(Err(error)) => Err(error).context(left),
                    Ok(Ok(())) => Err(deadline("it goes on")).context(left),
                    Err(_) => Err(deadline("it does not end")).context(left),
                };
            }
            tokio::time::sleep(DELETE_PAUSE).await;
        }
        // What is left is a name.
        let _ = std::fs::remove_file(path);
        info!(shim = id, "ended a shim that containerd had lost");
        Ok(lost)
    }

    /// Kills the shim of `id`, which does not answer, and waits until it is gone.
    async fn kill_hung_shim(&self, id: &str, others: Others, lost: &mut Vec<String>) -> Result<()> {
        let (address, namespace, name) = (self.address.clone(), self.namespace.clone(), id.to_owned());
        let shims = flow::blocking(move || {
            let is_it = |process: &Process| {
                process.program().starts_with("containerd-shim")
                    && process.flag("id") == Some(&name)
                    && process.flag("namespace") == Some(&namespace)
                    && process.flag("address").is_some_and(|it| is_same_file(Path::new(it), &address))
            };
            Ok(processes::all().into_iter().filter(is_it).map(|process| process.pid).collect::<Vec<_>>())
        })
        .await?;
        for pid in shims {
            warn!(
                shim = id,
                pid, "a shim that containerd has lost hangs and is killed, if nobody needs its processes"
            );
            let end = Instant::now() + KILL_LIMIT;
            loop {
                // What was below those that are dead now is the shim's own.
                if others == Others::Lost {
                    kill_children(pid, id, lost);
                }
                kill_idle(pid, id);
                if process::parent_of(pid).is_none() || Instant::now() > end {
                    break;
                }
                tokio::time::sleep(DELETE_PAUSE).await;
            }
        }
        Ok(())
    }

    /// The socket of the shim of a task, as long as it is there.
    fn shim_socket(&self, id: &str) -> Option<PathBuf> {
        let real = self.address.canonicalize().ok();
        let named = [Some(&*self.address), real.as_deref()].into_iter().flatten();
        named.map(|address| socket(address, &self.namespace, id)).find(|path| path.exists())
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// The socket of a shim is named by a hash of what it serves.
fn socket(address: &Path, namespace: &str, id: &str) -> PathBuf {
    let hash = Sha256::digest(address.join(namespace).join(id).as_os_str().as_encoded_bytes());
    Path::new(SOCKETS).join(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Deletes the task, asks the shim to end, and waits for that.
async fn shut_down(path: &Path, id: &str, others: Others, lost: &mut Vec<String>) -> Result<()> {
    let stream = UnixStream::connect(path).await.context(|| format!("connect to {path:?}"))?;
    let mut shim = Client { stream, calls: 0 };
    let task = Kill { id: id.to_owned(), ..Kill::default() }.encode_to_vec();
    let talk = async {
        for service in SERVICES {
            let (code, connected) = shim.call(service, "Connect", &task).await?;
            if code == UNIMPLEMENTED {
                continue;
            }
            let pid = Connected::decode(connected.as_slice()).map_err(std::io::Error::other)?.shim_pid;
            if !shim.delete(service, id).await? {
                kill_idle(pid, id);
            }
            shim.call(service, "Shutdown", &task).await?;
            if others == Others::Lost && !shim.ends_soon().await? {
                kill_children(pid, id, lost);
                for other in lost.iter() {
                    shim.delete(service, other).await?;
                }
                kill_children(pid, id, lost);
                shim.call(service, "Shutdown", &task).await?;
                if !shim.ends_soon().await? {
                    kill_idle(pid, id);
                }
            }
            shim.ended().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    match talk.await {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            Ok(())
        }
        other => other.context(|| format!("talk to {path:?}")),
    }
}

/// Kills the shim of `id` unless it has processes.
fn kill_idle(pid: u32, id: &str) {
    if !is_shim_of(pid, id) || !process::children(pid).is_empty() {
        return;
    }
    if let Err(error) = process::kill(pid) {
        debug!(shim = id, pid, %error, "a lost shim was not killed");
    }
}

/// Kills what the shim of `id` runs, and adds the containers of that, as far as it is seen, to
/// `lost`.
fn kill_children(pid: u32, id: &str, lost: &mut Vec<String>) {
    for child in process::children(pid).into_iter().filter(|_| is_shim_of(pid, id)) {
        let container = cgroup::container_of(child);
        warn!(shim = id, pid = child, container, "a process that containerd has lost is killed");
        cgroup::thaw(child);
        if let Err(error) = process::kill(child) {
            debug!(shim = id, pid = child, %error, "a lost process was not killed");
        }
        lost.extend(container.filter(|container| !lost.contains(container)));
    }
}

fn is_shim_of(pid: u32, id: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|argument| argument == id.as_bytes())
}

/// A ttrpc connection.
struct Client {
    stream: UnixStream,
    calls: u32,
}

impl Client {
    /// Waits for the end of the shim, with which its connections end.
    async fn ended(&mut self) -> std::io::Result<()> {
        while self.stream.read(&mut [0; 256]).await? > 0 {}
        Ok(())
    }

    async fn ends_soon(&mut self) -> std::io::Result<bool> {
        match tokio::time::timeout(GRACE, self.ended()).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Kills a task and deletes it; false if it is not gone then.
    async fn delete(&mut self, service: &str, id: &str) -> std::io::Result<bool> {
        let kill = Kill { id: id.to_owned(), signal: SIGKILL, all: true }.encode_to_vec();
        let task = Kill { id: id.to_owned(), ..Kill::default() }.encode_to_vec();
        self.call(service, "Kill", &kill).await?;
        for _ in 0..DELETE_TRIES {
            if matches!(self.call(service, "Delete", &task).await?.0, 0 | NOT_FOUND) {
                return Ok(true);
            }
            tokio::time::sleep(DELETE_PAUSE).await;
        }
        Ok(false)
    }

    /// Makes a call and gives its gRPC code and answer.
    async fn call(&mut self, service: &str, method: &str, payload: &[u8]) -> std::io::Result<(i32, Vec<u8>)> {
        self.calls += 1;
        // Clients have the odd streams.
        self.stream.write_all(&request(2 * self.calls - 1, service, method, payload)).await?;
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > ANSWER_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        let answer = Answer::decode(body.as_slice()).map_err(std::io::Error::other)?;
        let status = answer.status.unwrap_or_default();
        debug!(method, code = status.code, message = status.message, "a lost shim answers");
        Ok((status.code, answer.payload))
    }
}

fn request(stream: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    let message = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: payload.to_vec(),
        timeout_ns: i64::try_from(LIMIT.as_nanos()).unwrap_or(i64::MAX),
    };
    let body = message.encode_to_vec();
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend([REQUEST, 0]);
    frame.extend(body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_the_name_that_shims_give_it() {
        // What `containerd-shim-runc-v2 start` printed for this address, namespace and id.
        let path = socket(Path::new("/run/containerd/containerd.sock"), "default", "a");
        assert_eq!(
            path.to_str(),
            Some("/run/containerd/s/82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6")
        );
    }

    #[test]
    fn a_request_is_framed() {
        let frame = request(3, SERVICES[0], "Kill", b"payload");
        let (header, body) = frame.split_at(HEADER_BYTES);
        assert_eq!(header[..4], u32::try_from(body.len()).expect("short").to_be_bytes());
        assert_eq!(header[4..], [0, 0, 0, 3, REQUEST, 0]);
        let request = Request::decode(body).expect("a request");
        assert_eq!((request.service.as_str(), request.method.as_str()), (SERVICES[0], "Kill"));
        assert_eq!(request.payload, b"payload");
    }

    /// A shim in whose place the test answers: the task is still there at first.
    #[tokio::test]
    async fn a_lost_task_is_killed_deleted_and_its_shim_ended() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("shim");
        let listener = tokio::net::UnixListener::bind(&path).expect("socket");
        let shim = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut asked = Vec::new();
            for code in [UNIMPLEMENTED, 0, 0, 9, 0, 0] {
                let mut header = [0; HEADER_BYTES];
                stream.read_exact(&mut header).await.expect("a header");
                let length = u32::from_be_bytes(header[..4].try_into().expect("four"));
                let mut body = vec![0; length as usize];
                stream.read_exact(&mut body).await.expect("a body");
                asked.push(Request::decode(body.as_slice()).expect("a request").method);
                let status = (code != 0).then(|| Status { code, message: String::new() });
                let body = Answer { status, payload: Vec::new() }.encode_to_vec();
                header[..4].copy_from_slice(&u32::try_from(body.len()).expect("short").to_be_bytes());
                stream.write_all(&header).await.expect("written");
                stream.write_all(&body).await.expect("written");
            }
            asked
        });
        shut_down(&path, "abc", Others::Possible, &mut Vec::new()).await.expect("it ends");
        let asked = shim.await.expect("no panic");
        assert_eq!(asked, ["Connect", "Connect", "Kill", "Delete", "Delete", "Shutdown"]);
    }
}
