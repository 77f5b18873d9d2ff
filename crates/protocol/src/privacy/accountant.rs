//! Epsilon over rounds: Rényi differential privacy of the Skellam mechanism, composed, and converted to (epsilon, delta).

use super::{Guarantee, Sensitivity};

/// Orders at which the Rényi divergence is followed. The Skellam mechanism's bound holds for integers.
const ORDERS: [u32; 140] = orders();

const fn orders() -> [u32; 140] {
    let mut orders = [0; 140];
    let mut i = 0;
    while i < 127 {
        orders[i] = i as u32 + 2;
        i += 1;
    }
    let wide = [160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384];
    while i < 140 {
        orders[i] = wide[i - 127];
        i += 1;
    }
    orders
}

/// Bound on the Rényi divergence of integer order `alpha` between sums that differ by one client's contribution, with noise
/// of variance `mu` (Agarwal, Kairouz and Liu 2021, corollary 4.1 with scale 1).
fn skellam(sensitivity: Sensitivity, mu: f64, alpha: u32) -> f64 {
    let Sensitivity { l1, l2 } = sensitivity;
    let (alpha, square) = (f64::from(alpha), l2 * l2);
    let one = ((2.0 * alpha - 1.0) * square + 6.0 * l1) / (4.0 * mu * mu);
    alpha * square / (2.0 * mu) + one.min(1.5 * l1 / mu)
}

/// What rounds have spent for any one client that took part in all of them.
///
/// Divergences of rounds with fresh noise add up, whatever was learned from the rounds before.
#[derive(Debug, Clone, PartialEq)]
pub struct Accountant {
    divergence: Vec<f64>,
}

impl Default for Accountant {
    fn default() -> Self {
        Self::new()
    }
}

impl Accountant {
    /// Length of [`Self::to_bytes`].
    pub const BYTES: usize = 8 * ORDERS.len();

    /// Nothing is spent.
    pub fn new() -> Self {
        Self { divergence: vec![0.0; ORDERS.len()] }
    }

    /// Adds `rounds` rounds with the same guarantee. Divergences stay finite, if only just.
    pub fn add(&mut self, guarantee: &Guarantee, rounds: u64) {
        if rounds == 0 {
            return;
        }
        for (sum, alpha) in self.divergence.iter_mut().zip(ORDERS) {
            // Also where the bound is no number.
            *sum = (*sum + rounds as f64 * skellam(guarantee.sensitivity, guarantee.variance, alpha)).min(f64::MAX);
        }
    }

    /// As [`Self::add`], by value: `spent.clone().and(&guarantee, 1).epsilon(delta)` is what would be spent after one more
    /// round.
    #[must_use]
    pub fn and(mut self, guarantee: &Guarantee, rounds: u64) -> Self {
        self.add(guarantee, rounds);
        self
    }

