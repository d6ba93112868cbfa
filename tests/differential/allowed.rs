//! The differences that are meant: the rows of docs/differences.md.

use serde_json::Value;

use crate::harness::Version;
use crate::normal::Found;

/// A place where both differ, with the request.
pub(crate) struct Case<'a> {
    pub(crate) call: &'static str,
    pub(crate) request: &'a Value,
    pub(crate) found: &'a Found,
    pub(crate) version: &'a Version,
}

/// A difference that is meant.
pub(crate) struct Allowed {
    pub(crate) id: &'static str,
    pub(crate) applies: fn(&Case<'_>) -> bool,
}

pub(crate) const ALL: &[Allowed] =
    &[Allowed { id: "oci-version", applies: |case| case.found.path == ".spec.ociVersion" }];
