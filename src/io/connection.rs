//! A client of the keeper, as the keeper sees it: requests in, answers out, never waiting.
//!
//! A client may be of another version, broken or slow: what it sends and what it leaves
//! unread has a bound, and who passes one is cut off. No other client notices.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use tracing::warn;

use super::protocol::{self, REQUEST_BYTES_MAX, Request};
use crate::error::{Result, exhausted};
use crate::sys::socket;

/// Unanswered requests at most.
const REQUESTS_MAX: usize = 4096;
/// Answers that are not read at most.
const UNREAD_BYTES_MAX: usize = 16 << 20;
/// Requests read at a time.
const READ_BYTES: usize = 16 << 10;

/// A connection to a client.
pub(super) struct Connection {
    stream: UnixStream,
    /// The beginning of a request.
    input: Vec<u8>,
    /// Answers that are not written yet.
    output: Vec<u8>,
    unanswered: usize,
    is_broken: bool,
}

impl Connection {
    /// The next client that waits at `listener`, `None` if there is none. Those of other
    /// users than root and the keeper's own are turned away.
    ///
    /// # Errors
    /// Those of the system: no descriptors.
    pub(super) fn accept(listener: &UnixListener) -> std::io::Result<Option<Connection>> {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => return Err(error),
                },
            };
            let peer = socket::peer(&stream)?;
            if peer.uid != own && peer.uid != 0 {
                warn!(uid = peer.uid, "a client of another user is turned away");
                continue;
            }
            stream.set_nonblocking(true)?;
            let (input, output) = (Vec::new(), Vec::new());
            return Ok(Some(Connection { stream, input, output, unanswered: 0, is_broken: false }));
        }
    }

    /// Whether it is of no use any more.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether there is something to be written.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Writes answers and reads requests, as far as both go. Each has a number, under
    /// which it is to be answered, and what is asked for, or why that is not done.
    pub(super) fn serve(&mut self) -> Vec<(u64, Result<Request>)> {
        self.write();
        let mut requests = Vec::new();
        let whole = self.read();
        for line in whole.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let (seq, request) = match protocol::read_request(line) {
                Ok(numbered) => numbered,
                Err(error) => {
                    warn!(%error, "a client of the log keeper is cut off");
                    self.is_broken = true;
                    break;
                }
            };
            self.unanswered += 1;
            let is_over = self.unanswered > REQUESTS_MAX;
            let over = || exhausted(format!("more than {REQUESTS_MAX} requests at a time"));
            requests.push((seq, if is_over { Err(over()) } else { request }));
        }
        requests
    }

    /// Gives the connection away for something else than requests and answers: only right
    /// after its last request, with nothing else unanswered.
    ///
    /// # Errors
    /// The connection, if it does not stand so.
    pub(super) fn into_stream(self) -> Result<UnixStream, Connection> {
        if self.unanswered == 1 && self.output.is_empty() { Ok(self.stream) } else { Err(self) }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, seq: u64, result: Result<serde_json::Value>) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.output.extend_from_slice(&protocol::answer_line(seq, result));
        self.write();
    }

    /// The whole lines that have come.
    fn read(&mut self) -> Vec<u8> {
        let mut piece = [0; READ_BYTES];
        while self.input.len() <= REQUEST_BYTES_MAX {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    self.is_broken = true;
                    break;
                }
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_broken |= error.kind() != ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        let end = memchr::memrchr(b'\n', &self.input).map_or(0, |at| at + 1);
        let rest = self.input.split_off(end);
        if rest.len() > REQUEST_BYTES_MAX {
            warn!("a client of the log keeper is cut off: a request is too long");
            self.is_broken = true;
        }
        std::mem::replace(&mut self.input, rest)
    }

    /// Writes what can be written without waiting.
    fn write(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_broken |= error.kind() != ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        self.is_broken |= self.output.len() > UNREAD_BYTES_MAX;
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keeper's end and the client's.
    fn pair() -> (Connection, UnixStream) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("it listens");
        listener.set_nonblocking(true).expect("set");
        assert!(Connection::accept(&listener).expect("nobody is there").is_none());
        let client = UnixStream::connect(&path).expect("it listens");
        client.set_nonblocking(true).expect("set");
        (Connection::accept(&listener).expect("accepted").expect("somebody is there"), client)
    }

    #[test]
    fn requests_may_come_in_pieces() {
        let (mut connection, mut client) = pair();
        let line = protocol::request_line(7, &Request::List).expect("it fits");
        for byte in &line[..line.len() - 1] {
            client.write_all(&[*byte]).expect("written");
            assert!(connection.serve().is_empty());
        }
        client.write_all(b"\n").expect("written");
        client.write_all(&line).expect("written");
        assert_eq!(connection.serve(), [(7, Ok(Request::List)), (7, Ok(Request::List))]);
        connection.answer(7, Ok(serde_json::json!({})));
        let mut answer = [0; 64];
        let count = client.read(&mut answer).expect("answered");
        assert_eq!(&answer[..count], b"{\"seq\":7,\"ok\":{}}\n");
        assert!(!connection.is_broken());
    }

    #[test]
    fn a_request_that_is_whole_counts_although_its_client_has_gone() {
        let (mut connection, mut client) = pair();
        client.write_all(b"{\"seq\":1,\"do\":\"list\"}\n{\"seq\":2,\"do\":\"li").expect("written");
        drop(client);
        assert_eq!(connection.serve(), [(1, Ok(Request::List))]);
        assert!(connection.is_broken());
    }

    #[test]
    fn nothing_after_a_malformed_request_is_done() {
        let (mut connection, mut client) = pair();
        client
            .write_all(b"{\"seq\":1,\"do\":\"list\"}\nwhat?\n{\"seq\":2,\"do\":\"list\"}\n")
            .expect("written");
        assert_eq!(connection.serve(), [(1, Ok(Request::List))]);
        assert!(connection.is_broken());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let (mut connection, mut client) = pair();
        let piece = [b'x'; 10_000];
        let mut sent = 0;
        while !connection.is_broken() {
            assert!(connection.serve().is_empty());
            sent += client.write(&piece).unwrap_or(0);
            assert!(connection.input.len() <= REQUEST_BYTES_MAX + READ_BYTES);
        }
        assert!(sent > REQUEST_BYTES_MAX);
    }

    #[test]
    fn too_many_requests_are_refused_and_too_many_unread_answers_cut_the_client_off() {
        let (mut connection, mut client) = pair();
        let line = b"{\"seq\":1,\"do\":\"list\"}\n".repeat(100);
        let mut requests = Vec::new();
        while requests.len() <= REQUESTS_MAX {
            client.write_all(&line).expect("it is read");
            requests.extend(connection.serve());
        }
        assert!(requests[..REQUESTS_MAX].iter().all(|(_, request)| request.is_ok()));
        assert!(requests[REQUESTS_MAX].1.is_err());
        let long = serde_json::json!("x".repeat(1 << 20));
        let mut answers = 0;
        while !connection.is_broken() {
            connection.answer(1, Ok(long.clone()));
            answers += 1;
            assert!(answers < 32, "the client reads nothing");
        }
    }
}
