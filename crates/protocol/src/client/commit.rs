//! What a device binds itself to, on stable storage before the bytes leave: one cohort a round, one masked input, one set of
//! survivors (section 8).
//!
//! A state machine in memory can't go back. A restarted process can, to bytes saved earlier or to the start of the round:
//! secrets shared in two cohorts, two inputs under the same masks, or shares revealed for two sets of survivors would give
//! away an input.

use super::mask::Participant;
use super::{ClientError, Round};
use crate::cohort::Cohort;
use crate::pairwise;
use crate::params::RoundParams;
use crate::policy::{ParticipationRecord, TaskEntry};

/// Refuses a round that is not above the last one in which this device shared its keys.
pub(super) fn refuse_old(params: &RoundParams, entry: Option<&TaskEntry>) -> Result<(), ClientError> {
    match entry {
        Some(entry) if params.wire.round <= entry.round => {
            Err(ClientError::OldRound { task: params.wire.task.clone(), round: params.wire.round, last: entry.round })
        }
        _ => Ok(()),
    }
}

/// Records that the shares for `cohort` are about to leave. Not twice, not even for the same cohort: a second sharing has
/// other polynomials. `entry` is what the record held when the cohort was checked.
pub(super) fn share(
    params: &RoundParams,
    cohort: &Cohort,
    entry: Option<&TaskEntry>,
    record: &mut dyn ParticipationRecord,
) -> Result<(), ClientError> {
    refuse_old(params, entry)?;
    let next = TaskEntry {
        round: params.wire.round,
        cohort: cohort.id,
        masked_for: None,
        survivors: None,
        spent: entry.map(|entry| entry.spent.clone()).unwrap_or_default(),
    };
    Ok(record.replace(&params.wire.task, entry, next)?)
}

/// The entry, if it is that of this round and `cohort`.
fn entry_of(params: &RoundParams, cohort: &Cohort, record: &dyn ParticipationRecord) -> Result<TaskEntry, ClientError> {
    let (task, round) = (params.wire.task.clone(), params.wire.round);
    match record.entry(&task)? {
        Some(entry) if entry.round == round && entry.cohort == cohort.id => Ok(entry),
        Some(entry) if entry.round > round => Err(ClientError::OldRound { task, round, last: entry.round }),
        _ => Err(ClientError::NotRecorded { task, round }),
    }
}

/// Records the round as spent: an input masked for the set with hash `sharers` is about to leave. Once a round, also for the
/// same set: a second input under the same masks would give away the difference.
pub(super) fn spend(
    round: &Round,
    cohort: &Cohort,
    sharers: [u8; 32],
    record: &mut dyn ParticipationRecord,
    now: u64,
) -> Result<(), ClientError> {
    let params = &round.params;
    let entry = entry_of(params, cohort, record)?;
    if entry.masked_for.is_some() {
        return Err(ClientError::AlreadyMasked { task: params.wire.task.clone(), round: params.wire.round });
    }
    round.policy.check_budget(params, &entry.spent, now)?;
    let spent = entry.spent.after(params, now);
    let next = TaskEntry { masked_for: Some(sharers), spent, ..entry.clone() };
    Ok(record.replace(&params.wire.task, Some(&entry), next)?)
}

impl Participant {
    /// Records that an endorsement of `survivors`, or shares for them, are about to leave. The same set again is fine.
    pub(super) fn answer_for(
        &self,
        survivors: &[bool],
        record: &mut dyn ParticipationRecord,
    ) -> Result<(), ClientError> {
        let params = &self.round.params;
        let (task, round) = (&params.wire.task, params.wire.round);
        let entry = entry_of(params, &self.cohort, record)?;
        if entry.masked_for != Some(pairwise::sharers_hash(&self.shared)) {
            return Err(ClientError::NotRecorded { task: task.clone(), round });
        }
        let digest = pairwise::survivors_hash(survivors);
        match entry.survivors {
            Some(answered) if answered == digest => Ok(()),
            Some(_) => Err(ClientError::OtherSurvivors { task: task.clone(), round }),
            None => Ok(record.replace(task, Some(&entry), TaskEntry { survivors: Some(digest), ..entry.clone() })?),
        }
    }
}