    /// What is spent, to be kept: the divergence at each order, little-endian doubles.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.divergence.iter().flat_map(|divergence| divergence.to_le_bytes()).collect()
    }

    /// What [`Self::to_bytes`] kept; `None` for anything that it never gives: another length, a divergence that is negative,
    /// infinite, no number, or below the one of a smaller order.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks();
        let divergence: Vec<f64> = numbers.iter().map(|number| f64::from_le_bytes(*number)).collect();
        let good = bytes.len() == Self::BYTES
            && rest.is_empty()
            && divergence.iter().all(|divergence| divergence.is_finite() && divergence.is_sign_positive())
            && divergence.is_sorted();
        good.then_some(Self { divergence })
    }

    /// Smallest epsilon that the rounds are known to satisfy at `delta` (Canonne, Kamath and Steinke 2020, proposition 12).
    /// Infinite unless `delta` is above 0 and below 1.
    pub fn epsilon(&self, delta: f64) -> f64 {
        if !(delta > 0.0 && delta < 1.0) {
            return f64::INFINITY;
        }
        let at = |(&divergence, alpha): (&f64, u32)| {
            let alpha = f64::from(alpha);
            divergence + (-1.0 / alpha).ln_1p() - (delta.ln() + alpha.ln()) / (alpha - 1.0)
        };
        let least = self.divergence.iter().zip(ORDERS).map(at).fold(f64::INFINITY, f64::min);
        if self.divergence.iter().all(|&divergence| divergence == 0.0) { 0.0 } else { least.max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a fine scale and an L1 norm no larger than the L2 norm, the Skellam mechanism is the Gaussian one.
    fn nearly_gaussian(multiplier: f64) -> Guarantee {
        let sensitivity = Sensitivity { l1: 1e9, l2: 1e9 };
        Guarantee { sensitivity, contributions: 1, variance: (multiplier * 1e9).powi(2) }
    }

    #[test]
    fn epsilon_agrees_with_dp_accounting_for_gaussian_noise() {
        // pip install dp-accounting==0.6.0
        // import dp_accounting as dp
        // from dp_accounting.rdp import RdpAccountant
        // orders = list(range(2, 129)) + [160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384]
        // RdpAccountant(orders).compose(dp.GaussianDpEvent(z), rounds).get_epsilon(delta)
        for (multiplier, rounds, delta, expected) in ORACLE {
            let epsilon = Accountant::new().and(&nearly_gaussian(multiplier), rounds).epsilon(delta);
            assert!(
                (epsilon / expected - 1.0).abs() < 1e-6,
                "{multiplier} {rounds} {delta}: {epsilon}, not {expected}"
            );
        }
    }

    /// Noise multiplier, rounds, delta, epsilon.
    const ORACLE: [(f64, u64, f64, f64); 6] = [
        (0.5, 1, 1e-5, 10.801691480042894),
        (1.0, 1, 1e-5, 4.752728336819822),
        (1.0, 100, 1e-6, 112.42921619684438),
        (4.0, 50, 1e-5, 9.337861628831664),
        (20.0, 1000, 1e-7, 9.622918357494363),
        (100.0, 1, 1e-5, 0.030878271471249316),
    ];

    /// log P[X = k] of a Skellam variable of variance `mu`, for k from 0 to `reach`, by summation in logarithms.
    fn log_mass(mu: f64, reach: usize) -> Vec<f64> {
        let half = mu / 2.0;
        let count = reach + (half + 60.0 * half.sqrt() + 100.0) as usize;
        let mut log = vec![-half];
        (1..count).for_each(|k| log.push(log[k - 1] + (half / k as f64).ln()));
        let at = |k: usize| {
            let terms: Vec<f64> = log[k..].iter().zip(&log).map(|(a, b)| a + b).collect();
            log_sum(&terms)
        };
        (0..=reach).map(at).collect()
    }

    fn log_sum(terms: &[f64]) -> f64 {
        let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + terms.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
    }

    /// The Rényi divergence between a Skellam variable shifted by `shift` and itself, by direct summation.
    fn exact(mu: f64, shift: i64, alpha: u32) -> f64 {
        let reach = (12.0 * mu.sqrt() + 3.0 * f64::from(alpha) * shift as f64 + 60.0) as i64;
        let log = log_mass(mu, (reach + shift) as usize);
        let at = |k: i64| log[k.unsigned_abs() as usize];
        let alpha = f64::from(alpha);
        let terms: Vec<f64> = (-reach..=reach).map(|k| alpha * at(k - shift) + (1.0 - alpha) * at(k)).collect();
        log_sum(&terms) / (alpha - 1.0)
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many numbers are summed")]
    fn the_bound_holds_for_the_exact_divergence_and_is_close_to_it() {
        for (mu, shift) in [(4.0, 1), (30.0, 1), (30.0, 4), (400.0, 1), (400.0, 20), (2000.0, 30)] {
            for alpha in [2, 3, 8, 20] {
                let sensitivity = Sensitivity { l1: shift as f64, l2: shift as f64 };
                let (exact, bound) = (exact(mu, shift, alpha), skellam(sensitivity, mu, alpha));
                assert!(exact <= bound, "variance {mu}, shift {shift}, order {alpha}: {exact} above {bound}");
                // Where the noise is wide beside the shift, as in practice, the bound is all but the divergence.
                if f64::from(alpha) * shift as f64 <= mu / 5.0 {
                    assert!(
                        exact >= 0.9 * bound,
                        "variance {mu}, shift {shift}, order {alpha}: {exact} far below {bound}"
                    );
                }
            }
        }
    }

    #[test]
    fn rounds_add_up_and_a_senseless_delta_gives_no_guarantee() {
        let guarantee = nearly_gaussian(2.0);
        let one_by_one = (0..10).fold(Accountant::new(), |sum, _| sum.and(&guarantee, 1));
        let at_once = Accountant::new().and(&guarantee, 10);
        assert!((one_by_one.epsilon(1e-6) - at_once.epsilon(1e-6)).abs() < 1e-9);
        assert!(at_once.epsilon(1e-6) > guarantee.epsilon(1e-6));
        assert_eq!(Accountant::new().epsilon(1e-6), 0.0);
        for delta in [0.0, 1.0, -1.0, f64::NAN] {
            assert_eq!(at_once.epsilon(delta), f64::INFINITY);
        }
    }

    #[test]
    fn an_account_that_was_kept_goes_on_and_a_damaged_one_is_none() {
        let guarantee = nearly_gaussian(2.0);
        let spent = Accountant::new().and(&guarantee, 3);
        let bytes = spent.to_bytes();
        assert_eq!(bytes.len(), Accountant::BYTES);
        let kept = Accountant::from_bytes(&bytes).unwrap();
        assert_eq!(kept, spent);
        assert_eq!(kept.and(&guarantee, 4), spent.clone().and(&guarantee, 4));
        assert_eq!(Accountant::from_bytes(&Accountant::new().to_bytes()), Some(Accountant::new()));
        // The orders are part of the format: the first and the last divergence are those of 2 and 16384.
        let at = |i: usize| f64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
        assert!((at(0) / (3.0 * 2.0 / 8.0) - 1.0).abs() < 1e-6 && (at(139) / (3.0 * 16384.0 / 8.0) - 1.0).abs() < 1e-6);
        let with = |i: usize, number: f64| {
            let mut bytes = bytes.clone();
            bytes[8 * i..8 * i + 8].copy_from_slice(&number.to_le_bytes());
            Accountant::from_bytes(&bytes)
        };
        assert_eq!(with(5, at(5)), Some(spent));
        for (i, number) in [(0, -1.0), (0, -0.0), (3, f64::NAN), (139, f64::INFINITY), (7, 0.0), (7, at(9))] {
            assert_eq!(with(i, number), None, "{number} at {i}");
        }
        for wrong in [&[][..], &bytes[8..], &bytes[1..], &[&bytes[..], &[0]].concat(), &[&bytes[..], &[0; 8]].concat()]
        {
            assert_eq!(Accountant::from_bytes(wrong), None);
        }
    }

    #[test]
    fn a_round_that_spends_beyond_all_numbers_can_be_kept_and_is_within_no_limit() {
        let guarantee = nearly_gaussian(1.0);
        for variance in [0.0, f64::from_bits(1), f64::NAN] {
            let spent = Accountant::new().and(&Guarantee { variance, ..guarantee }, 1).and(&guarantee, 2);
            assert!(spent.epsilon(1e-5) > 1e300, "{variance}");
            assert_eq!(Accountant::from_bytes(&spent.to_bytes()), Some(spent));
        }
        assert_eq!(Accountant::new().and(&Guarantee { variance: 0.0, ..guarantee }, 0), Accountant::new());
    }
}
