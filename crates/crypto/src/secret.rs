//! A 32-byte secret: zeroized when dropped, compared in constant time, never printed.

use std::fmt;

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 secret bytes: a key, a seed or a shared secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret32([u8; 32]);

impl Secret32 {
    /// Takes ownership of secret bytes. The caller's copy is the caller's to erase.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws 32 uniformly random bytes.
    pub fn random<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut secret = Self([0; 32]);
        rng.fill_bytes(&mut secret.0);
        secret
    }

    /// The secret bytes, for use as key material.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Equality in constant time.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_by_value_and_never_printed() {
        let secret = Secret32::from_bytes([7; 32]);
        assert!(secret.ct_eq(&Secret32::from_bytes([7; 32])));
        assert!(!secret.ct_eq(&Secret32::from_bytes([8; 32])));
        assert_eq!(format!("{secret:?}"), "Secret32(..)");
    }
}
