//! Container output as entries of a CRI log file. Pure: bytes in, bytes out.
//!
//! An entry is `<time> <stdout|stderr> <P|F> <content>\n` (LOG-01). `F` ends a line of
//! output, `P` is a piece of one that is longer than the limit, or what stood there
//! without a newline at the end (LOG-04 … LOG-06).
//!
//! The time is UTC, always with nine digits (`2026-01-02T03:04:05.000000006Z`). UTC
//! rather than local time, because it needs no time zone data, never jumps at the end
//! of summer, and is what a node whose zone is UTC shows in any case (LOG-03). The clock
//! is read once a burst; each further entry is a nanosecond later. So times never
//! go backwards in a container and no two entries have the same, which matters to
//! collectors that drop what has equal time and content.
//!
//! Speed decides the form of this file: nothing is allocated for an entry, the time is
//! counted up in place as text, and each byte is copied once.

use std::time::{SystemTime, UNIX_EPOCH};

use memchr::memchr_iter;

/// The longest piece of a line that is ever kept in memory, whatever the limit of the
/// container: without a limit (0) a longer line comes as `P` entries of this size.
pub const LINE_BYTES_CAP: usize = 1 << 20;

/// Bytes of an entry before its content.
pub(super) const PREFIX_BYTES: usize = TIME_BYTES + " stdout F ".len();

const TIME_BYTES: usize = "2026-01-02T03:04:05.000000006Z".len();
/// Where the nine digits of the fraction stand.
const FRACTION: std::ops::Range<usize> = 20..29;
/// Where the tag stands.
const TAG: usize = PREFIX_BYTES - 2;
/// Times of entries rise while the clock is corrected in passing, by no more than this; a
/// clock that somebody sets farther back is followed, or all would have one time until then.
const SETBACK_MAX_NS: u64 = 2_000_000_000;

/// Which output of the container it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output; with a terminal everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Whether an entry ends a line of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// `P`
    Partial = b'P' as isize,
    /// `F`
    Full = b'F' as isize,
}

/// The limit that holds for a configured one, where 0 means none.
#[must_use]
pub(super) fn effective_max(line_bytes_max: usize) -> usize {
    if line_bytes_max == 0 { LINE_BYTES_CAP } else { line_bytes_max.min(LINE_BYTES_CAP) }
}

/// Cuts `data`, which begins where an entry begins, and gives how many bytes of it went
/// into entries. The rest is an unfinished line of at most `max` bytes and a carriage
/// return, to be put in front of what comes next.
///
/// A piece is cut off only once a byte beyond it is known, so that a line of exactly
/// `max` bytes is one `F` entry (LOG-05); a carriage return at the end of the data may
/// belong to a newline (LOG-07) and does not count as such a byte.
#[inline]
pub(super) fn split<'a>(data: &'a [u8], max: usize, mut emit: impl FnMut(Tag, &'a [u8])) -> usize {
    let mut start = 0;
    for newline in memchr_iter(b'\n', data) {
        let end = without_return(data, start, newline);
        while end - start > max {
            emit(Tag::Partial, &data[start..start + max]);
            start += max;
        }
        emit(Tag::Full, &data[start..end]);
        start = newline + 1;
    }
    let end = without_return(data, start, data.len());
    while end - start > max {
        emit(Tag::Partial, &data[start..start + max]);
        start += max;
    }
    start
}

/// Cuts what is left when no more will come (LOG-06): a carriage return is content here.
pub(super) fn split_rest<'a>(rest: &'a [u8], max: usize, mut emit: impl FnMut(Tag, &'a [u8])) {
    rest.chunks(max).for_each(|piece| emit(Tag::Partial, piece));
}

#[inline]
fn without_return(data: &[u8], start: usize, end: usize) -> usize {
    if end > start && data[end - 1] == b'\r' { end - 1 } else { end }
}

/// The text in front of the content, with a time that counts up.
///
/// One for each worker: it keeps the text of the current second.
pub(super) struct Prefix {
    text: [u8; PREFIX_BYTES],
    second: u64,
    /// Nanosecond of the second that `text` shows.
    nanos: u32,
}

impl Prefix {
    pub(super) fn new() -> Prefix {
        let mut text = [b' '; PREFIX_BYTES];
        text[TIME_BYTES - 1] = b'Z';
        let mut prefix = Prefix { text, second: 0, nanos: 0 };
        prefix.set_second(0);
        prefix.set_nanos(0);
        prefix
    }

