//! Why a simulation can't be set up, or not go on.

use std::path::PathBuf;

use unisono_crypto::CryptoError;
use unisono_protocol::encoding::EncodingError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::roster::RosterError;
use unisono_protocol::server::OpenError;

/// A refused setting, or a simulation that can't go on. A round that merely ends without a sum is no error, but a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// A setting is outside its range.
    #[error("`{setting}` is {got}; allowed is {allowed}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Value found.
        got: String,
        /// What would be accepted.
        allowed: String,
    },
    /// No round can run with these settings; an infeasible cohort comes with what would be feasible.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The quantiser's settings.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// A primitive's arguments.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The round could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The simulated roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// A trace file can't be read.
    #[error("the trace {}: {why}", .path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        why: String,
    },
    /// The vectors of a round do not fit into memory.
    #[error(
        "a round needs about {:.1} GiB of memory, more than can be had; use a smaller dimension, fewer clients or fewer threads",
        *.bytes as f64 / f64::from(1 << 30)
    )]
    Memory {
        /// Estimate of what the largest vectors take together.
        bytes: u64,
    },
    /// The thread pool could not be made.
    #[error("the threads could not be started: {0}")]
    Threads(String),
}

pub(crate) fn setting(setting: &'static str, got: impl ToString, allowed: impl ToString) -> SimError {
    SimError::Setting { setting, got: got.to_string(), allowed: allowed.to_string() }
}
