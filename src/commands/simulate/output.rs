//! Reports as tables and CSV.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use unisono_sim::{PhaseTiming, Report, RoundReport};

/// Bytes with a unit.
pub(super) fn bytes(count: f64) -> String {
    match count {
        ..1e3 => format!("{count:.0} B"),
        ..1e6 => format!("{:.1} kB", count / 1e3),
        ..1e9 => format!("{:.2} MB", count / 1e6),
        _ => format!("{:.2} GB", count / 1e9),
    }
}

/// Seconds with a unit.
fn seconds(value: f64) -> String {
    match value {
        ..1e-3 => format!("{:.0} us", value * 1e6),
        ..1.0 => format!("{:.1} ms", value * 1e3),
        ..100.0 => format!("{value:.2} s"),
        _ => format!("{value:.0} s"),
    }
}

/// Measured times of phase `i`; zeros when there are none.
pub(super) fn timing(round: &RoundReport, i: usize) -> PhaseTiming {
    round.timing.as_ref().and_then(|timing| timing.phases.get(i).cloned()).unwrap_or_default()
}

fn wall(round: &RoundReport) -> f64 {
    round.timing.as_ref().map_or(0.0, |timing| timing.wall_seconds)
}

fn heading(report: &Report) -> String {
    let s = &report.settings;
    let window = s.window_bound.map_or_else(String::new, |bound| format!(", a_w = {bound}"));
    let privacy = s.privacy.map_or_else(String::new, |p| {
        format!(
            "noise of {} L2 sensitivities in the smallest sum ({} contributions count), L2 clip {}: epsilon <= {:.4} a round at delta = {:e}\n",
            p.noise_multiplier, p.contributions, p.l2_clip, p.epsilon, p.delta
        )
    });
    format!(
        "n = {}, d = {}, {} mode, gamma = {}, delta = {}: k = {}, t = {}{window}, b = {} bits, n_min = {}, seed {}\n{privacy}",
        s.clients, s.dimension, s.mode, s.gamma, s.delta, s.degree, s.threshold, s.modulus_bits, s.n_min, s.seed
    )
}

/// What one simulation came to, a table a round.
pub(super) fn tables(report: &Report) -> String {
    let mut text = heading(report);
    for round in &report.rounds {
        let result = match (&round.abort, round.exact_sum) {
            (Some(abort), _) => format!("aborted: {abort}"),
            (None, Some(true)) => format!("exact sum of {} of {} clients", round.survivors, round.cohort),
            (None, _) => "WRONG SUM".to_owned(),
        };
        let _ = writeln!(
            text,
            "round {}: {result}; {} on the virtual clock, {} in this process",
            round.round,
            seconds(round.virtual_seconds),
            seconds(wall(round))
        );
        if let Some(spent) = &round.privacy {
            let _ = writeln!(
                text,
                "  epsilon {:.4} this round, {:.4} so far; noise of deviation {:.2e} on an element of the mean",
                spent.epsilon, spent.total_epsilon, spent.noise_deviation
            );
        }
        if let Some(first) = &round.first_refusal {
            let _ = writeln!(text, "  {} clients refused to go on, the first: {first}", round.refusals);
        }
        round.reports.iter().for_each(|(what, count)| {
            let _ = writeln!(text, "  reported: {what}, {count} times");
        });
        let _ = writeln!(
            text,
            "  {:<10} {:>9} {:>10} {:>11} {:>11} {:>11} {:>11} {:>11}",
            "phase", "answered", "virtual", "client CPU", "max", "server", "sent", "received"
        );
        for (i, phase) in round.phases.iter().enumerate() {
            let timing = timing(round, i);
            let late = if phase.late > 0 { format!(" ({} late)", phase.late) } else { String::new() };
            let _ = writeln!(
                text,
                "  {:<10} {:>9} {:>10} {:>11} {:>11} {:>11} {:>11} {:>11}{late}",
                phase.phase,
                format!("{}/{}", phase.answered, phase.expected),
                seconds(phase.virtual_seconds),
                seconds(timing.client_seconds.mean),
                seconds(timing.client_seconds.max),
                seconds(timing.server_seconds),
                bytes(phase.sent.mean),
                bytes(phase.received.mean),
            );
        }
    }
    if report.interrupted {
        text.push_str("interrupted: the rounds above were finished\n");
    }
    text.push('\n');
    text
}

/// What a round of a simulation costs, over all phases: mean over its rounds that gave a sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// CPU seconds of one client.
    pub client: f64,
    /// Seconds of the coordinator.
    pub server: f64,
    /// Bytes that one client sends.
    pub sent: f64,
    /// Bytes that one client receives.
    pub received: f64,
    /// Wall-clock seconds in this process.
    pub wall: f64,
    /// Virtual seconds.
    pub virtual_seconds: f64,
}

