//! Ids and names of pods and containers (areas SVC and NAM).

use std::borrow::Borrow;
use std::fmt;

use crate::proto::cri::{ContainerMetadata, PodSandboxMetadata};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// A new random id: 64 lowercase hexadecimal digits (SVC-30).
            #[must_use]
            pub fn random() -> $name {
                $name(random_hex::<32>())
            }

            /// The text of the id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// Takes an id that is already known: from containerd's records.
        impl From<String> for $name {
            fn from(text: String) -> $name {
                $name(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The id of a pod sandbox, which is also the id of its pause container.
    PodId
}
id! {
    /// The id of a container.
    ContainerId
}

/// Whether `name` has the form of an id: 64 hexadecimal digits. What has another name is not
/// ours to remove.
#[must_use]
pub fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit())
}

/// `2 × BYTES` random lowercase hexadecimal digits.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    hex(&bytes)
}

/// A random number below `limit`, which is small against 2⁶⁴.
pub(crate) fn random_below(limit: u32) -> u32 {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    u32::try_from(u64::from_ne_bytes(bytes) % u64::from(limit.max(1))).expect("below a u32")
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string");
    }
    text
}

/// The internal name of a sandbox: `name_namespace_uid_attempt` (NAM-01).
#[must_use]
pub fn pod_name(metadata: &PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// The internal name of a container: `container_pod_namespace_uid_attempt` (NAM-01),
/// the attempt being the container's own.
#[must_use]
pub fn container_name(container: &ContainerMetadata, pod: &PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}_{}", container.name, pod.name, pod.namespace, pod.uid, container.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_64_hex_digits_and_differ() {
        let (a, b) = (PodId::random(), PodId::random());
        assert_eq!(a.as_str().len(), 64);
        assert!(a.as_str().bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
        assert_ne!(a, b);
    }

    #[test]
    fn names_follow_the_plugin() {
        let pod =
            PodSandboxMetadata { name: "web".into(), namespace: "shop".into(), uid: "u1".into(), attempt: 3 };
        let container = ContainerMetadata { name: "nginx".into(), attempt: 7 };
        assert_eq!(pod_name(&pod), "web_shop_u1_3");
        assert_eq!(container_name(&container, &pod), "nginx_web_shop_u1_7");
    }
}
