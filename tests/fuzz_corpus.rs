//! The fuzz targets of `fuzz/`, without a fuzzer: every committed seed, and some thousands of changes to them that depend on
//! nothing but a number. A crash that the fuzzer finds becomes a seed here.
//!
//! `UNISONO_WRITE_SEEDS=1 cargo test --test fuzz_corpus` writes `fuzz/seeds` anew; `UNISONO_FUZZ_TIMES=100` makes a hundred
//! times the changes.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

/// Committed inputs by target, then name.
fn committed() -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let mut seeds: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for (target, _) in targets::TARGETS {
        for entry in fs::read_dir(folder().join(target)).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            seeds.entry(target.to_owned()).or_default().insert(name, fs::read(entry.path()).unwrap());
        }
    }
    seeds
}

#[test]
fn the_committed_seeds_are_those_that_real_rounds_make() {
    let made = targets::seeds::all();
    if std::env::var_os("UNISONO_WRITE_SEEDS").is_some() {
        for (target, name, bytes) in &made {
            fs::create_dir_all(folder().join(target)).unwrap();
            fs::write(folder().join(target).join(name), bytes).unwrap();
        }
    }
    let committed = committed();
    for (target, name, bytes) in made {
        assert!(committed[target].get(&name) == Some(&bytes), "{target}/{name} is missing or has changed");
    }
    // Changes keep the first byte mostly, so that a decoder without a seed would hardly run.
    for (target, count) in [("decoders", targets::decoders::DECODERS.len()), ("files", targets::files::READERS.len())] {
        for which in 0..count {
            let chosen = |seed: &Vec<u8>| seed.first().is_some_and(|&byte| usize::from(byte) == which);
            assert!(committed[target].values().any(chosen), "no seed for number {which} of {target}");
        }
    }
}

#[test]
fn seeds_end_as_their_names_say() {
    let committed = committed();
    for &(which, outcome, _) in targets::seeds::OUTCOMES {
        let begin = format!("{which:02}-");
        let ends: BTreeSet<String> = committed["files"]
            .iter()
            .filter(|(name, _)| name.starts_with(&begin))
            .map(|(name, bytes)| {
                let end = outcome(&bytes[1..]);
                assert_eq!(name.rsplit('-').next(), Some(end.as_str()), "{name}");
                end
            })
            .collect();
        let all = ENDS.iter().find(|(reader, _)| *reader == which).expect("a reader has ends").1;
        assert_eq!(ends, all.split(' ').map(str::to_owned).collect(), "reader {which}");
    }
}

#[test]
fn calls_end_as_the_names_of_their_seeds_say() {
    let mut ends = BTreeSet::new();
    for (name, bytes) in &committed()["handlers"] {
        let end = targets::handlers::outcome(bytes);
        assert_eq!(name.rsplit('-').next(), Some(end.as_str()), "{name}");
        ends.insert(end);
    }
    let all = "Ok waits Internal Unimplemented conflict incomplete malformed no_such_model no_such_release no_such_task release_key \
               signature too_large unknown_client wrong_phase";
    assert_eq!(ends, all.split(' ').map(str::to_owned).collect());
}

/// Every way in which an input of these readers can end and seeds do.
const ENDS: &[(u8, &str)] = &[
    (
        10,
        "Opened WrongModel WrongVersion WrongKind OlderVersion AnotherOfThisVersion BrokenChain PayloadTooLarge OlderRoster \
         Expired FromTheFuture WrongContentKey OtherPublisher BodyChanged Chunk Signature HeaderOfAnotherRelease Truncated \
         TrailingBytes UnsupportedSuite HeaderMalformed",
    ),
    (
        11,
        "Opened OlderRoster GrantOfAnotherRelease GrantOfAnotherDevice GrantOfAnotherKey GrantSignature GrantMalformed \
         UnsupportedSuite GrantNotOpened",
    ),
    (12, "Accepted Refused"),
    (13, "Accepted Expired NotInRoster Signed"),
    (14, "Accepted StaleRoster Policy OtherRoster"),
    (18, "Finished Aborted Diverged Damaged"),
];

#[test]
fn no_target_panics_on_a_seed_or_on_a_change_to_one() {
    let committed = committed();
    let times = std::env::var("UNISONO_FUZZ_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let mut executions = 0;
    for (target, run) in targets::TARGETS {
        let seeds: Vec<&Vec<u8>> = committed[target].values().collect();
        seeds.iter().for_each(|seed| run(seed));
        // Rounds cost milliseconds, decoders microseconds.
        let changes = match target {
            "decoders" => 3000,
            "files" => 5000,
            "handlers" => 600,
            _ => 150,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0xF0_22);
        for i in 0..changes * times {
            let mut bytes = seeds[i % seeds.len()].clone();
            for _ in 0..rng.random_range(1..4) {
                change(&mut bytes, seeds[rng.random_range(0..seeds.len())], &mut rng);
            }
            run(&bytes);
        }
        executions += seeds.len() + changes * times;
    }
    assert!(executions > 8000, "{executions}");
}

/// What fuzzers do: a flipped bit, a byte of interest, a piece cut out, doubled, or taken from another seed.
fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    // The first byte chooses the decoder: it mostly stays.
    let start = usize::from(rng.random_bool(0.9)).min(bytes.len());
    let at = rng.random_range(start..=bytes.len());
    let end = rng.random_range(at..=bytes.len().min(at + 16));
    match rng.random_range(0..6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        2 => drop(bytes.drain(at..end)),
        3 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len().min(from + 64));
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}
