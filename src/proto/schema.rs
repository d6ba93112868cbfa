//! The CRI as its descriptors tell it: which messages there are, what their fields are named,
//! and which of them are secret.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;

use super::CRI_DESCRIPTORS;

/// As much of descriptor.proto as is needed here; `prost-types` lacks `debug_redact`.
mod descriptor {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Set {
        #[prost(message, repeated, tag = "1")]
        pub(super) file: Vec<File>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct File {
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(message, repeated, tag = "4")]
        pub(super) message_type: Vec<Type>,
        #[prost(message, repeated, tag = "5")]
        pub(super) enum_type: Vec<Enum>,
        #[prost(message, repeated, tag = "6")]
        pub(super) service: Vec<Service>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Type {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) field: Vec<Field>,
        #[prost(message, repeated, tag = "3")]
        pub(super) nested_type: Vec<Type>,
        #[prost(message, repeated, tag = "4")]
        pub(super) enum_type: Vec<Enum>,
        #[prost(message, optional, tag = "7")]
        pub(super) options: Option<TypeOptions>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct TypeOptions {
        #[prost(bool, tag = "7")]
        pub(super) map_entry: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Field {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(uint32, tag = "3")]
        pub(super) number: u32,
        /// 3 is repeated.
        #[prost(uint32, tag = "4")]
        pub(super) label: u32,
        /// 1 double, 2 float, 4 uint64, 6 fixed64, 7 fixed32, 8 bool, 9 string, 11 message,
        /// 12 bytes, 13 uint32, 14 enum; else a signed number.
        #[prost(uint32, tag = "5")]
        pub(super) r#type: u32,
        #[prost(string, tag = "6")]
        pub(super) type_name: String,
        #[prost(message, optional, tag = "8")]
        pub(super) options: Option<FieldOptions>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct FieldOptions {
        #[prost(bool, tag = "16")]
        pub(super) debug_redact: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Enum {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) value: Vec<EnumValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct EnumValue {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(int32, tag = "2")]
        pub(super) number: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Service {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) method: Vec<Method>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Method {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) input_type: String,
        #[prost(string, tag = "3")]
        pub(super) output_type: String,
        #[prost(bool, tag = "6")]
        pub(super) server_streaming: bool,
    }
}

/// The CRI's.
pub(crate) static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::new);

/// Messages and enums by their full names with a dot in front, methods by their names, which
/// both services share.
#[derive(Default)]
pub(crate) struct Schema {
    pub(crate) messages: HashMap<String, Type>,
    pub(crate) enums: HashMap<String, HashMap<i64, String>>,
    pub(crate) methods: HashMap<String, Method>,
}

pub(crate) struct Method {
    /// The path of its calls.
    pub(crate) path: String,
    pub(crate) input: String,
    pub(crate) output: String,
    /// It has many answers.
    pub(crate) is_stream: bool,
}

#[derive(Default)]
pub(crate) struct Type {
    pub(crate) name: String,
    pub(crate) fields: HashMap<u32, Field>,
    pub(crate) is_map_entry: bool,
}

pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) is_repeated: bool,
    /// The schema says that nobody is to see it.
    pub(crate) is_secret: bool,
}

/// The CRI has these and no others.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Text,
    Bytes,
    Signed,
    Unsigned,
    Double,
    Message(String),
    Enum(String),
}

impl Schema {
    fn new() -> Schema {
        let set = descriptor::Set::decode(CRI_DESCRIPTORS).unwrap_or_default();
        let mut schema = Schema::default();
        for file in set.file {
            let scope = format!(".{}", file.package);
            file.message_type.iter().for_each(|message| schema.add(&scope, message));
            file.enum_type.iter().for_each(|one| schema.add_enum(&scope, one));
            for service in file.service {
                for method in service.method {
                    let path = format!("/{}.{}/{}", file.package, service.name, method.name);
                    let (input, output) = (method.input_type, method.output_type);
                    let known = Method { path, input, output, is_stream: method.server_streaming };
                    schema.methods.insert(method.name, known);
                }
            }
        }
        schema
    }

    fn add_enum(&mut self, scope: &str, one: &descriptor::Enum) {
        let values = one.value.iter().map(|value| (i64::from(value.number), value.name.clone()));
        self.enums.insert(format!("{scope}.{}", one.name), values.collect());
    }

    fn add(&mut self, scope: &str, message: &descriptor::Type) {
        let name = format!("{scope}.{}", message.name);
        message.nested_type.iter().for_each(|nested| self.add(&name, nested));
        message.enum_type.iter().for_each(|nested| self.add_enum(&name, nested));
        let field = |field: &descriptor::Field| {
            let kind = match field.r#type {
                1 | 2 => Kind::Double,
                4 | 6 | 7 | 13 => Kind::Unsigned,
                8 => Kind::Bool,
                9 => Kind::Text,
                11 => Kind::Message(field.type_name.clone()),
                12 => Kind::Bytes,
                14 => Kind::Enum(field.type_name.clone()),
                _ => Kind::Signed,
            };
            Field {
                name: field.name.clone(),
                number: field.number,
                kind,
                is_repeated: field.label == 3,
                is_secret: field.options.as_ref().is_some_and(|options| options.debug_redact),
            }
        };
        let fields = message.field.iter().map(|one| (one.number, field(one))).collect();
        let is_map_entry = message.options.as_ref().is_some_and(|options| options.map_entry);
        self.messages.insert(name.clone(), Type { name, fields, is_map_entry });
    }

    /// The message that a field holds.
    pub(crate) fn inner(&self, field: &Field) -> Option<&Type> {
        match &field.kind {
            Kind::Message(name) => self.messages.get(name),
            _ => None,
        }
    }
}
