//! Noise for privacy: encoding of 2^16 elements with and without it, beside Poisson variables in floating-point.
//! `RAYON_NUM_THREADS=1 cargo bench -p unisono-protocol --bench noise`; throughput is in elements.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Poisson};
use unisono_crypto::ring::Modulus;
use unisono_protocol::encoding::{Contribution, Quantiser, Rounding};
use unisono_protocol::privacy::Privacy;

const LEN: usize = 1 << 16;

fn noise(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("noise");
    let modulus = Modulus::new(50).expect("an allowed width");
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut encode = |update: &[f32], noise_variance: Option<f64>| {
        let quantiser = Quantiser {
            bits: 12,
            clip: 1.0,
            clips: Vec::new(),
            l2_clip: Some(1.0),
            max_weight: 1.0,
            rounding: Rounding::Stochastic,
            metric_bounds: Vec::new(),
            privacy: noise_variance.map(|noise_variance| Privacy { noise_variance }),
            rotation: None,
        };
        let contribution = Contribution { update: black_box(update), metrics: &[], weight: 1.0 };
        quantiser.encode(contribution, update.len(), modulus, &mut rng).expect("finite input")
    };
    let update = vec![0.001; LEN];
    group.throughput(Throughput::Elements(LEN as u64));
    group.bench_function("without", |bench| bench.iter(|| encode(&update, None)));
    let variances = [0.3, 1.0, 10.0, 100.0, 1e3, 2047.0, 2048.0, 1e4, 1e6, 2f64.powi(40), 2f64.powi(48)];
    for variance in variances {
        group.bench_function(BenchmarkId::new("exact", variance), |bench| {
            bench.iter(|| encode(&update, Some(variance)))
        });
    }
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    for variance in variances {
        let half = Poisson::new(variance / 2.0).expect("a good mean");
        group.bench_function(BenchmarkId::new("floating_point", variance), |bench| {
            bench.iter(|| (0..LEN).map(|_| (half.sample(&mut rng) - half.sample(&mut rng)) as i64).sum::<i64>());
        });
    }
    // What is computed once for a vector.
    group.throughput(Throughput::Elements(1));
    for variance in variances {
        group.bench_function(BenchmarkId::new("one_element", variance), |bench| {
            bench.iter(|| encode(&update[..1], Some(variance)));
        });
    }
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
}

criterion_group! { name = benches; config = settings(); targets = noise }
criterion_main!(benches);
