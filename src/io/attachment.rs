//! Somebody who sees a container's output as it comes: the keeper's side.
//!
//! The worker that has read a burst writes it to each attachment at once, without waiting.
//! What a socket does not take is queued, up to a bound; epoll tells a worker when there is
//! room again. Who falls behind further is cut off and told so (LOG-18): neither the
//! container nor its log, nor anybody else, ever waits for an attachment.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::frame::{self, HEADER_BYTES};
use super::line::Stream;
use crate::error::{Context, Result};
use crate::flow::lock;

/// What is kept for an attachment that does not keep up. Output comes in bursts, and a
/// client may be held up for a moment; a flood has as much in a hundredth of a second.
pub(super) const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Frames are put together in pieces of about as much.
const PIECE_BYTES: usize = 64 << 10;
/// Why an attachment was cut off.
const TOO_SLOW: &str = "the client does not keep up with the output";

/// A connection that gets a container's output.
pub(super) struct Attachment {
    /// Its name in the epoll.
    mark: u64,
    epoll: Arc<OwnedFd>,
    /// What it wants to see.
    stdout: bool,
    stderr: bool,
    state: Mutex<State>,
}

struct State {
    /// `None` after the end.
    stream: Option<UnixStream>,
    /// Whole frames, save the first piece: it may be sent in part.
    queue: VecDeque<Vec<u8>>,
    /// What of the first piece is sent.
    sent: usize,
    queued_bytes: usize,
    /// Nothing more comes: the end is after what is queued.
    is_last: bool,
}

/// Whether an attachment needs anything more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It goes on.
    Open,
    /// It gets nothing more.
    Over,
}

impl Attachment {
    /// Of a connection that is non-blocking, and gets `answer` before any frame.
    pub(super) fn new(
        mark: u64,
        epoll: Arc<OwnedFd>,
        (stdout, stderr): (bool, bool),
        stream: UnixStream,
        answer: Vec<u8>,
    ) -> Attachment {
        let state = State {
            stream: Some(stream),
            queued_bytes: answer.len(),
            queue: VecDeque::from([answer]),
            sent: 0,
            is_last: false,
        };
        Attachment { mark, epoll, stdout, stderr, state: Mutex::new(state) }
    }

    /// Puts it into the epoll.
    ///
    /// # Errors
    /// Those of the system: no memory.
    pub(super) fn watch(&self) -> Result<()> {
        let state = lock(&self.state);
        let Some(stream) = &state.stream else { return Ok(()) };
        epoll::add(&*self.epoll, stream, epoll::EventData::new_u64(self.mark), state.wanted())
            .context(|| "watch an attachment")
    }

    /// Shows it what was read of a stream; without bytes, that the stream has ended, which
    /// is told in any case. Never waits. Once it is over nothing more need be shown.
    pub(super) fn show(&self, stream: Stream, bytes: &[u8]) -> Standing {
        let is_wanted = match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        let mut state = lock(&self.state);
        if state.is_last || state.stream.is_none() {
            return Standing::Over;
        }
        if !is_wanted && !bytes.is_empty() {
            return Standing::Open;
        }
        let header = frame::header(stream, bytes.len());
        let had_queue = !state.queue.is_empty();
        let sent = if had_queue { Some(0) } else { state.send(&[&header, bytes]) };
        let Some(sent) = sent else {
            state.give_up();
            return Standing::Over;
        };
        state.enqueue(&header, bytes, sent);
        if !had_queue && !state.queue.is_empty() {
            self.arm(&state);
        }
        if state.is_last { Standing::Over } else { Standing::Open }
    }

    /// Tells that nothing more comes.
    pub(super) fn finish(&self) {
        let mut state = lock(&self.state);
        state.is_last = true;
        self.arm(&state);
    }

