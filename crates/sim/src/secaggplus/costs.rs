//! What single operations of SecAgg+ cost on this machine, measured on one thread.
//!
//! X25519, AEAD and Shamir sharing are the implementations that unisono itself uses. Masks are expanded as is usual: ChaCha20
//! of `rand_chacha` into a buffer, which is then added; unisono's own masking, which does both at once, is not SecAgg+'s.

use std::hint::black_box;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::Serialize;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, Interpolator, SecretScalar};
use unisono_crypto::{CryptoError, aead, x25519};

use super::counts::{Operations, SHARES_LEN, Shape};
use crate::cpu::{Of, measure};

/// Batches of calls that are timed; the middle one counts.
const BATCHES: usize = 5;
/// CPU seconds that a batch takes at least.
const BATCH_SECONDS: f64 = 4e-3;
/// Longest vector that is expanded to learn what an element costs.
const LONGEST: u64 = 1 << 22;
/// Bytes of random numbers that are made at a time: they stay in the first-level cache.
const BUFFER: usize = 8192;

/// CPU seconds of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Costs {
    /// Making a key pair (X25519).
    pub key_pair: f64,
    /// A key agreement (X25519).
    pub agreement: f64,
    /// Splitting a secret into k shares with threshold t.
    pub split: f64,
    /// Encrypting a pair of shares (ChaCha20-Poly1305).
    pub seal: f64,
    /// Decrypting one.
    pub open: f64,
    /// Rebuilding a secret from t shares, coefficients included.
    pub rebuild: f64,
    /// Expanding one element of a mask and adding it.
    pub expansion_element: f64,
    /// Adding one element of a vector.
    pub addition_element: f64,
}

/// CPU seconds of one call.
fn seconds(mut work: impl FnMut()) -> f64 {
    let timed = |work: &mut dyn FnMut(), calls: u32| {
        let mut total = 0.0;
        measure(Of::Thread, &mut total, || (0..calls).for_each(|_| work()));
        total
    };
    let mut calls = 1;
    while timed(&mut work, calls) < BATCH_SECONDS && calls < 1 << 20 {
        calls *= 2;
    }
    let mut batches: Vec<f64> = (0..BATCHES).map(|_| timed(&mut work, calls) / f64::from(calls)).collect();
    batches.sort_unstable_by(f64::total_cmp);
    batches[BATCHES / 2]
}

/// A word of a masked vector.
trait Word: Copy + Default {
    /// Adds one buffer's words, as many as `acc` has.
    fn add(acc: &mut [Self], bytes: &[u8]);
}

macro_rules! word {
    ($type:ty) => {
        impl Word for $type {
            fn add(acc: &mut [Self], bytes: &[u8]) {
                let words = bytes.as_chunks().0.iter().map(|word| <$type>::from_le_bytes(*word));
                acc.iter_mut().zip(words).for_each(|(x, y)| *x = x.wrapping_add(y));
            }
        }
    };
}
word!(u32);
word!(u64);

/// Seconds of one element: of an expansion, and of an addition.
fn elements<W: Word>(count: usize) -> (f64, f64) {
    let mut acc = vec![W::default(); count];
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    let mut buffer = [0u8; BUFFER];
    let expansion = seconds(|| {
        for chunk in acc.chunks_mut(BUFFER / size_of::<W>()) {
            let bytes = &mut buffer[..size_of_val(chunk)];
            rng.fill_bytes(bytes);
            W::add(chunk, bytes);
        }
        black_box(&mut acc);
    });
    let other = vec![1u8; count * size_of::<W>()];
    let addition = seconds(|| {
        W::add(&mut acc, black_box(&other));
        black_box(&mut acc);
    });
    (expansion / count as f64, addition / count as f64)
}

impl Costs {
    /// Measures every operation for the shape's degree, threshold, dimension and width of elements.
    ///
    /// # Errors
    /// [`CryptoError`] when the threshold is 0 or above the degree.
    pub fn measure(shape: &Shape) -> Result<Self, CryptoError> {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let (mut secret, mut other) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut secret);
        rng.fill_bytes(&mut other);
        let public = x25519::public_key(&other);

