//! Skellam noise: the difference of two Poisson variables, which are drawn exactly (see [`poisson`]).
//!
//! The statistical distance of an element's noise from the Skellam distribution is at most 2^-141, that of a vector of 2^32
//! elements at most 2^-109, if the words are uniform. They come from the PRG of the masks, with a seed of the device's
//! generator; seed and words are erased after use. (Numbers on the stack and in registers are not.)

mod poisson;
mod wide;

use unisono_crypto::CryptoError;
use unisono_crypto::kdf::{derive_secret, label};
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::secret::Secret32;
use zeroize::{Zeroize, Zeroizing};

use poisson::{Poisson, Words};

/// Independent Skellam variables of mean 0.
pub(super) struct Skellam {
    half: Poisson,
    seed: Secret32,
}

impl Skellam {
    /// Of the given variance.
    ///
    /// # Errors
    /// [`CryptoError::Range`] unless the variance is above 0 and at most [`super::MAX_NOISE_VARIANCE`].
    pub fn new(variance: f64, seed: Secret32) -> Result<Self, CryptoError> {
        let max = super::MAX_NOISE_VARIANCE;
        if !(variance > 0.0 && variance <= max) {
            return Err(CryptoError::Range { what: "noise variance", got: variance as u64, min: 1, max: max as u64 });
        }
        Ok(Self { half: Poisson::half(variance), seed })
    }

    /// Fills `out` with the variables of stream `stream`: different streams are independent.
    ///
    /// # Errors
    /// [`CryptoError`] when the PRG has no such backend.
    pub fn fill(&self, stream: u64, out: &mut [i64]) -> Result<(), CryptoError> {
        let mut words = PrgWords::new(&self.seed, stream);
        pulp::Arch::new().dispatch(|| {
            for x in out {
                *x = self.half.draw(&mut words)? - self.half.draw(&mut words)?;
            }
            Ok(())
        })
    }
}

/// Words drawn at a time.
const WORDS: usize = 512;

/// The words of one stream, in order.
struct PrgWords {
    seed: Seed,
    drawn: u64,
    words: Zeroizing<[u64; WORDS]>,
    left: usize,
}

