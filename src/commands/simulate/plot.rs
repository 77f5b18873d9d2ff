//! Reports as pictures.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use unisono::plot::{Curves, Intervals, Picture, Scale, Value};
use unisono_sim::secaggplus::{self, Model};
use unisono_sim::{Estimate, PrivacySettings, Quantity, Report, Settings, counted, summarise};

use super::output::{Cost, cost, modelled};

/// Makes the folder, and sees that files can be made in it.
pub(super) fn prepare(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(directory).and_then(|()| tempfile::tempfile_in(directory));
    made.map(drop).with_context(|| format!("can't plot into {}", directory.display()))
}

/// Draws everything that the reports give, `repeats` of each setting, and in a sweep the models beside them; on a terminal, says
/// which files it wrote.
pub(super) fn draw(
    directory: &Path,
    reports: &[Report],
    repeats: usize,
    models: Option<&[Model]>,
) -> anyhow::Result<()> {
    let mut pictures = Vec::new();
    if let Some(last) = reports.chunks(repeats).rev().find(|runs| runs.iter().any(|run| !run.rounds.is_empty())) {
        pictures.extend(by_phase(last));
    }
    pictures.extend(accuracy(reports, repeats));
    if let Some(models) = models {
        pictures.extend(against(reports, repeats, models));
    }
    let drawn = unisono::plot::draw(directory, &pictures, &caption(reports, repeats));
    let drawn = drawn.with_context(|| format!("can't plot into {}", directory.display()))?;
    if std::io::stderr().is_terminal() {
        drawn.iter().for_each(|path| eprintln!("drawn: {}", path.display()));
    }
    Ok(())
}

