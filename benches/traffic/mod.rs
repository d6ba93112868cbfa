//! What the clients of the streaming bench send, and how they see that it has arrived: the
//! same client for both servers, which has little to do itself. What it sends is made
//! beforehand, and what it gets is compared with that.

use std::future::Future;

use anyhow::{Context, ensure};
use longshore::proto::cri::{ExecRequest, PortForwardRequest};
use tokio::net::TcpListener;

use super::harness::spdy::{self, Event, Reader, Spdy, Writer};
use super::harness::{Container, Pod};

/// A block, which begins with its number.
const BLOCK_BYTES: usize = 1 << 20;
/// Where that stands in the frames of a block: behind the head of the first one.
const NUMBER: std::ops::Range<usize> = 8..16;

/// The port of the pod's server, for the pod has a network of its own.
pub(crate) const PORT: u16 = 7000;

/// Runs a command without input, as a client that is told of nothing but its end; from the
/// call of Exec on.
pub(crate) async fn exec(container: &Container, command: &[&str]) -> anyhow::Result<()> {
    let mut client = open_exec(container, command, false).await?;
    let error = client.error;
    let status = client.spdy.reader.rest(error, |_| Ok(())).await?;
    ensure_success(&status)
}

/// Sends so many blocks through `cat` in a container.
pub(crate) async fn cat(container: &Container, blocks: u64) -> anyhow::Result<()> {
    let Exec { spdy: Spdy { mut reader, mut writer, .. }, error, stdin, stdout } =
        open_exec(container, &["cat"], true).await?;
    let sending = async move {
        send(&mut writer, stdin, blocks).await?;
        Ok(writer)
    };
    let receiving = async {
        let mut expected = Expected::new();
        let status =
            reader.rest(error, |(id, piece)| if id == stdout { expected.take(piece) } else { Ok(()) });
        ensure_success(&status.await?)?;
        expected.end(blocks)
    };
    both(sending, receiving).await
}

/// Sends so many blocks to the server inside a pod, which gives them back.
pub(crate) async fn forward(pod: &Pod, blocks: u64) -> anyhow::Result<()> {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![i32::from(PORT)] };
    let url = pod.cri.runtime().port_forward(request).await?.into_inner().url;
    let Spdy { mut reader, mut writer, .. } = Spdy::open(&url, &["portforward.k8s.io"]).await?;
    let port = PORT.to_string();
    let mut streams = [0; 2];
    for (id, kind) in streams.iter_mut().zip(["error", "data"]) {
        *id = writer.open(&[("streamtype", kind), ("port", &port), ("requestid", "0")]).await?;
    }
    let [error, data] = streams;
    let sending = async move {
        send(&mut writer, data, blocks).await?;
        Ok(writer)
    };
    let receiving = async {
        let mut expected = Expected::new();
        let mut failure = Vec::new();
        while expected.bytes < blocks * BLOCK_BYTES as u64 {
            match reader.next().await?.context("the connection has ended")? {
                Event::Data { id, piece, .. } if id == data => expected.take(&piece)?,
                Event::Data { id, piece, .. } if id == error => failure.extend_from_slice(&piece),
                _ => {}
            }
            ensure!(failure.is_empty(), "{}", String::from_utf8_lossy(&failure));
        }
        expected.end(blocks)
    };
    both(sending, receiving).await
}

/// A server inside the pod that gives back what it gets.
pub(crate) async fn echo(pod: &Pod) -> anyhow::Result<()> {
    let listener: TcpListener = pod.listen(([127, 0, 0, 1], PORT).into()).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (from, mut to) = stream.into_split();
                let mut from = tokio::io::BufReader::with_capacity(512 << 10, from);
                let _ = tokio::io::copy_buf(&mut from, &mut to).await;
            });
        }
    });
    Ok(())
}

/// A client whose command runs.
struct Exec {
    spdy: Spdy,
    error: u32,
    stdin: u32,
    stdout: u32,
}

