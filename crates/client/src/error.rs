//! What can go wrong for a device, and whether waiting helps.

use tonic::{Code, Status};
use unisono_protocol::client::ClientError;
use unisono_protocol::encoding::EncodingError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::policy::RecordError;
use unisono_protocol::roster::RosterError;
use unisono_wire::REASON_KEY;
use unisono_wire::model::ModelError;

use crate::record::RecordFileError;
use crate::trainer::TrainError;

/// Why a client did not go on. It carries no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The coordinator's address is none.
    #[error("the endpoint {endpoint:?} is no address like http://host:port: {why}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The coordinator can't be reached, or answers with an error that may go away.
    #[error("the coordinator does not answer: {}", describe(.0))]
    Unreachable(Box<Status>),
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
        limit: usize,
    },
    /// The base model or the released one is none.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The trainer gave no update.
    #[error("the trainer gave no update: {0}")]
    Train(#[source] TrainError),
    /// The trainer panicked; it may be in any state and is not called again.
    #[error("the trainer panicked; make a new client")]
    TrainerPanicked,
    /// The durable record.
    #[error(transparent)]
    Record(#[from] RecordFileError),
    /// The release or its grant.
    #[error(transparent)]
    Release(#[from] unisono_release::ReleaseError),
    /// Opening a release needs the registrar's key.
    #[error("opening a release needs the registrar's key: set `registrar`")]
    NoRegistrar,
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

impl Error {
    /// Reads a status; one that may go away by itself is [`Error::Unreachable`].
    pub(crate) fn of_status(status: Status) -> Self {
        let reason = status.metadata().get(REASON_KEY).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let passing = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted => true,
            // Without a reason these come from a broken connection or a proxy, not from a coordinator.
            Code::Cancelled | Code::Unknown | Code::Internal => reason.is_empty(),
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

    /// Whether a step came after its phase.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "wrong_phase")
    }

    /// Whether the coordinator takes this device again in some later round, and not in this one.
    pub(crate) fn is_suspension(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "suspended")
    }

    /// Whether the same call may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// Whether no later round can go better: an unknown, revoked or expired device, an unknown task, a broken record, a
    /// trainer that panicked.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(status.code(), Code::PermissionDenied | Code::NotFound),
            Self::Endpoint { .. } | Self::TrainerPanicked | Self::Record(_) | Self::NoRegistrar => true,
            Self::Protocol(error) => matches!(&**error, ClientError::Record(_)),
            _ => false,
        }
    }
}
