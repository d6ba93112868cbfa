//! The JSON documents of an image: index, manifest and config.
//!
//! They come from a registry or from whoever else writes to the content store, and are
//! read with bounds: of their size ([`MANIFEST_BYTES_MAX`], [`CONFIG_BYTES_MAX`]) and of
//! the number of their children. Both OCI's and Docker's media types (schema 2) are
//! understood; a document that says it is one thing and is another is refused, since
//! two clients could then see two different images in it. Docker's schema 1 is refused
//! by name (IMG-28).

use std::collections::{BTreeMap, HashMap};

use http::Uri;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::digest::is_digest;
use super::platform::Platform;
use crate::containerd::Descriptor;
use crate::error::{Context, Error, Kind, Result, invalid, unimplemented};
use crate::spec::ImageConfig;

/// The largest index or manifest.
pub(super) const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// The largest config.
pub(super) const CONFIG_BYTES_MAX: usize = 8 << 20;
/// The most bytes of annotations that are kept of an image: they are in every list.
const ANNOTATIONS_BYTES_MAX: usize = 16 << 10;
/// The most manifests of an index that are looked at.
const MANIFESTS_MAX: usize = 2000;
/// The most places of one layer besides the registry.
const URLS_MAX: usize = 8;
/// The most layers of an image: more than any file system stacks.
const LAYERS_MAX: usize = 1000;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";
const OCI_LAYER_PREFIX: &str = "application/vnd.oci.image.layer.";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// An index or a manifest.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Entry>),
    Manifest(Manifest),
}

/// A manifest in an index.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) descriptor: Descriptor,
    pub(super) platform: Option<Platform>,
}

/// What an image of one platform is made of.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    /// Where layers lie besides the registry, by digest.
    pub(super) elsewhere: HashMap<String, Vec<Uri>>,
    /// What its makers say of it; nothing if that is longer than
    /// [`ANNOTATIONS_BYTES_MAX`].
    pub(super) annotations: BTreeMap<String, String>,
}

/// Index or manifest, as far as a media type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Index,
    Manifest,
}

impl Shape {
    /// The shape that a media type means.
    pub(super) fn of(media_type: &str) -> Option<Shape> {
        match media_type {
            OCI_INDEX | DOCKER_INDEX => Some(Shape::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => Some(Shape::Manifest),
            _ => None,
        }
    }
}

/// The refusal of a schema 1 media type.
///
/// # Errors
/// Unimplemented, if it is one.
pub(super) fn refuse_schema_1(media_type: &str) -> Result<()> {
    if media_type.starts_with(SCHEMA_1) {
        return Err(schema_1());
    }
    Ok(())
}

fn schema_1() -> Error {
    unimplemented(
        "the manifest is of Docker's schema 1, which is not supported any more: \
         push the image again as schema 2 or OCI",
    )
}

pub(super) fn is_layer(media_type: &str) -> bool {
    media_type.starts_with(OCI_LAYER_PREFIX) || media_type.starts_with(DOCKER_LAYER)
}

/// Configs of images; very old ones have no type of their own.
pub(super) fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG | "application/octet-stream")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: i64,
    #[serde(default, deserialize_with = "null")]
    media_type: String,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "null")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default, deserialize_with = "null")]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default, deserialize_with = "null")]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "null")]
    urls: Vec<String>,
}

impl RawDescriptor {
    /// Those of its URLs that can be asked. One with a user in it is none of them.
    fn elsewhere(&self) -> Option<(String, Vec<Uri>)> {
        let uris = self.urls.iter().filter_map(|url| url.parse::<Uri>().ok());
        let usable = uris.filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
        let list: Vec<Uri> = usable.take(URLS_MAX).collect();
        (!list.is_empty()).then(|| (self.digest.clone(), list))
    }

    fn checked(self) -> Result<Entry> {
        if !is_digest(&self.digest) {
            return Err(invalid(format!("{:?} is not a digest", self.digest)));
        }
        if self.size < 0 {
            return Err(invalid(format!("{} has a negative size", self.digest)));
        }
        let descriptor = Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
            annotations: self.annotations,
        };
        Ok(Entry { descriptor, platform: self.platform })
    }
}

