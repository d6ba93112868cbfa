//! Which manifest of an index this node runs (IMG-16).
//!
//! Platforms are spelled as in Go. A node runs its own platform and, less gladly, those
//! that its processor also understands: the order is the preference, and the same as
//! containerd's, so that all clients of one containerd choose the same manifest.

use std::fmt;

use serde::Deserialize;

/// An operating system and a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
    pub(super) variant: String,
    #[serde(rename = "os.features")]
    pub(super) os_features: Vec<String>,
}

impl Platform {
    /// One spelling of what has several.
    fn normalised(&self) -> Platform {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "" => "linux".to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) =
            (self.architecture.to_ascii_lowercase(), self.variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Platform {
            os,
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os_features: self.os_features.clone(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// What a node runs, best first.
#[derive(Clone, Debug)]
pub(super) struct Node(Vec<Platform>);

impl Node {
    /// The node that this program was built for.
    pub(super) fn this() -> Node {
        Node::of(std::env::consts::ARCH)
    }

    /// A Linux node with a processor as Rust calls it.
    fn of(arch: &str) -> Node {
        let (own, more): (_, &[(&str, &str)]) = match arch {
            "x86_64" => (("amd64", ""), &[("386", "")]),
            "x86" => (("386", ""), &[]),
            "aarch64" => (("arm64", ""), &[("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")]),
            "arm" => (("arm", "v7"), &[("arm", "v6"), ("arm", "v5")]),
            "powerpc64" => (("ppc64le", ""), &[]),
            "loongarch64" => (("loong64", ""), &[]),
            other => ((other, ""), &[]),
        };
        let platform = |(architecture, variant): &(&str, &str)| Platform {
            os: "linux".into(),
            architecture: (*architecture).into(),
            variant: (*variant).into(),
            os_features: Vec::new(),
        };
        Node(std::iter::once(&own).chain(more).map(platform).collect())
    }

    /// The node's own platform.
    pub(super) fn own(&self) -> &Platform {
        &self.0[0]
    }

    /// All that it runs, best first.
    pub(super) fn platforms(&self) -> &[Platform] {
        &self.0
    }

    /// How well `platform` fits: 0 is best, none means not at all.
    pub(super) fn rank(&self, platform: &Platform) -> Option<usize> {
        let platform = platform.normalised();
        // No feature of an operating system is known that a Linux node would have.
        if !platform.os_features.is_empty() {
            return None;
        }
        self.0.iter().position(|own| {
            own.os == platform.os
                && own.architecture == platform.architecture
                && own.variant == platform.variant
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next(), os_features: Vec::new() }
    }

    #[test]
    fn a_node_prefers_its_own_platform_and_knows_its_relatives() {
        for (node, text, want) in [
            ("x86_64", "linux/amd64", Some(0)),
            ("x86_64", "Linux/x86_64/v1", Some(0)),
            ("x86_64", "linux/amd64/v3", None),
            ("x86_64", "linux/386", Some(1)),
            ("x86_64", "linux/arm64", None),
            ("x86_64", "windows/amd64", None),
            ("x86_64", "unknown/unknown", None),
            ("aarch64", "linux/arm64", Some(0)),
            ("aarch64", "linux/arm64/v8", Some(0)),
            ("aarch64", "linux/aarch64/v9", None),
            ("aarch64", "linux/arm/v7", Some(2)),
            ("aarch64", "linux/arm", Some(2)),
            ("arm", "linux/armhf", Some(0)),
            ("arm", "linux/arm/6", Some(1)),
            ("riscv64", "linux/riscv64", Some(0)),
        ] {
            assert_eq!(Node::of(node).rank(&platform(text)), want, "{node} and {text}");
        }
    }

    #[test]
    fn a_platform_that_asks_for_features_does_not_fit() {
        let with = Platform { os_features: vec!["win32k".into()], ..platform("linux/amd64") };
        assert_eq!(Node::of("x86_64").rank(&with), None);
    }

    #[test]
    fn platforms_read_as_everywhere() {
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        assert_eq!(Node::of("x86_64").own().to_string(), "linux/amd64");
    }
}
