//! Packing and unpacking of 2^20 elements; throughput in unpacked bytes. `cargo bench --bench packing`.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use unisono_crypto::ring::{Modulus, RingVector};

fn packing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packing");
    const LEN: usize = 1 << 20;
    for bits in [12u32, 16, 24, 26, 32, 40] {
        let modulus = Modulus::new(bits).expect("an allowed width");
        let width = if bits <= 16 {
            2
        } else if bits <= 32 {
            4
        } else {
            8
        };
        group.throughput(Throughput::Bytes(width * LEN as u64));
        let mut vector = RingVector::zeros(modulus, LEN);
        let packed = vector.pack();
        group.bench_function(BenchmarkId::new("pack", bits), |bench| bench.iter(|| black_box(&vector).pack()));
        group.bench_function(BenchmarkId::new("add_packed", bits), |bench| {
            bench.iter(|| vector.add_packed(black_box(&packed)));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = packing }
criterion_main!(benches);
