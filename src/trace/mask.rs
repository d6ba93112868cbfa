//! Requests of the CRI as JSON, without their secrets.
//!
//! The CRI's own descriptors say what is one (`debug_redact`): values of environment
//! variables, credentials. So it is for fields that are added later, too. Maps are another
//! matter: an annotation's value is masked where its name says that it is secret, and where
//! it repeats a whole pod. Of a container's request the pod's configuration is left out: it
//! is told with the pod.

use crate::proto::schema::{Field, Kind, SCHEMA, Type};
use crate::proto::wire::{Fields, Value};

/// Stands for a secret.
pub const MASKED: &str = "<masked>";
/// The most bytes of a request's text; what comes behind is kept by nobody.
const BYTES_MAX: usize = 16 << 10;
/// Messages in one another.
const DEPTH_MAX: usize = 16;
/// What the name of a secret has in it.
const SECRET_WORDS: [&str; 7] =
    ["password", "passwd", "secret", "token", "credential", "private", "last-applied-configuration"];
/// Fields that are told elsewhere.
const ELSEWHERE: [(&str, &str); 1] = [(".runtime.v1.CreateContainerRequest", "sandbox_config")];

/// The request of a method of the CRI, as it came.
#[must_use]
pub fn request(method: &str, encoded: &[u8]) -> String {
    let Some(kind) = SCHEMA.methods.get(method).and_then(|method| SCHEMA.messages.get(&method.input)) else {
        return String::new();
    };
    let mut text = String::with_capacity(encoded.len() * 2);
    write_message(&mut text, kind, encoded, 0);
    if text == "{}" { String::new() } else { text }
}

fn write_message(text: &mut String, kind: &Type, encoded: &[u8], depth: usize) {
    text.push('{');
    // The list or map that is being written, and how it ends.
    let mut open: Option<(u32, char)> = None;
    let mut is_first = true;
    for (number, value) in Fields(encoded) {
        let Some(field) = kind.fields.get(&number) else { continue };
        let is_elsewhere = ELSEWHERE.contains(&(kind.name.as_str(), field.name.as_str()));
        if is_elsewhere || text.len() > BYTES_MAX {
            continue;
        }
        let inner = SCHEMA.inner(field);
        let entry = inner.filter(|inner| inner.is_map_entry);
        // Those of one field stand together.
        if open.is_some_and(|(now, _)| now == number) {
            text.push(',');
        } else {
            text.extend(open.take().map(|(_, end)| end));
            if !std::mem::take(&mut is_first) {
                text.push(',');
            }
            write_text(text, &field.name);
            text.push(':');
            if field.is_repeated {
                let (begin, end) = if entry.is_some() { ('{', '}') } else { ('[', ']') };
                text.push(begin);
                open = Some((number, end));
            }
        }
        match (inner, value) {
            _ if field.is_secret => write_text(text, MASKED),
            (Some(inner), Value::Bytes(bytes)) if entry.is_some() => write_entry(text, inner, bytes),
            (Some(inner), Value::Bytes(bytes)) if depth < DEPTH_MAX => {
                write_message(text, inner, bytes, depth + 1);
            }
            (_, value) => write_value(text, field, value),
        }
    }
    text.extend(open.map(|(_, end)| end));
    text.push('}');
}

