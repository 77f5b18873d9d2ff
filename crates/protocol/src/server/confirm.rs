//! Phase 3, malicious mode: the committee endorses one pair of sets, and the certificate is made (section 6).

use std::collections::BTreeMap;
use std::sync::Arc;

use unisono_crypto::kdf::label;

use super::mask::Masked;
use super::unmask::Unmasking;
use super::{Abort, Phase, Progress, Reason};
use crate::ids::ClientId;
use crate::pairwise;
use crate::proto::{self, Signed, server_message::View};
use crate::signed;

const WHAT: &str = "endorsement";

pub(super) struct Confirming {
    masked: Masked,
    /// What every member signs.
    endorsement: Vec<u8>,
    /// Signatures by member.
    signatures: BTreeMap<u32, Vec<u8>>,
}

impl Confirming {
    pub fn new(masked: Masked) -> Self {
        let endorsement = pairwise::endorsement(masked.members.cohort.id, &masked.sharers_hash, &masked.survivors);
        Self { masked, endorsement, signatures: BTreeMap::new() }
    }

    pub fn masked(&self) -> &Masked {
        &self.masked
    }

    /// Members of the committee that shared their keys: they may have masked, and sign then.
    fn signers(&self) -> impl Iterator<Item = u32> {
        let committee = self.masked.members.cohort.graph.committee().iter().copied();
        committee.filter(|&u| self.masked.shared[u as usize])
    }

    fn signer(&self, client: ClientId) -> Result<u32, Reason> {
        let index = self.masked.members.index_of(client)?;
        let on_committee = self.masked.members.cohort.graph.on_committee(index).is_some();
        if on_committee && self.masked.shared[index as usize] { Ok(index) } else { Err(Reason::NotExpected) }
    }

    pub fn absorb(&mut self, client: ClientId, signed: &Signed) -> Result<(), Reason> {
        let index = self.signer(client)?;
        if signed.payload != self.endorsement {
            return Err(Reason::OtherSets);
        }
        signed::verify_bytes(signed, label::SIG_ENDORSEMENT, self.masked.members.identity(index), WHAT)?;
        self.signatures.insert(index, signed.signature.clone());
        Ok(())
    }

    pub fn view(&self, client: ClientId) -> Option<View> {
        self.signer(client).ok().map(|_| self.masked.survivors_view())
    }

    /// Who answers beyond the quorum is not waited for.
    pub fn progress(&self) -> Progress {
        let quorum = self.masked.members.cohort.graph.quorum();
        Progress { answered: self.signatures.len(), expected: self.signers().count().min(quorum), leaving: 0 }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        let members = &self.masked.members;
        self.signers().filter(|u| !self.signatures.contains_key(u)).map(|u| members.id(u)).collect()
    }

    pub fn close(self) -> Result<Unmasking, Abort> {
        let (have, need) = (self.signatures.len(), self.masked.members.cohort.graph.quorum());
        if have < need {
            return Err(Abort::TooFew { phase: Phase::Confirm, have, need });
        }
        let certificate = Arc::new(self.certificate(need));
        Ok(Unmasking::new(self.masked, Some(certificate)))
    }

    /// The certificate with the first `quorum` signatures: the same for all, and never another one for this cohort.
    fn certificate(&self, quorum: usize) -> proto::Certificate {
        let members = &self.masked.members;
        let complete = members.cohort.graph.complete();
        let endorsement = |(&signer, signature): (&u32, &Vec<u8>)| proto::Endorsement {
            signer,
            signature: signature.clone(),
            roster: members.members[signer as usize].roster.clone().filter(|_| !complete),
        };
        proto::Certificate {
            cohort_id: members.cohort.id.to_vec(),
            sharers_hash: self.masked.sharers_hash.to_vec(),
            survivors: crate::bitmap::to_bytes(&self.masked.survivors),
            endorsements: self.signatures.iter().take(quorum).map(endorsement).collect(),
        }
    }

    /// To phase 4 at once, in semi-honest mode.
    pub fn skip(self) -> Unmasking {
        Unmasking::new(self.masked, None)
    }
}
