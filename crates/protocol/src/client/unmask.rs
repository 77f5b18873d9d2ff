//! Phases 3 and 4: the set of survivors is agreed on, and one share of each neighbour released (section 6).

use unisono_crypto::kdf::{label, mac_verify};

use super::commit::survivors_hash;
use super::mask::{Masked, Member};
use super::saved::scalar_bytes;
use super::{ClientError, Rejected, advance};
use crate::bitmap;
use crate::pairwise;
use crate::policy::ParticipationRecord;
use crate::proto::{self, ClientMessage, SecretKind, client_message::Step};
use crate::signed;

/// The set of survivors is accepted and tagged; the neighbours' tags are awaited.
pub struct Confirmed {
    pub(super) member: Member,
    pub(super) survivors: Vec<bool>,
    pub(super) message: ClientMessage,
}

/// The shares are released; nothing is left to do in this round.
pub struct Done {
    pub(super) message: ClientMessage,
}

impl Masked {
    /// Checks the set of survivors, records it, and tags it for every neighbour in it (phase 3, malicious mode).
    ///
    /// # Errors
    /// [`Rejected`] with this state: the failed check, [`ClientError::OtherSurvivors`], or the record could not be written.
    pub fn confirm(
        self,
        view: &proto::SurvivorsView,
        record: &mut dyn ParticipationRecord,
    ) -> Result<Confirmed, Rejected<Self>> {
        advance(self, |state| {
            let member = &state.member;
            if !member.round.params.malicious() {
                return Err(ClientError::OtherMode("semi-honest"));
            }
            let survivors = member.check_survivors(view)?;
            member.answer_for(&survivors, record)?;
            let digest = survivors_hash(&survivors);
            let tag = |peer: &super::mask::Peer| proto::Tag {
                neighbour: peer.index,
                tag: pairwise::tag(&peer.channel, member.cohort.id, member.index, &digest).to_vec(),
            };
            let tags = member.peers.iter().filter(|peer| survivors[peer.index as usize]).map(tag).collect();
            let tags = proto::ConsistencyTags { cohort_id: member.cohort.id.to_vec(), from: member.index, tags };
            let signed = signed::sign(&tags, label::SIG_CONFIRM, member.round.signing_key());
            let message = member.round.message(Step::Tags(signed));
            Ok(Confirmed { member: member.clone(), survivors, message })
        })
    }

    /// Checks the set of survivors, records it, and releases the shares (phase 4, semi-honest mode).
    ///
    /// # Errors
    /// [`Rejected`] with this state: the failed check, [`ClientError::OtherSurvivors`], or the record could not be written.
    pub fn release(
        self,
        view: &proto::SurvivorsView,
        record: &mut dyn ParticipationRecord,
    ) -> Result<Done, Rejected<Self>> {
        advance(self, |state| {
            if state.member.round.params.malicious() {
                return Err(ClientError::OtherMode("malicious"));
            }
            let survivors = state.member.check_survivors(view)?;
            state.member.answer_for(&survivors, record)?;
            Ok(state.member.release(&survivors, Vec::new()))
        })
    }
}

impl Confirmed {
    /// The tags, to be sent until they are acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }

    /// Checks the neighbours' tags, and that the record names this set of survivors; then releases the shares (phase 4,
    /// malicious mode).
    ///
    /// # Errors
    /// [`Rejected`] with this state: of another cohort, too few valid tags, [`ClientError::OtherSurvivors`], or the record failed.
    pub fn release(
        self,
        tags: &proto::ForwardedTags,
        record: &mut dyn ParticipationRecord,
    ) -> Result<Done, Rejected<Self>> {
        advance(self, |state| {
            let member = &state.member;
            if tags.cohort_id != member.cohort.id.0 {
                return Err(ClientError::OtherCohort);
            }
            let digest = survivors_hash(&state.survivors);
            let mut valid = 0;
            let mut invalid = Vec::new();
            for peer in member.peers.iter().filter(|peer| state.survivors[peer.index as usize]) {
                let Some(tag) = tags.tags.iter().find(|tag| tag.neighbour == peer.index) else { continue };
                let sender = peer.index.to_le_bytes();
                let parts = pairwise::tag_parts(&member.cohort.id, &sender, &digest);
                match mac_verify(&peer.channel, pairwise::TAG_LABEL, &parts, &tag.tag) {
                    Ok(()) => valid += 1,
                    Err(_) => invalid.push(peer.index),
                }
            }
            let need = member.cohort.threshold();
            if valid < need {
                return Err(ClientError::TooFew {
                    what: "of this device's neighbours gave a valid tag",
                    have: valid,
                    need,
                });
            }
            member.answer_for(&state.survivors, record)?;
            Ok(member.release(&state.survivors, invalid))
        })
    }
}

impl Done {
    /// The released shares, to be sent until they are acknowledged.
    pub fn message(&self) -> &ClientMessage {
        &self.message
    }
}

impl Member {
    fn check_survivors(&self, view: &proto::SurvivorsView) -> Result<Vec<bool>, ClientError> {
        if view.cohort_id != self.cohort.id.0 {
            return Err(ClientError::OtherCohort);
        }
        let survivors = bitmap::from_bytes(&view.survivors, self.cohort.graph.n() as usize)?;
        if let Some(stranger) = survivors.iter().zip(&self.shared).position(|(&survives, &shared)| survives && !shared)
        {
            return Err(ClientError::NotInU1(stranger as u32));
        }
        if !survivors[self.index as usize] {
            return Err(ClientError::LeftOut("survive"));
        }
        let (have, need) = (bitmap::count(&survivors), self.round.params.wire.n_min as usize);
        if have < need {
            return Err(ClientError::TooFew { what: "survive", have, need });
        }
        let have = self.peers.iter().filter(|peer| survivors[peer.index as usize]).count();
        let need = self.cohort.threshold();
        if have < need {
            return Err(ClientError::TooFew { what: "of this device's neighbours survive", have, need });
        }
        if self.round.params.malicious()
            && let Some(place) = self.cohort.graph.thin_window(&survivors)
        {
            return Err(ClientError::ThinWindow { place });
        }
        Ok(survivors)
    }

    /// Exactly one share of each neighbour: of its self mask if it survives, of its mask secret if not. And in a complete graph the
    /// own self-mask secret, because this device survives.
    fn release(&self, survivors: &[bool], invalid_tags: Vec<u32>) -> Done {
        let share = |peer: &super::mask::Peer| {
            let shares = peer.shares.as_ref()?;
            let (kind, share) = if survivors[peer.index as usize] {
                (SecretKind::SelfMask, &shares.self_mask)
            } else {
                (SecretKind::Mask, &shares.mask)
            };
            Some(proto::ReleasedShare { of: peer.index, kind: kind as i32, value: share.value_bytes().to_vec() })
        };
        let unmask = proto::UnmaskShares {
            cohort_id: self.cohort.id.to_vec(),
            from: self.index,
            shares: self.peers.iter().filter_map(share).collect(),
            unreadable: self.peers.iter().filter(|peer| peer.shares.is_none()).map(|peer| peer.index).collect(),
            invalid_tags,
            self_mask_secret: scalar_bytes(self.self_secret.as_ref()),
        };
        let signed = signed::sign(&unmask, label::SIG_UNMASK, self.round.signing_key());
        Done { message: self.round.message(Step::Unmask(signed)) }
    }
}
