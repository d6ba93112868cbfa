//! Messages of gRPC, copied on their way.
//!
//! What passes is never held up: where there is no room for a copy, there is none, and the
//! record says so.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

use super::writer::{Running, Slot};

/// In front of each message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// Room for copies of messages, of all calls together, until they are in the file.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new(bytes: usize) -> Room {
        Room(Arc::new(Semaphore::new(bytes)))
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

/// A copy of a message, and the room that it takes.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// A copy, or why there is none.
pub(super) type Copied = Result<Copy, String>;

/// Finds messages in what passes.
pub(super) struct Messages {
    room: Room,
    head: Vec<u8>,
    open: Option<Open>,
}

/// A message of which not all has passed.
struct Open {
    left: usize,
    bytes: Vec<u8>,
    room: Result<OwnedSemaphorePermit, String>,
}

impl Messages {
    pub(super) fn new(room: Room) -> Messages {
        Messages { room, head: Vec::with_capacity(HEAD_BYTES), open: None }
    }

    /// The messages that end with `data`.
    pub(super) fn push(&mut self, mut data: &[u8]) -> Vec<Copied> {
        let mut found = Vec::new();
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    let (head, rest) = data.split_at((HEAD_BYTES - self.head.len()).min(data.len()));
                    self.head.extend_from_slice(head);
                    data = rest;
                    match self.begin() {
                        Some(open) => open,
                        None => return found,
                    }
                }
            };
            let (part, rest) = data.split_at(open.left.min(data.len()));
            data = rest;
            open.left -= part.len();
            if open.room.is_ok() {
                open.bytes.extend_from_slice(part);
            }
            if open.left > 0 {
                self.open = Some(open);
                return found;
            }
            found.push(open.room.map(|room| Copy { bytes: open.bytes, _room: room }));
        }
    }

    /// A message whose head is there.
    fn begin(&mut self) -> Option<Open> {
        let head: [u8; HEAD_BYTES] = self.head.as_slice().try_into().ok()?;
        self.head.clear();
        let [kind, length @ ..] = head;
        let left = u32::from_be_bytes(length) as usize;
        let room = match kind {
            0 => self.room.take(left).ok_or_else(|| format!("{left} bytes, for which there was no room")),
            _ => Err(format!("{left} bytes, compressed")),
        };
        Some(Open { left, bytes: Vec::new(), room })
    }
}

/// A request's body; its message goes into the slot.
pub(super) struct Request {
    pub(super) body: Incoming,
    pub(super) messages: Messages,
    pub(super) slot: Slot,
}

impl HttpBody for Request {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let found = self.messages.push(data);
            for copied in found {
                self.slot.put(copied);
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body. With its end the call has ended; dropped before, somebody gave it up.
pub(super) struct Answer {
    body: Incoming,
    messages: Messages,
    running: Running,
}

impl Answer {
    /// The body of an answer with these headers, which tell the end of a call that has no
    /// message.
    pub(super) fn new(body: Incoming, headers: &HeaderMap, messages: Messages, running: Running) -> Answer {
        let mut answer = Answer { body, messages, running };
        if headers.contains_key("grpc-status") {
            answer.ended(headers);
        }
        answer
    }

    fn ended(&mut self, headers: &HeaderMap) {
        match Status::from_header_map(headers) {
            Some(status) => self.running.end(status.code(), status.message()),
            None => self.running.end(Code::Unknown, "the server ended it without a status"),
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let found = self.messages.push(data);
                    found.into_iter().for_each(|copied| self.running.answer(copied));
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended(&trailers.clone());
                }
            }
            Some(Err(error)) => {
                let message = format!("the server broke it off: {error}");
                self.running.end(Code::Unavailable, &message);
            }
            None => self.running.end(Code::Unknown, "the server ended it without a status"),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut all = Vec::new();
        for message in messages {
            all.push(0);
            all.extend_from_slice(&u32::try_from(message.len()).expect("short").to_be_bytes());
            all.extend_from_slice(message);
        }
        all
    }

    proptest! {
        #[test]
        fn messages_are_found_however_they_come(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6),
            sizes in prop::collection::vec(1_usize..9, 1..5),
        ) {
            let all = framed(&messages);
            let mut splitter = Messages::new(Room::new(1000));
            let (mut found, mut rest, mut turn) = (Vec::new(), all.as_slice(), 0);
            while !rest.is_empty() {
                let (part, after) = rest.split_at(sizes[turn % sizes.len()].min(rest.len()));
                found.extend(splitter.push(part).into_iter().map(|copied| copied.expect("room").bytes));
                (rest, turn) = (after, turn + 1);
            }
            prop_assert_eq!(found, messages);
        }
    }

    #[test]
    fn without_room_there_is_no_copy_until_there_is_again() {
        let room = Room::new(10);
        let mut splitter = Messages::new(room.clone());
        let all = framed(&[vec![1; 8], vec![2; 3], vec![3; 2]]);
        let found = splitter.push(&all);
        let fits: Vec<bool> = found.iter().map(Result::is_ok).collect();
        assert_eq!(fits, [true, false, true]);
        drop(found);
        assert_eq!(room.0.available_permits(), 10);
        assert!(splitter.push(&framed(&[vec![4; 10]]))[0].is_ok());
        let compressed = splitter.push(b"\x01\0\0\0\x01a\0\0\0\0\0");
        assert!(compressed[0].is_err() && compressed[1].is_ok());
        // A length that nobody can mean.
        assert!(splitter.push(b"\0\xff\xff\xff\xff").is_empty());
        assert_eq!(room.0.available_permits(), 10);
    }
}
