//! The encoder: moduli, rounding, refusals, rotation, noise.

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;

fn quantiser(bits: u32, rounding: Rounding) -> Quantiser {
    Quantiser {
        bits,
        clip: 2.0,
        clips: Vec::new(),
        l2_clip: None,
        max_weight: 100.0,
        rounding,
        metric_bounds: vec![(0.0, 10.0)],
        privacy: None,
        rotation: None,
    }
}

#[test]
fn the_modulus_is_the_smallest_that_holds_the_sum() {
    for (q, n, b) in
        [(1, 1, 1), (1, 2, 2), (16, 1, 16), (16, 20, 21), (16, 1 << 16, 32), (32, u32::MAX, 64), (8, 257, 16)]
    {
        assert_eq!(modulus_bits(q, n), Ok(b), "q = {q}, n = {n}");
        let largest = u128::from(n) * ((1u128 << q) - 1);
        assert!(largest < 1 << b && largest >= 1 << (b - 1));
    }
    assert!(modulus_bits(0, 1).is_err() && modulus_bits(33, 1).is_err() && modulus_bits(8, 0).is_err());
}

#[test]
fn what_is_not_finite_or_out_of_range_is_named() {
    let mut rng = ChaCha20Rng::seed_from_u64(0);
    let modulus = Modulus::new(20).unwrap();
    let q = quantiser(16, Rounding::Stochastic);
    let mut encode = |update: &[f32], metrics: &[f32], weight| {
        q.encode(Contribution { update, metrics, weight }, 2, modulus, &mut rng).map(|_| ())
    };
    assert!(matches!(
        encode(&[0.0, f32::NAN], &[1.0], 1.0),
        Err(EncodingError::NonFinite { what: "update", index: 1, .. })
    ));
    assert!(matches!(encode(&[0.0, 0.0], &[f32::INFINITY], 1.0), Err(EncodingError::NonFinite { index: 0, .. })));
    assert!(matches!(encode(&[0.0], &[1.0], 1.0), Err(EncodingError::Length { expected: 2, got: 1, .. })));
    assert!(matches!(encode(&[0.0; 2], &[], 1.0), Err(EncodingError::Length { expected: 1, got: 0, .. })));
    for weight in [0.0, -1.0, 100.5, f32::NAN] {
        assert!(matches!(encode(&[0.0; 2], &[1.0], weight), Err(EncodingError::Weight { .. })));
    }
    let precise = Quantiser { bits: 25, rotation: Some(Rotation::default()), ..q.clone() };
    assert!(matches!(precise.validate(), Err(EncodingError::Setting { setting: "bits", .. })));
    let mut bad = q.clone();
    bad.clip = f32::NAN;
    assert!(matches!(bad.validate(), Err(EncodingError::Setting { setting: "clip", .. })));
    assert!(q.decode(&RingVector::zeros(modulus, 4), 2, 1000).is_err(), "1000 clients overflow 20 bits");
    assert_eq!(q.decode(&RingVector::zeros(modulus, 4), 2, 3), Err(EncodingError::ZeroWeight { clients: 3 }));
    assert!(
        q.encode(
            Contribution { update: &[2.0], metrics: &[1.0], weight: 100.0 },
            1,
            Modulus::new(8).unwrap(),
            &mut rng
        )
        .is_err()
    );
}

#[test]
fn stochastic_rounding_is_unbiased() {
    let mut rng = ChaCha20Rng::seed_from_u64(4);
    let rounder = Rounder::new(Rounding::Stochastic, 10.0, &mut rng);
    // Mean 1.25 a coin; the sum's standard deviation is 61 (10 under Miri): six of them.
    let (count, spread) = if cfg!(miri) { (500, 58) } else { (20_000, 370) };
    let starts = (0..count).step_by(COINS);
    let coins = starts.flat_map(|start| rounder.coins(start, COINS.min(count - start)).unwrap().to_vec());
    let sum: u32 = coins.take(count).map(|coin| rounder.round(0.125, coin)).sum();
    let mean = count as u32 * 5 / 4;
    assert!((mean - spread..mean + spread).contains(&sum), "{sum}");
}

