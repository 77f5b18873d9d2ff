//! The parameters of a round (section 3): validated once, then used by both sides.

use unisono_crypto::kdf::{hash, label};
use unisono_crypto::ring::Modulus;

use crate::degree::{Assumptions, DegreeError, SecurityMode, Topology, adversaries, find};
use crate::encoding::{ClipRun, EncodingError, Quantiser, Rounding};
use crate::ids::RoundId;
use crate::privacy::{Guarantee, Privacy, Sensitivity};
use crate::proto;
use crate::rotation::Rotation;
use crate::signed;

/// The only suite of version 1: X-Wing, ChaCha20, BLAKE3, Ristretto, Ed25519 + ML-DSA.
pub const SUITE_V1: u32 = 1;
/// Longest name of a task, in bytes.
pub const MAX_TASK_LEN: usize = 64;
/// Largest cohort that version 1 allows.
pub const MAX_COHORT: u32 = 1 << 20;
/// Honest inputs that any sum must have (section 8).
pub const LEAST_HONEST: u32 = 2;
/// Longest update that version 1 allows, in elements.
pub const MAX_DIMENSION: u64 = 1 << 32;

/// Round parameters that were checked for consistency and feasibility.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundParams {
    /// The message as proposed.
    pub wire: proto::RoundParams,
    /// Hash of the encoded message.
    pub round_id: RoundId,
    /// Modulus of the ring, from `modulus_bits`.
    pub modulus: Modulus,
    /// The encoder's settings, with the round's own rotation where there is one.
    pub quantiser: Quantiser,
    /// Assumed fractions and the security mode.
    pub assumptions: Assumptions,
}

/// A proposal that no round can run with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParamsError {
    /// The bytes are not a `RoundParams`.
    #[error("the round parameters can't be decoded: {0}")]
    Malformed(String),
    /// A field is outside its range.
    #[error("round parameter `{field}` is {got}; allowed is {allowed}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Value found.
        got: String,
        /// What would be accepted.
        allowed: String,
    },
    /// The quantiser's settings are inconsistent, or sums could overflow.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// No sizes satisfy section 9.
    #[error("no secure graph for {n} clients: {source}")]
    Infeasible {
        /// Size of the cohort.
        n: u32,
        /// How many drop-outs would be tolerated, and what would make it feasible where the coordinator asked.
        source: DegreeError,
    },
}

impl ParamsError {
    /// The error with advice for an infeasible cohort: see [`DegreeError::advised`]. For the coordinator only.
    #[must_use]
    pub fn advised(self, assumptions: &Assumptions) -> Self {
        match self {
            Self::Infeasible { n, source } => Self::Infeasible { n, source: source.advised(assumptions) },
            other => other,
        }
    }
}

fn field(field: &'static str, got: impl ToString, allowed: impl ToString) -> ParamsError {
    ParamsError::Field { field, got: got.to_string(), allowed: allowed.to_string() }
}

impl RoundParams {
    /// Decodes and checks a `RoundParams` payload; the round id is the hash of exactly these bytes.
    ///
    /// # Errors
    /// [`ParamsError`] names the field, its value and the range; a modulus too small for `n_max` sums, and a smallest or
    /// largest cohort for which section 9 finds no sizes, are errors too.
    pub fn from_payload(payload: &[u8]) -> Result<Self, ParamsError> {
        let params = Self::parse(payload)?;
        params.feasible()?;
        Ok(params)
    }

    /// As [`RoundParams::from_payload`], for who chooses the parameters: an infeasible cohort comes with what would make it feasible,
    /// which takes up to a second to find.
    ///
    /// # Errors
    /// As [`RoundParams::from_payload`].
    pub fn proposed(payload: &[u8]) -> Result<Self, ParamsError> {
        let params = Self::parse(payload)?;
        params.feasible().map_err(|error| error.advised(&params.assumptions))?;
        Ok(params)
    }

