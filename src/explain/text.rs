//! An explanation for people: calls, then the spec as a tree, with notes at the right.

use std::fmt::Write;

use serde_json::Value;

use super::calls::Call;
use super::origins::Origin;
use super::source::line;
use super::{Explained, Explanation};

/// Where the notes begin, unless a line is longer.
const NOTES_COLUMN: usize = 64;
/// The most bytes of values that stand in one line.
const LINE_BYTES: usize = 60;
/// What comes first in a spec, in the order in which the OCI runtime spec has it.
const FIRST: [&str; 7] = ["ociVersion", "process", "root", "hostname", "mounts", "annotations", "linux"];

/// The text.
#[must_use]
pub fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    for said in &explanation.said {
        let _ = writeln!(text, "note: {said}");
    }
    for part in explanation.parts() {
        let Explained { name, calls, spec, origins } = part;
        let _ = writeln!(text, "\n# {name}\n\n## Calls\n");
        of_calls(calls, &mut text);
        let _ = writeln!(text, "\n## OCI spec\n");
        let spec = serde_json::to_value(spec).expect("a spec has text keys only");
        text.push_str(&tree(&spec, origins));
    }
    text
}

fn of_calls(calls: &[Call], text: &mut String) {
    let mut cri = "";
    for call in calls {
        if call.cri != cri {
            cri = call.cri;
            let _ = writeln!(text, "{cri}");
        }
        let _ = writeln!(text, "  {:>2}. {call}", call.step);
    }
    let steps = "Calls of one number are made at the same time, but those of one [lane] after each other.";
    let _ = writeln!(text, "\n{steps}");
}

/// A line of the tree: the left side, and the note.
struct Line(String, String);

/// The tree of a spec with its notes.
#[must_use]
fn tree(spec: &Value, origins: &[Origin]) -> String {
    let mut tree = Tree { origins, lines: Vec::new() };
    tree.object(spec, "", 0, true);
    let widths = tree.lines.iter().map(|line| line.0.chars().count());
    let column = widths.filter(|width| *width <= NOTES_COLUMN).max().unwrap_or(0);
    let mut text = String::new();
    for Line(left, note) in tree.lines {
        if note.is_empty() {
            let _ = writeln!(text, "{left}");
        } else {
            let _ = writeln!(text, "{left:<column$}  # {note}");
        }
    }
    text
}

struct Tree<'a> {
    origins: &'a [Origin],
    lines: Vec<Line>,
}

