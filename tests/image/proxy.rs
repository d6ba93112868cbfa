//! In front of a registry: passes everything on, except where a rule says what goes wrong.
//!
//! Bodies are passed on as they come, and a connection serves one request after the
//! other as long as nothing is wrong with it. Every request is remembered, with how
//! much of its answer's body was sent. A forward proxy (absolute URLs, CONNECT) it is
//! too: whatever host is asked for, its registry answers.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::http::{self, Head};

/// How long a slow server pauses between two pieces: the time of a server, not of a test.
const TICK: Duration = Duration::from_millis(40);
const BUFFER_BYTES: usize = 64 << 10;

/// What goes wrong with an answer. Several may be combined.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends, and nothing was answered.
    Close,
    /// This is answered instead, whatever it is, and the connection ends.
    Say(Vec<u8>),
    /// Nothing is answered until the proxy is opened.
    Silence,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The same, by a reset.
    Reset(usize),
    /// Nothing comes after so many bytes of the body until the proxy is opened.
    Stall(usize),
    /// The body ends after so many bytes, and its announced length is that.
    Shorten(usize),
    /// This byte of the body is another one.
    Flip(usize),
    /// The body has no end.
    Endless,
    /// So many bytes at a time come, with pauses.
    Slow(usize),
    /// A header of the answer has this value.
    Header(&'static str, String),
    /// The request's range is ignored.
    WithoutRange,
}

/// Which of the requests that a rule is about it changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    Always,
    /// The first so many.
    First(usize),
    /// One, counted from 0.
    Nth(usize),
}

struct Rule {
    text: String,
    when: When,
    faults: Vec<Fault>,
    requests: usize,
}

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: Head,
    /// How many bytes of the answer's body were sent.
    pub(crate) sent: usize,
}

pub(crate) struct Proxy {
    /// `127.0.0.1:port`
    pub(crate) address: String,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

struct Inner {
    upstream: String,
    /// Where its API is, if not under `/v2`.
    root: Option<String>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    reached: Notify,
    open: Semaphore,
}

impl Proxy {
    /// Starts one in front of the server at `upstream`.
    pub(crate) async fn start(upstream: &str) -> Proxy {
        Proxy::with(upstream, None).await
    }

    /// Starts one that has its API under `root` instead of `/v2`, and nothing else.
    pub(crate) async fn under(upstream: &str, root: &str) -> Proxy {
        Proxy::with(upstream, Some(root.to_owned())).await
    }

    /// Starts one that stops in the middle of the bodies of requests whose line holds
    /// `text`, until it is opened.
    pub(crate) async fn that_stops(upstream: &str, text: &str, after_bytes: usize) -> Proxy {
        let proxy = Proxy::start(upstream).await;
        proxy.when(text, When::Always, [Fault::Stall(after_bytes)]);
        proxy
    }

    async fn with(upstream: &str, root: Option<String>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let inner = Arc::new(Inner {
            upstream: upstream.to_owned(),
            root,
            rules: Mutex::default(),
            seen: Mutex::default(),
            reached: Notify::new(),
            open: Semaphore::new(0),
        });
        let shared = inner.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(shared.clone(), client));
            }
        });
        Proxy { address, inner, task }
    }

    /// The name of a repository's tag here.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// From now on `faults` happen to requests whose line holds `text`. Where several
    /// rules are about a request, the first that changes it counts.
    pub(crate) fn when(&self, text: &str, when: When, faults: impl Into<Vec<Fault>>) {
        let rule = Rule { text: text.to_owned(), when, faults: faults.into(), requests: 0 };
        self.inner.rules.lock().expect("lock").push(rule);
    }

    /// Lets through whatever stands still, and everything from now on.
    pub(crate) fn open(&self) {
        self.inner.open.add_permits(1000);
    }

    /// Waits until an answer stands still.
    pub(crate) async fn reached(&self) {
        self.inner.reached.notified().await;
    }

    /// The requests whose line holds `text`, oldest first.
    pub(crate) fn seen(&self, text: &str) -> Vec<Seen> {
        let seen = self.inner.seen.lock().expect("lock");
        seen.iter().filter(|seen| seen.head.line.contains(text)).cloned().collect()
    }

    /// How many requests held `text` in their line.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.seen(text).len()
    }

    /// All that clients told it.
    pub(crate) fn told(&self) -> String {
        self.seen("").iter().map(|seen| seen.head.text()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    /// Remembers a request; gives its number, and what is to go wrong.
    fn note(&self, head: &Head) -> (usize, Vec<Fault>) {
        let mut seen = self.seen.lock().expect("lock");
        seen.push(Seen { head: head.clone(), sent: 0 });
        for rule in self.rules.lock().expect("lock").iter_mut() {
            if !head.line.contains(&rule.text) {
                continue;
            }
            let number = rule.requests;
            rule.requests += 1;
            let applies = match rule.when {
                When::Always => true,
                When::First(count) => number < count,
                When::Nth(nth) => number == nth,
            };
            if applies {
                return (seen.len() - 1, rule.faults.clone());
            }
        }
        (seen.len() - 1, Vec::new())
    }

    async fn wait(&self) {
        self.reached.notify_one();
        self.open.acquire().await.expect("never closed").forget();
    }

    /// The request as the server behind gets it; none if that has nothing of the kind.
    fn onward(&self, head: &Head) -> Option<Head> {
        let mut head = head.clone();
        let target = head.target().to_owned();
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => &target,
        };
        let path = match &self.root {
            Some(root) => format!("/v2{}", path.strip_prefix(root.as_str())?),
            None => path.to_owned(),
        };
        head.line = head.line.replacen(&target, &path, 1);
        // So that the end of the answer is that of the connection.
        head.set("Connection", "close");
        Some(head)
    }
}

