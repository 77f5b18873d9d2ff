//! Reports as pictures.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use unisono::plot::{Curves, Picture, Scale};
use unisono_sim::secaggplus::{self, Model};
use unisono_sim::{Report, Settings};

use super::output::{Cost, cost, modelled};

/// Makes the folder, and sees that files can be made in it.
pub(super) fn prepare(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(directory).and_then(|()| tempfile::tempfile_in(directory));
    made.map(drop).with_context(|| format!("can't plot into {}", directory.display()))
}

/// Draws everything that the reports give, and in a sweep the models beside them; on a terminal, says which files it wrote.
pub(super) fn draw(directory: &Path, reports: &[Report], models: &[Model]) -> anyhow::Result<()> {
    let mut pictures = Vec::new();
    if let Some(last) = reports.iter().rev().find(|report| !report.rounds.is_empty()) {
        pictures.extend(by_phase(last));
    }
    pictures.extend(accuracy(reports));
    if !models.is_empty() {
        pictures.extend(against(reports, models));
    }
    let drawn = unisono::plot::draw(directory, &pictures);
    let drawn = drawn.with_context(|| format!("can't plot into {}", directory.display()))?;
    if std::io::stderr().is_terminal() {
        drawn.iter().for_each(|path| eprintln!("drawn: {}", path.display()));
    }
    Ok(())
}

fn label(report: &Report) -> String {
    let s = &report.settings;
    let checks = if s.shared_checks { ", signatures checked once for all" } else { "" };
    format!("n = {}, d = {}, k = {}, {} mode{checks}", s.clients, s.dimension, s.degree, s.mode)
}

/// Time, if it was measured, and bytes by phase of a report's last round.
fn by_phase(report: &Report) -> Vec<(String, Picture)> {
    let Some(round) = report.rounds.last() else { return Vec::new() };
    let phases: Vec<&'static str> = round.phases.iter().map(|phase| phase.phase).collect();
    let times = round.timing.as_ref().map(|timing| {
        let times = timing.phases.iter().map(|time| (time.client_seconds.mean, time.server_seconds));
        let (client, server) = times.unzip();
        Picture::Bars {
            title: format!("Measured time by phase: {}", label(report)),
            unit: "seconds",
            series: [("one client (CPU)", client), ("coordinator", server)],
            phases: phases.clone(),
        }
    });
    let bytes = Picture::Bars {
        title: format!("Bytes of one client by phase: {}", label(report)),
        unit: "bytes",
        series: [
            ("sent", round.phases.iter().map(|phase| phase.sent.mean).collect()),
            ("received", round.phases.iter().map(|phase| phase.received.mean).collect()),
        ],
        phases,
    };
    let times = times.map(|times| ("phase-time".to_owned(), times));
    times.into_iter().chain([("phase-bytes".to_owned(), bytes)]).collect()
}

/// Accuracy after each round, a curve for each report, where the devices learn.
fn accuracy(reports: &[Report]) -> Option<(String, Picture)> {
    let mut curves = Curves::new();
    for report in reports {
        let s = &report.settings;
        let points =
            report.rounds.iter().filter_map(|round| Some((round.round as f64, round.learned?.accuracy.into())));
        let points: Vec<(f64, f64)> = points.collect();
        if !points.is_empty() {
            let varied = if reports.len() > 1 { rest("d", reports, s) } else { format!("n = {}", s.clients) };
            curves.entry(format!("{varied}, {}", s.mode)).or_default().extend(points);
        }
    }
    let updates = &reports.first()?.settings.updates;
    (!curves.is_empty()).then(|| {
        let picture = Picture::Curves {
            title: format!("Accuracy after each round: {updates}"),
            x: ("round", Scale::Linear),
            y: ("accuracy on examples of no device", Scale::Linear),
            curves,
            modelled: Curves::new(),
        };
        ("accuracy".to_owned(), picture)
    })
}

/// What tells the curves of one picture apart: n or d, whichever is not on the axis, and of the other settings those that the
/// sweep varies. The degree follows from n, so k stands in for it.
fn rest(axis: &str, reports: &[Report], s: &Settings) -> String {
    let mut parts = vec![if axis == "d" { format!("n = {}", s.clients) } else { format!("d = {}", s.dimension) }];
    let varied: [fn(&Settings) -> String; 2] =
        [|s| format!("drop-out {}", s.dropout), |s| format!("{} bits", s.quantiser_bits)];
    for name in varied {
        if reports.iter().any(|other| name(&other.settings) != name(s)) {
            parts.push(name(s));
        }
    }
    parts.join(", ")
}

