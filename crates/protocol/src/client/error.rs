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
    /// This device's policy demands a base model that a publisher has signed.
    #[error("this device's policy refuses the round's base model: {0} (set by `signed_base_model`)")]
    UnsignedBaseModel(&'static str),
    /// No coordinator key of the roster verifies the parameters.
    #[error("the round's parameters are not signed by a coordinator that the roster names")]
    UntrustedCoordinator,
    /// This device has shared its keys in this round number or a later one: the round is closed for it.
    #[error(
        "round {round} of task {task:?} is closed for this device: it has shared its keys in round {last}, and never goes back"
    )]
    OldRound {
        /// The task.
        task: String,
        /// Number of the refused round.
        round: u64,
        /// Last round number.
        last: u64,
    },
    /// This device has masked an input in this round. Once is all: a second one would give away the difference.
    #[error(
        "in round {round} of task {task:?} this device has masked an input before; only the stored bytes are sent again"
    )]
    AlreadyMasked {
        /// The task.
        task: String,
        /// Number of the round.
        round: u64,
    },
    /// The record does not name this round and cohort, or not the set for which the input was masked.
    #[error(
        "the record does not say that this device took the step before in this cohort of round {round} of task {task:?}: the \
         state is not the last one, or the record was lost; a device without its record must be enrolled anew"
    )]
    NotRecorded {
        /// The task.
        task: String,
        /// Number of the round.
        round: u64,
    },
    /// This device has endorsed, or revealed shares for, another set of survivors. After a valid certificate this proves that the
    /// coordinator, or more of the committee than is assumed, cheats.
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
    /// The list of members has another client at this device's index.
    #[error("the list of the cohort's members does not have this device at index {0}")]
    OwnPlace(u32),
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
    /// A valid certificate names a set of survivors without this device: its secrets of the round are erased.
    #[error("the certified set of survivors is without this device: its update is not in the sum")]
    CertifiedWithout,
    /// The certificate does not hold.
    #[error("the certificate is refused: {0}")]
    Certificate(#[from] CertificateFault),
    /// The coordinator asks for an endorsement that only members of the committee give.
    #[error("this device is not on the cohort's committee, and endorses nothing")]
    NotOnCommittee,
    /// The time for which this device keeps the round's secrets is over.
    #[error(
        "this device keeps the round's secrets until {erase_at} (Unix time); it is {now}: the round is over for it"
    )]
    Expired {
        /// Last second.
        erase_at: u64,
        /// Time of the check.
        now: u64,
    },
    /// The round's secrets were erased.
    #[error("the round is over for this device: its secrets were erased")]
    Erased,
    /// A view that the state can't take.
    #[error("a view of the {got} came while {awaited} was awaited")]
    UnexpectedView {
        /// What was shown.
        got: &'static str,
        /// The phase whose view this device waits for; "nothing" after the last one.
        awaited: &'static str,
    },
    /// A masking view was taken without an input.
    #[error("there is no input to mask")]
    NoInput,
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

impl ClientError {
    /// Whether the round is over for this device for good, so that its secrets must be erased (section 6).
    pub fn closes_round(&self) -> bool {
        matches!(self, Self::CertifiedWithout | Self::Expired { .. } | Self::OldRound { .. } | Self::Erased)
    }
}

/// What can be wrong about a certificate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CertificateFault {
    /// It is for another set of clients that shared keys than the one this device masked for.
    #[error("it is for another set of clients that shared keys than the one for which this device masked")]
    OtherSharers,
    /// Too few or too many signers.
    #[error("it has {have} signers; exactly {need} are needed")]
    Quorum {
        /// Signers in it.
        have: usize,
        /// The quorum of the cohort.
        need: usize,
    },
    /// Signers repeat, or are out of order.
    #[error("its signers are not in strictly ascending order at client {signer}")]
    Order {
        /// Cohort index.
        signer: u32,
    },
    /// A signer is not on the committee, or not in the cohort.
    #[error("its signer, client {signer}, is not on the cohort's committee")]
    NotOnCommittee {
        /// Cohort index.
        signer: u32,
    },
    /// A signer did not share its keys, so it masked for nothing.
    #[error("its signer, client {signer}, did not share its keys")]
    NotASharer {
        /// Cohort index.
        signer: u32,
    },
    /// A signer's leaf is not where the list of members says.
    #[error(
        "the leaf of its signer, client {signer}, is not at the place of the roster that the list of members gives"
    )]
    Place {
        /// Cohort index.
        signer: u32,
    },
    /// A signer's leaf is missing, not in the round's roster, or was not valid when this device accepted the cohort.
    #[error("the leaf of its signer, client {signer}: {why}")]
    Leaf {
        /// Cohort index.
        signer: u32,
        /// What is wrong.
        why: RosterError,
    },
    /// A leaf in a complete graph, where every client has it.
    #[error("it has a leaf for its signer, client {signer}, which every client of a complete graph has already")]
    NeedlessLeaf {
        /// Cohort index.
        signer: u32,
    },
    /// A signature does not verify over this cohort, this set of sharers and this set of survivors.
    #[error("the signature of client {signer} does not verify for this cohort and these sets")]
    Signature {
        /// Cohort index.
        signer: u32,
    },
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
