//! Small images, made of files.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// The most bytes of a block of a zstd frame.
const ZSTD_BLOCK_BYTES_MAX: usize = 128 << 10;

pub(crate) const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Content with its type.
#[derive(Clone, Default)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) data: Vec<u8>,
    /// Where else than in the registry it is.
    pub(crate) urls: Vec<String>,
}

impl Blob {
    pub(crate) fn digest(&self) -> String {
        digest(&self.data)
    }

    pub(crate) fn descriptor(&self) -> Value {
        let mut descriptor =
            json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.data.len() });
        if !self.urls.is_empty() {
            descriptor["urls"] = json!(self.urls);
        }
        descriptor
    }
}

pub(crate) fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image: its manifest and all that it refers to.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

impl Image {
    pub(crate) fn id(&self) -> String {
        self.config.digest()
    }

    /// The digests of all that it consists of.
    pub(crate) fn digests(&self) -> BTreeSet<String> {
        self.layers.iter().chain([&self.config, &self.manifest]).map(Blob::digest).collect()
    }

    /// The same with Docker's types (schema 2).
    pub(crate) fn into_docker(self) -> Image {
        let typed = |media_type: String, data: &Blob| Blob { media_type, ..data.clone() };
        let layers = self.layers.iter().map(|layer| {
            let end = layer.media_type.strip_prefix(LAYER).expect("an OCI layer").replace('+', ".");
            typed(format!("{DOCKER_LAYER}{end}"), layer)
        });
        let layers: Vec<Blob> = layers.collect();
        let config = typed(DOCKER_CONFIG.into(), &self.config);
        Image { manifest: manifest(DOCKER_MANIFEST, &config, &layers), config, layers }
    }
}

/// How a layer is compressed.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer that holds what `fill` puts into a folder.
pub(crate) fn layer(packing: Packing, fill: impl FnOnce(&Path)) -> (Blob, String) {
    let folder = tempfile::tempdir().expect("folder");
    fill(folder.path());
    let output = Command::new("tar")
        .args([
            "--create",
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--directory",
        ])
        .arg(folder.path())
        .arg(".")
        .output()
        .expect("tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    packed(packing, output.stdout)
}

/// A layer made of a tar archive.
fn packed(packing: Packing, tar: Vec<u8>) -> (Blob, String) {
    let diff_id = digest(&tar);
    let (end, data) = match packing {
        Packing::Plain => ("", tar),
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).expect("compresses");
            ("+gzip", gzip.finish().expect("compresses"))
        }
        Packing::Zstd => ("+zstd", zstd(&tar)),
    };
    (Blob { media_type: format!("{LAYER}{end}"), data, urls: Vec::new() }, diff_id)
}

/// A zstd frame of blocks that are not compressed (RFC 8878, section 3.1.1).
fn zstd(data: &[u8]) -> Vec<u8> {
    // The magic number; one segment, whose size follows in four bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend(u32::try_from(data.len()).expect("small").to_le_bytes());
    let mut blocks = data.chunks(ZSTD_BLOCK_BYTES_MAX).peekable();
    while let Some(block) = blocks.next() {
        let is_last = u32::from(blocks.peek().is_none());
        let header = u32::try_from(block.len()).expect("small") << 3 | is_last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}

/// A layer with one file.
pub(crate) fn file(name: &str, content: &str) -> (Blob, String) {
    layer(Packing::Gzip, |folder| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        std::fs::write(path, content).expect("file");
    })
}

/// A layer that does not compress.
pub(crate) fn random(bytes: usize) -> (Blob, String) {
    random_as(Packing::Gzip, bytes)
}

/// The same in any packing.
pub(crate) fn random_as(packing: Packing, bytes: usize) -> (Blob, String) {
    layer(packing, |folder| {
        let mut data = vec![0; bytes];
        getrandom::fill(&mut data).expect("random");
        std::fs::write(folder.join("random"), data).expect("file");
    })
}

/// An image for `architecture`.
pub(crate) fn image_for(architecture: &str, config: Value, layers: Vec<(Blob, String)>) -> Image {
    let (layers, diff_ids): (Vec<Blob>, Vec<String>) = layers.into_iter().unzip();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Blob { media_type: CONFIG.into(), data: config.to_string().into_bytes(), ..Blob::default() };
    Image { manifest: manifest(MANIFEST, &config, &layers), config, layers }
}

fn manifest(media_type: &str, config: &Blob, layers: &[Blob]) -> Blob {
    let data = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        "annotations": { "org.opencontainers.image.vendor": "a test" },
    });
    Blob { media_type: media_type.into(), data: data.to_string().into_bytes(), ..Blob::default() }
}

/// An image for this machine.
pub(crate) fn image(layers: Vec<(Blob, String)>) -> Image {
    image_for(PLATFORM, json!({ "Cmd": ["/bin/sh"], "User": "1000:5" }), layers)
}

/// An image that no other test has.
pub(crate) fn unique() -> Image {
    image(vec![random(64), file("etc/hello", "world")])
}

/// An index of images by `os/architecture`.
pub(crate) fn index(images: &[(&str, &Image)]) -> Blob {
    let manifests = images.iter().map(|(platform, image)| {
        let (os, architecture) = platform.split_once('/').expect("os/architecture");
        let mut descriptor = image.manifest.descriptor();
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    });
    let manifests: Vec<Value> = manifests.collect();
    let data = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    Blob { media_type: INDEX.into(), data: data.to_string().into_bytes(), ..Blob::default() }
}
