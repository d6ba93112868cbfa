//! Pulls that are cancelled, and servers that are killed in the middle of them, again and
//! again: nothing of them stays in containerd.
//!
//! `LONGSHORE_TEST_PULL_SECONDS` says how long (15).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::harness::images::{Image, REGISTRY};
use crate::harness::{Node, Server, stored, wait_until};

/// Images, some of whose layers are the same.
const IMAGES: usize = 4;
/// Bytes of a layer, which does not compress.
const LAYER_BYTES: usize = 3 << 20;
/// How long a pull is left alone, at most, before it is cancelled or the server killed.
const LEFT_ALONE_MS: u64 = 120;

/// Numbers that look like chance; the seed is told so that a run can be repeated.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.below(256) as u8).take(length).collect()
    }
}

/// REC-15, IMG-30, IMG-32.
#[tokio::test]
async fn cancelled_pulls_and_killed_servers_leave_nothing() {
    let seconds = std::env::var("LONGSHORE_TEST_PULL_SECONDS").ok().and_then(|text| text.parse().ok());
    let node = Node::with(Server::Longshore).start().await;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("randomness");
    let mut chance = Chance(u64::from_ne_bytes(seed));
    eprintln!("seed {}", chance.0);
    let base = chance.bytes(LAYER_BYTES);
    let images: Vec<String> = (0..IMAGES)
        .map(|number| {
            let name = format!("kills-{number}-{:x}", chance.below(1 << 31));
            let image = Image::empty().file("base", &base).file("own", &chance.bytes(LAYER_BYTES));
            node.registry().push(&format!("{name}:1"), &image.file("more", &chance.bytes(1000)));
            format!("{REGISTRY}/{name}:1")
        })
        .collect();
    let before = stored(node.containerd()).await;

    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(15));
    let (mut pulled, mut kills, mut cancelled) = (0, 0, 0);
    while Instant::now() < end {
        let mut pulls = JoinSet::new();
        for _ in 0..1 + chance.below(3) {
            let (cri, image) = ((*node).clone(), images[chance.below(IMAGES as u64) as usize].clone());
            pulls.spawn(async move { cri.pull(&image).await.is_ok() });
        }
        let alone = Duration::from_millis(chance.below(LEFT_ALONE_MS));
        match chance.below(3) {
            // The clients go away.
            0 => {
                tokio::time::sleep(alone).await;
                cancelled += pulls.len();
                pulls.shutdown().await;
            }
            1 => {
                tokio::time::sleep(alone).await;
                node.longshore().kill().await;
                kills += 1;
                node.longshore().start().await;
            }
            _ => {
                let ended = pulls.join_all().await;
                assert!(ended.iter().all(|is_ok| *is_ok), "nothing disturbed these pulls");
                pulled += ended.len();
                for image in &images {
                    node.remove_image(image).await.expect("removed");
                }
            }
        }
    }
    eprintln!("{pulled} pulled, {cancelled} cancelled, {kills} kills");
    assert!(pulled > 0 && kills > 0 && cancelled > 0);
    for image in &images {
        node.remove_image(image).await.expect("removed");
    }
    let mut left = BTreeSet::new();
    let gone = wait_until("everything to be collected", async || {
        left = &stored(node.containerd()).await - &before;
        left.is_empty()
    });
    if tokio::time::timeout(Duration::from_secs(30), gone).await.is_err() {
        panic!("left behind: {left:#?}");
    }
    // And it works as before.
    node.pull(&images[0]).await.expect("pulled");
    node.remove_image(&images[0]).await.expect("removed");
    node.finish().await;
}
