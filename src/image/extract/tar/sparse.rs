//! Sparse files as GNU tar writes them into PAX archives (formats 0.0, 0.1 and 1.0): a
//! map of the fragments that have data, which stand in the archive one after the other.
//!
//! The older form with a type of its own (`S`) is refused by containerd, too.

use super::pax::{Records, integer};
use super::{Invalid, invalid};

/// The largest map of format 1.0, which stands in front of the data.
pub(super) const MAP_BYTES_MAX: usize = 1 << 20;

/// Where a sparse file's map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the records.
    Records,
    /// In front of the data.
    Data,
}

/// A part of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image::extract) enum Piece {
    /// So many bytes follow in the archive.
    Data(u64),
    /// So many zeros do not.
    Hole(u64),
}

/// A fragment with data: offset and length.
pub(super) type Fragment = (i64, i64);

/// Where the map of the file with these records is; none if it is not sparse, or of a
/// format that nobody knows.
pub(super) fn place(records: &Records) -> Option<Place> {
    match (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) {
        (Some(b"0"), Some(b"0" | b"1")) => Some(Place::Records),
        (Some(b"1"), Some(b"0")) => Some(Place::Data),
        // The first two formats had no version.
        (None, None) => records.get("GNU.sparse.map").map(|_| Place::Records),
        _ => None,
    }
}

/// The length of a sparse file, where it is said.
///
/// # Errors
/// If it is none.
pub(super) fn size(records: &Records) -> Result<Option<i64>, Invalid> {
    match records.integer("GNU.sparse.size")? {
        None => records.integer("GNU.sparse.realsize"),
        size => Ok(size),
    }
}

/// The map in the records.
///
/// # Errors
/// If it is none.
pub(super) fn in_records(records: &Records) -> Result<Vec<Fragment>, Invalid> {
    let count = integer(records.get("GNU.sparse.numblocks").unwrap_or_default())?;
    let map = records.get("GNU.sparse.map").unwrap_or_default();
    let numbers = map.split(|byte| *byte == b',').filter(|_| !map.is_empty()).map(integer);
    fragments(count, numbers)
}

/// A map in front of the data: lines with a number each, the first one says how many
/// fragments follow. It ends with the block in which its last line does.
#[derive(Default)]
pub(super) struct Text {
    bytes: Vec<u8>,
    lines: usize,
    count: Option<i64>,
}

impl Text {
    /// Adds what comes next.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.lines += memchr::memchr_iter(b'\n', bytes).count();
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the whole map is there.
    ///
    /// # Errors
    /// If it does not begin with a length.
    pub(super) fn is_whole(&mut self) -> Result<bool, Invalid> {
        if self.lines == 0 {
            return Ok(false);
        }
        let count = match self.count {
            Some(count) => count,
            None => integer(self.numbers().next().unwrap_or_default())?,
        };
        self.count = Some(count);
        let want = count.checked_mul(2).and_then(|numbers| usize::try_from(numbers.checked_add(1)?).ok());
        want.map(|want| self.lines >= want).ok_or_else(|| invalid("a sparse map has no length"))
    }

    /// The map, when it is whole.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn parse(&self) -> Result<Vec<Fragment>, Invalid> {
        let count = self.count.unwrap_or_default();
        let numbers = usize::try_from(count).unwrap_or_default().saturating_mul(2);
        fragments(count, self.numbers().skip(1).take(numbers).map(integer))
    }

    fn numbers(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|byte| *byte == b'\n')
    }
}

fn fragments(
    count: i64,
    mut numbers: impl Iterator<Item = Result<i64, Invalid>>,
) -> Result<Vec<Fragment>, Invalid> {
    let mut list = Vec::new();
    while let Some(offset) = numbers.next() {
        let Some(length) = numbers.next() else { return Err(invalid("a sparse map ends half-way")) };
        list.push((offset?, length?));
    }
    if i64::try_from(list.len()).ok() != Some(count) {
        return Err(invalid("a sparse map has another length than it says"));
    }
    Ok(list)
}

/// The content of a file of `size` bytes with these fragments.
///
/// # Errors
/// If they overlap, or are not in the file.
pub(super) fn pieces(map: &[Fragment], size: i64) -> Result<Vec<Piece>, Invalid> {
    let wrong = || invalid("a sparse map does not fit its file");
    let mut pieces = Vec::new();
    let mut add = |from: i64, to: i64, piece: fn(u64) -> Piece| match u64::try_from(to - from) {
        Ok(0) => Ok(()),
        Ok(length) => {
            pieces.push(piece(length));
            Ok(())
        }
        Err(_) => Err(wrong()),
    };
    let mut at = 0;
    for (offset, length) in map {
        let end = offset.checked_add(*length).filter(|end| *end <= size && *offset >= 0 && *length >= 0);
        let end = end.ok_or_else(wrong)?;
        // Go checks the order also of empty fragments.
        add(at, *offset, Piece::Hole)?;
        add(*offset, end, Piece::Data)?;
        at = end;
    }
    if size < 0 {
        return Err(wrong());
    }
    add(at, size, Piece::Hole)?;
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Piece::{Data, Hole};

    #[test]
    fn maps_become_pieces() {
        let of = |map: &[Fragment], size| pieces(map, size).ok();
        assert_eq!(of(&[(2, 5), (18, 3)], 25), Some(vec![Hole(2), Data(5), Hole(11), Data(3), Hole(4)]));
        assert_eq!(of(&[(0, 4), (4, 0), (4, 2)], 6), Some(vec![Data(4), Data(2)]));
        assert_eq!(of(&[(512, 0)], 512), Some(vec![Hole(512)]));
        assert_eq!(of(&[], 0), Some(vec![]));
        for (map, size) in [
            (&[(0, 4), (3, 1)][..], 9),
            (&[(0, 10)], 9),
            (&[(-1, 2)], 9),
            (&[(1, -1)], 9),
            (&[(i64::MAX, 1)], i64::MAX),
            (&[], -1),
        ] {
            assert_eq!(of(map, size), None, "{map:?}");
        }
    }

    #[test]
    fn a_map_in_front_of_the_data_is_read_when_it_is_all_there() {
        let read = |text: &str| {
            let mut map = Text::default();
            text.split_inclusive(' ').for_each(|part| map.push(part.trim_end_matches(' ').as_bytes()));
            if map.is_whole()? { map.parse().map(Some) } else { Ok(None) }
        };
        for partly in ["2", "2\n1\n2\n3\n4", "1 2\n1\n2\n 3\n"] {
            assert_eq!(read(partly).expect("unknown"), None);
        }
        assert_eq!(read("2\n1\n2\n3 0\n4\n\0\0").expect("valid"), Some(vec![(1, 2), (30, 4)]));
        assert_eq!(read("0\n\0").expect("valid"), Some(vec![]));
        for wrong in ["-1\n", "x\n", "1\na\n2\n", "9223372036854775807\n"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
