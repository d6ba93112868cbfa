//! Random choices that a seed decides.

/// A stream of numbers (SplitMix64): the same for the same seed, on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count.max(1)).expect("a count");
        usize::try_from(self.number() % count).expect("below a count")
    }

    /// True so often of a hundred times.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `list`.
    pub(crate) fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// One of `list`, as text.
    pub(crate) fn word(&mut self, list: &[&str]) -> String {
        self.pick(list).to_owned()
    }

    /// `value` so often of a hundred times, else nothing.
    pub(crate) fn maybe<T>(&mut self, percent: usize, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
        self.chance(percent).then(|| value(self))
    }

    /// Up to `most` of what `make` makes; none of it in two of three cases.
    pub(crate) fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Random) -> T) -> Vec<T> {
        let count = if self.chance(66) { 0 } else { 1 + self.below(most) };
        (0..count).map(|_| make(self)).collect()
    }

    /// Text of all sorts: empty, long, of other alphabets, with marks that mean something
    /// to somebody.
    pub(crate) fn text(&mut self) -> String {
        const TEXTS: [&str; 14] = [
            "",
            "a",
            "value",
            "two words",
            "ünïcode ✓",
            "日本",
            "new\nline",
            "quote\"'`",
            "$HOME ${HOME} %s",
            "a=b=c",
            "<&>",
            "\\back\\slash",
            "tab\there",
            "-",
        ];
        if self.chance(3) { "long".repeat(1 + self.below(400)) } else { self.word(&TEXTS) }
    }
}
