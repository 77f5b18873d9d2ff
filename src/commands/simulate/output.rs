//! Reports as tables and CSV.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use unisono_sim::secaggplus::{self, Model};
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
    let checks = if s.shared_checks {
        "--share-checks: each signature verified once for all clients; client CPU is less than a device's by the rest\n"
    } else {
        ""
    };
    format!(
        "n = {}, d = {}, {} mode, gamma = {}, delta = {}: k = {}, t = {}{window}, b = {} bits, n_min = {}, seed {}\n{privacy}{checks}",
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
}

/// Mean over the rounds that gave a sum; not a number when none did.
fn mean(report: &Report, of: &dyn Fn(&RoundReport) -> f64) -> f64 {
    let rounds: Vec<f64> = report.rounds.iter().filter(|round| round.abort.is_none()).map(of).collect();
    rounds.iter().sum::<f64>() / rounds.len() as f64
}

/// `None` when no round gave a sum.
pub(super) fn cost(report: &Report) -> Option<Cost> {
    let mean = |of: &dyn Fn(&RoundReport) -> f64| mean(report, of);
    let timed = |round: &RoundReport, of: &dyn Fn(PhaseTiming) -> f64| {
        (0..round.phases.len()).map(|i| of(timing(round, i))).sum::<f64>()
    };
    report.rounds.iter().any(|round| round.abort.is_none()).then(|| Cost {
        client: mean(&|round| timed(round, &|phase| phase.client_seconds.mean)),
        server: mean(&|round| timed(round, &|phase| phase.server_seconds)),
        sent: mean(&|round| round.phases.iter().map(|phase| phase.sent.mean).sum()),
        received: mean(&|round| round.phases.iter().map(|phase| phase.received.mean).sum()),
    })
}

/// The same from the model beside a report.
pub(super) fn modelled(model: &Model) -> Option<Cost> {
    let rounds = model.rounds.len() as f64;
    let phases = || model.rounds.iter().flat_map(|round| &round.phases);
    (rounds > 0.0).then(|| Cost {
        client: phases().map(|phase| phase.client_seconds).sum::<f64>() / rounds,
        server: phases().map(|phase| phase.server_seconds).sum::<f64>() / rounds,
        sent: phases().map(|phase| phase.bytes.sent as f64).sum::<f64>() / rounds,
        received: phases().map(|phase| phase.bytes.received as f64).sum::<f64>() / rounds,
    })
}

/// One report, or with models an array of reports, each with its model.
pub(super) fn json(reports: &[Report], models: &[Model]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Point<'a> {
        #[serde(flatten)]
        report: &'a Report,
        secaggplus_model: &'a Model,
    }
    match (reports, models) {
        ([report], []) => serde_json::to_string_pretty(report),
        _ => {
            let point = |(report, secaggplus_model)| Point { report, secaggplus_model };
            serde_json::to_string_pretty(&reports.iter().zip(models).map(point).collect::<Vec<_>>())
        }
    }
}

/// One line for each point of a sweep, from the model.
pub(super) fn models(reports: &[Report], models: &[Model]) -> String {
    let mut text = format!(
        "\n{}\n{:>7} {:>9} {:>5} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11}\n",
        secaggplus::LABEL,
        "n",
        "d",
        "k",
        "t",
        "b",
        "client CPU",
        "server",
        "sent",
        "received"
    );
    // Our modes have one model in common.
    let shape = |report: &Report, model: &Model| {
        let rounds: Vec<(u32, u32)> = model.rounds.iter().map(|round| (round.clients, round.survivors)).collect();
        (report.settings.dimension, model.degree, model.threshold, model.element_bits, rounds)
    };
    let mut shown = Vec::new();
    for (report, model) in reports.iter().zip(models) {
        let Some(cost) = modelled(model) else { continue };
        if shown.contains(&shape(report, model)) {
            continue;
        }
        shown.push(shape(report, model));
        let _ = writeln!(
            text,
            "{:>7} {:>9} {:>5} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11}",
            report.settings.clients,
            report.settings.dimension,
            model.degree,
            model.threshold,
            model.element_bits,
            seconds(cost.client),
            seconds(cost.server),
            bytes(cost.sent),
            bytes(cost.received)
        );
    }
    text
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
                seconds(mean(report, &|round| round.virtual_seconds)),
                seconds(mean(report, &wall))
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
    shared_checks: bool,
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
    secaggplus_model_degree: Option<u32>,
    secaggplus_model_threshold: Option<u32>,
    secaggplus_model_client_seconds: Option<f64>,
    secaggplus_model_server_seconds: Option<f64>,
    secaggplus_model_sent: Option<u64>,
    secaggplus_model_received: Option<u64>,
}

