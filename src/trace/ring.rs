//! The calls that have ended: lines of JSON, the oldest dropped for the newest.
//!
//! Kubelets ask for lists and states many times a minute. Such calls have a quarter of the
//! room to themselves, so that they never push out how a pod was started.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a line takes besides its text.
const LINE_BYTES: usize = 96;

/// Which calls a line is among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// They change something.
    Change,
    /// They only look.
    Look,
}

/// Lines of both sorts, within a bound.
pub(super) struct Ring {
    bytes_max: usize,
    changes: Lines,
    looks: Lines,
    last: u64,
    dropped: u64,
}

#[derive(Default)]
struct Lines {
    lines: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Ring {
        Ring { bytes_max, changes: Lines::default(), looks: Lines::default(), last: 0, dropped: 0 }
    }

    /// Adds a line; `taken` bytes of the room are used by others now.
    pub(super) fn push(&mut self, sort: Sort, line: Vec<u8>, taken: usize) {
        self.last += 1;
        let room = self.bytes_max.saturating_sub(taken);
        let (lines, room) = match sort {
            Sort::Change => (&mut self.changes, room - room / 4),
            Sort::Look => (&mut self.looks, room / 4),
        };
        let cost = line.len() + LINE_BYTES;
        if cost <= room {
            lines.bytes += cost;
            // A box has no room behind its end.
            lines.lines.push_back((self.last, Bytes::from(line.into_boxed_slice())));
        } else {
            self.dropped += 1;
        }
        while lines.bytes > room
            && let Some((_, line)) = lines.lines.pop_front()
        {
            lines.bytes -= line.len() + LINE_BYTES;
            self.dropped += 1;
        }
    }

    /// The number of the last line.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes in use, and lines that are gone.
    pub(super) fn figures(&self) -> (usize, u64) {
        (self.changes.bytes + self.looks.bytes, self.dropped)
    }

    /// Lines after number `after`, the oldest first, of at most `bytes_max` together but at
    /// least one; and the number of the last of them.
    pub(super) fn after(&self, after: u64, bytes_max: usize) -> (Vec<Bytes>, u64) {
        // Who asks for more than there was has asked an earlier life of the server.
        let after = if after > self.last { 0 } else { after };
        let newer = |lines: &'_ Lines| lines.lines.partition_point(|(number, _)| *number <= after);
        let mut changes = self.changes.lines.range(newer(&self.changes)..).peekable();
        let mut looks = self.looks.lines.range(newer(&self.looks)..).peekable();
        let (mut found, mut bytes, mut last) = (Vec::new(), 0, after);
        loop {
            let next = match (changes.peek(), looks.peek()) {
                (Some((change, _)), Some((look, _))) if change < look => changes.next(),
                (Some(_), None) => changes.next(),
                _ => looks.next(),
            };
            let Some((number, line)) = next else { return (found, self.last) };
            if bytes + line.len() > bytes_max && !found.is_empty() {
                return (found, last);
            }
            (bytes, last) = (bytes + line.len(), *number);
            found.push(line.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring) -> Vec<String> {
        let text = |line: &Bytes| String::from_utf8_lossy(line).into_owned();
        ring.after(0, usize::MAX).0.iter().map(text).collect()
    }

    #[test]
    fn the_bound_holds_and_the_oldest_go_first() {
        let mut ring = Ring::new(40 << 10);
        for number in 0..10_000 {
            let sort = if number % 3 == 0 { Sort::Change } else { Sort::Look };
            ring.push(sort, format!("{number:0100}").into_bytes(), 0);
            assert!(ring.figures().0 <= 40 << 10);
        }
        let kept = all(&ring);
        assert!(kept.is_sorted() && kept.last().is_some_and(|last| last.ends_with("9999")));
        assert_eq!(kept.len() as u64 + ring.figures().1, 10_000);
        assert!(kept.len() > 150, "{}", kept.len());
    }

    #[test]
    fn looks_never_push_out_changes() {
        let mut ring = Ring::new(8 << 10);
        ring.push(Sort::Change, b"pod".to_vec(), 0);
        for _ in 0..1000 {
            ring.push(Sort::Look, b"list".to_vec(), 0);
        }
        assert_eq!(all(&ring)[0], "pod");
        // What runs takes of the room.
        ring.push(Sort::Change, b"pod".to_vec(), 8 << 10);
        assert!(all(&ring).iter().all(|line| line != "pod"));
    }

    #[test]
    fn who_has_asked_an_earlier_life_gets_all() {
        let mut ring = Ring::new(8 << 10);
        ring.push(Sort::Change, b"a".to_vec(), 0);
        let (lines, last) = ring.after(50, usize::MAX);
        assert_eq!((lines.len(), last), (1, 1));
    }

    #[test]
    fn it_is_read_in_parts() {
        let mut ring = Ring::new(8 << 10);
        for line in ["a", "bb", "ccc"] {
            ring.push(Sort::Change, line.as_bytes().to_vec(), 0);
        }
        let (lines, last) = ring.after(0, 3);
        assert_eq!((lines.len(), last), (2, 2));
        let (lines, last) = ring.after(last, 1);
        assert_eq!((lines, last), (vec![Bytes::from("ccc")], 3));
        assert_eq!(ring.after(last, 1), (Vec::new(), 3));
    }
}
