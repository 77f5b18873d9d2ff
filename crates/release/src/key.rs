//! The content key of one release, and the key-encryption key that wraps content keys at rest.

use rand_core::CryptoRng;
use unisono_crypto::aead;
use unisono_crypto::kdf::{derive_secret, hash, label};
use unisono_crypto::secret::Secret32;

use crate::ReleaseError;

/// Bytes of a wrapped content key.
pub const WRAPPED_KEY_LEN: usize = 32 + aead::TAG_LEN;

/// The key of one release. Erased when dropped; neither printed nor compared.
#[derive(Clone)]
pub struct ContentKey(pub(crate) Secret32);

impl ContentKey {
    /// A fresh key, for one release only.
    pub fn random<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self(Secret32::random(rng))
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Secret32::from_bytes(bytes)))
    }

    /// What a header carries of the key, so that a file opens under one key only.
    pub(crate) fn commitment(&self, salt: &[u8]) -> [u8; 32] {
        hash(label::KEY_COMMITMENT, &[self.0.expose(), salt])
    }
}

/// Wraps content keys where they are stored. Erased when dropped.
#[derive(Clone)]
pub struct KeyEncryptionKey(Secret32);

impl KeyEncryptionKey {
    /// The key of 32 secret bytes.
    pub fn from_secret(secret: Secret32) -> Self {
        Self(secret)
    }

    /// Each wrap has its own key: a header's hash never occurs twice.
    fn wrapping_key(&self, header_hash: &[u8; 32]) -> Secret32 {
        derive_secret(label::WRAP_KEY, self.0.expose(), &[header_hash])
    }

    /// Wraps the content key of the release with the given header: [`WRAPPED_KEY_LEN`] bytes.
    ///
    /// # Errors
    /// [`ReleaseError::WrappedKey`], which 32 bytes never cause.
    pub fn wrap(&self, key: &ContentKey, header_hash: &[u8; 32]) -> Result<Vec<u8>, ReleaseError> {
        aead::seal(&self.wrapping_key(header_hash), header_hash, key.0.expose()).map_err(|_| ReleaseError::WrappedKey)
    }

    /// Opens what [`Self::wrap`] made.
    ///
    /// # Errors
    /// [`ReleaseError::WrappedKey`] for another key, another header or changed bytes.
    pub fn unwrap(&self, wrapped: &[u8], header_hash: &[u8; 32]) -> Result<ContentKey, ReleaseError> {
        let key = aead::open(&self.wrapping_key(header_hash), header_hash, wrapped);
        key.ok().and_then(|key| ContentKey::from_slice(&key)).ok_or(ReleaseError::WrappedKey)
    }
}
