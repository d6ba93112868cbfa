//! Pulls of large images beside containerd's own plugin, on the same containerd, in turn.
//!
//! One private containerd has its CRI plugin enabled; longshore uses another namespace of
//! it. The images come from a registry on the loopback interface, which shares the
//! processors with both. Two cases: one image of twelve layers, and ten images at once.
//!
//! Content is shared between namespaces, so before each pull the images are removed from
//! both, and nothing of them may be left in the content store or among the snapshots. What
//! the registry says it has sent must be the whole images. In the first round the files
//! that either server unpacked are compared, too.
//!
//! `cargo bench --bench pull [-- one|ten]`; `ROUNDS=5` for more rounds than the usual 3,
//! `PULLER=transfer` for longshore with another `image.puller` than auto,
//! `MEGABYTES=100` for less than the usual 1000 of each case. Making the layers takes longer
//! than a pull; `LAYERS=FOLDER` keeps them there for further runs (until what they are made
//! of changes: then the folder is to be emptied).

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
mod images;
mod meter;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::images::Packed;
use harness::{Beside, Cri, Node, Server};
use images::Plan;
use longshore::proto::cri;
use longshore::proto::cri::image_service_client::ImageServiceClient;
use meter::{Meter, Taken};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// The shares of the large image's layers, in thousandths: a base, a runtime, packages, an
/// application with its data.
const ONE: [&[usize]; 1] = [&[30, 5, 120, 60, 240, 1, 90, 200, 15, 150, 60, 29]];
/// The same of the ten images.
const TEN: [&[usize]; 10] = [&[30, 8, 40, 2, 20]; 10];

/// One of the two servers.
struct Side {
    name: &'static str,
    cri: Cri,
    /// A client without a limit of time.
    images: ImageServiceClient<Channel>,
}

/// An image in the registry.
struct Sample {
    reference: String,
    /// Digests of all its blobs.
    blobs: Vec<String>,
}

/// The images of a case.
struct Case {
    name: &'static str,
    samples: Vec<Sample>,
    /// Of the layers, as they are transferred.
    bytes: u64,
    /// Of all blobs that are no manifests.
    all_bytes: u64,
}

/// What one pull of all images of a case took.
#[derive(Clone, Copy)]
struct Figures {
    seconds: f64,
    /// From the start until the registry had sent the last layer.
    fetched_s: f64,
    longshore: Taken,
    containerd: Taken,
    registry: Taken,
}

struct Bench {
    node: Node,
    beside: Beside,
    sides: [Side; 2],
    rounds: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return Ok(());
    }
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse::<usize>().ok());
    let bytes = number("MEGABYTES").unwrap_or(1000) * 1_000_000;
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let puller = std::env::var("PULLER").unwrap_or_else(|_| "auto".into());
    let beside = Beside::with(&node, &format!("[image]\npuller = \"{puller}\"\n")).await;
    let sides = [Side::new("longshore", beside.cri())?, Side::new("built-in", node.cri())?];
    let bench = Bench { node, beside, sides, rounds: number("ROUNDS").unwrap_or(3).max(1) };
    bench.print_setting();
    for (name, images) in [("one", &ONE[..]), ("ten", &TEN[..])] {
        if asked.as_deref().is_none_or(|asked| asked == name) {
            let case = bench.case(name, images, bytes);
            bench.run(&case).await.with_context(|| format!("case {name:?}"))?;
            bench.remove(&case).await?;
        }
    }
    Ok(())
}

impl Side {
    fn new(name: &'static str, cri: &Cri) -> anyhow::Result<Side> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", cri.socket().display()))?;
        Ok(Side { name, cri: cri.clone(), images: ImageServiceClient::new(endpoint.connect_lazy()) })
    }

    /// Pulls all images at the same time.
    async fn pull(&self, samples: &[Sample]) -> anyhow::Result<()> {
        let mut pulls = JoinSet::new();
        for sample in samples {
            let (mut images, image) = (self.images.clone(), sample.reference.clone());
            let image = cri::ImageSpec { user_specified_image: image.clone(), image, ..Default::default() };
            let request = cri::PullImageRequest { image: Some(image), ..Default::default() };
            pulls.spawn(async move { images.pull_image(request).await });
        }
        while let Some(pulled) = pulls.join_next().await {
            pulled?.with_context(|| format!("a pull by {}", self.name))?;
        }
        Ok(())
    }
}

impl Bench {
    fn print_setting(&self) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let helper = ["igzip", "unpigz"]
            .into_iter()
            .find(|name| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
        println!(
            "containerd {} ({}), {} processors, {} rounds; MB are of the compressed layers",
            self.node.containerd_version(),
            helper
                .map_or("unpacks gzip itself".into(), |name| format!("unpacks gzip by {name} where it can")),
            std::thread::available_parallelism().map_or(0, usize::from),
            self.rounds,
        );
    }

