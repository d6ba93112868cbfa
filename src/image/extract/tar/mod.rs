//! Tar archives as containerd reads them, which means as Go's archive/tar does: V7, ustar,
//! GNU long names, PAX records, star, sparse files of PAX.
//!
//! A reader of our own, since equal means equal: which of two contradicting names counts,
//! what a damaged archive is, where one ends. The `tar` crate answers these questions in
//! its own way, knows no sparse files of PAX, and takes the first of two records of the
//! same key where Go takes the last. What the reader keeps in memory is bounded
//! ([`SPECIAL_BYTES_MAX`], [`sparse::MAP_BYTES_MAX`]); content is handed on in the blocks
//! that it comes in.

mod header;
mod pax;
mod sparse;
mod time;

use std::io::BufRead;

use rustix::fs::Timestamps;

use super::{Failure, Result, unsupported};
use crate::error::unknown;
use header::{BLOCK_BYTES, Block, Header};
use pax::Records;
pub(super) use sparse::Piece;
use time::Time;

/// The most bytes of an extended header, or of a long name; the same as Go's.
const SPECIAL_BYTES_MAX: u64 = 1 << 20;

pub(super) const REGULAR: u8 = b'0';
pub(super) const HARD_LINK: u8 = b'1';
pub(super) const SYMLINK: u8 = b'2';
pub(super) const CHARACTER_DEVICE: u8 = b'3';
pub(super) const BLOCK_DEVICE: u8 = b'4';
pub(super) const FOLDER: u8 = b'5';
pub(super) const FIFO: u8 = b'6';
pub(super) const GLOBAL: u8 = b'g';
const REGULAR_OLD: u8 = 0;
const RECORDS: u8 = b'x';
const LONG_NAME: u8 = b'L';
const LONG_LINK: u8 = b'K';
const SPARSE_OLD: u8 = b'S';

/// What is wrong with an archive.
#[derive(Debug)]
struct Invalid(&'static str);

fn invalid(what: &'static str) -> Invalid {
    Invalid(what)
}

/// A file of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// The type, one of the constants above or something unknown.
    pub(super) kind: u8,
    /// The name as it stands there.
    pub(super) name: Vec<u8>,
    /// The target of a link.
    pub(super) link: Vec<u8>,
    /// Permission bits, with set-id and sticky ones.
    pub(super) mode: u32,
    /// As the kernel takes it, which cuts it to 32 bits.
    pub(super) uid: u32,
    /// The same.
    pub(super) gid: u32,
    /// Of a device.
    pub(super) major: i64,
    /// Of a device.
    pub(super) minor: i64,
    /// Access and modification.
    pub(super) times: Timestamps,
    /// Names and values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The content.
    pub(super) pieces: Vec<Piece>,
}

/// Reads an archive, file by file.
pub(super) struct Reader<R> {
    from: R,
    /// Bytes that were read.
    position: u64,
    /// Bytes of the present file that are still to come.
    remaining: u64,
    /// Bytes that fill its last block.
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(from: R) -> Reader<R> {
        Reader { from, position: 0, remaining: 0, padding: 0 }
    }

