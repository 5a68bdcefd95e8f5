//! The checks of `fuzz` on every decoder with a fixed number of random inputs: a short form of `cargo fuzz`.

#[path = "../fuzz/src/lib.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a library for the targets of libFuzzer, which run a check by its name"
)]
mod fuzz;

use std::env;
use std::panic::catch_unwind;

use arbitrary::Unstructured;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Inputs for each check: some seconds of one processor for all of them.
const INPUTS: usize = 16_000;
/// The environment variable that sets the seed.
const SEED: &str = "MEMVISOR_FUZZ_SEED";
/// Bytes of the longest input. The longest valid messages are longer, so only parts of them are tried.
const LONGEST: usize = 2048;

#[test]
fn every_check_holds_for_random_inputs() {
    let seed = env::var(SEED).map_or_else(|_| rand::random(), |text| text.parse().expect(SEED));
    for (name, check) in fuzz::CHECKS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut enough = 0;
        for input in 0..INPUTS {
            let mut data = vec![0; random.random_range(1..=LONGEST)];
            random.fill_bytes(&mut data);
            let held = catch_unwind(|| check(&mut Unstructured::new(&data)).is_ok());
            let held = held.unwrap_or_else(|_| panic!("{name}: input {input} of {SEED}={seed}"));
            enough += usize::from(held);
        }
        assert!(
            enough > INPUTS / 2,
            "{name}: {enough} of {INPUTS} inputs were long enough"
        );
    }
}

#[test]
fn every_check_has_its_target() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let files = std::fs::read_dir(dir).expect("the targets");
    let mut targets: Vec<_> = files
        .map(|file| file.expect("a target").path().with_extension(""))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    let mut checks = fuzz::CHECKS.map(|(name, _)| name);
    targets.sort_unstable();
    checks.sort_unstable();
    assert_eq!(targets, checks);
}