        let key = Secret32::from_bytes(secret);
        let plaintext = [5; SHARES_LEN as usize];
        let sealed = aead::seal(&key, &[], &plaintext)?;

        // Abscissas as far apart as neighbours' numbers are.
        let step = (shape.clients / shape.degree.max(1)).max(1);
        let abscissas: Vec<u32> = (0..shape.degree).map(|i| 1 + i * step).collect();
        let threshold = shape.threshold as usize;
        let scalar = SecretScalar::random(&mut rng);
        let shares = shamir::split(&scalar, threshold, &abscissas, &mut rng)?;
        let holders = &abscissas[..threshold];

        let count = shape.dimension.clamp(1, LONGEST) as usize;
        let (expansion_element, addition_element) =
            if shape.element_bits <= 32 { elements::<u32>(count) } else { elements::<u64>(count) };
        Ok(Self {
            key_pair: seconds(|| _ = black_box(x25519::public_key(black_box(&secret)))),
            agreement: seconds(|| drop(black_box(x25519::diffie_hellman(black_box(&secret), &public)))),
            split: seconds(|| drop(black_box(shamir::split(black_box(&scalar), threshold, &abscissas, &mut rng)))),
            seal: seconds(|| drop(black_box(aead::seal(black_box(&key), &[], &plaintext)))),
            open: seconds(|| drop(black_box(aead::open(black_box(&key), &[], &sealed)))),
            rebuild: seconds(|| {
                let interpolator = Interpolator::new(black_box(holders));
                drop(black_box(interpolator.and_then(|all| all.reconstruct(&shares[..threshold]))));
            }),
            expansion_element,
            addition_element,
        })
    }

    /// CPU seconds of some operations on vectors of `dimension` elements.
    pub fn of(&self, operations: &Operations, dimension: u64) -> f64 {
        let Operations { key_pairs, agreements, splits, seals, opens, rebuilds, expansions, additions } = *operations;
        let vectors = expansions * self.expansion_element + additions * self.addition_element;
        key_pairs * self.key_pair
            + agreements * self.agreement
            + splits * self.split
            + seals * self.seal
            + opens * self.open
            + rebuilds * self.rebuild
            + vectors * dimension as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        key_pair: 1e0,
        agreement: 1e1,
        split: 1e2,
        seal: 1e3,
        open: 1e4,
        rebuild: 1e5,
        expansion_element: 1e6,
        addition_element: 1e9,
    };

    #[test]
    fn every_operation_costs_its_own_price_and_vectors_that_of_each_element() {
        let operations = Operations {
            key_pairs: 1.0,
            agreements: 2.0,
            splits: 3.0,
            seals: 4.0,
            opens: 5.0,
            rebuilds: 6.0,
            expansions: 7.0,
            additions: 8.0,
        };
        assert_eq!(COSTS.of(&operations, 1), 8_007_654_321.0);
        assert_eq!(COSTS.of(&operations, 10), 80_070_654_321.0);
    }

    #[test]
    fn every_operation_is_measured_for_narrow_and_wide_elements_and_an_impossible_threshold_refused() {
        let shape = Shape { clients: 20, survivors: 20, degree: 4, threshold: 2, dimension: 100, element_bits: 20 };
        for element_bits in [20, 40] {
            let costs = Costs::measure(&Shape { element_bits, ..shape }).unwrap();
            let Costs { key_pair, agreement, split, seal, open, rebuild, expansion_element, addition_element } = costs;
            let all = [key_pair, agreement, split, seal, open, rebuild, expansion_element, addition_element];
            assert!(all.iter().all(|cost| *cost > 0.0 && cost.is_finite()), "{costs:?}");
        }
        assert!(Costs::measure(&Shape { threshold: 5, ..shape }).is_err());
    }
}