/// An entry of a map, whose keys are texts or numbers and whose values are neither lists nor
/// maps.
fn write_entry(text: &mut String, entry: &Type, encoded: &[u8]) {
    let (mut key, mut found) = (String::new(), None);
    for (number, value) in Fields(encoded) {
        match (number, value) {
            (1, Value::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
            (1, Value::Number(number)) => key = number.to_string(),
            (2, value) => found = Some(value),
            _ => {}
        }
    }
    write_text(text, &key);
    text.push(':');
    match (entry.fields.get(&2), found) {
        _ if is_secret(&key) => write_text(text, MASKED),
        (Some(Field { kind: Kind::Message(name), .. }), Some(Value::Bytes(bytes))) => {
            match SCHEMA.messages.get(name) {
                // Depth is not counted here: messages of the CRI have no maps of themselves.
                Some(inner) => write_message(text, inner, bytes, DEPTH_MAX - 1),
                None => text.push_str("{}"),
            }
        }
        (Some(field), Some(value)) => write_value(text, field, value),
        _ => text.push_str("\"\""),
    }
}

fn write_value(text: &mut String, field: &Field, value: Value<'_>) {
    match (&field.kind, value) {
        (Kind::Bool, Value::Number(number)) => text.push_str(if number == 0 { "false" } else { "true" }),
        (Kind::Enum(name), Value::Number(number)) => {
            let known = SCHEMA.enums.get(name).and_then(|values| values.get(&number.cast_signed()));
            write_text(text, known.map_or("unknown", String::as_str));
        }
        (_, Value::Number(number)) => text.push_str(&number.cast_signed().to_string()),
        (Kind::Text | Kind::Bytes, Value::Bytes(bytes)) => write_text(text, &String::from_utf8_lossy(bytes)),
        // Packed numbers: the bracket is there already.
        (Kind::Signed | Kind::Unsigned, Value::Bytes(bytes)) => {
            let mut packed = Fields(bytes);
            let numbers: Vec<String> =
                std::iter::from_fn(|| packed.number()).map(|it| it.cast_signed().to_string()).collect();
            text.push_str(&numbers.join(","));
        }
        _ => text.push_str("null"),
    }
}

fn write_text(text: &mut String, value: &str) {
    match serde_json::to_string(value) {
        Ok(quoted) => text.push_str(&quoted),
        Err(_) => text.push_str("\"\""),
    }
}

/// Whether what has this name is a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Masks in JSON of others (what a CNI plugin gets, a spec) the values whose names say that
/// they are secret, and those of environment variables.
pub fn value(json: &mut serde_json::Value) {
    use serde_json::Value;
    match json {
        Value::Object(map) => {
            for (name, inner) in map {
                match inner {
                    _ if is_secret(name) => *inner = MASKED.into(),
                    Value::Array(list) if name == "env" => list.iter_mut().for_each(variable),
                    _ => value(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(value),
        _ => {}
    }
}

/// Masks the value of a variable; of what is none it leaves nothing.
fn variable(json: &mut serde_json::Value) {
    let name = json.as_str().and_then(|text| text.split_once('=')).map(|(name, _)| name);
    *json = name.map_or_else(|| MASKED.into(), |name| format!("{name}={MASKED}").into());
}

/// JSON of others, masked by [`value`]. What is no JSON is not told.
#[must_use]
pub fn json(text: &[u8]) -> String {
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(mut json) => {
            value(&mut json);
            json.to_string()
        }
        Err(_) if text.trim_ascii().is_empty() => String::new(),
        Err(_) => format!("({} bytes that are no JSON)", text.len()),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::proto::cri::*;

    fn told(method: &str, message: &impl Message) -> Json {
        let text = request(method, &message.encode_to_vec());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn secrets_of_a_spec_are_masked() {
        let mut spec = json!({
            "process": {"args": ["a=b"], "env": ["PATH=/bin", "EMPTY=", "none"]},
            "annotations": {"a": "b", "my-token": "hunter2"},
            "hooks": {"createRuntime": [{"path": "/h", "env": ["KEY=hunter2"]}]},
        });
        value(&mut spec);
        let masked = |name: &str| format!("{name}={MASKED}");
        let want = json!({
            "process": {"args": ["a=b"], "env": [masked("PATH"), masked("EMPTY"), MASKED]},
            "annotations": {"a": "b", "my-token": MASKED},
            "hooks": {"createRuntime": [{"path": "/h", "env": [masked("KEY")]}]},
        });
        assert_eq!(spec, want);
    }

    #[test]
    fn secrets_of_a_container_are_masked_and_the_rest_is_told() {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 2 }),
            command: vec!["sh".into(), "-c".into()],
            envs: vec![
                KeyValue { key: "A".into(), value: b"hunter2".to_vec() },
                KeyValue { key: "B".into(), value: b"hunter2".to_vec() },
            ],
            annotations: [
                ("a".to_owned(), "b".to_owned()),
                ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "hunter2".to_owned()),
                ("my-Token".to_owned(), "hunter2".to_owned()),
            ]
            .into(),
            mounts: vec![Mount {
                host_path: "/a".into(),
                propagation: 2,
                readonly: true,
                ..Default::default()
            }],
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources { oom_score_adj: -997, ..Default::default() }),
                security_context: Some(LinuxContainerSecurityContext {
                    supplemental_groups: vec![1, 2],
                    seccomp: Some(SecurityProfile { profile_type: 2, ..Default::default() }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let message = CreateContainerRequest {
            pod_sandbox_id: "p".into(),
            config: Some(config),
            sandbox_config: Some(PodSandboxConfig { hostname: "elsewhere".into(), ..Default::default() }),
        };
        let want = json!({
            "pod_sandbox_id": "p",
            "config": {
                "metadata": {"name": "c", "attempt": 2},
                "command": ["sh", "-c"],
                "envs": [{"key": "A", "value": MASKED}, {"key": "B", "value": MASKED}],
                "mounts": [{"host_path": "/a", "readonly": true, "propagation": "PROPAGATION_BIDIRECTIONAL"}],
                "annotations": {
                    "a": "b",
                    "kubectl.kubernetes.io/last-applied-configuration": MASKED,
                    "my-Token": MASKED,
                },
                "linux": {
                    "resources": {"oom_score_adj": -997},
                    "security_context": {
                        "supplemental_groups": [1, 2],
                        "seccomp": {"profile_type": "Localhost"},
                    },
                },
            },
        });
        assert_eq!(told("CreateContainer", &message), want);
    }

    #[test]
    fn credentials_of_a_pull_are_masked() {
        let auth = AuthConfig {
            username: "hunter2".into(),
            password: "hunter2".into(),
            auth: "hunter2".into(),
            server_address: "r.io".into(),
            identity_token: "hunter2".into(),
            registry_token: "hunter2".into(),
        };
        let image = ImageSpec { image: "r.io/a:1".into(), ..Default::default() };
        let message = PullImageRequest { image: Some(image), auth: Some(auth), ..Default::default() };
        let told = told("PullImage", &message);
        assert_eq!(told["auth"]["server_address"], "r.io");
        assert_eq!(told["auth"]["username"], MASKED);
        assert!(!told.to_string().contains("hunter2"), "{told}");
    }

    /// What is marked in the schema is masked, wherever it stands.
    #[test]
    fn the_schema_says_what_is_secret() {
        let marked: Vec<String> = SCHEMA
            .messages
            .iter()
            .flat_map(|(name, kind)| {
                let secrets = kind.fields.values().filter(|field| field.is_secret);
                secrets.map(move |field| format!("{name}.{}", field.name))
            })
            .collect();
        assert!(marked.contains(&".runtime.v1.KeyValue.value".to_owned()), "{marked:?}");
        assert_eq!(
            marked.len(),
            include_str!("../../proto/cri/v1/runtime.proto").matches("[debug_redact").count()
        );
    }

    #[test]
    fn nothing_and_nonsense_are_told_as_such() {
        assert_eq!(request("ListContainers", &[]), "");
        assert_eq!(request("NoSuchMethod", b"\x0a\x01a"), "");
        for end in 0..64 {
            let _ = request("RunPodSandbox", &[0xff; 64][..end]);
            let _ = request("RunPodSandbox", &[0x0a; 64][..end]);
        }
    }

    #[test]
    fn json_of_others_is_masked_by_names() {
        let text = br#"{"name":"n","etcd":{"Password":"hunter2"},"plugins":[{"authToken":{"a":"hunter2"}}]}"#;
        assert_eq!(
            json(text),
            r#"{"etcd":{"Password":"<masked>"},"name":"n","plugins":[{"authToken":"<masked>"}]}"#
        );
        assert_eq!(json(b" "), "");
        assert_eq!(json(b"hunter2"), "(7 bytes that are no JSON)");
    }
}
