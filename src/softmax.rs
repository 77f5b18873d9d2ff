//! Softmax regression with stochastic gradient descent: the example trainer, also for the centrally trained comparison.

use ndarray::{Array1, Array2, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use unisono_client::{TrainError, Trainer, TrainingRound, Update};
use unisono_wire::model::{Model, ModelError};

use crate::examples::Examples;

/// Name and order of the metrics that [`SoftmaxTrainer`] reports.
pub const METRICS: [&str; 2] = ["loss", "accuracy"];
/// Largest loss that is reported.
pub const MAX_LOSS: f32 = 10.0;

/// How a client trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Passes over the examples, 1 or more.
    pub epochs: usize,
    /// Examples in a step, 1 or more.
    pub batch: usize,
    /// Learning rate.
    pub learning_rate: f32,
    /// Strength of FedProx's proximal term, which adds `proximal (w - w0)` to the gradient at weights `w`, where training began
    /// at `w0` (Li et al. 2020); 0 for none.
    pub proximal: f32,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { epochs: 25, batch: 8, learning_rate: 0.3, proximal: 0.0 }
    }
}

/// Weights (features by classes) and bias (classes).
#[derive(Debug, Clone, PartialEq)]
pub struct Softmax {
    weight: Array2<f32>,
    bias: Array1<f32>,
}

impl Softmax {
    /// All zeros.
    pub fn zeros(features: usize, classes: usize) -> Self {
        Self { weight: Array2::zeros((features, classes)), bias: Array1::zeros(classes) }
    }

    /// As tensors `bias` and `weight`.
    ///
    /// # Errors
    /// [`ModelError`] when an element is not finite, or there is none.
    pub fn to_model(&self) -> Result<Model, ModelError> {
        let shape = self.weight.shape().to_vec();
        Model::new([
            ("bias", vec![self.bias.len()], self.bias.to_vec()),
            ("weight", shape, self.weight.iter().copied().collect()),
        ])
    }

    /// Reads tensors `bias` and `weight`; `None` when the model has others.
    pub fn from_model(model: &Model) -> Option<Self> {
        let (&[classes], bias) = model.tensor("bias")? else { return None };
        let (&[features, columns], weight) = model.tensor("weight")? else { return None };
        let only = model.values().len() == classes + features * columns;
        let weight = Array2::from_shape_vec((features, columns), weight.to_vec()).ok()?;
        (columns == classes && only).then(|| Self { weight, bias: bias.to_vec().into() })
    }

    /// All elements, in the order of the model's tensors: bias, then weight.
    pub fn values(&self) -> Vec<f32> {
        self.bias.iter().chain(&self.weight).copied().collect()
    }

    /// The same shape with other elements, in the order of [`Self::values`]; `None` unless there are as many.
    pub fn with_values(&self, values: &[f32]) -> Option<Self> {
        let (bias, weight) = values.split_at_checked(self.bias.len())?;
        let weight = Array2::from_shape_vec(self.weight.raw_dim(), weight.to_vec()).ok()?;
        Some(Self { weight, bias: bias.to_vec().into() })
    }

    /// Features and classes.
    pub fn shape(&self) -> (usize, usize) {
        self.weight.dim()
    }

