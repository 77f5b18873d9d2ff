//! Phase 1: the cohort is checked, both secrets are split among the neighbours (section 4).

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::kdf::label;
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::VerifyingKey;
use unisono_crypto::{aead, merkle, shamir};
use zeroize::{Zeroize, Zeroizing};

use super::error::NeighbourFault;
use super::{Advertised, ClientError, Rejected, Round, Secrets, advance, commit};
use crate::cohort::{Advert, Cohort, Members};
use crate::pairwise::{self, End};
use crate::policy::ParticipationRecord;
use crate::proto::{self, ClientMessage, SecretKind, client_message::Step};
use crate::roster::Leaf;
use crate::signed;

/// What is checked, in errors.
const WHAT: &str = "neighbour's advert";

/// What a device knows about a neighbour from phase 1 on.
#[derive(Clone)]
pub(super) struct Neighbour {
    pub index: u32,
    pub advert: Arc<Advert>,
    /// Verifies what it signs, in malicious mode.
    pub identity: Option<Arc<VerifyingKey>>,
    /// The pair's mask secret and the ciphertext that carries it, where this device is the encapsulator.
    pub sent: Option<(Secret32, Vec<u8>)>,
}

/// What a device keeps of the cohort's committee, to judge a certificate by.
#[derive(Clone, Default)]
pub(super) struct Committee {
    /// Places of the committee's members among the roster's leaves, in order of index. Empty in a complete graph, where the
    /// members' keys are at hand.
    pub places: Vec<u64>,
    /// When this device accepted the cohort, Unix time in seconds: leaves must have been valid then.
    pub accepted_at: u64,
}

/// Shares are made; the set of clients that shared theirs is awaited.
pub struct Shared {
    pub(super) secrets: Secrets,
    pub(super) cohort: Cohort,
    pub(super) index: u32,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) committee: Committee,
    pub(super) message: ClientMessage,
}

