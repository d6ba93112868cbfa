//! The classes of block I/O: `container.blockio_config_file` (OCI-45).
//!
//! The form is goresctrl's, which the built-in plugin reads by the key of the same name:
//! YAML, keys in any case, quantities as Kubernetes has them (`50M`, `10k`, `64Ki`).
//!
//! ```yaml
//! Classes:
//!   slow:
//!   - Weight: 80                  # of devices that no other item names
//!   - Devices: [/dev/sd[a-z]]     # globs
//!     ThrottleReadBps: 50M
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::glob::Glob;

/// The weights that the kernel knows.
const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;

/// Classes by name, each with its items in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockIoClasses(pub BTreeMap<String, Vec<BlockIoParameters>>);

/// One item of a class: the parameters of some devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIoParameters {
    /// Globs of device nodes, and of links to them; none where the item is about all others.
    pub devices: Option<Vec<String>>,
    /// Weight in the I/O scheduler.
    pub weight: Option<u16>,
    /// Bytes a second.
    pub read_bps: Option<u64>,
    /// Bytes a second.
    pub write_bps: Option<u64>,
    /// Operations a second.
    pub read_iops: Option<u64>,
    /// Operations a second.
    pub write_iops: Option<u64>,
}

impl BlockIoClasses {
    /// Reads the file at `path`; gives what is wrong with it.
    pub(super) fn read(path: &Path) -> Result<BlockIoClasses, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("read {path:?}: {error}"))?;
        Self::parse(&text).map_err(|wrong| format!("parse {path:?}: {wrong}"))
    }

    fn parse(text: &str) -> Result<BlockIoClasses, String> {
        let options = serde_saphyr::options! { with_snippet: false };
        let file: Option<Value> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        let mut classes = BTreeMap::new();
        for (key, value) in entries(file.as_ref().unwrap_or(&Value::Null), "the file")? {
            if key != "classes" {
                return Err(format!("{key:?} is not known, Classes is"));
            }
            // Names of classes are as they are written.
            let Some(named) = value.as_object() else {
                if value.is_null() {
                    continue;
                }
                return Err("Classes has no names of classes".into());
            };
            for (name, items) in named {
                let wrong = |wrong: String| format!("class {name:?}: {wrong}");
                classes.insert(name.clone(), class(items).map_err(wrong)?);
            }
        }
        Ok(BlockIoClasses(classes))
    }
}

/// The keys of an object in lower case.
fn entries<'a>(value: &'a Value, what: &str) -> Result<Vec<(String, &'a Value)>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(lower(map)),
        _ => Err(format!("{what} has no keys")),
    }
}

fn lower(map: &Map<String, Value>) -> Vec<(String, &Value)> {
    map.iter().map(|(key, value)| (key.to_lowercase(), value)).collect()
}

fn class(items: &Value) -> Result<Vec<BlockIoParameters>, String> {
    match items {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(parameters).collect(),
        _ => Err("it is no list".into()),
    }
}

fn parameters(item: &Value) -> Result<BlockIoParameters, String> {
    let mut found = BlockIoParameters::default();
    for (key, value) in entries(item, "an item")? {
        let wrong = |wrong: String| format!("{key}: {wrong}");
        match key.as_str() {
            "devices" => found.devices = devices(value).map_err(wrong)?,
            "weight" => {
                let weight = quantity(value).map_err(wrong)?;
                if weight.is_some_and(|weight| !WEIGHTS.contains(&weight)) {
                    return Err(format!("{key}: it must be from {} to {}", WEIGHTS.start(), WEIGHTS.end()));
                }
                found.weight = weight.and_then(|weight| u16::try_from(weight).ok());
            }
            "throttlereadbps" => found.read_bps = quantity(value).map_err(wrong)?,
            "throttlewritebps" => found.write_bps = quantity(value).map_err(wrong)?,
            "throttlereadiops" => found.read_iops = quantity(value).map_err(wrong)?,
            "throttlewriteiops" => found.write_iops = quantity(value).map_err(wrong)?,
            _ => return Err(format!("{key:?} is not known")),
        }
    }
    let throttles = [found.read_bps, found.write_bps, found.read_iops, found.write_iops];
    if found.devices.is_none() && throttles.iter().any(Option::is_some) {
        return Err("what throttles needs Devices".into());
    }
    Ok(found)
}

