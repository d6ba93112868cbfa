//! Messages of the CRI as JSON, and back.
//!
//! The form is that of the schema: its names of fields and enums' values, numbers as numbers,
//! what is not sent is not there. Bytes are text, or `{"base64": …}` where they are none. What
//! comes back of it is, field by field, what was sent, but for what is masked: what the schema
//! marks as secret, values of maps whose names say so, and all of `info`, the verbose answers,
//! which repeat whole specs and configurations. Fields that the schema does not know could be
//! secret, too: only their numbers are told, under `?`.

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value as Json};

use super::format::Keep;
use crate::proto::schema::{Field, Kind, SCHEMA, Type};
use crate::proto::wire::{Fields, Value};
use crate::trace::mask::{MASKED, is_secret};

/// Stands for the fields that the schema does not know.
const UNKNOWN: &str = "?";
/// The map of what a server tells when it is asked to be verbose.
const VERBOSE: &str = "info";
/// Bytes that are no text.
const BASE64: &str = "base64";
/// Messages in one another.
const DEPTH_MAX: usize = 32;

/// The JSON of a message of the type `name`; none where the schema has no such type.
pub(super) fn to_json(name: &str, encoded: &[u8], keep: Keep) -> Option<Json> {
    SCHEMA.messages.get(name).map(|kind| message(kind, encoded, keep, 0))
}

