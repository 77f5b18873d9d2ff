//! What the coordinator's side refuses, and why a round can end without a sum.

use unisono_crypto::CryptoError;

use super::{Phase, Report};
use crate::ids::ClientId;
use crate::params::ParamsError;
use crate::roster::RosterError;
use crate::signed::SignedError;

/// A refused message. The round is unchanged, and goes on for everybody else.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("client {}, phase {phase}: {reason}", .client.map_or_else(|| "(unnamed)".into(), |id| id.to_string()))]
pub struct Refusal {
    /// Who sent it, as far as the message says.
    pub client: Option<ClientId>,
    /// The round's phase at that moment.
    pub phase: Phase,
    /// Why it was refused.
    pub reason: Reason,
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Its round id is not this round's.
    #[error("the message is of another round")]
    OtherRound,
    /// Its cohort id is not this cohort's, or its index not the sender's.
    #[error("the message is of another cohort, or under another client's index")]
    OtherCohort,
    /// The envelope names no client or no step.
    #[error("the message has no {0}")]
    Incomplete(&'static str),
    /// Signature or encoding.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// The roster has no such client.
    #[error("the roster of epoch {epoch} has no such client: it was never enrolled, or was revoked")]
    Unknown {
        /// Epoch of the roster.
        epoch: u64,
    },
    /// Its enrolment is not valid now, or can't be read.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The step belongs to another phase.
    #[error("a step of phase {step} can't be taken now")]
    WrongPhase {
        /// The step's phase.
        step: Phase,
    },
    /// The client took this step before, with other content.
    #[error("this step was taken before with other content; the first one counts")]
    Conflict,
    /// The cohort is full, and the client was not drawn (section 3).
    #[error("the cohort is full: this round takes {n_max} clients, and others were drawn; join the next one")]
    Full {
        /// Largest cohort.
        n_max: u32,
    },
    /// The client dealt wrong shares, or a wrong ciphertext, in an earlier round (see [`super::Server::suspend`]).
    #[error(
        "the client is suspended up to round {until}: in round {since} it dealt wrong shares, or a wrong ciphertext"
    )]
    Suspended {
        /// The round in which it did.
        since: u64,
        /// The last round without the client.
        until: u64,
    },
    /// The endorsement is of another pair of sets than this round's.
    #[error("the endorsement is of another cohort, or of other sets than those of this round")]
    OtherSets,
    /// A key of the advert occurs in another advert.
    #[error("a key of the advert is in another client's advert, or occurs twice in this one")]
    KeysRepeat,
    /// The client is not among those that may take the step.
    #[error("the client did not complete the phases before this one")]
    NotExpected,
    /// Shares or revealed shares are not those that the graph asks for.
    #[error("{what}: {why}")]
    Shape {
        /// Which message.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The upload does not have the round's length.
    #[error("the upload has {got} bytes; this round's vectors have {expected}")]
    UploadLength {
        /// Bytes of a packed vector.
        expected: u64,
        /// Bytes announced or received.
        got: u64,
    },
    /// The upload does not have the hash of its header.
    #[error("the upload's hash is not the one in its signed header: upload it again")]
    UploadHash,
    /// The upload's bytes are no packed vector.
    #[error(transparent)]
    UploadEncoding(#[from] CryptoError),
}

impl Reason {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherRound => "other_round",
            Self::OtherCohort => "other_cohort",
            Self::Incomplete(_) => "incomplete",
            Self::Signed(SignedError::Signature { .. }) => "signature",
            Self::Signed(SignedError::Malformed { .. }) => "malformed",
            Self::Unknown { .. } => "unknown_client",
            Self::Roster(RosterError::Expired { .. }) => "expired_client",
            Self::Roster(RosterError::Unreadable(_)) => "roster_unreadable",
            Self::Roster(_) => "roster",
            Self::WrongPhase { .. } => "wrong_phase",
            Self::Conflict => "conflict",
            Self::Full { .. } => "full",
            Self::Suspended { .. } => "suspended",
            Self::OtherSets => "other_sets",
            Self::KeysRepeat => "keys_repeat",
            Self::NotExpected => "not_expected",
            Self::Shape { .. } => "shape",
            Self::UploadLength { .. } => "upload_length",
            Self::UploadHash => "upload_hash",
            Self::UploadEncoding(_) => "upload_encoding",
        }
    }

    pub(super) fn shape(what: &'static str, why: impl ToString) -> Self {
        Self::Shape { what, why: why.to_string() }
    }
}

/// Why a round can't be opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// Malicious mode without key and roster, or semi-honest mode with them.
    #[error("a round in malicious mode needs the coordinator's key and a roster, one in semi-honest mode has neither")]
    Authority,
    /// The parameters name another roster.
    #[error(
        "the parameters name the roster of epoch {proposed}; the one at hand is of epoch {epoch}, or has another root"
    )]
    OtherRoster {
        /// Epoch in the parameters.
        proposed: u64,
        /// Epoch of the roster.
        epoch: u64,
    },
    /// The roster does not name the coordinator's key.
    #[error("the roster of epoch {epoch} does not name this coordinator's key: publish one that does")]
    NotNamed {
        /// Epoch of the roster.
        epoch: u64,
    },
}

