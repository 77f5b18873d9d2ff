//! A device's state between two messages, as bytes: for hosts that keep no object alive from one phase to the next.
//!
//! The bytes hold the round's secrets and are as secret as the identity key. A host replaces the old bytes by the new ones
//! before it sends what a phase produced. One that resumes older bytes loses the round, not an input: each step asks the
//! [`ParticipationRecord`](crate::policy::ParticipationRecord), which names the one cohort, the one masked input and the one
//! set of survivors of a round. Of a masked vector only its owner's upload remains; the bytes do not hold it.

use std::sync::Arc;

use prost::Message;
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::ring::RingVector;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{SecretScalar, Share};
use unisono_crypto::sign::VerifyingKey;
use zeroize::{Zeroize, Zeroizing};

use super::mask::{Masked, Participant, Peer, Shares};
use super::session::State;
use super::share::{Committee, Neighbour, Shared};
use super::unmask::{Confirmed, Done};
use super::{Advertised, ClientError, Identity, Round, Secrets, Trust, offer};
use crate::bitmap;
use crate::cohort::{Advert, Cohort};
use crate::graph::Graph;
use crate::ids::CohortId;
use crate::pairwise;
use crate::params::RoundParams;
use crate::proto::{self, ClientMessage, client_message::Step};

/// What is saved of a neighbour, or of a neighbour that shared its keys.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct SavedPeer {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "vec", tag = "2")]
    self_mask_share: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    mask_share: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    advert: Option<proto::Advert>,
    #[prost(bytes = "vec", tag = "5")]
    identity: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Saved {
    #[prost(uint32, tag = "1")]
    phase: u32,
    #[prost(bytes = "vec", tag = "2")]
    round_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    mask_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    self_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    channel: Vec<u8>,
    #[prost(message, optional, tag = "7")]
    advert: Option<proto::Advert>,
    #[prost(bytes = "vec", tag = "8")]
    cohort_id: Vec<u8>,
    #[prost(uint32, tag = "9")]
    n: u32,
    #[prost(bytes = "vec", tag = "10")]
    adverts_root: Vec<u8>,
    #[prost(uint32, tag = "11")]
    index: u32,
    #[prost(message, repeated, tag = "12")]
    peers: Vec<SavedPeer>,
    #[prost(bytes = "vec", tag = "13")]
    shared: Vec<u8>,
    /// Places of the committee's members in the roster.
    #[prost(uint64, repeated, tag = "14")]
    committee: Vec<u64>,
    #[prost(uint64, tag = "15")]
    accepted_at: u64,
    /// Always there, and last: bytes that are cut short have none.
    #[prost(message, optional, tag = "16")]
    message: Option<ClientMessage>,
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {
        $(impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        })*
    };
}
opaque_debug!(SavedPeer, Saved);

impl Drop for SavedPeer {
    fn drop(&mut self) {
        self.self_mask_share.zeroize();
        self.mask_share.zeroize();
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.mask_secret.zeroize();
        self.self_secret.zeroize();
        self.channel.zeroize();
    }
}

const ADVERTISED: u32 = 1;
const SHARED: u32 = 2;
const MASKED: u32 = 3;
const CONFIRMED: u32 = 4;
const DONE: u32 = 5;

fn advert_to_wire(advert: &Advert, round: &Round) -> proto::Advert {
    proto::Advert {
        round_id: round.params.round_id.to_vec(),
        client_id: advert.client_id.to_vec(),
        mask_ek: advert.mask_ek.as_bytes().to_vec(),
        channel_ek: advert.channel_ek.as_bytes().to_vec(),
        self_mask_commitment: advert.commitment.to_vec(),
    }
}

impl Saved {
    fn of(phase: u32, round: Option<&Round>, message: &ClientMessage) -> Self {
        let mut saved = Self::default();
        saved.phase = phase;
        saved.message = Some(message.clone());
        saved.round_id = round.map_or_else(|| message.round_id.clone(), |round| round.params.round_id.to_vec());
        saved
    }

    fn with_secrets(mut self, secrets: &Secrets) -> Self {
        self.mask_secret = secrets.mask_secret.to_secret().expose().to_vec();
        self.self_secret = secrets.self_secret.to_secret().expose().to_vec();
        self.channel = secrets.channel.seed().expose().to_vec();
        self.advert = Some(advert_to_wire(&secrets.advert, &secrets.round));
        self
    }

