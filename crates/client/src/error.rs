//! What can go wrong for a device, and whether waiting helps.

use std::borrow::Cow;
use std::time::Duration;

use tonic::{Code, Status};
use unisono_protocol::client::ClientError;
use unisono_protocol::encoding::EncodingError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::policy::RecordError;
use unisono_protocol::roster::RosterError;
use unisono_wire::model::ModelError;
use unisono_wire::{REASON_KEY, RETRY_AFTER_KEY};

use crate::record::RecordFileError;
use crate::tls::TlsFault;
use crate::trainer::TrainError;

/// Why a client did not go on. It carries no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The coordinator's address is none.
    #[error("the endpoint {endpoint:?} can't be dialled; give one like https://host:port: {why}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The coordinator can't be reached, or answers with an error that may go away.
    #[error("the coordinator does not answer: {}", describe(.0))]
    Unreachable(Box<Status>),
    /// There is no TLS connection to the coordinator. It is tried again: certificates are renewed, and networks left.
    #[error("no TLS connection to {endpoint}: {fault}")]
    Tls {
        /// As configured.
        endpoint: String,
        /// What is wrong.
        fault: TlsFault,
    },
    /// A certificate or key that this device was given for TLS can't be used.
    #[error("the {what} of this device can't be used: {source}")]
    Certificate {
        /// Which text.
        what: &'static str,
        /// What is wrong with it.
        source: unisono_tls::TlsError,
    },
    /// The coordinator refuses.
    #[error("the coordinator refuses ({reason}): {}", .status.message())]
    Refused {
        /// Its short stable name, empty when the refusal does not come from a unisono coordinator.
        reason: String,
        /// The whole status.
        status: Box<Status>,
    },
    /// The round goes on without this client, or not at all.
    #[error("the round ended for this device: {reason}")]
    Ended {
        /// The coordinator's words.
        reason: String,
        /// The coordinator has the round's sum.
        gave_sum: bool,
    },
    /// There was no room in the round for this device, it came too late for it, or too soon after the last one for its own policy. That
    /// is normal.
    #[error("this round is without this device: {why}")]
    LeftOut {
        /// The coordinator's words, or the policy's.
        why: String,
        /// When to come back.
        after: Duration,
    },
    /// The coordinator's answer is not what the service definition says.
    #[error("the coordinator's answer can't be used: {0}")]
    Answer(String),
    /// The protocol's checks, the policy or the record refuse.
    #[error(transparent)]
    Protocol(Box<ClientError>),
    /// The base model is not the one that the round's parameters name.
    #[error("the base model, version {version}, does not have the hash in the round's parameters")]
    ModelHash {
        /// Version asked for.
        version: u64,
    },
    /// A streamed file is longer than it may be.
    #[error("the {what} is longer than {limit} bytes, which is the most this device takes")]
    TooLong {
        /// Which file.
        what: &'static str,
        /// Limit in bytes.
        limit: u64,
    },
    /// What is downloaded can't be stored.
    #[error("the downloaded file can't be stored: {0}")]
    Download(#[source] std::io::Error),
    /// The base model or the released one is none.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The trainer gave no update.
    #[error("the trainer gave no update: {0}")]
    Train(#[source] TrainError),
    /// This device leaves the round, by its trainer's choice. That is normal.
    #[error("this device declines the round: {0}")]
    Declined(String),
    /// The trainer panicked; it may be in any state and is not called again.
    #[error("the trainer panicked; make a new client")]
    TrainerPanicked,
    /// The durable record.
    #[error(transparent)]
    Record(#[from] RecordFileError),
    /// The release or its grant.
    #[error(transparent)]
    Release(#[from] unisono_release::ReleaseError),
    /// Nobody's word on models and grants can be checked.
    #[error("opening a model needs the registrar's key, or in semi-honest mode the token: set `registrar` or `token`")]
    NoAuthority,
}

macro_rules! protocol_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Protocol(Box::new(error.into()))
            }
        })*
    };
}

protocol_errors!(ClientError, ParamsError, EncodingError, RecordError, RosterError);

fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// However long a coordinator says, a device asks again within the hour.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

