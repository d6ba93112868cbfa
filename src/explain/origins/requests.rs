//! The fields of a request, each changed in turn.

use serde_json::{Value, json};

use super::super::facts::{Facts, Subject};
use super::super::source::Source;
use super::{Experiment, OTHER, Round};

/// Which request a field is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The pod's.
    Pod,
    /// The container's.
    Container,
}

/// Of both requests, which must say the same of it (OCI-24).
const IN_BOTH: &str = "userns_options";
/// What else was gathered for each of these: one that is taken away would move the others.
const GATHERED: [&str; 2] = ["mounts", "devices"];

impl Request {
    fn source(self, at: &[String], root: &Value) -> Source {
        let field = field_name(at, root);
        match self {
            Request::Pod => Source::Pod(field),
            Request::Container => Source::Container(field),
        }
    }

    /// Makes a change of a request; one that cannot be read is none.
    fn put(self, facts: &mut Facts, change: Change, at: &[String]) {
        let given = match (self, &facts.subject) {
            (Request::Pod, _) => serde_json::to_value(&facts.pod.config),
            (Request::Container, Subject::Container(container)) => serde_json::to_value(&container.config),
            (Request::Container, Subject::Pause(_)) => return,
        };
        let mut changed = given.expect("text keys only");
        change.make(&mut changed, at);
        match self {
            Request::Pod => {
                let Ok(config) = serde_json::from_value(changed) else { return };
                facts.pod.config = config;
                if at.iter().any(|part| part == IN_BOTH) {
                    give_user_namespace(facts);
                }
            }
            Request::Container => {
                let Ok(config) = serde_json::from_value(changed) else { return };
                if let Subject::Container(container) = &mut facts.subject {
                    container.config = config;
                }
            }
        }
    }
}

/// Gives a container the user namespace of its pod.
fn give_user_namespace(facts: &mut Facts) {
    let pod = facts.pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let given = pod.and_then(|context| context.namespace_options.as_ref()?.userns_options.clone());
    let Subject::Container(container) = &mut facts.subject else { return };
    let context = container.config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    if let Some(options) = context.and_then(|context| context.namespace_options.as_mut()) {
        options.userns_options = given;
    }
}

impl Experiment {
    pub(super) fn ask_about_fields(&mut self, request: Request, whole: &Value) {
        self.ask_field(request, whole, whole, &mut Vec::new());
    }

    /// Changes what is in `part`, then, if that makes no difference, `part` itself. Says
    /// whether anything did.
    fn ask_field(&mut self, request: Request, whole: &Value, part: &Value, at: &mut Vec<String>) -> bool {
        if request == Request::Container && at.last().is_some_and(|name| name == IN_BOTH) {
            return false;
        }
        let mut children: Vec<(String, &Value)> = match part {
            Value::Object(map) => map.iter().map(|(name, part)| (name.clone(), part)).collect(),
            Value::Array(list) => list.iter().enumerate().map(|(at, part)| (at.to_string(), part)).collect(),
            _ => Vec::new(),
        };
        if self.round == Round::TogetherFromTheEnd {
            children.reverse();
        }
        let mut any = false;
        for (name, part) in &children {
            at.push(name.clone());
            any |= self.ask_field(request, whole, part, at);
            at.pop();
        }
        // One that is taken away from a list would move those after it.
        let is_gathered = at.len() == 2 && GATHERED.contains(&at[0].as_str());
        let changes = match self.round {
            _ if at.is_empty() || is_gathered => Vec::new(),
            Round::Each if any => Vec::new(),
            Round::Each => [Values::of(part).0, vec![Change::Remove]].concat(),
            Round::Parts if children.is_empty() => Vec::new(),
            Round::Parts => vec![Change::Remove],
            _ if !children.is_empty() => Vec::new(),
            _ if part.is_object() => vec![Change::Remove],
            _ => Values::of(part).0,
        };
        let source = request.source(at, whole);
        let mut changes = changes.into_iter();
        changes.any(|change| self.ask(source.clone(), |facts| request.put(facts, change, at))) || any
    }
}

/// Other values than the given one.
pub(super) struct Values(pub(super) Vec<Change>);

/// A change at a place.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Set(Value),
    Remove,
}

impl Values {
    pub(super) fn of(given: &Value) -> Values {
        let set = |list: &[Value]| list.iter().cloned().map(Change::Set).collect();
        Values(match given {
            Value::String(_) => set(&[OTHER.into()]),
            // Small ones are for what has few values.
            Value::Number(_) => set(&[54321.into(), 321.into(), 7.into(), 1.into(), 2.into()]),
            Value::Bool(value) => set(&[(!value).into()]),
            // A message whose value is zero.
            Value::Object(map) if map.is_empty() => set(&[json!({ "value": 54321 })]),
            _ => Vec::new(),
        })
    }

    pub(super) fn nothing() -> Values {
        Values(vec![Change::Remove])
    }
}

impl IntoIterator for Values {
    type Item = Change;
    type IntoIter = std::vec::IntoIter<Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Change {
    /// Makes it at the place `at` of `value`.
    pub(super) fn make(self, value: &mut Value, at: &[String]) {
        let Some((last, parents)) = at.split_last() else { return };
        let mut part = value;
        for name in parents {
            let next = match part {
                Value::Object(map) => map.get_mut(name),
                Value::Array(list) => name.parse::<usize>().ok().and_then(|place| list.get_mut(place)),
                _ => None,
            };
            let Some(next) = next else { return };
            part = next;
        }
        match (part, self) {
            (Value::Object(map), Change::Set(value)) => drop(map.insert(last.clone(), value)),
            (Value::Object(map), Change::Remove) => drop(map.remove(last)),
            (Value::Array(list), change) => {
                let Some(place) = last.parse::<usize>().ok().filter(|place| *place < list.len()) else {
                    return;
                };
                match change {
                    Change::Set(value) => list[place] = value,
                    Change::Remove => drop(list.remove(place)),
                }
            }
            _ => {}
        }
    }
}

/// A field as the CRI calls it: `linux.resources.cpu_shares`, `mounts[0].readonly`,
/// `envs[HOME]`, `annotations[a.b/c]`.
fn field_name(at: &[String], root: &Value) -> String {
    let mut name = String::new();
    let mut part = root;
    for (depth, step) in at.iter().enumerate() {
        let is_key =
            depth > 0 && ["annotations", "labels", "sysctls", "unified"].contains(&at[depth - 1].as_str());
        let next = match part {
            Value::Array(list) => step.parse::<usize>().ok().and_then(|place| list.get(place)),
            other => other.get(step),
        };
        match part {
            Value::Array(_) => {
                let key = next.filter(|_| depth > 0 && at[depth - 1] == "envs").map(|pair| &pair["key"]);
                let key = key.and_then(Value::as_str).unwrap_or(step);
                name.push_str(&format!("[{key}]"));
                if depth > 0 && at[depth - 1] == "envs" {
                    return name;
                }
            }
            _ if is_key => name.push_str(&format!("[{step}]")),
            // The messages around a number.
            _ if step == "value" => {}
            _ if name.is_empty() => name.push_str(step),
            _ => name.push_str(&format!(".{step}")),
        }
        part = next.unwrap_or(&Value::Null);
    }
    name
}
