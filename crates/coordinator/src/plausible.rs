//! Whether a sum can be one of honest updates. Single updates are not seen, so a client may put anything into its own; what no set of
//! clients that keep to the settings can give is recognised here, and not used.

use unisono_protocol::encoding::{Aggregate, Quantiser, Rounding};
use unisono_protocol::rotation::Rotation;

/// What is wrong with a sum.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Implausible {
    /// A value is NaN or infinite.
    #[error("element {index} of the {what} is {value}")]
    NonFinite {
        /// Mean or metrics.
        what: &'static str,
        /// Place of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The weights' sum.
    #[error("the weights of {clients} clients sum to {got}; between {min} and {max} is possible")]
    Weight {
        /// Clients in the sum.
        clients: u32,
        /// Sum of the weights.
        got: f64,
        /// Smallest possible.
        min: f64,
        /// Largest possible.
        max: f64,
    },
    /// An element of the mean.
    #[error("element {index} of the mean is {got}; clip, rounding and noise allow {limit} at most")]
    Mean {
        /// Place of the largest element.
        index: usize,
        /// Its value.
        got: f32,
        /// Largest possible absolute value.
        limit: f64,
    },
    /// The length of the mean as a vector.
    #[error("the mean has an L2 norm of {got}; l2_clip, rounding and noise allow {limit} at most")]
    Norm {
        /// L2 norm.
        got: f64,
        /// Largest possible norm.
        limit: f64,
    },
    /// A metric.
    #[error("metric {index} has a mean of {got}; between {lower} and {upper} is possible")]
    Metric {
        /// Its place in the settings.
        index: usize,
        /// Its value.
        got: f32,
        /// Smallest possible.
        lower: f64,
        /// Largest possible.
        upper: f64,
    },
}

impl Implausible {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NonFinite { .. } => "non_finite_sum",
            Self::Weight { .. } => "implausible_weight",
            Self::Mean { .. } | Self::Norm { .. } => "implausible_mean",
            Self::Metric { .. } => "implausible_metric",
        }
    }
}

