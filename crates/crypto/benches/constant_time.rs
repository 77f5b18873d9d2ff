//! Does the time of an operation tell something about its secret? After dudect (Reparaz, Balasch and Verbauwhede, DATE 2017):
//! two classes of inputs, interleaved at random, and Welch's t-test over their times, with the slowest samples cut at several
//! percentiles. `cargo bench -p unisono-crypto --bench constant_time`.
//!
//! |t| below 4.5 is no evidence of a leak; above 10 there is one. A comparison that stops at the first difference is run as
//! well, and must be found out: otherwise the machine was too noisy for the rest to mean anything.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, Interpolator, SecretScalar, Share};

const NO_EVIDENCE: f64 = 4.5;
const LEAK: f64 = 10.0;
/// Different inputs of each class.
const POOL: usize = 256;

/// Mean and variance by Welford's method.
#[derive(Default, Clone)]
struct Moments {
    n: f64,
    mean: f64,
    m2: f64,
}

impl Moments {
    fn push(&mut self, x: f64) {
        self.n += 1.0;
        let delta = x - self.mean;
        self.mean += delta / self.n;
        self.m2 += delta * (x - self.mean);
    }

    fn error(&self) -> f64 {
        self.m2 / (self.n - 1.0) / self.n
    }
}

/// The largest |t| over the cuts.
fn welch(times: &[(bool, f64)]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|(_, time)| *time).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let cuts = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
    let t_of = |&cut: &f64| {
        let limit = sorted[((sorted.len() - 1) as f64 * cut) as usize];
        let (mut a, mut b) = (Moments::default(), Moments::default());
        for &(class, time) in times.iter().filter(|(_, time)| *time <= limit) {
            if class { b.push(time) } else { a.push(time) }
        }
        let error = (a.error() + b.error()).sqrt();
        if a.n < 100.0 || b.n < 100.0 || error == 0.0 { 0.0 } else { ((a.mean - b.mean) / error).abs() }
    };
    cuts.iter().map(t_of).fold(0.0, f64::max)
}

/// Times `work` on inputs of both classes, `batch` calls a sample, and gives |t|.
fn compare<I: Clone>(
    name: &str,
    (samples, batch): (usize, usize),
    mut input: impl FnMut(bool, &mut ChaCha20Rng) -> I,
    mut work: impl FnMut(&I),
) -> f64 {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut pool = |class| -> Vec<I> { (0..POOL).map(|_| input(class, &mut rng)).collect() };
    let pools = [pool(false), pool(true)];
    let mut order = ChaCha20Rng::seed_from_u64(2);
    let mut times = Vec::with_capacity(samples);
    for i in 0..samples + samples / 10 {
        let class = order.next_u32() & 1 == 1;
        // A fresh copy, so that no class has its inputs in other places than the other.
        let input = pools[usize::from(class)][order.next_u32() as usize % POOL].clone();
        let start = Instant::now();
        (0..batch).for_each(|_| work(black_box(&input)));
        let time = start.elapsed().as_nanos() as f64;
        // The first tenth warms up.
        if i >= samples / 10 {
            times.push((class, time));
        }
    }
    let t = welch(&times);
    let mean = times.iter().map(|(_, time)| time).sum::<f64>() / times.len() as f64 / batch as f64;
    println!("{name:<58} |t| = {t:>8.2}   {mean:>10.0} ns each, {samples} samples");
    t
}

fn random_bytes<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Stops at the first difference, as `memcmp` may.
fn naive(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(x, y)| black_box(x) == black_box(y))
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, and has no use for it.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let known = Secret32::from_bytes([0x5a; 32]);
    let fixed_or = |class: bool, fixed: [u8; 32], rng: &mut ChaCha20Rng| if class { random_bytes(rng) } else { fixed };

    let control = compare(
        "control: a comparison that stops at the first difference",
        (100_000, 16),
        |class, rng| fixed_or(class, [0x5a; 32], rng),
        |input| {
            black_box(naive(input, known.expose()));
        },
    );
    let mut results = Vec::new();
    results.push(compare(
        "Secret32::ct_eq, equal against random",
        (200_000, 16),
        |class, rng| Secret32::from_bytes(fixed_or(class, [0x5a; 32], rng)),
        |input| {
            black_box(input.ct_eq(&known));
        },
    ));

    let abscissas: Vec<u32> = (1..=14).collect();
    let interpolator = Interpolator::new(&abscissas).expect("good abscissas");
    let zeros = |at: u32| Share::from_bytes(at, &[0; 32]).expect("zero is canonical");
    results.push(compare(
        "Interpolator::reconstruct of 14 shares, zero against random",
        (50_000, 1),
        |class, rng| {
            if class {
                shamir::split(&SecretScalar::random(rng), 14, &abscissas, rng).expect("a good threshold")
            } else {
                abscissas.iter().map(|&at| zeros(at)).collect::<Vec<_>>()
            }
        },
        |input| drop(black_box(interpolator.reconstruct(input))),
    ));
    results.push(compare(
        "shamir::split into 14, secret of one against random",
        (20_000, 1),
        |class, rng| {
            let mut one = [0; 32];
            one[0] = 1;
            if class { SecretScalar::random(rng) } else { SecretScalar::from_canonical(&one).expect("canonical") }
        },
        |input| {
            let mut rng = ChaCha20Rng::seed_from_u64(4);
            drop(black_box(shamir::split(input, 7, &abscissas, &mut rng)));
        },
    ));

    let device = DecapsulationKey::from_seed(&Secret32::from_bytes([9; 32]));
    let public = device.encapsulation_key();
    results.push(compare(
        "decapsulate, valid against one bit of ML-KEM's part changed",
        (50_000, 1),
        |class, rng| {
            let (mut ct, _) = public.encapsulate(rng);
            if class {
                let at = rng.next_u32() as usize % 1088;
                ct[at] ^= 1 << (rng.next_u32() % 8);
            }
            ct
        },
        |input| drop(black_box(device.decapsulate(input))),
    ));
    let largest = results.into_iter().fold(0.0, f64::max);
    if control < LEAK {
        println!("the control was not found out: this machine is too noisy now, the figures mean nothing");
        return ExitCode::FAILURE;
    }
    match largest {
        t if t < NO_EVIDENCE => println!("no evidence of a leak"),
        t if t < LEAK => println!("between {NO_EVIDENCE} and {LEAK}: run it again on a quiet machine"),
        _ => {
            println!("an operation's time depends on its secret");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
