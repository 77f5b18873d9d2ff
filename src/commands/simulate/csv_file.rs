//! Reports as CSV, written while rounds are played.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use unisono_sim::secaggplus::Model;
use unisono_sim::{RoundReport, Settings};

use super::output::timing;

/// One line: a phase of a round. The columns are these fields, in this order.
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
    seed: u64,
    shared_checks: bool,
    updates: &'a str,
    quantiser_bits: u32,
    rotate: bool,
    dropout: &'a str,
    network: &'a str,
    deadline: f64,
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
    client_cpu_mean: Option<f64>,
    client_cpu_max: Option<f64>,
    server_seconds: Option<f64>,
    noise_multiplier: Option<f64>,
    l2_clip: Option<f32>,
    privacy_delta: Option<f64>,
    epsilon: Option<f64>,
    total_epsilon: Option<f64>,
    noise_deviation: Option<f64>,
    accuracy: Option<f32>,
    loss: Option<f32>,
    secaggplus_model_degree: Option<u32>,
    secaggplus_model_threshold: Option<u32>,
    secaggplus_model_client_seconds: Option<f64>,
    secaggplus_model_server_seconds: Option<f64>,
    secaggplus_model_sent: Option<u64>,
    secaggplus_model_received: Option<u64>,
}

/// A CSV file. After its first failure nothing more is written to it.
pub(super) struct Csv {
    path: PathBuf,
    writer: csv::Writer<File>,
    failed: Option<anyhow::Error>,
}

impl Csv {
    /// Creates the file.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), writer: csv::Writer::from_writer(file), failed: None })
    }

    /// Writes one line for each phase of a round, down to the disk's cache. The model's columns are filled in a sweep, where
    /// SecAgg+ has the phase and the round gave a sum.
    pub fn add(&mut self, s: &Settings, round: &RoundReport, model: Option<&Model>) {
        if self.failed.is_none() {
            self.failed = self.write(s, round, model).err().map(Into::into);
        }
    }

    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The failure, if there was one.
    pub fn end(self) -> anyhow::Result<()> {
        let told = |error: anyhow::Error| Err(error.context(format!("can't write {}", self.path.display())));
        self.failed.map_or(Ok(()), told)
    }

    fn write(&mut self, s: &Settings, round: &RoundReport, model: Option<&Model>) -> csv::Result<()> {
        let modelled = model.and_then(|model| model.rounds.iter().rfind(|other| other.round == round.round));
        for (i, phase) in round.phases.iter().enumerate() {
            let timing = timing(round, i);
            let modelled = modelled.and_then(|m| m.phases.iter().find(|other| other.phase == phase.phase));
            self.writer.serialize(Row {
                clients: s.clients,
                dimension: s.dimension,
                mode: &s.mode,
                gamma: s.gamma,
                delta: s.delta,
                degree: s.degree,
                threshold: s.threshold,
                n_min: s.n_min,
                modulus_bits: s.modulus_bits,
                seed: s.seed,
                shared_checks: s.shared_checks,
                updates: &s.updates,
                quantiser_bits: s.quantiser_bits,
                rotate: s.rotate,
                dropout: &s.dropout,
                network: &s.network,
                deadline: s.deadline,
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
                client_cpu_mean: timing.map(|timing| timing.client_seconds.mean),
                client_cpu_max: timing.map(|timing| timing.client_seconds.max),
                server_seconds: timing.map(|timing| timing.server_seconds),
                noise_multiplier: s.privacy.map(|privacy| privacy.noise_multiplier),
                l2_clip: s.privacy.map(|privacy| privacy.l2_clip),
                privacy_delta: s.privacy.map(|privacy| privacy.delta),
                epsilon: round.privacy.map(|spent| spent.epsilon),
                total_epsilon: round.privacy.map(|spent| spent.total_epsilon),
                noise_deviation: round.privacy.map(|spent| spent.noise_deviation),
                accuracy: round.learned.map(|learned| learned.accuracy),
                loss: round.learned.map(|learned| learned.loss),
                secaggplus_model_degree: model.map(|model| model.degree),
                secaggplus_model_threshold: model.map(|model| model.threshold),
                secaggplus_model_client_seconds: modelled.and_then(|phase| phase.client_seconds),
                secaggplus_model_server_seconds: modelled.and_then(|phase| phase.server_seconds),
                secaggplus_model_sent: modelled.map(|phase| phase.bytes.sent),
                secaggplus_model_received: modelled.map(|phase| phase.bytes.received),
            })?;
        }
        Ok(self.writer.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use unisono_protocol::encoding::{Quantiser, Rounding};
    use unisono_protocol::rotation::Rotation;
    use unisono_sim::{Dropout, Report, Simulation};

    use super::*;

    /// The text of a CSV file with all rounds.
    fn csv(reports: &[Report], models: &[Model]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut csv = Csv::create(file.path()).unwrap();
        for (i, report) in reports.iter().enumerate() {
            report.rounds.iter().for_each(|round| csv.add(&report.settings, round, models.get(i)));
        }
        // What was added is there before the end.
        let text = std::fs::read_to_string(file.path()).unwrap();
        csv.end().unwrap();
        text
    }

    #[test]
    fn a_sweeps_lines_have_the_model_beside_what_was_measured() {
        let dropout = Dropout::constant(0.1).unwrap();
        let builder = Simulation::builder().clients(20).dimension(100).dropout(dropout);
        let report = builder.build().unwrap().run(&mut ()).unwrap();
        let model = Model::beside(&report).unwrap();

        let text = csv(&[report.clone(), report], &[model.clone(), model.clone()]);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
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
    }

    #[test]
    fn the_models_cells_are_empty_for_a_single_report() {
        let report = Simulation::builder().clients(5).dimension(10).build().unwrap().run(&mut ()).unwrap();
        let text = csv(&[report], &[]);
        assert!(text.lines().nth(1).unwrap().ends_with(",,,,,,"), "{text}");
    }

    #[test]
    fn lines_tell_the_run_and_no_times_without_timings() {
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
        let text = csv(&[report], &[]);
        assert!(text.contains(",12,true,share=0.1,lan,7.5,1,") && text.contains(",,,,,,,,,"), "{text}");
    }
}
