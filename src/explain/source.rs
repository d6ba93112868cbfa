//! Where a field of a spec comes from.

use std::fmt;

use serde::Serialize;

/// Where a field comes from; in the order in which several are named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A field of the container's CRI config.
    Container(String),
    /// A field of the pod's CRI config.
    Pod(String),
    /// The image: its config, or a file in it.
    Image(String),
    /// An option of the runtime handler, or its base spec.
    Handler(String),
    /// A key of the server's configuration.
    Config(String),
    /// A fact of the host.
    Host(String),
    /// What the server makes: an id, a pid.
    Server(String),
    /// Nothing of these: it is so in every spec.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Container(field) => write!(f, "container {field}"),
            Source::Pod(field) => write!(f, "pod {field}"),
            Source::Image(what) => write!(f, "image {what}"),
            Source::Handler(option) => write!(f, "handler {option}"),
            Source::Config(key) => write!(f, "config {key}"),
            Source::Host(fact) => write!(f, "host: {fact}"),
            Source::Server(what) => write!(f, "server: {what}"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// Several sources in one line.
#[must_use]
pub fn line(sources: &[Source]) -> String {
    sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}