fn retry_after(status: &Status) -> Option<Duration> {
    let after: u64 = status.metadata().get(RETRY_AFTER_KEY)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(after).min(LONGEST_WAIT))
}

impl Error {
    /// Reads a status; one that may go away by itself is [`Error::Unreachable`].
    pub(crate) fn of_status(status: Status) -> Self {
        let reason = status.metadata().get(REASON_KEY).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let passing = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted => true,
            // Without a reason these come from a broken connection or a proxy, not from a coordinator.
            Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::Unimplemented => reason.is_empty(),
            _ => false,
        };
        let status = Box::new(status);
        if passing { Self::Unreachable(status) } else { Self::Refused { reason, status } }
    }

    /// Whether the round is over with a sum: enough shares came from others.
    pub(crate) fn is_summed(&self) -> bool {
        match self {
            Self::Ended { gave_sum, .. } => *gave_sum,
            Self::Refused { reason, .. } => reason == "round_finished",
            _ => false,
        }
    }

    /// Whether a download that went on is of a file that is not there any more.
    pub(crate) fn is_other_file(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "other_file")
    }

    /// Whether a step came after its phase.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "wrong_phase")
    }

    /// Whether the coordinator does not know a sealed file any more that it served.
    pub(crate) fn is_unknown_file(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "no_such_release")
    }

    /// Whether the coordinator takes this device again in some later round, and not in this one.
    pub(crate) fn is_suspension(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "suspended")
    }

    /// What the refusal of an advert is: a device that found no room, or came too late, is left out, and that is no failure.
    pub(crate) fn of_advert(self) -> Self {
        let Self::Refused { reason, status } = &self else { return self };
        if !matches!(reason.as_str(), "full" | "wrong_phase" | "no_such_round" | "round_finished") {
            return self;
        }
        Self::LeftOut { why: status.message().to_owned(), after: retry_after(status).unwrap_or_default() }
    }

    /// Left out of a round, and when to come back, in milliseconds.
    pub(crate) fn left_out_for(why: String, after_ms: u64) -> Self {
        Self::LeftOut { why, after: Duration::from_millis(after_ms).min(LONGEST_WAIT) }
    }

    /// When a coordinator that has too many calls says that this device may call again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        if let Self::Unreachable(status) | Self::Refused { status, .. } = self { retry_after(status) } else { None }
    }

    /// When there was no room in the round for this device: when to come back.
    pub(crate) fn left_out(&self) -> Option<Duration> {
        if let Self::LeftOut { after, .. } = self { Some(*after) } else { None }
    }

    /// Whether the roster has no such device: it was revoked, or is not published yet.
    pub(crate) fn is_unknown_device(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "unknown_client")
    }

    /// What the coordinator is told about a round that was missed for this: one of [`unisono_wire::MISSED`], which says nothing about
    /// this device's data.
    pub(crate) fn missed(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Unreachable(_) | Self::Tls { .. } => "unreachable",
            Self::Refused { .. } if self.is_late() => "late",
            Self::Refused { .. } => "refused",
            Self::Ended { .. } | Self::LeftOut { .. } => "ended",
            Self::Answer(_) => "answer",
            Self::ModelHash { .. } | Self::TooLong { .. } | Self::Model(_) | Self::Release(_) => "model",
            Self::Download(_) => "device",
            Self::Train(_) | Self::TrainerPanicked | Self::Declined(_) => "trainer",
            Self::Record(_) => "record",
            Self::Endpoint { .. } | Self::Certificate { .. } | Self::NoAuthority => "device",
            Self::Protocol(error) => match &**error {
                ClientError::Policy(refusal) => return format!("policy.{}", refusal.setting).into(),
                ClientError::Record(_) => "record",
                ClientError::Encoding(_) => "update",
                ClientError::Expired { .. } | ClientError::Erased => "expired",
                ClientError::OldRound { .. } | ClientError::AlreadyMasked { .. } => "old_round",
                ClientError::Certificate(_) => "certificate",
                ClientError::CertifiedWithout => "late",
                ClientError::Cohort(_) | ClientError::Members | ClientError::OtherCohort => "cohort",
                ClientError::Params(_) | ClientError::Roster(_) | ClientError::UntrustedCoordinator => "offer",
                ClientError::StaleRoster { .. } | ClientError::OtherRoster { .. } => "offer",
                ClientError::UnsignedBaseModel(_) => "offer",
                _ => "view",
            },
        })
    }

    /// Whether it was this device that stopped, in a round that goes on: nobody has to wait for it.
    pub(crate) fn leaves(&self, in_cohort: bool) -> bool {
        match self {
            Self::Ended { .. } | Self::LeftOut { .. } | Self::Unreachable(_) | Self::Tls { .. } => false,
            Self::Declined(_) | Self::Train(_) | Self::TrainerPanicked => true,
            error => in_cohort && !error.is_summed(),
        }
    }

    /// Whether the same call may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Tls { .. })
    }

    /// Whether no later round can go better, by a coordinator's own reasoned refusal or by what is wrong here: an expired enrolment,
    /// an unknown task, a record that is broken or another process's, a trainer that panicked. A record that can't be written, as on a full
    /// disk, lets nothing leave the device, and is tried again in the next round. A device that the roster does not have may be
    /// published later: it is final only for one that has taken part before, see [`Client::run`](crate::Client::run).
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => {
                matches!(
                    reason.as_str(),
                    "expired_client" | "no_such_task" | "release_key" | "no_releases" | "revoked" | "token"
                )
            }
            Self::Endpoint { .. } | Self::Certificate { .. } | Self::NoAuthority => true,
            Self::TrainerPanicked | Self::Record(_) => true,
            Self::Protocol(error) => matches!(&**error, ClientError::Record(RecordError::Changed)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn error(code: Code, reason: &'static str) -> Error {
        let mut status = Status::new(code, "words");
        if !reason.is_empty() {
            status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static(reason));
        }
        Error::of_status(status)
    }

    #[test]
    fn only_a_coordinators_reasoned_refusal_is_final() {
        // A proxy's 401, 403, 404 and 501 come without a reason, and go away.
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::NotFound, Code::Unimplemented] {
            let error = error(code, "");
            assert!(error.is_passing() && !error.is_final(), "{code:?}");
        }
        for reason in ["expired_client", "no_such_task"] {
            let error = error(Code::PermissionDenied, reason);
            assert!(!error.is_passing() && error.is_final(), "{reason}");
        }
        // Not yet valid by the other's clock; not yet published; out of step.
        for reason in ["roster", "unknown_client", "signature", "wrong_phase"] {
            let error = error(Code::PermissionDenied, reason);
            assert!(!error.is_passing() && !error.is_final(), "{reason}");
        }
    }

    #[test]
    fn a_record_that_can_not_be_written_now_is_not_final() {
        assert!(!Error::from(RecordError::Failed("no space left on device".into())).is_final());
        assert!(Error::from(RecordError::Changed).is_final());
    }

    #[test]
    fn a_device_without_room_is_told_when_to_come_back() {
        let mut status = Status::new(Code::FailedPrecondition, "full");
        status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static("full"));
        let left_out = |status: &Status| Error::of_status(status.clone()).of_advert().left_out();
        assert_eq!(left_out(&status), Some(Duration::ZERO));
        status.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from_static("1500"));
        assert_eq!(left_out(&status), Some(Duration::from_millis(1500)));
        status.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from(u64::MAX));
        assert_eq!(left_out(&status), Some(Duration::from_secs(3600)));
        // Also where it has too many calls.
        let mut busy = Status::new(Code::ResourceExhausted, "busy");
        assert_eq!(Error::of_status(busy.clone()).retry_after(), None);
        busy.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from_static("1500"));
        let busy = Error::of_status(busy);
        assert!(busy.is_passing() && busy.retry_after() == Some(Duration::from_millis(1500)));
        // Too late is no failure either; a wrong signature is one.
        assert!(error(Code::FailedPrecondition, "wrong_phase").of_advert().left_out().is_some());
        assert!(error(Code::InvalidArgument, "signature").of_advert().left_out().is_none());
    }
}
