//! The pause image: what holds a pod's namespaces (SBX-07, design D11).
//!
//! Without configuration it is built in: one layer with our own static program
//! (`pause.rs`, compiled by build.rs), made the same bit for bit by every run of one
//! build, and imported when it is missing. A node behind a firewall starts its first pod
//! without a registry. A configured image takes its place and is pulled when missing.
//! Either is pinned: the kubelet never collects it (IMG-10).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tracing::info;

use super::document::{Document, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, parse_config};
use super::platform::Node;
use super::{Image, Images, Pull, content, digest};
use crate::containerd::{Descriptor, ImageRecord};
use crate::error::{Context, Result, internal};
use crate::flow::Flow;
use crate::proto::cri;
use crate::spec::ImageConfig;

/// The name of the built-in image. No registry is ever asked for it.
pub const PAUSE_REFERENCE: &str = "longshore.internal/pause:1";

/// The program.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
/// Neither root nor anyone: the highest ids of a user namespace of usual size.
const USER: &str = "65535:65535";
/// A block of a tar archive.
const BLOCK_BYTES: usize = 512;

impl Images {
    /// The pause image, imported or pulled when it is missing.
    ///
    /// # Errors
    /// Those of the import or the pull, with the reference named.
    pub async fn pause(&self, flow: &Flow) -> Result<Arc<Image>> {
        match &self.0.settings.pause {
            Some(reference) => self.pulled_pause(flow, &reference.to_string()).await,
            None => self.imported_pause().await,
        }
        .context(|| "pause image")
    }

    async fn pulled_pause(&self, flow: &Flow, reference: &str) -> Result<Arc<Image>> {
        if let Some(image) = self.find(reference) {
            return Ok(image);
        }
        let image = cri::ImageSpec { image: reference.to_owned(), ..Default::default() };
        let snapshotter = self.0.settings.snapshotter.clone();
        let id = self.pull(flow, Pull { image, auth: None, snapshotter }).await?;
        self.find(&id).ok_or_else(|| internal(format!("{reference} is gone directly after its pull")))
    }

    async fn imported_pause(&self) -> Result<Arc<Image>> {
        let built = built_in();
        let found = || self.find(PAUSE_REFERENCE).filter(|image| image.id == built.config.0.digest);
        if let Some(image) = found() {
            return Ok(image);
        }
        let _turn = self.0.blobs.lock(PAUSE_REFERENCE).await;
        if let Some(image) = found() {
            return Ok(image);
        }
        let former = self.find(PAUSE_REFERENCE);
        let work = self.0.leases.begin(&self.0.containerd).await?;
        let result = async {
            for ((descriptor, data), labels) in built.parts() {
                let data = data.clone();
                content::put(&self.0.containerd, &work, descriptor, data, labels, None).await?;
            }
            for name in [built.config.0.digest.as_str(), PAUSE_REFERENCE] {
                let record = ImageRecord {
                    name: name.to_owned(),
                    labels: self.labels_for(name),
                    target: built.manifest.0.clone(),
                };
                self.record(record, work.lease()).await?;
            }
            Ok(())
        };
        let result: Result<()> = result.await;
        work.end(&result).await;
        result.context(|| format!("import {PAUSE_REFERENCE}"))?;
        info!(id = built.config.0.digest, "imported the built-in pause image");
        // That of an earlier build has lost its name to this one: nobody will ask for it.
        if let Some(former) = former.filter(|former| former.id != built.config.0.digest) {
            self.0.containerd.delete_image(&former.id, false).await?;
            self.refresh(&former.id).await?;
        }
        found().ok_or_else(|| internal(format!("{PAUSE_REFERENCE} is gone directly after its import")))
    }
}

type Part = (Descriptor, Vec<u8>);

struct BuiltIn {
    layer: Part,
    config: Part,
    manifest: Part,
}

impl BuiltIn {
    /// What goes into the content store, children first, with its labels.
    fn parts(&self) -> [(&Part, HashMap<String, String>); 3] {
        let layer = HashMap::from([("containerd.io/uncompressed".to_owned(), self.layer.0.digest.clone())]);
        let manifest = Manifest {
            config: self.config.0.clone(),
            layers: vec![self.layer.0.clone()],
            elsewhere: HashMap::new(),
            annotations: Default::default(),
        };
        let manifest = content::child_labels(&Document::Manifest(manifest));
        [(&self.layer, layer), (&self.config, HashMap::new()), (&self.manifest, manifest)]
    }
}