/// Client time, server time and bytes against n, d and k, where at least two values of these occur: measured, and from the models.
fn against(reports: &[Report], models: &[Model]) -> Vec<(String, Picture)> {
    type Number = fn(&Settings, degree: u32) -> f64;
    let axes: [(&str, &str, Number); 3] = [
        ("n", "clients, n", |s, _| s.clients.into()),
        ("d", "elements of an update, d", |s, _| s.dimension as f64),
        ("k", "neighbours of a client, k", |_, degree| degree.into()),
    ];
    type Amount = fn(&Cost) -> Option<f64>;
    let amounts: [(&str, &str, &str, Amount); 3] = [
        ("client-time", "CPU time of one client in a round", "seconds", |cost| cost.client),
        ("server-time", "Time of the coordinator in a round", "seconds", |cost| cost.server),
        ("client-bytes", "Bytes that one client sends and receives in a round", "bytes", |cost| {
            Some(cost.sent + cost.received)
        }),
    ];
    let mut pictures = Vec::new();
    for (axis, x, number) in axes {
        for (name, title, y, amount) in amounts {
            let (mut curves, mut model_curves) = (Curves::new(), Curves::new());
            for (report, model) in reports.iter().zip(models) {
                let s = &report.settings;
                let rest = rest(axis, reports, s);
                if let Some(amount) = cost(report).as_ref().and_then(amount) {
                    let checks = if s.shared_checks { ", shared checks" } else { "" };
                    let key = format!("{rest}, {}{checks}", s.mode);
                    curves.entry(key).or_default().push((number(s, s.degree), amount));
                }
                if let Some(amount) = modelled(model).as_ref().and_then(amount) {
                    let key = format!("{}, {rest}", secaggplus::LABEL);
                    let points = model_curves.entry(key).or_default();
                    let at = number(s, model.degree);
                    // Our modes have one model in common.
                    if points.iter().all(|(x, _)| *x != at) {
                        points.push((at, amount));
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

#[cfg(test)]
mod tests {
    use unisono_sim::{Dropout, Simulation};

    use super::*;

    #[test]
    fn curves_are_told_apart_by_every_setting_that_is_not_on_the_axis() {
        let report = |clients, dropout| {
            let builder = Simulation::builder().clients(clients).dimension(10).delta(0.05);
            let simulation = builder.dropout(Dropout::parse(dropout).unwrap()).build().unwrap();
            simulation.run(&mut ()).unwrap()
        };
        let reports = [report(20, "0"), report(20, "0.05"), report(40, "0"), report(40, "0.05")];
        let models = reports.each_ref().map(|report| Model::beside(report).unwrap());
        let pictures = against(&reports, &models);
        let (_, picture) = pictures.iter().find(|(name, _)| name == "client-bytes-n").unwrap();
        let Picture::Curves { curves, modelled, .. } = picture else { panic!("{picture:?}") };
        for curves in [curves, modelled] {
            assert_eq!(curves.len(), 2, "{curves:?}");
            assert!(curves.values().all(|points| points.iter().map(|p| p.0).eq([20.0, 40.0])), "{curves:?}");
        }
        assert!(curves.contains_key("d = 10, drop-out 0.05, malicious"), "{curves:?}");
    }

    #[test]
    fn times_that_were_left_out_are_not_drawn() {
        let report = |clients| {
            let simulation = Simulation::builder().clients(clients).dimension(10).build().unwrap();
            simulation.run(&mut ()).unwrap().without_timings()
        };
        let reports = [report(20), report(40)];
        let models = reports.each_ref().map(|report| Model::beside(report).unwrap().without_timings());
        let names: Vec<String> = by_phase(&reports[0]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["phase-bytes"]);
        assert!(against(&reports, &models).iter().all(|(name, _)| name.starts_with("client-bytes")));
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_told_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(prepare(&file.path().join("plots")).unwrap_err().to_string().contains("can't plot into"));
    }
}
