//! Reports as tables and JSON.

use std::fmt::Write;

use serde::Serialize;
use unisono_sim::secaggplus::{self, Model};
use unisono_sim::{Learned, PhaseReport, PhaseTiming, Quantity, Report, RoundReport, Settings, summarise};

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
pub(super) fn seconds(value: f64) -> String {
    match value {
        ..1e-3 => format!("{:.0} us", value * 1e6),
        ..1.0 => format!("{:.1} ms", value * 1e3),
        ..100.0 => format!("{value:.2} s"),
        _ => format!("{value:.0} s"),
    }
}

/// Seconds that may not have been measured.
fn measured(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), seconds)
}

/// Measured times of phase `i`, if they are there.
pub(super) fn timing(round: &RoundReport, i: usize) -> Option<&PhaseTiming> {
    round.timing.as_ref()?.phases.get(i)
}

fn wall(round: &RoundReport) -> Option<f64> {
    round.timing.as_ref().map(|timing| timing.wall_seconds)
}

/// The settings, before the first round.
pub(super) fn heading(s: &Settings) -> String {
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
    let rotated = if s.rotate { ", rotated" } else { "" };
    format!(
        "n = {}, d = {}, {} mode, gamma = {}, delta = {}: k = {}, t = {}{window}, b = {} bits, n_min = {}, seed {}\n\
         updates {}, of {} bits{rotated}; drop-out {}, network {}, deadline {} s\n{privacy}{checks}",
        s.clients,
        s.dimension,
        s.mode,
        s.gamma,
        s.delta,
        s.degree,
        s.threshold,
        s.modulus_bits,
        s.n_min,
        s.seed,
        s.updates,
        s.quantiser_bits,
        s.dropout,
        s.network,
        s.deadline
    )
}

/// What one round came to.
pub(super) fn table(round: &RoundReport) -> String {
    let mut text = String::new();
    let result = match (&round.abort, round.exact_sum) {
        (Some(abort), _) => format!("aborted: {abort}"),
        (None, Some(true)) => format!("exact sum of {} of {} clients", round.survivors, round.cohort),
        (None, _) => "WRONG SUM".to_owned(),
    };
    let wall = wall(round).map_or_else(String::new, |wall| format!(", {} in this process", seconds(wall)));
    let _ = writeln!(
        text,
        "round {}: {result}; {} on the virtual clock{wall}",
        round.round,
        seconds(round.virtual_seconds)
    );
    if let Some(Learned { accuracy, loss }) = &round.learned {
        let _ = writeln!(text, "  accuracy {:.1} %, loss {loss:.3} on examples of no device", 100.0 * accuracy);
    }
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
            measured(timing.map(|timing| timing.client_seconds.mean)),
            measured(timing.map(|timing| timing.client_seconds.max)),
            measured(timing.map(|timing| timing.server_seconds)),
            bytes(phase.sent.mean),
            bytes(phase.received.mean),
        );
    }
    text
}

/// What a round of a simulation costs, over all phases: mean over its rounds that gave a sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// CPU seconds of one client; `None` when they were left out.
    pub client: Option<f64>,
    /// Seconds of the coordinator; `None` when they were left out.
    pub server: Option<f64>,
    /// Bytes that one client sends.
    pub sent: f64,
    /// Bytes that one client receives.
    pub received: f64,
}

/// Mean over the rounds that gave a sum; `None` when none did, or one of them has no value.
fn mean(report: &Report, of: &dyn Fn(&RoundReport) -> Option<f64>) -> Option<f64> {
    let rounds: Vec<f64> = report.rounds.iter().filter(|round| round.abort.is_none()).map(of).collect::<Option<_>>()?;
    (!rounds.is_empty()).then(|| rounds.iter().sum::<f64>() / rounds.len() as f64)
}

