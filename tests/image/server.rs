//! A server that gives prepared answers.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::Head;

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
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    // A connection without a request says nothing.
                    let Some(head) = Head::read(&mut stream).await else { return };
                    seen.lock().expect("lock").push(head.text());
                    let _ = stream.write_all(&answer(&head.line)).await;
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
