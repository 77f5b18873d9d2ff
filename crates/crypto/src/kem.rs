//! X-Wing (draft-connolly-cfrg-xwing-kem; X25519 and ML-KEM-768 of FIPS 203), also with coins that the caller derives from
//! a secret (`docs/protocol.md` section 3).

use std::fmt;

use rand_core::CryptoRng;
use x_wing::{Ciphertext, Decapsulate, Decapsulator, KeyExport};
use zeroize::Zeroizing;

use crate::CryptoError;
use crate::secret::Secret32;

/// Bytes of an encapsulation key.
pub const EK_LEN: usize = x_wing::ENCAPSULATION_KEY_SIZE;
/// Bytes of a ciphertext.
pub const CT_LEN: usize = x_wing::CIPHERTEXT_SIZE;
/// Bytes of the coins of one encapsulation.
pub const COINS_LEN: usize = x_wing::ENCAPSULATION_RANDOMNESS_SIZE;

/// A public key to which secrets are encapsulated.
#[derive(Clone, PartialEq, Eq)]
pub struct EncapsulationKey {
    bytes: Vec<u8>,
    key: x_wing::EncapsulationKey,
}

impl EncapsulationKey {
    /// Reads a key of [`EK_LEN`] bytes.
    ///
    /// # Errors
    /// [`CryptoError::Length`]; [`CryptoError::Encoding`] when the ML-KEM part has an element out of range (FIPS 203, 7.2).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        if bytes.len() != EK_LEN {
            return Err(CryptoError::Length { what: "encapsulation key", expected: EK_LEN, got: bytes.len() });
        }
        let key = x_wing::EncapsulationKey::try_from(bytes).map_err(|_| CryptoError::Encoding("encapsulation key"))?;
        Ok(Self { bytes: bytes.to_vec(), key })
    }

    /// The key's [`EK_LEN`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Encapsulates a fresh secret; returns the ciphertext of [`CT_LEN`] bytes and the secret.
    pub fn encapsulate<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> (Vec<u8>, Secret32) {
        let mut coins = Zeroizing::new([0; COINS_LEN]);
        rng.fill_bytes(coins.as_mut_slice());
        self.encapsulate_with_coins(&coins)
    }

    /// Encapsulates with the given coins: same key and coins, same ciphertext and secret. The coins must be derived from a
    /// uniform secret and serve for one recipient only.
    pub fn encapsulate_with_coins(&self, coins: &[u8; COINS_LEN]) -> (Vec<u8>, Secret32) {
        let (ciphertext, secret) = self.key.encapsulate_deterministic(coins.into());
        (ciphertext.to_vec(), Secret32::from_bytes(secret.0))
    }
}

impl fmt::Debug for EncapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.bytes.iter().take(4).fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        write!(f, "EncapsulationKey({id}..)")
    }
}

/// The secret key. Erased when dropped.
#[derive(Clone)]
pub struct DecapsulationKey(x_wing::DecapsulationKey);

impl DecapsulationKey {
    /// The key pair of a 32-byte seed (the key format of the draft).
    pub fn from_seed(seed: &Secret32) -> Self {
        Self(x_wing::DecapsulationKey::from(*seed.expose()))
    }

    /// A fresh key pair.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self::from_seed(&Secret32::random(rng))
    }

    /// The seed, for storage.
    pub fn seed(&self) -> Secret32 {
        Secret32::from_bytes(*self.0.as_bytes())
    }

    /// The public half.
    pub fn encapsulation_key(&self) -> EncapsulationKey {
        let key = self.0.encapsulation_key().clone();
        EncapsulationKey { bytes: key.to_bytes().to_vec(), key }
    }

    /// The secret in a ciphertext. A ciphertext to another key gives an unrelated secret, not an error (implicit rejection).
    ///
    /// # Errors
    /// [`CryptoError::Length`] unless the ciphertext has [`CT_LEN`] bytes.
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<Secret32, CryptoError> {
        let error = CryptoError::Length { what: "KEM ciphertext", expected: CT_LEN, got: ciphertext.len() };
        let ciphertext = Ciphertext::try_from(ciphertext).map_err(|_| error)?;
        Ok(Secret32::from_bytes(self.0.decapsulate(&ciphertext).0))
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn both_sides_get_one_secret_and_coins_repeat_it() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let key = DecapsulationKey::generate(&mut rng);
        let public = EncapsulationKey::from_bytes(key.encapsulation_key().as_bytes()).unwrap();
        let (ct, secret) = public.encapsulate(&mut rng);
        assert_eq!(ct.len(), CT_LEN);
        assert!(key.decapsulate(&ct).unwrap().ct_eq(&secret));
        let (ct1, one) = public.encapsulate_with_coins(&[5; 64]);
        let (ct2, two) = public.encapsulate_with_coins(&[5; 64]);
        assert!(ct1 == ct2 && one.ct_eq(&two) && ct1 != ct && !one.ct_eq(&secret));
        assert!(DecapsulationKey::from_seed(&key.seed()).decapsulate(&ct1).unwrap().ct_eq(&one));
        assert!(!DecapsulationKey::generate(&mut rng).decapsulate(&ct1).unwrap().ct_eq(&one));
    }

    #[test]
    fn wrong_lengths_and_coefficients_out_of_range_are_refused() {
        let key = DecapsulationKey::from_seed(&Secret32::from_bytes([1; 32]));
        assert!(matches!(key.decapsulate(&[0; 3]), Err(CryptoError::Length { got: 3, .. })));
        assert!(matches!(EncapsulationKey::from_bytes(&[0; EK_LEN + 1]), Err(CryptoError::Length { .. })));
        assert!(matches!(EncapsulationKey::from_bytes(&[0xff; EK_LEN]), Err(CryptoError::Encoding(_))));
    }
}
