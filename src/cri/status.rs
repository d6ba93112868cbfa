//! The only chooser of gRPC codes (area ERR).

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// The gRPC status of an error.
#[must_use]
pub fn of(error: &Error) -> Status {
    let code = match error.kind() {
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
    };
    Status::new(code, error.message())
}

/// The status of a call that is not built.
#[must_use]
pub fn unbuilt(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not served by this version of longshore"))
}
