//! The one error type of the crate's verbs.
//!
//! An [`Error`] has a [`Kind`], which decides the gRPC code ([`Kind::code`]),
//! and a message that says what was tried, on what, and why it failed, outermost
//! first. Context is added on the way up with [`Context::context`]; the kind stays
//! what the innermost error said unless a verb decides otherwise with
//! [`Error::with_kind`] (behaviour ERR-12: "not found" of an inner object must not
//! reach the kubelet as "the container is gone").

use std::fmt;

use tonic::Code;

/// The result of nearly everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is: one for each gRPC code that the CRI uses (area ERR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object that the call is about does not exist.
    NotFound,
    /// The name or object is taken.
    AlreadyExists,
    /// The request itself is wrong, whatever the state.
    InvalidArgument,
    /// The object is in a state that does not allow this.
    FailedPrecondition,
    /// containerd does not answer, or the server is not ready.
    Unavailable,
    /// This call or option is not served.
    Unimplemented,
    /// The client went away.
    Canceled,
    /// A time limit passed.
    DeadlineExceeded,
    /// A bound was reached.
    ResourceExhausted,
    /// A bug, here or in containerd.
    Internal,
    /// Everything that went wrong outside: a plugin, the OCI runtime, the file system.
    Unknown,
}

impl Kind {
    /// The gRPC code: the only place that chooses it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Kind::NotFound => Code::NotFound,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::Unavailable => Code::Unavailable,
            Kind::Unimplemented => Code::Unimplemented,
            Kind::Canceled => Code::Cancelled,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::Internal => Code::Internal,
            Kind::Unknown => Code::Unknown,
        }
    }
}

/// A failure: its kind and its message.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    /// An error of `kind`; the message is lower case and has no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message, all context included.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }

    /// Whether it is [`Kind::NotFound`].
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// The same error with what was being done in front.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Error {
        Error { kind: self.kind, message: format!("{what}: {}", self.message) }
    }
}

/// Shorthands: `not_found("sandbox {id}")` and so on.
macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {$(
        #[doc = concat!("An error of kind [`Kind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Error {
            Error::new(Kind::$kind, message)
        }
    )*};
}
constructors! {
    not_found => NotFound,
    already_exists => AlreadyExists,
    invalid => InvalidArgument,
    precondition => FailedPrecondition,
    unavailable => Unavailable,
    unimplemented => Unimplemented,
    canceled => Canceled,
    deadline => DeadlineExceeded,
    exhausted => ResourceExhausted,
    internal => Internal,
    unknown => Unknown,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        unknown(io_text(&error))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Error {
        std::io::Error::from(error).into()
    }
}

/// The text of an I/O error without the "(os error N)" that Rust appends.
fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Adds context to the error of a result, of whatever type converts to [`Error`].
pub trait Context<T> {
    /// Puts `what()` in front of the message; `what` says what was being done, on what.
    ///
    /// # Errors
    /// The error of `self`, with the context.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

/// Collects the errors of a teardown, which goes on after the first.
#[derive(Default)]
pub struct Collected(Option<Error>);

impl Collected {
    /// Remembers the error of `result`, if it is one, and says whether it was fine.
    pub fn push(&mut self, result: Result<()>) -> bool {
        let Err(error) = result else { return true };
        self.0 = Some(match self.0.take() {
            None => error,
            Some(first) => {
                Error { kind: first.kind, message: format!("{}; {}", first.message, error.message) }
            }
        });
        false
    }

    /// All errors as one, of the first's kind.
    ///
    /// # Errors
    /// If any was pushed.
    pub fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_reads_outermost_first_and_keeps_the_kind() {
        let error = not_found("snapshot \"a\"").context("create container \"b\"");
        assert_eq!(error.to_string(), "create container \"b\": snapshot \"a\"");
        assert!(error.is_not_found());
    }

    #[test]
    fn io_errors_lose_their_number() {
        let error = Error::from(std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "No such file or directory");
    }

    #[test]
    fn collected_errors_are_all_told() {
        let mut all = Collected::default();
        assert!(all.push(Ok(())));
        assert!(!all.push(Err(unavailable("a"))));
        assert!(!all.push(Err(unknown("b"))));
        let error = all.finish().expect_err("two were pushed");
        assert_eq!((error.kind(), error.message()), (Kind::Unavailable, "a; b"));
    }
}
