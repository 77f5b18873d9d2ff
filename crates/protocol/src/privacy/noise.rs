//! Skellam noise: the difference of two Poisson variables, from a generator seeded by the device's.
//!
//! Poisson variables come from `rand_distr` in floating-point: multiplication of uniforms for means below 12, else the
//! rejection method of Ahrens and Dieter (1982), whose probabilities are right to about nine digits. They are not the exact
//! distribution that the accountant assumes.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Poisson};
use unisono_crypto::CryptoError;
use unisono_crypto::secret::Secret32;

/// Independent Skellam variables of mean 0.
pub(super) struct Skellam {
    half: Poisson<f64>,
    seed: Secret32,
}

impl Skellam {
    /// Of the given variance.
    ///
    /// # Errors
    /// [`CryptoError::Range`] unless the variance is above 0 and at most [`super::MAX_NOISE_VARIANCE`].
    pub fn new(variance: f64, seed: &Secret32) -> Result<Self, CryptoError> {
        let max = super::MAX_NOISE_VARIANCE;
        let refused = CryptoError::Range { what: "noise variance", got: variance as u64, min: 1, max: max as u64 };
        if !(variance > 0.0 && variance <= max) {
            return Err(refused);
        }
        let half = Poisson::new(variance / 2.0).map_err(|_| refused)?;
        Ok(Self { half, seed: seed.clone() })
    }

    /// Fills `out` with the variables of stream `stream`: different streams are independent.
    pub fn fill(&self, stream: u64, out: &mut [i64]) {
        let mut rng = ChaCha20Rng::from_seed(*self.seed.expose());
        rng.set_stream(stream);
        let mut draw = || self.half.sample(&mut rng) as i64;
        out.iter_mut().for_each(|x| *x = draw() - draw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(variance: f64, count: usize) -> Vec<i64> {
        let noise = Skellam::new(variance, &Secret32::from_bytes([7; 32])).unwrap();
        let mut out = vec![0; count];
        out.chunks_mut(8192).enumerate().for_each(|(i, chunk)| noise.fill(i as u64, chunk));
        out
    }

    /// P[X = k] of a Skellam variable of variance `mu`, for k from `-reach` to `reach`, by convolution.
    fn mass(mu: f64, reach: i64) -> Vec<f64> {
        let half = mu / 2.0;
        let count = (half + 40.0 * half.sqrt() + 60.0) as usize;
        let mut log = -half;
        let poisson: Vec<f64> = (0..count)
            .map(|k| {
                let p = log.exp();
                log += half.ln() - ((k + 1) as f64).ln();
                p
            })
            .collect();
        let at = |k: i64| -> f64 {
            let k = k.unsigned_abs() as usize;
            poisson.iter().skip(k).zip(&poisson).map(|(a, b)| a * b).sum()
        };
        (-reach..=reach).map(at).collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn moments_are_a_skellam_variables_for_small_and_large_variances() {
        let n = 400_000;
        for mu in [0.02f64, 1.0, 30.0, 1e4, 1e9, 2.8e14] {
            let draws = draws(mu, n);
            let moment = |power: i32| draws.iter().map(|&x| (x as f64).powi(power)).sum::<f64>() / n as f64;
            // Deviation of each estimate: sqrt of the next even moment over n. Fourth moment of a Skellam: mu + 3 mu^2.
            let (second, fourth) = (mu, mu + 3.0 * mu * mu);
            assert!(moment(1).abs() < 5.0 * (second / n as f64).sqrt(), "mean of {mu}: {}", moment(1));
            let spread = ((fourth - second * second) / n as f64).sqrt();
            assert!((moment(2) - second).abs() < 5.0 * spread, "variance of {mu}: {}", moment(2));
            let eighth = (105.0 * mu.powi(4)).max(mu) + 2000.0 * mu + 500.0 * mu * mu + 500.0 * mu.powi(3);
            let spread = (eighth / n as f64).sqrt();
            assert!((moment(4) - fourth).abs() < 5.0 * spread, "fourth moment of {mu}: {}", moment(4));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn frequencies_fit_the_distribution() {
        // Below and above the mean at which the sampler's method changes, 24 in terms of the variance.
        for mu in [0.5f64, 10.0, 23.0, 25.0, 90.0, 2000.0] {
            let n = 400_000;
            let reach = (4.0 * mu.sqrt()).ceil() as i64;
            let mass = mass(mu, reach);
            let mut counts = vec![0u32; mass.len()];
            for x in draws(mu, n).into_iter().filter(|x| x.abs() <= reach) {
                counts[(x + reach) as usize] += 1;
            }
            let terms: Vec<f64> = counts
                .iter()
                .zip(&mass)
                .map(|(&count, p)| (f64::from(count), p * n as f64))
                .filter(|(_, expected)| *expected >= 5.0)
                .map(|(count, expected)| (count - expected).powi(2) / expected)
                .collect();
            let (statistic, freedom) = (terms.iter().sum::<f64>(), terms.len() as f64);
            // Five deviations of a chi-square variable.
            assert!((statistic - freedom).abs() < 5.0 * (2.0 * freedom).sqrt() + 3.0, "{mu}: {statistic} of {freedom}");
        }
    }

    #[test]
    fn streams_differ_and_repeat() {
        let noise = Skellam::new(100.0, &Secret32::from_bytes([1; 32])).unwrap();
        let fill = |stream| {
            let mut out = [0; 64];
            noise.fill(stream, &mut out);
            out
        };
        assert_eq!(fill(3), fill(3));
        assert_ne!(fill(3), fill(4));
        assert!(Skellam::new(0.0, &Secret32::from_bytes([1; 32])).is_err());
        assert!(Skellam::new(f64::NAN, &Secret32::from_bytes([1; 32])).is_err());
    }
}
