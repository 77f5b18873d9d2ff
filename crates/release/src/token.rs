//! The token of a consortium: in semi-honest mode, where there is no roster, it stands for the signatures on requests and grants.

use unisono_crypto::kdf::{Label, derive_secret, label};
use unisono_crypto::secret::Secret32;
use zeroize::Zeroizing;

/// Bytes of a proof of the token.
pub const PROOF_LEN: usize = 32;
/// Fewest and most bytes of a token: 128 and 512 bits.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=64;

/// Why a text is no token. It carries nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else than hexadecimal digits.
    #[error("a token is one line of hexadecimal digits, two for each byte; make one with `unisono keys token FILE`")]
    NotHexadecimal,
    /// Too short to be secret, or too long.
    #[error("the token has {got} bytes; it needs 16 to 64 (128 to 512 bits): make one with `unisono keys token FILE`")]
    Length {
        /// Bytes found.
        got: usize,
    },
    /// All bytes are the same.
    #[error("all bytes of the token are the same: make one with `unisono keys token FILE`")]
    Constant,
}

/// A secret that coordinator and devices share. It is never sent: who has it proves so over what he sends. Erased when dropped;
/// neither printed nor compared.
#[derive(Clone)]
pub struct Token(Secret32);

impl Token {
    /// Reads a token: one line of hexadecimal digits. The caller erases the text.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        let digits = text.trim().as_bytes();
        if digits.is_empty() || !digits.len().is_multiple_of(2) {
            return Err(TokenError::NotHexadecimal);
        }
        let value = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8).ok_or(TokenError::NotHexadecimal);
        let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
        for pair in digits.as_chunks::<2>().0 {
            bytes.push(value(pair[0])? << 4 | value(pair[1])?);
        }
        if !LENGTHS.contains(&bytes.len()) {
            return Err(TokenError::Length { got: bytes.len() });
        }
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(TokenError::Constant);
        }
        Ok(Self(derive_secret(label::TOKEN_KEY, &bytes, &[])))
    }

    /// Writes 32 secret bytes as a token.
    pub fn text(bytes: &Secret32) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(65));
        for byte in bytes.expose() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
            }
        }
        text.push('\n');
        text
    }

    /// Proof over `bytes` that the sender has the token, [`PROOF_LEN`] bytes.
    pub fn prove(&self, label: Label, bytes: &[u8]) -> Vec<u8> {
        self.proof(label, bytes).expose().to_vec()
    }

    /// Whether `proof` is the one over `bytes`, in constant time.
    pub fn verify(&self, label: Label, bytes: &[u8], proof: &[u8]) -> bool {
        let given: Result<[u8; PROOF_LEN], _> = proof.try_into();
        given.is_ok_and(|given| self.proof(label, bytes).ct_eq(&Secret32::from_bytes(given)))
    }

    fn proof(&self, label: Label, bytes: &[u8]) -> Secret32 {
        derive_secret(label, self.0.expose(), &[bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_128_bits_and_proves_one_thing_for_one_purpose() {
        let token = Token::from_text(" 00112233445566778899aabbccddeeff\n").unwrap();
        let proof = token.prove(label::MAC_GRANT, b"bytes");
        assert!(token.verify(label::MAC_GRANT, b"bytes", &proof));
        assert!(!token.verify(label::MAC_GRANT, b"other", &proof));
        assert!(!token.verify(label::MAC_CLIENT_REQUEST, b"bytes", &proof));
        assert!(
            !token.verify(label::MAC_GRANT, b"bytes", &proof[..31]) && !token.verify(label::MAC_GRANT, b"bytes", b"")
        );
        let other = Token::from_text("00112233445566778899aabbccddeefe").unwrap();
        assert!(!other.verify(label::MAC_GRANT, b"bytes", &proof));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let of = |text: &str| Token::from_text(text).err();
        assert_eq!(of(""), Some(TokenError::NotHexadecimal));
        assert_eq!(of("hunter2hunter2hunter2hunter2hunter22"), Some(TokenError::NotHexadecimal));
        assert_eq!(of("00112233445566778899aabbccddee"), Some(TokenError::Length { got: 15 }));
        assert_eq!(of(&"01".repeat(65)), Some(TokenError::Length { got: 65 }));
        assert_eq!(of(&"00".repeat(32)), Some(TokenError::Constant));
        let text = Token::text(&Secret32::from_bytes([0x5e; 32]));
        assert_eq!(of(&text), Some(TokenError::Constant));
        assert!(of(&"0a1b".repeat(16)).is_none());
    }
}