impl PrgWords {
    fn new(seed: &Secret32, stream: u64) -> Self {
        let seed = derive_secret(label::NOISE, seed.expose(), &[&stream.to_le_bytes()]);
        Self { seed: Seed::from_secret(&seed), drawn: 0, words: Zeroizing::new([0; WORDS]), left: 0 }
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> Result<(), CryptoError> {
        self.words.zeroize();
        prg::apply(&self.seed, self.drawn, Sign::Add, self.words.as_mut_slice())?;
        (self.drawn, self.left) = (self.drawn + WORDS as u64, WORDS);
        Ok(())
    }
}

impl Words for PrgWords {
    #[inline(always)]
    fn word(&mut self) -> Result<u64, CryptoError> {
        if self.left == 0 {
            self.refill()?;
        }
        self.left -= 1;
        Ok(self.words[WORDS - 1 - self.left])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(variance: f64, count: usize) -> Vec<i64> {
        let noise = Skellam::new(variance, Secret32::from_bytes([7; 32])).unwrap();
        let mut out = vec![0; count];
        out.chunks_mut(8192).enumerate().for_each(|(i, chunk)| noise.fill(i as u64, chunk).unwrap());
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

    /// How far the frequencies of `draws` are from Skellam variables' of variance `mu`, as standard deviations of a
    /// chi-square variable.
    fn misfit(draws: impl Iterator<Item = i64>, mu: f64) -> f64 {
        let reach = (4.0 * mu.sqrt()).ceil() as i64 + 2;
        let mass = mass(mu, reach);
        // The last is for all that is further out.
        let mut counts = vec![0u32; mass.len() + 1];
        draws.for_each(|x| counts[if x.abs() <= reach { (x + reach) as usize } else { mass.len() }] += 1);
        let n = f64::from(counts.iter().sum::<u32>());
        let outside = 1.0 - mass.iter().sum::<f64>();
        // Values that are too seldom are counted together.
        let (mut terms, mut freedom, mut rest) = (0.0, -1.0, (0.0, 0.0));
        let mut term = |count: f64, expected: f64| {
            terms += (count - expected).powi(2) / expected;
            freedom += 1.0;
        };
        for (&count, p) in counts.iter().zip(mass.iter().chain([&outside])) {
            let (count, expected) = (f64::from(count), p * n);
            if expected >= 5.0 { term(count, expected) } else { rest = (rest.0 + count, rest.1 + expected) }
        }
        if rest.1 >= 1.0 {
            term(rest.0, rest.1);
        }
        (terms - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn moments_are_a_skellam_variables_for_small_and_large_variances() {
        let n = 400_000;
        for mu in [0.02f64, 0.3, 1.0, 30.0, 2047.0, 2048.0, 1e4, 1e9, 1.1e12, 2.8e14, super::super::MAX_NOISE_VARIANCE]
        {
            let draws = draws(mu, n);
            let moment = |power: i32| draws.iter().map(|&x| (x as f64).powi(power)).sum::<f64>() / n as f64;
            // Deviation of each estimate: sqrt of the next even moment over n. Fourth moment of a Skellam: mu + 3 mu^2.
            let (second, fourth) = (mu, mu + 3.0 * mu * mu);
            assert!(moment(1).abs() < 5.0 * (second / n as f64).sqrt(), "mean of {mu}: {}", moment(1));
            let spread = ((fourth - second * second) / n as f64).sqrt();
            assert!((moment(2) - second).abs() < 5.0 * spread, "variance of {mu}: {}", moment(2));
            let eighth = mu + 63.0 * mu.powi(2) + 210.0 * mu.powi(3) + 105.0 * mu.powi(4);
            let spread = ((eighth - fourth * fourth) / n as f64).sqrt();
            assert!((moment(4) - fourth).abs() < 5.0 * spread, "fourth moment of {mu}: {}", moment(4));
            // Neighbours have nothing to do with each other.
            let product = draws.windows(2).map(|x| x[0] as f64 * x[1] as f64).sum::<f64>() / n as f64;
            assert!(product.abs() < 5.0 * mu / (n as f64).sqrt(), "covariance of {mu}: {product}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn frequencies_fit_the_distribution() {
        // The method changes at 2048.
        for mu in [0.3f64, 1.0, 10.0, 90.0, 1000.0, 2040.0, 2048.0, 2060.5, 9000.0] {
            let misfit = misfit(draws(mu, 400_000).into_iter(), mu);
            assert!(misfit.abs() < 5.0, "{mu}: {misfit} deviations");
        }
        // A variance that is wrong by 2 % would be noticed.
        assert!(misfit(draws(10.0, 400_000).into_iter(), 10.2) > 5.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics take too many draws")]
    fn a_sum_of_variables_is_one_of_the_sum_of_variances() {
        for (mu, m) in [(0.06f64, 5), (0.7, 5), (30.0, 4), (1500.0, 2), (2100.0, 3)] {
            let draws = draws(mu, 200_000 * m);
            let misfit = misfit(draws.chunks(m).map(|several| several.iter().sum()), mu * m as f64);
            assert!(misfit.abs() < 5.0, "{m} of {mu}: {misfit} deviations");
        }
    }

    #[test]
    fn the_smallest_variance_is_no_noise() {
        assert!(draws(f64::from_bits(1), 100).iter().all(|x| *x == 0));
        assert!(draws(1e-30, 100).iter().all(|x| *x == 0));
    }

    #[test]
    fn streams_differ_and_repeat() {
        let noise = Skellam::new(100.0, Secret32::from_bytes([1; 32])).unwrap();
        let fill = |stream| {
            let mut out = [0; 64];
            noise.fill(stream, &mut out).unwrap();
            out
        };
        assert_eq!(fill(3), fill(3));
        assert_ne!(fill(3), fill(4));
        assert!(Skellam::new(0.0, Secret32::from_bytes([1; 32])).is_err());
        assert!(Skellam::new(f64::NAN, Secret32::from_bytes([1; 32])).is_err());
    }
}
