//! Phase 2: masked vectors are collected and summed (section 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use unisono_crypto::kdf::{Hasher, label};
use unisono_crypto::ring::RingVector;

use super::confirm::Confirming;
use super::share::{self, Commitment, Sent};
use super::{Abort, Accepted, Members, Phase, Progress, Reason};
use crate::ids::ClientId;
use crate::pairwise;
use crate::proto::{self, Signed, server_message::View};
use crate::signed;

const WHAT: &str = "upload header";

pub(super) struct Masking {
    members: Arc<Members>,
    /// U1.
    shared: Vec<bool>,
    sharers_hash: [u8; 32],
    sent: Vec<Option<Sent>>,
    /// Hash in each accepted header.
    headers: BTreeMap<u32, [u8; 32]>,
    /// U2 so far.
    complete: Vec<bool>,
    sum: RingVector,
}

impl Masking {
    pub fn new(members: Arc<Members>, shared: Vec<bool>, sent: Vec<Option<Sent>>) -> Self {
        let params = &members.context.params;
        let sum = RingVector::zeros(params.modulus, params.vector_len());
        let complete = vec![false; shared.len()];
        let sharers_hash = pairwise::sharers_hash(&shared);
        Self { members, shared, sharers_hash, sent, headers: BTreeMap::new(), complete, sum }
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    fn index_of(&self, client: ClientId) -> Result<u32, Reason> {
        let index = self.members.index_of(client)?;
        if self.shared[index as usize] { Ok(index) } else { Err(Reason::NotExpected) }
    }

    pub fn absorb(&mut self, client: ClientId, signed: &Signed) -> Result<(), Reason> {
        let index = self.index_of(client)?;
        let header: proto::UploadHeader =
            signed::verify(signed, label::SIG_UPLOAD, self.members.identity(index), WHAT)?;
        self.members.check_sender(&header.cohort_id, header.from, index)?;
        let expected = self.members.context.params.packed_len();
        if header.length != expected {
            return Err(Reason::UploadLength { expected, got: header.length });
        }
        self.headers.insert(index, signed::fixed(&header.hash, WHAT)?);
        Ok(())
    }

    pub fn awaited(&self, client: ClientId) -> Option<(u64, [u8; 32])> {
        let index = self.index_of(client).ok().filter(|&index| !self.complete[index as usize])?;
        self.headers.get(&index).map(|hash| (self.members.context.params.packed_len(), *hash))
    }

    pub fn has(&self, client: ClientId) -> bool {
        self.index_of(client).is_ok_and(|index| self.complete[index as usize])
    }

    pub fn absorb_upload(&mut self, client: ClientId, packed: &[u8]) -> Result<Accepted, Reason> {
        let index = self.index_of(client)?;
        if self.complete[index as usize] {
            return Ok(Accepted::Repeat);
        }
        let hash = self.headers.get(&index).ok_or(Reason::Incomplete("upload header yet"))?;
        let (expected, got) = (self.members.context.params.packed_len(), packed.len() as u64);
        if got != expected {
            return Err(Reason::UploadLength { expected, got });
        }
        if Hasher::new(label::UPLOAD).update(packed).finalize() != *hash {
            return Err(Reason::UploadHash);
        }
        self.sum.add_packed(packed)?;
        self.complete[index as usize] = true;
        Ok(Accepted::New)
    }

    pub fn view(&self, client: ClientId) -> Option<View> {
        let index = self.index_of(client).ok()?;
        Some(share::view(&self.members, index, &self.shared, &self.sent))
    }

    pub fn progress(&self) -> Progress {
        Progress {
            answered: crate::bitmap::count(&self.complete),
            expected: crate::bitmap::count(&self.shared),
            leaving: 0,
        }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        let missing = self.shared.iter().zip(&self.complete).map(|(&shared, &complete)| shared && !complete);
        self.members.ids(&missing.collect::<Vec<_>>())
    }

    pub fn close(self) -> Result<Confirming, Abort> {
        self.members.check_set(&self.complete, Phase::Mask)?;
        let masked = Masked {
            mask_cts: self.mask_ciphertexts(),
            commitments: self.commitments(),
            members: self.members,
            shared: self.shared,
            sharers_hash: self.sharers_hash,
            survivors: self.complete,
            sum: self.sum,
        };
        Ok(Confirming::new(masked))
    }

    /// The mask ciphertexts between a client that dropped out and a survivor: the only ones that unmasking needs.
    fn mask_ciphertexts(&self) -> BTreeMap<(u32, u32), Vec<u8>> {
        let graph = &self.members.cohort.graph;
        let mut mask_cts = BTreeMap::new();
        for (from, sent) in self.sent.iter().enumerate().filter_map(|(u, sent)| Some((u as u32, sent.as_ref()?))) {
            for (to, message) in graph.neighbours(from).into_iter().zip(&sent.messages) {
                let one_survives = self.complete[from as usize] != self.complete[to as usize];
                if one_survives && self.shared[to as usize] && graph.encapsulates(from, to) {
                    // Decoded once already, when it was absorbed.
                    let message = proto::NeighbourShares::decode(message.as_slice()).unwrap_or_default();
                    mask_cts.insert((from, to), message.mask_ct);
                }
            }
        }
        mask_cts
    }

    /// The commitments to the shares that survivors will reveal.
    fn commitments(&self) -> BTreeMap<(u32, u32), Commitment> {
        let mut commitments = BTreeMap::new();
        for (from, sent) in self.sent.iter().enumerate().filter_map(|(u, sent)| Some((u as u32, sent.as_ref()?))) {
            let holders = self.members.cohort.graph.neighbours(from).into_iter().zip(&sent.commitments);
            for (to, [self_mask, mask]) in holders.filter(|(to, _)| self.complete[*to as usize]) {
                let needed = if self.complete[from as usize] { self_mask } else { mask };
                commitments.insert((from, to), *needed);
            }
        }
        commitments
    }
}

/// The masked sum, and what it takes to unmask it.
pub(super) struct Masked {
    pub members: Arc<Members>,
    /// U1.
    pub shared: Vec<bool>,
    /// Hash of U1, to which masks and endorsements are bound.
    pub sharers_hash: [u8; 32],
    /// U2.
    pub survivors: Vec<bool>,
    pub sum: RingVector,
    /// By dealer and holder: to the share that the holder will be asked for.
    pub commitments: BTreeMap<(u32, u32), Commitment>,
    /// By encapsulator and other end.
    pub mask_cts: BTreeMap<(u32, u32), Vec<u8>>,
}

impl Masked {
    /// The index of a survivor.
    pub fn survivor(&self, client: ClientId) -> Result<u32, Reason> {
        let index = self.members.index_of(client)?;
        if self.survivors[index as usize] { Ok(index) } else { Err(Reason::NotExpected) }
    }

    pub fn survivors_view(&self) -> View {
        View::Survivors(proto::SurvivorsView {
            cohort_id: self.members.cohort.id.to_vec(),
            survivors: crate::bitmap::to_bytes(&self.survivors),
        })
    }
}
