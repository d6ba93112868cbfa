//! The template from which UpdateRuntimeConfig makes a network configuration (SVC-25).
//!
//! Templates are written in the language of Go's text/template for the built-in plugin.
//! Understood is what such files use: the values `.PodCIDR`, `.PodCIDRRanges` and
//! `.Routes`; `range`, `if`, `else`, `else if` and `end`; variables of `range`; `index`,
//! `len`, `eq`, `ne`, `not`; texts, numbers, comments and the trimming of white space.
//! Anything else is refused with its line, never written out half understood.

use crate::error::{Result, invalid};

/// How deeply actions may be nested.
const DEPTH_MAX: usize = 16;

/// What a template can show.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Values {
    /// The first range of addresses of the node's pods.
    pub(crate) pod_cidr: String,
    /// All of them.
    pub(crate) pod_cidr_ranges: Vec<String>,
    /// A default route for each family among them.
    pub(crate) routes: Vec<String>,
}

/// Renders `template`.
///
/// # Errors
/// InvalidArgument with the line of what is not understood.
pub(crate) fn render(template: &str, values: &Values) -> Result<String> {
    let pieces = cut(template)?;
    let mut parser = Parser { pieces: &pieces, position: 0 };
    let (nodes, end) = parser.nodes(0)?;
    if let Some(end) = end {
        return Err(at(end.line, format!("{:?} without a beginning", end.text)));
    }
    let mut output = String::new();
    let mut scope = Scope { values, dot: Value::Root, variables: Vec::new() };
    show(&nodes, &mut scope, &mut output)?;
    Ok(output)
}

fn at(line: usize, what: String) -> crate::error::Error {
    invalid(format!("line {line}: {what}"))
}

/// Plain text or the inside of `{{…}}`.
enum Piece<'a> {
    Text(&'a str),
    Action(Action<'a>),
}

#[derive(Clone, Copy)]
struct Action<'a> {
    text: &'a str,
    line: usize,
}

fn cut(template: &str) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trims = false;
    while let Some(begin) = rest.find("{{") {
        let line = template[..template.len() - rest.len() + begin].matches('\n').count() + 1;
        let mut text = &rest[..begin];
        let Some(length) = rest[begin..].find("}}") else {
            return Err(at(line, "\"{{\" without \"}}\"".to_owned()));
        };
        let mut inside = &rest[begin + 2..begin + length];
        rest = &rest[begin + length + 2..];
        if trims {
            text = text.trim_start();
        }
        if let Some(after) = inside.strip_prefix('-').filter(|after| after.starts_with(char::is_whitespace)) {
            (inside, text) = (after, text.trim_end());
        }
        trims = false;
        if let Some(before) = inside.strip_suffix('-').filter(|before| before.ends_with(char::is_whitespace))
        {
            (inside, trims) = (before, true);
        }
        pieces.push(Piece::Text(text));
        let inside = inside.trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            pieces.push(Piece::Action(Action { text: inside, line }));
        }
    }
    pieces.push(Piece::Text(if trims { rest.trim_start() } else { rest }));
    Ok(pieces)
}

enum Node<'a> {
    Text(&'a str),
    Show(Expression, usize),
    If { condition: Expression, line: usize, then: Vec<Node<'a>>, otherwise: Vec<Node<'a>> },
    Range { names: Vec<String>, over: Expression, line: usize, body: Vec<Node<'a>>, otherwise: Vec<Node<'a>> },
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    Dot,
    /// `.Name` of the dot, or of the root for `$.Name`.
    Field {
        name: String,
        of_root: bool,
    },
    Variable(String),
    Text(String),
    Number(usize),
    Call(String, Vec<Expression>),
}

struct Parser<'a, 'b> {
    pieces: &'b [Piece<'a>],
    position: usize,
}