/// `None` when no round gave a sum.
pub(super) fn cost(report: &Report) -> Option<Cost> {
    let timed = |of: &dyn Fn(&PhaseTiming) -> f64| {
        mean(report, &|round| Some(round.timing.as_ref()?.phases.iter().map(of).sum()))
    };
    let sum = |of: &dyn Fn(&PhaseReport) -> f64| mean(report, &|round| Some(round.phases.iter().map(of).sum()));
    Some(Cost {
        client: timed(&|phase| phase.client_seconds.mean),
        server: timed(&|phase| phase.server_seconds),
        sent: sum(&|phase| phase.sent.mean)?,
        received: sum(&|phase| phase.received.mean)?,
    })
}

/// The same from the model beside a report.
pub(super) fn modelled(model: &Model) -> Option<Cost> {
    let rounds = model.rounds.len() as f64;
    let phases = || model.rounds.iter().flat_map(|round| &round.phases);
    (rounds > 0.0).then(|| Cost {
        client: phases().map(|phase| phase.client_seconds).sum::<Option<f64>>().map(|sum| sum / rounds),
        server: phases().map(|phase| phase.server_seconds).sum::<Option<f64>>().map(|sum| sum / rounds),
        sent: phases().map(|phase| phase.bytes.sent as f64).sum::<f64>() / rounds,
        received: phases().map(|phase| phase.bytes.received as f64).sum::<f64>() / rounds,
    })
}

/// Of each setting its report, or of several runs their settings, seeds, summary and reports; of a sweep, which has models, an
/// array of these.
pub(super) fn json(reports: &[Report], repeats: usize, models: Option<&[Model]>) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Run<'a> {
        #[serde(flatten)]
        report: &'a Report,
        #[serde(skip_serializing_if = "Option::is_none")]
        secaggplus_model: Option<&'a Model>,
    }
    #[derive(Serialize)]
    struct Repeated<'a> {
        /// Of the first run: others have other seeds.
        settings: &'a Settings,
        seeds: Vec<u64>,
        summary: Vec<Quantity>,
        runs: &'a [Run<'a>],
    }
    fn repeated<'a>((reports, runs): (&'a [Report], &'a [Run<'a>])) -> Repeated<'a> {
        let seeds = reports.iter().map(|report| report.settings.seed).collect();
        Repeated { settings: &reports[0].settings, seeds, summary: summarise(reports), runs }
    }
    let run = |(i, report)| Run { report, secaggplus_model: models.and_then(|models| models.get(i)) };
    let runs: Vec<Run<'_>> = reports.iter().enumerate().map(run).collect();
    match (repeats, models) {
        (1, None) => serde_json::to_string_pretty(&runs.first()),
        (1, Some(_)) => serde_json::to_string_pretty(&runs),
        _ => {
            let points: Vec<_> = reports.chunks(repeats).zip(runs.chunks(repeats)).map(repeated).collect();
            if models.is_some() {
                serde_json::to_string_pretty(&points)
            } else {
                serde_json::to_string_pretty(&points.first())
            }
        }
    }
}

/// Width of the column of drop-outs or networks: names of files may be long.
fn width(heading: &str, reports: &[Report], of: fn(&Settings) -> &str) -> usize {
    reports.iter().map(|report| of(&report.settings).chars().count()).fold(heading.len(), usize::max)
}

/// One line for each point of a sweep, from the model.
pub(super) fn models(reports: &[Report], models: &[Model]) -> String {
    let dropouts = width("drop-out", reports, |s| &s.dropout);
    let mut text = format!(
        "\n{}\n{:>7} {:>9} {:>dropouts$} {:>5} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11}\n",
        secaggplus::LABEL,
        "n",
        "d",
        "drop-out",
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
            "{:>7} {:>9} {:>dropouts$} {:>5} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11}",
            report.settings.clients,
            report.settings.dimension,
            report.settings.dropout,
            model.degree,
            model.threshold,
            model.element_bits,
            measured(cost.client),
            measured(cost.server),
            bytes(cost.sent),
            bytes(cost.received)
        );
    }
    text
}

