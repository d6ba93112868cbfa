//! The generated messages and services, and the serde helpers of their JSON form.
//!
//! The CRI messages serialise to the JSON that Go's `encoding/json` makes of the
//! plugin's own structs (behaviour COX-07), since that is what stands in containerd's
//! container records: proto field names, zero values left out, enums and 64-bit
//! integers as numbers. `build.rs` adds the attributes.

#![allow(missing_docs)] // generated: proto/ is the documentation

/// The CRI, version 1.
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Options of containerd's runc shim.
pub mod runc {
    tonic::include_proto!("containerd.runc.v1");
}

/// Options of all other shims.
pub mod runtimeoptions {
    tonic::include_proto!("runtimeoptions.v1");
}

/// A task's metrics, as far as read.
pub mod cgroups {
    pub mod v1 {
        tonic::include_proto!("io.containerd.cgroups.v1");
    }
    pub mod v2 {
        tonic::include_proto!("io.containerd.cgroups.v2");
    }
}

/// The CRI's descriptors (for the wire contract test and for reflection).
pub const CRI_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));

pub(crate) mod schema;
pub(crate) mod wire;

use std::fmt;

/// Stands for a secret in debug output.
pub(crate) const MASKED: &str = "<masked>";

/// Whether a field has its zero value, which Go's `omitempty` leaves out.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `bytes` fields as JSON text.
///
/// The only one that is stored is `KeyValue.value`, the value of an environment
/// variable: a `string` in older releases of the API, and stored as text by every
/// containerd that we know of. Text that is not UTF-8 is kept exactly behind a marker
/// that no environment value can start with, a NUL byte.
pub(crate) mod go_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    const MARKER: &str = "\0base64:";

    pub(crate) fn serialize<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(value) {
            Ok(text) => to.serialize_str(text),
            Err(_) => to.serialize_str(&format!("{MARKER}{}", STANDARD.encode(value))),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        match text.strip_prefix(MARKER) {
            Some(encoded) => STANDARD.decode(encoded).map_err(serde::de::Error::custom),
            None => Ok(text.into_bytes()),
        }
    }
}

impl fmt::Debug for cri::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

impl fmt::Debug for cri::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("key", &self.key).field("value", &MASKED).finish()
    }
}

impl fmt::Debug for cri::ExecSyncResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSyncResponse").field("exit_code", &self.exit_code).finish_non_exhaustive()
    }
}

macro_rules! masked_url {
    ($($message:ident),*) => {$(
        impl fmt::Debug for cri::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).field("url", &MASKED).finish()
            }
        }
    )*};
}
masked_url!(ExecResponse, AttachResponse, PortForwardResponse);

#[cfg(test)]
mod tests {
    use super::cri::*;

    #[test]
    fn zero_values_are_left_out_and_empty_messages_are_kept() {
        let config = ContainerConfig {
            envs: vec![
                KeyValue { key: "A".into(), value: b"1".to_vec() },
                KeyValue { key: "EMPTY".into(), value: Vec::new() },
            ],
            cdi_devices: vec![CdiDevice { name: "v.com/gpu=0".into() }],
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    run_as_user: Some(Int64Value { value: 0 }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let json = serde_json::to_string(&config).expect("serialises");
        assert_eq!(
            json,
            r#"{"envs":[{"key":"A","value":"1"},{"key":"EMPTY"}],"linux":{"security_context":{"run_as_user":{}}},"CDI_devices":[{"name":"v.com/gpu=0"}]}"#
        );
        assert_eq!(serde_json::from_str::<ContainerConfig>(&json).expect("parses"), config);
    }

    #[test]
    fn environment_values_that_are_not_text_survive() {
        let pair = KeyValue { key: "B".into(), value: vec![0xff, 0xfe, b'='] };
        let json = serde_json::to_string(&pair).expect("serialises");
        assert_eq!(serde_json::from_str::<KeyValue>(&json).expect("parses"), pair);
    }

    #[test]
    fn secrets_are_masked_in_debug_output() {
        let auth = AuthConfig { password: "hunter2".into(), ..Default::default() };
        let env = KeyValue { key: "TOKEN".into(), value: b"hunter2".to_vec() };
        let exec = ExecSyncResponse { stdout: b"hunter2".to_vec(), ..Default::default() };
        let url = ExecResponse { url: "http://127.0.0.1/exec/hunter2".into() };
        assert!(!format!("{auth:?} {env:?} {exec:?} {url:?}").contains("hunter2"));
    }
}