impl<'a> Parser<'a, '_> {
    /// Nodes up to `end` or `else`, which is given as well.
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node<'a>>, Option<Action<'a>>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get(self.position) {
            self.position += 1;
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => *action,
            };
            if depth >= DEPTH_MAX {
                return Err(at(action.line, format!("nested more than {DEPTH_MAX} deep")));
            }
            let (word, rest) = action.text.split_once(char::is_whitespace).unwrap_or((action.text, ""));
            nodes.push(match word {
                "end" | "else" => return Ok((nodes, Some(action))),
                "if" => self.condition(rest, action.line, depth)?,
                "range" => self.range(rest, action.line, depth)?,
                _ => Node::Show(expression(action.text, action.line)?, action.line),
            });
        }
        Ok((nodes, None))
    }

    fn condition(&mut self, text: &str, line: usize, depth: usize) -> Result<Node<'a>> {
        let condition = expression(text, line)?;
        let (then, end) = self.nodes(depth + 1)?;
        let otherwise = self.otherwise(end, line, depth)?;
        Ok(Node::If { condition, line, then, otherwise })
    }

    fn range(&mut self, text: &str, line: usize, depth: usize) -> Result<Node<'a>> {
        let (names, over) = match text.split_once(":=") {
            None => (Vec::new(), text),
            Some((names, over)) => {
                let names = names.split(',').map(|name| match name.trim().strip_prefix('$') {
                    Some(name) if is_word(name) => Ok(name.to_owned()),
                    _ => Err(at(line, format!("{:?} is not a variable", name.trim()))),
                });
                (names.collect::<Result<Vec<_>>>()?, over)
            }
        };
        if names.len() > 2 {
            return Err(at(line, "range has at most two variables".to_owned()));
        }
        let over = expression(over, line)?;
        let (body, end) = self.nodes(depth + 1)?;
        let otherwise = self.otherwise(end, line, depth)?;
        Ok(Node::Range { names, over, line, body, otherwise })
    }

    /// What stands after `else`, up to `end`.
    fn otherwise(&mut self, end: Option<Action<'a>>, begin: usize, depth: usize) -> Result<Vec<Node<'a>>> {
        let Some(action) = end else { return Err(at(begin, "no \"end\" follows".to_owned())) };
        if action.text == "end" {
            return Ok(Vec::new());
        }
        let after = action.text.strip_prefix("else").unwrap_or_default().trim();
        if let Some(condition) = after.strip_prefix("if").filter(|rest| rest.starts_with(char::is_whitespace))
        {
            // `else if` shares the `end` of its `if`.
            return Ok(vec![self.condition(condition, action.line, depth + 1)?]);
        }
        match (after, self.nodes(depth + 1)?) {
            ("", (nodes, Some(Action { text: "end", .. }))) => Ok(nodes),
            _ => Err(at(action.line, format!("{:?} is not understood here", action.text))),
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// Parses an operand or the call of a function.
fn expression(text: &str, line: usize) -> Result<Expression> {
    let mut words = words(text, line)?.into_iter().peekable();
    let parsed = operands(&mut words, line, 0)?;
    match (words.next(), <[Expression; 1]>::try_from(parsed)) {
        (None, Ok([single])) => Ok(single),
        _ => Err(at(line, format!("{text:?} is not understood"))),
    }
}

/// All operands up to a closing parenthesis; a function swallows those after it.
fn operands(
    words: &mut std::iter::Peekable<std::vec::IntoIter<String>>,
    line: usize,
    depth: usize,
) -> Result<Vec<Expression>> {
    if depth >= DEPTH_MAX {
        return Err(at(line, format!("nested more than {DEPTH_MAX} deep")));
    }
    let mut found = Vec::new();
    while let Some(word) = words.next_if(|word| word != ")") {
        if word == "(" {
            let mut inner = operands(words, line, depth + 1)?;
            match (words.next(), inner.pop()) {
                (Some(_), Some(single)) if inner.is_empty() => found.push(single),
                _ => return Err(at(line, "parentheses do not match".to_owned())),
            }
            continue;
        }
        let arity = match word.as_str() {
            "index" | "eq" | "ne" => 2,
            "len" | "not" => 1,
            _ => {
                found.push(operand(&word, line)?);
                continue;
            }
        };
        let arguments = operands(words, line, depth + 1)?;
        if arguments.len() != arity || !found.is_empty() {
            return Err(at(line, format!("{word:?} takes {arity} values")));
        }
        found.push(Expression::Call(word, arguments));
    }
    Ok(found)
}

fn operand(word: &str, line: usize) -> Result<Expression> {
    let field = |name: &str, of_root| Expression::Field { name: name.to_owned(), of_root };
    let parsed = match word {
        "." => Some(Expression::Dot),
        _ if word.starts_with(['"', '`']) => Some(Expression::Text(word[1..word.len() - 1].to_owned())),
        _ => None
            .or_else(|| word.strip_prefix("$.").filter(|name| is_word(name)).map(|name| field(name, true)))
            .or_else(|| word.strip_prefix('.').filter(|name| is_word(name)).map(|name| field(name, false)))
            .or_else(|| {
                word.strip_prefix('$').filter(|n| is_word(n)).map(|n| Expression::Variable(n.to_owned()))
            })
            .or_else(|| word.parse().ok().map(Expression::Number)),
    };
    parsed.ok_or_else(|| at(line, format!("{word:?} is not understood")))
}

fn words(text: &str, line: usize) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' => 1,
            '"' | '`' => match rest[1..].find(first) {
                Some(end) if !rest[1..=end].contains('\\') => end + 2,
                _ => return Err(at(line, format!("the text in {text:?} is not understood"))),
            },
            _ => rest
                .find(|c: char| c.is_whitespace() || ['(', ')', '"', '`'].contains(&c))
                .unwrap_or(rest.len()),
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    Ok(words)
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Root,
    Text(String),
    Number(usize),
    Truth(bool),
    List(Vec<String>),
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Value::Root => true,
            Value::Text(text) => !text.is_empty(),
            Value::Number(number) => *number != 0,
            Value::Truth(truth) => *truth,
            Value::List(list) => !list.is_empty(),
        }
    }
}