    /// Sets stream and time of the next entry: `now`, or just after `last` where the
    /// clock has not come that far, by some seconds at most. All in nanoseconds since the epoch.
    pub(super) fn begin(&mut self, stream: Stream, now: u64, last: u64) {
        let is_set_back = last.saturating_sub(now) > SETBACK_MAX_NS;
        let at = if is_set_back { now } else { now.max(last.saturating_add(1)) };
        let (second, nanos) = (at / 1_000_000_000, (at % 1_000_000_000) as u32);
        if second != self.second {
            self.set_second(second);
        }
        self.set_nanos(nanos);
        let name = match stream {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        };
        self.text[TIME_BYTES + 1..TIME_BYTES + 7].copy_from_slice(name);
    }

    /// Writes an entry to the start of `to`, gives its length and moves the time on.
    ///
    /// # Panics
    /// If `to` is shorter than [`PREFIX_BYTES`] + content + 1.
    #[inline]
    pub(super) fn write(&mut self, to: &mut [u8], tag: Tag, content: &[u8]) -> usize {
        let end = PREFIX_BYTES + content.len();
        let to = &mut to[..=end];
        self.text[TAG] = tag as u8;
        to[..PREFIX_BYTES].copy_from_slice(&self.text);
        to[PREFIX_BYTES..end].copy_from_slice(content);
        to[end] = b'\n';
        self.advance();
        end + 1
    }

    /// The time of the last entry written, in nanoseconds since the epoch.
    pub(super) fn last(&self) -> u64 {
        (self.second * 1_000_000_000 + u64::from(self.nanos)).saturating_sub(1)
    }

