//! Many devices in one process, in a simulation: what one of them has verified, the others need not verify again.
//!
//! A device shares checks only after [`Joining::share_checks`] was called on it; nothing else makes or finds a
//! [`SharedChecks`]. A device on its own has no use for this, and one that trusts another's checks is no device of its own.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use unisono_crypto::CryptoError;
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::sign::{self, Claim};

use super::Joining;

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

    /// As [`sign::verify_all`], which it calls for what is not known to be valid.
    pub(super) fn verify_all(&self, claims: &[Claim<'_>]) -> Vec<Result<(), CryptoError>> {
        let name = |c: &Claim<'_>| {
            hash(label::SHARED_CHECK, &[c.key.as_bytes(), c.label.as_str().as_bytes(), c.message, c.signature])
        };
        let names: Vec<[u8; 32]> = claims.iter().map(name).collect();
        let known: Vec<bool> = {
            let valid = self.0.read().unwrap_or_else(PoisonError::into_inner);
            names.iter().map(|name| valid.contains(name)).collect()
        };
        let unknown: Vec<Claim<'_>> =
            claims.iter().zip(&known).filter(|(_, known)| !**known).map(|(c, _)| *c).collect();
        let mut verified = sign::verify_all(&unknown).into_iter();
        let result =
            |known: &bool| if *known { Ok(()) } else { verified.next().expect("one for each that is unknown") };
        let results: Vec<_> = known.iter().map(result).collect();
        let valid = names.into_iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(name, _)| name);
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(valid);
        results
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

    #[test]
    fn only_the_very_signature_that_was_found_valid_is_taken_for_valid() {
        let checks = SharedChecks::new();
        let keys = [1, 2].map(|seed| SigningKey::from_seed(Level::L44, &Secret32::from_bytes([seed; 32])));
        let public = keys.each_ref().map(SigningKey::verifying_key);
        let signature = keys[0].sign(label::SIG_SHARES, b"message");
        let mut wrong = signature.clone();
        wrong[70] ^= 1;
        // A byte that moves from the message to the signature gives other bytes.
        let moved = [b"e".as_slice(), &signature].concat();
        let claim = |key, label, message, signature| Claim { key, label, message, signature };
        let right = claim(&public[0], label::SIG_SHARES, b"message", &signature);
        let claims = [
            claim(&public[0], label::SIG_SHARES, b"another", &signature),
            claim(&public[0], label::SIG_SHARES, b"message", &wrong),
            right,
            claim(&public[0], label::SIG_SHARES, b"messag", &moved),
            claim(&public[0], label::SIG_ADVERT, b"message", &signature),
            claim(&public[1], label::SIG_SHARES, b"message", &signature),
        ];
        for _ in 0..3 {
            let valid: Vec<bool> = checks.verify_all(&claims).iter().map(Result::is_ok).collect();
            assert_eq!(valid, [false, false, true, false, false, false]);
            assert_eq!(checks.verify_all(&[right]), [Ok(())]);
            assert_eq!(checks.count(), 1);
        }
    }
}
