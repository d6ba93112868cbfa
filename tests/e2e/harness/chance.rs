//! Chance that can be repeated.

/// Numbers that look like chance.
pub(crate) struct Chance(u64);

impl Chance {
    /// One of its own for the `number`th of `whose`.
    pub(crate) fn of(seed: u64, whose: u64, number: u64) -> Chance {
        Chance(mixed(mixed(mixed(seed) ^ whose) ^ number))
    }

    /// A number below `end`; Knuth's generator, whose high bits are the good ones.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// Whether it is one in `number`.
    pub(crate) fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    /// One of these, the more often the heavier.
    pub(crate) fn pick<T: Copy>(&mut self, weighted: &[(T, u64)]) -> T {
        let mut at = self.below(weighted.iter().map(|(_, weight)| weight).sum());
        for (value, weight) in weighted {
            if at < *weight {
                return *value;
            }
            at -= weight;
        }
        unreachable!("below the sum of all")
    }
}

/// Spreads neighbours far apart; the numbers are those of SplitMix64.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