impl Tree<'_> {
    fn note(&self, pointer: &str) -> String {
        let found = self.origins.iter().find(|origin| origin.pointer == pointer);
        found.map(|origin| line(&origin.sources)).unwrap_or_default()
    }

    fn push(&mut self, depth: usize, left: &str, note: String) {
        self.lines.push(Line(format!("{}{left}", "  ".repeat(depth)), note));
    }

    fn object(&mut self, value: &Value, pointer: &str, depth: usize, is_top: bool) {
        let Value::Object(map) = value else { return };
        let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
        let mut names: Vec<&String> = map.keys().collect();
        if is_top {
            names.sort_by_key(|name| rank(name));
        }
        for name in names {
            let escaped = name.replace('~', "~0").replace('/', "~1");
            self.member(name, &map[name], &format!("{pointer}/{escaped}"), depth);
        }
    }

    fn member(&mut self, name: &str, value: &Value, pointer: &str, depth: usize) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                self.push(depth, &format!("{name}:"), String::new());
                self.object(value, pointer, depth + 1, false);
            }
            Value::Array(list) if !list.is_empty() => {
                self.push(depth, &format!("{name}:"), String::new());
                let is_plain = list.iter().all(|value| !value.is_object() && !value.is_array());
                match (is_plain, name) {
                    (true, "args" | "env") => self.each(list, pointer, depth + 1),
                    (true, _) => self.runs(list, pointer, depth + 1),
                    (false, "syscalls") => self.rules(list, pointer, depth + 1),
                    (false, _) => self.elements(list, pointer, depth + 1),
                }
            }
            value => self.push(depth, &format!("{name}: {}", shown(value)), self.note(pointer)),
        }
    }

    /// Elements with parts.
    fn elements(&mut self, list: &[Value], pointer: &str, depth: usize) {
        for (place, element) in list.iter().enumerate() {
            let from = self.lines.len();
            let pointer = format!("{pointer}/{place}");
            match element {
                Value::Object(_) => self.object(element, &pointer, depth + 1, false),
                other => self.member("", other, &pointer, depth + 1),
            }
            if let Some(first) = self.lines.get_mut(from) {
                let at = 2 * depth;
                first.0.replace_range(at..at + 1, "-");
            }
        }
    }

    /// One value a line.
    fn each(&mut self, list: &[Value], pointer: &str, depth: usize) {
        for (place, value) in list.iter().enumerate() {
            let note = self.note(&format!("{pointer}/{place}"));
            self.push(depth, &format!("- {}", shown(value)), note);
        }
    }

    /// Values of the same origin in one line, as far as there is room.
    fn runs(&mut self, list: &[Value], pointer: &str, depth: usize) {
        let mut run: Option<(String, String)> = None;
        for (place, value) in list.iter().enumerate() {
            let (value, note) = (shown(value), self.note(&format!("{pointer}/{place}")));
            run = match run {
                Some((text, known)) if known == note && text.len() + value.len() < LINE_BYTES => {
                    Some((format!("{text}, {value}"), known))
                }
                full => {
                    if let Some((text, note)) = full {
                        self.push(depth, &format!("- {text}"), note);
                    }
                    Some((value, note))
                }
            };
        }
        if let Some((text, note)) = run {
            self.push(depth, &format!("- {text}"), note);
        }
    }

    /// Rules of a filter for system calls, in one line each; there are hundreds of names.
    fn rules(&mut self, list: &[Value], pointer: &str, depth: usize) {
        for (place, rule) in list.iter().enumerate() {
            let names: Vec<&str> =
                rule["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let mut left = format!("- {}:", rule["action"].as_str().unwrap_or_default());
            let mut shown_count = 0;
            for name in &names {
                if left.len() + name.len() >= LINE_BYTES {
                    break;
                }
                left.push_str(&format!(" {name}"));
                shown_count += 1;
            }
            if shown_count < names.len() {
                left.push_str(&format!(" … {} in all", names.len()));
            }
            for argument in rule["args"].as_array().into_iter().flatten() {
                left.push_str(&format!(
                    " (argument {} {} {})",
                    argument["index"],
                    shown(&argument["op"]),
                    argument["value"]
                ));
            }
            let note = self.note(&format!("{pointer}/{place}/names"));
            self.push(depth, &left, note);
        }
    }
}

/// A value without parts; text that is plain stands as it is.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.chars().any(|c| c.is_control() || c == '"') => {
            text.clone()
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Source;
    use serde_json::json;

    #[test]
    fn notes_stand_at_the_right() {
        let spec = json!({
            "linux": { "seccomp": { "syscalls": [{ "action": "A", "names": ["x", "y"], "args": [{ "index": 0, "op": "EQ", "value": 1 }] }] } },
            "mounts": [{ "destination": "/a", "options": ["ro", "nodev"] }],
            "process": { "args": ["a b", ""], "user": { "uid": 0 } },
            "root": {},
        });
        let origin = |pointer: &str, source: Source| Origin {
            pointer: pointer.into(),
            value: Value::Null,
            sources: vec![source],
        };
        let origins = [
            origin("/process/args/0", Source::Container("args[0]".into())),
            origin("/process/user/uid", Source::Default),
            origin("/mounts/0/destination", Source::Pod("x".into())),
            origin("/mounts/0/options/0", Source::Default),
            origin("/mounts/0/options/1", Source::Default),
            origin("/linux/seccomp/syscalls/0/names", Source::Default),
        ];
        let lines: Vec<(&str, &str)> = vec![
            ("process:", ""),
            ("  args:", ""),
            ("    - a b", "container args[0]"),
            ("    - \"\"", ""),
            ("  user:", ""),
            ("    uid: 0", "default"),
            ("root: {}", ""),
            ("mounts:", ""),
            ("  - destination: /a", "pod x"),
            ("    options:", ""),
            ("      - ro, nodev", "default"),
            ("linux:", ""),
            ("  seccomp:", ""),
            ("    syscalls:", ""),
            ("      - A: x y (argument 0 EQ 1)", "default"),
        ];
        let want = lines.iter().map(|(left, note)| match *note {
            "" => format!("{left}\n"),
            note => format!("{left:<32}  # {note}\n"),
        });
        assert_eq!(tree(&spec, &origins), want.collect::<String>());
    }
}
