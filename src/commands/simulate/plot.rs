//! Reports as pictures.

use std::path::{Path, PathBuf};

use unisono::plot::{Curves, Picture, Scale};
use unisono_sim::Report;
use unisono_sim::secaggplus::{self, Model};

use super::output::{Cost, cost, modelled, timing};

/// Draws everything that the reports give, and in a sweep the models beside them, and says which files it wrote.
pub(super) fn draw(directory: &Path, reports: &[Report], models: &[Model]) -> anyhow::Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    if let Some(last) = reports.iter().rev().find(|report| !report.rounds.is_empty()) {
        pictures.extend(by_phase(last));
    }
    if !models.is_empty() {
        pictures.extend(against(reports, models));
    }
    unisono::plot::draw(directory, &pictures)
}

fn label(report: &Report) -> String {
    let s = &report.settings;
    let checks = if s.shared_checks { ", signatures checked once for all" } else { "" };
    format!("n = {}, d = {}, k = {}, {} mode{checks}", s.clients, s.dimension, s.degree, s.mode)
}

/// Time and bytes by phase of a report's last round.
fn by_phase(report: &Report) -> Vec<(String, Picture)> {
    let Some(round) = report.rounds.last() else { return Vec::new() };
    let phases: Vec<&'static str> = round.phases.iter().map(|phase| phase.phase).collect();
    let times = (0..phases.len()).map(|i| timing(round, i));
    let (client, server) = times.map(|time| (time.client_seconds.mean, time.server_seconds)).unzip();
    let time = Picture::Bars {
        title: format!("Measured time by phase: {}", label(report)),
        unit: "seconds",
        series: [("one client (CPU)", client), ("coordinator", server)],
        phases: phases.clone(),
    };
    let bytes = Picture::Bars {
        title: format!("Bytes of one client by phase: {}", label(report)),
        unit: "bytes",
        series: [
            ("sent", round.phases.iter().map(|phase| phase.sent.mean).collect()),
            ("received", round.phases.iter().map(|phase| phase.received.mean).collect()),
        ],
        phases,
    };
    vec![("phase-time".into(), time), ("phase-bytes".into(), bytes)]
}

/// Client time, server time and bytes against n, d and k, where at least two values of these occur: measured, and from the models.
fn against(reports: &[Report], models: &[Model]) -> Vec<(String, Picture)> {
    type Number = fn(&Report, degree: u32) -> f64;
    let axes: [(&str, &str, Number); 3] = [
        ("n", "clients, n", |report, _| report.settings.clients.into()),
        ("d", "elements of an update, d", |report, _| report.settings.dimension as f64),
        ("k", "neighbours of a client, k", |_, degree| degree.into()),
    ];
    type Amount = fn(&Cost) -> f64;
    let amounts: [(&str, &str, &str, Amount); 3] = [
        ("client-time", "CPU time of one client in a round", "seconds", |cost| cost.client),
        ("server-time", "Time of the coordinator in a round", "seconds", |cost| cost.server),
        ("client-bytes", "Bytes that one client sends and receives in a round", "bytes", |cost| {
            cost.sent + cost.received
        }),
    ];
    let mut pictures = Vec::new();
    for (axis, x, number) in axes {
        for (name, title, y, amount) in amounts {
            let (mut curves, mut model_curves) = (Curves::new(), Curves::new());
            for (report, model) in reports.iter().zip(models) {
                let s = &report.settings;
                // What is not on the axis tells curves apart. The degree follows from n, so k stands in for it.
                let rest = match axis {
                    "d" => format!("n = {}", s.clients),
                    _ => format!("d = {}", s.dimension),
                };
                let rest = format!("{rest}, delta = {}, {} bits", s.delta, s.quantiser_bits);
                if let Some(cost) = cost(report) {
                    let checks = if s.shared_checks { ", shared checks" } else { "" };
                    let key = format!("{rest}, {}{checks}", s.mode);
                    curves.entry(key).or_default().push((number(report, s.degree), amount(&cost)));
                }
                if let Some(cost) = modelled(model) {
                    let key = format!("{}, {rest}", secaggplus::LABEL);
                    let points = model_curves.entry(key).or_default();
                    let at = number(report, model.degree);
                    // Our modes have one model in common.
                    if points.iter().all(|(x, _)| *x != at) {
                        points.push((at, amount(&cost)));
                    }
                }
            }
            let (curves, modelled) = (lines(curves), lines(model_curves));
            if !curves.is_empty() {
                let (x, y) = ((x, Scale::Logarithmic), (y, Scale::Logarithmic));
                let picture = Picture::Curves { title: title.to_owned(), x, y, curves, modelled };
                pictures.push((format!("{name}-{axis}"), picture));
            }
        }
    }
    pictures
}

/// The curves that have at least two values on the level axis, from left to right.
fn lines(mut curves: Curves) -> Curves {
    curves.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    curves.retain(|_, points| points.len() > 1 && points[0].0 < points[points.len() - 1].0);
    curves
}
