//! Bytes that one client sends and receives in each phase, as Markdown: computed from the parameters, and measured on the
//! real messages of a simulated round without drop-outs (malicious mode, gamma = delta = 0.05, 16 bits an element).
//!
//! `cargo run --release --example traffic_table [clients ...]`; 20, 100 and 1000 clients unless named.

use unisono::protocol::degree::{Assumptions, SecurityMode};
use unisono::protocol::server::Phase;
use unisono::protocol::traffic::{Scenario, per_client};
use unisono::sim::Simulation;

const DIMENSION: u64 = 10_000;

fn main() -> anyhow::Result<()> {
    let named: Vec<u32> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let clients = if named.is_empty() { vec![20, 100, 1000] } else { named };
    println!("| n (k/t) | phase | sent, computed | measured | received, computed | measured |");
    println!("|---|---|---:|---:|---:|---:|");
    for n in clients {
        let simulation = Simulation::builder().clients(n).dimension(DIMENSION).delta(0.05).build()?;
        let settings = simulation.settings();
        let (gamma, delta) = (settings.gamma, settings.delta);
        let assumptions = Assumptions { gamma, delta, min_colluders: 1, mode: SecurityMode::Malicious };
        let modulus_bits = settings.modulus_bits;
        // The weight is one more element.
        let computed = per_client(&Scenario { clients: n, elements: DIMENSION + 1, modulus_bits, assumptions })?;
        let (k, t) = (settings.degree, settings.threshold);
        let report = simulation.run(&mut ())?;
        let round = report.rounds.first().ok_or_else(|| anyhow::anyhow!("no round was played"))?;
        for phase in Phase::ALL {
            let (bytes, measured) = (computed.of(phase), &round.phases[phase as usize]);
            println!(
                "| {n} ({k}/{t}) | {phase} | {} | {:.0} | {} | {:.0} |",
                bytes.sent, measured.sent.mean, bytes.received, measured.received.mean
            );
        }
    }
    Ok(())
}
