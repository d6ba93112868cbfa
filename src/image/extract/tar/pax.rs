//! PAX records: `length key=value\n`, which go over the fields of the header after them.

use std::collections::BTreeMap;

use super::{Invalid, invalid};

/// Extended attributes have keys that begin so.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Where GNU's sparse maps of format 0.1 stand; those of 0.0 are put there.
const MAP: &[u8] = b"GNU.sparse.map";

/// Records by their keys; of two with the same key the last one counts.
#[derive(Debug, Default)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    /// Reads the data of an extended header.
    ///
    /// # Errors
    /// If it is not all records.
    pub(super) fn parse(mut data: &[u8]) -> Result<Records, Invalid> {
        let mut records = Records::default();
        // Format 0.0 of sparse files: pairs of an offset and a length, each in a record of
        // the same key.
        let mut map: Vec<&[u8]> = Vec::new();
        while !data.is_empty() {
            let (key, value, rest) = first(data)?;
            data = rest;
            let is_offset = key == b"GNU.sparse.offset";
            if is_offset || key == b"GNU.sparse.numbytes" {
                if map.len().is_multiple_of(2) != is_offset || value.contains(&b',') {
                    return Err(invalid("a sparse map is out of order"));
                }
                map.push(value);
            } else {
                records.0.insert(key.to_vec(), value.to_vec());
            }
        }
        if !map.is_empty() {
            records.0.insert(MAP.to_vec(), map.join(&b","[..]));
        }
        Ok(records)
    }

    /// The value of `key`; none if it is not there or empty, which means the same.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The value of `key` as a number.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, Invalid> {
        self.get(key).map(integer).transpose()
    }

    /// The extended attributes, also empty ones.
    pub(super) fn into_xattrs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let name = |(key, value): (Vec<u8>, Vec<u8>)| Some((key.strip_prefix(XATTR)?.to_vec(), value));
        self.0.into_iter().filter_map(name).collect()
    }
}

/// A record of an extended header: key, value, and what follows it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record of `data`.
fn first(data: &[u8]) -> Result<Record<'_>, Invalid> {
    let wrong = || invalid("an extended header has a record that is none");
    let space = memchr::memchr(b' ', data).ok_or_else(wrong)?;
    let length = usize::try_from(integer(&data[..space])?).map_err(|_| wrong())?;
    if length < 5 || length > data.len() || length <= space + 1 {
        return Err(wrong());
    }
    let (record, rest) = data.split_at(length);
    let Some((b'\n', record)) = record[space + 1..].split_last() else { return Err(wrong()) };
    let equals = memchr::memchr(b'=', record).ok_or_else(wrong)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    // A name with a NUL would be another one for the kernel.
    let names = [&b"path"[..], b"linkpath", b"uname", b"gname"];
    if if names.contains(&key) { value.contains(&0) } else { key.contains(&0) } {
        return Err(wrong());
    }
    Ok((key, value, rest))
}

/// A decimal number, with or without a sign.
pub(super) fn integer(text: &[u8]) -> Result<i64, Invalid> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| invalid("a number in an extended header is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::extract::tests::archive::record;

    #[test]
    fn records_are_read_and_the_last_of_a_key_counts() {
        let pairs: [(&[u8], &[u8]); 6] = [
            (b"path", b"a"),
            (b"path", b"b=c"),
            (b"x", b""),
            (b"SCHILY.xattr.u.a", b"\0"),
            (b"SCHILY.xattr.u", b""),
            (b"uid", b"-4"),
        ];
        let data: Vec<u8> = pairs.iter().flat_map(|(key, value)| record(key, value)).collect();
        let records = Records::parse(&data).expect("valid");
        assert_eq!(records.get("path"), Some(&b"b=c"[..]));
        assert_eq!((records.get("x"), records.get("y")), (None, None));
        assert_eq!(records.integer("uid").expect("a number"), Some(-4));
        assert!(records.integer("path").is_err());
        let xattrs = records.into_xattrs();
        assert_eq!(xattrs, [(b"u".to_vec(), b"".to_vec()), (b"u.a".to_vec(), b"\0".to_vec())]);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for data in [
            &b"x"[..],
            b" path=a\n",
            b"9 path=a ",
            b"8 path=a\n",
            b"11 path=a\n",
            b"-9 path=a\n",
            b"8 pathaa\n",
            b"000000000005 a=b\n",
            b"10 path=\0a\n",
            b"7 \0=ab\n",
            b"99999999999999999999 a=b\n",
            b"25 GNU.sparse.numbytes=1\n",
        ] {
            assert!(Records::parse(data).is_err(), "{data:?}");
        }
        let data: Vec<u8> = [("offset", "1"), ("numbytes", "2"), ("offset", "5"), ("numbytes", "0")]
            .iter()
            .flat_map(|(key, value)| record(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes()))
            .collect();
        assert_eq!(Records::parse(&data).expect("valid").get("GNU.sparse.map"), Some(&b"1,2,5,0"[..]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(data: Vec<u8>) {
            let _ = Records::parse(&data);
        }
    }
}
