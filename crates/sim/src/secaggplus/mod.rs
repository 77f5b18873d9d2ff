//! What a round would cost with SecAgg+ (Bell et al., CCS 2020, ePrint 2020/704, the semi-honest protocol): a model.
//!
//! No SecAgg+ is run. The operations that its protocol asks of a client and of the server are counted, and multiplied with
//! what each operation costs on this machine, measured in the same run; its messages are counted in bytes. Neither packing nor
//! quantising nor anything that an implementation adds is in it, so an implementation costs more.
//! The comparison with one that runs, Flower's, is `crates/python/examples/flower_compare.py`.

mod costs;
mod counts;

use serde::Serialize;
use unisono_protocol::degree::{Assumptions, SecurityMode, find};
use unisono_protocol::params::ParamsError;
use unisono_protocol::server::Phase;

use crate::error::SimError;
use crate::report::{Report, RoundReport, Settings};

pub use costs::Costs;
pub use counts::{Bytes, Operations, Shape};

/// What the model's figures are to be called, wherever they stand beside measured ones.
pub const LABEL: &str = "SecAgg+ (model: counted operations \u{d7} costs measured here)";

/// The model beside a report: the same clients, drop-outs and elements under SecAgg+.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// [`LABEL`].
    pub what: &'static str,
    /// Neighbours of each client, k: for the report's n, gamma and delta with the semi-honest conditions, 40 bits.
    pub degree: u32,
    /// Shares that rebuild a secret, t.
    pub threshold: u32,
    /// Bits of an element of a masked vector, `ceil(log2(n R))` for updates of R steps.
    pub element_bits: u32,
    /// Measured costs of single operations; `None` when measured times are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
    /// One entry for each round of the report that gave a sum.
    pub rounds: Vec<RoundModel>,
    /// What all rounds have in common.
    #[serde(skip)]
    shape: Shape,
}

/// One round of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundModel {
    /// The report's round.
    pub round: u64,
    /// Clients that shared their keys.
    pub clients: u32,
    /// Clients whose masked vector arrived.
    pub survivors: u32,
    /// By phase. SecAgg+ has no `confirm`.
    pub phases: Vec<PhaseModel>,
}

/// One phase of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseModel {
    /// Name of our phase that does the same.
    pub phase: &'static str,
    /// Operations of one client.
    pub client_operations: Operations,
    /// CPU seconds of one client; `None` when measured times are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_seconds: Option<f64>,
    /// Operations of the server.
    pub server_operations: Operations,
    /// CPU seconds of the server; `None` when measured times are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_seconds: Option<f64>,
    /// Bytes that one client sends and receives.
    pub bytes: Bytes,
}

impl Model {
    /// Measures the costs (some hundred milliseconds); no round yet.
    ///
    /// # Errors
    /// [`SimError::Params`] when the semi-honest conditions leave no graph for these settings.
    pub fn of(settings: &Settings) -> Result<Self, SimError> {
        let Settings { clients, dimension, gamma, delta, quantiser_bits, .. } = *settings;
        let assumptions = Assumptions { gamma, delta, min_colluders: 1, mode: SecurityMode::SemiHonest };
        let infeasible = |source| ParamsError::Infeasible { n: clients, source }.advised(&assumptions);
        let topology = find(clients, &assumptions).map_err(infeasible)?;
        let shape = Shape {
            clients,
            survivors: clients,
            degree: topology.degree,
            threshold: topology.threshold,
            dimension,
            element_bits: quantiser_bits + clients.next_power_of_two().trailing_zeros(),
        };
        let costs = Some(Costs::measure(&shape)?);
        let Shape { degree, threshold, element_bits, .. } = shape;
        Ok(Self { what: LABEL, degree, threshold, element_bits, costs, rounds: Vec::new(), shape })
    }

    /// Counts a round; one without a sum is left out.
    pub fn add(&mut self, round: &RoundReport) {
        let masking = round.phases.iter().find(|phase| phase.phase == Phase::Mask.name());
        if let (Some(masking), None) = (masking, &round.abort) {
            let shape = Shape { clients: masking.expected as u32, survivors: round.survivors as u32, ..self.shape };
            let phases = phases(&shape, self.costs.as_ref());
            let Shape { clients, survivors, .. } = shape;
            self.rounds.push(RoundModel { round: round.round, clients, survivors, phases });
        }
    }

    /// The model of all rounds of a report.
    ///
    /// # Errors
    /// As [`Model::of`].
    pub fn beside(report: &Report) -> Result<Self, SimError> {
        let mut model = Self::of(&report.settings)?;
        report.rounds.iter().for_each(|round| model.add(round));
        Ok(model)
    }

    /// The model without what was measured: operations and bytes.
    #[must_use]
    pub fn without_timings(mut self) -> Self {
        self.costs = None;
        for phase in self.rounds.iter_mut().flat_map(|round| &mut round.phases) {
            (phase.client_seconds, phase.server_seconds) = (None, None);
        }
        self
    }
}

fn phases(shape: &Shape, costs: Option<&Costs>) -> Vec<PhaseModel> {
    let phase = |phase: Phase| {
        let (client_operations, server_operations) = (shape.client(phase), shape.server(phase));
        let seconds = |operations| costs.map(|costs| costs.of(operations, shape.dimension));
        PhaseModel {
            phase: phase.name(),
            client_operations,
            client_seconds: seconds(&client_operations),
            server_operations,
            server_seconds: seconds(&server_operations),
            bytes: shape.bytes(phase),
        }
    };
    [Phase::Advertise, Phase::Share, Phase::Mask, Phase::Unmask].map(phase).into()
}
