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

use super::mask::{Masked, Member, Peer, Shares};
use super::share::{Neighbour, Shared};
use super::unmask::{Confirmed, Done};
use super::{Advertised, ClientError, Identity, Round, Secrets, coordinator_key};
use crate::bitmap;
use crate::cohort::{Advert, Cohort};
use crate::graph::Graph;
use crate::ids::CohortId;
use crate::pairwise::{self, End};
use crate::params::RoundParams;
use crate::proto::{self, ClientMessage, client_message::Step};
use crate::roster::Head;

/// What is saved of a neighbour, or of a neighbour that shared its keys.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct SavedPeer {
    #[prost(uint32, tag = "1")]
    index: u32,
    /// The secret sent to it; from phase 2 on the key between the two.
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    self_mask_share: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    mask_share: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    advert: Option<proto::Advert>,
    #[prost(bytes = "vec", tag = "6")]
    identity: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Saved {
    #[prost(uint32, tag = "1")]
    phase: u32,
    #[prost(bytes = "vec", tag = "2")]
    round_id: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    message: Option<ClientMessage>,
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
    #[prost(bytes = "vec", tag = "14")]
    survivors: Vec<u8>,
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
        self.secret.zeroize();
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

    fn with_member(mut self, member: &Member) -> Self {
        self.self_secret = scalar_bytes(member.self_secret.as_ref());
        self.shared = bitmap::to_bytes(&member.shared);
        self.peers = member.peers.iter().map(SavedPeer::of_peer).collect();
        self.with_cohort(&member.cohort, member.index)
    }

    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.encode_to_vec())
    }
}

impl SavedPeer {
    fn of_peer(peer: &Peer) -> Self {
        let mut saved = Self::default();
        saved.index = peer.index;
        saved.secret = peer.channel.expose().to_vec();
        if let Some(shares) = &peer.shares {
            saved.self_mask_share = shares.self_mask.value_bytes().to_vec();
            saved.mask_share = shares.mask.value_bytes().to_vec();
        }
        saved
    }

    fn of_neighbour(neighbour: &Neighbour, round: &Round) -> Self {
        let mut saved = Self::default();
        saved.index = neighbour.index;
        saved.secret = neighbour.sent.expose().to_vec();
        saved.advert = Some(advert_to_wire(&neighbour.advert, round));
        saved.identity = neighbour.identity.as_ref().map(|key| key.as_bytes().to_vec()).unwrap_or_default();
        saved
    }
}

impl Advertised {
    /// This state as bytes, for [`Resumed::from_bytes`]. They are secret.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        Saved::of(ADVERTISED, Some(&self.secrets.round), &self.message).with_secrets(&self.secrets).bytes()
    }
}

impl Shared {
    /// This state as bytes, for [`Resumed::from_bytes`]. They are secret.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        let round = &self.secrets.round;
        let mut saved = Saved::of(SHARED, Some(round), self.message())
            .with_secrets(&self.secrets)
            .with_cohort(&self.cohort, self.index);
        saved.peers = self.neighbours.iter().map(|neighbour| SavedPeer::of_neighbour(neighbour, round)).collect();
        saved.bytes()
    }
}

impl Masked {
    /// This state as bytes, without the masked vector, for [`Resumed::from_bytes`]. They are secret.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        Saved::of(MASKED, Some(&self.member.round), self.message()).with_member(&self.member).bytes()
    }
}

impl Confirmed {
    /// This state as bytes, for [`Resumed::from_bytes`]. They are secret.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        let mut saved = Saved::of(CONFIRMED, Some(&self.member.round), self.message()).with_member(&self.member);
        saved.survivors = bitmap::to_bytes(&self.survivors);
        saved.bytes()
    }
}

impl Done {
    /// This state as bytes, for [`Resumed::from_bytes`]. They hold what was released to the coordinator, and are for nobody else.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        Saved::of(DONE, None, self.message()).bytes()
    }
}

