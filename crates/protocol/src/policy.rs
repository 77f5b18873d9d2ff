//! A client's own policy (section 8): the coordinator proposes, the policy decides. And what a device must not forget.

use std::collections::BTreeMap;

use crate::degree::{self, SecurityMode};
use crate::ids::CohortId;
use crate::params::{RoundParams, SUITE_V1};
use crate::privacy::Accountant;

/// The differential privacy that a device demands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrivacyDemand {
    /// Largest epsilon of one round, by what its parameters promise at the least (zero-out adjacency).
    pub max_epsilon: f64,
    /// Largest epsilon of all rounds of a task together, at the same delta; `None`: no limit. A round without noise that this device
    /// took part in before exceeds any.
    pub max_total_epsilon: Option<f64>,
    /// The delta for which epsilon is computed, above 0 and below 1.
    pub delta: f64,
}

/// Most by which the number of a round may be above the last one in which this device shared its keys. A coordinator that names a
/// number near the end of the range would keep the device from all later rounds.
pub const MAX_ROUND_JUMP: u64 = 1 << 20;

/// Highest number of the first round of a task that a device takes part in.
pub const MAX_FIRST_ROUND: u64 = 1 << 32;

/// [`PolicyRefusal::setting`] of a round whose number is too far above the record's last one.
pub const ROUND_JUMP: &str = "round_jump";

/// [`PolicyRefusal::setting`] of a device whose clock is behind its record.
pub const CLOCK: &str = "clock";

/// What this device accepts. Every limit is inclusive.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Smallest `n_min`: the sum that includes this device's update covers at least so many.
    pub n_min: u32,
    /// Smallest adversarial fraction that a round must withstand.
    pub min_gamma: f64,
    /// Largest drop-out fraction that a round may be made for: more drop-outs mean fewer survivors in the sum.
    pub max_delta: f64,
    /// Longest update, in elements.
    pub max_dimension: u64,
    /// Accepted suites.
    pub suites: Vec<u32>,
    /// Tasks in which this device takes part; empty: any. The record counts by task, so a coordinator that may invent tasks
    /// asks as often as it likes.
    pub tasks: Vec<String>,
    /// Whether a round without signatures, roster and consistency check is acceptable.
    pub allow_semi_honest: bool,
    /// Oldest roster epoch.
    pub min_roster_epoch: u64,
    /// Oldest base model.
    pub min_model_version: u64,
    /// Whether a base model must be signed by a publisher that the roster names. A coordinator that chooses base models freely can
    /// make one whose updates tell single examples (docs/security.md). It helps where the coordinator does not hold the publisher's key.
    pub signed_base_model: bool,
    /// Shortest time between two masked inputs for one task, in seconds. A coordinator that runs many rounds learns more from the
    /// differences of their sums.
    pub min_interval_s: u64,
    /// Most rounds of one task in which this device masks an input; `None`: no limit.
    pub max_rounds: Option<u64>,
    /// Fewest honest inputs that a sum must have, at least 2: `n_min` less the colluders that are assumed.
    pub min_honest: u32,
    /// Fewest colluders that a round must withstand, at least 1, whatever `gamma` says.
    pub min_colluders: u32,
    /// Longest time for which this device keeps the secrets of a round after it accepted the cohort, in seconds.
    pub max_round_s: u64,
    /// Noise that a round must have; `None`: a round without any is acceptable.
    pub privacy: Option<PrivacyDemand>,
}

impl Default for Policy {
    /// Malicious mode, cohorts from 10, gamma from 0.05, delta up to 0.3, at least one colluder and two honest inputs, updates up
    /// to 2^28 elements, any task, one round in 10 seconds, secrets kept for a day at most.
    fn default() -> Self {
        Self {
            n_min: 10,
            min_gamma: 0.05,
            max_delta: 0.3,
            max_dimension: 1 << 28,
            suites: vec![SUITE_V1],
            tasks: Vec::new(),
            allow_semi_honest: false,
            min_roster_epoch: 0,
            min_model_version: 0,
            signed_base_model: false,
            min_interval_s: 10,
            max_rounds: None,
            min_honest: 2,
            min_colluders: 1,
            max_round_s: 24 * 60 * 60,
            privacy: None,
        }
    }
}

/// A proposal that this device's policy refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("this device's policy refuses the round: {what} is {value}, the limit is {limit} (set by `{setting}`)")]
pub struct PolicyRefusal {
    /// What was proposed.
    pub what: &'static str,
    /// The coordinator's value.
    pub value: String,
    /// The device's limit.
    pub limit: String,
    /// Which setting of the policy holds the limit.
    pub setting: &'static str,
}

