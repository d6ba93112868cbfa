//! What the fuzzing of clients shares: a generator, of which a seed is all that is needed to
//! see an input again, and the loop around it.
//!
//! | variable | meaning |
//! |---|---|
//! | `LONGSHORE_FUZZ_SECONDS` | how long each target runs; 2 |
//! | `LONGSHORE_FUZZ_SEED` | where to begin; 1 |

mod entry;

use std::cell::Cell;
use std::fmt::{self, Debug};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use tokio::time::timeout;

/// How long a target runs where nobody says it.
const SECONDS: u64 = 2;

/// What may go on for so long after a client's end, on the paused clock: longer than idle
/// limits, goodbyes and hand-overs together.
const PLAY_LIMIT: Duration = Duration::from_secs(1000);

/// Memory that may come to the process, which runs other tests at the same time. A client
/// that can make the server keep what it likes is past it in a moment.
const GROWTH_KIB_MAX: u64 = 512 << 10;

/// A small generator.
pub(in crate::stream) struct Random(u64);

impl Random {
    pub(in crate::stream) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(in crate::stream) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(in crate::stream) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Once in `times`.
    pub(in crate::stream) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(in crate::stream) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(in crate::stream) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Takes frames away, gives them twice, changes their order and their ends.
    pub(in crate::stream) fn shuffle(&mut self, frames: &mut Vec<Vec<u8>>) {
        for _ in 0..self.pick(&[0, 0, 0, 1, 2, 5]) {
            if frames.is_empty() {
                return;
            }
            let (at, other) = (self.below(frames.len()), self.below(frames.len()));
            match self.below(4) {
                0 => _ = frames.remove(at),
                1 => frames.insert(at, frames[other].clone()),
                2 => frames.swap(at, other),
                _ => {
                    let len = self.below(frames[at].len() + 1);
                    frames[at].truncate(len);
                }
            }
        }
    }

    /// Changes some bytes.
    pub(in crate::stream) fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.pick(&[0, 0, 0, 1, 1, 2, 5]) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = self.next() as u8,
                1 | 2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes.truncate(at),
                _ => {
                    let len = self.below(20);
                    let noise = self.bytes(len);
                    bytes.splice(at..at, noise);
                }
            }
        }
    }
}

/// Bytes that a failure prints as digits.
#[derive(Clone, Default)]
pub(in crate::stream) struct Wire(pub(in crate::stream) Vec<u8>);

impl Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stream) enum Leaves {
    /// It says that it sends no more, and reads on.
    InOrder,
    /// Its connection is gone.
    Suddenly,
    /// It stays, and says nothing.
    Never,
}

impl Leaves {
    pub(in crate::stream) fn any(random: &mut Random) -> Leaves {
        random.pick(&[Leaves::InOrder, Leaves::InOrder, Leaves::Suddenly, Leaves::Never])
    }
}

thread_local! {
    static HAS_PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Panics of tasks are caught by the runtime, and must be seen all the same.
fn watch_panics() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            HAS_PANICKED.set(true);
            before(info);
        }));
    });
}

/// Has `play` play what `make` makes of one seed after the other. None may panic, also not
/// in a task, or take for ever, or leave a task behind; all together may not make the
/// process grow.
pub(in crate::stream) fn fuzz<I: Debug>(make: impl Fn(&mut Random) -> I, play: impl AsyncFn(&I)) {
    watch_panics();
    let number = |variable: &str, otherwise: u64| {
        std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let end = Instant::now() + Duration::from_secs(number("LONGSHORE_FUZZ_SECONDS", SECONDS));
    let first = number("LONGSHORE_FUZZ_SEED", 1);
    let before = resident_kib();
    let mut seed = first;
    while Instant::now() < end {
        let input = make(&mut Random::new(seed));
        // A paused clock: what waits for time does not cost any.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
        HAS_PANICKED.set(false);
        let played = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let ends = timeout(PLAY_LIMIT, play(&input)).await.is_ok();
                // What is handed over behind the end of a connection.
                tokio::time::sleep(PLAY_LIMIT).await;
                (ends, runtime.metrics().num_alive_tasks())
            })
        }));
        let why = match played {
            _ if HAS_PANICKED.get() => "it panics".to_owned(),
            Err(_) => "it panics".to_owned(),
            Ok((false, _)) => "it does not end".to_owned(),
            Ok((true, 0)) => String::new(),
            Ok((true, left)) => format!("it leaves {left} tasks behind"),
        };
        assert!(why.is_empty(), "{why} with LONGSHORE_FUZZ_SEED={seed}:\n{input:?}");
        let grown_kib = resident_kib().saturating_sub(before);
        assert!(
            grown_kib < GROWTH_KIB_MAX,
            "{grown_kib} KiB more with LONGSHORE_FUZZ_SEED={seed}:\n{input:?}"
        );
        seed += 1;
    }
    println!("{} inputs", seed - first);
    assert!(seed > first);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
