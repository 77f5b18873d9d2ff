//! Devices of a simulation that learn together: what each contributes to a round, and the model that they share.

use std::sync::{PoisonError, RwLock};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_sim::{Learned, Update};

use crate::examples::{DIGITS, Examples, ExamplesError, PIXELS};
use crate::softmax::{Sgd, Softmax};

/// Elements of the softmax regression that learns the digits.
pub const DIMENSION: u64 = (DIGITS * (PIXELS + 1)) as u64;

/// The bundled digits: a part for each of `devices`, dealt as [`Examples::deal_dirichlet`] does, and a fifth that nobody has.
///
/// # Errors
/// [`ExamplesError::Alpha`]; [`ExamplesError::TooFew`] when there are more devices than examples.
pub fn deal_digits(devices: u32, alpha: f64, seed: u64) -> Result<(Vec<Examples>, Examples), ExamplesError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (training, held_out) = Examples::digits()?.split(0.2, &mut rng);
    if training.len() < devices as usize {
        return Err(ExamplesError::TooFew { examples: training.len(), parts: devices as usize });
    }
    Ok((training.deal_dirichlet(devices as usize, alpha, &mut rng)?, held_out))
}

/// The devices' examples, and the model that all of them train.
pub struct Federation {
    parts: Vec<Examples>,
    held_out: Examples,
    sgd: Sgd,
    seed: u64,
    equal_weights: bool,
    model: RwLock<Softmax>,
}

impl Federation {
    /// Devices with these examples, and a model of zeros. `seed` orders the examples of each device in each round. With
    /// `equal_weights` all updates weigh alike, as rounds with privacy need it; otherwise by the number of examples.
    pub fn new(parts: Vec<Examples>, held_out: Examples, sgd: Sgd, seed: u64, equal_weights: bool) -> Self {
        let model = RwLock::new(Softmax::zeros(PIXELS, DIGITS));
        Self { parts, held_out, sgd, seed, equal_weights, model }
    }

    /// Number of devices.
    pub fn devices(&self) -> u32 {
        self.parts.len() as u32
    }

    /// Largest weight of an update.
    pub fn max_weight(&self) -> f32 {
        self.parts.iter().map(Examples::len).max().unwrap_or(1) as f32
    }

    fn model(&self) -> Softmax {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What training on a device's examples (device from 0) changes in the model, element by element.
    ///
    /// # Panics
    /// When the federation does not have so many devices, as indexing does.
    pub fn update(&self, device: u32, round: u64) -> Update {
        let base = self.model();
        let examples = &self.parts[device as usize];
        let mut softmax = base.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ (u64::from(device) << 32) ^ round);
        softmax.train(examples, &self.sgd, &mut rng);
        let values = softmax.values().iter().zip(base.values()).map(|(new, old)| new - old).collect();
        let weight = if self.equal_weights { self.max_weight() } else { examples.len() as f32 };
        Update { values, metrics: Vec::new(), weight }
    }

    /// Replaces the model's elements by those that `next` makes of them: as many, or nothing changes.
    pub fn step(&self, next: impl FnOnce(&[f32]) -> Vec<f32>) {
        let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = model.with_values(&next(&model.values())) {
            *model = next;
        }
    }

    /// The model on the examples that nobody has.
    pub fn evaluate(&self) -> Learned {
        let (loss, accuracy) = self.model().evaluate(&self.held_out);
        Learned { accuracy, loss }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_learn_the_digits_from_the_mean_of_their_updates() {
        let (parts, held_out) = deal_digits(10, 1.0, 1).unwrap();
        let federation = Federation::new(parts, held_out, Sgd { epochs: 3, ..Sgd::default() }, 1, false);
        let before = federation.evaluate();
        for round in 1..=5 {
            let updates: Vec<Update> = (0..federation.devices()).map(|i| federation.update(i, round)).collect();
            assert!(updates.iter().all(|update| update.values.len() as u64 == DIMENSION));
            assert!(updates.iter().all(|update| update.weight <= federation.max_weight()));
            assert_eq!(updates[3], federation.update(3, round), "a device's update depends on nothing else");
            let total: f32 = updates.iter().map(|update| update.weight).sum();
            let mean = |i: usize| updates.iter().map(|u| u.weight * u.values[i]).sum::<f32>() / total;
            federation.step(|values| values.iter().enumerate().map(|(i, value)| value + mean(i)).collect());
        }
        let after = federation.evaluate();
        assert!(before.accuracy < 0.2 && after.accuracy > 0.85 && after.loss < before.loss, "{before:?} {after:?}");
        federation.step(|_| vec![0.0; 3]);
        assert_eq!(federation.evaluate(), after, "of another length");
    }

    #[test]
    fn more_devices_than_examples_are_refused() {
        let refused = deal_digits(1439, 1.0, 1).unwrap_err();
        assert!(matches!(refused, ExamplesError::TooFew { examples: 1438, parts: 1439 }), "{refused}");
        assert!(matches!(deal_digits(3, 0.0, 1), Err(ExamplesError::Alpha(_))));
    }
}