async fn open_exec(container: &Container, command: &[&str], stdin: bool) -> anyhow::Result<Exec> {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let url = container.cri.runtime().exec(request).await?.into_inner().url;
    let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"]).await?;
    let mut client = [0; 4];
    for (id, kind) in client.iter_mut().zip(["error", "stdin", "stdout", "stderr"]) {
        if kind != "stdin" || stdin {
            *id = spdy.writer.open(&[("streamtype", kind)]).await?;
        }
    }
    let [error, stdin, stdout, _] = client;
    Ok(Exec { spdy, error, stdin, stdout })
}

fn ensure_success(status: &[u8]) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(status);
    ensure!(text.contains(r#""status":"Success""#), "the command failed: {text:?}");
    Ok(())
}

/// Sends blocks and the end of the stream.
async fn send(writer: &mut Writer, id: u32, blocks: u64) -> anyhow::Result<()> {
    let mut frames = spdy::frames(id, &block());
    for number in 0..blocks {
        frames[NUMBER].copy_from_slice(&number.to_be_bytes());
        writer.send_frames(&frames).await?;
    }
    Ok(writer.finish(id).await?)
}

/// Does both at the same time, until the first fails or all is received. What the sender
/// gives is kept until then.
async fn both<T: Send + 'static>(
    sending: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    receiving: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut sending = tokio::spawn(async move {
        match sending.await {
            Err(error) => error,
            // Not dropped before the end: that would end the connection.
            Ok(_kept) => std::future::pending().await,
        }
    });
    let ended = tokio::select! {
        received = receiving => received,
        Ok(error) = &mut sending => Err(error),
    };
    sending.abort();
    ended
}

impl Reader {
    /// Hands over the data of other streams until the stream `error` ends, and gives its own.
    async fn rest(
        &mut self,
        error: u32,
        mut take: impl FnMut((u32, &[u8])) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<u8>> {
        let mut status = Vec::new();
        while let Some(event) = self.next().await? {
            match event {
                Event::Data { id, piece, fin } if id == error => {
                    status.extend_from_slice(&piece);
                    if fin {
                        break;
                    }
                }
                Event::Data { id, piece, .. } => take((id, &piece))?,
                Event::Reset { id } if id == error => break,
                Event::Reset { .. } => {}
            }
        }
        Ok(status)
    }
}

/// A block, but for its number: bytes without a pattern.
fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    });
    words.flatten().take(BLOCK_BYTES).collect()
}

/// What is still to come.
struct Expected {
    block: Vec<u8>,
    bytes: u64,
}

impl Expected {
    fn new() -> Expected {
        Expected { block: Self::numbered(block(), 0), bytes: 0 }
    }

    fn numbered(mut block: Vec<u8>, number: u64) -> Vec<u8> {
        block[..8].copy_from_slice(&number.to_be_bytes());
        block
    }

    /// Compares what has come with what was sent.
    fn take(&mut self, mut piece: &[u8]) -> anyhow::Result<()> {
        while !piece.is_empty() {
            let at = (self.bytes % BLOCK_BYTES as u64) as usize;
            let (now, later) = piece.split_at(piece.len().min(BLOCK_BYTES - at));
            ensure!(now == &self.block[at..at + now.len()], "something else came after {} bytes", self.bytes);
            self.bytes += now.len() as u64;
            if at + now.len() == BLOCK_BYTES {
                let number = self.bytes / BLOCK_BYTES as u64;
                self.block = Self::numbered(std::mem::take(&mut self.block), number);
            }
            piece = later;
        }
        Ok(())
    }

    fn end(&self, blocks: u64) -> anyhow::Result<()> {
        let wanted = blocks * BLOCK_BYTES as u64;
        ensure!(self.bytes == wanted, "{} bytes came, not {wanted}", self.bytes);
        Ok(())
    }
}