fn message(kind: &Type, encoded: &[u8], keep: Keep, depth: usize) -> Json {
    let mut object = Map::new();
    let mut unknown = Vec::new();
    for (number, value) in Fields(encoded) {
        let Some(field) = kind.fields.get(&number) else {
            unknown.push(number);
            continue;
        };
        if let (Some(entry), Value::Bytes(bytes)) = (SCHEMA.inner(field).filter(|it| it.is_map_entry), value)
        {
            let (key, value) = map_entry(entry, bytes, keep, depth);
            let is_masked = field.name == VERBOSE || is_secret(&key);
            let map = object.entry(field.name.clone()).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(map) = map {
                map.insert(key, if is_masked { MASKED.into() } else { value });
            }
            continue;
        }
        let is_masked = field.is_secret && !keep.has(&kind.name);
        let values = match value {
            _ if is_masked => vec![MASKED.into()],
            Value::Bytes(bytes) if is_number(&field.kind) => packed(field, bytes),
            value => vec![single(field, value, keep, depth)],
        };
        if field.is_repeated {
            let list = object.entry(field.name.clone()).or_insert_with(|| Json::Array(Vec::new()));
            if let Json::Array(list) = list {
                list.extend(values);
            }
        } else if let Some(value) = values.into_iter().next() {
            object.insert(field.name.clone(), value);
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        object.insert(UNKNOWN.to_owned(), unknown.into());
    }
    Json::Object(object)
}

fn is_number(kind: &Kind) -> bool {
    matches!(kind, Kind::Bool | Kind::Signed | Kind::Unsigned | Kind::Enum(_))
}

fn packed(field: &Field, bytes: &[u8]) -> Vec<Json> {
    let mut packed = Fields(bytes);
    std::iter::from_fn(|| packed.number()).map(|number| scalar(field, number)).collect()
}

fn single(field: &Field, value: Value<'_>, keep: Keep, depth: usize) -> Json {
    match (&field.kind, value) {
        (_, Value::Number(number)) => scalar(field, number),
        (Kind::Message(name), Value::Bytes(bytes)) if depth < DEPTH_MAX => {
            SCHEMA.messages.get(name).map_or(Json::Null, |inner| message(inner, bytes, keep, depth + 1))
        }
        (Kind::Text, Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into(),
        (Kind::Bytes, Value::Bytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => {
                Json::Object([(BASE64.to_owned(), STANDARD.encode(bytes).into())].into_iter().collect())
            }
        },
        _ => Json::Null,
    }
}

fn scalar(field: &Field, number: u64) -> Json {
    match &field.kind {
        Kind::Bool => (number != 0).into(),
        Kind::Unsigned => number.into(),
        Kind::Double => f64::from_bits(number).into(),
        Kind::Enum(name) => {
            let known = SCHEMA.enums.get(name).and_then(|values| values.get(&number.cast_signed()));
            known.map_or_else(|| number.cast_signed().into(), |name| name.as_str().into())
        }
        _ => number.cast_signed().into(),
    }
}

/// Keys of the CRI's maps are texts.
fn map_entry(entry: &Type, encoded: &[u8], keep: Keep, depth: usize) -> (String, Json) {
    let (mut key, mut value) = (String::new(), Json::String(String::new()));
    for (number, found) in Fields(encoded) {
        match (number, found, entry.fields.get(&number)) {
            (1, Value::Bytes(bytes), _) => key = String::from_utf8_lossy(bytes).into_owned(),
            (2, found, Some(field)) => value = single(field, found, keep, depth + 1),
            _ => {}
        }
    }
    (key, value)
}

/// A message of the type `name`, of its JSON.
///
/// # Errors
/// What the schema does not have, or not so.
pub(super) fn to_wire(name: &str, json: &Json) -> anyhow::Result<Vec<u8>> {
    let kind = SCHEMA.messages.get(name).with_context(|| format!("there is no message {name}"))?;
    let mut encoded = Vec::new();
    write_message(&mut encoded, kind, json)?;
    Ok(encoded)
}

fn write_message(to: &mut Vec<u8>, kind: &Type, json: &Json) -> anyhow::Result<()> {
    let Json::Object(object) = json else { bail!("{}: {json} is no message", kind.name) };
    let mut fields = Vec::new();
    for (name, value) in object.iter().filter(|(name, _)| *name != UNKNOWN) {
        let field = kind.fields.values().find(|field| field.name == *name);
        fields.push((field.with_context(|| format!("{} has no field {name}", kind.name))?, value));
    }
    fields.sort_by_key(|(field, _)| field.number);
    for (field, value) in fields {
        match value {
            Json::Array(list) if field.is_repeated => {
                list.iter().try_for_each(|value| write_field(to, field, value))
            }
            Json::Object(map) if field.is_repeated => {
                map.iter().try_for_each(|(key, value)| write_entry(to, field, key, value))
            }
            value => write_field(to, field, value),
        }
        .with_context(|| format!("{}.{}", kind.name, field.name))?;
    }
    Ok(())
}

fn write_entry(to: &mut Vec<u8>, field: &Field, key: &str, value: &Json) -> anyhow::Result<()> {
    let entry = SCHEMA.inner(field).filter(|inner| inner.is_map_entry).context("is no map")?;
    let mut inner = Vec::new();
    write_bytes(&mut inner, 1, key.as_bytes());
    if let Some(field) = entry.fields.get(&2) {
        write_field(&mut inner, field, value)?;
    }
    write_bytes(to, field.number, &inner);
    Ok(())
}

fn write_field(to: &mut Vec<u8>, field: &Field, value: &Json) -> anyhow::Result<()> {
    let wrong = || format!("{value} is no value of {:?}", field.kind);
    match &field.kind {
        Kind::Message(name) => write_bytes(to, field.number, &to_wire(name, value)?),
        Kind::Text => write_bytes(to, field.number, value.as_str().with_context(wrong)?.as_bytes()),
        Kind::Bytes => match (value.as_str(), value.get(BASE64).and_then(Json::as_str)) {
            (Some(text), _) => write_bytes(to, field.number, text.as_bytes()),
            (_, Some(encoded)) => write_bytes(to, field.number, &STANDARD.decode(encoded)?),
            _ => bail!(wrong()),
        },
        Kind::Double => {
            encode_key(field.number, WireType::SixtyFourBit, to);
            to.extend_from_slice(&value.as_f64().with_context(wrong)?.to_le_bytes());
        }
        kind => {
            let number = match kind {
                Kind::Bool => value.as_bool().map(u64::from),
                Kind::Unsigned => value.as_u64(),
                Kind::Enum(name) => enum_number(name, value).map(i64::cast_unsigned),
                _ => value.as_i64().map(i64::cast_unsigned),
            };
            encode_key(field.number, WireType::Varint, to);
            encode_varint(number.with_context(wrong)?, to);
        }
    }
    Ok(())
}

fn enum_number(name: &str, value: &Json) -> Option<i64> {
    let Some(text) = value.as_str() else { return value.as_i64() };
    let values = SCHEMA.enums.get(name)?;
    values.iter().find_map(|(number, name)| (name == text).then_some(*number))
}

fn write_bytes(to: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::*;
    use crate::proto::cri::*;

    const ALL: Keep = Keep { env: true, output: true };

    fn there_and_back<M: Message + Default + PartialEq + std::fmt::Debug>(name: &str, message: &M) -> Json {
        let json = to_json(name, &message.encode_to_vec(), ALL).expect("a known type");
        let text = json.to_string();
        let read: Json = serde_json::from_str(&text).expect("JSON");
        let encoded = to_wire(name, &read).unwrap_or_else(|error| panic!("{error:#}: {text}"));
        assert_eq!(&M::decode(encoded.as_slice()).expect("a message"), message, "{text}");
        json
    }

    fn container() -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 2 }),
            command: vec!["sh".into(), String::new()],
            envs: vec![
                KeyValue { key: "A".into(), value: b"hunter2".to_vec() },
                KeyValue { key: "B".into(), value: vec![0xff, 0] },
            ],
            labels: [("a".to_owned(), "b".to_owned()), ("empty".to_owned(), String::new())].into(),
            annotations: [("my-token".to_owned(), "hunter2".to_owned())].into(),
            mounts: vec![Mount { propagation: 2, readonly: true, ..Default::default() }, Mount::default()],
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    oom_score_adj: -997,
                    memory_limit_in_bytes: i64::MAX,
                    hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: u64::MAX }],
                    ..Default::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    supplemental_groups: vec![1, 0, 70_000],
                    run_as_user: Some(Int64Value { value: 0 }),
                    ..Default::default()
                }),
            }),
            stop_signal: 99,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_written_is_what_was_sent() {
        let plain = ContainerConfig { annotations: Default::default(), ..container() };
        let json = there_and_back(".runtime.v1.ContainerConfig", &plain);
        assert_eq!(json["mounts"][0]["propagation"], "PROPAGATION_BIDIRECTIONAL");
        assert_eq!(json["envs"][1]["value"], json!({"base64": "/wA="}));
        assert_eq!(json["linux"]["security_context"]["run_as_user"], json!({}));
        assert_eq!(json["stop_signal"], 99);
        let psi = PsiData { total: 7, avg10: 0.25, ..Default::default() };
        there_and_back(".runtime.v1.PsiData", &psi);
        let ports = PortForwardRequest { pod_sandbox_id: "p".into(), port: vec![80, 0, -1] };
        there_and_back(".runtime.v1.PortForwardRequest", &ports);
    }

    #[test]
    fn secrets_are_masked_unless_they_are_to_be_kept() {
        let name = ".runtime.v1.CreateContainerRequest";
        let request = CreateContainerRequest { config: Some(container()), ..Default::default() };
        let json = to_json(name, &request.encode_to_vec(), Keep::default()).expect("known");
        assert_eq!(json["config"]["envs"][0], json!({"key": "A", "value": MASKED}));
        assert!(!json.to_string().contains("hunter2"), "{json}");
        let kept = to_json(name, &request.encode_to_vec(), ALL).expect("known");
        assert_eq!(kept["config"]["envs"][0]["value"], "hunter2");
        // Names tell of secrets, whatever is kept.
        assert_eq!(kept["config"]["annotations"]["my-token"], MASKED);

        let auth = AuthConfig { auth: "hunter2".into(), password: "hunter2".into(), ..Default::default() };
        let pull = PullImageRequest { auth: Some(auth), ..Default::default() };
        let json = to_json(".runtime.v1.PullImageRequest", &pull.encode_to_vec(), ALL).expect("known");
        assert!(!json.to_string().contains("hunter2"), "{json}");
        let output = ExecSyncResponse { stdout: b"hunter2".to_vec(), exit_code: 3, ..Default::default() };
        let exec = |keep| to_json(".runtime.v1.ExecSyncResponse", &output.encode_to_vec(), keep);
        assert_eq!(exec(Keep::default()), Some(json!({"stdout": MASKED, "exit_code": 3})));
        assert_eq!(exec(ALL), Some(json!({"stdout": "hunter2", "exit_code": 3})));
        let verbose = StatusResponse {
            info: [("config".to_owned(), "{\"a\": \"hunter2\"}".to_owned())].into(),
            ..Default::default()
        };
        let json = to_json(".runtime.v1.StatusResponse", &verbose.encode_to_vec(), ALL).expect("known");
        assert_eq!(json, json!({"info": {"config": MASKED}}));
    }

    #[test]
    fn what_the_schema_does_not_know_is_told_by_its_number_alone() {
        // Field 900 is "hunter2", field 1 the id.
        let mut encoded = Vec::new();
        write_bytes(&mut encoded, 900, b"hunter2");
        write_bytes(&mut encoded, 1, b"c1");
        let name = ".runtime.v1.StartContainerRequest";
        let json = to_json(name, &encoded, ALL).expect("known");
        assert_eq!(json, json!({"container_id": "c1", "?": [900]}));
        let back = to_wire(name, &json).expect("a message");
        assert_eq!(StartContainerRequest::decode(back.as_slice()).expect("one").container_id, "c1");
        assert!(to_json(".runtime.v1.NoSuchThing", &encoded, ALL).is_none());
        for end in 0..64 {
            let _ = to_json(".runtime.v1.RunPodSandboxRequest", &[0x0a; 64][..end], ALL);
            let _ = to_json(".runtime.v1.RunPodSandboxRequest", &[0xff; 64][..end], ALL);
        }
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_place() {
        let wrong = json!({"config": {"metadata": {"attempt": "x"}}});
        let error = to_wire(".runtime.v1.RunPodSandboxRequest", &wrong).expect_err("a text");
        let text = format!("{error:#}");
        assert!(text.contains("PodSandboxMetadata.attempt") && text.contains("\"x\""), "{text}");
        let wrong = json!({"confg": {}});
        let error = to_wire(".runtime.v1.RunPodSandboxRequest", &wrong).expect_err("no field");
        assert!(error.to_string().contains("has no field confg"), "{error}");
    }
}
