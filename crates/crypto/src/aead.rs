//! ChaCha20-Poly1305 (RFC 8439) with a key that is used once, hence a nonce of zero (`docs/protocol.md` section 4).

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use zeroize::Zeroizing;

use crate::CryptoError;
use crate::secret::Secret32;

/// Bytes by which a ciphertext is longer than its plaintext.
pub const TAG_LEN: usize = 16;

/// Encrypts `plaintext` and binds `associated_data`. `key` must never be used for another plaintext.
///
/// # Errors
/// [`CryptoError::Aead`] when the plaintext is longer than RFC 8439 allows (256 GiB).
pub fn seal(key: &Secret32, associated_data: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let payload = Payload { msg: plaintext, aad: associated_data };
    cipher(key).encrypt(&Nonce::default(), payload).map_err(|_| CryptoError::Aead)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`CryptoError::Aead`] for another key, other associated data or changed bytes.
pub fn open(key: &Secret32, associated_data: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let payload = Payload { msg: ciphertext, aad: associated_data };
    cipher(key).decrypt(&Nonce::default(), payload).map(Zeroizing::new).map_err(|_| CryptoError::Aead)
}

fn cipher(key: &Secret32) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(key.expose().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ciphertext_opens_only_unchanged_under_its_key_and_data() {
        let key = Secret32::from_bytes([1; 32]);
        let sealed = seal(&key, b"ad", b"text").unwrap();
        assert_eq!(sealed.len(), 4 + TAG_LEN);
        assert_eq!(*open(&key, b"ad", &sealed).unwrap(), b"text");
        assert!(open(&key, b"da", &sealed).is_err());
        assert!(open(&Secret32::from_bytes([2; 32]), b"ad", &sealed).is_err());
        assert!(open(&key, b"ad", &sealed[1..]).is_err());
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(open(&key, b"ad", &changed).is_err());
        }
    }
}
