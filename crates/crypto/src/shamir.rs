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
        let points: Vec<Scalar> = abscissas.iter().map(|&x| Scalar::from(x)).collect();
        let coefficient = |(i, xi): (usize, &Scalar)| {
            let others = points.iter().enumerate().filter(|&(j, _)| j != i);
            let (up, down) = others.fold((Scalar::ONE, Scalar::ONE), |(up, down), (_, xj)| (up * xj, down * (xj - xi)));
            up * down.invert()
        };
        let coefficients = points.iter().enumerate().map(coefficient).collect();
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