/// Checks the decoded sum of `clients` updates of `min_weight` each at the least. The limits are exact up to rounding: whatever honest
/// clients send is within them.
///
/// # Errors
/// [`Implausible`]: the first limit that is crossed.
pub fn check(quantiser: &Quantiser, min_weight: f32, sum: &Aggregate, clients: u32) -> Result<(), Implausible> {
    for (what, values) in [("mean", &sum.mean), ("list of metrics", &sum.metrics)] {
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(Implausible::NonFinite { what, index, value: values[index] });
        }
    }
    let max_weight = f64::from(quantiser.max_weight);
    let levels = ((1u64 << quantiser.bits) - 1) as f64;
    // One client's rounding, as a part of its largest value.
    let step = (if quantiser.rounding == Rounding::Stochastic { 1.0 } else { 0.5 } + 1.0 / f64::from(1 << 17)) / levels;
    let most = f64::from(clients) * max_weight;
    // With noise the weights are all the largest, and have none themselves.
    let smallest = if quantiser.privacy.is_some() { quantiser.max_weight } else { min_weight };
    let rounded = (f64::from(smallest) / max_weight - step).max(0.0);
    let (min, max) = (f64::from(clients) * rounded * max_weight, most * (1.0 + 1e-9));
    if !(sum.total_weight >= min * (1.0 - 1e-9) && sum.total_weight <= max && sum.total_weight > 0.0) {
        return Err(Implausible::Weight { clients, got: sum.total_weight, min, max: most });
    }
    // Sum of the weights as parts of the largest: what the mean was divided by.
    let weight = sum.total_weight / max_weight;
    let clip = f64::from(quantiser.clip);
    let noise = quantiser.privacy.map_or(0.0, |privacy| privacy.margin(clients) as f64 / levels * 2.0 * clip / weight);
    let dimension = sum.mean.len();
    let growth = if quantiser.rotation.is_some() { Rotation::error_growth(dimension) } else { 1.0 };
    let runs = quantiser.runs(dimension).map_err(|_| Implausible::Mean { index: 0, got: 0.0, limit: 0.0 })?;
    let widest = runs.iter().map(|run| f64::from(run.clip)).fold(0.0, f64::max);
    let mut start = 0;
    for run in &runs {
        let elements = &sum.mean[start..start + run.elements as usize];
        // `error_bound` has grown already, and is that of the widest run. The factor is for the conversions to f32.
        let clip = f64::from(run.clip);
        let limit = (growth * (clip + noise) + sum.error_bound * clip / widest) * (1.0 + 1e-5);
        let largest = elements.iter().enumerate().max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()));
        if let Some((index, &got)) = largest.filter(|(_, got)| f64::from(got.abs()) > limit) {
            return Err(Implausible::Mean { index: start + index, got, limit });
        }
        start += elements.len();
    }
    if let Some(l2_clip) = quantiser.l2_clip {
        let norm = sum.mean.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let limit =
            (f64::from(l2_clip) + (dimension as f64).sqrt() * (growth * noise + sum.error_bound)) * (1.0 + 1e-5);
        if norm > limit {
            return Err(Implausible::Norm { got: norm, limit });
        }
    }
    for (index, (&got, &(lower, upper))) in sum.metrics.iter().zip(&quantiser.metric_bounds).enumerate() {
        let (lower, upper) = (f64::from(lower), f64::from(upper));
        // |m'/W' - m/W| <= (|m' - m| + (m/W) |W' - W|) / W', with m/W within 0 and 1.
        let off = (upper - lower) * f64::from(clients) * 2.0 * step / weight + 1e-5 * (upper - lower);
        let off = off + 1e-6 * lower.abs().max(upper.abs());
        if !(f64::from(got) >= lower - off && f64::from(got) <= upper + off) {
            return Err(Implausible::Metric { index, got, lower: lower - off, upper: upper + off });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;
    use unisono_crypto::ring::{Modulus, RingVector};
    use unisono_protocol::encoding::Contribution;

    use super::*;

    fn quantiser() -> Quantiser {
        Quantiser {
            bits: 8,
            clip: 1.0,
            clips: Vec::new(),
            l2_clip: None,
            max_weight: 10.0,
            rounding: Rounding::Stochastic,
            metric_bounds: vec![(-1.0, 3.0)],
            privacy: None,
            rotation: None,
        }
    }

    /// The sum of clients of which each sends one value everywhere, its metric and weight; then `change` meddles with it.
    fn sum(quantiser: &Quantiser, clients: &[(f32, f32, f32)], change: impl Fn(&mut [u64])) -> Aggregate {
        let modulus = Modulus::new(quantiser.modulus_bits(clients.len() as u32).unwrap()).unwrap();
        let rng = &mut ChaCha20Rng::seed_from_u64(clients.len() as u64);
        let metrics = quantiser.metric_bounds.len();
        let mut total = vec![0u64; 40 + metrics + 1];
        for &(x, metric, weight) in clients {
            let (update, metrics) = (vec![x; 40], vec![metric; metrics]);
            let contribution = Contribution { update: &update, metrics: &metrics, weight };
            let encoded = quantiser.encode(contribution, 40, modulus, rng).unwrap();
            total.iter_mut().zip(encoded.to_u64()).for_each(|(sum, x)| *sum += x);
        }
        change(&mut total);
        let total =
            RingVector::from_u64(modulus, &total.iter().map(|x| x & modulus.mask()).collect::<Vec<_>>()).unwrap();
        quantiser.decode(&total, 40, clients.len() as u32).unwrap()
    }

    #[test]
    fn what_honest_clients_send_is_plausible_at_every_corner() {
        for rounding in [Rounding::Stochastic, Rounding::Deterministic] {
            for (x, metric, weight) in
                [(1.0, 3.0, 10.0), (-1.0, -1.0, 10.0), (1.0, -1.0, 0.5), (-9.0, 9.0, 1.0), (0.0, 0.0, 3.0)]
            {
                for rotation in [None, Some(Rotation::of_round(unisono_protocol::RoundId([3; 32])))] {
                    for clients in [3, 50] {
                        let quantiser = Quantiser { rounding, rotation, l2_clip: Some(2.0), ..quantiser() };
                        let sum = sum(&quantiser, &vec![(x, metric, weight); clients], |_| {});
                        assert_eq!(check(&quantiser, weight, &sum, clients as u32), Ok(()), "{x} {metric} {weight}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_that_no_honest_clients_can_give_are_told() {
        let quantiser = quantiser();
        let honest = [(0.5, 1.0, 5.0); 5];
        let refused = |min_weight, change: &dyn Fn(&mut [u64])| {
            let sum = sum(&quantiser, &honest, change);
            check(&quantiser, min_weight, &sum, 5).map_err(|e| e.code())
        };
        let (metric, weight) = (40, 41);
        assert_eq!(refused(0.0, &|_| {}), Ok(()));
        assert_eq!(refused(0.0, &|sum| sum[3] += 600), Err("implausible_mean"));
        assert_eq!(refused(0.0, &|sum| sum[3] = 0), Err("implausible_mean"));
        assert_eq!(refused(0.0, &|sum| sum[metric] += 1000), Err("implausible_metric"));
        assert_eq!(refused(0.0, &|sum| sum[weight] = 5 * 255 + 100), Err("implausible_weight"));
        // Far too little weight makes a large mean; and where a smallest weight is set, it is told by itself.
        assert_eq!(refused(0.0, &|sum| sum[weight] = 40), Err("implausible_mean"));
        assert_eq!(refused(4.0, &|sum| sum[weight] = 400), Err("implausible_weight"));
        assert_eq!(refused(4.0, &|_| {}), Ok(()));
        let mut nan = sum(&quantiser, &honest, |_| {});
        nan.mean[7] = f32::NAN;
        assert_eq!(check(&quantiser, 0.0, &nan, 5).unwrap_err().code(), "non_finite_sum");
    }
}