/// One line for each point of a sweep.
pub(super) fn summary(reports: &[Report]) -> String {
    let dropouts = width("drop-out", reports, |s| &s.dropout);
    let networks = width("network", reports, |s| &s.network);
    let mut text = format!(
        "{:>7} {:>9} {:>11} {:>4} {:>dropouts$} {:>networks$} {:>8} {:>5} {:>5} {:>10} {:>10} {:>11} {:>11} {:>10} {:>10}\n",
        "n",
        "d",
        "mode",
        "bits",
        "drop-out",
        "network",
        "deadline",
        "k",
        "b",
        "client CPU",
        "server",
        "sent",
        "received",
        "virtual",
        "in process"
    );
    for report in reports {
        let s = &report.settings;
        let _ = write!(
            text,
            "{:>7} {:>9} {:>11} {:>4} {:>dropouts$} {:>networks$} {:>8} {:>5} {:>5}",
            s.clients,
            s.dimension,
            s.mode,
            s.quantiser_bits,
            s.dropout,
            s.network,
            format!("{} s", s.deadline),
            s.degree,
            s.modulus_bits
        );
        let _ = match cost(report) {
            Some(cost) => writeln!(
                text,
                " {:>10} {:>10} {:>11} {:>11} {:>10} {:>10}",
                measured(cost.client),
                measured(cost.server),
                bytes(cost.sent),
                bytes(cost.received),
                measured(mean(report, &|round| Some(round.virtual_seconds))),
                measured(mean(report, &wall))
            ),
            None => writeln!(text, " no round gave a sum"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use unisono_protocol::encoding::{Quantiser, Rounding};
    use unisono_protocol::rotation::Rotation;
    use unisono_sim::{Dropout, Simulation};

    use super::*;

    #[test]
    fn a_sweeps_json_and_tables_have_the_model_beside_what_was_measured() {
        let dropout = Dropout::constant(0.1).unwrap();
        let builder = Simulation::builder().clients(20).dimension(100).dropout(dropout);
        let report = builder.build().unwrap().run(&mut ()).unwrap();
        let model = Model::beside(&report).unwrap();
        let (reports, models) = ([report.clone(), report], [model.clone(), model]);

        let json: serde_json::Value = serde_json::from_str(&json(&reports, 1, Some(&models)).unwrap()).unwrap();
        let point = &json[1]["secaggplus_model"];
        assert_eq!(point["what"], "SecAgg+ (model: counted operations \u{d7} costs measured here)");
        assert_eq!(json[1]["settings"]["clients"], 20);
        let unmask = &point["rounds"][0]["phases"][3];
        assert_eq!((&unmask["phase"], &unmask["server_operations"]["rebuilds"]), (&"unmask".into(), &20.0.into()));

        let text = super::models(&reports, &models);
        assert!(text.contains(secaggplus::LABEL));
        // Label and headings, and one line for both points: they are the same to SecAgg+.
        assert_eq!(text.trim().lines().count(), 3, "{text}");
    }

    #[test]
    fn a_single_report_has_no_model() {
        let report = Simulation::builder().clients(5).dimension(10).build().unwrap().run(&mut ()).unwrap();
        assert!(!json(std::slice::from_ref(&report), 1, None).unwrap().contains("secaggplus"));
    }

    #[test]
    fn tables_tell_the_run_and_no_times_without_timings() {
        let quantiser = Quantiser {
            bits: 12,
            clip: 1.0,
            clips: Vec::new(),
            l2_clip: None,
            max_weight: 1.0,
            rounding: Rounding::Stochastic,
            metric_bounds: Vec::new(),
            privacy: None,
            rotation: Some(Rotation::default()),
        };
        let dropout = Dropout::parse("share=0.1").unwrap();
        let builder = Simulation::builder().clients(20).dimension(100).quantiser(quantiser).deadline(7.5);
        let report = builder.dropout(dropout).build().unwrap().run(&mut ()).unwrap().without_timings();
        let heading = heading(&report.settings);
        for words in ["rotated", "drop-out share=0.1", "network lan", "deadline 7.5 s", "12 bits"] {
            assert!(heading.contains(words), "{heading}");
        }
        let table = table(&report.rounds[0]);
        assert!(!table.contains("in this process") && table.contains(" - "), "{table}");
        let summary = summary(std::slice::from_ref(&report));
        assert!(summary.contains("share=0.1     lan    7.5 s"), "{summary}");
    }
}
