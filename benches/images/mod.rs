//! Layers as large images have them, made up: folders of text, programs and data of all
//! sizes, in a gzipped tar archive. The same seed always gives the same layer.

mod content;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::harness::images::{BLOCK_BYTES, Blob, Entry, FILE, FOLDER, HARD_LINK, SYMBOLIC_LINK};
use content::{Kind, Random, Source};

const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A header in front of an entry, with what its own has no room for.
const EXTENDED: u8 = b'x';
/// The longest path that a header has room for.
const PATH_BYTES_MAX: usize = 100;
/// How deep folders are, at most.
const DEPTH_MAX: usize = 8;
/// From here on a layer has one file that is a third of it.
const LARGE_BYTES: usize = 50_000_000;
/// Some second of 2023.
const EPOCH: u64 = 1_700_000_000;
const YEAR_S: usize = 31_536_000;

/// A layer to be made.
pub(crate) struct Plan {
    /// Layers of different seeds have nothing in common.
    pub(crate) seed: u64,
    /// About how large it is as it is transferred.
    pub(crate) bytes: usize,
}

/// A layer as a registry has it.
pub(crate) struct Layer {
    pub(crate) blob: Blob,
    /// The digest of the plain archive.
    pub(crate) diff_id: String,
    /// Entries that are not folders.
    pub(crate) files: usize,
    /// Bytes of the plain archive.
    pub(crate) plain_bytes: usize,
}

/// Makes layers, one a processor at a time. They stay in the folder `kept`, if there is one,
/// and are taken from there the next time.
pub(crate) fn make(plans: &[Plan], kept: Option<&Path>) -> Vec<Layer> {
    let next = AtomicUsize::new(0);
    let made = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let layer = plan.find(kept).unwrap_or_else(|| plan.make().expect("memory takes it"));
                    if let Some(folder) = kept {
                        plan.keep(folder, &layer).expect("the folder for layers takes it");
                    }
                    made.lock().expect("no panic").push((plan.seed, layer));
                }
            });
        }
    });
    let mut made = made.into_inner().expect("no panic");
    made.sort_by_key(|(seed, _)| plans.iter().position(|plan| plan.seed == *seed));
    made.into_iter().map(|(_, layer)| layer).collect()
}

impl Plan {
    /// Where what is made of it is kept: the layer, and what is known about it.
    fn files(&self, folder: &Path) -> [PathBuf; 2] {
        ["tar.gz", "json"].map(|kind| folder.join(format!("{}-{}.{kind}", self.seed, self.bytes)))
    }

    fn find(&self, kept: Option<&Path>) -> Option<Layer> {
        let [data, about] = self.files(kept?);
        let about: Value = serde_json::from_slice(&std::fs::read(about).ok()?).ok()?;
        let number = |key: &str| usize::try_from(about[key].as_u64()?).ok();
        Some(Layer {
            blob: Blob::new(LAYER_GZIP, std::fs::read(data).ok()?),
            diff_id: about["diff_id"].as_str()?.to_owned(),
            files: number("files")?,
            plain_bytes: number("plain_bytes")?,
        })
    }

    fn keep(&self, folder: &Path, layer: &Layer) -> io::Result<()> {
        let [data, about] = self.files(folder);
        if about.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(folder)?;
        std::fs::write(data, &layer.blob.data)?;
        let Layer { diff_id, files, plain_bytes, .. } = layer;
        let text = json!({ "diff_id": diff_id, "files": files, "plain_bytes": plain_bytes }).to_string();
        std::fs::write(about, text)
    }

