//! Modules look down, never up: the references in `src/` follow the layers of
//! docs/architecture.md.
//!
//! A reference is `crate::MODULE` in any form, or a `super::` path that leaves its module.
//! Tests may reach where they like: `tests.rs`, `tests/` and what comes after
//! `#[cfg(test)]` do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the top. A module uses those of later rows, and of its own row only where
/// [`FOUNDATION`] says so.
const LAYERS: [&[&str]; 18] = [
    &["main"],
    &["cli"],
    &["record"],
    &["app", "check"],
    &["page"],
    &["explain"],
    &["cri", "admin"],
    &["stream"],
    &["stats"],
    &["pod"],
    &["container"],
    &["leftovers"],
    &["image"],
    &["state"],
    &["cdi"],
    &["spec", "network", "io", "events"],
    &["containerd"],
    &FOUNDATION,
];

/// These know each other, but in no circle.
const FOUNDATION: [&str; 11] =
    ["sys", "httpd", "telemetry", "trace", "flow", "config", "points", "ids", "glob", "error", "proto"];

/// What would be downwards, but only these names may be used: the edge shows whether
/// containerd answers, and has no other business with it.
const LIMITED: [(&str, &str, &[&str]); 1] = [("cri", "containerd", &["Link"])];

/// A reference to a module, with what of it, as far as that is told.
struct Reference {
    place: String,
    from: String,
    to: String,
    name: String,
}

#[test]
fn modules_use_only_what_is_below_them() {
    let references = references();
    let row = |module: &str| {
        let found = LAYERS.iter().position(|layer| layer.contains(&module));
        found.unwrap_or_else(|| panic!("module {module} has no layer"))
    };
    let mut wrong = Vec::new();
    for Reference { place, from, to, name } in &references {
        let is_below = row(from) < row(to) || (row(from) == row(to) && FOUNDATION.contains(&from.as_str()));
        let is_limited = LIMITED.iter().any(|(above, below, names)| {
            (above, below) == (&from.as_str(), &to.as_str()) && !names.contains(&name.as_str())
        });
        if !is_below || is_limited {
            wrong.push(format!("{place}: {from} uses {to}::{name}"));
        }
    }
    assert!(wrong.is_empty(), "against the layers:\n{}", wrong.join("\n"));
    // Guards against a scan that finds nothing.
    assert!(references.len() > 200, "only {} references", references.len());
}

#[test]
fn the_foundation_has_no_circles() {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for reference in references() {
        if FOUNDATION.contains(&reference.from.as_str()) && reference.from != reference.to {
            uses.entry(reference.from).or_default().insert(reference.to);
        }
    }
    // Whoever uses nobody of the rest can go; in the end nobody is left.
    while let Some(free) =
        uses.keys().find(|module| uses[*module].iter().all(|used| !uses.contains_key(used)))
    {
        let free = free.clone();
        uses.remove(&free);
    }
    assert!(uses.is_empty(), "a circle in {uses:?}");
}

#[test]
fn the_document_shows_these_layers() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).expect("the document");
    let picture = text.split("```").nth(1).expect("a picture");
    let mut rest = picture;
    for module in LAYERS.concat() {
        let place = rest.find(module);
        rest = &rest[place.unwrap_or_else(|| panic!("{module} is not shown, or in another order"))..];
    }
    let mut modules: Vec<String> = sources().iter().map(|(module, _)| module[0].clone()).collect();
    modules.dedup();
    for module in modules {
        assert!(LAYERS.concat().contains(&module.as_str()), "module {module} has no layer");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All source files but tests and lib.rs, with their module paths, sorted.
fn sources() -> Vec<(Vec<String>, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if name == "tests" || name == "lib" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let below = path.strip_prefix(root().join("src")).expect("in src").with_extension("");
                let mut module: Vec<String> =
                    below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                module.retain(|part| part != "mod");
                found.push((module, path));
            }
        }
    }
    found.sort();
    found
}

fn references() -> Vec<Reference> {
    let mut found = Vec::new();
    for (module, path) in sources() {
        let text = code(&std::fs::read_to_string(&path).expect("a source file"));
        let place = path.strip_prefix(root()).expect("in the crate").display().to_string();
        for target in targets(&text, &module) {
            let (to, name) = target.split_once("::").unwrap_or((&target, ""));
            if to != module[0] {
                found.push(Reference {
                    place: place.clone(),
                    from: module[0].clone(),
                    to: to.to_owned(),
                    name: name.to_owned(),
                });
            }
        }
    }
    found
}

/// The code of a file: no comments, no tests. An inline module of tests goes to the end of
/// its file.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code.push_str(line);
            code.push('\n');
        } else if lines
            .find(|line| !line.trim_start().starts_with("#["))
            .is_some_and(|line| line.ends_with('{'))
        {
            break;
        }
    }
    code
}

/// What a file refers to in the crate: `module` or `module::name`.
fn targets(text: &str, module: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["crate::", "longshore::"] {
        for (place, _) in text.match_indices(prefix) {
            // Not the end of another word, such as `$crate` or `my_crate`.
            let before = text[..place].chars().next_back();
            if !before.is_some_and(|before| before.is_alphanumeric() || before == '_') {
                found.extend(heads(&text[place + prefix.len()..]));
            }
        }
    }
    for (place, _) in text.match_indices("super::") {
        if text[..place].ends_with("super::") {
            continue;
        }
        let mut rest = &text[place..];
        let mut ups = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, ups) = (next, ups + 1);
        }
        if ups >= module.len() {
            found.extend(heads(rest));
        }
    }
    found
}

/// The first two names of each path that begins here: of `{a, b::{c, d}}` it is `a`, `b::c`
/// and `b::d`.
fn heads(text: &str) -> Vec<String> {
    fn word(text: &str) -> &str {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        &text[..end.unwrap_or(text.len())]
    }
    fn group(text: &str) -> Option<Vec<&str>> {
        let inner = text.strip_prefix('{')?;
        let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
        for (place, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    parts.push(inner[begin..place].trim());
                    parts.retain(|part| !part.is_empty());
                    return Some(parts);
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(inner[begin..place].trim());
                    begin = place + 1;
                }
                _ => {}
            }
        }
        None
    }
    if let Some(parts) = group(text) {
        return parts.into_iter().flat_map(heads).collect();
    }
    let module = word(text);
    let Some(rest) = text[module.len()..].strip_prefix("::") else { return vec![module.to_owned()] };
    match group(rest) {
        Some(parts) => parts.into_iter().map(|part| format!("{module}::{}", word(part))).collect(),
        None => vec![format!("{module}::{}", word(rest))],
    }
}

#[test]
fn references_are_found_in_every_form() {
    let module = ["io".to_owned(), "client".to_owned()];
    let found = |text: &str| targets(text, &module);
    assert_eq!(found("use crate::error::{Context, Kind};"), ["error::Context", "error::Kind"]);
    assert_eq!(found("use crate::{flow, sys::{mount, netns}};"), ["flow", "sys::mount", "sys::netns"]);
    assert_eq!(found("let x = crate::ids::random_hex();"), ["ids::random_hex"]);
    assert_eq!(found("use super::super::pod::Pods;"), ["pod::Pods"]);
    assert!(found("use super::daemon; $my_crate::x").is_empty());
    assert_eq!(code("a\n// crate::pod\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\nmod c {\nd"), "a\nb\n");
}
