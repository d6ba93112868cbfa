//! Small images, made of files.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Content with its type.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) data: Vec<u8>,
}

impl Blob {
    pub(crate) fn digest(&self) -> String {
        digest(&self.data)
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.data.len() })
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
}

/// How a layer is compressed.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
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
    let diff_id = digest(&output.stdout);
    let blob = match packing {
        Packing::Plain => Blob { media_type: LAYER.into(), data: output.stdout },
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&output.stdout).expect("compresses");
            Blob { media_type: format!("{LAYER}+gzip"), data: gzip.finish().expect("compresses") }
        }
    };
    (blob, diff_id)
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
    layer(Packing::Gzip, |folder| {
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
    let config = Blob { media_type: CONFIG.into(), data: config.to_string().into_bytes() };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    let manifest = Blob { media_type: MANIFEST.into(), data: manifest.to_string().into_bytes() };
    Image { manifest, config, layers }
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
    Blob { media_type: INDEX.into(), data: data.to_string().into_bytes() }
}
