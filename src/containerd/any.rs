//! containerd's `Any` values: type URLs without a domain, and JSON where the type is
//! not a protobuf message.

use prost::Message;
use prost_types::Any;

/// The last part of a type URL, which is the type's name.
pub(super) fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Decodes `any` if it is of the type called `name`.
pub(super) fn decode<M: Message + Default>(any: &Any, name: &str) -> Option<M> {
    (type_name(any) == name).then(|| M::decode(any.value.as_slice()).ok()).flatten()
}
