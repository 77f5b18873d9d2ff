//! Shamir sharing over the Ristretto scalar field (`docs/protocol.md` section 4; Shamir, CACM 1979).

use std::fmt;

use curve25519_dalek::scalar::Scalar;
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::CryptoError;
use crate::secret::Secret32;

fn random_scalar<R: CryptoRng + ?Sized>(rng: &mut R) -> Scalar {
    let mut wide = Zeroizing::new([0; 64]);
    rng.fill_bytes(wide.as_mut_slice());
    Scalar::from_bytes_mod_order_wide(&wide)
}

fn canonical(bytes: &[u8; 32], what: &'static str) -> Result<Scalar, CryptoError> {
    Option::from(Scalar::from_canonical_bytes(*bytes)).ok_or(CryptoError::Encoding(what))
}

/// A secret scalar: what is shared.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretScalar(Scalar);

impl SecretScalar {
    /// Draws a uniformly random scalar.
    pub fn random<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self(random_scalar(rng))
    }

    /// Reads a canonical scalar, 32 bytes little-endian.
    ///
    /// # Errors
    /// [`CryptoError::Encoding`] when it is not below the group order.
    pub fn from_canonical(bytes: &[u8; 32]) -> Result<Self, CryptoError> {
        canonical(bytes, "secret scalar").map(Self)
    }

    /// The scalar as key material, 32 bytes little-endian.
    pub fn to_secret(&self) -> Secret32 {
        Secret32::from_bytes(self.0.to_bytes())
    }
}

impl fmt::Debug for SecretScalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretScalar(..)")
    }
}

/// One share: the value of the polynomial at a public abscissa.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Share {
    abscissa: u32,
    value: Scalar,
}

impl Share {
    /// Reads a share of 32 bytes for the given abscissa.
    ///
    /// # Errors
    /// [`CryptoError::Encoding`] for a non-canonical value, [`CryptoError::Abscissa`] for abscissa 0.
    pub fn from_bytes(abscissa: u32, value: &[u8; 32]) -> Result<Self, CryptoError> {
        if abscissa == 0 {
            return Err(CryptoError::Abscissa(0));
        }
        Ok(Self { abscissa, value: canonical(value, "share")? })
    }

    /// The public abscissa, 1 or more.
    pub fn abscissa(&self) -> u32 {
        self.abscissa
    }

    /// The secret value, 32 bytes little-endian.
    pub fn value_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.value.to_bytes())
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({}, ..)", self.abscissa)
    }
}

fn check_abscissas(abscissas: &[u32]) -> Result<(), CryptoError> {
    let mut sorted = abscissas.to_vec();
    sorted.sort_unstable();
    if sorted.first() == Some(&0) {
        return Err(CryptoError::Abscissa(0));
    }
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(CryptoError::Abscissa(pair[0])),
        None => Ok(()),
    }
}

/// The product of small numbers, as many of them as 128 bits hold at a time: abscissas have few bits, and a multiplication in
/// the field costs that of a dozen of them.
fn product(factors: impl Iterator<Item = u32>) -> Scalar {
    let (mut product, mut small) = (Scalar::ONE, 1u128);
    for factor in factors {
        small *= u128::from(factor);
        if small.leading_zeros() < 32 {
            product *= Scalar::from(std::mem::replace(&mut small, 1));
        }
    }
    product * Scalar::from(small)
}

