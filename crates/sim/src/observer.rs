//! Who watches a simulation, and may stop it.

use unisono_protocol::encoding::Aggregate;
use unisono_protocol::server::Phase;

use crate::report::RoundReport;

/// Follows a simulation. Every method has a default that does nothing; `()` is the observer that watches nothing.
pub trait Observer {
    /// `done` of `clients` clients have had their turn in this phase.
    fn progress(&mut self, round: u64, phase: Phase, done: usize, clients: usize) {
        let _ = (round, phase, done, clients);
    }

    /// A round has come to its end; `aggregate` is its decoded mean, unless it was aborted. A learner applies it here: the
    /// next round's updates are asked for afterwards.
    fn round_finished(&mut self, report: &RoundReport, aggregate: Option<&Aggregate>) {
        let _ = (report, aggregate);
    }

    /// Asked often; `true` drops the round at hand and ends the simulation with the rounds before it.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Observer for () {}
