//! What an image says of its containers: the config part of an OCI or Docker image
//! config. Go writes `null` for empty lists; that is read as empty.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// How containers of an image start, where the pod does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `uid`, `name`, `uid:gid`, `name:group`; empty for root.
    #[serde(deserialize_with = "null")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "null")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "null")]
    pub entrypoint: Vec<String>,
    /// The arguments after those; or the program too, without an entrypoint.
    #[serde(deserialize_with = "null")]
    pub cmd: Vec<String>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// The working directory; empty for `/`.
    #[serde(deserialize_with = "null")]
    pub working_dir: String,
    /// Labels of the image.
    #[serde(deserialize_with = "null")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15`; empty for SIGTERM.
    #[serde(deserialize_with = "null")]
    pub stop_signal: String,
}

/// Takes JSON's null, which Go writes for empty lists, for nothing.
fn null<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The keys of an object whose values say nothing.
fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}