/// `None` when no round gave a sum.
pub(super) fn cost(report: &Report) -> Option<Cost> {
    let rounds: Vec<&RoundReport> = report.rounds.iter().filter(|round| round.abort.is_none()).collect();
    let mean =
        |of: &dyn Fn(&RoundReport) -> f64| rounds.iter().map(|round| of(round)).sum::<f64>() / rounds.len() as f64;
    let timed = |round: &RoundReport, of: &dyn Fn(PhaseTiming) -> f64| {
        (0..round.phases.len()).map(|i| of(timing(round, i))).sum::<f64>()
    };
    (!rounds.is_empty()).then(|| Cost {
        client: mean(&|round| timed(round, &|phase| phase.client_seconds.mean)),
        server: mean(&|round| timed(round, &|phase| phase.server_seconds)),
        sent: mean(&|round| round.phases.iter().map(|phase| phase.sent.mean).sum()),
        received: mean(&|round| round.phases.iter().map(|phase| phase.received.mean).sum()),
        wall: mean(&wall),
        virtual_seconds: mean(&|round| round.virtual_seconds),
    })
}

/// One line for each point of a sweep.
pub(super) fn summary(reports: &[Report]) -> String {
    let mut text = format!(
        "{:>7} {:>9} {:>11} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11} {:>10} {:>10}\n",
        "n", "d", "mode", "k", "b", "client CPU", "server", "sent", "received", "virtual", "in process"
    );
    for report in reports {
        let s = &report.settings;
        let _ =
            write!(text, "{:>7} {:>9} {:>11} {:>5} {:>5}", s.clients, s.dimension, s.mode, s.degree, s.modulus_bits);
        let _ = match cost(report) {
            Some(cost) => writeln!(
                text,
                " {:>10} {:>10} {:>11} {:>11} {:>10} {:>10}",
                seconds(cost.client),
                seconds(cost.server),
                bytes(cost.sent),
                bytes(cost.received),
                seconds(cost.virtual_seconds),
                seconds(cost.wall)
            ),
            None => writeln!(text, " no round gave a sum"),
        };
    }
    text
}

#[derive(Serialize)]
struct Row<'a> {
    clients: u32,
    dimension: u64,
    mode: &'a str,
    gamma: f64,
    delta: f64,
    degree: u32,
    threshold: u32,
    modulus_bits: u32,
    seed: u64,
    round: u64,
    cohort: usize,
    survivors: usize,
    exact_sum: Option<bool>,
    abort: Option<&'a str>,
    phase: &'a str,
    expected: usize,
    answered: usize,
    late: usize,
    virtual_seconds: f64,
    sent_mean: f64,
    sent_max: f64,
    received_mean: f64,
    received_max: f64,
    client_cpu_mean: f64,
    client_cpu_max: f64,
    server_seconds: f64,
    noise_multiplier: Option<f64>,
    epsilon: Option<f64>,
    total_epsilon: Option<f64>,
    noise_deviation: Option<f64>,
}

/// One line for each round and phase.
pub(super) fn csv(path: &Path, reports: &[Report]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    for report in reports {
        let s = &report.settings;
        for round in &report.rounds {
            for (i, phase) in round.phases.iter().enumerate() {
                let timing = timing(round, i);
                writer.serialize(Row {
                    clients: s.clients,
                    dimension: s.dimension,
                    mode: &s.mode,
                    gamma: s.gamma,
                    delta: s.delta,
                    degree: s.degree,
                    threshold: s.threshold,
                    modulus_bits: s.modulus_bits,
                    seed: s.seed,
                    round: round.round,
                    cohort: round.cohort,
                    survivors: round.survivors,
                    exact_sum: round.exact_sum,
                    abort: round.abort.as_deref(),
                    phase: phase.phase,
                    expected: phase.expected,
                    answered: phase.answered,
                    late: phase.late,
                    virtual_seconds: phase.virtual_seconds,
                    sent_mean: phase.sent.mean,
                    sent_max: phase.sent.max,
                    received_mean: phase.received.mean,
                    received_max: phase.received.max,
                    client_cpu_mean: timing.client_seconds.mean,
                    client_cpu_max: timing.client_seconds.max,
                    server_seconds: timing.server_seconds,
                    noise_multiplier: s.privacy.map(|privacy| privacy.noise_multiplier),
                    epsilon: round.privacy.map(|spent| spent.epsilon),
                    total_epsilon: round.privacy.map(|spent| spent.total_epsilon),
                    noise_deviation: round.privacy.map(|spent| spent.noise_deviation),
                })?;
            }
        }
    }
    writer.flush()?;
    Ok(())
}