impl Policy {
    /// Compares a proposal with every limit. `entry` is the record's for the task, `now` Unix time in seconds.
    ///
    /// # Errors
    /// [`PolicyRefusal`] for the first limit that is crossed.
    pub fn check(&self, params: &RoundParams, entry: Option<&TaskEntry>, now: u64) -> Result<(), PolicyRefusal> {
        let wire = &params.wire;
        let refuse = |what, value: &dyn ToString, limit: &dyn ToString, setting| {
            Err(PolicyRefusal { what, value: value.to_string(), limit: limit.to_string(), setting })
        };
        if params.assumptions.mode == SecurityMode::SemiHonest && !self.allow_semi_honest {
            return refuse("the security mode", &"semi-honest", &"malicious", "allow_semi_honest");
        }
        if !self.tasks.is_empty() && !self.tasks.contains(&wire.task) {
            return refuse("the task", &format!("{:?}", wire.task), &format!("one of {:?}", self.tasks), "tasks");
        }
        if wire.n_min < self.n_min {
            return refuse("the smallest cohort n_min", &wire.n_min, &self.n_min, "n_min");
        }
        // A limit that is not a number is met by nothing.
        if params.assumptions.gamma < self.min_gamma || self.min_gamma.is_nan() {
            return refuse("the adversarial fraction gamma", &params.assumptions.gamma, &self.min_gamma, "min_gamma");
        }
        let value = degree::adversaries(wire.n_min, &params.assumptions);
        if value < self.min_colluders {
            return refuse("the smallest number of colluders", &value, &self.min_colluders, "min_colluders");
        }
        let honest = params.least_honest();
        if honest < self.min_honest {
            return refuse("the smallest number of honest inputs in a sum", &honest, &self.min_honest, "min_honest");
        }
        if params.assumptions.delta > self.max_delta || self.max_delta.is_nan() {
            return refuse("the drop-out fraction delta", &params.assumptions.delta, &self.max_delta, "max_delta");
        }
        if wire.dimension > self.max_dimension {
            return refuse("the update's dimension", &wire.dimension, &self.max_dimension, "max_dimension");
        }
        if !self.suites.contains(&wire.suite) {
            return refuse("the suite", &wire.suite, &format!("one of {:?}", self.suites), "suites");
        }
        if params.malicious() && wire.roster_epoch < self.min_roster_epoch {
            return refuse("the roster epoch", &wire.roster_epoch, &self.min_roster_epoch, "min_roster_epoch");
        }
        if wire.model_version < self.min_model_version {
            return refuse(
                "the base model's version",
                &wire.model_version,
                &self.min_model_version,
                "min_model_version",
            );
        }
        if let Some(PrivacyDemand { max_epsilon, delta, .. }) = self.privacy {
            let limit = format!("{max_epsilon} at delta = {delta}");
            let Some(guarantee) = params.guarantee() else {
                return refuse("the round's noise for differential privacy", &"absent", &limit, "privacy.max_epsilon");
            };
            let epsilon = guarantee.epsilon(delta);
            let within = epsilon <= max_epsilon;
            if !within {
                return refuse("the round's epsilon", &format!("{epsilon:.4}"), &limit, "privacy.max_epsilon");
            }
        }
        let limit = entry.map_or(MAX_FIRST_ROUND, |entry| entry.round.saturating_add(MAX_ROUND_JUMP));
        if wire.round > limit {
            return refuse("the round's number", &wire.round, &limit, ROUND_JUMP);
        }
        self.check_budget(params, &entry.map(|entry| entry.spent.clone()).unwrap_or_default(), now)
    }

    /// Compares what the rounds of a task would have cost with this one with the limits over rounds. `now` is Unix time in seconds.
    /// It is asked before a round is joined, and again before the masked input leaves.
    ///
    /// # Errors
    /// [`PolicyRefusal`] for the first limit that is crossed.
    pub fn check_budget(&self, params: &RoundParams, spent: &Spent, now: u64) -> Result<(), PolicyRefusal> {
        let refuse = |what, value: &dyn ToString, limit: &dyn ToString, setting| {
            Err(PolicyRefusal { what, value: value.to_string(), limit: limit.to_string(), setting })
        };
        if let Some(PrivacyDemand { max_total_epsilon: Some(limit), delta, .. }) = self.privacy {
            let total = spent.after(params, now).epsilon(delta);
            let within = total <= limit;
            if !within {
                let (value, limit) = (format!("{total:.4}"), format!("{limit} at delta = {delta}"));
                let what = "the epsilon of this device's rounds in the task";
                return refuse(what, &value, &limit, "privacy.max_total_epsilon");
            }
        }
        if self.max_rounds.is_some_and(|max_rounds| spent.rounds >= max_rounds) {
            let limit = self.max_rounds.unwrap_or_default();
            return refuse("the number of this device's rounds in the task", &(spent.rounds + 1), &limit, "max_rounds");
        }
        if spent.rounds > 0 && self.min_interval_s > 0 && now < spent.last_at {
            let limit = format!("{}, when it last took part", spent.last_at);
            return refuse("this device's clock", &format!("at {now} (Unix time)"), &limit, CLOCK);
        }
        let since = now.saturating_sub(spent.last_at);
        if spent.rounds > 0 && since < self.min_interval_s {
            return refuse(
                "the time since this device's last round",
                &format!("{since} s"),
                &format!("{} s", self.min_interval_s),
                "min_interval_s",
            );
        }
        Ok(())
    }
}

