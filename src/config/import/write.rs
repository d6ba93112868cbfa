//! The text of an imported configuration: what differs from our defaults, and why.

use std::fmt::Write;

use toml::{Table, Value};

use super::source::quoted;
use super::{Draft, Lost};
use crate::config::file::{File, Handler};

/// The file, with `head` as its first comment.
pub(super) fn file(draft: &Draft, head: &[String]) -> String {
    let mut text = String::new();
    comment(&mut text, head);
    if !draft.lost.is_empty() {
        text.push('\n');
        comment(&mut text, &draft.lost.iter().map(Lost::to_string).collect::<Vec<_>>());
    }
    text.push('\n');
    let (Ok(ours), Ok(default)) = (Table::try_from(&draft.file), Table::try_from(File::default())) else {
        return text;
    };
    text.push_str("version = 1\n");
    keys(&mut text, draft, "", &ours, &default);
    for (name, value) in &ours {
        let (Value::Table(ours), Some(Value::Table(default))) = (value, default.get(name)) else { continue };
        let mut section = String::new();
        keys(&mut section, draft, name, ours, default);
        if !section.is_empty() {
            let _ = write!(text, "\n[{name}]\n{section}");
        }
    }
    for (name, handler) in &draft.file.runtime.handlers {
        let (Ok(ours), Ok(default)) = (Table::try_from(handler), Table::try_from(Handler::default())) else {
            continue;
        };
        let _ = writeln!(text, "\n[runtime.handlers.{}]", quoted(name));
        for (key, value) in ours.iter().filter(|(key, value)| default.get(*key) != Some(value)) {
            let _ = writeln!(text, "{} = {value}", quoted(key));
        }
    }
    text
}

/// The keys of one table that differ, tables in it left out.
fn keys(text: &mut String, draft: &Draft, section: &str, ours: &Table, default: &Table) {
    for (key, value) in ours {
        if matches!(value, Value::Table(_)) || default.get(key) == Some(value) {
            continue;
        }
        let dotted = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        if let Some(origin) = draft.origins.get(&dotted) {
            comment(text, std::slice::from_ref(origin));
        }
        let _ = writeln!(text, "{key} = {value}");
    }
}

fn comment(text: &mut String, lines: &[String]) {
    for line in lines {
        let _ = if line.is_empty() { writeln!(text, "#") } else { writeln!(text, "# {line}") };
    }
}