    fn parse(payload: &[u8]) -> Result<Self, ParamsError> {
        let wire: proto::RoundParams =
            signed::canonical(payload, "round parameters").map_err(|e| ParamsError::Malformed(e.to_string()))?;
        let task_ok = (1..=MAX_TASK_LEN).contains(&wire.task.len());
        if !task_ok || wire.task.chars().any(char::is_control) {
            return Err(field("task", format!("{:?}", wire.task), "1 to 64 bytes without control characters"));
        }
        if wire.suite != SUITE_V1 {
            return Err(field("suite", wire.suite, SUITE_V1));
        }
        if wire.dimension == 0 || wire.dimension > MAX_DIMENSION {
            return Err(field("dimension", wire.dimension, format!("1 to {MAX_DIMENSION}")));
        }
        if wire.n_min < 3 || wire.n_min > wire.n_max || wire.n_max > MAX_COHORT {
            let got = format!("{} (n_max {})", wire.n_min, wire.n_max);
            return Err(field("n_min", got, format!("3 to n_max, and n_max at most {MAX_COHORT}")));
        }
        if wire.chunk_elements == 0 || !wire.chunk_elements.is_multiple_of(8) || wire.chunk_elements > 1 << 20 {
            return Err(field("chunk_elements", wire.chunk_elements, "multiples of 8 up to 1048576"));
        }
        if wire.model_hash.len() != 32 {
            return Err(field("model_hash", format!("{} bytes", wire.model_hash.len()), "32 bytes"));
        }
        let mode = match wire.mode() {
            proto::SecurityMode::Malicious => SecurityMode::Malicious,
            proto::SecurityMode::SemiHonest => SecurityMode::SemiHonest,
            proto::SecurityMode::Unspecified => {
                return Err(field("mode", wire.mode, "malicious (1) or semi-honest (2)"));
            }
        };
        let roster_len = if mode == SecurityMode::Malicious { 32 } else { 0 };
        if wire.roster_root.len() != roster_len {
            return Err(field(
                "roster_root",
                format!("{} bytes", wire.roster_root.len()),
                format!("{roster_len} bytes"),
            ));
        }
        let round_id = RoundId(hash(label::ROUND_ID, &[payload]));
        let mut quantiser = quantiser_from_wire(wire.quantiser.as_ref())?;
        quantiser.rotation = quantiser.rotation.map(|_| Rotation::of_round(round_id));
        quantiser.validate()?;
        quantiser.runs(usize::try_from(wire.dimension).unwrap_or(usize::MAX))?;
        let needed = quantiser.modulus_bits(wire.n_max)?;
        if needed > 64 {
            let noise = quantiser
                .privacy
                .map_or(String::new(), |it| format!(" and noise of variance {:.3e}", it.noise_variance));
            let got = format!("{} bits for {} clients{noise}", quantiser.bits, wire.n_max);
            let allowed =
                "what sums of 64 bits can hold: give fewer bits, ask for less noise, or let fewer clients in (n_max)";
            return Err(field("quantiser.bits", got, allowed));
        }
        if wire.modulus_bits < needed || wire.modulus_bits > 64 {
            return Err(field(
                "modulus_bits",
                wire.modulus_bits,
                format!(
                    "{needed} to 64, so that the sum of {} clients at {} bits can't overflow",
                    wire.n_max, quantiser.bits
                ),
            ));
        }
        let modulus =
            Modulus::new(wire.modulus_bits).map_err(|_| field("modulus_bits", wire.modulus_bits, "1 to 64"))?;
        let min_colluders = wire.min_colluders;
        let assumptions = Assumptions { gamma: wire.gamma, delta: wire.delta, min_colluders, mode };
        Ok(Self { round_id, modulus, quantiser, assumptions, wire })
    }

    /// Whether any sum has enough honest inputs, and the smallest and the largest cohort have sizes.
    fn feasible(&self) -> Result<(), ParamsError> {
        if self.least_honest() < LEAST_HONEST {
            let colluders = adversaries(self.wire.n_max, &self.assumptions);
            let allowed = format!(
                "{} and more: {colluders} of n_max = {} clients are assumed to collude, and a sum must have {LEAST_HONEST} \
                 honest inputs; raise n_min, or lower n_max or gamma",
                colluders + LEAST_HONEST,
                self.wire.n_max
            );
            return Err(field("n_min", self.wire.n_min, allowed));
        }
        self.topology(self.wire.n_min)?;
        self.topology(self.wire.n_max)?;
        Ok(())
    }

    /// Degree, threshold, window bound and committee for a cohort of `n` (section 9).
    ///
    /// # Errors
    /// [`ParamsError::Infeasible`] says how many drop-outs would be tolerated; what would help, [`ParamsError::advised`] adds.
    pub fn topology(&self, n: u32) -> Result<Topology, ParamsError> {
        find(n, &self.assumptions).map_err(|source| ParamsError::Infeasible { n, source })
    }

    /// Honest inputs that a sum of this round has at the least: `n_min` less the colluders assumed among `n_max`.
    pub fn least_honest(&self) -> u32 {
        honest(self.wire.n_min, self.wire.n_max, &self.assumptions)
    }

