//! Mean and confidence interval of what was measured, over runs that differ in their seeds: as a table and as CSV.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use unisono_sim::{Quantity, Report, counted, summarise};

use super::output::{bytes, heading, seconds};

/// The quantities of all phases together, and the last round's of what was learned, over the runs of one setting.
pub(super) fn table(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let mut text = heading(&first.settings);
    let quantities = summarise(reports);
    let runs = counted(reports).count();
    let seeds = counted(reports).map(|report| report.settings.seed);
    let (from, to) = (seeds.clone().min().unwrap_or(0), seeds.max().unwrap_or(0));
    let _ = writeln!(
        text,
        "mean of {runs} runs (seeds {from} to {to}) and its 95 % confidence interval (Student's t)\n  {:<16} {:>12} {:>12} {:>12} {:>12}",
        "quantity", "mean", "+-", "from", "to"
    );
    let last = quantities.iter().filter_map(|quantity| quantity.round).max();
    for quantity in quantities.iter().filter(|q| q.phase.is_none() && (q.round.is_none() || q.round == last)) {
        let estimate = &quantity.estimate;
        let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| with_unit(value, quantity.unit));
        let half = estimate.high.map(|high| high - estimate.mean);
        let fewer = if estimate.count < runs { format!("  ({} runs)", estimate.count) } else { String::new() };
        let _ = writeln!(
            text,
            "  {:<16} {:>12} {:>12} {:>12} {:>12}{fewer}",
            quantity.measure,
            with_unit(estimate.mean, quantity.unit),
            shown(half),
            shown(estimate.low),
            shown(estimate.high)
        );
    }
    text + "\n"
}

fn with_unit(value: f64, unit: &str) -> String {
    // An interval may reach below 0.
    let sign = if value < 0.0 { "-" } else { "" };
    match unit {
        "s" => sign.to_owned() + &seconds(value.abs()),
        "B" => sign.to_owned() + &bytes(value.abs()),
        _ if value == 0.0 || (0.01..1e6).contains(&value.abs()) => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

/// One line: a quantity of a setting. The columns are these fields, in this order.
#[derive(Serialize)]
struct Row<'a> {
    clients: u32,
    dimension: u64,
    mode: &'a str,
    gamma: f64,
    delta: f64,
    degree: u32,
    threshold: u32,
    n_min: u32,
    modulus_bits: u32,
    shared_checks: bool,
    updates: &'a str,
    quantiser_bits: u32,
    rotate: bool,
    dropout: &'a str,
    network: &'a str,
    deadline: f64,
    noise_multiplier: Option<f64>,
    l2_clip: Option<f32>,
    privacy_delta: Option<f64>,
    rounds: u64,
    first_seed: u64,
    phase: Option<&'a str>,
    round: Option<u64>,
    measure: &'a str,
    unit: &'a str,
    runs: usize,
    mean: f64,
    deviation: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
}

/// A CSV file, opened before the first round and written after the last.
pub(super) struct SummaryCsv {
    path: PathBuf,
    file: File,
}

impl SummaryCsv {
    /// Creates the file.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the quantities of each setting's runs.
    pub fn write<'a>(self, settings: impl Iterator<Item = &'a [Report]>) -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_writer(self.file);
        let written = settings.flat_map(rows).try_for_each(|row| writer.serialize(row));
        let written = written.and_then(|()| Ok(writer.flush()?));
        written.with_context(|| format!("can't write {}", self.path.display()))
    }
}

fn rows(reports: &[Report]) -> impl Iterator<Item = Row<'_>> {
    let first = reports.first().map(|report| &report.settings);
    let row = move |Quantity { measure, phase, round, unit, estimate }: Quantity| {
        let s = first?;
        Some(Row {
            clients: s.clients,
            dimension: s.dimension,
            mode: &s.mode,
            gamma: s.gamma,
            delta: s.delta,
            degree: s.degree,
            threshold: s.threshold,
            n_min: s.n_min,
            modulus_bits: s.modulus_bits,
            shared_checks: s.shared_checks,
            updates: &s.updates,
            quantiser_bits: s.quantiser_bits,
            rotate: s.rotate,
            dropout: &s.dropout,
            network: &s.network,
            deadline: s.deadline,
            noise_multiplier: s.privacy.map(|privacy| privacy.noise_multiplier),
            l2_clip: s.privacy.map(|privacy| privacy.l2_clip),
            privacy_delta: s.privacy.map(|privacy| privacy.delta),
            rounds: s.rounds,
            first_seed: s.seed,
            phase,
            round,
            measure,
            unit,
            runs: estimate.count,
            mean: estimate.mean,
            deviation: estimate.deviation,
            low: estimate.low,
            high: estimate.high,
        })
    };
    summarise(reports).into_iter().filter_map(row)
}
