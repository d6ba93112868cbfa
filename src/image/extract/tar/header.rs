//! One header block of a tar archive.
//!
//! Five formats share the block: V7, POSIX ustar (which PAX builds on), GNU and Schily's
//! star. They agree on the first 257 bytes. What follows depends on the magic, and is
//! read exactly as Go's archive/tar does, which containerd reads layers with: numbers in
//! octal or base 256, a checksum of signed or unsigned bytes, and in GNU's format a
//! prefix where old Go programs put one instead of two times.

use super::time::Time;
use super::{Invalid, invalid};

/// Everything in an archive begins at a multiple of this.
pub(super) const BLOCK_BYTES: usize = 512;

/// A block.
pub(super) type Block = [u8; BLOCK_BYTES];

/// The fields of a header block.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: Time,
    pub(super) atime: Option<Time>,
    pub(super) major: i64,
    pub(super) minor: i64,
}

/// What the magic says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Reads a block that is not all zero.
    ///
    /// # Errors
    /// A wrong checksum, or a number that is none.
    pub(super) fn parse(block: &Block) -> Result<Header, Invalid> {
        if !has_checksum(block) {
            return Err(invalid("a header's checksum is wrong"));
        }
        let format = Format::of(block);
        let mut header = Header {
            kind: block[156],
            name: text(&block[..100]).to_vec(),
            link: text(&block[157..257]).to_vec(),
            size: number(&block[124..136])?,
            mode: number(&block[100..108])?,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            mtime: Time::new(number(&block[136..148])?, 0),
            ..Header::default()
        };
        if format == Format::V7 {
            return Ok(header);
        }
        header.major = number(&block[329..337])?;
        header.minor = number(&block[337..345])?;
        let mut prefix: &[u8] = b"";
        match format {
            Format::Star => {
                prefix = text(&block[345..476]);
                header.atime = Some(Time::new(number(&block[476..488])?, 0));
                // The change time is nobody's, but must be a number.
                number(&block[488..500])?;
            }
            Format::Gnu => match gnu_atime(block) {
                Ok(atime) => header.atime = atime,
                Err(_) => prefix = Some(text(&block[345..500])).filter(|text| text.is_ascii()).unwrap_or(b""),
            },
            Format::Ustar | Format::V7 => prefix = text(&block[345..500]),
        }
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }
}

impl Format {
    fn of(block: &Block) -> Format {
        match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }
}

/// The access time of a GNU header, where there is one.
fn gnu_atime(block: &Block) -> Result<Option<Time>, Invalid> {
    let field = |bytes: &[u8]| match bytes[0] {
        0 => Ok(None),
        _ => number(bytes).map(|seconds| Some(Time::new(seconds, 0))),
    };
    let (atime, change) = (field(&block[345..357]), field(&block[357..369]));
    change.and(atime)
}

/// Whether the checksum is right: of unsigned bytes as POSIX has it, or of signed ones as
/// old Sun programs wrote it.
fn has_checksum(block: &Block) -> bool {
    let Ok(given) = octal(&block[148..156]) else { return false };
    let bytes =
        || block.iter().enumerate().map(|(i, byte)| if (148..156).contains(&i) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    given == unsigned || given == signed
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = memchr::memchr(0, field).unwrap_or(field.len());
    &field[..end]
}

/// A number in octal, or in base 256 where the first bit says so; that can be negative.
pub(super) fn number(field: &[u8]) -> Result<i64, Invalid> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let mask = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut value: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let byte = (byte ^ mask) & if i == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return Err(invalid("a number in a header is too large"));
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| invalid("a number in a header is too large"))?;
    Ok(if mask == 0 { value } else { !value })
}

fn octal(field: &[u8]) -> Result<i64, Invalid> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(begin) = field.iter().position(|byte| !is_padding(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !is_padding(byte)).map_or(begin, |last| last + 1);
    let mut value: i64 = 0;
    for byte in text(&field[begin..end]) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 7 {
            return Err(invalid("a number in a header is not octal"));
        }
        // A field has at most 12 digits: 36 bits.
        value = value << 3 | i64::from(digit);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(magic: &[u8], fields: &[(usize, &[u8])]) -> Block {
        let mut block = [0; BLOCK_BYTES];
        for (at, bytes) in [(257, magic)].iter().chain(fields) {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"12\x0034", Some(0o12)),
            (b"9", None),
            (b"-1", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), want, "{field:?}");
        }
    }

    #[test]
    fn formats_differ_in_what_follows_the_magic() {
        let fields: &[(usize, &[u8])] = &[(0, b"name"), (156, b"0"), (345, b"12345670001\0")];
        let name = |magic: &[u8], fields: &[(usize, &[u8])]| Header::parse(&block(magic, fields));
        assert_eq!(name(b"ustar\x0000", fields).expect("ustar").name, b"12345670001/name");
        let gnu = name(b"ustar  \0", fields).expect("gnu");
        assert_eq!((gnu.name.as_slice(), gnu.atime), (&b"name"[..], Some(Time::new(0o12345670001, 0))));
        assert_eq!(name(b"", fields).expect("V7").name, b"name");
        // An old Go program's prefix, and bytes that are neither.
        let old: &[(usize, &[u8])] = &[(0, b"name"), (345, b"some/folder")];
        assert_eq!(name(b"ustar  \0", old).expect("gnu").name, b"some/folder/name");
        let neither: &[(usize, &[u8])] = &[(0, b"name"), (345, b"\xe4bc")];
        assert_eq!(name(b"ustar  \0", neither).expect("gnu").name, b"name");
        let star: &[(usize, &[u8])] = &[(0, b"name"), (345, b"a"), (476, b"17\0"), (508, b"tar\0")];
        let star = name(b"ustar\x0000", star).expect("star");
        assert_eq!((star.name.as_slice(), star.atime), (&b"a/name"[..], Some(Time::new(0o17, 0))));
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_a_signed_one_taken() {
        let mut changed = block(b"ustar\x0000", &[(0, b"name")]);
        changed[0] = b'N';
        assert!(Header::parse(&changed).is_err());
        let mut signed = block(b"ustar\x0000", &[(0, b"n\xe4me")]);
        let sum: i64 = signed
            .iter()
            .enumerate()
            .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { i64::from(byte.cast_signed()) })
            .sum();
        signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(Header::parse(&signed).expect("signed").name, b"n\xe4me");
        assert!(
            Header::parse(&block(b"ustar\x0000", &[(329, b"x")])).is_err(),
            "a device number that is none"
        );
    }
}
