//! The word that a task is finished: a device leaves for good on it, so that it has to be the coordinator's own.

use unisono_crypto::kdf::label;
use unisono_protocol::client::{ClientError, Trust};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::signed;
use unisono_wire::proto::{GetRoundResponse, TaskFinished};

use crate::{Error, Record, head, now};

/// Checks that `response` says in the coordinator's name that `task` is finished, and not before round `after`, the last one that this
/// device knows of. Without a signature that is believed only where rounds need none either.
///
/// # Errors
/// Why it is not believed.
pub(crate) fn check(
    response: &GetRoundResponse,
    task: &str,
    after: u64,
    trust: &Trust,
    record: &mut Record,
) -> Result<(), Error> {
    let missing = |what| Error::from(ClientError::Missing(what));
    let Some(finished) = &response.finished else {
        return Err(missing("signed word of the coordinator that the task is finished"));
    };
    const WHAT: &str = "word that the task is finished";
    let said: TaskFinished = match &trust.registrar {
        // As in an offer of a semi-honest round.
        _ if trust.policy.allow_semi_honest && finished.signature.is_empty() => {
            signed::verify(finished, label::SIG_TASK_FINISHED, None, WHAT).map_err(ClientError::from)?
        }
        None => return Err(missing("registrar's key, without which nobody's word can be checked")),
        Some(_) => {
            let head = response
                .roster_head
                .as_ref()
                .ok_or_else(|| missing("roster head beside the word that the task is finished"))?;
            let head = head::verify(head, trust, record, now())?;
            let verified = head.coordinator_keys.iter().find_map(|key| {
                signed::verify::<TaskFinished>(finished, label::SIG_TASK_FINISHED, Some(key), WHAT).ok()
            });
            let said = verified.ok_or(ClientError::UntrustedCoordinator)?;
            record.see_roster_epoch(head.epoch).map_err(ClientError::from)?;
            said
        }
    };
    if said.task != task {
        return Err(Error::Answer(format!("it says that task {:?} is finished, not {task:?}", said.task)));
    }
    if said.round < after {
        let why = format!("it says that no round above {} comes; this device has been in round {after}", said.round);
        return Err(Error::Answer(why));
    }
    Ok(())
}
