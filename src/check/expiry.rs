//! Until when a certificate is good: as much of X.509 as that takes.
//!
//! ```text
//! Certificate  ::= SEQUENCE { tbsCertificate, … }
//! tbsCertificate ::= SEQUENCE { [0] version?, serial, algorithm, issuer,
//!                               validity SEQUENCE { notBefore, notAfter }, … }
//! ```

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
/// `[0]`, the version.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The time after which the certificate `der` is not good any more; `None` if it cannot be
/// read.
pub(super) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = next(rest)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        rest = next(rest)?.2;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_, _, after) = next(validity)?;
    let (tag, text, _) = next(after)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// The contents of the element that `bytes` begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = next(bytes)?;
    (found == tag).then_some((contents, rest))
}

/// Tag, contents, and what follows.
fn next(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let digits = rest.get(..count)?;
        let length = digits.iter().fold(0usize, |sum, digit| sum << 8 | usize::from(*digit));
        (length, &rest[count..])
    };
    Some((tag, rest.get(..length)?, &rest[length..]))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the forms that certificates have.
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME if text.len() == 12 => {
            let year: i16 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        GENERALIZED_TIME if text.len() == 14 => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let pair = |place: usize| rest[2 * place..2 * place + 2].parse::<i8>().ok();
    let date = DateTime::new(year, pair(0)?, pair(1)?, pair(2)?, pair(3)?, pair(4)?, 0).ok()?;
    TimeZone::UTC.to_timestamp(date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A certificate with this end.
    fn certificate(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn both_forms_of_time_are_read() {
        for (year, want) in [(2031, "2031-03-04T00:00:00Z"), (2051, "2051-03-04T00:00:00Z")] {
            assert_eq!(not_after(&certificate(year)).map(|time| time.to_string()).as_deref(), Some(want));
        }
        assert_eq!(
            time(UTC_TIME, "991231235959Z").map(|time| time.to_string()).as_deref(),
            Some("1999-12-31T23:59:59Z")
        );
        assert_eq!(time(UTC_TIME, "991331235959Z"), None);
        assert_eq!(time(UTC_TIME, "９9"), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = not_after(&bytes);
        }
    }

    #[test]
    fn a_certificate_that_is_cut_is_none() {
        let whole = certificate(2031);
        for length in 0..100.min(whole.len()) {
            assert_eq!(not_after(&whole[..length]), None, "{length} bytes");
        }
    }
}
