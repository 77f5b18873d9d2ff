//! Differential privacy by noise that every client adds inside the ring (section 12): the distributed Skellam mechanism of
//! Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning" (NeurIPS 2021).
//!
//! A sum of Skellam variables is one, so the sum over `m` contributions has noise of variance `m v` whoever dropped out. A
//! round's [`Guarantee`] counts only what is sure to be there and unknown to the adversary; [`Accountant`] turns guarantees
//! into epsilon.

mod accountant;
mod noise;

use rand_core::CryptoRng;
use unisono_crypto::CryptoError;
use unisono_crypto::ring::RingVector;
use unisono_crypto::secret::Secret32;

pub use accountant::Accountant;

use crate::encoding::{EncodingError, Quantiser};
use noise::Skellam;

/// Largest variance of one client's noise: the sampler's bounds on its errors hold up to here.
pub const MAX_NOISE_VARIANCE: f64 = (1u64 << 48) as f64;
/// Most bits of a quantised element in a round with privacy: the rounding's own error stays below what [`Sensitivity`] adds
/// for floating-point.
pub const MAX_BITS: u32 = 24;
/// The sum's noise leaves the margin of the modulus with probability below `2 exp(-50) < 2^-71` for each element.
const MARGIN_EXPONENT: f64 = 50.0;

/// The noise of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Privacy {
    /// Variance v of one client's noise on each element, in squared steps of the quantiser; above 0 up to 2^48.
    pub noise_variance: f64,
}

impl Privacy {
    /// The noise with which `contributions` contributions together have `multiplier` times the L2 sensitivity as standard
    /// deviation.
    pub fn of_multiplier(multiplier: f64, sensitivity: Sensitivity, contributions: u32) -> Self {
        let deviation = multiplier * sensitivity.l2;
        Self { noise_variance: deviation * deviation / f64::from(contributions.max(1)) }
    }

    /// The least noise (to a thousandth) with which `rounds` rounds, each with `contributions` contributions, spend at most
    /// `epsilon` at `delta`; `None` when a million times the sensitivity is not enough.
    pub fn of_epsilon(
        epsilon: f64,
        delta: f64,
        rounds: u64,
        sensitivity: Sensitivity,
        contributions: u32,
    ) -> Option<Self> {
        let enough = |multiplier: f64| {
            let deviation = multiplier * sensitivity.l2;
            let guarantee = Guarantee { sensitivity, contributions, variance: deviation * deviation };
            Accountant::new().and(&guarantee, rounds).epsilon(delta) <= epsilon
        };
        let (mut low, mut high) = (1e-3f64, 1e6f64);
        if !enough(high) {
            return None;
        }
        while high / low > 1.001 {
            let middle = (low * high).sqrt();
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(Self::of_multiplier(high, sensitivity, contributions))
    }

    /// Checks the noise, and what a round with privacy needs of its quantiser.
    ///
    /// # Errors
    /// [`EncodingError::Setting`].
    pub(crate) fn validate(&self, quantiser: &Quantiser) -> Result<(), EncodingError> {
        let setting = |setting, got: String, allowed| Err(EncodingError::Setting { setting, got, allowed });
        // Before the variance, which grows with them: who sets the bits has not set it.
        if quantiser.bits > MAX_BITS {
            return setting("bits", quantiser.bits.to_string(), "1 to 24 in a round with privacy");
        }
        let variance = self.noise_variance;
        if !(variance > 0.0 && variance <= MAX_NOISE_VARIANCE) {
            return setting(
                "privacy.noise_variance",
                variance.to_string(),
                "above 0 up to 2^48: ask for less noise (noise_multiplier), or give fewer bits or a larger clip",
            );
        }
        if quantiser.l2_clip.is_none() {
            return setting("l2_clip", "absent".into(), "a bound, which noise for privacy is made for");
        }
        if !quantiser.metric_bounds.is_empty() {
            let got = format!("{} intervals", quantiser.metric_bounds.len());
            return setting("metrics", got, "none in a round with privacy: they would tell about single devices");
        }
        Ok(())
    }

    /// What the modulus has to spare on either side of the sum of `clients` contributions. A Skellam variable of variance
    /// `m` exceeds `t` with probability at most `exp(-t^2 / (2 (m + t / 3)))` (Bernstein).
    pub fn margin(&self, clients: u32) -> u64 {
        let third = MARGIN_EXPONENT / 3.0;
        let variance = f64::from(clients) * self.noise_variance;
        (third + (third * third + 2.0 * MARGIN_EXPONENT * variance).sqrt()).ceil() as u64
    }

    /// Adds noise to the first `dimension` elements.
    ///
    /// # Errors
    /// [`CryptoError::Range`] for a variance that [`Self::validate`] refuses, or a vector shorter than `dimension`.
    pub(crate) fn add_noise<R: CryptoRng + ?Sized>(
        &self,
        vector: &mut RingVector,
        dimension: usize,
        rng: &mut R,
    ) -> Result<(), CryptoError> {
        let noise = Skellam::new(self.noise_variance, Secret32::random(rng))?;
        vector.add_chunks(dimension, |start, out| noise.fill(start as u64, out))
    }
}

/// How far one client's contribution can move the sum, in steps of the quantiser: against a contribution of the constant
/// `floor((2^q - 1) / 2)` in every element, which says nothing about the client (zero-out adjacency).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sensitivity {
    /// Bound on the L1 norm of the difference.
    pub l1: f64,
    /// Bound on its L2 norm.
    pub l2: f64,
}