/// One line for each round and phase. The model's columns are filled in a sweep, where SecAgg+ has the phase and the round gave a sum.
pub(super) fn csv(path: &Path, reports: &[Report], models: &[Model]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    for (number, report) in reports.iter().enumerate() {
        let s = &report.settings;
        let model = models.get(number);
        for round in &report.rounds {
            let modelled = model.and_then(|model| model.rounds.iter().find(|other| other.round == round.round));
            for (i, phase) in round.phases.iter().enumerate() {
                let timing = timing(round, i);
                let modelled = modelled.and_then(|m| m.phases.iter().find(|other| other.phase == phase.phase));
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
                    shared_checks: s.shared_checks,
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
                    secaggplus_model_degree: model.map(|model| model.degree),
                    secaggplus_model_threshold: model.map(|model| model.threshold),
                    secaggplus_model_client_seconds: modelled.map(|phase| phase.client_seconds),
                    secaggplus_model_server_seconds: modelled.map(|phase| phase.server_seconds),
                    secaggplus_model_sent: modelled.map(|phase| phase.bytes.sent),
                    secaggplus_model_received: modelled.map(|phase| phase.bytes.received),
                })?;
            }
        }
    }
    writer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use unisono_sim::{Dropout, Simulation};

    use super::*;

    #[test]
    fn a_sweeps_json_and_csv_have_the_model_beside_what_was_measured() {
        let dropout = Dropout::constant(0.1).unwrap();
        let builder = Simulation::builder().clients(20).dimension(100).dropout(dropout);
        let report = builder.build().unwrap().run(&mut ()).unwrap();
        let model = Model::beside(&report).unwrap();
        let (reports, models) = ([report.clone(), report], [model.clone(), model.clone()]);

        let json: serde_json::Value = serde_json::from_str(&json(&reports, &models).unwrap()).unwrap();
        let point = &json[1]["secaggplus_model"];
        assert_eq!(point["what"], "SecAgg+ (model: counted operations \u{d7} costs measured here)");
        assert_eq!(json[1]["settings"]["clients"], 20);
        let unmask = &point["rounds"][0]["phases"][3];
        assert_eq!((&unmask["phase"], &unmask["server_operations"]["rebuilds"]), (&"unmask".into(), &20.0.into()));

        let file = tempfile::NamedTempFile::new().unwrap();
        csv(file.path(), &reports, &models).unwrap();
        let mut reader = csv::Reader::from_path(file.path()).unwrap();
        let headers = reader.headers().unwrap().clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let column = |name: &str| {
            let at = headers.iter().position(|header| header == name).unwrap();
            rows.iter().map(|row| row[at].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(column("phase")[..5], ["advertise", "share", "mask", "confirm", "unmask"]);
        let sent: Vec<String> = model.rounds[0].phases.iter().map(|phase| phase.bytes.sent.to_string()).collect();
        // SecAgg+ has no confirm.
        assert_eq!(column("secaggplus_model_sent")[..5], [&sent[0], &sent[1], &sent[2], "", &sent[3]]);
        assert!(column("secaggplus_model_client_seconds")[2].parse::<f64>().unwrap() > 0.0);
        assert_eq!(column("secaggplus_model_degree")[7], model.degree.to_string());
        let text = super::models(&reports, &models);
        assert!(text.contains(secaggplus::LABEL));
        // Label and headings, and one line for both points: they are the same to SecAgg+.
        assert_eq!(text.trim().lines().count(), 3, "{text}");
    }

    #[test]
    fn a_single_report_has_no_model() {
        let report = Simulation::builder().clients(5).dimension(10).build().unwrap().run(&mut ()).unwrap();
        assert!(!json(std::slice::from_ref(&report), &[]).unwrap().contains("secaggplus"));
        let file = tempfile::NamedTempFile::new().unwrap();
        csv(file.path(), &[report], &[]).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.lines().nth(1).unwrap().ends_with(",,,,,,"), "{text}");
    }
}
