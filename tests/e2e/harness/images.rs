//! Images made here, of busybox and a few files.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The registry's name in references. Where it really is says its hosts.toml.
pub(crate) const REGISTRY: &str = "registry.test";
/// A static busybox with all applets in /bin, users and groups; runs `sh`.
pub(crate) const BUSYBOX: &str = "registry.test/busybox:1";
/// A pause image for the built-in plugin; longshore has one in it.
pub(crate) const PAUSE: &str = "registry.test/pause:1";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nguest:x:1001:\nextra:x:2000:guest\n";

/// Content with its type.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: &'static str,
    pub(crate) data: Vec<u8>,
    pub(crate) digest: String,
}

impl Blob {
    pub(crate) fn new(media_type: &'static str, data: Vec<u8>) -> Blob {
        let hex: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
        Blob { media_type, data, digest: format!("sha256:{hex}") }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.data.len() })
    }
}

/// An image under construction: a configuration, and layers with all their files.
#[derive(Clone)]
pub(crate) struct Image {
    config: Value,
    layers: Vec<Blob>,
}

/// An image as a registry has it.
pub(crate) struct Packed {
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

impl Image {
    /// Nothing at all.
    pub(crate) fn empty() -> Image {
        Image { config: json!({}), layers: Vec::new() }
    }

    /// busybox, which all tests use; `/bin/sh` when nothing else is asked for.
    pub(crate) fn busybox() -> Image {
        Image::empty()
            .layer(busybox_layer())
            .with("Cmd", json!(["/bin/sh"]))
            .with("Env", json!(["IMAGE=busybox"]))
    }

    /// Sets a key of the configuration as the OCI names it: Cmd, Entrypoint, Env, User …
    pub(crate) fn with(mut self, key: &str, value: Value) -> Image {
        self.config[key] = value;
        self
    }

    /// Adds a layer.
    pub(crate) fn layer(mut self, layer: Layer) -> Image {
        self.layers.push(Blob::new(LAYER, layer.finish()));
        self
    }

    /// Adds a layer with one file.
    pub(crate) fn file(self, path: &str, content: &[u8]) -> Image {
        self.layer(Layer::default().file(path, 0o644, content))
    }

    pub(crate) fn pack(&self) -> Packed {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.digest.as_str()).collect();
        Packed::new(&self.config, self.layers.clone(), &diff_ids)
    }
}

impl Packed {
    /// An image of layers that are blobs already, with the digests of their plain archives.
    pub(crate) fn new(config: &Value, layers: Vec<Blob>, diff_ids: &[&str]) -> Packed {
        let config = json!({
            "architecture": ARCHITECTURE, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(CONFIG, config.to_string().into_bytes());
        let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": descriptors,
        });
        let manifest = Blob::new(MANIFEST, manifest.to_string().into_bytes());
        Packed { manifest, config, layers }
    }
}

/// Every image that is there from the start, by its path and tag.
pub(crate) fn standard() -> BTreeMap<&'static str, Image> {
    let busybox = Image::busybox();
    let pause = busybox.clone().with("Cmd", json!(["/bin/sleep", "2147483647"]));
    BTreeMap::from([("busybox:1", busybox), ("pause:1", pause)])
}

fn busybox_layer() -> Layer {
    let binary = "/bin/busybox";
    let content = std::fs::read(binary).expect("busybox-static is installed");
    let list = Command::new(binary).arg("--list").output().expect("busybox runs");
    let list = String::from_utf8(list.stdout).expect("names");
    let mut layer = Layer::default()
        .folder("bin", 0o755)
        .folder("etc", 0o755)
        .folder("root", 0o700)
        .folder("tmp", 0o1777)
        .file("bin/busybox", 0o755, &content)
        .file("etc/passwd", 0o644, PASSWD.as_bytes())
        .file("etc/group", 0o644, GROUP.as_bytes());
    for applet in list.lines().filter(|applet| *applet != "busybox") {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    layer
}

/// A tar archive.
#[derive(Default)]
pub(crate) struct Layer {
    bytes: Vec<u8>,
}

/// The kinds of entries.
pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD_LINK: u8 = b'1';
pub(crate) const SYMBOLIC_LINK: u8 = b'2';
pub(crate) const FOLDER: u8 = b'5';
pub(crate) const BLOCK_BYTES: usize = 512;

impl Layer {
    pub(crate) fn file(self, path: &str, mode: u32, content: &[u8]) -> Layer {
        self.entry(&Entry { path, mode, kind: FILE, ..Entry::default() }, content)
    }

    /// A file of another user.
    pub(crate) fn file_of(self, (user, group): (u32, u32), path: &str, mode: u32, content: &[u8]) -> Layer {
        self.entry(&Entry { path, mode, kind: FILE, user, group, ..Entry::default() }, content)
    }

    pub(crate) fn folder(self, path: &str, mode: u32) -> Layer {
        self.folder_of((0, 0), path, mode)
    }

    /// A folder of another user.
    pub(crate) fn folder_of(self, (user, group): (u32, u32), path: &str, mode: u32) -> Layer {
        self.entry(&Entry { path, mode, kind: FOLDER, user, group, ..Entry::default() }, &[])
    }

    pub(crate) fn hard_link(self, path: &str, to: &str) -> Layer {
        self.entry(&Entry { path, to, mode: 0o755, kind: HARD_LINK, ..Entry::default() }, &[])
    }

    pub(crate) fn symbolic_link(self, path: &str, to: &str) -> Layer {
        self.entry(&Entry { path, to, mode: 0o777, kind: SYMBOLIC_LINK, ..Entry::default() }, &[])
    }

    fn entry(mut self, entry: &Entry<'_>, content: &[u8]) -> Layer {
        self.bytes.extend(entry.header(content.len()));
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }
}

/// What the header of an entry says, its size excepted.
#[derive(Default)]
pub(crate) struct Entry<'a> {
    pub(crate) path: &'a str,
    pub(crate) to: &'a str,
    pub(crate) mode: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// Seconds since 1970.
    pub(crate) modified: u64,
    pub(crate) kind: u8,
}

impl Entry<'_> {
    /// The header of the POSIX format: names, and numbers as octal text.
    pub(crate) fn header(&self, bytes: usize) -> [u8; BLOCK_BYTES] {
        assert!(self.path.len() <= 100 && self.to.len() <= 100, "a long name: {}", self.path);
        let mut header = [0; BLOCK_BYTES];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, self.path);
        put(100, &format!("{:07o}", self.mode));
        put(108, &format!("{:07o}", self.user));
        put(116, &format!("{:07o}", self.group));
        put(124, &format!("{bytes:011o}"));
        put(136, &format!("{:011o}", self.modified));
        // The sum is made with blanks in its own place.
        put(148, "        ");
        put(157, self.to);
        put(257, "ustar\x0000");
        header[156] = self.kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }
}