    fn with_cohort(mut self, cohort: &Cohort, index: u32) -> Self {
        self.cohort_id = cohort.id.to_vec();
        self.n = cohort.graph.n();
        self.adverts_root = cohort.adverts_root.to_vec();
        self.index = index;
        self
    }

    fn with_committee(mut self, committee: &Committee) -> Self {
        self.committee = committee.places.clone();
        self.accepted_at = committee.accepted_at;
        self
    }

    fn with_participant(mut self, participant: &Participant) -> Self {
        self.self_secret = participant.self_secret.to_secret().expose().to_vec();
        self.shared = bitmap::to_bytes(&participant.shared);
        self.peers = participant.peers.iter().map(SavedPeer::of_peer).collect();
        self.with_cohort(&participant.cohort, participant.index).with_committee(&participant.committee)
    }

    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.encode_to_vec())
    }
}

impl SavedPeer {
    fn of_peer(peer: &Peer) -> Self {
        let mut saved = Self::default();
        saved.index = peer.index;
        saved.identity = key_bytes(peer.identity.as_deref());
        if let Some(shares) = &peer.shares {
            saved.self_mask_share = shares.self_mask.value_bytes().to_vec();
            saved.mask_share = shares.mask.value_bytes().to_vec();
        }
        saved
    }

    fn of_neighbour(neighbour: &Neighbour, round: &Round) -> Self {
        let mut saved = Self::default();
        saved.index = neighbour.index;
        saved.advert = Some(advert_to_wire(&neighbour.advert, round));
        saved.identity = key_bytes(neighbour.identity.as_deref());
        saved
    }
}

impl Advertised {
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        Saved::of(ADVERTISED, Some(&self.secrets.round), &self.message).with_secrets(&self.secrets).bytes()
    }
}

impl Shared {
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        let round = &self.secrets.round;
        let mut saved = Saved::of(SHARED, Some(round), self.message())
            .with_secrets(&self.secrets)
            .with_cohort(&self.cohort, self.index)
            .with_committee(&self.committee);
        saved.peers = self.neighbours.iter().map(|neighbour| SavedPeer::of_neighbour(neighbour, round)).collect();
        saved.bytes()
    }
}

impl Masked {
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        let participant = &self.participant;
        Saved::of(MASKED, Some(&participant.round), self.message()).with_participant(participant).bytes()
    }
}

impl Confirmed {
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        let participant = &self.participant;
        Saved::of(CONFIRMED, Some(&participant.round), self.message()).with_participant(participant).bytes()
    }
}

impl Done {
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        Saved::of(DONE, None, self.message()).bytes()
    }
}

fn key_bytes(key: Option<&VerifyingKey>) -> Vec<u8> {
    key.map(|key| key.as_bytes().to_vec()).unwrap_or_default()
}

fn damaged<T>(value: Option<T>, what: &'static str) -> Result<T, ClientError> {
    value.ok_or(ClientError::Saved(what))
}

fn secret(bytes: &[u8]) -> Result<Secret32, ClientError> {
    damaged(bytes.try_into().ok().map(Secret32::from_bytes), "a secret is not 32 bytes long")
}

fn scalar(bytes: &[u8]) -> Result<SecretScalar, ClientError> {
    Ok(SecretScalar::from_canonical(secret(bytes)?.expose())?)
}

fn advert(wire: Option<&proto::Advert>, round: &Round) -> Result<Advert, ClientError> {
    let wire = damaged(wire, "an advert is missing")?;
    Ok(Advert::from_payload(&wire.encode_to_vec(), round.params.round_id)?)
}

/// Reads a saved session, and checks the offer that it began with once more.
pub(super) fn read(
    bytes: &[u8],
    offer: &proto::RoundOffer,
    identity: Arc<Identity>,
    trust: &Trust,
) -> Result<(Arc<RoundParams>, State), ClientError> {
    let saved = damaged(Saved::decode(bytes).ok(), "the bytes are not a saved session")?;
    let (params, authority) = offer::verify(offer, trust.registrar.as_ref())?;
    let params = Arc::new(params);
    let round =
        Round { params: params.clone(), authority, identity, policy: Arc::new(trust.policy.clone()), checks: None };
    let message = damaged(saved.message.clone(), "its message is missing")?;
    let round_id = &params.round_id.0;
    if saved.round_id != round_id || message.round_id != round_id || message.client_id != round.identity.client_id.0 {
        return Err(ClientError::Saved("it is of another round or device"));
    }
    let state = match saved.phase {
        ADVERTISED => {
            let Some(Step::Advert(signed)) = &message.step else {
                return Err(ClientError::Saved("its message is of another phase"));
            };
            let payload = signed.payload.clone();
            State::Advertised(Advertised { secrets: saved.secrets(round)?, payload, message })
        }
        SHARED => State::Shared(saved.shared(round, message)?),
        MASKED => {
            let vector = RingVector::zeros(params.modulus, 0);
            State::Masked(Masked { participant: saved.participant(round)?, vector, message })
        }
        CONFIRMED => State::Confirmed(Confirmed { participant: saved.participant(round)?, message }),
        DONE => State::Done(Done { message }),
        _ => return Err(ClientError::Saved("its phase is unknown")),
    };
    Ok((params, state))
}

