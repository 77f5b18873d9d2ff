//! The one reader of an offer: for a device that joins a round, and for one that resumes it.

use std::sync::Arc;

use unisono_crypto::kdf::label;
use unisono_crypto::sign::VerifyingKey;

use super::ClientError;
use crate::params::RoundParams;
use crate::proto::{RoundOffer, Signed};
use crate::roster::Head;

/// The roster's head and the coordinator's key from it.
pub(super) type Authority = (Arc<Head>, VerifyingKey);

/// Checks an offer's signatures, its parameters, and that the parameters are for the roster in it (section 3). The authority is
/// there in malicious mode alone.
///
/// # Errors
/// [`ClientError`] names the failed check.
pub(super) fn verify(
    offer: &RoundOffer,
    registrar: Option<&VerifyingKey>,
) -> Result<(RoundParams, Option<Authority>), ClientError> {
    let signed = offer.params.as_ref().ok_or(ClientError::Missing("signed parameters in the offer"))?;
    let authority = match (&offer.roster_head, registrar) {
        (Some(head), Some(registrar)) => {
            let head = Head::verify(head, registrar)?;
            let key = coordinator_key(&head, signed).ok_or(ClientError::UntrustedCoordinator)?;
            Some((Arc::new(head), key))
        }
        (Some(_), None) => return Err(ClientError::Missing("registrar's key among the trust anchors")),
        (None, _) => None,
    };
    let params = RoundParams::from_payload(&signed.payload)?;
    if params.malicious() != authority.is_some() {
        return Err(ClientError::Missing("roster head, which a round in malicious mode needs"));
    }
    if let Some((head, _)) = &authority
        && (params.wire.roster_epoch != head.epoch || params.wire.roster_root != head.root)
    {
        return Err(ClientError::OtherRoster { proposed: params.wire.roster_epoch, head: head.epoch });
    }
    Ok((params, authority))
}

/// The key of the roster's head under which the parameters verify.
fn coordinator_key(head: &Head, params: &Signed) -> Option<VerifyingKey> {
    let verifies =
        |key: &&VerifyingKey| key.verify(label::SIG_ROUND_PARAMS, &params.payload, &params.signature).is_ok();
    head.coordinator_keys.iter().find(verifies).cloned()
}