/// A state that was saved.
pub enum Resumed {
    /// The cohort is awaited.
    Advertised(Advertised),
    /// The set of clients that shared is awaited.
    Shared(Shared),
    /// The set of survivors is awaited. [`Masked::chunk`] has nothing: the vector was not saved.
    Masked(Masked),
    /// The neighbours' tags are awaited.
    Confirmed(Confirmed),
    /// Nothing is left to do.
    Done(Done),
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

/// 32 bytes, or none without a secret.
pub(super) fn scalar_bytes(secret: Option<&SecretScalar>) -> Vec<u8> {
    secret.map(|secret| secret.to_secret().expose().to_vec()).unwrap_or_default()
}

fn advert(wire: Option<&proto::Advert>, round: &Round) -> Result<Advert, ClientError> {
    let wire = damaged(wire, "an advert is missing")?;
    Ok(Advert::from_payload(&wire.encode_to_vec(), round.params.round_id)?)
}

impl Resumed {
    /// Reads what a state's `save` wrote. The offer is the one that the round began with; its signatures are verified again.
    /// The policy was asked when the round was joined; the record is asked by the next step.
    ///
    /// # Errors
    /// [`ClientError::Saved`] for bytes that are no saved state or that of another round or device; any error about the offer.
    pub fn from_bytes(
        bytes: &[u8],
        offer: &proto::RoundOffer,
        identity: Arc<Identity>,
        registrar: Option<&VerifyingKey>,
    ) -> Result<Self, ClientError> {
        let saved = damaged(Saved::decode(bytes).ok(), "the bytes are none")?;
        let round = Round::of_offer(offer, identity, registrar)?;
        let message = damaged(saved.message.clone(), "its message is missing")?;
        let round_id = &round.params.round_id.0;
        if saved.round_id != round_id || message.round_id != round_id || message.client_id != round.identity.client_id.0
        {
            return Err(ClientError::Saved("it is of another round or device"));
        }
        match saved.phase {
            ADVERTISED => {
                let Some(Step::Advert(signed)) = &message.step else {
                    return Err(ClientError::Saved("its message is of another phase"));
                };
                let payload = signed.payload.clone();
                Ok(Self::Advertised(Advertised { secrets: saved.secrets(round)?, payload, message }))
            }
            SHARED => saved.shared(round, message).map(Self::Shared),
            MASKED => {
                let vector = RingVector::zeros(round.params.modulus, 0);
                Ok(Self::Masked(Masked { member: saved.member(round)?, vector, message }))
            }
            CONFIRMED => {
                let survivors = bitmap::from_bytes(&saved.survivors, saved.n as usize)?;
                Ok(Self::Confirmed(Confirmed { member: saved.member(round)?, survivors, message }))
            }
            DONE => Ok(Self::Done(Done { message })),
            _ => Err(ClientError::Saved("its phase is none")),
        }
    }
}

impl Round {
    fn of_offer(
        offer: &proto::RoundOffer,
        identity: Arc<Identity>,
        registrar: Option<&VerifyingKey>,
    ) -> Result<Self, ClientError> {
        let signed = offer.params.as_ref().ok_or(ClientError::Missing("signed parameters in the offer"))?;
        let params = RoundParams::from_payload(&signed.payload)?;
        let authority = match (&offer.roster_head, registrar) {
            (Some(head), Some(registrar)) => {
                let head = Head::verify(head, registrar)?;
                let key = coordinator_key(&head, signed).ok_or(ClientError::UntrustedCoordinator)?;
                Some((Arc::new(head), key))
            }
            _ => None,
        };
        if params.malicious() != authority.is_some() {
            return Err(ClientError::Missing("roster head or registrar's key, which a round in malicious mode needs"));
        }
        Ok(Self { params: Arc::new(params), authority, identity, checks: None })
    }
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

    fn shared(&self, round: Round, message: ClientMessage) -> Result<Shared, ClientError> {
        let cohort = self.cohort(&round.params)?;
        let secrets = self.secrets(round)?;
        let from = End { index: self.index, advert: &secrets.advert };
        let mut neighbours = Vec::with_capacity(self.peers.len());
        for peer in &self.peers {
            let index = self.neighbour(peer)?;
            let advert = advert(peer.advert.as_ref(), &secrets.round)?;
            let identity = match secrets.round.authority {
                Some(_) => Some(VerifyingKey::from_bytes(&peer.identity)?),
                None => None,
            };
            // The coins are derived, so the pair's mask comes out as it did when the shares were made.
            let mask = cohort.graph.encapsulates(self.index, index).then(|| {
                let coins = pairwise::mask_coins(&secrets.mask_secret, cohort.id, index, &advert.mask_ek);
                let (ct, secret) = advert.mask_ek.encapsulate_with_coins(&coins);
                pairwise::pair_mask(&secret, cohort.id, from, End { index, advert: &advert }, &ct)
            });
            let (advert, identity) = (Arc::new(advert), identity.map(Arc::new));
            neighbours.push(Neighbour { index, advert, identity, sent: secret(&peer.secret)?, mask });
        }
        Ok(Shared { secrets, cohort, index: self.index, neighbours, message })
    }

    fn member(&self, round: Round) -> Result<Member, ClientError> {
        let cohort = self.cohort(&round.params)?;
        let shared = bitmap::from_bytes(&self.shared, self.n as usize)?;
        let share = |bytes: &[u8]| Share::from_bytes(self.index + 1, bytes.try_into().ok()?).ok();
        let peer = |peer: &SavedPeer| {
            let index = self.neighbour(peer)?;
            let shares = share(&peer.self_mask_share).zip(share(&peer.mask_share));
            Ok(Peer {
                index,
                channel: secret(&peer.secret)?,
                shares: shares.map(|(self_mask, mask)| Shares { self_mask, mask }),
            })
        };
        let peers = self.peers.iter().map(peer).collect::<Result<_, ClientError>>()?;
        let self_secret = if cohort.graph.complete() { Some(scalar(&self.self_secret)?) } else { None };
        Ok(Member { round, self_secret, cohort, index: self.index, shared, peers })
    }
}
