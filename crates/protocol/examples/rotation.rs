//! What rotation is for (docs/protocol.md, section 7): RMS error of the mean of 50 updates whose norm is in few elements, by
//! bits, with and without rotation, each with a clip that fits. `cargo run -p unisono-protocol --example rotation`

use std::error::Error;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_protocol::encoding::{Contribution, Quantiser, Rounding};
use unisono_protocol::rotation::Rotation;

const CLIENTS: u32 = 50;
const DIMENSION: usize = 100_000;

/// Norm 1: a thousandth of the elements has 99 % of its square, at places that differ from client to client.
fn update(client: u32) -> Vec<f32> {
    let mut rng = ChaCha20Rng::seed_from_u64(client.into());
    let spikes = DIMENSION / 1000;
    let small = (0.03 / DIMENSION as f32).sqrt();
    let mut values: Vec<f32> = (0..DIMENSION).map(|_| rng.random_range(-small..small)).collect();
    for _ in 0..spikes {
        let place = rng.random_range(0..DIMENSION);
        values[place] = (0.99 / spikes as f32).sqrt();
    }
    values
}

fn main() -> Result<(), Box<dyn Error>> {
    let updates: Vec<Vec<f32>> = (0..CLIENTS).map(update).collect();
    let mean = |i: usize| updates.iter().map(|update| f64::from(update[i])).sum::<f64>() / f64::from(CLIENTS);
    let mean: Vec<f64> = (0..DIMENSION).map(mean).collect();
    println!("{CLIENTS} updates of {DIMENSION} elements; RMS of their mean {:.2e}", rms(mean.iter().copied()));
    println!("{:>4}  {:>16}  {:>16}", "bits", "clip 0.1", "rotated, 0.02");
    for bits in [4, 6, 8, 12, 16] {
        let error = |clip: f32, rotation: Option<Rotation>| -> Result<f64, Box<dyn Error>> {
            let quantiser = Quantiser {
                bits,
                clip,
                clips: Vec::new(),
                l2_clip: Some(1.0),
                max_weight: 1.0,
                rounding: Rounding::Stochastic,
                metric_bounds: Vec::new(),
                privacy: None,
                rotation,
            };
            let modulus = Modulus::new(quantiser.modulus_bits(CLIENTS)?)?;
            let mut sum = RingVector::zeros(modulus, DIMENSION + 1);
            for (seed, update) in updates.iter().enumerate() {
                let contribution = Contribution { update, metrics: &[], weight: 1.0 };
                let mut rng = ChaCha20Rng::seed_from_u64(1000 + seed as u64);
                sum.add_assign(&quantiser.encode(contribution, DIMENSION, modulus, &mut rng)?)?;
            }
            let decoded = quantiser.decode(&sum, DIMENSION, CLIENTS)?;
            Ok(rms(decoded.mean.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean)))
        };
        println!("{bits:>4}  {:>16.2e}  {:>16.2e}", error(0.1, None)?, error(0.02, Some(Rotation::default()))?);
    }
    Ok(())
}

fn rms(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(|x| x * x).sum::<f64>() / count).sqrt()
}
