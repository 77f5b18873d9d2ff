//! What a simulation tells. Everything but [`Timing`] is the same for the same settings and seed, byte for byte.

use serde::Serialize;

/// A finished (or interrupted) simulation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was simulated.
    pub settings: Settings,
    /// One entry a round that came to an end.
    pub rounds: Vec<RoundReport>,
    /// Whether the observer stopped the simulation before its last round.
    pub interrupted: bool,
}

impl Report {
    /// The report without measured times: what two runs of one seed have in common.
    pub fn without_timings(&self) -> Self {
        let mut report = self.clone();
        report.rounds.iter_mut().for_each(|round| round.timing = None);
        report
    }
}

/// The settings, as used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Devices.
    pub clients: u32,
    /// Elements of an update, d.
    pub dimension: u64,
    /// `malicious` or `semi-honest`.
    pub mode: String,
    /// Assumed adversarial fraction.
    pub gamma: f64,
    /// Assumed drop-out fraction.
    pub delta: f64,
    /// Smallest number of updates whose sum may be learned.
    pub n_min: u32,
    /// Bits q of a quantised element.
    pub quantiser_bits: u32,
    /// Whether updates were rotated before they were clipped to the L-infinity bound.
    pub rotate: bool,
    /// Bits b of an element of the ring.
    pub modulus_bits: u32,
    /// Neighbours of each client when nobody is missing from the cohort, k.
    pub degree: u32,
    /// Shares that rebuild a secret then, t.
    pub threshold: u32,
    /// Survivors that every window of the ring must exceed then, a_w.
    pub window_bound: Option<u32>,
    /// Members of the committee that endorses the set of survivors; `None` in semi-honest mode.
    pub committee: Option<u32>,
    /// Signatures that its certificate needs; `None` in semi-honest mode.
    pub quorum: Option<u32>,
    /// Most clients that may drop out, whichever they are; `None` for a sparse graph, which is made for `delta`.
    pub tolerated_drop_outs: Option<u32>,
    /// Seed.
    pub seed: u64,
    /// Whether each signature was verified once for all clients, so that a client's measured time is less than a device's.
    pub shared_checks: bool,
    /// Where clients' updates come from: "random", "given", or what the caller named them.
    pub updates: String,
    /// Rounds asked for.
    pub rounds: u64,
    /// The drop-out model, as [`Dropout::parse`](crate::Dropout::parse) reads it.
    pub dropout: String,
    /// The network, as [`Network::parse`](crate::Network::parse) reads it.
    pub network: String,
    /// Virtual seconds after which a phase is closed.
    pub deadline: f64,
    /// Differential privacy; `None` for exact sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacySettings>,
}

/// Noise, and what it promises before a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PrivacySettings {
    /// Standard deviation of the noise that counts, in L2 sensitivities.
    pub noise_multiplier: f64,
    /// The delta for which epsilon is told.
    pub delta: f64,
    /// L2 bound of an update.
    pub l2_clip: f32,
    /// Variance of one client's noise on each element, in squared steps of the quantiser.
    pub noise_variance: f64,
    /// Contributions whose noise counts in the smallest sum: `n_min` less the assumed colluders.
    pub contributions: u32,
    /// Epsilon of one round with the smallest sum.
    pub epsilon: f64,
}

/// What a round's sum has spent, counted with those who were in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundPrivacy {
    /// Epsilon of this round.
    pub epsilon: f64,
    /// Epsilon of all rounds up to this one, for a client that took part in all.
    pub total_epsilon: f64,
    /// Standard deviation of the noise on an element of the mean.
    pub noise_deviation: f64,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundReport {
    /// Its number, from 1.
    pub round: u64,
    /// Clients in the cohort; 0 when it was never closed.
    pub cohort: usize,
    /// Clients whose update is in the sum.
    pub survivors: usize,
    /// Whether the sum equals that of the survivors' quantised updates, element by element; `None` when the round was aborted.
    pub exact_sum: Option<bool>,
    /// FNV-1a hash of the sum's elements, to compare runs; `None` when the round was aborted.
    pub sum_hash: Option<String>,
    /// Why the round ended without a sum.
    pub abort: Option<String>,
    /// What clients noticed about each other: faults by name and number.
    pub reports: Vec<(String, usize)>,
    /// Clients that refused to go on, and the first one's reason.
    pub refusals: usize,
    /// See `refusals`.
    pub first_refusal: Option<String>,
    /// Length of the round on the virtual clock, in seconds. The coordinator's own computing is not part of it.
    pub virtual_seconds: f64,
    /// Bound on the error that quantisation adds to an element of the mean.
    pub error_bound: Option<f64>,
    /// What the sum has spent; `None` without privacy, and when the round was aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privacy: Option<RoundPrivacy>,
    /// What the model is worth that has learned of this round; `None` unless somebody who trains one fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned: Option<Learned>,
    /// By phase.
    pub phases: Vec<PhaseReport>,
    /// Measured times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// A model on examples that nobody trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Learned {
    /// Part of the examples that it tells right, 0 to 1.
    pub accuracy: f32,
    /// Mean loss (cross-entropy).
    pub loss: f32,
}

/// One phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PhaseReport {
    /// Its name.
    pub phase: &'static str,
    /// Clients that could take its step.
    pub expected: usize,
    /// Clients whose step arrived in time.
    pub answered: usize,
    /// Clients whose step came after the deadline.
    pub late: usize,
    /// Length on the virtual clock, seconds.
    pub virtual_seconds: f64,
    /// Bytes that one client sent: mean over those that did, and largest. Upload included.
    pub sent: Spread,
    /// Bytes that one client received.
    pub received: Spread,
}

/// Mean and largest value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Largest.
    pub max: f64,
}

/// Collects a [`Spread`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    count: usize,
    sum: f64,
    max: f64,
}

impl Tally {
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.max = self.max.max(value);
    }

    pub fn spread(&self) -> Spread {
        Spread { mean: if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }, max: self.max }
    }
}

/// Measured times of one round. They differ from run to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// Wall-clock seconds of the whole round in this process.
    pub wall_seconds: f64,
    /// By phase.
    pub phases: Vec<PhaseTiming>,
}

/// Measured times of one phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PhaseTiming {
    /// Its name.
    pub phase: &'static str,
    /// CPU seconds of one client. With [`Settings::shared_checks`] it has hardly any of the verification of others' signatures.
    pub client_seconds: Spread,
    /// CPU seconds of the coordinator, over all threads: views, messages, uploads, closing the phase.
    pub server_seconds: f64,
}
