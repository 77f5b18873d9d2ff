//! What the coordinator does with a mean of updates: server optimisers and early stop.

use serde::{Deserialize, Serialize};

/// How the mean of the clients' updates changes the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Federated averaging (McMahan et al. 2017): `model += learning_rate * mean`.
    FedAvg {
        /// Server learning rate; 1 is plain averaging.
        #[serde(default = "one")]
        learning_rate: f32,
    },
    /// Adam on the server, with the mean as pseudo-gradient (Reddi et al. 2021, algorithm 2; no bias correction).
    FedAdam {
        /// Server learning rate.
        #[serde(default = "hundredth")]
        learning_rate: f32,
        /// Decay of the first moment.
        #[serde(default = "beta1")]
        beta1: f32,
        /// Decay of the second moment.
        #[serde(default = "beta2")]
        beta2: f32,
        /// Degree of adaptivity, added to the root of the second moment.
        #[serde(default = "thousandth")]
        tau: f32,
    },
}

fn one() -> f32 {
    1.0
}
fn hundredth() -> f32 {
    0.01
}
fn thousandth() -> f32 {
    0.001
}
fn beta1() -> f32 {
    0.9
}
fn beta2() -> f32 {
    0.99
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::FedAvg { learning_rate: 1.0 }
    }
}

impl OptimizerConfig {
    /// The first setting that is out of range: its name, value and range.
    pub fn check(&self) -> Result<(), (&'static str, f32, &'static str)> {
        let positive = |name, x: f32| if x > 0.0 && x.is_finite() { Ok(()) } else { Err((name, x, "above 0")) };
        let decay = |name, x: f32| if (0.0..1.0).contains(&x) { Ok(()) } else { Err((name, x, "0 to below 1")) };
        match *self {
            Self::FedAvg { learning_rate } => positive("learning_rate", learning_rate),
            Self::FedAdam { learning_rate, beta1, beta2, tau } => {
                positive("learning_rate", learning_rate)?;
                positive("tau", tau)?;
                decay("beta1", beta1)?;
                decay("beta2", beta2)
            }
        }
    }
}

/// An optimiser's moments; empty for those that have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// First moment, one element for each of the model.
    pub first: Vec<f32>,
    /// Second moment.
    pub second: Vec<f32>,
}

/// The model after one round. `mean` is the weighted mean of the clients' updates, as long as `model`.
pub fn step(config: &OptimizerConfig, moments: &mut Moments, model: &[f32], mean: &[f32]) -> Vec<f32> {
    match *config {
        OptimizerConfig::FedAvg { learning_rate } => {
            model.iter().zip(mean).map(|(x, delta)| x + learning_rate * delta).collect()
        }
        OptimizerConfig::FedAdam { learning_rate, beta1, beta2, tau } => {
            moments.first.resize(model.len(), 0.0);
            moments.second.resize(model.len(), tau * tau);
            let moments = moments.first.iter_mut().zip(&mut moments.second);
            let next = |((x, delta), (m, v)): ((&f32, &f32), (&mut f32, &mut f32))| {
                *m = beta1 * *m + (1.0 - beta1) * delta;
                *v = beta2 * *v + (1.0 - beta2) * delta * delta;
                x + learning_rate * *m / (v.sqrt() + tau)
            };
            model.iter().zip(mean).zip(moments).map(next).collect()
        }
    }
}

/// Whether a smaller or a larger value of a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// As of a loss.
    Lower,
    /// As of an accuracy.
    Higher,
}

/// When to stop before the last round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Name of the metric that is watched.
    pub metric: String,
    /// Whether smaller or larger is better.
    pub better: Better,
    /// Rounds without improvement after which training stops, at least 1.
    pub patience: usize,
    /// Smallest change that counts as an improvement.
    #[serde(default)]
    pub min_improvement: f32,
}

impl EarlyStop {
    /// Whether the metric's values, one a round, have not improved for `patience` rounds.
    pub fn should_stop(&self, values: &[f32]) -> bool {
        let mut watch = Watch::new(self, 0);
        (1..).zip(values).for_each(|(version, value)| watch.see(version, *value));
        watch.is_stuck(self.patience)
    }
}

/// How far the watched metric has come: all that early stop needs to know of the rounds before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    metric: String,
    better: Better,
    min_improvement: f32,
    /// Rounds up to this one count for nothing: they have other metrics.
    since: u64,
    /// Values seen.
    seen: u64,
    /// The best value, and how many were seen before it.
    best: Option<(u64, f32)>,
}

