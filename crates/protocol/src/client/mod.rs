//! The device's side of a round, one type a phase: a phase takes the previous state by value, so that a share can't be
//! released twice.
//!
//! ```text
//! Joining --advertise--> Advertised --share--> Shared --mask--> Masked --confirm--> Confirmed --release--> Done
//!                                                                  \------- release (semi-honest) -------/
//! ```
//!
//! Each state from [`Advertised`] on keeps the message that it owes the coordinator: sending it again after a lost
//! connection sends the same bytes. What the coordinator sends is checked before anything changes; a refused view comes back
//! as [`Rejected`] with the state, which may try again.

mod checks;
mod commit;
mod error;
mod mask;
mod pool;
mod saved;
mod share;
mod unmask;

use std::fmt;
use std::sync::Arc;

use rand_core::CryptoRng;
use unisono_crypto::kdf::{Label, label};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::shamir::SecretScalar;
use unisono_crypto::sign::{Claim, SigningKey, VerifyingKey, verify_all};

use crate::cohort::Advert;
use crate::ids::ClientId;
use crate::pairwise;
use crate::params::RoundParams;
use crate::policy::{ParticipationRecord, Policy};
use crate::proto::{self, ClientMessage, Signed, client_message::Step};
use crate::roster::Head;
use crate::signed::{self, SignedError};

pub use checks::SharedChecks;
pub use error::{ClientError, NeighbourFault};
pub use mask::Masked;
pub use pool::KeyPool;
pub use saved::Resumed;
pub use share::Shared;
pub use unmask::{Confirmed, Done};

/// Who a device is.
pub struct Identity {
    /// Its name in the roster.
    pub client_id: ClientId,
    /// Signs what it sends (Ed25519 + ML-DSA-44).
    pub signing_key: SigningKey,
}

/// What a device trusts and accepts.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The registrar's key; `None` only for a device that takes part in semi-honest rounds alone.
    pub registrar: Option<VerifyingKey>,
    /// Its own limits.
    pub policy: Policy,
}

/// A refused view, with the state that refused it unchanged.
pub struct Rejected<S> {
    /// The state before the call.
    pub state: Box<S>,
    /// Why.
    pub error: ClientError,
}

impl<S> fmt::Debug for Rejected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rejected({:?})", self.error)
    }
}

impl<S> fmt::Display for Rejected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S> std::error::Error for Rejected<S> {}

/// Builds the next state from this one, or gives this one back.
fn advance<S, T>(state: S, step: impl FnOnce(&S) -> Result<T, ClientError>) -> Result<T, Rejected<S>> {
    match step(&state) {
        Ok(next) => Ok(next),
        Err(error) => Err(Rejected { state: Box::new(state), error }),
    }
}

/// What stays the same for a device during a round.
#[derive(Clone)]
struct Round {
    params: Arc<RoundParams>,
    /// In malicious mode: the roster's head and the coordinator's key from it.
    authority: Option<(Arc<Head>, VerifyingKey)>,
    identity: Arc<Identity>,
    /// What this device does not verify on its own, in a simulation.
    checks: Option<Arc<SharedChecks>>,
}

impl Round {
    /// In malicious mode, verifies signed bytes (absent ones are not) under their keys, in one batch.
    fn verify_all<'a>(
        &self,
        label: Label,
        what: &'static str,
        signed: impl Iterator<Item = (Option<&'a VerifyingKey>, Option<&'a Signed>)>,
    ) -> Vec<Result<(), SignedError>> {
        if self.authority.is_none() {
            return signed.map(|_| Ok(())).collect();
        }
        let claims: Vec<_> = signed.map(|(key, signed)| Some(signed::claim(signed?, label, key?))).collect();
        let known: Vec<Claim<'_>> = claims.iter().flatten().copied().collect();
        let mut verified = match &self.checks {
            Some(checks) => checks.verify_all(&known),
            None => verify_all(&known),
        }
        .into_iter();
        let mut holds =
            |claim: &Option<Claim<'_>>| claim.is_some() && verified.next().is_some_and(|result| result.is_ok());
        let result = |claim| if holds(claim) { Ok(()) } else { Err(SignedError::Signature { what }) };
        claims.iter().map(result).collect()
    }

    fn message(&self, step: Step) -> ClientMessage {
        ClientMessage {
            round_id: self.params.round_id.to_vec(),
            client_id: self.identity.client_id.to_vec(),
            step: Some(step),
        }
    }

    /// The key to sign with, in malicious mode.
    fn signing_key(&self) -> Option<&SigningKey> {
        self.authority.as_ref().map(|_| &self.identity.signing_key)
    }

    fn coordinator_key(&self) -> Option<&VerifyingKey> {
        self.authority.as_ref().map(|(_, key)| key)
    }
}

