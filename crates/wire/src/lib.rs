//! What goes over the network: the gRPC service of `proto/unisono/v1/service.proto`, its limits, and [`model`]s as they travel.

pub mod model;

use unisono_protocol::server::Phase;

/// The service as generated. Every field is documented in `service.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/unisono.v1.rs"));
}

/// Largest message in either direction, in bytes. The longest step, 1024 neighbours' shares, has 2.5 MB.
pub const MAX_MESSAGE_LEN: usize = 4 << 20;
/// Bytes in one piece of a streamed file.
pub const FILE_CHUNK_LEN: usize = 256 << 10;
/// Longest that a long poll waits, in milliseconds.
pub const MAX_WAIT_MS: u64 = 20_000;
/// Metadata key under which an error carries its short stable name.
pub const REASON_KEY: &str = "unisono-reason";
/// Metadata key under which an error says when to come back, in milliseconds from now.
pub const RETRY_AFTER_KEY: &str = "unisono-retry-after-ms";

/// What a device can say about why it missed its last round (`GetRoundRequest.missed`). A coordinator counts whatever else comes as
/// `other`.
pub const MISSED: [&str; 33] = [
    "unreachable",
    "refused",
    "ended",
    "answer",
    "expired",
    "late",
    "old_round",
    "offer",
    "view",
    "cohort",
    "certificate",
    "record",
    "update",
    "model",
    "trainer",
    "device",
    "policy.allow_semi_honest",
    "policy.tasks",
    "policy.n_min",
    "policy.min_gamma",
    "policy.min_colluders",
    "policy.min_honest",
    "policy.max_delta",
    "policy.max_dimension",
    "policy.suites",
    "policy.min_roster_epoch",
    "policy.min_model_version",
    "policy.privacy.max_epsilon",
    "policy.privacy.max_total_epsilon",
    "policy.max_rounds",
    "policy.min_interval_s",
    "policy.round_jump",
    "policy.clock",
];

/// The name under which a coordinator counts what a device said about a missed round.
pub fn missed(said: &str) -> &'static str {
    MISSED.into_iter().find(|known| *known == said).unwrap_or("other")
}

impl From<Phase> for proto::RoundPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Advertise => Self::Advertise,
            Phase::Share => Self::Share,
            Phase::Mask => Self::Mask,
            Phase::Confirm => Self::Confirm,
            Phase::Unmask => Self::Unmask,
        }
    }
}

impl proto::RoundPhase {
    /// The phase, unless unspecified.
    pub fn to_phase(self) -> Option<Phase> {
        Phase::ALL.into_iter().find(|&phase| Self::from(phase) == self)
    }
}
