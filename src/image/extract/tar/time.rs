//! Times of a tar archive, and what becomes of them on a file system.
//!
//! An archive can name any second; containerd sets what lies before 1970 or after the
//! last nanosecond of 64 bits (in 2262) to 1970, and an access time that is before the
//! modification time to that one.

use std::cmp::Ordering;

use rustix::fs::{Timespec, Timestamps};

use super::{Invalid, invalid};

/// Seconds from the year 1 to 1970. Go counts from there, so that a second too far in
/// the future is one before everything.
const YEAR_1: i64 = 62_135_596_800;
const NANOSECONDS: i64 = 1_000_000_000;

/// A time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    seconds: i64,
    nanoseconds: i64,
}

impl Time {
    /// Seconds and nanoseconds since 1970; the latter may be negative.
    pub(super) fn new(seconds: i64, nanoseconds: i64) -> Time {
        Time {
            seconds: seconds.wrapping_add(nanoseconds.div_euclid(NANOSECONDS)),
            nanoseconds: nanoseconds.rem_euclid(NANOSECONDS),
        }
    }

    /// Reads a record of PAX: seconds, with or without a fraction.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn parse(text: &[u8]) -> Result<Time, Invalid> {
        let (whole, fraction) = match memchr::memchr(b'.', text) {
            Some(point) => (&text[..point], &text[point + 1..]),
            None => (text, &b""[..]),
        };
        let seconds = super::pax::integer(whole)?;
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(invalid("a time is not a number"));
        }
        let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
        let nanoseconds = digits.fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
        Ok(Time::new(seconds, if whole.starts_with(b"-") { -nanoseconds } else { nanoseconds }))
    }

    fn since_year_1(self) -> (i64, i64) {
        (self.seconds.wrapping_add(YEAR_1), self.nanoseconds)
    }

    fn bounded(self) -> Timespec {
        let last = Time::new(0, i64::MAX).since_year_1();
        if (Time::default().since_year_1()..=last).contains(&self.since_year_1()) {
            Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds }
        } else {
            Timespec { tv_sec: 0, tv_nsec: 0 }
        }
    }
}

/// The times that a file gets.
pub(super) fn timestamps(atime: Option<Time>, mtime: Time) -> Timestamps {
    let later = |atime: &Time| atime.since_year_1().cmp(&mtime.since_year_1()) != Ordering::Less;
    Timestamps {
        last_access: atime.filter(later).unwrap_or(mtime).bounded(),
        last_modification: mtime.bounded(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_cut_at_nanoseconds() {
        for (text, want) in [
            ("5", Some((5, 0))),
            ("+5", Some((5, 0))),
            ("5.", Some((5, 0))),
            ("5.25", Some((5, 250_000_000))),
            ("5.1234567899", Some((5, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("", None),
            (".5", None),
            ("5.x", None),
            ("5.1.2", None),
            ("99999999999999999999", None),
        ] {
            let time = Time::parse(text.as_bytes()).ok();
            assert_eq!(time.map(|time| (time.seconds, time.nanoseconds)), want, "{text}");
        }
    }

    #[test]
    fn times_out_of_bounds_are_1970_and_access_is_not_before_modification() {
        let set = |atime: Option<i64>, mtime: i64| {
            let set = timestamps(atime.map(|time| Time::new(time, 0)), Time::new(mtime, 0));
            (set.last_access.tv_sec, set.last_modification.tv_sec)
        };
        assert_eq!(set(None, 7), (7, 7));
        assert_eq!(set(Some(5), 7), (7, 7));
        assert_eq!(set(Some(9), 7), (9, 7));
        assert_eq!(set(Some(9), -7), (9, 0));
        assert_eq!(set(None, 9_223_372_036), (9_223_372_036, 9_223_372_036));
        assert_eq!(set(None, 9_223_372_037), (0, 0));
        assert_eq!(set(Some(i64::MAX), 7), (7, 7));
        assert_eq!(set(Some(5), i64::MIN), (5, 0));
    }
}