    /// Makes the images of a case and puts them into the registry.
    fn case(&self, name: &'static str, images: &[&[usize]], bytes: usize) -> Case {
        let whole: usize = images.iter().copied().flatten().sum();
        let shares = images.iter().enumerate();
        let shares = shares.flat_map(|(image, layers)| layers.iter().map(move |share| (image, share)));
        let plans: Vec<Plan> = (0..)
            .zip(shares)
            .map(|(index, (image, share))| {
                let seed = 1000 * (images.len() + image) as u64 + index;
                Plan { seed, bytes: bytes / whole * share }
            })
            .collect();
        let begun = Instant::now();
        let kept = std::env::var_os("LAYERS").map(PathBuf::from);
        let made = images::make(&plans, kept.as_deref());
        let (files, plain_bytes) =
            made.iter().fold((0, 0), |sums, layer| (sums.0 + layer.files, sums.1 + layer.plain_bytes));
        let bytes = made.iter().map(|layer| layer.blob.data.len() as u64).sum();
        println!(
            "\n{name}: {} layers, {files} files, {:.0} MB compressed, {:.0} MB as files (made in {:.0} s)",
            made.len(),
            bytes as f64 / 1e6,
            plain_bytes as f64 / 1e6,
            begun.elapsed().as_secs_f64()
        );
        let mut made = made.into_iter();
        let (mut samples, mut all_bytes) = (Vec::new(), bytes);
        for (index, layers) in images.iter().enumerate() {
            let (blobs, diff_ids): (Vec<_>, Vec<_>) =
                made.by_ref().take(layers.len()).map(|layer| (layer.blob, layer.diff_id)).unzip();
            let diff_ids: Vec<&str> = diff_ids.iter().map(String::as_str).collect();
            let packed = Packed::new(&serde_json::json!({}), blobs, &diff_ids);
            all_bytes += packed.config.data.len() as u64;
            let reference = self.node.registry().push_packed(&format!("{name}-{index}:1"), &packed);
            let blobs = packed.layers.iter().chain([&packed.config, &packed.manifest]);
            samples.push(Sample { reference, blobs: blobs.map(|blob| blob.digest.clone()).collect() });
        }
        Case { name, samples, bytes, all_bytes }
    }

    async fn run(&self, case: &Case) -> anyhow::Result<()> {
        println!(
            "{:>5} {:10} {:>8} {:>7} {:>8}   {:>9} {:>6}   {:>10} {:>6}   {:>8}",
            "round", "server", "seconds", "MB/s", "fetched", "longshore", "", "containerd", "", "registry"
        );
        println!("{:44}{:>9} {:>6}   {:>10} {:>6}   {:>8}", "", "CPU s", "MiB", "CPU s", "MiB", "CPU s");
        let mut all = [const { Vec::new() }; 2];
        let mut trees = [const { Vec::new() }; 2];
        for round in 0..self.rounds {
            // Who goes first changes.
            for place in 0..2 {
                let which = (round + place) % 2;
                let figures = self.pull(case, &self.sides[which]).await?;
                figures.print(&(round + 1).to_string(), self.sides[which].name, case);
                all[which].push(figures);
                if round == 0 {
                    trees[which] = trees_in(&self.snapshots())?;
                }
            }
        }
        ensure!(!trees[0].is_empty() && trees[0] == trees[1], "the servers unpacked different files");
        let [ours, theirs] = all.map(|all| Figures::median(&all));
        ours.print("", "longshore", case);
        theirs.print("", "built-in", case);
        println!("{}: the ratio of the median times is {:.2}", case.name, ours.seconds / theirs.seconds);
        Ok(())
    }

    /// Removes a case's images from both servers, and looks whether they are gone.
    async fn remove(&self, case: &Case) -> anyhow::Result<()> {
        for side in &self.sides {
            for sample in &case.samples {
                side.cri.remove_image(&sample.reference).await.context("remove an image")?;
            }
        }
        let blobs = self.node.containerd().root().join("io.containerd.content.v1.content/blobs/sha256");
        let is_there = |digest: &String| blobs.join(digest.trim_start_matches("sha256:")).exists();
        harness::wait_until("a store without the images", async || {
            let has_blobs = case.samples.iter().flat_map(|sample| &sample.blobs).any(is_there);
            !has_blobs && std::fs::read_dir(self.snapshots()).is_ok_and(|entries| entries.count() == 0)
        })
        .await;
        Ok(())
    }

    fn snapshots(&self) -> PathBuf {
        self.node.containerd().root().join("io.containerd.snapshotter.v1.overlayfs/snapshots")
    }

