//! Errors as clients of the CRI get them (area ERR).

use tonic::Status;

use crate::error::Error;

/// The gRPC status of an error.
#[must_use]
pub fn of(error: &Error) -> Status {
    Status::new(error.kind().code(), error.message())
}

/// The status of a call that is not built.
#[must_use]
pub fn unbuilt(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not served by this version of longshore"))
}