/// Splits `secret` into one share for each abscissa; any `threshold` of them rebuild it, fewer say nothing.
///
/// # Errors
/// [`CryptoError::Range`] unless the threshold is 1 to the number of abscissas, [`CryptoError::Abscissa`] for a zero or
/// repeated one.
pub fn split<R: CryptoRng + ?Sized>(
    secret: &SecretScalar,
    threshold: usize,
    abscissas: &[u32],
    rng: &mut R,
) -> Result<Vec<Share>, CryptoError> {
    if threshold == 0 || threshold > abscissas.len() {
        return Err(CryptoError::Range {
            what: "threshold",
            got: threshold as u64,
            min: 1,
            max: abscissas.len() as u64,
        });
    }
    check_abscissas(abscissas)?;
    let higher: Vec<SecretScalar> = (1..threshold).map(|_| SecretScalar::random(rng)).collect();
    let value = |abscissa| {
        let x = Scalar::from(abscissa);
        let tail = higher.iter().rev().fold(Scalar::ZERO, |acc, c| (acc + c.0) * x);
        tail + secret.0
    };
    Ok(abscissas.iter().map(|&abscissa| Share { abscissa, value: value(abscissa) }).collect())
}

/// Lagrange coefficients at 0 for a fixed set of abscissas, to rebuild many secrets.
#[derive(Debug, Clone)]
pub struct Interpolator {
    abscissas: Vec<u32>,
    coefficients: Vec<Scalar>,
}

impl Interpolator {
    /// Computes the coefficients.
    ///
    /// # Errors
    /// [`CryptoError::Abscissa`] for a zero or repeated abscissa, [`CryptoError::Range`] for none.
    pub fn new(abscissas: &[u32]) -> Result<Self, CryptoError> {
        if abscissas.is_empty() {
            return Err(CryptoError::Range { what: "number of shares", got: 0, min: 1, max: u32::MAX.into() });
        }
        check_abscissas(abscissas)?;
        // The coefficient of x_i is the product of all x_j over x_i times the product of all (x_j - x_i): one inversion
        // for all of them (Montgomery's trick; zero is excluded above).
        let all = product(abscissas.iter().copied());
        let denominator = |&xi: &u32| {
            let others = || abscissas.iter().filter(|&&xj| xj != xi);
            let distances = product(std::iter::once(xi).chain(others().map(|xj| xj.abs_diff(xi))));
            if others().filter(|&&xj| xj < xi).count() % 2 == 0 { distances } else { -distances }
        };
        let mut coefficients: Vec<Scalar> = abscissas.iter().map(denominator).collect();
        Scalar::invert_batch_alloc(&mut coefficients);
        coefficients.iter_mut().for_each(|coefficient| *coefficient *= all);
        Ok(Self { abscissas: abscissas.to_vec(), coefficients })
    }

    /// Rebuilds the secret whose polynomial has degree below the number of shares. Whether it is the right one is the
    /// caller's to check: a wrong share gives a wrong secret.
    ///
    /// # Errors
    /// [`CryptoError::Length`] or [`CryptoError::Abscissa`] when the shares' abscissas are not those of this interpolator, in order.
    pub fn reconstruct(&self, shares: &[Share]) -> Result<SecretScalar, CryptoError> {
        if shares.len() != self.abscissas.len() {
            return Err(CryptoError::Length {
                what: "list of shares",
                expected: self.abscissas.len(),
                got: shares.len(),
            });
        }
        if let Some((share, _)) = shares.iter().zip(&self.abscissas).find(|(share, at)| share.abscissa != **at) {
            return Err(CryptoError::Abscissa(share.abscissa));
        }
        Ok(SecretScalar(shares.iter().zip(&self.coefficients).map(|(share, c)| share.value * c).sum()))
    }
}

/// What [`decode`] finds.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The secret.
    pub secret: SecretScalar,
    /// Abscissas of the shares that do not lie on the polynomial.
    pub wrong: Vec<u32>,
}