async fn serve(inner: Arc<Inner>, client: TcpStream) {
    let mut client = BufReader::new(client);
    while let Some(head) = Head::read(&mut client).await {
        let Some(body) = http::body(&head, &mut client).await else { return };
        let (number, faults) = inner.note(&head);
        let exchange = Exchange { inner: &inner, client: &mut client, number, faults };
        match exchange.run(head, body).await {
            Ok(true) => {}
            Ok(false) => break,
            // As it is: a reset stays one.
            Err(_) => return,
        }
    }
    let _ = client.shutdown().await;
}

/// One request and its answer.
struct Exchange<'a> {
    inner: &'a Inner,
    client: &'a mut BufReader<TcpStream>,
    number: usize,
    faults: Vec<Fault>,
}

impl Exchange<'_> {
    /// Whether the connection serves more.
    async fn run(mut self, mut head: Head, body: Vec<u8>) -> io::Result<bool> {
        for fault in &self.faults {
            match fault {
                Fault::Close => return Ok(false),
                Fault::Say(answer) => {
                    self.client.write_all(answer).await?;
                    return Ok(false);
                }
                Fault::Silence => self.inner.wait().await,
                Fault::WithoutRange => head.remove("range"),
                _ => {}
            }
        }
        let mut upstream = BufReader::new(TcpStream::connect(&self.inner.upstream).await?);
        if head.line.starts_with("CONNECT ") {
            self.client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            tokio::io::copy_bidirectional(self.client, &mut upstream).await?;
            return Ok(false);
        }
        let Some(onward) = self.inner.onward(&head) else {
            self.client.write_all(&http::answer("404 Not Found", &[], b"")).await?;
            return Ok(false);
        };
        upstream.write_all(&[onward.to_bytes(), body].concat()).await?;
        let mut answer = Head::read(&mut upstream).await.ok_or(io::ErrorKind::UnexpectedEof)?;
        answer.remove("connection");
        let has_body = !head.line.starts_with("HEAD ") && !matches!(answer.status(), 204 | 304);
        let length = if has_body { answer.content_length() } else { Some(0) };
        for fault in &self.faults {
            match fault {
                Fault::Header(name, value) => answer.set(name, value),
                Fault::Shorten(bytes) => answer.set("Content-Length", &bytes.to_string()),
                Fault::Endless => {
                    answer.remove("content-length");
                    answer.set("Transfer-Encoding", "chunked");
                }
                _ => {}
            }
        }
        self.client.write_all(&answer.to_bytes()).await?;
        if !has_body {
            return Ok(true);
        }
        self.pour(&mut upstream, length).await
    }

    /// Passes the body on. Whether the connection serves more.
    async fn pour(&mut self, upstream: &mut BufReader<TcpStream>, length: Option<usize>) -> io::Result<bool> {
        let all = length.unwrap_or(usize::MAX);
        let mut at = 0;
        for fault in self.faults.clone() {
            match fault {
                Fault::Cut(end) => {
                    self.copy(upstream, &mut at, end.min(all)).await?;
                    return Ok(false);
                }
                Fault::Reset(end) => {
                    self.copy(upstream, &mut at, end.min(all)).await?;
                    let nothing = Some(Duration::ZERO);
                    rustix::net::sockopt::set_socket_linger(self.client.get_ref(), nothing)?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Fault::Shorten(end) => {
                    self.copy(upstream, &mut at, end.min(all)).await?;
                    return Ok(true);
                }
                Fault::Stall(end) => {
                    self.copy(upstream, &mut at, end.min(all)).await?;
                    self.inner.wait().await;
                }
                // Until the client has enough of it.
                Fault::Endless => loop {
                    let chunk = [b"2000\r\n".as_slice(), &[b'x'; 0x2000], b"\r\n"].concat();
                    self.client.write_all(&chunk).await?;
                    self.sent(0x2000);
                },
                _ => {}
            }
        }
        self.copy(upstream, &mut at, all).await?;
        Ok(length.is_some())
    }

    async fn copy(
        &mut self,
        upstream: &mut BufReader<TcpStream>,
        at: &mut usize,
        end: usize,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let pace = self.faults.iter().find_map(|fault| match fault {
            Fault::Slow(bytes) => Some(*bytes),
            _ => None,
        });
        while *at < end {
            let most = (end - *at).min(pace.unwrap_or(BUFFER_BYTES)).min(BUFFER_BYTES);
            let count = upstream.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Ok(());
            }
            for fault in &self.faults {
                match fault {
                    Fault::Flip(place) if (*at..*at + count).contains(place) => buffer[*place - *at] ^= 1,
                    _ => {}
                }
            }
            self.client.write_all(&buffer[..count]).await?;
            *at += count;
            self.sent(count);
            if pace.is_some() {
                tokio::time::sleep(TICK).await;
            }
        }
        Ok(())
    }

    fn sent(&self, bytes: usize) {
        self.inner.seen.lock().expect("lock")[self.number].sent += bytes;
    }
}
