//! Keys, ciphertexts and signatures: what phases 0 to 2 cost beside the masks. `cargo bench --bench key_agreement`.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use unisono_crypto::kdf::label;
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};

fn key_agreement(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key_agreement");
    let seed = Secret32::from_bytes([3; 32]);
    let key = DecapsulationKey::from_seed(&seed);
    let public = key.encapsulation_key();
    let (ct, _) = public.encapsulate_with_coins(&[5; 64]);
    group.bench_function("key_pair", |bench| bench.iter(|| DecapsulationKey::from_seed(black_box(&seed))));
    group.bench_function("read_key", |bench| bench.iter(|| EncapsulationKey::from_bytes(black_box(public.as_bytes()))));
    group.bench_function("encapsulate", |bench| bench.iter(|| public.encapsulate_with_coins(black_box(&[5; 64]))));
    group.bench_function("decapsulate", |bench| bench.iter(|| key.decapsulate(black_box(&ct))));
    let signing = SigningKey::from_seed(Level::L44, &seed);
    let signature = signing.sign(label::SIG_ADVERT, &[1; 2600]);
    let verifying = signing.verifying_key();
    group.bench_function("sign", |bench| bench.iter(|| signing.sign(label::SIG_ADVERT, black_box(&[1; 2600]))));
    group.bench_function("verify", |bench| {
        bench.iter(|| verifying.verify(label::SIG_ADVERT, black_box(&[1; 2600]), &signature));
    });
    group.finish();
}

criterion_group! { name = benches; config = support::settings(); targets = key_agreement }
criterion_main!(benches);