/// What a device has spent of its budget over the rounds of a task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Spent {
    /// Rounds for which it masked an input.
    pub rounds: u64,
    /// When it last did, Unix time in seconds; 0 before the first.
    pub last_at: u64,
    /// Those of the rounds that had no noise.
    pub unprotected: u64,
    /// The divergences of those that had.
    pub account: Accountant,
}

impl Spent {
    /// With one more round, masked for at `now` (Unix time in seconds). A clock that was set back does not make it earlier.
    #[must_use]
    pub fn after(&self, params: &RoundParams, now: u64) -> Self {
        let mut spent = self.clone();
        spent.rounds = spent.rounds.saturating_add(1);
        spent.last_at = spent.last_at.max(now);
        match params.guarantee() {
            Some(guarantee) => spent.account.add(&guarantee, 1),
            None => spent.unprotected = spent.unprotected.saturating_add(1),
        }
        spent
    }

    /// Epsilon of all rounds together at `delta` (section 12); infinite after a round without noise.
    pub fn epsilon(&self, delta: f64) -> f64 {
        if self.unprotected > 0 { f64::INFINITY } else { self.account.epsilon(delta) }
    }
}

/// What a device is bound to in a task (section 8): the last round in which it shared its keys, and what it did there.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskEntry {
    /// Number of the round.
    pub round: u64,
    /// The one cohort in which it shared its keys.
    pub cohort: CohortId,
    /// Hash of U1 as this device masked for it; absent before it masked.
    pub masked_for: Option<[u8; 32]>,
    /// Hash of the one set of survivors that it has answered for, by an endorsement or by revealed shares; absent before.
    pub survivors: Option<[u8; 32]>,
    /// What all its rounds in the task have cost.
    pub spent: Spent,
}

/// The record could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Storage failed.
    #[error("the participation record failed: {0}")]
    Failed(String),
    /// The entry is not the one that was read: another process or session of this device goes on with it.
    #[error(
        "the participation record was changed meanwhile: another process or session of this device uses it; a device runs one \
         client at a time"
    )]
    Changed,
}

/// The durable record that keeps a device from sharing its secrets in two cohorts (section 4), from masking two inputs in one
/// round (section 5), from answering for two sets of survivors (section 6), and from an older roster (section 1).
///
/// An implementation stores what it is given and must have the change on stable storage when a method returns: what the change
/// allows leaves the device right after. The rules are this crate's. A record is never rolled back and never shared by two devices.
pub trait ParticipationRecord {
    /// The entry of `task`; `None` before its first round.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be read.
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError>;

    /// Replaces the entry of `task` by `next`, if it still is `expected` (compare-and-set).
    ///
    /// # Errors
    /// [`RecordError::Changed`] when it is not, [`RecordError::Failed`] when the record can't be written; then nothing may leave.
    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError>;

    /// The highest roster epoch seen so far; 0 before the first.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be read.
    fn roster_epoch(&self) -> Result<u64, RecordError>;

    /// Notes a roster epoch.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be written.
    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError>;
}

/// A record in memory, for tests and simulation: forgotten with the process.
#[derive(Debug, Clone, Default)]
pub struct MemoryRecord {
    entries: BTreeMap<String, TaskEntry>,
    epoch: u64,
}

impl ParticipationRecord for MemoryRecord {
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError> {
        Ok(self.entries.get(task).cloned())
    }

    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError> {
        if self.entries.get(task) != expected {
            return Err(RecordError::Changed);
        }
        self.entries.insert(task.to_owned(), next);
        Ok(())
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        Ok(self.epoch)
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        self.epoch = self.epoch.max(epoch);
        Ok(())
    }
}
