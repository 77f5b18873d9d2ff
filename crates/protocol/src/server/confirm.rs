//! Phase 3, malicious mode: survivors tag the set of survivors for each other (section 6).

use std::collections::BTreeMap;

use unisono_crypto::kdf::label;

use super::mask::Masked;
use super::unmask::Unmasking;
use super::{Abort, Phase, Progress, Reason};
use crate::ids::ClientId;
use crate::proto::{self, Signed, server_message::View};
use crate::signed;

const WHAT: &str = "consistency tags";
const TAG_LEN: usize = 16;

pub(super) struct Confirming {
    masked: Masked,
    /// By sender.
    tags: BTreeMap<u32, Vec<proto::Tag>>,
}

impl Confirming {
    pub fn new(masked: Masked) -> Self {
        Self { masked, tags: BTreeMap::new() }
    }

    pub fn masked(&self) -> &Masked {
        &self.masked
    }

    pub fn absorb(&mut self, client: ClientId, signed: &Signed) -> Result<(), Reason> {
        let (masked, members) = (&self.masked, &self.masked.members);
        let index = masked.survivor(client)?;
        let tags: proto::ConsistencyTags = signed::verify(signed, label::SIG_CONFIRM, members.identity(index), WHAT)?;
        members.check_sender(&tags.cohort_id, tags.from, index)?;
        let to = tags.tags.iter().map(|tag| tag.neighbour);
        if !to.eq(members.neighbours_in(index, &masked.survivors)) {
            return Err(Reason::shape(WHAT, "they are not one for each surviving neighbour, ascending"));
        }
        if tags.tags.iter().any(|tag| tag.tag.len() != TAG_LEN) {
            return Err(Reason::shape(WHAT, "one is not 16 bytes long"));
        }
        self.tags.insert(index, tags.tags);
        Ok(())
    }

    pub fn view(&self, client: ClientId) -> Option<View> {
        self.masked.survivor(client).ok().map(|_| self.masked.survivors_view())
    }

    pub fn progress(&self) -> Progress {
        Progress { answered: self.tags.len(), expected: crate::bitmap::count(&self.masked.survivors) }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        let missing = |(u, &survives): (usize, &bool)| survives && !self.tags.contains_key(&(u as u32));
        self.masked.members.ids(&self.masked.survivors.iter().enumerate().map(missing).collect::<Vec<_>>())
    }

    pub fn close(self) -> Result<Unmasking, Abort> {
        let (have, need) = (self.tags.len(), self.masked.members.cohort.threshold());
        if have < need {
            return Err(Abort::TooFew { phase: Phase::Confirm, have, need });
        }
        Ok(Unmasking::new(self.masked, Some(self.tags)))
    }

    /// To phase 4 at once, in semi-honest mode.
    pub fn skip(self) -> Unmasking {
        Unmasking::new(self.masked, None)
    }
}