struct Scope<'a> {
    values: &'a Values,
    dot: Value,
    variables: Vec<(String, Value)>,
}

impl Scope<'_> {
    fn value(&self, expression: &Expression, line: usize) -> Result<Value> {
        Ok(match expression {
            Expression::Dot => self.dot.clone(),
            Expression::Field { name, of_root } => {
                if !of_root && self.dot != Value::Root {
                    return Err(at(line, format!("\".{name}\" inside of range: write \"$.{name}\"")));
                }
                match name.as_str() {
                    "PodCIDR" => Value::Text(self.values.pod_cidr.clone()),
                    "PodCIDRRanges" => Value::List(self.values.pod_cidr_ranges.clone()),
                    "Routes" => Value::List(self.values.routes.clone()),
                    _ => return Err(at(line, format!("there is no value \".{name}\""))),
                }
            }
            Expression::Variable(name) => {
                match self.variables.iter().rev().find(|(known, _)| known == name) {
                    Some((_, value)) => value.clone(),
                    None => return Err(at(line, format!("there is no variable \"${name}\""))),
                }
            }
            Expression::Text(text) => Value::Text(text.clone()),
            Expression::Number(number) => Value::Number(*number),
            Expression::Call(function, arguments) => {
                let values = arguments
                    .iter()
                    .map(|argument| self.value(argument, line))
                    .collect::<Result<Vec<_>>>()?;
                match (function.as_str(), &values[..]) {
                    ("index", [Value::List(list), Value::Number(index)]) => match list.get(*index) {
                        Some(item) => Value::Text(item.clone()),
                        None => return Err(at(line, format!("there is no item {index} of {}", list.len()))),
                    },
                    ("len", [Value::List(list)]) => Value::Number(list.len()),
                    ("len", [Value::Text(text)]) => Value::Number(text.len()),
                    ("not", [value]) => Value::Truth(!value.is_true()),
                    ("eq", [a, b]) => Value::Truth(a == b),
                    ("ne", [a, b]) => Value::Truth(a != b),
                    _ => return Err(at(line, format!("{function:?} cannot be used on these values"))),
                }
            }
        })
    }
}

