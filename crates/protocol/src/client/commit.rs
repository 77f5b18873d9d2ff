//! What a device binds itself to, on stable storage before the bytes leave: one cohort a round, one set of survivors.
//!
//! A state machine in memory can't go back. A restarted process can, to bytes saved earlier or to the start of the round:
//! secrets shared in two cohorts, or shares released for two sets of survivors, would give away an input.

use unisono_crypto::kdf::{hash, label};

use super::ClientError;
use super::mask::Member;
use crate::bitmap;
use crate::cohort::Cohort;
use crate::params::RoundParams;
use crate::policy::{Commitment, Participation, ParticipationRecord};

/// Refuses a round that is not above the last one in which this device shared its keys.
pub(super) fn refuse_shared(params: &RoundParams, record: &dyn ParticipationRecord) -> Result<(), ClientError> {
    let (task, round) = (&params.wire.task, params.wire.round);
    match record.commitment(task)? {
        Some(known) if round <= known.round => {
            Err(ClientError::AlreadyShared { task: task.clone(), round, last: known.round })
        }
        _ => Ok(()),
    }
}

/// Records that the shares for `cohort` are about to leave. Not twice, not even for the same cohort: a second sharing has
/// other polynomials.
pub(super) fn share(
    params: &RoundParams,
    cohort: &Cohort,
    record: &mut dyn ParticipationRecord,
) -> Result<(), ClientError> {
    refuse_shared(params, record)?;
    let commitment = Commitment { round: params.wire.round, cohort: cohort.id, survivors: None };
    Ok(record.commit(&params.wire.task, commitment)?)
}

/// The commitment to `cohort`.
fn committed(
    params: &RoundParams,
    cohort: &Cohort,
    record: &dyn ParticipationRecord,
) -> Result<Commitment, ClientError> {
    let round = params.wire.round;
    let known = record.commitment(&params.wire.task)?.filter(|known| known.round == round && known.cohort == cohort.id);
    known.ok_or_else(|| ClientError::NotRecorded { task: params.wire.task.clone(), round })
}

/// Records the round as spent: a masked input is about to leave.
pub(super) fn spend(
    params: &RoundParams,
    cohort: &Cohort,
    record: &mut dyn ParticipationRecord,
    now: u64,
) -> Result<(), ClientError> {
    committed(params, cohort, record)?;
    super::refuse_spent(params, record)?;
    Ok(record.spend(&params.wire.task, Participation { round: params.wire.round, at: now })?)
}

/// Hash of a set of survivors, as tags cover it.
pub(super) fn survivors_hash(survivors: &[bool]) -> [u8; 32] {
    hash(label::SURVIVORS, &[&bitmap::to_bytes(survivors)])
}

impl Member {
    /// Records that tags or shares for `survivors` are about to leave. The same set again is fine: the answer has the same
    /// bytes.
    pub(super) fn answer_for(
        &self,
        survivors: &[bool],
        record: &mut dyn ParticipationRecord,
    ) -> Result<(), ClientError> {
        let params = &self.round.params;
        let known = committed(params, &self.cohort, record)?;
        let digest = survivors_hash(survivors);
        match known.survivors {
            Some(answered) if answered == digest => Ok(()),
            Some(_) => Err(ClientError::OtherSurvivors { task: params.wire.task.clone(), round: known.round }),
            None => Ok(record.commit(&params.wire.task, Commitment { survivors: Some(digest), ..known })?),
        }
    }
}
