//! What a certificate must be before a device reveals shares under it (section 6).

use unisono_crypto::kdf::label;
use unisono_crypto::sign::VerifyingKey;

use super::error::CertificateFault;
use super::mask::Participant;
use super::{ClientError, Round};
use crate::bitmap;
use crate::pairwise;
use crate::proto;
use crate::roster::Leaf;
use crate::signed::{SignedError, fixed};

const WHAT: &str = "certificate";

impl Participant {
    /// Checks a certificate: signers, signatures, and the set of survivors itself. Whether this device is in the set is not
    /// checked here.
    pub(super) fn check_certificate(&self, certificate: &proto::Certificate) -> Result<Vec<bool>, ClientError> {
        if certificate.cohort_id != self.cohort.id.0 {
            return Err(ClientError::OtherCohort);
        }
        let sharers = pairwise::sharers_hash(&self.shared);
        if fixed::<32>(&certificate.sharers_hash, WHAT)? != sharers {
            return Err(CertificateFault::OtherSharers.into());
        }
        // Cheap checks first: nothing is verified for a certificate that can't hold.
        let signers = self.check_signers(certificate)?;
        let survivors = self.check_set(&certificate.survivors)?;
        let signed = pairwise::endorsement(self.cohort.id, &sharers, &survivors);
        let endorsements = certificate.endorsements.iter();
        let claims: Vec<proto::Signed> = endorsements
            .map(|endorsement| proto::Signed { payload: signed.clone(), signature: endorsement.signature.clone() })
            .collect();
        let claims = signers.iter().map(Some).zip(claims.iter().map(Some));
        let verified = self.round.verify_all(label::SIG_ENDORSEMENT, "endorsement", claims);
        for (endorsement, verified) in certificate.endorsements.iter().zip(verified) {
            verified.map_err(|_| CertificateFault::Signature { signer: endorsement.signer })?;
        }
        Ok(survivors)
    }

    /// Exactly the quorum, ascending, on the committee and in U1. Gives their keys.
    fn check_signers(&self, certificate: &proto::Certificate) -> Result<Vec<VerifyingKey>, ClientError> {
        let (have, need) = (certificate.endorsements.len(), self.cohort.graph.quorum());
        if have != need {
            return Err(CertificateFault::Quorum { have, need }.into());
        }
        let mut last = None;
        let mut keys = Vec::with_capacity(need);
        for endorsement in &certificate.endorsements {
            let signer = endorsement.signer;
            if last.is_some_and(|last| last >= signer) {
                return Err(CertificateFault::Order { signer }.into());
            }
            last = Some(signer);
            let place = self.cohort.graph.on_committee(signer).ok_or(CertificateFault::NotOnCommittee { signer })?;
            if !self.shared[signer as usize] {
                return Err(CertificateFault::NotASharer { signer }.into());
            }
            keys.push(self.key_of(signer, place, endorsement.roster.as_ref())?);
        }
        Ok(keys)
    }

    /// The key of the committee member with the given index, which is at `place` of the committee.
    fn key_of(
        &self,
        signer: u32,
        place: usize,
        proof: Option<&proto::RosterProof>,
    ) -> Result<VerifyingKey, ClientError> {
        let fault = |why| CertificateFault::Leaf { signer, why };
        if self.cohort.graph.complete() {
            if proof.is_some() {
                return Err(CertificateFault::NeedlessLeaf { signer }.into());
            }
            if signer == self.index {
                return Ok(self.round.identity.signing_key.verifying_key());
            }
            let peer = self.peers.binary_search_by_key(&signer, |peer| peer.index).ok().map(|at| &self.peers[at]);
            let key = peer.and_then(|peer| peer.identity.as_deref().cloned());
            return key.ok_or(ClientError::Saved("the key of a committee member is missing"));
        }
        let proof = proof.ok_or_else(|| fault(SignedError::malformed(WHAT, "the leaf is missing").into()))?;
        let listed = self.committee.places.get(place).copied();
        if listed != Some(proof.index) {
            return Err(CertificateFault::Place { signer }.into());
        }
        Ok(self.round.leaf(proof, self.committee.accepted_at).map_err(fault)?.identity_key)
    }

    /// The checks of a set of survivors that every client makes alike: inside U1, large enough, no window too thin.
    pub(super) fn check_set(&self, bytes: &[u8]) -> Result<Vec<bool>, ClientError> {
        let survivors = bitmap::from_bytes(bytes, self.cohort.graph.n() as usize)?;
        let stranger = survivors.iter().zip(&self.shared).position(|(&survives, &shared)| survives && !shared);
        if let Some(stranger) = stranger {
            return Err(ClientError::NotInU1(stranger as u32));
        }
        let (have, need) = (bitmap::count(&survivors), self.round.params.wire.n_min as usize);
        if have < need {
            return Err(ClientError::TooFew { what: "survive", have, need });
        }
        if self.round.params.malicious()
            && let Some(place) = self.cohort.graph.thin_window(&survivors)
        {
            return Err(ClientError::ThinWindow { place });
        }
        Ok(survivors)
    }
}

impl Round {
    /// A leaf of the round's own roster that was valid at `at` (Unix time in seconds).
    fn leaf(&self, proof: &proto::RosterProof, at: u64) -> Result<Leaf, crate::roster::RosterError> {
        let missing = || SignedError::malformed(WHAT, "there is no roster in this round");
        let (head, _) = self.authority.as_ref().ok_or_else(missing)?;
        head.check_leaf(proof, at)
    }
}
