use thiserror::Error;

/// What the primitives refuse. No variant carries secret bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// An encoded value does not have the length that its type fixes.
    #[error("{what} is {got} bytes long, expected {expected}")]
    Length {
        /// What was being decoded.
        what: &'static str,
        /// Required length in bytes.
        expected: usize,
        /// Length found in bytes.
        got: usize,
    },
    /// An encoded value has the right length, yet is not a canonical encoding of its type.
    #[error("{0} is not a valid encoding")]
    Encoding(&'static str),
    /// A number is outside the range in which an operation is defined.
    #[error("{what} is {got}, outside {min}..={max}")]
    Range {
        /// Name of the argument.
        what: &'static str,
        /// Value found.
        got: u64,
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
    },
    /// Two shares have the same abscissa, or an abscissa is zero.
    #[error("abscissa {0} is zero or occurs twice")]
    Abscissa(u32),
    /// A signature does not verify under the key and label.
    #[error("the signature does not verify for {0}")]
    Signature(&'static str),
    /// An AEAD ciphertext does not open: wrong key, wrong associated data, or changed bytes.
    #[error("the ciphertext does not open")]
    Aead,
    /// A Merkle path does not lead from the leaf to the root.
    #[error("the Merkle path does not lead to the root")]
    MerklePath,
    /// One PRG seed would serve more than 2^32 blocks.
    #[error("the key stream of one seed ends after 2^32 blocks (256 GiB); bytes up to {0} were asked for")]
    StreamExhausted(u128),
    /// `UNISONO_PRG` names no backend of the mask PRG that this build and processor have.
    #[error(
        "the mask PRG has no backend `{0}` on this processor: unset UNISONO_PRG, or set it to portable, avx2, avx512 or neon"
    )]
    Backend(String),
}
