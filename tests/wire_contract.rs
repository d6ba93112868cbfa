//! The CRI on the wire: what is compiled in is what the kubelet speaks, name by name and
//! number by number. `tests/data/cri-wire.txt` is the contract, written down apart from
//! the proto file.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

const CONTRACT: &str = include_str!("data/cri-wire.txt");
const PACKAGE: &str = "runtime.v1";

/// One line for each thing, so that a difference reads well.
type Lines = BTreeSet<String>;

#[test]
fn the_contract_and_the_descriptors_are_the_same() {
    let (contract, compiled) = (from_text(CONTRACT), from_descriptors());
    let only = |one: &Lines, other: &Lines| one.difference(other).cloned().collect::<Vec<_>>();
    let (missing, extra) = (only(&contract, &compiled), only(&compiled, &contract));
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot in the contract: {extra:#?}");
    // Guards against a contract that was not read.
    for sample in [
        "service RuntimeService.RunPodSandbox(RunPodSandboxRequest) -> RunPodSandboxResponse",
        "service RuntimeService.GetContainerEvents(GetEventsRequest) -> stream ContainerEventResponse",
        "message PodSandboxConfig.labels = 6: map<string,string>",
        "message LinuxSandboxSecurityContext.seccomp_profile_path = 7: string !",
        "enum SecurityProfile.ProfileType.Localhost = 2",
        "message StopPodSandboxResponse",
    ] {
        assert!(contract.contains(sample), "{sample}");
    }
}

fn from_text(text: &str) -> Lines {
    let mut lines = Lines::new();
    let mut owner = String::new();
    let mut is_service = false;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let item = line.trim();
        if item.is_empty() {
            continue;
        }
        if let Some((name, values)) = item.strip_prefix("enum ").map(|rest| rest.split_once(':').expect(item))
        {
            let owner = if line.starts_with(' ') { format!("{owner}.") } else { String::new() };
            for value in values.split(',') {
                let (value, number) = value.trim().split_once('=').expect(item);
                lines.insert(format!("enum {owner}{name}.{value} = {number}"));
            }
        } else if let Some(name) = item.strip_prefix("service ") {
            (owner, is_service) = (name.to_owned(), true);
        } else if let Some(name) = item.strip_prefix("message ") {
            (owner, is_service) = (name.to_owned(), false);
            lines.insert(format!("message {name}"));
        } else if is_service {
            lines.insert(format!("service {owner}.{item}"));
        } else {
            let (number, rest) = item.split_once(' ').expect(item);
            let (name, kind) = rest.split_once(": ").expect(item);
            lines.insert(format!("message {owner}.{name} = {number}: {kind}"));
        }
    }
    lines
}

fn from_descriptors() -> Lines {
    let set = FileDescriptorSet::decode(longshore::proto::CRI_DESCRIPTORS).expect("a descriptor set");
    let mut lines = Lines::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        file.enum_type.iter().for_each(|found| enumeration(&mut lines, "", found));
        file.message_type.iter().for_each(|found| message(&mut lines, found));
        file.service.iter().for_each(|found| service(&mut lines, found));
    }
    lines
}

fn service(lines: &mut Lines, service: &ServiceDescriptorProto) {
    for method in &service.method {
        assert!(!method.client_streaming(), "{}: no call of the CRI streams from the client", method.name());
        let stream = if method.server_streaming() { "stream " } else { "" };
        lines.insert(format!(
            "service {}.{}({}) -> {stream}{}",
            service.name(),
            method.name(),
            last(method.input_type()),
            last(method.output_type())
        ));
    }
}

fn enumeration(lines: &mut Lines, owner: &str, found: &EnumDescriptorProto) {
    for value in &found.value {
        lines.insert(format!("enum {owner}{}.{} = {}", found.name(), value.name(), value.number()));
    }
}

fn message(lines: &mut Lines, found: &DescriptorProto) {
    let name = found.name();
    lines.insert(format!("message {name}"));
    for inner in &found.enum_type {
        enumeration(lines, &format!("{name}."), inner);
    }
    for field in &found.field {
        let deprecated = field.options.as_ref().is_some_and(|options| options.deprecated());
        let mark = if deprecated { " !" } else { "" };
        let kind = label_and_type(found, field);
        lines.insert(format!("message {name}.{} = {}: {kind}{mark}", field.name(), field.number()));
    }
}

fn label_and_type(owner: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let is_map = |nested: &&DescriptorProto| {
        nested.name() == last(field.type_name())
            && nested.options.as_ref().is_some_and(|options| options.map_entry())
    };
    if let Some(entry) = owner.nested_type.iter().find(is_map) {
        return format!("map<{},{}>", type_of(&entry.field[0]), type_of(&entry.field[1]));
    }
    match field.label() {
        Label::Repeated => format!("repeated {}", type_of(field)),
        _ if field.proto3_optional() => format!("optional {}", type_of(field)),
        _ => type_of(field),
    }
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => last(field.type_name()).to_owned(),
        // As in a proto file: TYPE_INT64 is int64.
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

/// The last part of a full name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}
