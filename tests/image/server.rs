//! Servers that misbehave: one that gives prepared answers, one that stops half-way.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What is answered to a request line, headers and body as bytes.
type Answer = dyn Fn(&str) -> Vec<u8> + Send + Sync;

/// A server that answers each connection once.
pub(crate) struct Canned {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Canned {
    pub(crate) async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), requests.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                tokio::spawn(async move {
                    let head = read_head(&mut stream).await;
                    if head.is_empty() {
                        return;
                    }
                    let line = head.lines().next().unwrap_or_default().to_owned();
                    seen.lock().expect("lock").push(head);
                    let _ = stream.write_all(&answer(&line)).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Canned { address, requests, task }
    }

    /// The heads of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("lock").clone()
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with a body.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 65536 {
        match stream.read_u8().await {
            // TLS begins so; it is not spoken here.
            Ok(0x16) if head.is_empty() => break,
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// In front of a registry: passes everything on, but stops in the middle of the body
/// of requests whose line holds a certain text, until it is opened.
pub(crate) struct Gate {
    pub(crate) address: String,
    /// Told when a body stands still.
    pub(crate) reached: Arc<Notify>,
    open: Arc<tokio::sync::Semaphore>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Gate {
    pub(crate) async fn start(upstream: &str, stops_at: &str, after_bytes: usize) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let (upstream, stops_at) = (upstream.to_owned(), stops_at.to_owned());
        let (reached, open) = (Arc::new(Notify::new()), Arc::new(tokio::sync::Semaphore::new(0)));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (told, gate, seen) = (reached.clone(), open.clone(), requests.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let pass = Pass {
                    upstream: upstream.clone(),
                    stops_at: stops_at.clone(),
                    after_bytes,
                    reached: told.clone(),
                    open: gate.clone(),
                    requests: seen.clone(),
                };
                tokio::spawn(pass.serve(client));
            }
        });
        Gate { address, reached, open, requests, task }
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.open.add_permits(1000);
    }

    /// How many requests held `text` in their line.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.requests.lock().expect("lock").iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Pass {
    upstream: String,
    stops_at: String,
    after_bytes: usize,
    reached: Arc<Notify>,
    open: Arc<tokio::sync::Semaphore>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Pass {
    async fn serve(self, mut client: TcpStream) {
        let head = read_head(&mut client).await;
        if head.is_empty() {
            return;
        }
        let line = head.lines().next().unwrap_or_default().to_owned();
        let stops = line.contains(&self.stops_at);
        self.requests.lock().expect("lock").push(line);
        // One request a connection, so that the end of the answer is its end.
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let mut upstream = TcpStream::connect(&self.upstream).await.expect("upstream");
        upstream.write_all(head.as_bytes()).await.expect("request");
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await.expect("answer");
        if stops {
            let middle = self.after_bytes.min(answer.len());
            let _ = client.write_all(&answer[..middle]).await;
            self.reached.notify_one();
            let Ok(permit) = self.open.acquire().await else { return };
            permit.forget();
            let _ = client.write_all(&answer[middle..]).await;
        } else {
            let _ = client.write_all(&answer).await;
        }
        let _ = client.shutdown().await;
    }
}
