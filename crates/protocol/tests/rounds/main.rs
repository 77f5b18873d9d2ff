//! Whole rounds in memory, under a seeded scheduler: the result is the exact sum of the survivors or a typed error, never
//! anything else.

mod budget;
mod leaving;
mod liars;
mod lying;
mod network;
mod privacy;
mod refusals;
mod resume;
mod rotation;
mod traffic;
mod world;

use network::{Faults, play};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use unisono_protocol::server::Phase;
use world::params;

/// What many rounds came to.
#[derive(Debug, Default)]
struct Tally {
    sums: usize,
    aborts: usize,
    within_tolerance: usize,
}

fn play_many(seeds: std::ops::Range<u64>, malicious: bool, faults: impl Fn(&mut ChaCha8Rng) -> Faults) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9));
        let count = rng.random_range(4..=9usize);
        let faults = faults(&mut rng);
        let delta = [0.0, 0.25, 0.3][rng.random_range(0..3)];
        let dimension = rng.random_range(1..40);
        let params = params(malicious, 3, count as u32, 0.0, delta, dimension);
        let played = play(&params, count, faults, seed);
        match played.result {
            Ok(outcome) => {
                assert!(played.exact, "seed {seed}: a wrong sum over {:?}", outcome.survivors);
                assert!(outcome.survivors.len() >= 3, "seed {seed}: a sum over too few");
                tally.sums += 1;
            }
            Err(abort) => {
                assert!(!played.tolerable, "seed {seed}: {abort}, although {faults:?} is to be withstood");
                tally.aborts += 1;
            }
        }
        tally.within_tolerance += usize::from(played.tolerable);
    }
    tally
}

fn lossy(rng: &mut ChaCha8Rng) -> Faults {
    let patience = if rng.random_bool(0.7) { 60 } else { rng.random_range(1..6) };
    Faults {
        vanish: [0.0, 0.05, 0.3][rng.random_range(0..3)],
        loss: rng.random_range(0.0..0.4),
        duplicate: rng.random_range(0.0..0.5),
        late: rng.random_range(0.0..0.4),
        corrupt: 0.0,
        patience,
    }
}

#[test]
fn a_semi_honest_round_gives_the_exact_sum_or_a_typed_error() {
    let tally = play_many(0..2400, false, lossy);
    assert!(tally.sums > 1000 && tally.aborts > 100 && tally.within_tolerance > 500, "{tally:?}");
}

#[test]
fn a_malicious_round_gives_the_exact_sum_or_a_typed_error() {
    let tally = play_many(0..500, true, lossy);
    assert!(tally.sums > 200 && tally.aborts > 40 && tally.within_tolerance > 60, "{tally:?}");
}

#[test]
fn corrupted_messages_never_give_a_wrong_sum() {
    let tally = play_many(0..300, true, |rng| Faults { corrupt: 0.05, ..lossy(rng) });
    assert!(tally.sums > 30 && tally.aborts > 30, "{tally:?}");
}

/// Five devices, so that Miri can run it too; number 2 vanishes when it has shared its keys.
fn vanish_after_sharing(malicious: bool) {
    let params = params(malicious, 3, 5, 0.0, 0.25, 10);
    let round = lying::play(&params, 5, |i, phase, message| (i != 2 || phase < Phase::Mask).then_some(message));
    let outcome = round.result.unwrap();
    assert!(round.exact && round.refusals.is_empty(), "{:?}", round.refusals);
    assert_eq!(outcome.survivors, [0, 1, 3, 4].map(|i| round.devices[i].id()));
}

#[test]
fn a_small_semi_honest_round_withstands_a_drop_out() {
    vanish_after_sharing(false);
}

#[test]
fn a_small_malicious_round_withstands_a_drop_out() {
    vanish_after_sharing(true);
}

#[test]
fn a_sparse_graph_gives_the_exact_sum_in_both_modes() {
    // 40 clients, gamma 0.05, delta 0.1: k = 14 in malicious mode.
    for (malicious, seeds) in [(true, 0..6), (false, 0..12)] {
        let params = params(malicious, 30, 40, 0.05, 0.1, 100);
        let mut sums = 0;
        for seed in seeds.clone() {
            let faults = Faults { vanish: 0.04, loss: 0.1, duplicate: 0.2, late: 0.2, corrupt: 0.0, patience: 40 };
            let played = play(&params, 40, faults, seed);
            assert_eq!(played.exact, played.result.is_ok());
            sums += u64::from(played.exact);
        }
        assert!(sums * 2 > seeds.end, "malicious {malicious}: {sums} sums of {}", seeds.end);
    }
}
