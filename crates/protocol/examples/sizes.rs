//! Prints the sizes of section 9 as a Markdown table: `cargo run -p unisono-protocol --example sizes -- [gamma] [delta]`.

use std::error::Error;
use std::time::Instant;

use unisono_protocol::degree::{Assumptions, Committee, SecurityMode, Topology, adversaries, drop_outs, find};

fn main() -> Result<(), Box<dyn Error>> {
    let fractions: Vec<f64> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let fraction = |at: usize| fractions.get(at).copied().unwrap_or(0.05);
    let (gamma, delta) = (fraction(0), fraction(1));
    let assumptions = Assumptions { gamma, delta, min_colluders: 1, mode: SecurityMode::Malicious };
    println!("gamma = {gamma}, delta = {delta}\n");
    println!("| n | n_adv | n_drop | k | t | a_w | s | tau | drop-outs tolerated |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let small = [3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 20, 24, 28, 32];
    let large = [40, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000];
    let mut slowest = std::time::Duration::ZERO;
    for n in small.into_iter().chain(large) {
        let (adversaries, drop_outs) = (adversaries(n, &assumptions), drop_outs(n, &assumptions));
        let start = Instant::now();
        let found = find(n, &assumptions);
        slowest = slowest.max(start.elapsed());
        let row = match found {
            Ok(found) => sizes(n, drop_outs, found),
            Err(error) => format!("{error} | | | | |"),
        };
        println!("| {n} | {adversaries} | {drop_outs} | {row} |");
    }
    eprintln!("slowest search: {slowest:?}");
    Ok(())
}

/// The complete graph tolerates a number whatever delta is; a sparse one what it was made for, except with probability 2^-20.
fn sizes(n: u32, drop_outs: u32, found: Topology) -> String {
    let Topology { degree, threshold, window_bound, committee } = found;
    let Committee { size, quorum } = committee.unwrap_or(Committee { size: 0, quorum: 0 });
    let tolerated = if degree == n - 1 { (degree - threshold).min(size - quorum) } else { drop_outs };
    let window = window_bound.map_or_else(|| "-".into(), |bound| bound.to_string());
    format!("{degree} | {threshold} | {window} | {size} | {quorum} | {tolerated}")
}