impl Advertised {
    /// Checks the cohort as this device is shown it, splits both secrets, and records the cohort before the shares are handed
    /// out. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`Rejected`] with this state: which check of section 3 failed for whom, [`ClientError::OldRound`], or the record
    /// could not be written.
    pub fn share<R: CryptoRng + ?Sized>(
        self,
        view: &proto::CohortView,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Shared, Rejected<Self>> {
        advance(self, |state| {
            let params = &state.secrets.round.params;
            let entry = record.entry(&params.wire.task)?;
            commit::refuse_old(params, entry.as_ref())?;
            let shared = state.try_share(view, now, rng)?;
            commit::share(params, &shared.cohort, entry.as_ref(), record)?;
            Ok(shared)
        })
    }

    fn try_share<R: CryptoRng + ?Sized>(
        &self,
        view: &proto::CohortView,
        now: u64,
        rng: &mut R,
    ) -> Result<Shared, ClientError> {
        let round = &self.secrets.round;
        let signed_cohort = view.cohort.as_ref().ok_or(ClientError::Missing("cohort in the view"))?;
        let coordinator = round.coordinator_key();
        let proof = std::iter::once((coordinator, Some(signed_cohort)));
        round.verify_all(label::SIG_COHORT, "cohort", proof).into_iter().collect::<Result<(), _>>()?;
        let wire: proto::Cohort = signed::verify(signed_cohort, label::SIG_COHORT, None, "cohort")?;
        let cohort = Cohort::from_payload(&signed_cohort.payload, &round.params)?;
        let n = cohort.graph.n();
        let members = match &round.authority {
            Some((head, _)) => {
                let members = Members::from_wire(&view.members, head.size);
                let listed = |members: &Members| members.len() == n as usize && wire.members_hash == members.hash();
                Some(members.filter(listed).ok_or(ClientError::Members)?)
            }
            None => None,
        };
        let own = view.index;
        if let Some(members) = &members {
            let proof =
                view.own_roster.as_ref().ok_or(ClientError::Missing("roster leaf of this device in the view"))?;
            let place = self.own_place(proof, now)?;
            if place.is_none() || place != members.place(own) {
                return Err(ClientError::OwnPlace(own));
            }
        }
        let verify = |index: u32, payload: &[u8], path: &[[u8; 32]]| {
            merkle::verify(label::TREE_ADVERTS, &cohort.adverts_root, n.into(), index.into(), payload, path)
        };
        if own >= n || verify(own, &self.payload, &signed::path(&view.own_path)?).is_err() {
            return Err(ClientError::OwnAdvert(own));
        }
        let expected = cohort.graph.neighbours(own);
        let got: Vec<u32> = view.neighbours.iter().map(|neighbour| neighbour.index).collect();
        if got != expected {
            return Err(ClientError::Neighbours { expected, got });
        }

        let mut seen = BTreeSet::new();
        self.secrets.advert.insert_keys(&mut seen);
        let mut last_id = None;
        let mut checked = Vec::with_capacity(expected.len());
        // Signatures are the expensive part of this phase: one batch, on all cores.
        let mut leaves = Vec::with_capacity(expected.len());
        for neighbour in &view.neighbours {
            leaves.push(check_leaf(round, neighbour, now, verify).map_err(|fault| fault.of(neighbour.index))?);
        }
        let keys = leaves.iter().map(|leaf| leaf.as_ref().map(|leaf| &leaf.identity_key));
        let adverts = view.neighbours.iter().map(|neighbour| neighbour.advert.as_ref());
        let verified = round.verify_all(label::SIG_ADVERT, WHAT, keys.zip(adverts));
        for ((neighbour, leaf), verified) in view.neighbours.iter().zip(leaves).zip(verified) {
            let index = neighbour.index;
            let fault = |why: NeighbourFault| why.of(index);
            verified.map_err(|error| fault(error.into()))?;
            let payload = neighbour.advert.as_ref().map_or(&[][..], |signed| &signed.payload);
            let advert = Advert::from_payload(payload, round.params.round_id).map_err(|error| fault(error.into()))?;
            if leaf.as_ref().is_some_and(|leaf| leaf.client_id != advert.client_id) {
                return Err(fault(NeighbourFault::ClientId));
            }
            let identity = leaf.map(|leaf| leaf.identity_key);
            if members.as_ref().is_some_and(|all| all.place(index) != neighbour.roster.as_ref().map(|leaf| leaf.index))
            {
                return Err(fault(NeighbourFault::Place));
            }
            if !advert.insert_keys(&mut seen) {
                return Err(fault(NeighbourFault::KeysRepeat));
            }
            let own_id = round.identity.client_id;
            let in_order = (index < own) == (advert.client_id < own_id) && advert.client_id != own_id;
            if !in_order || last_id.is_some_and(|last| last >= advert.client_id) {
                return Err(fault(NeighbourFault::ClientId));
            }
            last_id = Some(advert.client_id);
            checked.push((index, advert, identity));
        }
        let mut committee = Committee { places: Vec::new(), accepted_at: now };
        if let Some(members) = members.filter(|_| !cohort.graph.complete()) {
            committee.places = cohort.graph.committee().iter().filter_map(|&index| members.place(index)).collect();
        }
        self.split(cohort, own, checked, committee, rng)
    }

    fn split<R: CryptoRng + ?Sized>(
        &self,
        cohort: Cohort,
        own: u32,
        checked: Vec<(u32, Advert, Option<VerifyingKey>)>,
        committee: Committee,
        rng: &mut R,
    ) -> Result<Shared, ClientError> {
        let Secrets { round, mask_secret, self_secret, advert: own_advert, .. } = &self.secrets;
        let from = End { index: own, advert: own_advert };
        let abscissas: Vec<u32> = checked.iter().map(|(index, ..)| index + 1).collect();
        let self_shares = shamir::split(self_secret, cohort.threshold(), &abscissas, rng)?;
        let mask_shares = shamir::split(mask_secret, cohort.threshold(), &abscissas, rng)?;
        let mut neighbours = Vec::with_capacity(checked.len());
        let mut messages = Vec::with_capacity(checked.len());
        for ((index, advert, identity), (self_share, mask_share)) in
            checked.into_iter().zip(self_shares.iter().zip(&mask_shares))
        {
            let to = End { index, advert: &advert };
            let (channel_ct, channel_secret) = advert.channel_ek.encapsulate(rng);
            let mut pair = proto::SharePair {
                from: own,
                to: index,
                self_mask_share: self_share.value_bytes().to_vec(),
                mask_share: mask_share.value_bytes().to_vec(),
            };
            let plaintext = Zeroizing::new(pair.encode_to_vec());
            pair.self_mask_share.zeroize();
            pair.mask_share.zeroize();
            let key = pairwise::share_key(&channel_secret, cohort.id, from, to);
            let sealed = aead::seal(&key, &cohort.id.0, &plaintext)?;
            let sent = cohort.graph.encapsulates(own, index).then(|| {
                let coins = pairwise::mask_coins(mask_secret, cohort.id, index, &advert.mask_ek);
                let (ct, secret) = advert.mask_ek.encapsulate_with_coins(&coins);
                (secret, ct)
            });
            let commitment = |share, kind| pairwise::share_commitment(share, kind, cohort.id, own).to_vec();
            let message = proto::NeighbourShares {
                from: own,
                to: index,
                channel_ct,
                sealed,
                mask_ct: sent.as_ref().map(|(_, ct)| ct.clone()).unwrap_or_default(),
                self_mask_commitment: commitment(self_share, SecretKind::SelfMask),
                mask_commitment: commitment(mask_share, SecretKind::Mask),
            };
            messages.push(message.encode_to_vec());
            let (advert, identity) = (Arc::new(advert), identity.map(Arc::new));
            neighbours.push(Neighbour { index, advert, identity, sent });
        }
        let root = proto::SharesRoot {
            cohort_id: cohort.id.to_vec(),
            from: own,
            count: messages.len() as u32,
            root: merkle::Tree::new(label::TREE_SHARES, &messages).root().to_vec(),
        };
        let root = signed::sign_hedged(root.encode_to_vec(), label::SIG_SHARES, round.signing_key(), rng);
        let message = round.message(Step::ShareKeys(proto::ShareKeys { root: Some(root), messages }));
        Ok(Shared { secrets: self.secrets.clone(), cohort, index: own, neighbours, committee, message })
    }

    /// The place among the roster's leaves of this device's own leaf, as a proof shows it.
    fn own_place(&self, proof: &proto::RosterProof, now: u64) -> Result<Option<u64>, ClientError> {
        let Some((head, _)) = &self.secrets.round.authority else { return Ok(None) };
        let leaf = head.check_leaf(proof, now)?;
        let identity = &self.secrets.round.identity;
        let own = leaf.client_id == identity.client_id && leaf.identity_key == identity.signing_key.verifying_key();
        Ok(own.then_some(proof.index))
    }
}

/// Path of one neighbour's advert, and in malicious mode its roster leaf.
fn check_leaf<E>(
    round: &Round,
    neighbour: &proto::NeighbourAdvert,
    now: u64,
    verify: impl Fn(u32, &[u8], &[[u8; 32]]) -> Result<(), E>,
) -> Result<Option<Leaf>, NeighbourFault> {
    let absent = |what| signed::SignedError::malformed(WHAT, what);
    let signed = neighbour.advert.as_ref().ok_or_else(|| absent("it is missing"))?;
    let path = signed::path(&neighbour.advert_path)?;
    verify(neighbour.index, &signed.payload, &path).map_err(|_| NeighbourFault::Path)?;
    let Some((head, _)) = &round.authority else { return Ok(None) };
    let proof = neighbour.roster.as_ref().ok_or_else(|| absent("its roster leaf is missing"))?;
    Ok(Some(head.check_leaf(proof, now)?))
}

impl Shared {
    /// The shares, to be sent until they are acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }

    /// This device's index in the cohort.
    pub fn index(&self) -> u32 {
        self.index
    }
}
