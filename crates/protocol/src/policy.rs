//! A client's own policy (section 8): the coordinator proposes, the policy decides. And what a device must not forget.

use std::collections::BTreeMap;

use crate::degree::SecurityMode;
use crate::ids::CohortId;
use crate::params::{RoundParams, SUITE_V1};

/// The differential privacy that a device demands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrivacyDemand {
    /// Largest epsilon of one round, by what its parameters promise at the least (zero-out adjacency).
    pub max_epsilon: f64,
    /// The delta for which epsilon is computed, above 0 and below 1.
    pub delta: f64,
}

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
    /// Shortest time between two rounds of one task, in seconds.
    pub min_interval_s: u64,
    /// Noise that a round must have; `None`: a round without any is acceptable.
    pub privacy: Option<PrivacyDemand>,
}

impl Default for Policy {
    /// Malicious mode, cohorts from 10, gamma from 0.01, delta up to 0.4, updates up to 2^28 elements, any task.
    fn default() -> Self {
        Self {
            n_min: 10,
            min_gamma: 0.01,
            max_delta: 0.4,
            max_dimension: 1 << 28,
            suites: vec![SUITE_V1],
            tasks: Vec::new(),
            allow_semi_honest: false,
            min_roster_epoch: 0,
            min_model_version: 0,
            min_interval_s: 0,
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
    /// Compares a proposal with every limit. `last_at` is when this device last took part in the task, `now` the time; both
    /// Unix seconds.
    ///
    /// # Errors
    /// [`PolicyRefusal`] for the first limit that is crossed.
    pub fn check(&self, params: &RoundParams, last_at: Option<u64>, now: u64) -> Result<(), PolicyRefusal> {
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
        if let Some(PrivacyDemand { max_epsilon, delta }) = self.privacy {
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
        match last_at {
            Some(at) if now < at.saturating_add(self.min_interval_s) => refuse(
                "the time since this device's last round",
                &now.saturating_sub(at),
                &self.min_interval_s,
                "min_interval_s",
            ),
            _ => Ok(()),
        }
    }
}

/// When and where a device last took part in a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Participation {
    /// Number of the round.
    pub round: u64,
    /// Unix time in seconds.
    pub at: u64,
}

/// What a device is bound to in the last round of a task in which it shared its keys (sections 4 and 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commitment {
    /// Number of the round.
    pub round: u64,
    /// The one cohort in which it shared its keys.
    pub cohort: CohortId,
    /// Hash of the one set of survivors that it has answered for, by tags or by released shares; absent before.
    pub survivors: Option<[u8; 32]>,
}

/// The record could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the participation record failed: {0}")]
pub struct RecordError(pub String);

/// The durable record that keeps a device from sharing its secrets in two cohorts (section 4), from masking two inputs for one
/// round (section 5), from answering for two sets of survivors (section 6), and from an older roster (section 1).
///
/// An implementation stores what it is given and must have the change on stable storage when a method returns: what the change
/// allows leaves the device right after. The rules are this crate's. A record is never rolled back, and never shared by two devices.
pub trait ParticipationRecord {
    /// The last participation in `task`.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be read.
    fn last(&self, task: &str) -> Result<Option<Participation>, RecordError>;

    /// Marks `(task, round)` as spent.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be written; then nothing may be uploaded.
    fn spend(&mut self, task: &str, participation: Participation) -> Result<(), RecordError>;

    /// The last [`Self::commit`] for `task`.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be read.
    fn commitment(&self, task: &str) -> Result<Option<Commitment>, RecordError>;

    /// Replaces the commitment for `task`.
    ///
    /// # Errors
    /// [`RecordError`] when the record can't be written; then no shares and no tags may be sent.
    fn commit(&mut self, task: &str, commitment: Commitment) -> Result<(), RecordError>;

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
    last: BTreeMap<String, Participation>,
    commitments: BTreeMap<String, Commitment>,
    epoch: u64,
}

impl ParticipationRecord for MemoryRecord {
    fn last(&self, task: &str) -> Result<Option<Participation>, RecordError> {
        Ok(self.last.get(task).copied())
    }

    fn spend(&mut self, task: &str, participation: Participation) -> Result<(), RecordError> {
        self.last.insert(task.to_owned(), participation);
        Ok(())
    }

    fn commitment(&self, task: &str) -> Result<Option<Commitment>, RecordError> {
        Ok(self.commitments.get(task).copied())
    }

    fn commit(&mut self, task: &str, commitment: Commitment) -> Result<(), RecordError> {
        self.commitments.insert(task.to_owned(), commitment);
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
