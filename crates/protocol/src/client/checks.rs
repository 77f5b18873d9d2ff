//! Many devices in one process, in a simulation: what one of them has verified, the others need not verify again.
//!
//! A device shares checks only after [`Joining::share_checks`] was called on it; nothing else makes or finds a
//! [`SharedChecks`]. A device on its own has no use for this, and one that trusts another's checks is no device of its own.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use prost::Message;
use unisono_crypto::kdf::{Label, hash, label};
use unisono_crypto::sign::VerifyingKey;

use super::Joining;
use crate::proto::Signed;
use crate::signed::{self, SignedError};

/// Signatures that were found valid, by the hash of key, label, message and signature. What was found wrong is not kept.
#[derive(Default)]
pub struct SharedChecks(RwLock<HashSet<[u8; 32]>>);

impl SharedChecks {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of distinct signatures that were found valid.
    pub fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// As [`signed::verify`], which it calls for what is not known to be valid.
    pub(super) fn verify<M: Message + Default>(
        &self,
        signed: &Signed,
        label: Label,
        key: &VerifyingKey,
        what: &'static str,
    ) -> Result<M, SignedError> {
        let parts = [key.as_bytes(), label.as_str().as_bytes(), &signed.payload, &signed.signature];
        let name = hash(label::SHARED_CHECK, &parts);
        if self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&name) {
            return signed::verify(signed, label, None, what);
        }
        let message = signed::verify(signed, label, Some(key), what)?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name);
        Ok(message)
    }
}

impl Joining {
    /// For simulations: in later phases this device takes for valid the signatures that devices with the same `checks` found
    /// valid. It still does every other check on its own.
    #[must_use]
    pub fn share_checks(mut self, checks: &Arc<SharedChecks>) -> Self {
        self.round.checks = Some(checks.clone());
        self
    }
}

#[cfg(test)]
mod tests {
    use unisono_crypto::secret::Secret32;
    use unisono_crypto::sign::{Level, SigningKey};

    use super::*;
    use crate::proto::SharesRoot;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(Level::L44, &Secret32::from_bytes([seed; 32]))
    }

    #[test]
    fn only_the_very_signature_that_was_found_valid_is_taken_for_valid() {
        let checks = SharedChecks::new();
        let message = SharesRoot { from: 3, ..SharesRoot::default() };
        let signed = signed::sign(&message, label::SIG_SHARES, Some(&key(1)));
        let verify = |signed: &Signed, label, seed| {
            checks.verify::<SharesRoot>(signed, label, &key(seed).verifying_key(), "message")
        };
        for _ in 0..2 {
            assert_eq!(verify(&signed, label::SIG_SHARES, 1), Ok(message.clone()));
            assert_eq!(checks.count(), 1);
        }
        let other_message = Signed { payload: SharesRoot::default().encode_to_vec(), ..signed.clone() };
        let mut other_signature = signed.clone();
        other_signature.signature[70] ^= 1;
        // Bytes that move from the message to the signature are other bytes.
        let mut moved = signed.clone();
        moved.signature.insert(0, moved.payload.pop().unwrap());
        for _ in 0..2 {
            for wrong in [&other_message, &other_signature, &moved] {
                assert!(matches!(verify(wrong, label::SIG_SHARES, 1), Err(SignedError::Signature { .. })));
            }
            assert!(verify(&signed, label::SIG_ADVERT, 1).is_err(), "another label");
            assert!(verify(&signed, label::SIG_SHARES, 2).is_err(), "another key");
            assert_eq!(checks.count(), 1);
        }
    }

    #[test]
    fn a_valid_signature_on_what_can_not_be_decoded_is_refused_every_time() {
        let checks = SharedChecks::new();
        let signed = signed::sign_bytes(vec![0xff; 3], label::SIG_SHARES, Some(&key(1)));
        for _ in 0..2 {
            let refused = checks.verify::<SharesRoot>(&signed, label::SIG_SHARES, &key(1).verifying_key(), "message");
            assert!(matches!(refused, Err(SignedError::Malformed { .. })));
            assert_eq!(checks.count(), 0);
        }
    }
}
