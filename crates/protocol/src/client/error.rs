//! What a device refuses, in its own words.

use unisono_crypto::CryptoError;

use crate::bitmap::BitmapError;
use crate::cohort::CohortError;
use crate::encoding::EncodingError;
use crate::params::ParamsError;
use crate::policy::{PolicyRefusal, RecordError};
use crate::roster::RosterError;
use crate::signed::SignedError;

/// Why a device did not go on. Nothing secret was released by the call that returned it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Signature or encoding.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// Roster, head or leaf.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Round parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// This device's policy.
    #[error(transparent)]
    Policy(#[from] PolicyRefusal),
    /// The durable record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The cohort.
    #[error(transparent)]
    Cohort(#[from] CohortError),
    /// A bitmap.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The input.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// A primitive.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// Something that must be there is not.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// The offered roster is older than one that this device has seen.
    #[error("the roster is of epoch {epoch}; this device has seen epoch {seen}, and goes back to none")]
    StaleRoster {
        /// Offered.
        epoch: u64,
        /// Highest seen.
        seen: u64,
    },
    /// The parameters name another roster than the offered one.
    #[error("the round is for the roster of epoch {proposed}, the offered head is of epoch {head} or has another root")]
    OtherRoster {
        /// Epoch in the parameters.
        proposed: u64,
        /// Epoch of the head.
        head: u64,
    },
    /// No coordinator key of the roster verifies the parameters.
    #[error("the round's parameters are not signed by a coordinator that the roster names")]
    UntrustedCoordinator,
    /// This device has masked an input for this round number, or a later one.
    #[error("round {round} of task {task:?} is not above round {last}, in which this device took part")]
    Spent {
        /// The task.
        task: String,
        /// Proposed round number.
        round: u64,
        /// Last round number.
        last: u64,
    },
    /// This device has shared its keys in this round number, or in a later one.
    #[error("round {round} of task {task:?} is not above round {last}, in which this device shared its keys")]
    AlreadyShared {
        /// The task.
        task: String,
        /// Proposed round number.
        round: u64,
        /// Last round number.
        last: u64,
    },
    /// The record does not say that this device shared its keys in this round and cohort.
    #[error(
        "the record does not say that this device shared its keys in this cohort of round {round} of task {task:?}: the state \
         is not the last one, or the record was lost"
    )]
    NotRecorded {
        /// The task.
        task: String,
        /// Number of the round.
        round: u64,
    },
    /// This device has tagged, or released shares for, another set of survivors.
    #[error(
        "in round {round} of task {task:?} this device has answered for another set of survivors, and does so once"
    )]
    OtherSurvivors {
        /// The task.
        task: String,
        /// Number of the round.
        round: u64,
    },
    /// A message is of another cohort.
    #[error("the message is of another cohort")]
    OtherCohort,
    /// The list of members is not the one of the signed cohort, names a client twice, or one that the roster does not have.
    #[error("the list of the cohort's members is not the signed one, or names a client twice or beyond the roster")]
    Members,
    /// Own advert is missing or changed.
    #[error("this device's advert is not in the cohort at index {0}, or was changed")]
    OwnAdvert(u32),
    /// The neighbours are not those of the graph.
    #[error("the graph gives neighbours {expected:?}, the coordinator sent {got:?}")]
    Neighbours {
        /// Indices of the graph.
        expected: Vec<u32>,
        /// Indices received.
        got: Vec<u32>,
    },
    /// Something about one neighbour is wrong.
    #[error("neighbour {index}: {why}")]
    Neighbour {
        /// Cohort index.
        index: u32,
        /// What is wrong.
        why: NeighbourFault,
    },
    /// This device is missing from a set in which it must be.
    #[error("the coordinator left this device out of the set of clients that {0}")]
    LeftOut(&'static str),
    /// A set has members that can't be in it.
    #[error("client {0} is among the survivors, yet it did not share its keys")]
    NotInU1(u32),
    /// Too few clients for a sum.
    #[error("{have} clients {what}; this round needs {need}")]
    TooFew {
        /// What they did.
        what: &'static str,
        /// How many.
        have: usize,
        /// Smallest number.
        need: usize,
    },
    /// A window of the ring holds too few survivors: a small part of the cohort could be cut off.
    #[error("the window at place {place} of the ring holds too few survivors: a part of the cohort could be cut off")]
    ThinWindow {
        /// First place of the window.
        place: u32,
    },
    /// The operation belongs to the other security mode.
    #[error("this round is in {0} mode, where that message does not occur")]
    OtherMode(&'static str),
    /// Bytes that are to be resumed are no saved state, or not of this round.
    #[error("the saved state can't be resumed: {0}")]
    Saved(&'static str),
}

/// What can be wrong about a neighbour.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NeighbourFault {
    /// Its advert or shares are not in the Merkle tree.
    #[error("its message is not under the signed root")]
    Path,
    /// Its keys occur twice in the cohort.
    #[error("its keys are not its own: they occur twice")]
    KeysRepeat,
    /// Its client id is out of order, or another than its leaf's.
    #[error("its client id is out of order, or not that of its roster leaf")]
    ClientId,
    /// Its roster leaf stands elsewhere than the list of members says.
    #[error(
        "it does not stand where the list of the cohort's members says: another client, or one that is in it twice"
    )]
    Place,
    /// Its signature or encoding.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// Its roster leaf.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Its message is addressed to somebody else, or of another cohort.
    #[error("its message is of another cohort, or to another recipient")]
    Addressee,
    /// Its mask ciphertext is missing, or has a wrong length.
    #[error(transparent)]
    Ciphertext(#[from] CryptoError),
}

impl NeighbourFault {
    pub(crate) fn of(self, index: u32) -> ClientError {
        ClientError::Neighbour { index, why: self }
    }
}
