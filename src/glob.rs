//! Globs as Go's `path.Match` has them, which the built-in plugin's configuration is
//! written for.
//!
//! `*` is any run of characters but `/`, `?` is one of them, `[a-z]` and `[^a-z]` are one
//! of a set or none of it, and `\` takes the next character as it is.

/// A glob that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `*`
    Run,
    /// `?`
    One,
    Exactly(char),
    /// Ranges, and whether they are what must not be there.
    Set(Vec<(char, char)>, bool),
}

impl Part {
    /// Whether the part, which is no run, stands for `c`.
    fn takes(&self, c: char) -> bool {
        match self {
            Part::Run => false,
            Part::One => c != '/',
            Part::Exactly(own) => *own == c,
            Part::Set(ranges, is_negated) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *is_negated
            }
        }
    }
}

impl Glob {
    /// Reads a glob.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Glob, &'static str> {
        let mut parts = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            parts.push(match c {
                '*' => Part::Run,
                '?' => Part::One,
                '[' => set(&mut rest)?,
                '\\' => Part::Exactly(rest.next().ok_or("it ends with a backslash")?),
                c => Part::Exactly(c),
            });
        }
        Ok(Glob(parts))
    }

    /// Whether all of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        // One point to come back to: linear in practice, never exponential.
        let (mut part, mut place, mut run) = (0, 0, None);
        while place < text.len() {
            match self.0.get(part) {
                Some(Part::Run) => {
                    part += 1;
                    run = Some((part, place));
                    continue;
                }
                Some(other) if other.takes(text[place]) => {
                    part += 1;
                    place += 1;
                    continue;
                }
                _ => {}
            }
            match run {
                Some((after, from)) if text[from] != '/' => {
                    run = Some((after, from + 1));
                    (part, place) = (after, from + 1);
                }
                _ => return false,
            }
        }
        self.0[part..].iter().all(|part| *part == Part::Run)
    }
}

/// What follows a `[`, with its end.
fn set(rest: &mut std::str::Chars<'_>) -> Result<Part, &'static str> {
    const OPEN: &str = "a [ is not closed";
    let is_negated = rest.clone().next() == Some('^');
    if is_negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && rest.clone().next() == Some(']') {
            rest.next();
            return Ok(Part::Set(ranges, is_negated));
        }
        let low = member(rest)?.ok_or(OPEN)?;
        let mut high = low;
        if rest.clone().next() == Some('-') {
            rest.next();
            high = member(rest)?.ok_or(OPEN)?;
        }
        ranges.push((low, high));
    }
}

/// One end of a range.
fn member(rest: &mut std::str::Chars<'_>) -> Result<Option<char>, &'static str> {
    match rest.next() {
        Some('-' | ']') => Err("a set in brackets lacks a character"),
        Some('\\') => rest.next().map(Some).ok_or("it ends with a backslash"),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_within_a_path_element() {
        for (glob, text, want) in [
            ("io.kata.*", "io.kata.x", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("", "", true),
            ("", "a", false),
            ("/dev/sd[a-z]", "/dev/sdb", true),
            ("/dev/sd[a-z]", "/dev/sdB", false),
            ("/dev/sd[a-z]", "/dev/sda1", false),
            ("[^0-9]x", "ax", true),
            ("[^0-9]x", "1x", false),
            ("[xyz]", "y", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"[\]]", "]", true),
            ("ü?", "üä", true),
        ] {
            assert_eq!(Glob::new(glob).expect(glob).matches(text), want, "{glob} {text}");
        }
    }

    #[test]
    fn a_glob_that_is_not_well_formed_is_told() {
        for glob in ["[", "[a", "[]", "[a-]", "[^]", "a\\", "[\\"] {
            assert!(Glob::new(glob).is_err(), "{glob}");
        }
    }
}
