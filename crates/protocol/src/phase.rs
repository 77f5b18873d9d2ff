//! The phases of a round, as both sides name them.

use std::fmt;

use crate::proto::{self, client_message::Step};

/// The phases of a round, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Phase 0: adverts are collected.
    Advertise,
    /// Phase 1: shares are collected.
    Share,
    /// Phase 2: masked vectors are collected.
    Mask,
    /// Phase 3: endorsements of the set of survivors are collected from the committee (malicious mode).
    Confirm,
    /// Phase 4: revealed shares are collected.
    Unmask,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 5] = [Self::Advertise, Self::Share, Self::Mask, Self::Confirm, Self::Unmask];

    /// Lower-case name, as in logs, metrics and the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Advertise => "advertise",
            Self::Share => "share",
            Self::Mask => "mask",
            Self::Confirm => "confirm",
            Self::Unmask => "unmask",
        }
    }

    /// The phase's longest duration in milliseconds.
    pub fn deadline_ms(self, deadlines: &proto::PhaseDeadlines) -> u64 {
        match self {
            Self::Advertise => deadlines.advertise_ms,
            Self::Share => deadlines.share_ms,
            Self::Mask => deadlines.mask_ms,
            Self::Confirm => deadlines.confirm_ms,
            Self::Unmask => deadlines.unmask_ms,
        }
    }

    pub(crate) fn of(step: &Step) -> Self {
        match step {
            Step::Advert(_) => Self::Advertise,
            Step::ShareKeys(_) => Self::Share,
            Step::Upload(_) => Self::Mask,
            Step::Endorsement(_) => Self::Confirm,
            Step::Unmask(_) => Self::Unmask,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
