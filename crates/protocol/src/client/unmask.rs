//! Phases 3 and 4: the committee endorses the set of survivors, and one share of each neighbour is revealed (section 6).

use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::kdf::label;

use super::mask::{Masked, Participant};
use super::{ClientError, Rejected, advance};
use crate::pairwise;
use crate::policy::ParticipationRecord;
use crate::proto::{self, ClientMessage, SecretKind, client_message::Step};
use crate::signed;

/// The set of survivors is endorsed, by a member of the committee; the certificate is awaited.
pub struct Confirmed {
    pub(super) participant: Participant,
    pub(super) message: ClientMessage,
}

/// The shares are revealed; nothing is left to do in this round.
pub struct Done {
    pub(super) message: ClientMessage,
}

impl Masked {
    /// Checks the set of survivors, records it, and endorses it (phase 3, members of the committee). This device need not be in
    /// the set.
    ///
    /// # Errors
    /// [`Rejected`] with this state: [`ClientError::NotOnCommittee`], the failed check, [`ClientError::OtherSurvivors`],
    /// [`ClientError::OldRound`], [`ClientError::Expired`], or the record could not be written.
    pub fn confirm<R: CryptoRng + ?Sized>(
        self,
        view: &proto::SurvivorsView,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Confirmed, Rejected<Self>> {
        advance(self, |state| {
            let participant = &state.participant;
            if !participant.round.params.malicious() {
                return Err(ClientError::OtherMode("semi-honest"));
            }
            if !state.on_committee() {
                return Err(ClientError::NotOnCommittee);
            }
            participant.refuse_late(now)?;
            if view.cohort_id != participant.cohort.id.0 {
                return Err(ClientError::OtherCohort);
            }
            let survivors = participant.check_set(&view.survivors)?;
            participant.answer_for(&survivors, record)?;
            let sharers = pairwise::sharers_hash(&participant.shared);
            let endorsement = pairwise::endorsement(participant.cohort.id, &sharers, &survivors);
            let key = participant.round.signing_key();
            let signed = signed::sign_hedged(endorsement, label::SIG_ENDORSEMENT, key, rng);
            let message = participant.round.message(Step::Endorsement(signed));
            Ok(Confirmed { participant: participant.clone(), message })
        })
    }

    /// Checks the certificate, records its set of survivors, and reveals the shares (phase 4, malicious mode).
    ///
    /// # Errors
    /// [`Rejected`] with this state: the failed check, [`ClientError::CertifiedWithout`],
    /// [`ClientError::OtherSurvivors`], [`ClientError::OldRound`], [`ClientError::Expired`], or the record could not be written.
    pub fn reveal<R: CryptoRng + ?Sized>(
        self,
        certificate: &proto::Certificate,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Done, Rejected<Self>> {
        advance(self, |state| state.participant.reveal_under(certificate, record, now, rng))
    }

    /// Checks the set of survivors, records it, and reveals the shares (phase 4, semi-honest mode).
    ///
    /// # Errors
    /// [`Rejected`] with this state: the failed check, [`ClientError::OtherSurvivors`], [`ClientError::OldRound`],
    /// [`ClientError::Expired`], or the record could not be written.
    pub fn reveal_uncertified<R: CryptoRng + ?Sized>(
        self,
        view: &proto::SurvivorsView,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Done, Rejected<Self>> {
        advance(self, |state| {
            let participant = &state.participant;
            if participant.round.params.malicious() {
                return Err(ClientError::OtherMode("malicious"));
            }
            participant.refuse_late(now)?;
            if view.cohort_id != participant.cohort.id.0 {
                return Err(ClientError::OtherCohort);
            }
            let survivors = participant.check_set(&view.survivors)?;
            participant.reveal(&survivors, record, rng)
        })
    }
}

impl Confirmed {
    /// The endorsement, to be sent until it is acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }

    /// As [`Masked::reveal`]: a certificate is checked whoever made it.
    ///
    /// # Errors
    /// As [`Masked::reveal`].
    pub fn reveal<R: CryptoRng + ?Sized>(
        self,
        certificate: &proto::Certificate,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Done, Rejected<Self>> {
        advance(self, |state| state.participant.reveal_under(certificate, record, now, rng))
    }
}

impl Done {
    /// The revealed shares, to be sent until they are acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }
}

impl Participant {
    /// Refuses when the time of this round is over.
    fn refuse_late(&self, now: u64) -> Result<(), ClientError> {
        self.round.refuse_late(self.committee.accepted_at, now)
    }

    fn reveal_under<R: CryptoRng + ?Sized>(
        &self,
        certificate: &proto::Certificate,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Done, ClientError> {
        if !self.round.params.malicious() {
            return Err(ClientError::OtherMode("semi-honest"));
        }
        self.refuse_late(now)?;
        let survivors = self.check_certificate(certificate)?;
        if !survivors[self.index as usize] {
            return Err(ClientError::CertifiedWithout);
        }
        self.reveal(&survivors, record, rng)
    }

    /// Exactly one share of each neighbour: of its self mask if it survives, of its mask secret if not. And the own self-mask
    /// secret, because this device survives.
    fn reveal<R: CryptoRng + ?Sized>(
        &self,
        survivors: &[bool],
        record: &mut dyn ParticipationRecord,
        rng: &mut R,
    ) -> Result<Done, ClientError> {
        if !survivors[self.index as usize] {
            return Err(ClientError::LeftOut("survive"));
        }
        let have = self.peers.iter().filter(|peer| survivors[peer.index as usize]).count();
        let need = self.cohort.threshold();
        if have < need {
            return Err(ClientError::TooFew { what: "of this device's neighbours survive", have, need });
        }
        self.answer_for(survivors, record)?;
        let share = |peer: &super::mask::Peer| {
            let shares = peer.shares.as_ref()?;
            let (kind, share) = if survivors[peer.index as usize] {
                (SecretKind::SelfMask, &shares.self_mask)
            } else {
                (SecretKind::Mask, &shares.mask)
            };
            Some(proto::RevealedShare { of: peer.index, kind: kind as i32, value: share.value_bytes().to_vec() })
        };
        let unmask = proto::UnmaskShares {
            cohort_id: self.cohort.id.to_vec(),
            from: self.index,
            shares: self.peers.iter().filter_map(share).collect(),
            unreadable: self.peers.iter().filter(|peer| peer.shares.is_none()).map(|peer| peer.index).collect(),
            self_mask_secret: self.self_secret.to_secret().expose().to_vec(),
        };
        let key = self.round.signing_key();
        let signed = signed::sign_hedged(unmask.encode_to_vec(), label::SIG_UNMASK, key, rng);
        Ok(Done { message: self.round.message(Step::Unmask(signed)) })
    }
}