fn show(nodes: &[Node<'_>], scope: &mut Scope<'_>, output: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => output.push_str(text),
            Node::Show(expression, line) => match scope.value(expression, *line)? {
                Value::Text(text) => output.push_str(&text),
                Value::Number(number) => output.push_str(&number.to_string()),
                Value::Truth(truth) => output.push_str(&truth.to_string()),
                Value::List(_) | Value::Root => {
                    return Err(at(*line, "a list cannot be shown without range or index".to_owned()));
                }
            },
            Node::If { condition, line, then, otherwise } => {
                let branch = if scope.value(condition, *line)?.is_true() { then } else { otherwise };
                show(branch, scope, output)?;
            }
            Node::Range { names, over, line, body, otherwise } => {
                let Value::List(items) = scope.value(over, *line)? else {
                    return Err(at(*line, "range over something else than a list".to_owned()));
                };
                if items.is_empty() {
                    show(otherwise, scope, output)?;
                }
                let (outer, known) = (scope.dot.clone(), scope.variables.len());
                for (index, item) in items.into_iter().enumerate() {
                    scope.dot = Value::Text(item);
                    match &names[..] {
                        [name] => scope.variables.push((name.clone(), scope.dot.clone())),
                        [number, name] => {
                            scope.variables.push((number.clone(), Value::Number(index)));
                            scope.variables.push((name.clone(), scope.dot.clone()));
                        }
                        _ => {}
                    }
                    show(body, scope, output)?;
                    scope.variables.truncate(known);
                }
                scope.dot = outer;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            pod_cidr: "10.0.0.0/24".to_owned(),
            pod_cidr_ranges: vec!["10.0.0.0/24".to_owned(), "2001:4860:4860::/64".to_owned()],
            routes: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        }
    }

    #[test]
    fn the_documented_form_gives_lists_for_dual_stack() {
        let template = concat!(
            "\"subnet\": \"{{.PodCIDR}}\",\n",
            "\"ranges\": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{\"subnet\": \"{{$range}}\"}]{{end}}],\n",
            "\"routes\": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{\"dst\": \"{{$route}}\"}{{end}}]\n",
        );
        let want = concat!(
            "\"subnet\": \"10.0.0.0/24\",\n",
            "\"ranges\": [[{\"subnet\": \"10.0.0.0/24\"}], [{\"subnet\": \"2001:4860:4860::/64\"}]],\n",
            "\"routes\": [{\"dst\": \"0.0.0.0/0\"}, {\"dst\": \"::/0\"}]\n",
        );
        assert_eq!(render(template, &values()).as_deref(), Ok(want));
    }

    #[test]
    fn the_rest_of_the_subset_is_understood() {
        let cases = [
            ("a {{- /* note */ -}} b", "ab"),
            ("a\n  {{- .PodCIDR -}}  \n b", "a10.0.0.0/24b"),
            ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
            (
                "{{range $r := .Routes}}<{{$r}} of {{$.PodCIDR}}>{{end}}",
                "<0.0.0.0/0 of 10.0.0.0/24><::/0 of 10.0.0.0/24>",
            ),
            ("{{index .PodCIDRRanges 1}}", "2001:4860:4860::/64"),
            ("{{len .Routes}}", "2"),
            ("{{if eq (len .Routes) 2}}dual{{else}}single{{end}}", "dual"),
            ("{{if ne (index .Routes 0) \"::/0\"}}v4{{end}}", "v4"),
            ("{{if not .Routes}}none{{else if eq .PodCIDR `x`}}x{{else}}some{{end}}", "some"),
            (
                "{{range $i, $a := .Routes}}{{range $j, $b := $.Routes}}{{$i}}{{$j}} {{end}}{{end}}",
                "00 01 10 11 ",
            ),
            ("no actions { } }}", "no actions { } }}"),
        ];
        for (template, want) in cases {
            assert_eq!(render(template, &values()).as_deref(), Ok(want), "{template}");
        }
        let empty = Values { routes: Vec::new(), ..values() };
        assert_eq!(render("{{range .Routes}}x{{else}}none{{end}}", &empty).as_deref(), Ok("none"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        let cases = [
            ("\n{{.Nope}}", "line 2: there is no value \".Nope\""),
            ("\n\n{{.PodCIDR", "line 3: \"{{\" without \"}}\""),
            ("{{end}}", "line 1: \"end\" without a beginning"),
            ("{{if .Routes}}", "line 1: no \"end\" follows"),
            ("{{if .Routes}}{{else}}{{else}}{{end}}", "is not understood"),
            ("{{.PodCIDR | printf \"%q\"}}", "\"|\" is not understood"),
            ("{{$x}}", "there is no variable \"$x\""),
            ("{{range .Routes}}{{.PodCIDR}}{{end}}", "write \"$.PodCIDR\""),
            ("{{.Routes}}", "a list cannot be shown"),
            ("{{range .PodCIDR}}{{end}}", "range over something else"),
            ("{{range $a, $b, $c := .Routes}}{{end}}", "at most two"),
            ("{{range a := .Routes}}{{end}}", "\"a\" is not a variable"),
            ("{{index .Routes 9}}", "no item 9"),
            ("{{index .Routes}}", "takes 2 values"),
            ("{{eq (.PodCIDR}}", "parentheses"),
            ("{{}}", "is not understood"),
            ("{{\"a}}", "is not understood"),
        ];
        for (template, want) in cases {
            let error = render(template, &values()).expect_err(template).to_string();
            assert!(error.contains(want), "{template} gave {error:?}, not {want:?}");
        }
        let deep = "{{if .Routes}}".repeat(1000);
        assert!(render(&deep, &values()).expect_err("deep").message().contains("nested more than"));
        let deep = format!("{{{{not {}}}}}", "(not ".repeat(1000));
        assert!(render(&deep, &values()).expect_err("deep").message().contains("nested more than"));
        let deep = format!("{{{{{}.Routes}}}}", "not ".repeat(100_000));
        assert!(render(&deep, &values()).expect_err("deep").message().contains("nested more than"));
    }

    proptest::proptest! {
        #[test]
        fn no_template_panics(text in r#"(\{\{|\}\}|range|if|else|end|index|len|not|eq|:=|\$i|\.|\.Routes|\(|\)|"|`|,|-|/\*|\*/| |x|ü){0,24}"#) {
            let _ = render(&text, &values());
        }
    }
}