/// Reads the document that `descriptor` points at. A media type that says nothing is
/// replaced by what the document says itself.
///
/// # Errors
/// InvalidArgument for what is neither; Unimplemented for Docker's schema 1.
pub(super) fn parse(descriptor: &Descriptor, data: &[u8]) -> Result<(Shape, Document)> {
    let read = || -> Result<(Shape, Document)> {
        let raw: RawDocument = serde_json::from_slice(data).map_err(|error| invalid(error.to_string()))?;
        refuse_schema_1(&descriptor.media_type)?;
        refuse_schema_1(&raw.media_type)?;
        if raw.fs_layers.is_some() || raw.schema_version == 1 {
            return Err(schema_1());
        }
        let shape = shape(descriptor, &raw)?;
        let document = match shape {
            Shape::Index => Document::Index(entries(raw.manifests.unwrap_or_default(), MANIFESTS_MAX)?),
            Shape::Manifest => {
                let config = raw.config.ok_or_else(|| invalid("a manifest without a config"))?.checked()?;
                let layers = raw.layers.unwrap_or_default();
                let elsewhere = layers.iter().filter_map(RawDescriptor::elsewhere).collect();
                let layers = entries(layers, LAYERS_MAX)?;
                Document::Manifest(Manifest {
                    config: config.descriptor,
                    layers: layers.into_iter().map(|layer| layer.descriptor).collect(),
                    elsewhere,
                    annotations: bounded(raw.annotations),
                })
            }
        };
        Ok((shape, document))
    };
    read().context(|| format!("read the manifest {}", descriptor.digest))
}

/// Annotations, as far as they are kept.
fn bounded(annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes <= ANNOTATIONS_BYTES_MAX { annotations } else { BTreeMap::new() }
}

fn shape(descriptor: &Descriptor, raw: &RawDocument) -> Result<Shape> {
    let contents = match (raw.manifests.is_some(), raw.config.is_some() || raw.layers.is_some()) {
        (true, true) => return Err(invalid("it is both an index and a manifest")),
        (true, false) => Some(Shape::Index),
        (false, true) => Some(Shape::Manifest),
        (false, false) => None,
    };
    let said = [Shape::of(&descriptor.media_type), Shape::of(&raw.media_type), contents];
    let mut said = said.into_iter().flatten();
    let first = said.next().ok_or_else(|| invalid("it is neither an index nor a manifest"))?;
    if said.any(|other| other != first) {
        return Err(invalid("its media type and its content do not agree"));
    }
    Ok(first)
}

fn entries(raw: Vec<RawDescriptor>, count_max: usize) -> Result<Vec<Entry>> {
    if raw.len() > count_max {
        return Err(Error::new(
            Kind::ResourceExhausted,
            format!("{} children are more than {count_max}", raw.len()),
        ));
    }
    raw.into_iter().map(RawDescriptor::checked).collect()
}

/// The media type of a document in the record of an image.
pub(super) fn media_type(said: &str, shape: Shape, data: &[u8]) -> String {
    if Shape::of(said).is_some() {
        return said.to_owned();
    }
    #[derive(Deserialize)]
    struct Typed {
        #[serde(default, rename = "mediaType")]
        media_type: String,
    }
    match serde_json::from_slice::<Typed>(data) {
        Ok(typed) if Shape::of(&typed.media_type).is_some() => typed.media_type,
        _ if shape == Shape::Index => OCI_INDEX.to_owned(),
        _ => OCI_MANIFEST.to_owned(),
    }
}

/// A config as far as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default, deserialize_with = "null")]
    pub(super) config: ImageConfig,
    #[serde(default)]
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    #[serde(deserialize_with = "null")]
    pub(super) diff_ids: Vec<String>,
}

impl Config {
    pub(super) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            os_features: Vec::new(),
        }
    }
}

/// Reads a config.
///
/// # Errors
/// InvalidArgument for what is none.
pub(super) fn parse_config(digest: &str, data: &[u8]) -> Result<Config> {
    let config: Config = serde_json::from_slice(data)
        .map_err(|error| invalid(error.to_string()))
        .context(|| format!("read the image config {digest}"))?;
    if let Some(wrong) = config.rootfs.diff_ids.iter().find(|id| !is_digest(id)) {
        return Err(invalid(format!("read the image config {digest}: {wrong:?} is not a digest")));
    }
    Ok(config)
}