    /// Whether signatures, roster and certificate are in force.
    pub fn malicious(&self) -> bool {
        self.assumptions.mode == SecurityMode::Malicious
    }

    /// What a round with privacy promises a device before it takes part: the smallest sum that the round may have, and the
    /// most colluders. `None` without privacy.
    pub fn guarantee(&self) -> Option<Guarantee> {
        self.guarantee_of(self.wire.n_min, self.wire.n_max)
    }

    /// What the noise of a sum over `survivors` of a cohort of `cohort` clients guarantees any one of them: the noise of
    /// `n_adv` colluders (section 9) does not count. `None` without privacy.
    pub fn guarantee_of(&self, survivors: u32, cohort: u32) -> Option<Guarantee> {
        let variance = self.quantiser.privacy?.noise_variance;
        let contributions = honest(survivors, cohort, &self.assumptions);
        let sensitivity = Sensitivity::of(&self.quantiser, self.wire.dimension)?;
        Some(Guarantee { sensitivity, contributions, variance: f64::from(contributions) * variance })
    }

    /// Elements of a masked vector: update, metrics and weight.
    pub fn vector_len(&self) -> usize {
        self.wire.dimension as usize + self.quantiser.metric_bounds.len() + 1
    }

    /// Length of a packed masked vector in bytes.
    pub fn packed_len(&self) -> u64 {
        (self.vector_len() as u64 * u64::from(self.wire.modulus_bits)).div_ceil(8)
    }

    /// Length in bytes of every upload chunk but the last.
    pub fn chunk_len(&self) -> usize {
        self.wire.chunk_elements as usize / 8 * self.wire.modulus_bits as usize
    }

    /// Number of chunks of an upload.
    pub fn chunks(&self) -> u64 {
        self.packed_len().div_ceil(self.chunk_len() as u64)
    }
}

/// Contributions to a sum over `survivors` of a cohort of `cohort` clients whose noise no colluder knows.
pub fn honest(survivors: u32, cohort: u32, assumptions: &Assumptions) -> u32 {
    survivors.saturating_sub(adversaries(cohort, assumptions))
}

/// Reads the encoder's settings from the wire; their ranges are for [`Quantiser::validate`]. A rotation is [`Rotation::default`]:
/// that of a round is known to [`RoundParams`].
///
/// # Errors
/// [`ParamsError::Field`] when there are none, or the rounding is unknown.
pub fn quantiser_from_wire(wire: Option<&proto::Quantiser>) -> Result<Quantiser, ParamsError> {
    let wire = wire.ok_or_else(|| field("quantiser", "absent", "a quantiser"))?;
    let rounding = match wire.rounding() {
        proto::Rounding::Stochastic => Rounding::Stochastic,
        proto::Rounding::Deterministic => Rounding::Deterministic,
        proto::Rounding::Unspecified => {
            return Err(field("quantiser.rounding", wire.rounding, "stochastic (1) or deterministic (2)"));
        }
    };
    Ok(Quantiser {
        bits: wire.bits,
        clip: wire.clip,
        clips: wire.clips.iter().map(|run| ClipRun { elements: run.elements, clip: run.clip }).collect(),
        l2_clip: wire.l2_clip,
        max_weight: wire.max_weight,
        rounding,
        metric_bounds: wire.metrics.iter().map(|m| (m.lower, m.upper)).collect(),
        privacy: wire.privacy.as_ref().map(|privacy| Privacy { noise_variance: privacy.noise_variance }),
        rotation: wire.rotate.then(Rotation::default),
    })
}

/// Writes the encoder's settings for the wire.
pub fn quantiser_to_wire(quantiser: &Quantiser) -> proto::Quantiser {
    let rounding = match quantiser.rounding {
        Rounding::Stochastic => proto::Rounding::Stochastic,
        Rounding::Deterministic => proto::Rounding::Deterministic,
    };
    proto::Quantiser {
        bits: quantiser.bits,
        clip: quantiser.clip,
        clips: quantiser.clips.iter().map(|run| proto::ClipRun { elements: run.elements, clip: run.clip }).collect(),
        l2_clip: quantiser.l2_clip,
        max_weight: quantiser.max_weight,
        rounding: rounding as i32,
        metrics: quantiser.metric_bounds.iter().map(|&(lower, upper)| proto::MetricBound { lower, upper }).collect(),
        privacy: quantiser.privacy.map(|Privacy { noise_variance }| proto::Privacy { noise_variance }),
        rotate: quantiser.rotation.is_some(),
    }
}