#[test]
fn the_ends_of_the_range_stay_in_range_whatever_the_coin() {
    for bits in [1u32, 16, 32] {
        let top = ((1u64 << bits) - 1) as u32;
        let rounder = Rounder { coins: None, scale: f64::from(top) };
        for coin in [0, 1 << 15, u16::MAX] {
            assert_eq!((rounder.round(0.0, coin), rounder.round(1.0, coin)), (0, top), "{bits} bits, coin {coin}");
        }
    }
}

#[test]
fn an_encoding_depends_on_the_generator_and_not_on_the_threads() {
    let len = if cfg!(miri) { 8200 } else { 40_000 };
    let update: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
    let encode = |seed| {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let contribution = Contribution { update: &update, metrics: &[1.0], weight: 50.0 };
        let modulus = Modulus::new(20).unwrap();
        quantiser(16, Rounding::Stochastic).encode(contribution, len, modulus, &mut rng).unwrap().to_u64()
    };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one.install(|| encode(1)), encode(1));
    assert_ne!(encode(1), encode(2));
}

#[test]
fn an_l2_bound_shrinks_the_whole_update() {
    let mut rng = ChaCha20Rng::seed_from_u64(0);
    let modulus = Modulus::new(32).unwrap();
    let q = Quantiser { l2_clip: Some(1.0), ..quantiser(24, Rounding::Deterministic) };
    let x =
        q.encode(Contribution { update: &[3.0, 4.0], metrics: &[5.0], weight: 50.0 }, 2, modulus, &mut rng).unwrap();
    let mean = q.decode(&x, 2, 1).unwrap().mean;
    assert!((mean[0] - 0.6).abs() < 1e-5 && (mean[1] - 0.8).abs() < 1e-5, "{mean:?}");
}

proptest! {
    #[test]
    fn the_decoded_mean_is_the_weighted_mean_within_the_reported_bound(
        clients in proptest::collection::vec((proptest::collection::vec(-2f32..2.0, 3), 0f32..10.0, 1f32..100.0), 1..12),
        seed: u64, bits in 8u32..=32, deterministic: bool, rotate: bool,
    ) {
        let rounding = if deterministic { Rounding::Deterministic } else { Rounding::Stochastic };
        let mut q = quantiser(bits, rounding);
        if rotate {
            // Three elements are turned two at a time, twice: none becomes more than twice as large.
            (q.bits, q.clip, q.rotation) = (bits.min(rotation::MAX_BITS), 4.0, Some(Rotation::default()));
        }
        let modulus = Modulus::new(modulus_bits(bits, clients.len() as u32).unwrap()).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut sum = RingVector::zeros(modulus, 5);
        for (update, metric, weight) in &clients {
            let x = q.encode(Contribution { update, metrics: &[*metric], weight: *weight }, 3, modulus, &mut rng).unwrap();
            sum.add_assign(&x).unwrap();
        }
        let total: f64 = clients.iter().map(|c| f64::from(c.2)).sum();
        let step = 1.0 / q.scale();
        prop_assume!(total / 100.0 > step * clients.len() as f64 * 4.0);
        let decoded = q.decode(&sum, 3, clients.len() as u32).unwrap();
        for i in 0..3 {
            let mean = clients.iter().map(|c| f64::from(c.0[i]) * f64::from(c.2)).sum::<f64>() / total;
            prop_assert!((f64::from(decoded.mean[i]) - mean).abs() <= decoded.error_bound + 1e-5);
        }
        let metric = clients.iter().map(|c| f64::from(c.1) * f64::from(c.2)).sum::<f64>() / total;
        let metric_bound = decoded.error_bound / 6.0 * 20.0;
        prop_assert!((f64::from(decoded.metrics[0]) - metric).abs() <= metric_bound + 1e-4);
        prop_assert!((decoded.total_weight - total).abs() <= clients.len() as f64 * step * 100.0 + 1e-3);
    }
}