impl Sensitivity {
    /// Of an update of `dimension` elements; `None` without an L2 bound.
    ///
    /// With the step `g = 2 clip / (2^q - 1)`, an element `x` becomes an integer less than 1 from `x / g + (2^q - 1) / 2`,
    /// and the constant is 1/2 from the latter's second part: so the difference has an L2 norm of at most
    /// `l2_clip / g + 1.5 sqrt(d)`, and no element of it exceeds `2^(q-1)`. It has whole elements, so its L1 norm is at most
    /// its L2 norm squared.
    pub fn of(quantiser: &Quantiser, dimension: u64) -> Option<Self> {
        let l2_clip = f64::from(quantiser.l2_clip?);
        let root = (dimension as f64).sqrt();
        let levels = ((1u64 << quantiser.bits) - 1) as f64;
        let step = 2.0 * f64::from(quantiser.clip) / levels;
        let largest = ((levels + 1.0) / 2.0) * root;
        // Covers the rounding errors of the norm, the scaling and this function, for up to 2^32 elements.
        let slack = 1.0 + 1.0 / f64::from(1 << 20);
        let l2 = (l2_clip / step + 1.5 * root).min(largest) * slack;
        Some(Self { l1: (root * l2).min(l2 * l2), l2 })
    }
}

/// The noise that a sum is sure to have against an adversary who knows the colluders' part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guarantee {
    /// Of one client's contribution.
    pub sensitivity: Sensitivity,
    /// Contributions whose noise counts: those in the sum less the assumed colluders.
    pub contributions: u32,
    /// Variance of their noise on each element, in squared steps.
    pub variance: f64,
}

impl Guarantee {
    /// Standard deviation of the noise, in L2 sensitivities.
    pub fn noise_multiplier(&self) -> f64 {
        self.variance.sqrt() / self.sensitivity.l2
    }

