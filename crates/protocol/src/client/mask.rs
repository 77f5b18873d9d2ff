//! Phase 2: the input is masked (section 5).

use std::sync::Arc;

use prost::Message;
use rand_core::CryptoRng;
use rayon::prelude::*;
use unisono_crypto::kdf::{Hasher, label};
use unisono_crypto::prg::{Seed, Sign};
use unisono_crypto::ring::RingVector;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{SecretScalar, Share};
use unisono_crypto::sign::VerifyingKey;
use unisono_crypto::{CryptoError, aead, merkle};

use super::error::NeighbourFault;
use super::share::{Committee, Neighbour, Shared};
use super::{ClientError, Rejected, Round, commit};
use crate::bitmap;
use crate::cohort::Cohort;
use crate::pairwise::{self, End, Pair};
use crate::policy::ParticipationRecord;
use crate::proto::{self, ClientMessage, SecretKind, client_message::Step};
use crate::signed::{self, SignedError};

/// What is received, in errors.
const WHAT: &str = "neighbour's shares";

/// Both shares that a neighbour gave this device. One of them is revealed, never both.
#[derive(Clone)]
pub(super) struct Shares {
    pub self_mask: Share,
    pub mask: Share,
}

/// A neighbour that shared its keys.
#[derive(Clone)]
pub(super) struct Peer {
    pub index: u32,
    /// `None` when they could not be opened.
    pub shares: Option<Shares>,
    /// In a complete graph in malicious mode, verifies its endorsement.
    pub identity: Option<Arc<VerifyingKey>>,
}

/// What stays of the round after the input was masked: the mask secret is gone, and with it the pairs' masks.
#[derive(Clone)]
pub(super) struct Participant {
    pub round: Round,
    /// The self-mask secret, which is revealed with the neighbours' shares.
    pub self_secret: SecretScalar,
    pub cohort: Cohort,
    pub index: u32,
    /// The clients that shared their keys, U1.
    pub shared: Vec<bool>,
    /// The neighbours among them, ascending.
    pub peers: Vec<Peer>,
    pub committee: Committee,
}

impl Participant {
    /// Last second of this device's clock at which it signs or reveals anything in this round (section 6).
    pub fn erase_at(&self) -> u64 {
        self.round.erase_at(self.committee.accepted_at)
    }
}

/// The input is masked; the set of survivors is awaited.
pub struct Masked {
    pub(super) participant: Participant,
    pub(super) vector: RingVector,
    pub(super) message: ClientMessage,
}

