//! Both sides in one form: ids, pids and folders by what they stand for.

use serde_json::Value;

use longshore::spec::paths::depth;

/// Words of one side that the other has otherwise.
#[derive(Clone, Default)]
pub(crate) struct Words(Vec<(String, String)>);

impl Words {
    pub(crate) fn add(&mut self, word: &str, meaning: &str) {
        if !word.is_empty() {
            self.0.push((word.to_owned(), meaning.to_owned()));
        }
    }

    /// A folder, and what is in it.
    pub(crate) fn add_folder(&mut self, folder: &std::path::Path, meaning: &str) {
        self.add(&format!("{}/", folder.display()), &format!("{meaning}/"));
    }

    /// A pid, where it names a process's namespaces.
    pub(crate) fn add_pid(&mut self, pid: &Value, meaning: &str) {
        if let Some(pid) = pid.as_u64().filter(|pid| *pid != 0) {
            self.add(&format!("/proc/{pid}/ns/"), &format!("/proc/{meaning}/ns/"));
        }
    }

    /// `value` with all words replaced, and what has no order in an order.
    pub(crate) fn normal(&self, mut value: Value) -> Value {
        self.replace(&mut value);
        // The two have networks of their own: what a plugin of CNI has said is another test's.
        let metadata = "/extensions/io.cri-containerd.sandbox.metadata/value/Metadata/CNIResult";
        if let Some(result) = value.pointer_mut(metadata) {
            *result = result.is_object().into();
        }
        if let Some(mounts) = value.pointer_mut("/spec/mounts").and_then(Value::as_array_mut) {
            sort_volumes(mounts);
        }
        value
    }

    fn replace(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(list) => list.iter_mut().for_each(|value| self.replace(value)),
            Value::Object(map) => {
                let entries = std::mem::take(map).into_iter();
                for (key, mut value) in entries {
                    self.replace(&mut value);
                    map.insert(self.text(&key), value);
                }
            }
            _ => {}
        }
    }

    fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (word, meaning) in &self.0 {
            text = text.replace(word, meaning);
        }
        // Names that are made up: of an image's volumes, and of pinned namespaces.
        for (folder, meaning) in [("}/volumes/", "{volume}"), ("{netns}/", "{name}")] {
            if let Some(start) = text.find(folder).map(|start| start + folder.len()) {
                let end = text[start..].find('/').map_or(text.len(), |length| start + length);
                text.replace_range(start..end, meaning);
            }
        }
        text
    }
}

/// The plugin adds the volumes of an image in any order, among mounts of one depth the last.
fn sort_volumes(mounts: &mut [Value]) {
    let is_volume =
        |mount: &Value| mount["source"].as_str().is_some_and(|source| source.ends_with("{volume}"));
    let target = |mount: &Value| mount["destination"].as_str().unwrap_or_default().to_owned();
    let places: Vec<usize> = (0..mounts.len()).filter(|place| is_volume(&mounts[*place])).collect();
    let mut volumes: Vec<Value> = places.iter().map(|place| mounts[*place].clone()).collect();
    volumes.sort_by_key(|mount| (depth(&target(mount)), target(mount)));
    for (place, volume) in places.into_iter().zip(volumes) {
        mounts[place] = volume;
    }
}

/// A place in two values where they differ.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: String,
    pub(crate) ours: Value,
    pub(crate) theirs: Value,
}

/// All places where `ours` and `theirs` differ, as deep as can be told.
pub(crate) fn compare(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<Found>) {
    if ours == theirs {
        return;
    }
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                compare(&format!("{path}.{key}"), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (place, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{place}]"), a, b, found);
            }
        }
        _ => found.push(Found { path: path.to_owned(), ours: ours.clone(), theirs: theirs.clone() }),
    }
}
