//! Finds where in a TOML text a key or an error stands.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// `:LINE: KEY` of what `span` points at, as far as it can be told.
pub(super) fn describe(text: &str, span: Option<Range<usize>>) -> String {
    let Some(span) = span else { return String::new() };
    let line = line_at(text, span.start);
    let key = DeTable::parse(text).ok().and_then(|table| key_at(table.get_ref(), span.start));
    match key {
        Some(key) => format!(":{line}: {key}"),
        None => format!(":{line}"),
    }
}

/// The line of the dotted `key`, or of the nearest part of it that is written.
pub(super) fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut found = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        found = Some(line_at(text, name.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

fn line_at(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

/// The dotted key whose name or value holds `offset`.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    for (name, value) in table {
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(rest) = key_at(inner, offset)
        {
            return Some(format!("{}.{rest}", name.get_ref()));
        }
        if name.span().contains(&offset) || value.span().contains(&offset) {
            return Some(name.get_ref().to_string());
        }
    }
    None
}
