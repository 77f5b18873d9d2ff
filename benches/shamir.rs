//! Secrets of a round rebuilt: k = 98, t = 67 as for a thousand clients. `cargo bench --bench shamir`.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::shamir::{self, Interpolator, SecretScalar};

fn shamir(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shamir");
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let abscissas: Vec<u32> = (0..98).map(|i| 10 * i + 1).collect();
    let secret = SecretScalar::random(&mut rng);
    let shares = shamir::split(&secret, 67, &abscissas, &mut rng).expect("a valid threshold");
    group.bench_function("split", |bench| bench.iter(|| shamir::split(black_box(&secret), 67, &abscissas, &mut rng)));
    group.bench_function("coefficients", |bench| bench.iter(|| Interpolator::new(black_box(&abscissas[..67]))));
    let interpolator = Interpolator::new(&abscissas[..67]).expect("valid abscissas");
    group.bench_function("rebuild", |bench| bench.iter(|| interpolator.reconstruct(black_box(&shares[..67]))));
    // Every client has neighbours of its own, so its own coefficients; both of its secrets share them.
    group.bench_function("both_secrets_of_1000_clients", |bench| {
        bench.iter(|| {
            for _ in 0..1000 {
                let interpolator = Interpolator::new(black_box(&abscissas[..67])).expect("valid abscissas");
                black_box(interpolator.reconstruct(&shares[..67])).expect("matching shares");
                black_box(interpolator.reconstruct(&shares[..67])).expect("matching shares");
            }
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = shamir }
criterion_main!(benches);
