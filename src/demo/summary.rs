//! What the demo reports: one machine-readable summary.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use unisono::client::Traffic;
use unisono::protocol::server::Phase;

use super::Args;

/// Mean bytes on the socket of a client that completed the round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Bytes {
    /// Sent in all phases.
    pub up: u64,
    /// Received in all phases.
    pub down: u64,
    /// Sent, by phase.
    pub up_by_phase: BTreeMap<&'static str, u64>,
    /// Received, by phase.
    pub down_by_phase: BTreeMap<&'static str, u64>,
}

impl Bytes {
    /// The mean of several clients'; zeros for none.
    pub fn mean(clients: &[Traffic]) -> Self {
        let count = clients.len().max(1) as u64;
        let mean = |get: &dyn Fn(&Traffic) -> u64| clients.iter().map(get).sum::<u64>() / count;
        let by_phase = |get: &dyn Fn(&Traffic) -> [u64; 5]| {
            Phase::ALL.into_iter().map(|phase| (phase.name(), mean(&|traffic| get(traffic)[phase as usize]))).collect()
        };
        Self {
            up: mean(&Traffic::total_up),
            down: mean(&Traffic::total_down),
            up_by_phase: by_phase(&|traffic| traffic.up),
            down_by_phase: by_phase(&|traffic| traffic.down),
        }
    }
}

/// One successful round.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    pub round: u64,
    /// Clients in the cohort.
    pub cohort: usize,
    /// Clients whose update is in the sum.
    pub survivors: usize,
    /// Clients that were missing at the end of a phase.
    pub missing: BTreeMap<&'static str, usize>,
    /// Of the new model, on the held-out part.
    pub accuracy: f32,
    /// Likewise.
    pub loss: f32,
    /// Weighted mean of the clients' losses before they trained, from the sum.
    pub clients_loss: f32,
    /// Whether the sum is exactly the survivors' plaintext sum.
    pub exact_sum: bool,
    pub bytes_per_client: Bytes,
    /// Duration of each phase.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// The released model.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseCheck {
    pub version: u64,
    /// Size of the file.
    pub bytes: usize,
    pub opened_by_enrolled: bool,
    pub open_error: Option<String>,
    /// The refusal; absent if there was none.
    pub refused_to_stranger: Option<String>,
    /// How often a client vanished, by phase.
    #[serde(skip)]
    pub vanished: BTreeMap<&'static str, usize>,
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub clients: u32,
    pub n_min: u32,
    pub mode: &'static str,
    pub drop: f64,
    pub seed: u64,
    pub rounds: Vec<Round>,
    /// Rounds that gave no sum.
    pub aborted_rounds: u64,
    /// How often a client vanished, by phase.
    pub vanished: BTreeMap<&'static str, usize>,
    /// Every sum was exact.
    pub exact_sums: bool,
    /// Of the last model, on the held-out part.
    pub accuracy: f32,
    /// Of the same model trained centrally for as many passes.
    pub central_accuracy: f32,
    pub release: ReleaseCheck,
    pub seconds: f64,
}

impl Summary {
    pub fn new(
        args: &Args,
        n_min: u32,
        rounds: Vec<Round>,
        aborted_rounds: u64,
        central_accuracy: f32,
        release: ReleaseCheck,
        took: Duration,
    ) -> Self {
        Self {
            clients: args.clients,
            n_min,
            mode: "malicious",
            drop: args.drop,
            seed: args.seed,
            exact_sums: !rounds.is_empty() && rounds.iter().all(|round| round.exact_sum),
            accuracy: rounds.last().map_or(0.0, |round| round.accuracy),
            rounds,
            aborted_rounds,
            vanished: release.vanished.clone(),
            central_accuracy,
            release,
            seconds: took.as_secs_f64(),
        }
    }

    /// What must not be; empty for a good run. The accuracy is compared after ten rounds or more: a model that has just begun
    /// to learn is allowed to be worse.
    pub fn failures(&self, gap: f32) -> Vec<String> {
        let mut failures = Vec::new();
        let wrong = self.rounds.iter().filter(|round| !round.exact_sum).count();
        if wrong > 0 || self.rounds.is_empty() {
            failures.push(format!("{wrong} of {} sums are not exact", self.rounds.len()));
        }
        if self.rounds.len() >= 10 && self.accuracy < self.central_accuracy - gap {
            let (accuracy, central) = (self.accuracy, self.central_accuracy);
            failures.push(format!("accuracy {accuracy:.3}, trained centrally {central:.3}"));
        }
        if let Some(error) = &self.release.open_error {
            failures.push(format!("an enrolled client could not open the release: {error}"));
        }
        if self.release.refused_to_stranger.is_none() {
            failures.push("a stranger opened the release".into());
        }
        failures
    }
}
