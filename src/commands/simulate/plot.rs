//! Reports as pictures.

use std::path::{Path, PathBuf};

use unisono::plot::{Curves, Picture, Scale};
use unisono_sim::Report;

use super::output::{Cost, cost, timing};

/// Draws everything that the reports give, and says which files it wrote.
pub(super) fn draw(directory: &Path, reports: &[Report], swept: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    if let Some(last) = reports.iter().rev().find(|report| !report.rounds.is_empty()) {
        pictures.extend(by_phase(last));
    }
    if swept {
        pictures.extend(against(reports));
    }
    unisono::plot::draw(directory, &pictures)
}

fn label(report: &Report) -> String {
    let s = &report.settings;
    format!("n = {}, d = {}, k = {}, {} mode", s.clients, s.dimension, s.degree, s.mode)
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

/// Client time, server time and bytes against n, d and k, where at least two values of these occur.
fn against(reports: &[Report]) -> Vec<(String, Picture)> {
    type Number = fn(&Report) -> f64;
    let axes: [(&str, &str, Number); 3] = [
        ("n", "clients, n", |report| report.settings.clients.into()),
        ("d", "elements of an update, d", |report| report.settings.dimension as f64),
        ("k", "neighbours of a client, k", |report| report.settings.degree.into()),
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
            let mut curves = Curves::new();
            for report in reports {
                let Some(cost) = cost(report) else { continue };
                let s = &report.settings;
                // What is not on the axis tells curves apart. The degree follows from n, so k stands in for it.
                let rest = match axis {
                    "d" => format!("n = {}", s.clients),
                    _ => format!("d = {}", s.dimension),
                };
                let key = format!("{rest}, delta = {}, {} bits, {}", s.delta, s.quantiser_bits, s.mode);
                curves.entry(key).or_default().push((number(report), amount(&cost)));
            }
            curves.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
            curves.retain(|_, points| points.len() > 1 && points[0].0 < points[points.len() - 1].0);
            if !curves.is_empty() {
                let picture = Picture::Curves {
                    title: title.to_owned(),
                    x: (x, Scale::Logarithmic),
                    y: (y, Scale::Logarithmic),
                    curves,
                };
                pictures.push((format!("{name}-{axis}"), picture));
            }
        }
    }
    pictures
}