    /// Does what epoll has told of: sends what is queued, or notices the end.
    pub(super) fn serve(&self, is_hung_up: bool) -> Standing {
        let mut state = lock(&self.state);
        if is_hung_up {
            state.close();
        }
        while let Some(piece) = state.queue.pop_front() {
            let at = state.sent;
            let Some(count) = state.send(&[&piece[at..], &[]]) else {
                state.close();
                break;
            };
            state.queued_bytes -= count;
            if at + count < piece.len() {
                state.sent = at + count;
                state.queue.push_front(piece);
                break;
            }
            state.sent = 0;
        }
        if state.queue.is_empty() {
            state.queue = VecDeque::new();
            if state.is_last {
                state.close();
            }
        }
        self.arm(&state);
        if state.stream.is_some() { Standing::Open } else { Standing::Over }
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.state).stream.is_none()
    }

    /// Wants to hear of what `state` needs.
    fn arm(&self, state: &State) {
        if let Some(stream) = &state.stream {
            // Refused only for descriptors that are not in the epoll: not yet, then.
            let _ = epoll::modify(&*self.epoll, stream, epoll::EventData::new_u64(self.mark), state.wanted());
        }
    }
}

impl State {
    fn wanted(&self) -> epoll::EventFlags {
        let hang_up = epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        let has_more = !self.queue.is_empty() || self.is_last;
        if has_more { hang_up | epoll::EventFlags::OUT } else { hang_up }
    }