/// Why a round ended without a sum. Nothing was learned about any update.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Abort {
    /// Too few clients took a step.
    #[error("phase {phase}: {have} clients answered, the round needs {need}")]
    TooFew {
        /// The phase that was closed.
        phase: Phase,
        /// Clients that took its step.
        have: usize,
        /// Smallest number.
        need: usize,
    },
    /// No cohort of the size at hand has a secure graph.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// A part of the ring lost so many clients that no client would go on (section 6).
    #[error("phase {phase}: too many clients dropped out around place {place} of the ring; no client would go on")]
    ThinWindow {
        /// The phase that was closed.
        phase: Phase,
        /// First place of the window.
        place: u32,
    },
    /// Masks can't be removed, because secrets that make them can't be had.
    #[error("{}", listed(.lost))]
    Lost {
        /// Why, never empty; then what else was found to be dealt wrong.
        lost: Vec<Lost>,
        /// What was noticed between clients, as in [`super::Outcome`]: wrong shares among them, which were not counted.
        reports: Vec<Report>,
    },
    /// The vector could not be unmasked.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl Abort {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooFew { .. } => "too_few",
            Self::Params(_) => "infeasible",
            Self::ThinWindow { .. } => "thin_window",
            Self::Lost { lost, .. } => {
                let first = lost.iter().find(|lost| lost.suspect().is_some()).or(lost.first());
                first.map_or("lost", Lost::code)
            }
            Self::Crypto(_) => "crypto",
        }
    }

    /// The clients whose doing the end is, or would have been (see [`Lost::suspect`]), ascending: all of the round.
    pub fn suspects(&self) -> Vec<ClientId> {
        let Self::Lost { lost, .. } = self else { return Vec::new() };
        suspects(lost)
    }

    /// What was noticed between clients.
    pub fn reports(&self) -> &[Report] {
        if let Self::Lost { reports, .. } = self { reports } else { &[] }
    }
}

/// Those among them whose doing it is, ascending.
pub(super) fn suspects(lost: &[Lost]) -> Vec<ClientId> {
    let mut suspects: Vec<ClientId> = lost.iter().filter_map(Lost::suspect).collect();
    suspects.sort_unstable();
    suspects.dedup();
    suspects
}

/// Most clients that an error names.
const MOST_NAMED: usize = 3;

fn listed(lost: &[Lost]) -> String {
    // Those first whose doing it is.
    let (suspected, others): (Vec<&Lost>, Vec<&Lost>) = lost.iter().partition(|lost| lost.suspect().is_some());
    let mut text: Vec<String> = suspected.iter().chain(&others).take(MOST_NAMED).map(ToString::to_string).collect();
    if lost.len() > MOST_NAMED {
        text.push(format!("and so on for {} others", lost.len() - MOST_NAMED));
    }
    text.join("; ")
}

/// Why what a client left to its neighbours does not give the secret, or the masks, that are needed to remove its masks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// Too few shares of a secret came back.
    #[error("{have} right shares of client {client}'s secret were revealed, {need} are needed")]
    TooFewShares {
        /// Whose secret.
        client: ClientId,
        /// Shares at hand, which are those that it dealt.
        have: usize,
        /// The threshold.
        need: usize,
    },
    /// So many neighbours can't open the shares that a client dealt them that too few came back.
    #[error(
        "{unreadable} clients can't open the shares that client {client} dealt them; {have} shares of its secret were \
         released, {need} are needed"
    )]
    UnreadableShares {
        /// Who dealt them.
        client: ClientId,
        /// Clients that say so.
        unreadable: usize,
        /// Shares at hand.
        have: usize,
        /// The threshold.
        need: usize,
        /// Whether more would have to lie, were it not so, than the round assumes around one client (and more than one).
        at_fault: bool,
    },
    /// Shares of a secret that a client dealt and committed to do not give the one in its advert.
    #[error("client {client} dealt shares that do not give the secret in its advert")]
    WrongShares {
        /// Who cheated.
        client: ClientId,
    },
    /// A client that dropped out had sent a mask ciphertext that its secret does not give.
    #[error("client {client} sent a mask ciphertext that does not come from its mask secret, then dropped out")]
    WrongCiphertext {
        /// Who cheated.
        client: ClientId,
    },
}

impl Lost {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooFewShares { .. } => "too_few_shares",
            Self::UnreadableShares { .. } => "unreadable_shares",
            Self::WrongShares { .. } => "wrong_shares",
            Self::WrongCiphertext { .. } => "wrong_ciphertext",
        }
    }

    /// The client whose doing it is: proved by what it signed (in malicious mode), or, where its neighbours say that they can't open
    /// its shares, because more of them would have to lie than the round assumes around one client, and more than one.
    pub fn suspect(&self) -> Option<ClientId> {
        match self {
            Self::UnreadableShares { client, at_fault: true, .. }
            | Self::WrongShares { client }
            | Self::WrongCiphertext { client } => Some(*client),
            _ => None,
        }
    }
}