    #[inline]
    fn advance(&mut self) {
        self.nanos += 1;
        for digit in self.text[FRACTION].iter_mut().rev() {
            if *digit != b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
        self.nanos = 0;
        self.set_second(self.second + 1);
    }

    fn set_second(&mut self, second: u64) {
        self.second = second;
        // Beyond the year 9999 the text stays at its last second.
        let at = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        let text = at.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%S.").to_string();
        self.text[..FRACTION.start].copy_from_slice(&text.as_bytes()[..FRACTION.start]);
    }

    fn set_nanos(&mut self, nanos: u32) {
        self.nanos = nanos;
        let mut rest = nanos;
        for digit in self.text[FRACTION].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

/// Nanoseconds since the epoch; 0 before it.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Entries = Vec<(Tag, Vec<u8>)>;

    /// Everything at once, then the end of the stream.
    fn whole(data: &[u8], max: usize) -> Entries {
        chunked(&[data], max)
    }

    /// The same data as it comes in pieces.
    fn chunked(chunks: &[&[u8]], max: usize) -> Entries {
        let (mut entries, mut carry) = (Entries::new(), Vec::new());
        for chunk in chunks {
            carry.extend_from_slice(chunk);
            let used = split(&carry, max, |tag, content| entries.push((tag, content.to_vec())));
            carry.drain(..used);
            assert!(carry.len() <= max + 1, "{} bytes are carried", carry.len());
        }
        split_rest(&carry, max, |tag, content| entries.push((tag, content.to_vec())));
        entries
    }

    fn shown(entries: &Entries) -> String {
        let text = |(tag, content): &(Tag, Vec<u8>)| {
            format!("{}:{}", *tag as u8 as char, String::from_utf8_lossy(content))
        };
        entries.iter().map(text).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn lines_are_cut_as_the_contract_says() {
        for (data, entries, why) in [
            ("a\nb\n", "F:a|F:b", "LOG-04"),
            ("\n\n", "F:|F:", "LOG-08: an empty line is an entry"),
            ("abcd\n", "F:abcd", "LOG-05: exactly the limit"),
            ("abcde\n", "P:abcd|F:e", "LOG-04"),
            ("abcdefgh\n", "P:abcd|F:efgh", "LOG-05: twice the limit"),
            ("abcdefghi\n", "P:abcd|P:efgh|F:i", "LOG-04"),
            ("ab", "P:ab", "LOG-06"),
            ("abcde", "P:abcd|P:e", "LOG-06"),
            ("a\r\n", "F:a", "LOG-07"),
            ("abcd\r\n", "F:abcd", "LOG-07 does not count for the limit"),
            ("a\rb\n", "F:a\rb", "LOG-07: others stay"),
            ("a\r\r\n", "F:a\r", "LOG-07: one is dropped"),
            ("abcd\r\r\n", "P:abcd|F:\r", "the first one is content"),
            ("\r\n", "F:", "LOG-07"),
            ("ab\r", "P:ab\r", "without a newline it is content"),
            ("abcd\r", "P:abcd|P:\r", "likewise"),
            ("", "", "nothing"),
        ] {
            assert_eq!(shown(&whole(data.as_bytes(), 4)), entries, "{data:?}: {why}");
        }
    }

    #[test]
    fn a_return_may_come_apart_from_its_newline() {
        assert_eq!(shown(&chunked(&[b"ab\r", b"\n"], 4)), "F:ab");
        assert_eq!(shown(&chunked(&[b"abcd\r", b"\n"], 4)), "F:abcd");
        assert_eq!(shown(&chunked(&[b"abcd\r", b"x\n"], 4)), "P:abcd|F:\rx");
    }

    #[test]
    fn limits_have_a_bound() {
        assert_eq!(effective_max(0), LINE_BYTES_CAP);
        assert_eq!(effective_max(16 << 10), 16 << 10);
        assert_eq!(effective_max(usize::MAX), LINE_BYTES_CAP);
    }

    #[test]
    fn entries_have_the_form_and_count_up() {
        let mut prefix = Prefix::new();
        let mut to = [0; 100];
        prefix.begin(Stream::Stderr, 1_767_323_045_999_999_998, 0);
        let mut entry = |prefix: &mut Prefix, tag, content: &[u8]| {
            let length = prefix.write(&mut to, tag, content);
            String::from_utf8_lossy(&to[..length]).into_owned()
        };
        let text = entry(&mut prefix, Tag::Full, b"hi");
        assert_eq!(text, "2026-01-02T03:04:05.999999998Z stderr F hi\n");
        let text = entry(&mut prefix, Tag::Partial, b"");
        assert_eq!(text, "2026-01-02T03:04:05.999999999Z stderr P \n");
        let text = entry(&mut prefix, Tag::Full, b"x");
        assert_eq!(text, "2026-01-02T03:04:06.000000000Z stderr F x\n");
        assert_eq!(prefix.last(), 1_767_323_046_000_000_000);
        // The clock goes back a little: the time does not.
        prefix.begin(Stream::Stdout, 1_767_323_044_000_000_000, 1_767_323_046_000_000_000);
        let text = entry(&mut prefix, Tag::Full, b"y");
        assert_eq!(text, "2026-01-02T03:04:06.000000001Z stdout F y\n");
        // Somebody sets it: then it does.
        prefix.begin(Stream::Stdout, 1_767_323_000_000_000_000, 1_767_323_046_000_000_001);
        let text = entry(&mut prefix, Tag::Full, b"z");
        assert_eq!(text, "2026-01-02T03:03:20.000000000Z stdout F z\n");
    }

    /// Bytes in which newlines and carriage returns are frequent.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r'), 1 => any::<u8>()];
        proptest::collection::vec(byte, 0..200)
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_show(data in output(), cuts in proptest::collection::vec(0..200usize, 0..20), max in 1..20usize) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &data[cut[0]..cut[1]]).collect();
            prop_assert_eq!(chunked(&chunks, max), whole(&data, max));
        }

        #[test]
        fn no_byte_is_lost(data in output(), max in 1..20usize) {
            let entries = whole(&data, max);
            let mut text = Vec::new();
            for (tag, content) in &entries {
                prop_assert!(content.len() <= max);
                prop_assert!(*tag == Tag::Full || !content.is_empty());
                text.extend_from_slice(content);
                if *tag == Tag::Full {
                    text.push(b'\n');
                }
            }
            // Modulo the one return that may stand before a newline.
            let mut expected: Vec<u8> = Vec::new();
            for line in data.split_inclusive(|&byte| byte == b'\n') {
                match line.strip_suffix(b"\r\n") {
                    Some(line) => { expected.extend_from_slice(line); expected.push(b'\n'); }
                    None => expected.extend_from_slice(line),
                }
            }
            prop_assert_eq!(text, expected);
            // Each line of output ends in exactly one full entry.
            let full = entries.iter().filter(|(tag, _)| *tag == Tag::Full).count();
            prop_assert_eq!(full, data.iter().filter(|&&byte| byte == b'\n').count());
        }

        #[test]
        fn times_parse_and_rise(now in 0..4_000_000_000_000_000_000u64, back in 0..=SETBACK_MAX_NS, count in 1..50usize) {
            let mut prefix = Prefix::new();
            let mut last = 0;
            let mut to = [0; 64];
            for now in [now, now.saturating_sub(back)] {
                prefix.begin(Stream::Stdout, now, last);
                for _ in 0..count {
                    prefix.write(&mut to, Tag::Full, b"");
                    let text = std::str::from_utf8(&to[..TIME_BYTES]).expect("ASCII");
                    let at: jiff::Timestamp = text.parse().expect("RFC 3339");
                    let at = u64::try_from(at.as_nanosecond()).expect("after the epoch");
                    prop_assert!(at > last || (last == 0 && at == 0), "{at} after {last}");
                    last = at;
                }
                prop_assert_eq!(prefix.last(), last);
            }
        }
    }
}
