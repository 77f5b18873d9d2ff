//! The hot loop alone: one stream of 32-bit mask words added to a vector, by every backend, beside what it is measured
//! against. `cargo bench --bench masking`; throughput is in bytes of mask.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::prg::{self, Backend, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;

fn masking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("masking");
    let seed = Seed::from_secret(&Secret32::from_bytes([7; 32]));
    for elements in [1usize << 14, 1 << 17, 1 << 20, 1 << 24] {
        group.throughput(Throughput::Bytes(4 * elements as u64));
        let (mut acc, words) = (vec![1u32; elements], vec![3u32; elements]);
        group.bench_function(BenchmarkId::new("memory_add", elements), |bench| {
            bench.iter(|| {
                acc.iter_mut().zip(black_box(&words)).for_each(|(x, y)| *x = x.wrapping_add(*y));
                black_box(&mut acc);
            });
        });
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        group.bench_function(BenchmarkId::new("rand_chacha", elements), |bench| {
            // Through a buffer that stays in the first-level cache.
            let mut buffer = [0u8; 8192];
            bench.iter(|| {
                for chunk in acc.chunks_mut(2048) {
                    rng.fill_bytes(&mut buffer);
                    let words = buffer.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
                    chunk.iter_mut().zip(words).for_each(|(x, y)| *x = x.wrapping_add(y));
                }
                black_box(&mut acc);
            });
        });
        for backend in Backend::ALL.into_iter().filter(|backend| backend.available()) {
            group.bench_function(BenchmarkId::new(backend.name(), elements), |bench| {
                bench.iter(|| backend.apply(&seed, 0, Sign::Add, black_box(&mut acc)));
            });
        }
        group.bench_function(BenchmarkId::new("dispatch", elements), |bench| {
            bench.iter(|| prg::apply(&seed, 0, Sign::Add, black_box(&mut acc)));
        });
        // Ten seeds on all threads of the pool (RAYON_NUM_THREADS sets their number).
        let masks: Vec<(Seed, Sign)> = (0..10)
            .map(|i| {
                (Seed::from_secret(&Secret32::from_bytes([i; 32])), if i % 2 == 0 { Sign::Add } else { Sign::Subtract })
            })
            .collect();
        let mut vector = RingVector::zeros(Modulus::new(32).expect("32 is allowed"), elements);
        group.throughput(Throughput::Bytes(40 * elements as u64));
        for threads in [1, 0] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let name = if threads == 1 { "ten_seeds_one_thread" } else { "ten_seeds_all_threads" };
            group.bench_function(BenchmarkId::new(name, elements), |bench| {
                bench.iter(|| pool.install(|| vector.apply_masks(black_box(&masks))));
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = masking }
criterion_main!(benches);
