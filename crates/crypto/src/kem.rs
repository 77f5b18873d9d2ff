//! X-Wing (draft-connolly-cfrg-xwing-kem; X25519 and ML-KEM-768 of FIPS 203), also with coins that the caller derives from
//! a secret (`docs/protocol.md` section 3).
//!
//! The combination is written out here over vectorised ML-KEM and X25519, because a decapsulation key is used many times a
//! round and is kept expanded. The draft's vectors and the `x-wing` crate hold it to X-Wing's bytes.

use std::fmt;

use rand_core::CryptoRng;
use sha3::{Digest, Sha3_256};
use shake::{ExtendableOutput, Shake256, Update, XofReader};
use zeroize::Zeroizing;

use crate::secret::Secret32;
use crate::{CryptoError, ml_kem, x25519};

/// Bytes of an encapsulation key: ML-KEM-768, then X25519.
pub const EK_LEN: usize = ml_kem::EK_LEN + 32;
/// Bytes of a ciphertext: ML-KEM-768, then X25519.
pub const CT_LEN: usize = ml_kem::CT_LEN + 32;
/// Bytes of the coins of one encapsulation: ML-KEM's, then X25519's.
pub const COINS_LEN: usize = 64;

/// The draft's combiner: SHA3-256 over both secrets, the X25519 ciphertext and key, and the label.
fn combine(ml: &[u8; 32], x: &[u8; 32], x_ct: &[u8; 32], x_key: &[u8; 32]) -> Secret32 {
    let mut hasher = Sha3_256::new();
    for part in [ml.as_slice(), x, x_ct, x_key, br"\.//^\"] {
        Digest::update(&mut hasher, part);
    }
    Secret32::from_bytes(hasher.finalize().into())
}

/// A public key to which secrets are encapsulated.
#[derive(Clone, PartialEq, Eq)]
pub struct EncapsulationKey(Box<[u8; EK_LEN]>);

impl EncapsulationKey {
    /// Reads a key of [`EK_LEN`] bytes.
    ///
    /// # Errors
    /// [`CryptoError::Length`]; [`CryptoError::Encoding`] when the ML-KEM part has an element out of range (FIPS 203, 7.2).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let length = CryptoError::Length { what: "encapsulation key", expected: EK_LEN, got: bytes.len() };
        let key = Self(Box::new(bytes.try_into().map_err(|_| length)?));
        if ml_kem::is_valid(key.parts().0) { Ok(key) } else { Err(CryptoError::Encoding("encapsulation key")) }
    }

    /// ML-KEM's key and X25519's.
    fn parts(&self) -> (&[u8; ml_kem::EK_LEN], &[u8; 32]) {
        const SPLIT: &str = "an encapsulation key is one of ML-KEM and 32 bytes";
        let (ml, x) = self.0.split_first_chunk().expect(SPLIT);
        (ml, x.try_into().expect(SPLIT))
    }

    /// The key's [`EK_LEN`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
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
        let mut ml_coins = Zeroizing::new([0; 32]);
        let mut x_coins = Zeroizing::new([0; 32]);
        ml_coins.copy_from_slice(&coins[..32]);
        x_coins.copy_from_slice(&coins[32..]);
        let (ml_key, x_key) = self.parts();
        let (ml_ct, ml_secret) = ml_kem::encapsulate(ml_key, &ml_coins);
        let x_ct = x25519::public_key(&x_coins);
        let x_secret = x25519::diffie_hellman(&x_coins, x_key);
        let secret = combine(&ml_secret, &x_secret, &x_ct, x_key);
        ([ml_ct.as_slice(), x_ct.as_slice()].concat(), secret)
    }
}

impl fmt::Debug for EncapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.iter().take(4).fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        write!(f, "EncapsulationKey({id}..)")
    }
}

/// The secret key, expanded once. Erased when dropped.
#[derive(Clone)]
pub struct DecapsulationKey {
    seed: Secret32,
    ml: ml_kem::DecapsulationKey,
    x: Secret32,
    public: EncapsulationKey,
}

impl DecapsulationKey {
    /// The key pair of a 32-byte seed (the key format of the draft).
    pub fn from_seed(seed: &Secret32) -> Self {
        let mut expanded = Zeroizing::new([0u8; 96]);
        let mut shake = Shake256::default();
        shake.update(seed.expose());
        shake.finalize_xof().read(expanded.as_mut_slice());
        let mut ml_seed = Zeroizing::new([0; 64]);
        let mut x_seed = Zeroizing::new([0; 32]);
        ml_seed.copy_from_slice(&expanded[..64]);
        x_seed.copy_from_slice(&expanded[64..]);
        let x = Secret32::from_bytes(*x_seed);
        let ml = ml_kem::DecapsulationKey::from_seed(&ml_seed);
        let mut public = Box::new([0; EK_LEN]);
        public[..ml_kem::EK_LEN].copy_from_slice(&ml.encapsulation_key());
        public[ml_kem::EK_LEN..].copy_from_slice(&x25519::public_key(x.expose()));
        Self { seed: seed.clone(), ml, x, public: EncapsulationKey(public) }
    }

    /// A fresh key pair.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self::from_seed(&Secret32::random(rng))
    }

    /// The seed, for storage.
    pub fn seed(&self) -> Secret32 {
        self.seed.clone()
    }

    /// The public half.
    pub fn encapsulation_key(&self) -> EncapsulationKey {
        self.public.clone()
    }

    /// The secret in a ciphertext. A ciphertext to another key gives an unrelated secret, not an error (implicit rejection).
    ///
    /// # Errors
    /// [`CryptoError::Length`] unless the ciphertext has [`CT_LEN`] bytes.
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<Secret32, CryptoError> {
        let error = || CryptoError::Length { what: "KEM ciphertext", expected: CT_LEN, got: ciphertext.len() };
        let (ml_ct, x_ct) = ciphertext.split_first_chunk().ok_or_else(error)?;
        let x_ct: &[u8; 32] = x_ct.try_into().map_err(|_| error())?;
        let ml_secret = self.ml.decapsulate(ml_ct);
        let x_secret = x25519::diffie_hellman(self.x.expose(), x_ct);
        Ok(combine(&ml_secret, &x_secret, x_ct, self.public.parts().1))
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