    /// The next file; what was not read of the one before is skipped. None at the end.
    ///
    /// # Errors
    /// What is wrong with the archive, or with where it comes from.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_name, mut long_link) = (Vec::new(), Vec::new());
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind {
                RECORDS => records = self.records()?,
                GLOBAL => {
                    let records = self.records()?;
                    return Ok(Some(global(header, &records)));
                }
                LONG_NAME => long_name = header::text(&self.special()?).to_vec(),
                LONG_LINK => long_link = header::text(&self.special()?).to_vec(),
                SPARSE_OLD => return Err(unsupported("an archive with sparse files of the old GNU format")),
                _ => return self.entry(header, records, long_name, long_link).map(Some),
            }
        }
    }

    /// The next header block; none at the end: at that of the stream, or at two blocks of
    /// zeros.
    fn header(&mut self) -> Result<Option<Header>> {
        self.data(self.remaining, |_| Ok(()))?;
        // Where the last block is not filled up, the archive is over.
        let padding = std::mem::take(&mut self.padding);
        let mut scratch = [0; BLOCK_BYTES];
        let padding = &mut scratch[..usize::try_from(padding).unwrap_or(0)];
        if self.fill(padding)? < padding.len() {
            return Ok(None);
        }
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK_BYTES] {
            return match self.block()? {
                Some(block) if block != [0; BLOCK_BYTES] => {
                    Err(self.wrong(invalid("a block of zeros is followed by something")))
                }
                _ => Ok(None),
            };
        }
        let header = Header::parse(&block).map_err(|error| self.wrong(error))?;
        self.expect(header.kind, header.size)?;
        Ok(Some(header))
    }

    /// Prepares for the data of a file.
    fn expect(&mut self, kind: u8, size: i64) -> Result<()> {
        // Links, devices, folders and FIFOs have none, whatever their size says.
        let size = if (HARD_LINK..=FIFO).contains(&kind) { 0 } else { size };
        self.remaining = u64::try_from(size).map_err(|_| self.wrong(invalid("a size is negative")))?;
        self.padding = self.remaining.wrapping_neg() % BLOCK_BYTES as u64;
        Ok(())
    }

    fn entry(
        &mut self,
        mut header: Header,
        records: Records,
        long_name: Vec<u8>,
        long_link: Vec<u8>,
    ) -> Result<Entry> {
        header.take(&records).map_err(|error| self.wrong(error))?;
        if !long_name.is_empty() {
            header.name = long_name;
        }
        if !long_link.is_empty() {
            header.link = long_link;
        }
        if header.kind == REGULAR_OLD {
            header.kind = if header.name.ends_with(b"/") { FOLDER } else { REGULAR };
        }
        self.expect(header.kind, header.size)?;
        let pieces = match sparse::place(&records) {
            None if self.remaining == 0 => Vec::new(),
            None => vec![Piece::Data(self.remaining)],
            Some(place) => self.pieces(&mut header, &records, place)?,
        };
        Ok(file(header, records, pieces))
    }

    /// The content of a sparse file.
    fn pieces(&mut self, header: &mut Header, records: &Records, place: sparse::Place) -> Result<Vec<Piece>> {
        if let Some(name) = records.get("GNU.sparse.name") {
            header.name = name.to_vec();
        }
        header.size = sparse::size(records).map_err(|error| self.wrong(error))?.unwrap_or(header.size);
        let map = match place {
            sparse::Place::Records => sparse::in_records(records).map_err(|error| self.wrong(error))?,
            sparse::Place::Data => self.sparse_map()?,
        };
        if (HARD_LINK..=FIFO).contains(&header.kind) {
            return Err(self.wrong(invalid("something that is no file is sparse")));
        }
        sparse::pieces(&map, header.size).map_err(|error| self.wrong(error))
    }

    /// The map in front of a sparse file's data.
    fn sparse_map(&mut self) -> Result<Vec<sparse::Fragment>> {
        let mut map = sparse::Text::default();
        while !map.is_whole().map_err(|error| self.wrong(error))? {
            if map.len() >= sparse::MAP_BYTES_MAX {
                return Err(unsupported("a sparse file with a very long map"));
            }
            self.data(BLOCK_BYTES as u64, |data| {
                map.push(data);
                Ok(())
            })?;
        }
        map.parse().map_err(|error| self.wrong(error))
    }

    fn records(&mut self) -> Result<Records> {
        let data = self.special()?;
        Records::parse(&data).map_err(|error| self.wrong(error))
    }

    /// The data of an entry that describes the next one.
    fn special(&mut self) -> Result<Vec<u8>> {
        if self.remaining > SPECIAL_BYTES_MAX {
            return Err(self.wrong(invalid("an extended header is too long")));
        }
        let mut bytes = Vec::new();
        self.data(self.remaining, |data| {
            bytes.extend_from_slice(data);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Hands on the next `length` bytes of the present file.
    ///
    /// # Errors
    /// If it has less; those of `each`.
    pub(super) fn data(&mut self, mut length: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if length > self.remaining {
            return Err(self.wrong(invalid("a sparse file has less data than its map says")));
        }
        while length > 0 {
            let block = self.from.fill_buf()?;
            if block.is_empty() {
                return Err(self.wrong(invalid("the archive ends in the middle of a file")));
            }
            let taken = block.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            each(&block[..taken])?;
            self.from.consume(taken);
            let taken = taken as u64;
            (self.position, self.remaining, length) =
                (self.position + taken, self.remaining - taken, length - taken);
        }
        Ok(())
    }

    /// Makes sure that nothing is left of the present file.
    ///
    /// # Errors
    /// If there is.
    pub(super) fn must_be_read(&self) -> Result<()> {
        if self.remaining > 0 {
            return Err(self.wrong(invalid("a sparse file has more data than its map says")));
        }
        Ok(())
    }

    /// Where it reads from.
    pub(super) fn into_inner(self) -> R {
        self.from
    }

    /// Reads to the end of the stream: what follows an archive belongs to its digest.
    ///
    /// # Errors
    /// Those of where it comes from.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.from.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.from.consume(length);
        }
    }

    /// The next block; none at the end of the stream.
    fn block(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK_BYTES];
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK_BYTES => Ok(Some(block)),
            _ => Err(self.wrong(invalid("the archive ends in the middle of a header"))),
        }
    }

    /// Fills `buffer` as far as there is something, and says how far.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let block = self.from.fill_buf()?;
            if block.is_empty() {
                break;
            }
            let taken = block.len().min(buffer.len() - filled);
            buffer[filled..filled + taken].copy_from_slice(&block[..taken]);
            self.from.consume(taken);
            filled += taken;
        }
        self.position += filled as u64;
        Ok(filled)
    }

    fn wrong(&self, Invalid(what): Invalid) -> Failure {
        unknown(format!("invalid tar archive: {what} (before byte {})", self.position)).into()
    }
}