fn devices(value: &Value) -> Result<Option<Vec<String>>, String> {
    let list = match value {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        _ => return Err("it is no list".into()),
    };
    let mut globs = Vec::new();
    for value in list {
        let text = value.as_str().ok_or_else(|| format!("{value} is no text"))?;
        if !text.starts_with('/') {
            return Err(format!("{text:?} is no absolute path"));
        }
        for part in text.split('/') {
            Glob::new(part).map_err(|wrong| format!("{text:?}: {wrong}"))?;
        }
        globs.push(text.to_owned());
    }
    Ok(Some(globs))
}

/// A quantity, a text or a number; none where it is empty.
fn quantity(value: &Value) -> Result<Option<u64>, String> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(format!("{value} is no quantity")),
    };
    if text.is_empty() {
        return Ok(None);
    }
    parse_quantity(&text).map(Some).ok_or_else(|| format!("{text:?} is no quantity"))
}

/// A Kubernetes quantity as a whole number, rounded up.
fn parse_quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    // Twenty digits are more than any device has bytes; this leaves room for the factors.
    if digits >= 10_u128.pow(20) || fraction.len() > 18 {
        return None;
    }
    let thousands = |power: u32| Some((1000_u128.pow(power), 1));
    let binary = |power: u32| Some((1024_u128.pow(power), 1));
    let (times, over) = match suffix {
        "" => thousands(0),
        "n" => Some((1, 10_u128.pow(9))),
        "u" => Some((1, 10_u128.pow(6))),
        "m" => Some((1, 1000)),
        "k" => thousands(1),
        "M" => thousands(2),
        "G" => thousands(3),
        "T" => thousands(4),
        "P" => thousands(5),
        "E" => thousands(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => exponent(other),
    }?;
    let over = over * 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(digits.checked_mul(times)?.div_ceil(over)).ok()
}

/// `e3`, `E-2`
fn exponent(suffix: &str) -> Option<(u128, u128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let factor = 10_u128.checked_pow(power.unsigned_abs()).filter(|_| power.abs() <= 18)?;
    Some(if power < 0 { (1, factor) } else { (factor, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_in_any_case() {
        let classes = BlockIoClasses::parse(
            "classes:\n  slow:\n  - weight: 80\n  - Devices: ['/dev/sd[a-z]', /dev/disk/by-id/*SSD*]\n    ThrottleReadBps: 50M\n    throttlewritebps: 64Ki\n    ThrottleReadIOPS: 10k\n    ThrottleWriteIOPS: 5000\n    Weight: '50'\n  NoLimit:\n",
        )
        .expect("valid");
        let slow = vec![
            BlockIoParameters { weight: Some(80), ..Default::default() },
            BlockIoParameters {
                devices: Some(vec!["/dev/sd[a-z]".into(), "/dev/disk/by-id/*SSD*".into()]),
                weight: Some(50),
                read_bps: Some(50_000_000),
                write_bps: Some(65_536),
                read_iops: Some(10_000),
                write_iops: Some(5000),
            },
        ];
        assert_eq!(classes.0, [("slow".to_owned(), slow), ("NoLimit".to_owned(), Vec::new())].into());
        for empty in ["", "Classes:\n", "{}"] {
            assert_eq!(BlockIoClasses::parse(empty), Ok(BlockIoClasses::default()), "{empty}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (text, want) in [
            ("classs: {}", "\"classs\" is not known"),
            ("classes: [a]", "Classes has no names"),
            ("classes: {a: 1}", "class \"a\": it is no list"),
            ("classes: {a: [{weight: 5}]}", "class \"a\": weight: it must be from 10 to 1000"),
            ("classes: {a: [{speed: 5}]}", "class \"a\": \"speed\" is not known"),
            ("classes: {a: [{throttlereadbps: 5M}]}", "class \"a\": what throttles needs Devices"),
            ("classes: {a: [{devices: [sda]}]}", "class \"a\": devices: \"sda\" is no absolute path"),
            ("classes: {a: [{devices: ['/dev/[']}]}", "class \"a\": devices: \"/dev/[\": a [ is not closed"),
            (
                "classes: {a: [{devices: [/dev/a], throttlereadbps: fast}]}",
                "class \"a\": throttlereadbps: \"fast\" is no quantity",
            ),
            ("[", ""),
        ] {
            let wrong = BlockIoClasses::parse(text).expect_err(text);
            assert!(wrong.starts_with(want), "{text}: {wrong}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, want) in [
            ("0", Some(0)),
            ("1.5k", Some(1500)),
            (".5", Some(1)),
            ("100m", Some(1)),
            ("1Ei", Some(1 << 60)),
            ("2e3", Some(2000)),
            ("15E-1", Some(2)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("20E", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("-1", None),
            ("5 M", None),
            ("1K", None),
            ("e3", None),
        ] {
            assert_eq!(parse_quantity(text), want, "{text}");
        }
    }
}