    /// Sends what goes without waiting, and says how much that was; `None` if nothing goes
    /// any more.
    fn send(&mut self, parts: &[&[u8]; 2]) -> Option<usize> {
        let slices = parts.map(IoSlice::new);
        loop {
            let stream = self.stream.as_ref()?;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(stream.as_fd(), &slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Some(count),
                Err(error) => match std::io::Error::from(error).kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Some(0),
                    _ => return None,
                },
            }
        }
    }

    /// Queues a frame of which `sent` bytes went out already.
    fn enqueue(&mut self, header: &[u8; HEADER_BYTES], bytes: &[u8], sent: usize) {
        let rest = header.len() + bytes.len() - sent;
        if rest == 0 || self.stream.is_none() {
            return;
        }
        if sent == 0 && self.queued_bytes + rest > QUEUE_BYTES_MAX {
            return self.cut_off();
        }
        self.queued_bytes += rest;
        // The first one may be on its way, and stays what it is.
        let is_first = self.queue.len() <= 1;
        if is_first || self.queue.back().is_none_or(|piece| piece.len() >= PIECE_BYTES) {
            self.queue.push_back(Vec::with_capacity(rest));
        }
        if let Some(piece) = self.queue.back_mut() {
            piece.extend_from_slice(&header[sent.min(header.len())..]);
            piece.extend_from_slice(&bytes[sent.saturating_sub(header.len())..]);
        }
    }

    /// Forgets all but the piece that is on its way, so that what comes are whole frames
    /// without a gap, and tells why nothing follows.
    fn cut_off(&mut self) {
        self.queue.truncate(1);
        self.queue.push_back(frame::cut_off(TOO_SLOW));
        self.queued_bytes = self.queue.iter().map(Vec::len).sum::<usize>() - self.sent;
        self.is_last = true;
    }

    /// Nothing can be sent any more. The connection stays until epoll has told of its end:
    /// what is closed before is never told of, and nobody would forget it.
    fn give_up(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.queue.clear();
        self.queued_bytes = 0;
        self.sent = 0;
        self.is_last = true;
    }

    fn close(&mut self) {
        self.stream = None;
        self.queue = VecDeque::new();
        self.queued_bytes = 0;
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Frames, Piece};
    use super::*;
    use bytes::BytesMut;
    use std::io::Read;

    /// An attachment and the client's end.
    fn pair() -> (Attachment, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("made");
        for stream in [&ours, &theirs] {
            stream.set_nonblocking(true).expect("set");
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("made");
        let attachment = Attachment::new(1, Arc::new(epoll), (true, true), ours, b"hello\n".to_vec());
        attachment.watch().expect("watched");
        (attachment, theirs)
    }

    /// Reads all that comes, letting the attachment go on whenever nothing does.
    fn read_all(attachment: &Attachment, client: &mut UnixStream) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match client.read(&mut piece) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&piece[..count]),
                Err(_) => {
                    let before = lock(&attachment.state).queued_bytes;
                    attachment.serve(false);
                    let after = lock(&attachment.state).queued_bytes;
                    if before == after && !attachment.is_over() {
                        return all;
                    }
                }
            }
        }
    }

    fn pieces(bytes: &[u8]) -> Vec<Piece> {
        let bytes = bytes.strip_prefix(b"hello\n").expect("the answer comes first");
        let (mut frames, mut input, mut pieces) = (Frames::default(), BytesMut::from(bytes), Vec::new());
        while let Some(piece) = frames.next(&mut input).expect("frames") {
            let is_last = matches!(piece, Piece::CutOff(_));
            pieces.push(piece);
            if is_last {
                break;
            }
        }
        assert!(frames.is_between());
        pieces
    }

    #[test]
    fn frames_follow_the_answer_and_the_end_follows_them() {
        let (attachment, mut client) = pair();
        attachment.show(Stream::Stdout, b"one");
        assert_eq!(attachment.serve(false), Standing::Open);
        attachment.show(Stream::Stderr, b"two");
        attachment.show(Stream::Stderr, b"");
        attachment.finish();
        attachment.show(Stream::Stdout, b"nothing after the end");
        let expected = [
            Piece::Output(Stream::Stdout, "one".into()),
            Piece::Output(Stream::Stderr, "two".into()),
            Piece::End(Stream::Stderr),
        ];
        assert_eq!(pieces(&read_all(&attachment, &mut client)), expected);
        assert!(attachment.is_over());
    }

    #[test]
    fn a_client_that_is_held_up_gets_all_that_the_queue_holds() {
        let (attachment, mut client) = pair();
        let burst: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut shown = 0;
        while shown + burst.len() + 4096 < QUEUE_BYTES_MAX {
            attachment.show(Stream::Stdout, &burst);
            attachment.show(Stream::Stdout, b"x");
            shown += burst.len() + 1;
        }
        attachment.finish();
        let mut all = Vec::new();
        for piece in pieces(&read_all(&attachment, &mut client)) {
            let Piece::Output(Stream::Stdout, bytes) = piece else { panic!("{piece:?}") };
            all.extend_from_slice(&bytes);
        }
        let one: Vec<u8> = burst.iter().copied().chain(*b"x").collect();
        assert_eq!(all.len(), shown);
        assert!(all.chunks(one.len()).all(|chunk| chunk == one));
    }

    #[test]
    fn a_client_that_does_not_keep_up_is_told_and_holds_no_memory() {
        let (attachment, mut client) = pair();
        while !lock(&attachment.state).is_last {
            attachment.show(Stream::Stdout, &[b'x'; 10_000]);
            assert!(lock(&attachment.state).queued_bytes <= QUEUE_BYTES_MAX);
        }
        assert!(lock(&attachment.state).queued_bytes < 2 * PIECE_BYTES);
        let pieces = pieces(&read_all(&attachment, &mut client));
        assert_eq!(pieces.last(), Some(&Piece::CutOff(TOO_SLOW.into())));
        assert!(attachment.is_over());
    }

    #[test]
    fn what_is_not_wanted_is_not_sent_and_who_has_gone_is_over() {
        let (mut attachment, mut client) = pair();
        attachment.stderr = false;
        attachment.show(Stream::Stderr, b"no");
        attachment.show(Stream::Stdout, b"yes");
        let came = pieces(&read_all(&attachment, &mut client));
        assert_eq!(came, [Piece::Output(Stream::Stdout, "yes".into())]);
        drop(client);
        assert_eq!(attachment.show(Stream::Stdout, b"to nobody"), Standing::Over);
        assert_eq!(attachment.serve(true), Standing::Over);
    }

    #[test]
    fn the_end_of_a_client_is_told_by_epoll_however_it_was_noticed() {
        let (attachment, mut client) = pair();
        read_all(&attachment, &mut client);
        drop(client);
        assert_eq!(attachment.show(Stream::Stdout, b"x"), Standing::Over);
        assert_eq!(attachment.show(Stream::Stdout, b"x"), Standing::Over);
        let mut events = [std::mem::MaybeUninit::uninit(); 1];
        let (events, _) = epoll::wait(&*attachment.epoll, &mut events, None).expect("waited");
        assert_eq!(events.first().map(|event| event.data.u64()), Some(1));
        assert_eq!(attachment.serve(true), Standing::Over);
        assert!(attachment.is_over());
    }
}