/// Takes JSON's null, which Go writes for empty lists, for nothing.
fn null<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn described(media_type: &str) -> Descriptor {
        Descriptor { media_type: media_type.into(), digest: DIGEST.into(), ..Default::default() }
    }

    fn child(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":3}}"#)
    }

    #[test]
    fn manifests_and_indexes_are_read_whatever_the_header_says() {
        let manifest = format!(r#"{{"schemaVersion":2,"config":{0},"layers":[{0}]}}"#, child(OCI_CONFIG));
        for header in [OCI_MANIFEST, DOCKER_MANIFEST, "application/json", ""] {
            let (_, document) = parse(&described(header), manifest.as_bytes()).expect(header);
            assert!(matches!(document, Document::Manifest(m) if m.layers.len() == 1 && m.config.size == 3));
        }
        let index = format!(r#"{{"mediaType":"{DOCKER_INDEX}","manifests":[{}]}}"#, child(DOCKER_MANIFEST));
        let (shape, _) = parse(&described("text/plain"), index.as_bytes()).expect("an index");
        assert_eq!(media_type("text/plain", shape, index.as_bytes()), DOCKER_INDEX);
    }

    #[test]
    fn contradictions_and_schema_1_are_refused() {
        let both = format!(r#"{{"config":{0},"manifests":[{0}]}}"#, child(OCI_CONFIG));
        let manifest = format!(r#"{{"config":{0},"layers":[]}}"#, child(OCI_CONFIG));
        for (header, text, want) in [
            (OCI_MANIFEST, both.as_str(), "both an index and a manifest"),
            (OCI_INDEX, manifest.as_str(), "do not agree"),
            (OCI_MANIFEST, r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "do not agree"),
            ("", "{}", "neither"),
            (OCI_MANIFEST, r#"{"layers":[]}"#, "without a config"),
            (OCI_MANIFEST, "[]", "invalid"),
            (OCI_MANIFEST, r#"{"config":{"digest":"sha256:1","size":1}}"#, "not a digest"),
            ("", r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}", "schema 1"),
        ] {
            let error = parse(&described(header), text.as_bytes()).expect_err(text);
            assert!(error.message().contains(want), "{text}: {error}");
        }
        let negative = manifest.replace("\"size\":3", "\"size\":-3");
        assert!(parse(&described(OCI_MANIFEST), negative.as_bytes()).is_err());
    }

    #[test]
    fn places_besides_the_registry_are_kept_as_far_as_they_can_be_asked() {
        let urls = r#","urls":["https://cdn.example/a?b=c","ftp://x/y","https://u:p@x/y","no url"]}"#;
        let layer = child(OCI_LAYER).replace('}', urls);
        let manifest = format!(r#"{{"config":{},"layers":[{layer}]}}"#, child(OCI_CONFIG));
        let (_, document) = parse(&described(OCI_MANIFEST), manifest.as_bytes()).expect("valid");
        let Document::Manifest(manifest) = document else { panic!("a manifest") };
        assert_eq!(manifest.elsewhere[DIGEST], ["https://cdn.example/a?b=c"]);
    }

    #[test]
    fn annotations_are_kept_within_bounds() {
        let kept = |text: &str| {
            let config = child(OCI_CONFIG);
            let manifest = format!(r#"{{"config":{config},"layers":[],"annotations":{text}}}"#);
            match parse(&described(OCI_MANIFEST), manifest.as_bytes()).expect("valid").1 {
                Document::Manifest(manifest) => manifest.annotations,
                Document::Index(_) => panic!("a manifest"),
            }
        };
        assert_eq!(kept(r#"{"a":"b"}"#), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert!(kept("null").is_empty());
        assert!(kept(&format!(r#"{{"a":"{}"}}"#, "x".repeat(ANNOTATIONS_BYTES_MAX))).is_empty());
    }

    #[test]
    fn a_config_may_hold_nulls_and_miss_everything() {
        let config = parse_config(
            DIGEST,
            br#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":null,"Cmd":["sh"],"Volumes":{"/b":{},"/a":{}},
                "Labels":null,"User":"1000:5","StopSignal":"SIGINT"},"rootfs":{"type":"layers","diff_ids":null},"history":[]}"#,
        )
        .expect("valid");
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.volumes, ["/a", "/b"]);
        assert_eq!(config.platform().to_string(), "linux/amd64");
        assert!(config.rootfs.diff_ids.is_empty());
        assert_eq!(parse_config(DIGEST, b"{\"config\":null}").expect("valid").config, ImageConfig::default());
        assert!(parse_config(DIGEST, br#"{"rootfs":{"diff_ids":["x"]}}"#).is_err());
    }

    proptest! {
        #[test]
        fn reading_never_panics(data in any::<Vec<u8>>(), header in any::<String>()) {
            let _ = parse(&described(&header), &data);
            let _ = parse_config(DIGEST, &data);
        }
    }
}
