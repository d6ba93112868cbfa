//! What a registry asks of who asks it: the header `WWW-Authenticate` (RFC 9110).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// The most bytes of such a header that are read.
const BYTES_MAX: usize = 8192;

/// A way to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `bearer`, `basic` …, in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of an answer, in order.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.filter(|text| text.len() <= BYTES_MAX).flat_map(parse).collect()
}

/// Reads `Scheme key="value", key=value, Scheme …`; what is not of that form ends it.
fn parse(text: &str) -> Vec<Challenge> {
    let mut list: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        rest = match (after.strip_prefix('='), list.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                after
            }
            (Some(_), None) => break,
            (None, _) => {
                list.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                after
            }
        };
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    list
}

fn token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read_in_all_their_spellings() {
        let list = parse(
            r#"Bearer realm="https://auth.example/token",service="r.io", scope="repository:a/b:pull,push" , error="a \"b\"" , Basic realm=x"#,
        );
        assert_eq!(list.iter().map(|item| item.scheme.as_str()).collect::<Vec<_>>(), ["bearer", "basic"]);
        assert_eq!(list[0].get("realm"), Some("https://auth.example/token"));
        assert_eq!(list[0].get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!((list[0].get("error"), list[1].get("realm")), (Some("a \"b\""), Some("x")));
        assert_eq!(parse("Negotiate")[0].scheme, "negotiate");
        for odd in ["", "=", "realm=\"x\"", "\"", ",,,"] {
            assert!(parse(odd).is_empty(), "{odd}");
        }
        assert_eq!(parse("Bearer realm=\"open")[0].get("realm"), Some("open"));
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_ends(text in "[Bearer=\", \\\\a-z\u{e9}]{0,60}") {
            let _ = parse(&text);
        }
    }
}