    fn make(&self) -> io::Result<Layer> {
        let mut archive = Archive::new();
        let mut source = Source::new();
        let mut random = Random::new(self.seed);
        // As in most images: some layers belong to the user that the program runs as.
        let user = if self.seed % 4 == 3 { 1000 } else { 0 };
        let mut folders = vec![format!("opt/layer-{}", self.seed)];
        archive.folder("opt", 0, EPOCH)?;
        archive.folder(&folders[0], user, EPOCH)?;
        let mut folder = folders[0].clone();
        let mut last_file: Option<String> = None;
        let mut has_large = self.bytes < LARGE_BYTES;
        let mut number = 0;
        while archive.compressed_bytes() < self.bytes {
            number += 1;
            let modified = EPOCH + random.below(YEAR_S) as u64;
            if random.below(12) == 0 {
                let parent = &folders[random.below(folders.len())];
                let parent = if parent.split('/').count() < DEPTH_MAX { parent } else { &folders[0] };
                folder = format!("{parent}/{}-{number}", source.word(&mut random));
                archive.folder(&folder, user, modified)?;
                folders.push(folder.clone());
                last_file = None;
            }
            let path = format!("{folder}/{}-{number}", source.word(&mut random));
            match (&last_file, random.below(200)) {
                (Some(file), ..5) => {
                    let to = file.rsplit('/').next().unwrap_or_default();
                    archive.link(SYMBOLIC_LINK, &path, to, user, modified)?;
                    continue;
                }
                (Some(file), 5) if file.len() <= PATH_BYTES_MAX => {
                    archive.link(HARD_LINK, &path, file, user, modified)?;
                    continue;
                }
                _ => {}
            }
            let (kind, bytes) = if has_large {
                file_kind(&mut random)
            } else {
                has_large = true;
                (Kind::Program, self.bytes / 3 * 2)
            };
            // The last one is not to make the layer much larger than it should be.
            let bytes = bytes.min(3 * (self.bytes - archive.compressed_bytes()));
            let mode = if matches!(kind, Kind::Program) { 0o755 } else { 0o644 };
            archive.header(
                &Entry { path: &path, mode, user, group: user, modified, kind: FILE, to: "" },
                bytes,
            )?;
            source.fill(kind, bytes, &mut random, &mut archive)?;
            archive.pad(bytes)?;
            archive.files += 1;
            last_file = Some(path);
        }
        archive.finish()
    }
}

/// What a file is, and how long: most are small, most bytes are in large ones.
fn file_kind(random: &mut Random) -> (Kind, usize) {
    let (bytes, text, program) = match random.below(1000) {
        ..680 => (random.spread(128, 6), 96, 0),
        680..920 => (random.spread(8 << 10, 3), 70, 22),
        920..996 => (random.spread(64 << 10, 4), 36, 56),
        _ => (random.spread(1 << 20, 4), 14, 80),
    };
    let kind = match random.below(100) {
        share if share < text => Kind::Text,
        share if share < text + program => Kind::Program,
        _ => Kind::Compressed,
    };
    (kind, bytes)
}

/// A gzipped tar archive that is being written.
struct Archive {
    gzip: GzEncoder<Vec<u8>>,
    plain: Sha256,
    plain_bytes: usize,
    files: usize,
}

impl Archive {
    fn new() -> Archive {
        // The level of most tools that build images.
        let gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        Archive { gzip, plain: Sha256::new(), plain_bytes: 0, files: 0 }
    }

    /// About as many as it has now.
    fn compressed_bytes(&self) -> usize {
        self.gzip.get_ref().len()
    }

    fn folder(&mut self, path: &str, user: u32, modified: u64) -> io::Result<()> {
        let path = format!("{path}/");
        self.header(&Entry { path: &path, mode: 0o755, user, group: user, modified, kind: FOLDER, to: "" }, 0)
    }

    fn link(&mut self, kind: u8, path: &str, to: &str, user: u32, modified: u64) -> io::Result<()> {
        self.files += 1;
        self.header(&Entry { path, to, mode: 0o777, user, group: user, modified, kind }, 0)
    }

    fn header(&mut self, entry: &Entry<'_>, bytes: usize) -> io::Result<()> {
        if entry.path.len() <= PATH_BYTES_MAX {
            return self.write_all(&entry.header(bytes));
        }
        let record = record("path", entry.path);
        self.write_all(&Entry { path: "long", kind: EXTENDED, ..Entry::default() }.header(record.len()))?;
        self.write_all(record.as_bytes())?;
        self.pad(record.len())?;
        let short = &entry.path[..PATH_BYTES_MAX];
        self.write_all(&Entry { path: short, ..*entry }.header(bytes))
    }

    /// Ends content of so many bytes.
    fn pad(&mut self, bytes: usize) -> io::Result<()> {
        self.write_all(&[0; BLOCK_BYTES][..bytes.next_multiple_of(BLOCK_BYTES) - bytes])
    }

    fn finish(mut self) -> io::Result<Layer> {
        self.write_all(&[0; 2 * BLOCK_BYTES])?;
        let hex: String = self.plain.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Layer {
            blob: Blob::new(LAYER_GZIP, self.gzip.finish()?),
            diff_id: format!("sha256:{hex}"),
            files: self.files,
            plain_bytes: self.plain_bytes,
        })
    }
}

impl Write for Archive {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(data)?;
        self.plain.update(data);
        self.plain_bytes += data.len();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A record of an extended header: its own length, key and value.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}
