//! The one reader of an offer: for a device that joins a round, and for one that resumes it.

use std::sync::Arc;

use unisono_crypto::kdf::label;
use unisono_crypto::sign::VerifyingKey;

use super::ClientError;
use crate::params::RoundParams;
use crate::proto::{BaseModel, RoundOffer, Signed};
use crate::roster::Head;
use crate::signed;

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

/// Checks that a publisher of the roster's head has signed the round's base model (section 3).
///
/// # Errors
/// [`ClientError::UnsignedBaseModel`] says what is missing.
pub(super) fn verify_base_model(
    offer: &RoundOffer,
    params: &RoundParams,
    authority: Option<&Authority>,
) -> Result<(), ClientError> {
    let refuse = |why| Err(ClientError::UnsignedBaseModel(why));
    let (Some((head, _)), Some(signed)) = (authority, &offer.base_model) else {
        return refuse("the offer has no publisher's signature on it");
    };
    let verifies = |key: &VerifyingKey| key.verify(label::SIG_BASE_MODEL, &signed.payload, &signed.signature).is_ok();
    if !head.publisher_keys.iter().any(verifies) {
        return refuse("its signature is not of a publisher that the roster names");
    }
    let model: BaseModel = signed::canonical(&signed.payload, "base model")?;
    let wire = &params.wire;
    if (model.task, model.version, model.hash) != (wire.task.clone(), wire.model_version, wire.model_hash.clone()) {
        return refuse("the publisher has signed another model than the one in the round's parameters");
    }
    Ok(())
}

/// The key of the roster's head under which the parameters verify.
fn coordinator_key(head: &Head, params: &Signed) -> Option<VerifyingKey> {
    let verifies =
        |key: &&VerifyingKey| key.verify(label::SIG_ROUND_PARAMS, &params.payload, &params.signature).is_ok();
    head.coordinator_keys.iter().find(verifies).cloned()
}
