//! Signed bytes as carried (section 2): verified first, parsed after, and encoded again only to see that they are canonical.

use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::kdf::Label;
use unisono_crypto::sign::{Claim, SigningKey, VerifyingKey};

use crate::proto::Signed;

/// Why signed bytes were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The signature does not verify under the expected key.
    #[error("the signature on the {what} does not verify")]
    Signature {
        /// Which message.
        what: &'static str,
    },
    /// The payload is not an encoding of the message that stands here.
    #[error("the {what} can't be decoded: {why}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl SignedError {
    pub(crate) fn malformed(what: &'static str, why: impl ToString) -> Self {
        Self::Malformed { what, why: why.to_string() }
    }
}

/// Signs bytes as a device does, hedged. Without a key (semi-honest mode) the signature stays empty.
pub fn sign_hedged<R: CryptoRng + ?Sized>(
    payload: Vec<u8>,
    label: Label,
    key: Option<&SigningKey>,
    rng: &mut R,
) -> Signed {
    let signature = key.map(|key| key.sign_hedged(label, &payload, rng)).unwrap_or_default();
    Signed { payload, signature }
}

/// Decodes a message of which only the canonical encoding is accepted (section 2): no field that this version does not know.
pub(crate) fn canonical<M: Message + Default>(payload: &[u8], what: &'static str) -> Result<M, SignedError> {
    let message = M::decode(payload).map_err(|e| SignedError::malformed(what, e))?;
    if message.encode_to_vec() != payload {
        return Err(SignedError::malformed(
            what,
            "it is not in canonical form: unknown or repeated fields, or padding",
        ));
    }
    Ok(message)
}

/// Encodes `message` and signs it under `label`. Without a key (semi-honest mode) the signature stays empty.
pub fn sign(message: &impl Message, label: Label, key: Option<&SigningKey>) -> Signed {
    sign_bytes(message.encode_to_vec(), label, key)
}

/// Signs bytes that are already encoded.
pub fn sign_bytes(payload: Vec<u8>, label: Label, key: Option<&SigningKey>) -> Signed {
    let signature = key.map(|key| key.sign(label, &payload)).unwrap_or_default();
    Signed { payload, signature }
}

/// Verifies `signed` under `key` and `label` (unless there is no key, in semi-honest mode), then decodes the payload, which must be in
/// canonical form.
///
/// # Errors
/// [`SignedError::Signature`] before anything is parsed, [`SignedError::Malformed`] after.
pub fn verify<M: Message + Default>(
    signed: &Signed,
    label: Label,
    key: Option<&VerifyingKey>,
    what: &'static str,
) -> Result<M, SignedError> {
    verify_bytes(signed, label, key, what)?;
    canonical(&signed.payload, what)
}

/// Verifies `signed` under `key` and `label`, unless there is no key (semi-honest mode). The payload is not an encoded message.
///
/// # Errors
/// [`SignedError::Signature`].
pub(crate) fn verify_bytes(
    signed: &Signed,
    label: Label,
    key: Option<&VerifyingKey>,
    what: &'static str,
) -> Result<(), SignedError> {
    match key {
        Some(key) => key.verify(label, &signed.payload, &signed.signature).map_err(|_| SignedError::Signature { what }),
        None => Ok(()),
    }
}

/// A claim that signed bytes are `key`'s, for [`unisono_crypto::sign::verify_all`].
pub(crate) fn claim<'a>(signed: &'a Signed, label: Label, key: &'a VerifyingKey) -> Claim<'a> {
    Claim { key, label, message: &signed.payload, signature: &signed.signature }
}

/// A field that must have exactly `N` bytes.
pub(crate) fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], SignedError> {
    bytes.try_into().map_err(|_| SignedError::malformed(what, format!("{} bytes instead of {N}", bytes.len())))
}

/// A Merkle path: every element must have 32 bytes.
pub(crate) fn path(elements: &[Vec<u8>]) -> Result<Vec<[u8; 32]>, SignedError> {
    elements.iter().map(|element| fixed(element, "Merkle path")).collect()
}
