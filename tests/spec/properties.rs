//! Properties of the translation, for requests that proptest chooses.

use proptest::prelude::*;

use crate::invariants::check;
use crate::random::Random;
use crate::translation::Case;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// CTR, OCI, SBX: whatever is asked for, a spec keeps its promises, or there is none.
    #[test]
    fn every_spec_keeps_its_promises(seed in any::<u64>()) {
        check(&Case::generate(&mut Random::new(seed)));
    }
}

/// The generator makes requests that come through, not only such that are refused.
#[test]
fn most_generated_requests_are_translated() {
    let specs = (0..400).map(|seed| Case::generate(&mut Random::new(seed)).translate());
    let (mut pauses, mut containers) = (0, 0);
    for specs in specs {
        pauses += usize::from(specs.pause.is_ok());
        containers += usize::from(specs.container.is_ok());
    }
    assert!(pauses > 200 && containers > 100, "{pauses} pauses and {containers} containers of 400");
}