    /// Probability of each class for a batch, one row an example.
    fn probabilities(&self, batch: &Examples) -> Array2<f32> {
        let features = ndarray::stack(Axis(0), &(0..batch.len()).map(|i| batch.get(i).0).collect::<Vec<_>>());
        let mut scores = features.unwrap_or_default().dot(&self.weight) + &self.bias;
        for mut row in scores.rows_mut() {
            let largest = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|x| (x - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        scores
    }

    /// Mean loss (cross-entropy) and accuracy on `examples`, which are not empty.
    pub fn evaluate(&self, examples: &Examples) -> (f32, f32) {
        let probabilities = self.probabilities(examples);
        let (mut loss, mut right) = (0.0, 0);
        for (i, row) in probabilities.rows().into_iter().enumerate() {
            let label = examples.get(i).1;
            loss -= row.get(label).copied().unwrap_or(0.0).max(1e-9).ln();
            // Of classes that are equally likely the first one is told.
            let told =
                row.iter().enumerate().fold((0, f32::MIN), |best, (i, &p)| if p > best.1 { (i, p) } else { best });
            right += usize::from(told.0 == label);
        }
        (loss / examples.len() as f32, right as f32 / examples.len() as f32)
    }

    /// Trains on `examples`, whose classes are below the model's.
    pub fn train(&mut self, examples: &Examples, sgd: &Sgd, rng: &mut ChaCha8Rng) {
        let begin = (sgd.proximal != 0.0).then(|| self.clone());
        let mut order: Vec<usize> = (0..examples.len()).collect();
        for _ in 0..sgd.epochs {
            order.shuffle(rng);
            for indices in order.chunks(sgd.batch.max(1)) {
                let batch = examples.select(indices);
                let mut error = self.probabilities(&batch);
                if let Some(begin) = &begin {
                    let pull = sgd.learning_rate * sgd.proximal;
                    self.weight.zip_mut_with(&begin.weight, |w, w0| *w -= pull * (*w - w0));
                    self.bias.zip_mut_with(&begin.bias, |w, w0| *w -= pull * (*w - w0));
                }
                let rate = sgd.learning_rate / batch.len() as f32;
                for (i, mut row) in error.rows_mut().into_iter().enumerate() {
                    row[batch.get(i).1] -= 1.0;
                    let row = row.mapv(|x| x * rate);
                    self.bias -= &row;
                    let features = batch.get(i).0;
                    for (mut weights, &x) in
                        self.weight.rows_mut().into_iter().zip(features).filter(|(_, x)| **x != 0.0)
                    {
                        weights.scaled_add(-x, &row);
                    }
                }
            }
        }
    }
}

/// Trains a [`Softmax`] on a device's examples. The weight is their number; the metrics are [`METRICS`] of the base model on
/// them, before training. In a round with privacy the weight is the round's only one, and there are no metrics.
pub struct SoftmaxTrainer {
    examples: Examples,
    sgd: Sgd,
    rng: ChaCha8Rng,
}

impl SoftmaxTrainer {
    /// A trainer on `examples`; `seed` orders them.
    pub fn new(examples: Examples, sgd: Sgd, seed: u64) -> Self {
        Self { examples, sgd, rng: ChaCha8Rng::seed_from_u64(seed) }
    }
}

impl Trainer for SoftmaxTrainer {
    fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError> {
        if self.examples.is_empty() {
            return Err("this device has no examples".into());
        }
        let mut softmax = Softmax::from_model(&round.model)
            .ok_or("the task's model is no softmax regression with bias and weight")?;
        let (features, classes) = softmax.shape();
        if features != self.examples.columns() || self.examples.classes() > classes {
            let (columns, own) = (self.examples.columns(), self.examples.classes());
            return Err(format!(
                "the model takes {features} features and {classes} classes; this device's examples have {columns} and {own}"
            )
            .into());
        }
        let (loss, accuracy) = softmax.evaluate(&self.examples);
        softmax.train(&self.examples, &self.sgd, &mut self.rng);
        let trained = softmax.to_model()?;
        let update = trained.values().iter().zip(round.model.values()).map(|(new, old)| new - old).collect();
        // A round with privacy counts every device alike, and takes no metrics.
        let quantiser = &round.params.quantiser;
        if quantiser.privacy.is_some() {
            return Ok(Update { update, weight: quantiser.max_weight, metrics: Vec::new() });
        }
        Ok(Update { update, weight: self.examples.len() as f32, metrics: vec![loss.min(MAX_LOSS), accuracy] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_centrally_trained_model_knows_the_digits() {
        let digits = Examples::digits().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (training, held_out) = digits.split(0.2, &mut rng);
        let mut softmax = Softmax::zeros(64, 10);
        let (loss, accuracy) = softmax.evaluate(&held_out);
        assert!(loss > 2.3 - 1e-3 && accuracy < 0.2, "a model that knows nothing: {loss} {accuracy}");
        softmax.train(&training, &Sgd { epochs: 20, ..Sgd::default() }, &mut rng);
        let (loss, accuracy) = softmax.evaluate(&held_out);
        assert!(accuracy > 0.94 && loss < 0.3, "{loss} {accuracy}");
    }

    #[test]
    fn the_proximal_term_keeps_a_model_near_its_beginning() {
        let digits = Examples::digits().unwrap().select(&(0..200).collect::<Vec<_>>());
        let distance = |proximal| {
            let mut softmax = Softmax::zeros(64, 10);
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            softmax.train(&digits, &Sgd { epochs: 5, proximal, ..Sgd::default() }, &mut rng);
            softmax.weight.mapv(|w| w * w).sum().sqrt()
        };
        let (free, light, strong) = (distance(0.0), distance(0.1), distance(1.0));
        assert!(free > light && light > 1.5 * strong && strong > 0.0, "{free} {light} {strong}");
    }

    #[test]
    fn a_model_survives_its_tensors_and_others_are_refused() {
        let mut softmax = Softmax::zeros(3, 2);
        softmax.weight[[2, 1]] = 4.0;
        let model = softmax.to_model().unwrap();
        assert_eq!(Softmax::from_model(&model), Some(softmax));
        let other = Model::new([("weight", vec![1, 2], vec![0.0; 2]), ("bias", vec![3], vec![0.0; 3])]).unwrap();
        assert_eq!(Softmax::from_model(&other), None);
    }
}
