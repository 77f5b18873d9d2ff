//! A coordinator's unmasking of a sum at k = 98: one self mask for each survivor, and the masks between each client that
//! dropped out and its surviving neighbours. Throughput in bytes of mask. `cargo bench --bench unmask`.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use unisono_crypto::prg::{Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for (n, d) in [(100u32, 100_000usize), (100, 1_000_000), (1000, 100_000), (1000, 1_000_000)] {
        for percent in [0, 10, 30] {
            let dropped = n * percent / 100;
            let survivors = n - dropped;
            // Neighbours survive with the same share.
            let masks = survivors + dropped * 98.min(n - 1) * (100 - percent) / 100;
            let seed = |i: u32| {
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&i.to_le_bytes());
                (
                    Seed::from_secret(&Secret32::from_bytes(bytes)),
                    if i.is_multiple_of(2) { Sign::Add } else { Sign::Subtract },
                )
            };
            let masks: Vec<(Seed, Sign)> = (0..masks).map(seed).collect();
            let mut sum = RingVector::zeros(Modulus::new(26).expect("an allowed width"), d);
            group.throughput(Throughput::Bytes(4 * d as u64 * masks.len() as u64));
            group.bench_function(BenchmarkId::new(format!("n{n}_drop{percent}"), d), |bench| {
                bench.iter(|| sum.apply_masks(black_box(&masks)));
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = unmask }
criterion_main!(benches);
