//! Rounds with rotation: bound to the round, and what they are for: spiky updates under a small clip, with and without noise.

use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_protocol::encoding::{Aggregate, Contribution, Quantiser, Rounding};
use unisono_protocol::params::{RoundParams, quantiser_to_wire};
use unisono_protocol::privacy::Privacy;
use unisono_protocol::proto;
use unisono_protocol::rotation::Rotation;

use crate::network::{Faults, play_with};
use crate::world::params;

fn rotated(dimension: u64) -> proto::RoundParams {
    let mut wire = params(true, 6, 8, 0.0, 0.25, dimension);
    wire.quantiser.as_mut().unwrap().rotate = true;
    wire
}

fn check(wire: &proto::RoundParams) -> RoundParams {
    RoundParams::from_payload(&wire.encode_to_vec()).unwrap()
}

/// One large element and many small ones, of norm below 1.
fn spiky(device: usize, dimension: usize) -> Vec<f32> {
    let small = 0.1 / (dimension as f32).sqrt();
    let spike = device * 17 % dimension;
    (0..dimension).map(|i| if i == spike { 0.9 } else { small * ((i + device) % 3) as f32 / 2.0 }).collect()
}

fn mean(devices: &[usize], dimension: usize) -> Vec<f64> {
    let updates: Vec<Vec<f32>> = devices.iter().map(|&device| spiky(device, dimension)).collect();
    let sum = |i: usize| updates.iter().map(|update| f64::from(update[i])).sum::<f64>();
    (0..dimension).map(|i| sum(i) / devices.len() as f64).collect()
}

/// Root of the mean squared error, and the largest.
fn errors(decoded: &Aggregate, mean: &[f64]) -> (f64, f64) {
    let errors = decoded.mean.iter().zip(mean).map(|(&x, mean)| (f64::from(x) - mean).abs());
    let (squares, largest) = errors.fold((0.0f64, 0.0f64), |(sum, largest), e| (sum + e * e, largest.max(e)));
    ((squares / mean.len() as f64).sqrt(), largest)
}

#[test]
fn a_rounds_rotation_is_its_own_and_leaves_the_vector_as_long_as_it_was() {
    let (one, plain) = (check(&rotated(20)), check(&params(true, 6, 8, 0.0, 0.25, 20)));
    assert_eq!(one.quantiser.rotation, Some(Rotation::of_round(one.round_id)));
    assert_eq!(plain.quantiser.rotation, None);
    assert_ne!(one.round_id, plain.round_id);
    assert_eq!((one.vector_len(), one.packed_len()), (plain.vector_len(), plain.packed_len()));
    let next = check(&proto::RoundParams { round: 2, ..rotated(20) });
    assert_ne!(next.quantiser.rotation, one.quantiser.rotation);
    assert!(quantiser_to_wire(&one.quantiser).rotate && !quantiser_to_wire(&plain.quantiser).rotate);
}

#[test]
fn a_whole_round_with_drop_outs_gives_the_mean_within_the_bound() {
    for dimension in [1usize, 7, 500, 5000] {
        let checked = check(&rotated(dimension as u64));
        let input = |device: usize| {
            let update = spiky(device, dimension);
            let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
            let mut rng = ChaCha20Rng::seed_from_u64(device as u64);
            checked.quantiser.encode(contribution, dimension, checked.modulus, &mut rng).unwrap()
        };
        let mut sums = 0;
        for seed in 0..3 {
            let faults = Faults { vanish: 0.1, patience: 60, ..Faults::default() };
            let played = play_with(&rotated(dimension as u64), 8, faults, seed, Some(&input));
            let Ok(outcome) = played.result else { continue };
            assert!(played.exact);
            let devices: Vec<usize> = outcome.survivors.iter().map(|id| id.0[0].into()).collect();
            let decoded = checked.quantiser.decode(&outcome.sum, dimension, devices.len() as u32).unwrap();
            let (_, largest) = errors(&decoded, &mean(&devices, dimension));
            assert!(largest <= decoded.error_bound, "{dimension}: {largest} {}", decoded.error_bound);
            sums += 1;
        }
        assert!(sums > 0, "no round gave a sum");
    }
}

/// The mean of 20 spiky updates of 10,000 elements, without a round.
fn aggregate(quantiser: &Quantiser) -> (Aggregate, Vec<f64>) {
    let (clients, dimension) = (20usize, 10_000usize);
    let modulus = Modulus::new(quantiser.modulus_bits(clients as u32).unwrap()).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let mut sum = RingVector::zeros(modulus, dimension + 1);
    for device in 0..clients {
        let update = spiky(device, dimension);
        let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
        sum.add_assign(&quantiser.encode(contribution, dimension, modulus, &mut rng).unwrap()).unwrap();
    }
    let decoded = quantiser.decode(&sum, dimension, clients as u32).unwrap();
    (decoded, mean(&(0..clients).collect::<Vec<_>>(), dimension))
}

fn quantiser(bits: u32, clip: f32, rotate: bool) -> Quantiser {
    let mut quantiser = check(&params(true, 6, 8, 0.0, 0.25, 20)).quantiser;
    (quantiser.rounding, quantiser.rotation) = (Rounding::Stochastic, rotate.then(Rotation::default));
    (quantiser.bits, quantiser.clip, quantiser.l2_clip) = (bits, clip, Some(1.0));
    quantiser
}

#[test]
fn spiky_updates_fit_a_clip_a_tenth_as_large_and_three_bits_less() {
    // Without rotation the clip must hold the spike, 0.9; with it, five deviations of a rotated element.
    let rms = |bits, clip, rotate| {
        let (decoded, mean) = aggregate(&quantiser(bits, clip, rotate));
        errors(&decoded, &mean).0
    };
    let (plain, rotated) = (rms(8, 1.0, false), rms(8, 0.1, true));
    assert!(rotated < plain / 5.0, "{rotated} {plain}");
    assert!(rms(5, 0.1, true) < plain * 1.1);
    // The same clip without rotation cuts the spikes.
    assert!(rms(8, 0.1, false) > plain);
}

#[test]
fn the_noise_of_privacy_keeps_its_deviation_through_a_rotation() {
    let mut quantiser = quantiser(12, 0.2, true);
    quantiser.privacy = Some(Privacy { noise_variance: 1e4 });
    let (decoded, mean) = aggregate(&quantiser);
    let (rms, largest) = errors(&decoded, &mean);
    // The estimate's own deviation is 0.7 %; rounding is nothing beside this noise.
    assert!((rms / decoded.noise_deviation - 1.0).abs() < 0.04, "{rms} {}", decoded.noise_deviation);
    assert!(largest < 7.0 * decoded.noise_deviation + decoded.error_bound);
}