impl Header {
    /// Lays the records over the fields.
    fn take(&mut self, records: &Records) -> Result<(), Invalid> {
        self.take_name(records);
        if let Some(link) = records.get("linkpath") {
            self.link = link.to_vec();
        }
        self.uid = records.integer("uid")?.unwrap_or(self.uid);
        self.gid = records.integer("gid")?.unwrap_or(self.gid);
        self.size = records.integer("size")?.unwrap_or(self.size);
        let time = |key| records.get(key).map(Time::parse).transpose();
        self.mtime = time("mtime")?.unwrap_or(self.mtime);
        self.atime = time("atime")?.or(self.atime);
        // Not used, but must be one.
        time("ctime").map(drop)
    }

    fn take_name(&mut self, records: &Records) {
        if let Some(name) = records.get("path") {
            self.name = name.to_vec();
        }
    }
}

/// What is left of a global header, whose records count for nothing: its name.
fn global(mut header: Header, records: &Records) -> Entry {
    header.take_name(records);
    file(Header { kind: GLOBAL, name: header.name, ..Header::default() }, Records::default(), Vec::new())
}

fn file(header: Header, records: Records, pieces: Vec<Piece>) -> Entry {
    // The kernel's ids, modes and device numbers are the low bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let low = |value: i64| value as u32;
    Entry {
        kind: header.kind,
        name: header.name,
        link: header.link,
        mode: low(header.mode & 0o7777),
        uid: low(header.uid),
        gid: low(header.gid),
        major: header.major,
        minor: header.minor,
        times: time::timestamps(header.atime, header.mtime),
        xattrs: records.into_xattrs(),
        pieces,
    }
}

#[cfg(test)]
mod tests;