/// The settings below every picture; of one that varies, each value.
fn caption(reports: &[Report], repeats: usize) -> String {
    type Part = fn(&Settings) -> String;
    let parts: [(&str, Part); 12] = [
        ("n = ", |s| s.clients.to_string()),
        ("d = ", |s| s.dimension.to_string()),
        ("mode ", |s| s.mode.clone()),
        ("gamma = ", |s| s.gamma.to_string()),
        ("delta = ", |s| s.delta.to_string()),
        ("updates ", |s| s.updates.clone()),
        ("bits ", |s| format!("{}{}", s.quantiser_bits, if s.rotate { ", rotated" } else { "" })),
        ("noise ", |s| {
            let noise = |p: PrivacySettings| format!("{} at L2 clip {}", p.noise_multiplier, p.l2_clip);
            s.privacy.map_or_else(|| "none".into(), noise)
        }),
        ("drop-out ", |s| s.dropout.clone()),
        ("network ", |s| s.network.clone()),
        ("deadline ", |s| format!("{} s", s.deadline)),
        ("rounds ", |s| s.rounds.to_string()),
    ];
    let mut text = String::new();
    for (name, part) in parts {
        let mut values: Vec<String> = Vec::new();
        for value in reports.iter().map(|report| part(&report.settings)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        text += &format!("{name}{}; ", values.join(", "));
    }
    if reports.iter().any(|report| report.settings.shared_checks) {
        text += "signatures checked once for all; ";
    }
    let seeds = reports.iter().map(|report| report.settings.seed);
    let (first, last) = (seeds.clone().min().unwrap_or(0), seeds.max().unwrap_or(0));
    if repeats == 1 {
        text += &format!("seed {first}");
    } else {
        text += &format!("mean of the seeds {first} to {last}, error bars: 95 % confidence interval");
    }
    text + &format!("; unisono {}", env!("CARGO_PKG_VERSION"))
}

fn label(settings: &Settings) -> String {
    let s = settings;
    let checks = if s.shared_checks { ", signatures checked once for all" } else { "" };
    format!("n = {}, d = {}, k = {}, {} mode{checks}", s.clients, s.dimension, s.degree, s.mode)
}

/// The ends of an error bar, if there are some.
fn ends(estimate: &Estimate) -> Option<(f64, f64)> {
    estimate.low.zip(estimate.high)
}

/// Time, if it was measured, and bytes by phase of one setting, where a round gave a sum.
fn by_phase(runs: &[Report]) -> Vec<(String, Picture)> {
    let Some(Report { settings, .. }) = runs.first() else { return Vec::new() };
    let quantities = summarise(runs);
    let values = |measure: &str| -> (Vec<&'static str>, Vec<Value>) {
        let of_phase = |q: &Quantity| Some((q.phase?, (q.estimate.mean, ends(&q.estimate))));
        quantities.iter().filter(|quantity| quantity.measure == measure).filter_map(of_phase).unzip()
    };
    let bars = |title: &str, unit, [(first, one), (second, other)]: [(&'static str, &str); 2]| {
        let ((phases, one), (_, other)) = (values(one), values(other));
        let title = format!("{title}: {}", label(settings));
        let series = [(first, one), (second, other)];
        (!phases.is_empty()).then_some(Picture::Bars { title, unit, series, phases })
    };
    let times = [("one client", "client_seconds"), ("coordinator", "server_seconds")];
    let times = bars("Measured CPU time by phase", "CPU time, seconds", times);
    let bytes = [("sent", "sent_bytes"), ("received", "received_bytes")];
    let bytes = bars("Bytes of one client by phase", "bytes", bytes);
    let named = [("phase-time", times), ("phase-bytes", bytes)];
    named.into_iter().filter_map(|(name, picture)| Some((name.to_owned(), picture?))).collect()
}

/// Accuracy after each round, a curve for each setting, where the devices learn.
fn accuracy(reports: &[Report], repeats: usize) -> Option<(String, Picture)> {
    let (mut curves, mut intervals) = (Curves::new(), Intervals::new());
    for runs in reports.chunks(repeats) {
        let s = &runs[0].settings;
        let varied = if reports.len() > repeats { rest("d", reports, s) } else { format!("n = {}", s.clients) };
        let name = format!("{varied}, {}", s.mode);
        for Quantity { round, estimate, .. } in summarise(runs).into_iter().filter(|q| q.measure == "accuracy") {
            let round = round.unwrap_or_default() as f64;
            curves.entry(name.clone()).or_default().push((round, estimate.mean));
            let ends = ends(&estimate).map(|(low, high)| (round, low, high));
            intervals.entry(name.clone()).or_default().extend(ends);
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
            intervals,
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
fn against(reports: &[Report], repeats: usize, models: &[Model]) -> Vec<(String, Picture)> {
    type Number = fn(&Settings, degree: u32) -> f64;
    let axes: [(&str, &str, Number); 3] = [
        ("n", "clients, n", |s, _| s.clients.into()),
        ("d", "elements of an update, d", |s, _| s.dimension as f64),
        ("k", "neighbours of a client, k", |_, degree| degree.into()),
    ];
    type Amount = fn(&Cost) -> Option<f64>;
    let amounts: [(&str, &str, &str, Amount); 3] = [
        ("client-time", "CPU time of one client in a round", "CPU time, seconds", |cost| cost.client),
        ("server-time", "CPU time of the coordinator in a round", "CPU time, seconds", |cost| cost.server),
        ("client-bytes", "Bytes that one client sends and receives in a round", "bytes", |cost| {
            Some(cost.sent + cost.received)
        }),
    ];
    let mut pictures = Vec::new();
    for (axis, x, number) in axes {
        for (name, title, y, amount) in amounts {
            let (mut curves, mut model_curves, mut intervals) = (Curves::new(), Curves::new(), Intervals::new());
            for (runs, models) in reports.chunks(repeats).zip(models.chunks(repeats)) {
                let s = &runs[0].settings;
                let rest = rest(axis, reports, s);
                let amounts = counted(runs).filter_map(|run| amount(&cost(run)?));
                if let Some(estimate) = Estimate::of(&amounts.collect::<Vec<f64>>()) {
                    let checks = if s.shared_checks { ", shared checks" } else { "" };
                    let key = format!("{rest}, {}{checks}", s.mode);
                    let at = number(s, s.degree);
                    intervals
                        .entry(key.clone())
                        .or_default()
                        .extend(ends(&estimate).map(|(low, high)| (at, low, high)));
                    curves.entry(key).or_default().push((at, estimate.mean));
                }
                let amounts: Vec<f64> = models.iter().filter_map(|model| amount(&modelled(model)?)).collect();
                if let Some(Estimate { mean, .. }) = Estimate::of(&amounts) {
                    let key = format!("{}, {rest}", secaggplus::LABEL);
                    let points = model_curves.entry(key).or_default();
                    let at = number(s, models[0].degree);
                    // Our modes have one model in common.
                    if points.iter().all(|(x, _)| *x != at) {
                        points.push((at, mean));
                    }
                }
            }
            let (curves, modelled) = (lines(curves), lines(model_curves));
            if !curves.is_empty() {
                let (x, y) = ((x, Scale::Logarithmic), (y, Scale::Logarithmic));
                intervals.retain(|name, _| curves.contains_key(name));
                let picture = Picture::Curves { title: title.to_owned(), x, y, curves, modelled, intervals };
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
        let pictures = against(&reports, 1, &models);
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
        let names: Vec<String> = by_phase(&reports[..1]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["phase-bytes"]);
        assert!(against(&reports, 1, &models).iter().all(|(name, _)| name.starts_with("client-bytes")));
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_told_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(prepare(&file.path().join("plots")).unwrap_err().to_string().contains("can't plot into"));
    }
}