/// A proposal that this device accepts.
pub struct Joining {
    round: Round,
}

impl Joining {
    /// Checks the coordinator's offer against the trust anchors, the policy and the record. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`ClientError`]: signatures, an older roster, parameters that are inconsistent, the policy's limits, or a round that
    /// is not above the last one of its task in which this device masked an input or shared its keys.
    pub fn new(
        offer: &proto::RoundOffer,
        identity: Arc<Identity>,
        trust: &Trust,
        record: &mut dyn ParticipationRecord,
        now: u64,
    ) -> Result<Self, ClientError> {
        let signed_params = offer.params.as_ref().ok_or(ClientError::Missing("signed parameters in the offer"))?;
        let authority = match (&offer.roster_head, &trust.registrar) {
            (Some(head), Some(registrar)) => {
                let head = Head::verify(head, registrar)?;
                let seen = record.roster_epoch()?;
                if head.epoch < seen {
                    return Err(ClientError::StaleRoster { epoch: head.epoch, seen });
                }
                let key = coordinator_key(&head, signed_params).ok_or(ClientError::UntrustedCoordinator)?;
                Some((Arc::new(head), key))
            }
            (Some(_), None) => return Err(ClientError::Missing("registrar's key among the trust anchors")),
            (None, _) => None,
        };
        let params = RoundParams::from_payload(&signed_params.payload)?;
        if params.malicious() != authority.is_some() {
            return Err(ClientError::Missing("roster head, which a round in malicious mode needs"));
        }
        if let Some((head, _)) = &authority
            && (params.wire.roster_epoch != head.epoch || params.wire.roster_root != head.root)
        {
            return Err(ClientError::OtherRoster { proposed: params.wire.roster_epoch, head: head.epoch });
        }
        let last = record.last(&params.wire.task)?;
        trust.policy.check(&params, last.map(|last| last.at), now)?;
        refuse_spent(&params, record)?;
        commit::refuse_shared(&params, record)?;
        if let Some((head, _)) = &authority {
            record.see_roster_epoch(head.epoch)?;
        }
        Ok(Self { round: Round { params: Arc::new(params), authority, identity, checks: None } })
    }

    /// The accepted parameters.
    pub fn params(&self) -> &RoundParams {
        &self.round.params
    }

    /// Draws the round's secrets and makes the advert (phase 0).
    pub fn advertise<R: CryptoRng + ?Sized>(self, rng: &mut R) -> Advertised {
        let round = self.round;
        let mask_secret = SecretScalar::random(rng);
        let self_secret = SecretScalar::random(rng);
        let channel = DecapsulationKey::generate(rng);
        let (round_id, client_id) = (round.params.round_id, round.identity.client_id);
        let advert = Advert {
            client_id,
            mask_ek: pairwise::mask_key(&mask_secret, round_id).encapsulation_key(),
            channel_ek: channel.encapsulation_key(),
            commitment: pairwise::commitment(&self_secret, round_id, client_id),
        };
        let wire = proto::Advert {
            round_id: round_id.to_vec(),
            client_id: client_id.to_vec(),
            mask_ek: advert.mask_ek.as_bytes().to_vec(),
            channel_ek: advert.channel_ek.as_bytes().to_vec(),
            self_mask_commitment: advert.commitment.to_vec(),
        };
        let signed = signed::sign(&wire, label::SIG_ADVERT, round.signing_key());
        let payload = signed.payload.clone();
        let message = round.message(Step::Advert(signed));
        Advertised { secrets: Secrets { round, mask_secret, self_secret, channel, advert }, payload, message }
    }
}

/// The key of the roster's head under which the parameters verify.
fn coordinator_key(head: &Head, params: &Signed) -> Option<VerifyingKey> {
    let verifies =
        |key: &&VerifyingKey| key.verify(label::SIG_ROUND_PARAMS, &params.payload, &params.signature).is_ok();
    head.coordinator_keys.iter().find(verifies).cloned()
}

/// Refuses a round that is not above the last one for which this device masked an input.
fn refuse_spent(params: &RoundParams, record: &dyn ParticipationRecord) -> Result<(), ClientError> {
    match record.last(&params.wire.task)? {
        Some(last) if params.wire.round <= last.round => {
            Err(ClientError::Spent { task: params.wire.task.clone(), round: params.wire.round, last: last.round })
        }
        _ => Ok(()),
    }
}

/// The round's secrets of this device.
#[derive(Clone)]
struct Secrets {
    round: Round,
    mask_secret: SecretScalar,
    self_secret: SecretScalar,
    channel: DecapsulationKey,
    advert: Advert,
}

/// The advert is made; the cohort is awaited.
pub struct Advertised {
    secrets: Secrets,
    payload: Vec<u8>,
    message: ClientMessage,
}

impl Advertised {
    /// The advert, to be sent until it is acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }
}
