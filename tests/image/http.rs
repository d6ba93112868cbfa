//! HTTP/1.1, as much of it as the servers of these tests need.

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The most bytes of a head that is read.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// How TLS begins.
const HANDSHAKE: u8 = 0x16;

/// The first line and the headers of a request or an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads one; none where the connection ends before its last line, or begins with
    /// TLS, which is not spoken here.
    pub(crate) async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Head> {
        if stream.fill_buf().await.ok()?.first() == Some(&HANDSHAKE) {
            return None;
        }
        let mut stream = stream.take(HEAD_BYTES_MAX);
        let mut head = Head { line: line(&mut stream).await?, headers: Vec::new() };
        loop {
            let line = line(&mut stream).await?;
            let Some((name, value)) = line.split_once(':') else { return Some(head) };
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Takes a header away.
    pub(crate) fn remove(&mut self, name: &str) {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// Gives a header another value.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// What a request asks for: path and query, or all of a URL where it was sent to a proxy.
    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// The number of an answer's status.
    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// How many bytes follow, if that is told.
    pub(crate) fn content_length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }

    /// As it is sent.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// All of it as text, for a look at what was told to a server.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.to_bytes()).into_owned()
    }
}

async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.ok()?;
    let line = line.strip_suffix(b"\n")?;
    Some(String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned())
}

/// The body that follows a request's head.
pub(crate) async fn body(head: &Head, stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut body = vec![0; head.content_length().unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// An answer with a body, after which the connection ends.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = Head { line: format!("HTTP/1.1 {status}"), headers: Vec::new() };
    head.set("Connection", "close");
    head.set("Content-Length", &body.len().to_string());
    for (name, value) in headers {
        head.set(name, value);
    }
    [head.to_bytes().as_slice(), body].concat()
}
