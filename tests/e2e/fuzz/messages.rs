//! Arbitrary valid messages of the CRI, by its own descriptors: any field may be there or
//! not, numbers are at their borders, enums out of range, lists long, texts from a
//! dictionary for their field: ids that exist, paths that lead elsewhere, nothing, too much.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::harness::Chance;

/// Messages in messages in messages.
const DEPTH_MAX: usize = 9;
/// Values of a request, with all that is in them, and bytes of their texts: then it is full.
const VALUES_MAX: usize = 5_000;
const BYTES_MAX: usize = 400_000;

/// A method and what it is asked with.
#[derive(Clone, Debug)]
pub(super) struct Method {
    pub(super) path: String,
    pub(super) name: String,
    request: String,
    /// It may answer with many messages, or for ever.
    pub(super) is_stream: bool,
}

/// The CRI as its descriptors have it.
pub(super) struct Descriptors {
    messages: BTreeMap<String, DescriptorProto>,
    pub(super) methods: Vec<Method>,
}

/// Texts by field name, under `""` those for all others.
pub(super) type Dictionary = BTreeMap<&'static str, Vec<String>>;

impl Descriptors {
    pub(super) fn read() -> Descriptors {
        let set = FileDescriptorSet::decode(longshore::proto::CRI_DESCRIPTORS).expect("descriptors");
        let mut all = Descriptors { messages: BTreeMap::new(), methods: Vec::new() };
        for file in set.file {
            let package = format!(".{}", file.package());
            file.message_type.into_iter().for_each(|message| all.add(&package, message));
            for service in file.service {
                let path = |method: &str| format!("/{}.{}/{method}", &package[1..], service.name());
                all.methods.extend(service.method.iter().map(|method| Method {
                    path: path(method.name()),
                    name: method.name().to_owned(),
                    request: method.input_type().to_owned(),
                    is_stream: method.server_streaming(),
                }));
            }
        }
        assert!(all.methods.len() > 40, "{}", all.methods.len());
        all
    }

    fn add(&mut self, outer: &str, message: DescriptorProto) {
        let name = format!("{outer}.{}", message.name());
        message.nested_type.iter().for_each(|inner| self.add(&name, inner.clone()));
        self.messages.insert(name, message);
    }

    /// A request for `method`.
    pub(super) fn request(&self, method: &Method, chance: &mut Chance, words: &Dictionary) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Some are mostly right, some are anything.
        let wildness = chance.pick(&[(1, 6), (8, 3), (40, 1)]);
        let room = Cell::new((VALUES_MAX, BYTES_MAX));
        let maker = Maker { all: self, words, wildness, room };
        maker.message(&method.request, chance, 0, &mut bytes);
        match chance.below(200) {
            // No message at all, or one with a field that nobody knows.
            0 => bytes.truncate(chance.below(bytes.len() as u64 + 1) as usize),
            1 => {
                encode_key(50_000, WireType::LengthDelimited, &mut bytes);
                encode_varint(3, &mut bytes);
                bytes.put_slice(b"new");
            }
            // Larger than it may be.
            2 => {
                encode_key(50_000, WireType::LengthDelimited, &mut bytes);
                encode_varint(17 << 20, &mut bytes);
                bytes.put_bytes(b'x', 17 << 20);
            }
            _ => {}
        }
        bytes
    }
}

struct Maker<'a> {
    all: &'a Descriptors,
    words: &'a Dictionary,
    /// Of a hundred values, how many are anything.
    wildness: u64,
    /// The values and bytes that there still may be.
    room: Cell<(usize, usize)>,
}