#[test]
fn runs_of_elements_have_bounds_of_their_own() {
    // Runs that begin and end within the coins' blocks, one of a single element.
    let runs = [(COINS + 900, 0.1), (1, 100.0), (2 * COINS, 2.0), (7, 0.25)];
    let dimension = runs.iter().map(|(elements, _)| elements).sum::<usize>();
    let mut q = Quantiser { metric_bounds: Vec::new(), max_weight: 1.0, ..quantiser(16, Rounding::Deterministic) };
    q.set_clips(runs.map(|(elements, clip)| ClipRun { elements: elements as u64, clip }));
    q.validate().unwrap();
    let modulus = Modulus::new(q.modulus_bits(3).unwrap()).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let update: Vec<f32> = (0..dimension).map(|i| ((i * 37) % 101) as f32 / 25.0 - 2.0).collect();
    let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
    let encoded = q.encode(contribution, dimension, modulus, &mut rng).unwrap().to_u64();
    let sum: Vec<u64> = encoded.iter().map(|x| 3 * x).collect();
    let mean = q.decode(&RingVector::from_u64(modulus, &sum).unwrap(), dimension, 3).unwrap();
    let mut start = 0;
    for (elements, clip) in runs {
        // As an update of its own would be with this bound.
        let alone = Quantiser { clip, clips: Vec::new(), ..q.clone() };
        let part = &update[start..start + elements];
        let contribution = Contribution { update: part, metrics: &[], weight: 1.0 };
        let expected = alone.encode(contribution, elements, modulus, &mut rng).unwrap().to_u64();
        assert_eq!(encoded[start..start + elements], expected[..elements], "clip {clip}");
        let bound = mean.error_bound * f64::from(clip) / 100.0;
        for (got, x) in mean.mean[start..start + elements].iter().zip(part) {
            assert!((f64::from(got - x.clamp(-clip, clip))).abs() <= bound + 1e-7, "{got} for {x} at clip {clip}");
        }
        start += elements;
    }
}

#[test]
fn bounds_of_runs_are_those_of_the_update_and_go_with_no_rotation_or_noise() {
    let run = |elements, clip| ClipRun { elements, clip };
    let mut q = quantiser(16, Rounding::Deterministic);
    q.set_clips([run(3, 1.0), run(0, 5.0), run(2, 1.0), run(4, 0.5)]);
    assert_eq!((q.clips.clone(), q.validate()), (vec![run(5, 1.0), run(4, 0.5)], Ok(())));
    assert!(q.runs(9).is_ok() && matches!(q.runs(10), Err(EncodingError::Setting { setting: "clips", .. })));
    let refused = |clips: Vec<ClipRun>, rotation| {
        let bad = Quantiser { clips, rotation, ..q.clone() };
        matches!(bad.validate(), Err(EncodingError::Setting { setting: "clips", .. }))
    };
    assert!(
        refused(vec![run(0, 1.0)], None) && refused(vec![run(1, f32::NAN)], None) && refused(vec![run(1, 0.0)], None)
    );
    assert!(refused(vec![run(1, 1.0), run(1, 1.0)], None), "not merged");
    assert!(refused((0..5000).map(|i| run(1, 1.0 + (i % 2) as f32)).collect(), None), "too many");
    assert!(refused(q.clips.clone(), Some(Rotation::default())));
    let endless = Quantiser { clips: vec![run(u64::MAX, 1.0), run(u64::MAX, 2.0)], ..q.clone() };
    assert!(endless.runs(9).is_err());
    // One bound for all is still of so many elements.
    q.set_clips([run(3, 4.0), run(2, 4.0)]);
    assert!(q.runs(5).is_ok() && q.runs(6).is_err());
}
