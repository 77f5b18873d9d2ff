//! What a round would cost with SecAgg+ (Bell et al., CCS 2020, ePrint 2020/704, the semi-honest protocol): a model.
//!
//! No SecAgg+ is run. The operations that its protocol asks of a client and of the server are counted, and multiplied with
//! what each operation costs on this machine, measured in the same run; its messages are counted in bytes. Neither packing nor
//! quantising nor anything that an implementation adds is in it, so an implementation costs more.
//! The comparison with one that runs, Flower's, is `crates/python/examples/flower_compare.py`.

mod costs;
mod counts;

use serde::Serialize;
use unisono_protocol::degree::{Rules, SecurityMode, find_with};
use unisono_protocol::params::ParamsError;
use unisono_protocol::server::Phase;

use crate::error::SimError;
use crate::report::{Report, RoundReport};

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
    /// Measured costs of single operations.
    pub costs: Costs,
    /// One entry for each round of the report that gave a sum.
    pub rounds: Vec<RoundModel>,
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
    /// CPU seconds of one client.
    pub client_seconds: f64,
    /// Operations of the server.
    pub server_operations: Operations,
    /// CPU seconds of the server.
    pub server_seconds: f64,
    /// Bytes that one client sends and receives.
    pub bytes: Bytes,
}

impl Model {
    /// Measures the costs (some hundred milliseconds) and counts the rounds of `report`.
    ///
    /// # Errors
    /// [`SimError::Params`] when the semi-honest conditions leave no graph for the report's settings.
    pub fn beside(report: &Report) -> Result<Self, SimError> {
        let s = &report.settings;
        let rules = Rules::of(SecurityMode::SemiHonest);
        let topology = find_with(s.clients, s.gamma, s.delta, &rules)
            .map_err(|source| ParamsError::Infeasible { n: s.clients, source })?;
        let shape = Shape {
            clients: s.clients,
            survivors: s.clients,
            degree: topology.degree,
            threshold: topology.threshold,
            dimension: s.dimension,
            element_bits: s.quantiser_bits + s.clients.next_power_of_two().trailing_zeros(),
        };
        let costs = Costs::measure(&shape)?;
        let counted = |round: &RoundReport| {
            let clients = round.phases.iter().find(|phase| phase.phase == Phase::Mask.name())?.expected as u32;
            let shape = Shape { clients, survivors: round.survivors as u32, ..shape };
            round.abort.is_none().then(|| RoundModel {
                round: round.round,
                clients,
                survivors: shape.survivors,
                phases: phases(&shape, &costs),
            })
        };
        let rounds = report.rounds.iter().filter_map(counted).collect();
        let Shape { degree, threshold, element_bits, .. } = shape;
        Ok(Self { what: LABEL, degree, threshold, element_bits, costs, rounds })
    }
}

fn phases(shape: &Shape, costs: &Costs) -> Vec<PhaseModel> {
    let phase = |phase: Phase| {
        let (client_operations, server_operations) = (shape.client(phase), shape.server(phase));
        PhaseModel {
            phase: phase.name(),
            client_operations,
            client_seconds: costs.of(&client_operations, shape.dimension),
            server_operations,
            server_seconds: costs.of(&server_operations, shape.dimension),
            bytes: shape.bytes(phase),
        }
    };
    [Phase::Advertise, Phase::Share, Phase::Mask, Phase::Unmask].map(phase).into()
}
