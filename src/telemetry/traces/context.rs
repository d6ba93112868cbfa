//! Which trace a call belongs to, as callers tell each other: the headers `traceparent` and
//! `tracestate` of W3C's Trace Context.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;

/// The header.
pub(super) const HEADER: &str = "traceparent";

/// The header with what others have to say of the trace: not ours to read, to be passed on.
pub(super) const STATE_HEADER: &str = "tracestate";
/// So much of it must be passed on; what is longer is not.
const STATE_BYTES_MAX: usize = 512;

/// What the headers say of the trace beside its place; it may be cut into several.
pub(super) fn state_of(headers: &HeaderMap) -> Option<Arc<str>> {
    let parts: Option<Vec<&str>> =
        headers.get_all(STATE_HEADER).iter().map(|part| part.to_str().ok()).collect();
    let text = parts?.join(",");
    (!text.is_empty() && text.len() <= STATE_BYTES_MAX).then(|| text.into())
}

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    /// Whether somebody keeps it.
    pub(super) is_sampled: bool,
}

impl Context {
    /// What the headers of a call say; none for none, or for one that is broken.
    pub(super) fn of(headers: &HeaderMap) -> Option<Context> {
        Context::parse(headers.get(HEADER)?.to_str().ok()?)
    }

    /// Reads `version-trace-span-flags`. Of a later version that much is known, too.
    fn parse(text: &str) -> Option<Context> {
        let (known, more) = text.split_at_checked(55)?;
        let mut parts = known.split('-');
        let [version] = hexadecimal::<1>(parts.next()?)?;
        let context = Context {
            trace: hexadecimal(parts.next()?)?,
            span: hexadecimal(parts.next()?)?,
            is_sampled: hexadecimal::<1>(parts.next()?)?[0] & 1 == 1,
        };
        let is_whole = parts.next().is_none() && (more.is_empty() || (version > 0 && more.starts_with('-')));
        let is_valid = version != 0xff && context.trace != [0; 16] && context.span != [0; 8];
        (is_whole && is_valid).then_some(context)
    }

    /// A new trace.
    pub(super) fn new(is_sampled: bool) -> Context {
        Context { trace: random(), span: random(), is_sampled }
    }

    /// A new place below this one.
    pub(super) fn child(self) -> Context {
        Context { span: random(), ..self }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.is_sampled))
    }
}

/// Bytes of exactly as many small hexadecimal digits.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

/// Ids need not be secret, but all servers' together must be different.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Refused only before the kernel has started. A zero would say that there is no id.
    let _ = getrandom::fill(&mut bytes);
    bytes[N - 1] |= 1;
    bytes
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_was_read_is_written_again() {
        let context = Context::parse(TEXT).expect("a context");
        assert!(context.is_sampled);
        assert_eq!((context.trace[0], context.span[7]), (0x0a, 0x31));
        assert_eq!(context.to_string(), TEXT);
        let child = context.child();
        assert_eq!((child.trace, child.is_sampled), (context.trace, true));
        assert_ne!(child.span, context.span);
        assert_eq!(Context::parse(&Context::new(false).to_string()).map(|it| it.is_sampled), Some(false));
    }

    #[test]
    fn the_state_is_passed_on_as_it_is_unless_it_is_too_long() {
        let of = |parts: &[&str]| {
            let parts = parts.iter().map(|part| (HeaderName::from_static(STATE_HEADER), part.parse()));
            let headers: HeaderMap = parts.map(|(name, part)| (name, part.expect("a value"))).collect();
            state_of(&headers)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["a=1"]).as_deref(), Some("a=1"));
        let mut several = HeaderMap::new();
        for part in ["a=1", "b=2, c=3"] {
            several.append(STATE_HEADER, part.parse().expect("a value"));
        }
        assert_eq!(state_of(&several).as_deref(), Some("a=1,b=2, c=3"));
        assert!(of(&[&"a".repeat(512)]).is_some());
        assert_eq!(of(&[&"a".repeat(513)]), None);
    }

    #[test]
    fn later_versions_are_read_and_broken_ones_are_none() {
        let later = TEXT.replacen("00", "01", 1);
        assert!(Context::parse(&later).is_some() && Context::parse(&format!("{later}-more")).is_some());
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned();
        for broken in [
            String::new(),
            format!("{TEXT}-more"),
            format!("{later}more"),
            TEXT.to_uppercase(),
            TEXT.replacen("00", "ff", 1),
            TEXT.replace('b', "ä"),
            TEXT.replacen('-', "_", 1),
            TEXT[..54].to_owned(),
            zeros,
        ] {
            assert_eq!(Context::parse(&broken), None, "{broken:?}");
        }
    }
}
