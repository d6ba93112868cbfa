//! containerd's gRPC statuses as our errors (ERR-11).

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// The error for `status`, which containerd's `call` gave.
pub(super) fn from_status(call: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Unavailable => Kind::Unavailable,
        Code::Unimplemented => Kind::Unimplemented,
        Code::Cancelled => Kind::Canceled,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        _ => Kind::Unknown,
    };
    // A status without a message comes from the transport: its cause says more.
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        message = cause.to_string();
        source = cause.source();
    }
    let kind = if is_transport(status) { Kind::Unavailable } else { kind };
    // containerd has no code for this one.
    let is_full = kind == Kind::Unknown && message.contains("no space left on device");
    let kind = if is_full { Kind::ResourceExhausted } else { kind };
    if kind == Kind::Unavailable {
        message = format!("containerd does not answer: {message}");
    }
    Error::new(kind, format!("containerd's {call}: {message}"))
}

/// Whether the connection failed, and not the call.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some() && status.code() != Code::DeadlineExceeded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_pass_and_the_rest_is_unknown() {
        assert_eq!(from_status("Tasks.Get", &Status::not_found("x")).kind(), Kind::NotFound);
        let error = from_status("Tasks.Create", &Status::internal("runc create failed"));
        assert_eq!(
            (error.kind(), error.message()),
            (Kind::Unknown, "containerd's Tasks.Create: runc create failed")
        );
    }
}