impl Watch {
    /// Nothing is seen. The first `since` successful rounds count for nothing.
    pub fn new(stop: &EarlyStop, since: u64) -> Self {
        let EarlyStop { metric, better, min_improvement, .. } = stop.clone();
        Self { metric, better, min_improvement, since, seen: 0, best: None }
    }

    /// Whether it watches with the same settings, so that one can go on for the other. Patience is none of them.
    pub fn is_like(&self, other: &Self) -> bool {
        let began = |watch: &Self| Self { seen: 0, best: None, ..watch.clone() };
        began(self) == began(other)
    }

    /// Takes the value of the next round, the `number`th successful one.
    pub fn see(&mut self, number: u64, value: f32) {
        if number <= self.since {
            return;
        }
        let gain = |from: f32, to: f32| if self.better == Better::Lower { from - to } else { to - from };
        if self.best.is_none_or(|(_, best)| gain(best, value) > self.min_improvement) {
            self.best = Some((self.seen, value));
        }
        self.seen += 1;
    }

    /// Whether the last `patience` values have brought no improvement.
    pub fn is_stuck(&self, patience: usize) -> bool {
        self.best.is_some_and(|(before, _)| self.seen - 1 - before >= patience as u64)
    }

    /// As text, to be kept.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`Self::to_text`] gave; `None` for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        let watch: Self = serde_json::from_str(text).ok()?;
        watch.best.is_none_or(|(before, _)| before < watch.seen).then_some(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fedavg_adds_the_mean() {
        let config = OptimizerConfig::default();
        assert_eq!(step(&config, &mut Moments::default(), &[1.0, 2.0], &[0.5, -1.0]), [1.5, 1.0]);
    }

    #[test]
    fn fedadam_takes_the_steps_of_the_paper() {
        let config = OptimizerConfig::FedAdam { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 0.001 };
        let mut moments = Moments::default();
        let first = step(&config, &mut moments, &[0.0], &[0.2]);
        // m = 0.1 * 0.2, v = 0.99 * tau^2 + 0.01 * 0.04
        let expected = 0.1 * 0.02 / ((0.99e-6f32 + 0.0004).sqrt() + 0.001);
        assert!((first[0] - expected).abs() < 1e-6, "{first:?} {expected}");
        let second = step(&config, &mut moments, &first, &[0.2]);
        let (m, v) = (0.9 * 0.02 + 0.1 * 0.2, 0.99 * (0.99e-6f32 + 0.0004) + 0.01 * 0.04);
        assert!((second[0] - first[0] - 0.1 * m / (v.sqrt() + 0.001)).abs() < 1e-6);
    }

    #[test]
    fn fedadam_finds_the_minimum_of_a_bowl() {
        let config = OptimizerConfig::FedAdam { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 0.01 };
        let (mut moments, mut x) = (Moments::default(), vec![3.0f32, -2.0]);
        for _ in 0..300 {
            let downhill: Vec<f32> = x.iter().map(|x| -0.1 * x).collect();
            x = step(&config, &mut moments, &x, &downhill);
        }
        assert!(x.iter().all(|x| x.abs() < 0.1), "{x:?}");
    }

    #[test]
    fn early_stop_waits_for_its_patience() {
        let stop = EarlyStop { metric: "loss".into(), better: Better::Lower, patience: 2, min_improvement: 0.1 };
        assert!(!stop.should_stop(&[]) && !stop.should_stop(&[1.0, 0.5, 0.45]));
        assert!(stop.should_stop(&[1.0, 0.5, 0.45, 0.41]));
        assert!(!stop.should_stop(&[1.0, 0.5, 0.45, 0.3]));
        let higher = EarlyStop { better: Better::Higher, ..stop };
        assert!(higher.should_stop(&[0.5, 0.9, 0.9, 0.95]) && !higher.should_stop(&[0.5, 0.9, 0.9, 1.1]));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert!(OptimizerConfig::default().check().is_ok());
        let bad = OptimizerConfig::FedAdam { learning_rate: 0.1, beta1: 1.0, beta2: 0.99, tau: 0.001 };
        assert_eq!(bad.check(), Err(("beta1", 1.0, "0 to below 1")));
        assert_eq!(OptimizerConfig::FedAvg { learning_rate: 0.0 }.check(), Err(("learning_rate", 0.0, "above 0")));
    }
}