/// Rebuilds the secret from shares of which up to `(shares.len() - threshold) / 2` are wrong, and says which
/// (Reed-Solomon decoding after Gao, 2003). `None` when no polynomial is that close to the shares.
///
/// # Errors
/// [`CryptoError::Abscissa`] for a zero or repeated abscissa, [`CryptoError::Range`] when there are fewer shares than the
/// threshold or it is 0.
pub fn decode(shares: &[Share], threshold: usize) -> Result<Option<Decoded>, CryptoError> {
    if threshold == 0 || shares.len() < threshold {
        let min = threshold.max(1) as u64;
        return Err(CryptoError::Range {
            what: "number of shares",
            got: shares.len() as u64,
            min,
            max: u32::MAX.into(),
        });
    }
    check_abscissas(&shares.iter().map(Share::abscissa).collect::<Vec<_>>())?;
    let points: Vec<(Scalar, Scalar)> = shares.iter().map(|s| (Scalar::from(s.abscissa), s.value)).collect();

    // Extended Euclid on the product of (x - x_i) and the interpolation, down to the degree that splits them.
    let mut vanishing = Polynomial(vec![Scalar::ONE]);
    let mut interpolation = Polynomial::zero();
    for &(x, y) in &points {
        let factor = (y - interpolation.at(x)) * vanishing.at(x).invert();
        interpolation = interpolation.plus_scaled(&vanishing, factor, 0);
        vanishing = Polynomial(std::iter::once(Scalar::ZERO).chain(vanishing.0.iter().copied()).collect())
            .plus_scaled(&vanishing, -x, 0);
    }
    let (mut high, mut low) = (vanishing, interpolation);
    let (mut v_high, mut v_low) = (Polynomial::zero(), Polynomial(vec![Scalar::ONE]));
    while 2 * low.len() > shares.len() + threshold {
        let (quotient, rest) = high.divide(&low);
        let v_next = quotient.0.iter().enumerate().fold(v_high, |v, (power, &q)| v.plus_scaled(&v_low, -q, power));
        (high, low) = (low, rest);
        (v_high, v_low) = (v_low, v_next);
    }
    let (message, rest) = low.divide(&v_low);
    if rest.len() != 0 || message.len() > threshold {
        return Ok(None);
    }
    let wrong: Vec<u32> =
        shares.iter().zip(&points).filter(|(_, (x, y))| message.at(*x) != *y).map(|(s, _)| s.abscissa).collect();
    // With an odd surplus, the last step may lead to a polynomial of low degree that is one share too far.
    if 2 * wrong.len() > shares.len() - threshold {
        return Ok(None);
    }
    Ok(Some(Decoded { secret: SecretScalar(message.at(Scalar::ZERO)), wrong }))
}

/// Coefficients from the constant upwards, erased when dropped; the leading one is not zero.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Polynomial(Vec<Scalar>);

impl Polynomial {
    fn zero() -> Self {
        Self(Vec::new())
    }

    /// Degree + 1; 0 for the zero polynomial.
    fn len(&self) -> usize {
        self.0.len()
    }

    fn at(&self, x: Scalar) -> Scalar {
        self.0.iter().rev().fold(Scalar::ZERO, |acc, c| acc * x + c)
    }