    /// Epsilon of one such round at `delta`.
    pub fn epsilon(&self, delta: f64) -> f64 {
        Accountant::new().and(self, 1).epsilon(delta)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;
    use unisono_crypto::ring::Modulus;

    use super::*;
    use crate::encoding::{Contribution, Rounding};
    use crate::rotation::Rotation;

    fn quantiser(noise_variance: f64) -> Quantiser {
        Quantiser {
            bits: 12,
            clip: 1.0,
            clips: Vec::new(),
            l2_clip: Some(1.0),
            max_weight: 1.0,
            rounding: Rounding::Stochastic,
            metric_bounds: Vec::new(),
            privacy: Some(Privacy { noise_variance }),
            rotation: None,
        }
    }

    #[test]
    fn what_a_round_with_privacy_can_not_have_is_named() {
        let refused = |change: &dyn Fn(&mut Quantiser)| {
            let mut quantiser = quantiser(10.0);
            change(&mut quantiser);
            match quantiser.validate() {
                Err(EncodingError::Setting { setting, .. }) => setting,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(quantiser(10.0).validate(), Ok(()));
        for variance in [0.0, -1.0, f64::NAN, f64::INFINITY, MAX_NOISE_VARIANCE * 1.01] {
            let change = |q: &mut Quantiser| q.privacy = Some(Privacy { noise_variance: variance });
            assert_eq!(refused(&change), "privacy.noise_variance");
        }
        assert_eq!(refused(&|q| q.l2_clip = None), "l2_clip");
        assert_eq!(refused(&|q| q.metric_bounds = vec![(0.0, 1.0)]), "metrics");
        assert_eq!(refused(&|q| q.bits = 25), "bits");
    }

    #[test]
    fn every_device_counts_alike_or_is_told_so() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let q = quantiser(10.0);
        let modulus = Modulus::new(q.modulus_bits(10).unwrap()).unwrap();
        let mut encode =
            |weight| q.encode(Contribution { update: &[0.0], metrics: &[], weight }, 1, modulus, &mut rng).map(|_| ());
        assert_eq!(encode(0.5), Err(EncodingError::UnequalWeight { got: 0.5, required: 1.0 }));
        assert_eq!(encode(1.0), Ok(()));
    }

    #[test]
    fn no_contribution_is_further_from_the_constant_than_the_sensitivity() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        // One large element, many small ones, and elements that an L-infinity bound cuts.
        let many = if cfg!(miri) { 20 } else { 5000 };
        let cases = [(12, 1.0f32, 400), (2, 1.0, 400), (1, 0.01, 9), (16, 0.5, 3), (24, 1.0, many)];
        for ((bits, clip, d), rotated) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            let rotation = rotated.then(Rotation::default);
            let q = Quantiser { bits, clip, privacy: None, rotation, ..quantiser(1.0) };
            let bound = Sensitivity::of(&q, d).unwrap();
            let middle = (((1u64 << bits) - 1) / 2) as f64;
            let mut one = vec![0.0; d as usize];
            one[0] = 5.0;
            for update in [one, vec![1.0 / (d as f32).sqrt(); d as usize], vec![-3.0; d as usize]] {
                let modulus = Modulus::new(bits).unwrap();
                let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
                let encoded = q.encode(contribution, d as usize, modulus, &mut rng).unwrap().to_u64();
                let difference = encoded[..d as usize].iter().map(|&x| (x as f64 - middle).abs());
                let (l1, l2) = difference.fold((0.0, 0.0), |(l1, l2), x| (l1 + x, l2 + x * x));
                assert!(l1 <= bound.l1 && l2.sqrt() <= bound.l2, "{bits} bits: {l1} {} {bound:?}", l2.sqrt());
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn noised_sums_decode_to_the_mean_within_the_reported_deviation() {
        let (clients, d) = (20u32, 20_000usize);
        // Little and much noise: in the second, sums fall on both sides of the ring's zero.
        for noise_variance in [4.0, 1e6] {
            let q = quantiser(noise_variance);
            let modulus = Modulus::new(q.modulus_bits(clients).unwrap()).unwrap();
            let mut rng = ChaCha20Rng::seed_from_u64(3);
            let mut sum = RingVector::zeros(modulus, d + 1);
            let update: Vec<f32> = (0..d).map(|i| [-1.0, 0.0, 1.0][i % 3] / 200.0).collect();
            for _ in 0..clients {
                let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
                sum.add_assign(&q.encode(contribution, d, modulus, &mut rng).unwrap()).unwrap();
            }
            let decoded = q.decode(&sum, d, clients).unwrap();
            assert_eq!(decoded.total_weight, 20.0);
            let step = 2.0 / 4095.0;
            let expected = (20.0 * noise_variance).sqrt() * step / 20.0;
            assert!((decoded.noise_deviation / expected - 1.0).abs() < 1e-6);
            let errors: Vec<f64> =
                decoded.mean.iter().zip(&update).map(|(mean, x)| f64::from(*mean) - f64::from(*x)).collect();
            let variance = errors.iter().map(|error| error * error).sum::<f64>() / d as f64;
            // Rounding adds less than a quarter of a squared step a client. The estimate's own deviation is 1 %.
            let rounding = 0.25 * 20.0 * (step / 20.0f64).powi(2);
            assert!(variance > expected * expected * 0.95, "{variance} {expected}");
            assert!(variance < (expected * expected + rounding) * 1.05, "{variance} {expected}");
            assert!(errors.iter().all(|error| error.abs() < 7.0 * expected + decoded.error_bound));
        }
    }

    #[test]
    fn the_modulus_has_room_for_sum_and_noise_and_no_more_bits_than_that() {
        for (variance, clients) in [(0.1, 3), (1e6, 100), (MAX_NOISE_VARIANCE, 1 << 20)] {
            let q = quantiser(variance);
            let margin = Privacy { noise_variance: variance }.margin(clients);
            let whole = u128::from(clients) * 4095 + 2 * u128::from(margin);
            let bits = q.modulus_bits(clients).unwrap();
            assert!(whole < 1 << bits && whole >= 1 << (bits - 1));
            // Ten standard deviations and more.
            assert!(margin as f64 >= 10.0 * (f64::from(clients) * variance).sqrt());
        }
    }

    #[test]
    fn noise_for_an_epsilon_spends_just_that() {
        let sensitivity = Sensitivity::of(&quantiser(1.0), 650).unwrap();
        for (epsilon, rounds) in [(0.5, 1), (4.0, 30), (12.0, 100)] {
            let privacy = Privacy::of_epsilon(epsilon, 1e-5, rounds, sensitivity, 40).unwrap();
            let guarantee = Guarantee { sensitivity, contributions: 40, variance: 40.0 * privacy.noise_variance };
            let spent = Accountant::new().and(&guarantee, rounds).epsilon(1e-5);
            assert!(spent <= epsilon && spent > 0.99 * epsilon, "{spent} of {epsilon}");
        }
        assert_eq!(Privacy::of_epsilon(0.0, 1e-5, 1, sensitivity, 40), None);
    }
}