    /// Pulls all images of a case on a store that has none of them.
    async fn pull(&self, case: &Case, side: &Side) -> anyhow::Result<Figures> {
        self.remove(case).await?;
        // What was written before is not to be waited for in here.
        rustix::fs::sync();
        let registry = self.node.registry();
        let pids = [self.beside.longshore().pid(), self.node.containerd().pid(), registry.pid()];
        let logged = registry.log().len();
        let meter = Meter::start(&pids)?;
        let (begun, begun_at) = (Instant::now(), jiff::Timestamp::now());
        side.pull(&case.samples).await?;
        let elapsed = begun.elapsed();
        let taken = meter.stop()?;
        // Its last line may be a little late.
        let sent = harness::wait_for("a registry that has sent everything", async || {
            let sent = Sent::read(&registry.log()[logged..]);
            (sent.bytes >= case.all_bytes).then_some(sent)
        })
        .await;
        if sent.bytes > case.all_bytes {
            println!(
                "{}: the registry sent {} bytes more than needed",
                side.name,
                sent.bytes - case.all_bytes
            );
        }
        let last = sent.last.context("the registry tells no time")?;
        let fetched = Duration::try_from(last.duration_since(begun_at)).unwrap_or_default();
        let [longshore, containerd, registry] = [taken[0], taken[1], taken[2]];
        let (seconds, fetched_s) = (elapsed.as_secs_f64(), fetched.as_secs_f64());
        Ok(Figures { seconds, fetched_s, longshore, containerd, registry })
    }
}

impl Figures {
    fn print(&self, round: &str, name: &str, case: &Case) {
        let mib = |taken: Taken| taken.peak_kib as f64 / 1024.0;
        println!(
            "{:>5} {name:10} {:8.2} {:7.1} {:8.2}   {:9.2} {:6.1}   {:10.2} {:6.1}   {:8.2}",
            if round.is_empty() { "med." } else { round },
            self.seconds,
            case.bytes as f64 / 1e6 / self.seconds,
            self.fetched_s,
            self.longshore.processor_s,
            mib(self.longshore),
            self.containerd.processor_s,
            mib(self.containerd),
            self.registry.processor_s,
        );
    }

    /// The median of each figure by itself.
    fn median(all: &[Figures]) -> Figures {
        let of = |get: &dyn Fn(&Figures) -> f64| {
            let mut values: Vec<f64> = all.iter().map(get).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            if values.len() % 2 == 1 {
                values[middle]
            } else {
                f64::midpoint(values[middle - 1], values[middle])
            }
        };
        let taken = |get: fn(&Figures) -> Taken| Taken {
            processor_s: of(&|figures| get(figures).processor_s),
            peak_kib: of(&|figures| get(figures).peak_kib as f64) as u64,
        };
        Figures {
            seconds: of(&|figures| figures.seconds),
            fetched_s: of(&|figures| figures.fetched_s),
            longshore: taken(|figures| figures.longshore),
            containerd: taken(|figures| figures.containerd),
            registry: taken(|figures| figures.registry),
        }
    }
}

/// What the registry has sent of layers and configurations.
#[derive(Default)]
struct Sent {
    bytes: u64,
    last: Option<jiff::Timestamp>,
}

impl Sent {
    /// From the lines of its log.
    fn read(log: &str) -> Sent {
        let mut sent = Sent::default();
        for line in log.lines().filter(|line| line.contains("msg=\"response completed\"")) {
            let value = |key: &str| {
                let (_, rest) = line.split_once(&format!("{key}="))?;
                rest.trim_start_matches('"').split(['"', ' ']).next()
            };
            let is_blob = value("http.response.contenttype") == Some("application/octet-stream");
            if !is_blob || value("http.request.method") != Some("GET") {
                continue;
            }
            sent.bytes += value("http.response.written").and_then(|text| text.parse().ok()).unwrap_or(0);
            sent.last = value("time").and_then(|text| text.parse().ok()).max(sent.last);
        }
        sent
    }
}

/// A digest for each snapshot, of all that is in it, in the order of the digests.
fn trees_in(snapshots: &Path) -> anyhow::Result<Vec<[u8; 32]>> {
    let mut trees = Vec::new();
    for entry in std::fs::read_dir(snapshots)? {
        let root = entry?.path().join("fs");
        let mut hash = Sha256::new();
        let mut open = vec![root.clone()];
        while let Some(folder) = open.pop() {
            let entries = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path()));
            let mut paths: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
            paths.sort();
            for path in paths {
                let about = path.symlink_metadata()?;
                let name = path.strip_prefix(&root)?.display();
                let (mode, links, time) = (about.mode(), about.nlink(), about.mtime());
                hash.update(format!("{name} {mode:o} {} {} {links} {time}\n", about.uid(), about.gid()));
                if about.is_symlink() {
                    hash.update(std::fs::read_link(&path)?.as_os_str().as_encoded_bytes());
                } else if about.is_file() {
                    hash.update(Sha256::digest(std::fs::read(&path)?));
                } else {
                    open.push(path);
                }
            }
        }
        trees.push(hash.finalize().into());
    }
    trees.sort_unstable();
    Ok(trees)
}