fn built_in() -> &'static BuiltIn {
    static BUILT_IN: OnceLock<BuiltIn> = OnceLock::new();
    BUILT_IN.get_or_init(build)
}

/// What the built-in image says of its containers.
pub(super) fn built_in_config() -> ImageConfig {
    parse_config(PAUSE_REFERENCE, &built_in().config.1).map(|config| config.config).unwrap_or_default()
}

fn build() -> BuiltIn {
    let layer = part(OCI_LAYER, archive("pause", PROGRAM));
    let config = serde_json::json!({
        "architecture": Node::this().own().architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/pause"], "User": USER, "WorkingDir": "/" },
        // The layer is not compressed: its digest is its diff id.
        "rootfs": { "type": "layers", "diff_ids": [layer.0.digest] },
    });
    let config = part(OCI_CONFIG, config.to_string().into_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": child(&config.0),
        "layers": [child(&layer.0)],
    });
    let manifest = part(OCI_MANIFEST, manifest.to_string().into_bytes());
    BuiltIn { layer, config, manifest }
}

fn child(descriptor: &Descriptor) -> serde_json::Value {
    serde_json::json!({
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
    })
}

fn part(media_type: &str, data: Vec<u8>) -> Part {
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest: digest::of(&data),
        size: i64::try_from(data.len()).unwrap_or(i64::MAX),
        ..Default::default()
    };
    (descriptor, data)
}

/// A tar archive (ustar) of one program, owned by root and without a date.
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    let mut header = [0u8; BLOCK_BYTES];
    // Field, offset in the header.
    let fields: [(&[u8], usize); 9] = [
        (name.as_bytes(), 0),
        (b"0000755\0", 100),          // mode
        (b"0000000\0", 108),          // user
        (b"0000000\0", 116),          // group
        (&octal(program.len()), 124), // bytes
        (b"00000000000\0", 136),      // time of change
        (b"        ", 148),           // where the sum goes, counted as spaces
        (b"0", 156),                  // a regular file
        (b"ustar\x0000", 257),        // format and version
    ];
    for (value, offset) in fields {
        header[offset..offset + value.len()].copy_from_slice(value);
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = Vec::with_capacity(program.len() + 4 * BLOCK_BYTES);
    archive.extend_from_slice(&header);
    archive.extend_from_slice(program);
    archive.resize(archive.len().next_multiple_of(BLOCK_BYTES), 0);
    // Two empty blocks are the end.
    archive.resize(archive.len() + 2 * BLOCK_BYTES, 0);
    archive
}

fn octal(number: usize) -> Vec<u8> {
    format!("{number:011o}\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::document::{parse, parse_config};
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_image_is_the_same_every_time_and_holds_together() {
        let (a, b) = (build(), build());
        assert_eq!(a.manifest, b.manifest);
        for ((descriptor, data), _) in a.parts() {
            assert!(digest::matches(&descriptor.digest, data));
            assert_eq!(usize::try_from(descriptor.size), Ok(data.len()));
        }
        let (_, document) = parse(&a.manifest.0, &a.manifest.1).expect("a manifest");
        let Document::Manifest(manifest) = document else { panic!("an index") };
        assert_eq!((&manifest.config, &manifest.layers[..]), (&a.config.0, &[a.layer.0.clone()][..]));
        let config = parse_config(&a.config.0.digest, &a.config.1).expect("a config");
        assert_eq!(config.rootfs.diff_ids, [a.layer.0.digest.as_str()]);
        assert_eq!(
            (config.config.entrypoint, config.config.user),
            (vec!["/pause".to_owned()], USER.to_owned())
        );
        assert!(Node::this().rank(&parse_config("", &a.config.1).expect("a config").platform()).is_some());
    }

    #[test]
    fn tar_reads_the_layer() {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        tar.stdin.take().expect("piped").write_all(&build().layer.1).expect("tar reads all");
        let output = tar.wait_with_output().expect("tar ends");
        let line = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success());
        assert!(line.starts_with("-rwxr-xr-x 0/0"), "{line}");
        assert!(line.trim_end().ends_with(" 1970-01-01 00:00 pause"), "{line}");
        assert!(line.contains(&format!(" {} ", PROGRAM.len())), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}