    /// `self + factor x^power other`.
    fn plus_scaled(&self, other: &Self, factor: Scalar, power: usize) -> Self {
        let mut out = self.clone();
        out.0.resize(self.len().max(other.len() + power), Scalar::ZERO);
        out.0[power..].iter_mut().zip(&other.0).for_each(|(a, b)| *a += factor * b);
        out.trim();
        out
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&Scalar::ZERO) {
            self.0.pop();
        }
    }

    /// Quotient and remainder; `by` is not zero.
    fn divide(&self, by: &Self) -> (Self, Self) {
        let mut rest = self.clone();
        let mut quotient = Self(vec![Scalar::ZERO; (self.len() + 1).saturating_sub(by.len())]);
        let lead = by.0[by.len() - 1].invert();
        while rest.len() >= by.len() {
            let power = rest.len() - by.len();
            let factor = rest.0[rest.len() - 1] * lead;
            quotient.0[power] = factor;
            rest.0[power..].iter_mut().zip(&by.0).for_each(|(a, b)| *a -= factor * b);
            rest.trim();
        }
        quotient.trim();
        (quotient, rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn rebuild(shares: &[Share]) -> SecretScalar {
        let at: Vec<u32> = shares.iter().map(Share::abscissa).collect();
        Interpolator::new(&at).unwrap().reconstruct(shares).unwrap()
    }

    proptest! {
        #[test]
        fn wrong_shares_up_to_half_the_surplus_are_found(
            seed: u64, threshold in 1usize..9, surplus in 0usize..9, wrong in subsequence((0usize..9).collect::<Vec<_>>(), 0..=4),
        ) {
            let n = threshold + surplus;
            let wrong: Vec<usize> = wrong.into_iter().filter(|&i| i < n).take(surplus / 2).collect();
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let secret = SecretScalar::random(&mut rng);
            let abscissas: Vec<u32> = (0..n as u32).map(|i| 3 * i + 1).collect();
            let mut shares = split(&secret, threshold, &abscissas, &mut rng).unwrap();
            for &i in &wrong {
                shares[i].value += Scalar::from(1 + i as u64);
            }
            let decoded = decode(&shares, threshold).unwrap().unwrap();
            prop_assert!(decoded.secret.to_secret().ct_eq(&secret.to_secret()));
            prop_assert_eq!(decoded.wrong, wrong.iter().map(|&i| abscissas[i]).collect::<Vec<_>>());
        }

        #[test]
        fn any_t_shares_rebuild_the_secret(seed: u64, chosen in subsequence((1u32..=12).collect::<Vec<_>>(), 7)) {
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let secret = SecretScalar::random(&mut rng);
            let shares = split(&secret, 7, &(1..=12).collect::<Vec<_>>(), &mut rng).unwrap();
            let some: Vec<Share> = shares.into_iter().filter(|s| chosen.contains(&s.abscissa())).collect();
            prop_assert!(rebuild(&some).to_secret().ct_eq(&secret.to_secret()));
        }

        #[test]
        fn t_minus_one_shares_fit_every_secret(seed: u64) {
            // For any other secret there is a polynomial through the same t - 1 shares: its value at the t-th abscissa
            // follows, and rebuilding from these t gives that secret.
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let shares = split(&SecretScalar::random(&mut rng), 4, &[1, 2, 3, 4], &mut rng).unwrap();
            let other = SecretScalar::random(&mut rng);
            let lagrange = Interpolator::new(&[1, 2, 3, 4]).unwrap();
            let known: Scalar = shares[..3].iter().zip(&lagrange.coefficients).map(|(s, c)| s.value * c).sum();
            let value = (other.0 - known) * lagrange.coefficients[3].invert();
            let forged = [&shares[..3], &[Share { abscissa: 4, value }]].concat();
            prop_assert!(rebuild(&forged).to_secret().ct_eq(&other.to_secret()));
        }
    }

    #[test]
    fn impossible_thresholds_and_abscissas_are_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let secret = SecretScalar::random(&mut rng);
        assert!(matches!(split(&secret, 0, &[1], &mut rng), Err(CryptoError::Range { .. })));
        assert!(matches!(split(&secret, 2, &[1], &mut rng), Err(CryptoError::Range { .. })));
        assert_eq!(split(&secret, 1, &[1, 0], &mut rng).unwrap_err(), CryptoError::Abscissa(0));
        assert_eq!(split(&secret, 1, &[3, 1, 3], &mut rng).unwrap_err(), CryptoError::Abscissa(3));
        assert!(Interpolator::new(&[]).is_err());
        assert!(Share::from_bytes(1, &[255; 32]).is_err());
        assert!(Share::from_bytes(0, &[0; 32]).is_err());
        let shares = split(&secret, 2, &[1, 2], &mut rng).unwrap();
        assert!(Interpolator::new(&[2, 1]).unwrap().reconstruct(&shares).is_err());
        assert!(Interpolator::new(&[1]).unwrap().reconstruct(&shares).is_err());
        assert_eq!(format!("{:?} {secret:?}", shares[0]), "Share(1, ..) SecretScalar(..)");
    }
}
