//! Requests of files: JSON or YAML, as crictl takes them.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Context, Result, invalid};
use crate::proto::cri::{ContainerConfig, PodSandboxConfig, PodSandboxMetadata};

/// The largest file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What is to be explained.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// The pod.
    pub pod: PodSandboxConfig,
    /// The runtime handler that is asked for; empty for the default one.
    pub handler: String,
    /// Containers in it.
    pub containers: Vec<ContainerConfig>,
    /// Whether the pod is to be explained, too.
    pub shows_pod: bool,
    /// Whether they are what the kubelet would send: it says which user an image has.
    pub is_kubelets: bool,
    /// What is not said by the files, or not understood.
    pub said: Vec<String>,
}

/// A file as a value.
///
/// # Errors
/// What is wrong with it.
pub fn file(path: &Path) -> Result<Value> {
    let what = || format!("{path:?}");
    if std::fs::metadata(path).context(what)?.len() > FILE_BYTES_MAX {
        return Err(invalid(format!("{path:?} has more than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).context(what)?;
    parse(&text).context(what)
}

fn parse(text: &str) -> Result<Value> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| invalid(error.to_string()));
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| invalid(error.to_string()))
}

/// Whether a file is a manifest of Kubernetes, and of which kind.
#[must_use]
pub fn kind(value: &Value) -> Option<&str> {
    value.get("apiVersion").and(value.get("kind")).and_then(Value::as_str)
}

/// The requests of a container's config and of a pod's, or of one of them. A container without
/// a pod is put into one that asks for nothing.
///
/// # Errors
/// InvalidArgument for a file that is none of them.
pub fn configs(container: Option<&Value>, pod: Option<&Value>, handler: &str) -> Result<Requests> {
    let mut requests = Requests { handler: handler.to_owned(), ..Requests::default() };
    match pod {
        Some(value) => {
            requests.pod = message("pod config", value, &mut requests.said)?;
            requests.shows_pod = true;
        }
        None => {
            requests.pod = PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: "POD".into(),
                    uid: "POD-UID".into(),
                    namespace: "NAMESPACE".into(),
                    attempt: 0,
                }),
                ..PodSandboxConfig::default()
            };
            requests.said.push("no pod config is given: the pod is one that asks for nothing".into());
        }
    }
    if let Some(value) = container {
        requests.containers.push(message("container config", value, &mut requests.said)?);
    }
    Ok(requests)
}

/// Whether a config is a container's: only those name an image.
#[must_use]
pub fn is_container(value: &Value) -> bool {
    value.get("image").is_some()
}

fn message<T: DeserializeOwned + Serialize>(what: &str, value: &Value, said: &mut Vec<String>) -> Result<T> {
    let message: T =
        serde_json::from_value(value.clone()).map_err(|error| invalid(format!("{what}: {error}")))?;
    let known = serde_json::to_value(&message).expect("text keys only");
    let mut unknown = Vec::new();
    unread(value, &known, String::new(), &mut unknown);
    said.extend(
        unknown
            .into_iter()
            .map(|field| format!("{what}: {field} is no field of the CRI, or is of no effect")),
    );
    Ok(message)
}

/// The fields of `given` that say something and are not in `known`.
fn unread(given: &Value, known: &Value, at: String, found: &mut Vec<String>) {
    match given {
        Value::Object(map) => {
            for (name, value) in map {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                match known.get(name) {
                    Some(known) => unread(value, known, at, found),
                    None if is_nothing(value) => {}
                    None => found.push(at),
                }
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                unread(value, &known[place], format!("{at}[{place}]"), found);
            }
        }
        _ => {}
    }
}

/// What Go leaves out when it writes JSON.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_crictl_are_read() {
        let yaml = "metadata:\n  name: c\nimage:\n  image: busybox\nenvs:\n- key: A\n  value: '1'\nlinux:\n  resources:\n    cpu_shares: 7\n  secrity_context: {privileged: true}\nlog_path: ''\n";
        let value = parse(yaml).expect("YAML");
        assert!(is_container(&value) && kind(&value).is_none());
        let requests = configs(Some(&value), None, "").expect("requests");
        let config = &requests.containers[0];
        assert_eq!(config.envs[0].value, b"1");
        assert_eq!(
            config.linux.as_ref().and_then(|linux| linux.resources.as_ref()).map(|r| r.cpu_shares),
            Some(7)
        );
        assert!(
            requests.said.iter().any(|said| said.contains("linux.secrity_context")),
            "{:?}",
            requests.said
        );
        assert_eq!(requests.said.len(), 2);
        assert!(parse("{\"a\": 1").is_err() && parse("a: [").is_err());
    }
}
