//! A spec, taken apart into its leaves.
//!
//! Two specs are compared by what a place means, not by its number: the element of a list has
//! a key (the target of a mount, the name of a variable, an option itself), so that one that
//! is new or gone moves nothing else. Arguments are told apart by their place alone.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Between the parts of a key.
const PART: char = '\u{1f}';

/// A leaf: a value without parts, or a list of the names of system calls.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    /// What it is known by.
    pub(super) key: String,
    /// Where it is: a JSON pointer.
    pub(super) pointer: String,
    /// The value.
    pub(super) value: Value,
}

/// The leaves of a spec, in its order.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    all: Vec<Leaf>,
    places: HashMap<String, usize>,
    /// Keys of what has parts.
    nodes: HashSet<String>,
}

impl Leaves {
    pub(super) fn of(spec: &Value) -> Leaves {
        let mut leaves = Leaves::default();
        leaves.walk(spec, String::new(), String::new());
        leaves.places = leaves.all.iter().enumerate().map(|(at, leaf)| (leaf.key.clone(), at)).collect();
        leaves
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Leaf> {
        self.all.iter()
    }

    /// The leaf at a key, or those in what it is the key of.
    pub(super) fn below(&self, key: &str) -> impl Iterator<Item = &Leaf> {
        self.all.iter().filter(move |leaf| {
            leaf.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(PART))
        })
    }

    /// The value with a key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|at| &self.all[*at].value)
    }

    /// The keys of what is another one in `other`: leaves with other values, and what is not
    /// there at all, at its root. Of a list that is not there each element is told: an empty
    /// list does not stand in a spec. An element that has more there (a namespace that is
    /// joined, and not new) is another one, too.
    pub(super) fn touched_by(&self, other: &Leaves) -> HashSet<&str> {
        let mut touched = HashSet::new();
        for Leaf { key, value, .. } in &self.all {
            match other.get(key) {
                Some(same) if same == value => {}
                Some(_) => drop(touched.insert(key.as_str())),
                None => drop(touched.insert(other.root_of_gone(key))),
            }
        }
        for Leaf { key, .. } in other.all.iter().filter(|leaf| !self.places.contains_key(&leaf.key)) {
            let element = parents(key).nth(1).and_then(|parent| self.nodes.get(parent));
            touched.extend(element.filter(|key| is_element(key)).map(String::as_str));
        }
        touched
    }

    /// The root of what is not here and holds `key`.
    fn root_of_gone<'a>(&self, key: &'a str) -> &'a str {
        let is_here = |key: &str| key.is_empty() || self.nodes.contains(key) || self.places.contains_key(key);
        let mut root = key;
        for parent in parents(key).take_while(|parent| !is_here(parent)) {
            let is_list_of_root = root.len() > parent.len() && root[parent.len()..].starts_with("\u{1f}[");
            let is_all = parents(parent).nth(1).is_none_or(is_here);
            if !(is_list_of_root && is_all) {
                root = parent;
            }
        }
        root
    }

    fn walk(&mut self, value: &Value, key: String, pointer: String) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (name, value) in map {
                    let escaped = name.replace('~', "~0").replace('/', "~1");
                    self.walk(value, format!("{key}{PART}{name}"), format!("{pointer}/{escaped}"));
                }
                self.nodes.insert(key);
            }
            Value::Array(list) if !list.is_empty() && !key.ends_with("\u{1f}names") => {
                let mut seen: HashMap<String, usize> = HashMap::new();
                for (place, element) in list.iter().enumerate() {
                    let mut name = name_of(&key, place, element);
                    let count = seen.entry(name.clone()).or_default();
                    *count += 1;
                    if *count > 1 {
                        name = format!("{name}#{count}");
                    }
                    self.walk(element, format!("{key}{PART}[{name}]"), format!("{pointer}/{place}"));
                }
                self.nodes.insert(key);
            }
            leaf => self.all.push(Leaf { key, pointer, value: leaf.clone() }),
        }
    }
}

/// A key and those of what it is in, the nearest first.
pub(super) fn parents(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| key.rfind(PART).map(|end| &key[..end]))
}

/// Whether a key is that of an element of a list.
fn is_element(key: &str) -> bool {
    key.rsplit(PART).next().is_some_and(|name| name.starts_with('['))
}

/// What the element of a list is known by.
fn name_of(list: &str, place: usize, element: &Value) -> String {
    let list = list.rsplit(PART).next().unwrap_or_default();
    let text = |name: &str| element[name].as_str().unwrap_or_default().to_owned();
    match list {
        "args" => place.to_string(),
        "env" => element.as_str().and_then(|pair| pair.split('=').next()).unwrap_or_default().to_owned(),
        "mounts" => text("destination"),
        "namespaces" | "rlimits" => text("type"),
        "hugepageLimits" => text("pageSize"),
        "syscalls" => format!("{} {}", element["names"][0].as_str().unwrap_or_default(), element["args"]),
        // Nodes have paths, rules of the device cgroup have none.
        "devices" if element["path"].is_string() => text("path"),
        "devices" => element.to_string(),
        _ if !element.is_object() && !element.is_array() => {
            element.as_str().map_or_else(|| element.to_string(), str::to_owned)
        }
        _ => place.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn touched(one: &Value, other: &Value) -> Vec<String> {
        let (one, other) = (Leaves::of(one), Leaves::of(other));
        let mut list: Vec<String> =
            one.touched_by(&other).into_iter().map(|key| key.replace(PART, "/")).collect();
        list.sort();
        list
    }

    #[test]
    fn what_is_new_moves_nothing_else() {
        let one = json!({"env": ["A=1", "B=2"], "mounts": [{"destination": "/a", "options": ["ro"]}]});
        let more = json!({
            "env": ["Z=0", "A=1", "B=3"],
            "mounts": [{"destination": "/z"}, {"destination": "/a", "options": ["x", "ro"]}],
        });
        assert_eq!(touched(&one, &more), ["/env/[B]"]);
        assert!(touched(&one, &one).is_empty());
    }

    #[test]
    fn what_is_gone_is_told_at_its_root() {
        let one =
            json!({"a": {"b": {"c": 1, "d": 2}, "e": 3}, "mounts": [{"destination": "/m", "type": "x"}]});
        let less = json!({"a": {"e": 3}, "mounts": []});
        assert_eq!(touched(&one, &less), ["/a/b", "/mounts/[/m]"]);
    }

    #[test]
    fn equal_elements_are_told_apart() {
        let one = json!({"env": ["A=1", "A=2"], "args": ["x", "x"]});
        let keys: Vec<String> = Leaves::of(&one).iter().map(|leaf| leaf.key.replace(PART, "/")).collect();
        assert_eq!(keys, ["/args/[0]", "/args/[1]", "/env/[A]", "/env/[A#2]"]);
        let pointers: Vec<String> = Leaves::of(&one).iter().map(|leaf| leaf.pointer.clone()).collect();
        assert_eq!(pointers, ["/args/0", "/args/1", "/env/0", "/env/1"]);
    }
}