impl Saved {
    fn secrets(&self, round: Round) -> Result<Secrets, ClientError> {
        Ok(Secrets {
            mask_secret: scalar(&self.mask_secret)?,
            self_secret: scalar(&self.self_secret)?,
            channel: DecapsulationKey::from_seed(&secret(&self.channel)?),
            advert: advert(self.advert.as_ref(), &round)?,
            round,
        })
    }

    fn cohort(&self, params: &RoundParams) -> Result<Cohort, ClientError> {
        let id = damaged(CohortId::from_slice(&self.cohort_id), "its cohort id is not 32 bytes long")?;
        let root = damaged(self.adverts_root.as_slice().try_into().ok(), "its root is not 32 bytes long")?;
        if self.index >= self.n || !(params.wire.n_min..=params.wire.n_max).contains(&self.n) {
            return Err(ClientError::Saved("its cohort is of another size than the round's"));
        }
        Ok(Cohort { id, graph: Arc::new(Graph::new(id, self.n, params.topology(self.n)?)), adverts_root: root })
    }

    /// Index of a neighbour, which is another member of the cohort.
    fn neighbour(&self, peer: &SavedPeer) -> Result<u32, ClientError> {
        if peer.index >= self.n || peer.index == self.index {
            return Err(ClientError::Saved("a neighbour is not in the cohort"));
        }
        Ok(peer.index)
    }

    fn committee(&self) -> Committee {
        Committee { places: self.committee.clone(), accepted_at: self.accepted_at }
    }

    fn shared(&self, round: Round, message: ClientMessage) -> Result<Shared, ClientError> {
        let cohort = self.cohort(&round.params)?;
        let secrets = self.secrets(round)?;
        let mut neighbours = Vec::with_capacity(self.peers.len());
        for peer in &self.peers {
            let index = self.neighbour(peer)?;
            let advert = advert(peer.advert.as_ref(), &secrets.round)?;
            let identity = match secrets.round.authority {
                Some(_) => Some(VerifyingKey::from_bytes(&peer.identity)?),
                None => None,
            };
            // The coins are derived, so secret and ciphertext come out as they did when the shares were made.
            let sent = cohort.graph.encapsulates(self.index, index).then(|| {
                let coins = pairwise::mask_coins(&secrets.mask_secret, cohort.id, index, &advert.mask_ek);
                let (ct, secret) = advert.mask_ek.encapsulate_with_coins(&coins);
                (secret, ct)
            });
            let (advert, identity) = (Arc::new(advert), identity.map(Arc::new));
            neighbours.push(Neighbour { index, advert, identity, sent });
        }
        let committee = self.committee();
        Ok(Shared { secrets, cohort, index: self.index, neighbours, committee, message })
    }

    fn participant(&self, round: Round) -> Result<Participant, ClientError> {
        let cohort = self.cohort(&round.params)?;
        let shared = bitmap::from_bytes(&self.shared, self.n as usize)?;
        let share = |bytes: &[u8]| Share::from_bytes(self.index + 1, bytes.try_into().ok()?).ok();
        let keep_keys = round.params.malicious() && cohort.graph.complete();
        let peer = |peer: &SavedPeer| {
            let index = self.neighbour(peer)?;
            let shares = share(&peer.self_mask_share).zip(share(&peer.mask_share));
            let identity = if keep_keys { Some(Arc::new(VerifyingKey::from_bytes(&peer.identity)?)) } else { None };
            Ok(Peer { index, shares: shares.map(|(self_mask, mask)| Shares { self_mask, mask }), identity })
        };
        let peers = self.peers.iter().map(peer).collect::<Result<_, ClientError>>()?;
        let self_secret = scalar(&self.self_secret)?;
        Ok(Participant { round, self_secret, cohort, index: self.index, shared, peers, committee: self.committee() })
    }
}
