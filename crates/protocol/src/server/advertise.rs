//! Phase 0: adverts are collected, then the cohort is closed (section 3).

use std::collections::{BTreeMap, BTreeSet};

use unisono_crypto::kdf::{hash, label};
use unisono_crypto::merkle;
use unisono_crypto::sign::VerifyingKey;

use super::share::Sharing;
use super::{Abort, Context, Members, Phase, Progress, Reason};
use crate::cohort::{self, Advert, Cohort};
use crate::ids::{ClientId, RoundId};
use crate::proto::{self, Signed, server_message::View};
use crate::signed::{self, SignedError};

/// A client that advertised its keys.
pub(super) struct Member {
    pub advert: Advert,
    pub signed: Signed,
    /// Its roster leaf, in malicious mode.
    pub roster: Option<proto::RosterProof>,
    /// Verifies what it signs, in malicious mode.
    pub identity: Option<VerifyingKey>,
}

/// A client's place in the draw of the members: the lowest of those who came are in the cohort (section 3).
pub fn place_in_draw(round: RoundId, client: ClientId) -> [u8; 32] {
    hash(label::COHORT_DRAW, &[&round.0, &client.0])
}

/// In semi-honest mode: so many times `n_max` clients are left out for others at most, then who is in stays.
const MOST_LEFT_OUT: usize = 4;

pub(super) struct Advertising {
    context: Context,
    members: BTreeMap<ClientId, Member>,
    /// Their places in the draw.
    places: BTreeSet<([u8; 32], ClientId)>,
    /// Clients that were members until others with lower places came.
    left_out: BTreeSet<ClientId>,
    /// Every advertised key: one that occurs twice is refused, as every client would.
    keys: BTreeSet<Vec<u8>>,
}

impl Advertising {
    pub fn new(context: Context) -> Self {
        Self {
            context,
            members: BTreeMap::new(),
            places: BTreeSet::new(),
            left_out: BTreeSet::new(),
            keys: BTreeSet::new(),
        }
    }

    pub fn absorb(&mut self, client: ClientId, signed: &Signed, now: u64) -> Result<(), Reason> {
        let params = &self.context.params;
        // Before the roster is read and the signature verified, which take most of the time.
        let place = (place_in_draw(params.round_id, client), client);
        let n_max = params.wire.n_max as usize;
        let full = self.members.len() >= n_max;
        // Where ids are free, somebody could take one place after the other.
        let too_many = self.context.authority.is_none() && self.left_out.len() >= MOST_LEFT_OUT * n_max;
        if full && (too_many || self.places.last().is_none_or(|last| place > *last)) {
            return Err(Reason::Full { n_max: params.wire.n_max });
        }
        let (mut identity, mut roster) = (None, None);
        if let Some(authority) = &self.context.authority {
            let unknown = || Reason::Unknown { epoch: authority.roster.head().epoch };
            let (leaf, proof) = authority.roster.entry(client)?.ok_or_else(unknown)?;
            leaf.check_validity(now)?;
            (identity, roster) = (Some(leaf.identity_key), Some(proof));
        }
        signed::verify::<proto::Advert>(signed, label::SIG_ADVERT, identity.as_ref(), "advert")?;
        let advert = Advert::from_payload(&signed.payload, params.round_id)?;
        if advert.client_id != client {
            return Err(SignedError::malformed("advert", "it names another client than its envelope").into());
        }
        let (mask, channel) = (advert.mask_ek.as_bytes(), advert.channel_ek.as_bytes());
        if mask == channel || self.keys.contains(mask) || self.keys.contains(channel) {
            return Err(Reason::KeysRepeat);
        }
        advert.insert_keys(&mut self.keys);
        self.members.insert(client, Member { advert, signed: signed.clone(), roster, identity });
        self.places.insert(place);
        if full && let Some((_, last)) = self.places.pop_last() {
            self.leave_out(last);
        }
        Ok(())
    }

    fn leave_out(&mut self, client: ClientId) {
        if let Some(member) = self.members.remove(&client) {
            member.advert.remove_keys(&mut self.keys);
        }
        self.left_out.insert(client);
    }

    /// Clients whose adverts were accepted and that are not in the cohort, for want of room.
    pub fn left_out(&self) -> &BTreeSet<ClientId> {
        &self.left_out
    }

    pub fn view(&self, _: ClientId) -> Option<View> {
        None
    }

    pub fn progress(&self) -> Progress {
        Progress { answered: self.members.len(), expected: self.context.params.wire.n_max as usize, leaving: 0 }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        Vec::new()
    }

    /// Closes the cohort; also, who was left out of it. Where section 9 finds no graph for the number of clients at hand, the last
    /// ones of the draw are left out.
    pub fn close(mut self) -> Result<(Sharing, BTreeSet<ClientId>), Abort> {
        let params = &self.context.params;
        let (have, need) = (self.members.len(), params.wire.n_min as usize);
        if have < need {
            return Err(Abort::TooFew { phase: Phase::Advertise, have, need });
        }
        let feasible = (need..=have).rev().find(|&n| params.topology(n as u32).is_ok());
        let n = feasible.unwrap_or(have);
        for _ in n..have {
            let last = self.places.pop_last();
            last.into_iter().for_each(|(_, client)| self.leave_out(client));
        }
        let params = &self.context.params;
        let members: Vec<Member> = self.members.into_values().collect();
        let tree = merkle::Tree::new(label::TREE_ADVERTS, members.iter().map(|member| &member.signed.payload));
        let places = members.iter().map(|member| member.roster.as_ref().map(|proof| proof.index)).collect();
        // Members and leaves are both in order of client id.
        let listed = Option::<Vec<u64>>::and_then(places, cohort::Members::new);
        let proposal = Cohort::propose(params, n as u32, tree.root(), listed.as_ref())?;
        let signed_cohort = signed::sign(&proposal, label::SIG_COHORT, self.context.signing_key());
        let topology = params.topology(n as u32)?;
        let cohort = Cohort::of_payload(&signed_cohort.payload, n as u32, topology, tree.root());
        let members = Members { context: self.context.clone(), cohort, signed_cohort, members, listed };
        Ok((Sharing::new(members, tree), self.left_out))
    }
}
