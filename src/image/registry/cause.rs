//! Why a server did not give what it was asked for.

use std::time::Duration;

/// The reason, which decides what comes next: another attempt, another server, the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) enum Cause {
    /// There is no connection to it (IMG-38).
    Unreachable(String),
    /// It does not speak TLS.
    NotTls(String),
    /// It does not have it.
    NotFound,
    /// It wants to know who asks, and what we could say did not do.
    Unauthorized(String),
    /// It is too busy, or broken for the moment, and may want us to wait so long.
    Busy(String, Option<Duration>),
    /// It is not there behind its gateway.
    Down(String, Option<Duration>),
    /// It broke off, or stalled.
    Broken(String),
    /// It answered something else.
    Failed(String),
    /// What it sent is not what was asked for (IMG-28).
    Corrupt(String),
}

impl Cause {
    /// Whether the same server may do better in a moment.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Cause::Unreachable(_) | Cause::Busy(..) | Cause::Down(..) | Cause::Broken(_))
    }

    /// Whether nobody is there.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self, Cause::Unreachable(_) | Cause::Down(..))
    }

    /// How long the server wants to be left alone.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Cause::Busy(_, wait) | Cause::Down(_, wait) => *wait,
            _ => None,
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Cause::NotFound => "not found",
            Cause::Unreachable(text)
            | Cause::NotTls(text)
            | Cause::Unauthorized(text)
            | Cause::Busy(text, _)
            | Cause::Down(text, _)
            | Cause::Broken(text)
            | Cause::Failed(text)
            | Cause::Corrupt(text) => text,
        }
    }
}
