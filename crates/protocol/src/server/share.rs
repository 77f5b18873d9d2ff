//! Phase 1: every member splits its secrets among its neighbours (section 4).

use std::sync::Arc;

use prost::Message;
use unisono_crypto::aead;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::CT_LEN;
use unisono_crypto::merkle;

use super::mask::Masking;
use super::{Abort, Members, Phase, Progress, Reason};
use crate::bitmap;
use crate::cohort;
use crate::ids::ClientId;
use crate::pairwise::SHARE_COMMITMENT_LEN;
use crate::proto::{self, Signed, server_message::View};
use crate::signed;

const WHAT: &str = "shares";
/// Bytes of an encoded `SharePair`, at most.
const MAX_PAIR_LEN: usize = 128;

/// A dealer's commitment to a share.
pub(super) type Commitment = [u8; SHARE_COMMITMENT_LEN];

/// What one member sent its neighbours.
pub(super) struct Sent {
    pub root: Signed,
    /// Encoded `NeighbourShares`, one for each neighbour, ascending.
    pub messages: Vec<Vec<u8>>,
    /// Commitments to the shares in each: of the self-mask secret, of the mask secret.
    pub commitments: Vec<[Commitment; 2]>,
    pub tree: merkle::Tree,
}

pub(super) struct Sharing {
    members: Members,
    adverts: merkle::Tree,
    sent: Vec<Option<Sent>>,
}

fn vecs(path: Option<Vec<[u8; 32]>>) -> Vec<Vec<u8>> {
    path.unwrap_or_default().iter().map(|hash| hash.to_vec()).collect()
}

impl Sharing {
    pub fn new(members: Members, adverts: merkle::Tree) -> Self {
        let sent = members.members.iter().map(|_| None).collect();
        Self { members, adverts, sent }
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn absorb(&mut self, client: ClientId, shares: &proto::ShareKeys) -> Result<(), Reason> {
        let index = self.members.index_of(client)?;
        let signed_root = shares.root.as_ref().ok_or_else(|| Reason::shape(WHAT, "there is no signed root"))?;
        let identity = self.members.identity(index);
        let root: proto::SharesRoot = signed::verify(signed_root, label::SIG_SHARES, identity, WHAT)?;
        self.members.check_sender(&root.cohort_id, root.from, index)?;
        let neighbours = self.members.cohort.graph.neighbours(index);
        if root.count as usize != neighbours.len() || shares.messages.len() != neighbours.len() {
            let why = format!("{} messages for {} neighbours", shares.messages.len(), neighbours.len());
            return Err(Reason::shape(WHAT, why));
        }
        let tree = merkle::Tree::new(label::TREE_SHARES, &shares.messages);
        if root.root != tree.root() {
            return Err(Reason::shape(WHAT, "the messages do not give the signed root"));
        }
        let check = |(&to, message): (&u32, &Vec<u8>)| self.check_message(index, to, message);
        let commitments = neighbours.iter().zip(&shares.messages).map(check).collect::<Result<_, String>>();
        let commitments = commitments.map_err(|why| Reason::shape(WHAT, why))?;
        let (root, messages) = (signed_root.clone(), shares.messages.clone());
        self.sent[index as usize] = Some(Sent { root, messages, commitments, tree });
        Ok(())
    }

    /// Checks what a coordinator can see of a message; what is sealed in it is for the recipient to see. Gives the commitments.
    fn check_message(&self, from: u32, to: u32, message: &[u8]) -> Result<[Commitment; 2], String> {
        let message = proto::NeighbourShares::decode(message).map_err(|e| e.to_string())?;
        if message.from != from || message.to != to {
            return Err(format!("a message to neighbour {} stands where the one to {to} belongs", message.to));
        }
        let encapsulates = self.members.cohort.graph.encapsulates(from, to);
        let mask_len = if encapsulates { CT_LEN } else { 0 };
        if message.channel_ct.len() != CT_LEN || message.mask_ct.len() != mask_len {
            return Err(format!("ciphertexts to neighbour {to} have a wrong length"));
        }
        if message.sealed.len() > MAX_PAIR_LEN + aead::TAG_LEN {
            return Err(format!("the sealed part to neighbour {to} is longer than two shares"));
        }
        let commitment = |bytes: &[u8]| {
            bytes
                .try_into()
                .map_err(|_| format!("a commitment to neighbour {to} is not {SHARE_COMMITMENT_LEN} bytes long"))
        };
        Ok([commitment(&message.self_mask_commitment)?, commitment(&message.mask_commitment)?])
    }

    pub fn view(&self, client: ClientId) -> Option<View> {
        let members = &self.members;
        let index = members.index_of(client).ok()?;
        let path = |index: u32| vecs(self.adverts.path(index as usize));
        let neighbour = |v: u32| {
            let member = &members.members[v as usize];
            proto::NeighbourAdvert {
                index: v,
                advert: Some(member.signed.clone()),
                advert_path: path(v),
                roster: member.roster.clone(),
            }
        };
        Some(View::Cohort(proto::CohortView {
            cohort: Some(members.signed_cohort.clone()),
            index,
            own_path: path(index),
            neighbours: members.cohort.graph.neighbours(index).into_iter().map(neighbour).collect(),
            members: members.listed.as_ref().map(cohort::Members::to_wire).unwrap_or_default(),
            own_roster: members.members[index as usize].roster.clone(),
        }))
    }

    pub fn progress(&self) -> Progress {
        Progress { answered: self.sent.iter().flatten().count(), expected: self.sent.len(), leaving: 0 }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        self.members.ids(&self.sent.iter().map(Option::is_none).collect::<Vec<_>>())
    }

    pub fn close(self) -> Result<Masking, Abort> {
        let shared: Vec<bool> = self.sent.iter().map(Option::is_some).collect();
        self.members.check_set(&shared, Phase::Share)?;
        Ok(Masking::new(Arc::new(self.members), shared, self.sent))
    }
}

/// The messages of `u`'s neighbours to it, as the masking phase delivers them.
pub(super) fn view(members: &Members, u: u32, shared: &[bool], sent: &[Option<Sent>]) -> View {
    let delivery = |v: u32| {
        let sent = sent[v as usize].as_ref()?;
        let position = members.cohort.graph.neighbours(v).binary_search(&u).ok()?;
        Some(proto::DeliveredShares {
            root: Some(sent.root.clone()),
            message: sent.messages[position].clone(),
            position: position as u32,
            path: vecs(sent.tree.path(position)),
        })
    };
    View::Masking(proto::MaskingView {
        cohort_id: members.cohort.id.to_vec(),
        shared: bitmap::to_bytes(shared),
        deliveries: members.neighbours_in(u, shared).filter_map(delivery).collect(),
    })
}