impl Shared {
    /// Opens the neighbours' shares, marks the round as spent, and masks `input` (as [`crate::encoding::Quantiser::encode`]
    /// gave it). `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`Rejected`] with this state: a check of section 5 failed, the input is not of this round's shape, or the record could
    /// not be written. Nothing was masked then.
    pub fn mask<R: CryptoRng + ?Sized>(
        self,
        view: &proto::MaskingView,
        mut input: RingVector,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Masked, Rejected<Self>> {
        match self.try_mask(view, &mut input, record, now, rng) {
            Ok((participant, message)) => Ok(Masked { participant, vector: input, message }),
            Err(error) => Err(Rejected { state: Box::new(self), error }),
        }
    }

    fn try_mask<R: CryptoRng + ?Sized>(
        &self,
        view: &proto::MaskingView,
        input: &mut RingVector,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<(Participant, ClientMessage), ClientError> {
        let (round, cohort) = (&self.secrets.round, &self.cohort);
        if view.cohort_id != cohort.id.0 {
            return Err(ClientError::OtherCohort);
        }
        let params = &round.params;
        round.refuse_late(self.committee.accepted_at, now)?;
        if input.len() != params.vector_len() {
            let (expected, got) = (params.vector_len(), input.len());
            return Err(CryptoError::Length { what: "input", expected, got }.into());
        }
        if input.modulus() != params.modulus {
            let (got, bits) = (input.modulus().bits().into(), params.modulus.bits().into());
            return Err(CryptoError::Range { what: "the input's modulus bits", got, min: bits, max: bits }.into());
        }
        let shared = bitmap::from_bytes(&view.shared, cohort.graph.n() as usize)?;
        if !shared[self.index as usize] {
            return Err(ClientError::LeftOut("shared keys"));
        }
        let need = params.wire.n_min as usize;
        let have = bitmap::count(&shared);
        if have < need {
            return Err(ClientError::TooFew { what: "shared keys", have, need });
        }
        let present: Vec<&Neighbour> = self.neighbours.iter().filter(|v| shared[v.index as usize]).collect();
        let (have, need) = (present.len(), cohort.threshold());
        if have < need {
            return Err(ClientError::TooFew { what: "of this device's neighbours shared keys", have, need });
        }
        if view.deliveries.len() != present.len() {
            return Err(ClientError::TooFew { what: "were delivered", have: view.deliveries.len(), need: have });
        }
        // One batch; the first fault in order is the one reported.
        let roots = view.deliveries.iter().map(|delivery| delivery.root.as_ref());
        let verified =
            round.verify_all(label::SIG_SHARES, WHAT, present.iter().map(|v| v.identity.as_deref()).zip(roots));
        for (neighbour, verified) in present.iter().zip(verified) {
            verified.map_err(|error| NeighbourFault::from(error).of(neighbour.index))?;
        }

        let mask_key = pairwise::mask_key(&self.secrets.mask_secret, params.round_id);
        let sharers = pairwise::sharers_hash(&shared);
        let mut masks = vec![(pairwise::self_mask(&self.secrets.self_secret, cohort.id, &sharers), Sign::Add)];
        let mut peers = Vec::with_capacity(present.len());
        // All cores decapsulate; the first fault in order is the one reported.
        let receive = |(&neighbour, delivery): (&&Neighbour, &proto::DeliveredShares)| {
            self.receive(neighbour, delivery, &mask_key, &sharers).map_err(|fault| fault.of(neighbour.index))
        };
        let received: Vec<_> = present.par_iter().zip(&view.deliveries).map(receive).collect();
        for received in received {
            let (peer, mask) = received?;
            masks.push(mask);
            peers.push(peer);
        }

        commit::spend(round, cohort, sharers, record, now)?;
        input.apply_masks(&masks)?;

        let mut hasher = Hasher::new(label::UPLOAD);
        for chunk in 0..params.chunks() {
            hasher.update(&chunk_of(input, params.wire.chunk_elements as usize, chunk)?);
        }
        let header = proto::UploadHeader {
            cohort_id: cohort.id.to_vec(),
            from: self.index,
            length: params.packed_len(),
            hash: hasher.finalize().to_vec(),
        };
        let header = signed::sign_hedged(header.encode_to_vec(), label::SIG_UPLOAD, round.signing_key(), rng);
        let message = round.message(Step::Upload(header));
        let self_secret = self.secrets.self_secret.clone();
        let (round, cohort, committee) = (round.clone(), cohort.clone(), self.committee.clone());
        let participant = Participant { round, self_secret, cohort, index: self.index, shared, peers, committee };
        Ok((participant, message))
    }

    /// Checks one neighbour's message, whose signature was verified, and takes the pair's mask and the shares out of it.
    fn receive(
        &self,
        neighbour: &Neighbour,
        delivery: &proto::DeliveredShares,
        mask_key: &unisono_crypto::kem::DecapsulationKey,
        sharers: &[u8; 32],
    ) -> Result<(Peer, (Seed, Sign)), NeighbourFault> {
        let cohort = &self.cohort;
        let malformed = |why: &dyn ToString| SignedError::malformed(WHAT, why.to_string());
        let root = delivery.root.as_ref().ok_or_else(|| malformed(&"no root"))?;
        let root: proto::SharesRoot = signed::canonical(&root.payload, WHAT)?;
        if root.cohort_id != cohort.id.0 || root.from != neighbour.index {
            return Err(NeighbourFault::Addressee);
        }
        let (count, position) = (root.count.into(), delivery.position.into());
        let root = signed::fixed(&root.root, WHAT)?;
        let path = signed::path(&delivery.path)?;
        merkle::verify(label::TREE_SHARES, &root, count, position, &delivery.message, &path)
            .map_err(|_| NeighbourFault::Path)?;
        let message = proto::NeighbourShares::decode(delivery.message.as_slice()).map_err(|e| malformed(&e))?;
        if message.from != neighbour.index || message.to != self.index {
            return Err(NeighbourFault::Addressee);
        }

        let own = End { index: self.index, advert: &self.secrets.advert };
        let other = End { index: neighbour.index, advert: &neighbour.advert };
        let received = self.secrets.channel.decapsulate(&message.channel_ct)?;
        let key = pairwise::share_key(&received, cohort.id, other, own);
        let shares = open_shares(&key, cohort, &message);
        let mask = match &neighbour.sent {
            Some((secret, ct)) => {
                let pair = Pair { cohort: cohort.id, sharers, encapsulator: own, other };
                (pairwise::pair_mask(secret, pair, ct), Sign::Add)
            }
            None => {
                let secret = mask_key.decapsulate(&message.mask_ct)?;
                let pair = Pair { cohort: cohort.id, sharers, encapsulator: other, other: own };
                (pairwise::pair_mask(&secret, pair, &message.mask_ct), Sign::Subtract)
            }
        };
        let identity = neighbour.identity.clone().filter(|_| cohort.graph.complete());
        Ok((Peer { index: neighbour.index, shares, identity }, mask))
    }
}

/// The shares inside a sealed message; `None` when they can't be had or are not those that the sender committed to, which it will
/// be reported for.
fn open_shares(key: &Secret32, cohort: &Cohort, message: &proto::NeighbourShares) -> Option<Shares> {
    let (from, to) = (message.from, message.to);
    let plaintext = aead::open(key, &cohort.id.0, &message.sealed).ok()?;
    let pair = proto::SharePair::decode(plaintext.as_slice()).ok()?;
    let share = |bytes: &[u8], kind, commitment: &[u8]| {
        let share = Share::from_bytes(to + 1, bytes.try_into().ok()?).ok()?;
        (pairwise::share_commitment(&share, kind, cohort.id, from) == commitment).then_some(share)
    };
    let self_mask = share(&pair.self_mask_share, SecretKind::SelfMask, &message.self_mask_commitment);
    let shares = self_mask.zip(share(&pair.mask_share, SecretKind::Mask, &message.mask_commitment));
    let addressed = pair.from == from && pair.to == to;
    let proto::SharePair { mut self_mask_share, mut mask_share, .. } = pair;
    zeroize::Zeroize::zeroize(&mut self_mask_share);
    zeroize::Zeroize::zeroize(&mut mask_share);
    shares.filter(|_| addressed).map(|(self_mask, mask)| Shares { self_mask, mask })
}

fn chunk_of(vector: &RingVector, chunk_elements: usize, index: u64) -> Result<Vec<u8>, CryptoError> {
    let start = index as usize * chunk_elements;
    vector.pack_range(start, chunk_elements.min(vector.len().saturating_sub(start)))
}

impl Masked {
    /// The signed header that opens the upload, to be sent until it is acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }

    /// Frees the masked vector, once the coordinator has acknowledged the whole upload. [`Self::chunk`] has nothing then.
    pub fn uploaded(&mut self) {
        self.vector = RingVector::zeros(self.vector.modulus(), 0);
    }

    /// Whether this device is on the committee, and is asked to confirm the set of survivors (section 6).
    pub fn on_committee(&self) -> bool {
        self.participant.cohort.graph.on_committee(self.participant.index).is_some()
    }

    /// Number of chunks of the upload.
    pub fn chunks(&self) -> u64 {
        self.participant.round.params.chunks()
    }

    /// Length in bytes of every chunk but the last.
    pub fn chunk_len(&self) -> usize {
        self.participant.round.params.chunk_len()
    }

    /// Chunk `index` of the packed masked vector; `None` beyond the last, and after [`Self::uploaded`] or when the state was resumed.
    pub fn chunk(&self, index: u64) -> Option<Vec<u8>> {
        let elements = self.participant.round.params.wire.chunk_elements as usize;
        if index < self.chunks() && !self.vector.is_empty() {
            chunk_of(&self.vector, elements, index).ok()
        } else {
            None
        }
    }
}
