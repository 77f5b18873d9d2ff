//! A client's vector, from `f32` to packed bytes, and the masks alone; throughput in bytes of `f32` input.
//! `RAYON_NUM_THREADS=1 cargo bench --bench client_path` for one thread.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::prg::{Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_protocol::encoding::{Contribution, Quantiser, Rounding};

/// The self mask and those of `k` neighbours.
fn masks(k: u8) -> Vec<(Seed, Sign)> {
    let sign = |i| if i % 2 == 0 { Sign::Add } else { Sign::Subtract };
    (0..=k).map(|i| (Seed::from_secret(&Secret32::from_bytes([i; 32])), sign(i))).collect()
}

/// Packs as an upload does, one chunk after the other: no second vector is held.
fn pack(vector: &RingVector) {
    const CHUNK: usize = 1 << 17;
    for start in (0..vector.len()).step_by(CHUNK) {
        black_box(vector.pack_range(start, CHUNK.min(vector.len() - start)).expect("a range within"));
    }
}

fn client_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client_path");
    let modulus = Modulus::new(26).expect("an allowed width");
    let quantiser = Quantiser {
        bits: 16,
        clip: 1.0,
        clips: Vec::new(),
        l2_clip: None,
        max_weight: 1.0,
        rounding: Rounding::Stochastic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for d in [100_000usize, 1_000_000, 10_000_000] {
        group.throughput(Throughput::Bytes(4 * d as u64));
        let update: Vec<f32> = (0..d).map(|i| (i as f32).sin()).collect();
        let mut encode = || {
            let contribution = Contribution { update: black_box(&update), metrics: &[], weight: 1.0 };
            quantiser.encode(contribution, d, modulus, &mut rng).expect("finite input")
        };
        group.bench_function(BenchmarkId::new("no_masks", d), |bench| bench.iter(|| pack(&encode())));
        for k in [22, 78, 100] {
            let masks = masks(k);
            let mut vector = RingVector::zeros(modulus, d);
            group.bench_function(BenchmarkId::new(format!("masks_alone_k{k}"), d), |bench| {
                bench.iter(|| vector.apply_masks(black_box(&masks)));
            });
            group.bench_function(BenchmarkId::new(format!("whole_k{k}"), d), |bench| {
                bench.iter(|| {
                    let mut vector = encode();
                    vector.apply_masks(&masks).expect("a short vector");
                    pack(&vector);
                });
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = client_path }
criterion_main!(benches);