impl Maker<'_> {
    fn is_wild(&self, chance: &mut Chance) -> bool {
        chance.below(100) < self.wildness
    }

    fn message(&self, name: &str, chance: &mut Chance, depth: usize, bytes: &mut Vec<u8>) {
        let message = self.all.messages.get(name).unwrap_or_else(|| panic!("{name} is described"));
        for field in &message.field {
            // What a call cannot do without is there mostly.
            let is_needed = depth <= 1 || field.name() == "value" || field.name() == "key";
            let likely = if is_needed { 93 } else { 35 };
            if chance.below(100) >= likely || depth > DEPTH_MAX {
                continue;
            }
            let count = match field.label() {
                Label::Repeated if self.is_wild(chance) => chance.pick(&[(0, 1), (50, 3), (3_000, 1)]),
                Label::Repeated => chance.below(3),
                // A later one counts.
                _ if self.is_wild(chance) => 2,
                _ => 1,
            };
            for _ in 0..count {
                let (values, room) = self.room.get();
                let (Some(values), true) = (values.checked_sub(1), room > 0) else { return };
                self.room.set((values, room));
                self.value(field, chance, depth, bytes);
            }
        }
    }

    fn value(&self, field: &FieldDescriptorProto, chance: &mut Chance, depth: usize, bytes: &mut Vec<u8>) {
        let number = u32::try_from(field.number()).expect("a field number");
        let nested = |inner: Vec<u8>, bytes: &mut Vec<u8>| {
            encode_key(number, WireType::LengthDelimited, bytes);
            encode_varint(inner.len() as u64, bytes);
            bytes.put_slice(&inner);
        };
        match field.r#type() {
            Type::Message => {
                let mut inner = Vec::new();
                self.message(field.type_name(), chance, depth + 1, &mut inner);
                nested(inner, bytes);
            }
            Type::String => nested(self.text(field.name(), chance).into_bytes(), bytes),
            Type::Bytes => {
                let mut text = self.text(field.name(), chance).into_bytes();
                if self.is_wild(chance) {
                    text.extend([0, 0xff, 0xfe]);
                }
                nested(text, bytes);
            }
            Type::Bool => {
                encode_key(number, WireType::Varint, bytes);
                encode_varint(u64::from(chance.one_in(3)), bytes);
            }
            Type::Enum => {
                encode_key(number, WireType::Varint, bytes);
                let wild = [3, 7, 100, i64::from(i32::MAX), -1, i64::from(i32::MIN)];
                let value = match self.is_wild(chance) {
                    true => wild[chance.below(wild.len() as u64) as usize],
                    false => chance.pick(&[(0, 5), (1, 2), (2, 1)]),
                };
                encode_varint(value.cast_unsigned(), bytes);
            }
            Type::Double => {
                encode_key(number, WireType::SixtyFourBit, bytes);
                bytes.put_f64_le(chance.pick(&[(0.0, 1), (-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1)]));
            }
            kind => {
                encode_key(number, WireType::Varint, bytes);
                encode_varint(self.number(kind, chance), bytes);
            }
        }
    }

    /// An integer of a kind, as it is on the wire.
    fn number(&self, kind: Type, chance: &mut Chance) -> u64 {
        if !self.is_wild(chance) {
            return chance.pick(&[(0, 4), (1, 3), (2, 2), (100, 1), (1_000, 1)]);
        }
        match kind {
            Type::Int32 => {
                let borders = [i32::MAX, i32::MIN, -1, 65_536, 1_000_000];
                // Negative numbers have ten bytes.
                i64::from(borders[chance.below(5) as usize]).cast_unsigned()
            }
            Type::Uint32 => [u64::from(u32::MAX), 1 << 31, 65_536][chance.below(3) as usize],
            Type::Uint64 => [u64::MAX, 1 << 63, 1 << 32][chance.below(3) as usize],
            _ => [i64::MAX, i64::MIN, -1, 1 << 40, 1 << 62][chance.below(5) as usize].cast_unsigned(),
        }
    }

    fn text(&self, field: &str, chance: &mut Chance) -> String {
        let own = self.words.get(field).filter(|_| !self.is_wild(chance));
        let words = own.unwrap_or_else(|| &self.words[""]);
        let word = &words[chance.below(words.len() as u64) as usize];
        // Long ones are made here, that the dictionary stays small.
        let text = match word.strip_prefix("LONG ") {
            Some(bytes) => "x".repeat(bytes.parse().expect("a number")),
            None => word.clone(),
        };
        let (values, room) = self.room.get();
        self.room.set((values, room.saturating_sub(text.len())));
        text
    }
}
