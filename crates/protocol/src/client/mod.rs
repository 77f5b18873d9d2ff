//! The device's side of a round. [`Session`] is what hosts drive: it takes whatever the coordinator shows, keeps the message
//! that the device owes, and erases the round's secrets when it is over.
//!
//! Inside there is one type a phase: a phase takes the previous state by value, so that a share can't be revealed twice.
//!
//! ```text
//! Joining --advertise--> Advertised --share--> Shared --mask--> Masked ------------- reveal ------------> Done
//!                                                                  \---confirm---> Confirmed ---reveal---/
//! ```
//!
//! Only members of the committee confirm. Each state from [`Advertised`] on keeps the message that it owes the coordinator:
//! sending it again after a lost connection sends the same bytes. What the coordinator sends is checked before anything
//! changes; a refused view comes back as [`Rejected`] with the state, which may try again.

mod certificate;
mod checks;
mod commit;
mod error;
mod mask;
mod offer;
mod pool;
mod saved;
mod session;
mod share;
mod unmask;

use std::fmt;
use std::sync::Arc;

use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::kdf::{Label, label};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::shamir::SecretScalar;
use unisono_crypto::sign::{Claim, SigningKey, VerifyingKey, verify_all};

use crate::cohort::Advert;
use crate::ids::{ClientId, RoundId};
use crate::pairwise;
use crate::params::RoundParams;
use crate::phase::Phase;
use crate::policy::{ParticipationRecord, Policy};
use crate::proto::{self, ClientMessage, Signed, client_message::Step};
use crate::roster::Head;
use crate::signed::{self, SignedError};

pub use checks::SharedChecks;
pub use error::{CertificateFault, ClientError, NeighbourFault};
pub use mask::Masked;
pub use pool::KeyPool;
pub use session::Session;
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

/// What a device signs when it leaves a round: `round_id || client_id`, 48 bytes (section 3).
pub(crate) fn leave_payload(round: RoundId, client: ClientId) -> Vec<u8> {
    [&round.0[..], &client.0].concat()
}

/// The signature by which a device says that it takes no further step in a round, for
/// [`Server::leave`](crate::server::Server::leave); empty in semi-honest mode.
pub fn leave<R: CryptoRng + ?Sized>(params: &RoundParams, identity: &Identity, rng: &mut R) -> Vec<u8> {
    let payload = leave_payload(params.round_id, identity.client_id);
    let key = params.malicious().then_some(&identity.signing_key);
    signed::sign_hedged(payload, label::SIG_LEAVE, key, rng).signature
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
    /// This device's limits; those over rounds and on time are asked again later.
    policy: Arc<Policy>,
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

    /// Last second of this device's clock at which it masks, signs or reveals in a round whose cohort it accepted at
    /// `accepted_at` (section 6): twice the sum of the phases that were left, and a minute; at most what the policy allows.
    fn erase_at(&self, accepted_at: u64) -> u64 {
        let deadlines = self.params.wire.deadlines.unwrap_or_default();
        let left = Phase::ALL[1..].iter().fold(0u64, |sum, phase| sum.saturating_add(phase.deadline_ms(&deadlines)));
        accepted_at.saturating_add((left / 1000).saturating_mul(2).saturating_add(60).min(self.policy.max_round_s))
    }

    fn refuse_late(&self, accepted_at: u64, now: u64) -> Result<(), ClientError> {
        let erase_at = self.erase_at(accepted_at);
        if now > erase_at { Err(ClientError::Expired { erase_at, now }) } else { Ok(()) }
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
    /// is not above the last one of its task in which this device shared its keys.
    pub fn new(
        offer: &proto::RoundOffer,
        identity: Arc<Identity>,
        trust: &Trust,
        record: &mut dyn ParticipationRecord,
        now: u64,
    ) -> Result<Self, ClientError> {
        let (params, authority) = offer::verify(offer, trust.registrar.as_ref())?;
        if let Some((head, _)) = &authority {
            let seen = record.roster_epoch()?;
            if head.epoch < seen {
                return Err(ClientError::StaleRoster { epoch: head.epoch, seen });
            }
        }
        let entry = record.entry(&params.wire.task)?;
        if let Some((head, _)) = &authority {
            // A clock that was set back since this device last took part brings no head back that is over.
            head.check_validity(now.max(entry.as_ref().map_or(0, |entry| entry.spent.last_at)))?;
        }
        commit::refuse_old(&params, entry.as_ref())?;
        trust.policy.check(&params, entry.as_ref(), now)?;
        if trust.policy.signed_base_model {
            offer::verify_base_model(offer, &params, authority.as_ref())?;
        }
        if let Some((head, _)) = &authority {
            record.see_roster_epoch(head.epoch)?;
        }
        let policy = Arc::new(trust.policy.clone());
        Ok(Self { round: Round { params: Arc::new(params), authority, identity, policy, checks: None } })
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
        let signed = signed::sign_hedged(wire.encode_to_vec(), label::SIG_ADVERT, round.signing_key(), rng);
        let payload = signed.payload.clone();
        let message = round.message(Step::Advert(signed));
        Advertised { secrets: Secrets { round, mask_secret, self_secret, channel, advert }, payload, message }
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
