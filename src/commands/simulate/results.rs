//! Where results go while rounds are played: standard output, a CSV file, pictures. Files are opened before the first round.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;
use unisono_sim::secaggplus::Model;
use unisono_sim::{Report, RoundReport, Settings, SimError};

use super::csv_file::Csv;
use super::summary::{self, SummaryCsv};
use super::{Args, output, plot};

/// Everything that the command gives.
pub(super) struct Results {
    /// One for each simulation that was begun; those of one setting follow each other.
    pub reports: Vec<Report>,
    /// Simulations of one setting.
    repeats: usize,
    /// Whether settings vary.
    swept: bool,
    /// Beside each report of a sweep.
    models: Vec<Model>,
    out: Out,
    csv: Option<Csv>,
    csv_summary: Option<SummaryCsv>,
    plot: Option<PathBuf>,
    tables: bool,
    timings: bool,
}

/// Standard output. After its first failure nothing more is written to it.
#[derive(Default)]
struct Out(Option<std::io::Error>);

impl Out {
    fn print(&mut self, text: &str) {
        if self.0.is_none() {
            let mut out = std::io::stdout().lock();
            self.0 = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// The failure, if there was one. That the reader has gone is none.
    fn end(self) -> anyhow::Result<()> {
        match self.0 {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).context("can't write to standard output")
            }
            _ => Ok(()),
        }
    }
}

impl Results {
    /// Opens the files.
    pub fn open(args: &Args) -> anyhow::Result<Self> {
        let csv = args.csv.as_deref().map(Csv::create).transpose()?;
        let csv_summary = args.csv_summary.as_deref().map(SummaryCsv::create).transpose()?;
        if let Some(directory) = &args.plot {
            plot::prepare(directory)?;
        }
        Ok(Self {
            reports: Vec::new(),
            repeats: args.repeats as usize,
            swept: !args.sweep.is_empty(),
            models: Vec::new(),
            out: Out::default(),
            csv,
            csv_summary,
            plot: args.plot.clone(),
            tables: !args.json,
            timings: !args.no_timings,
        })
    }

    /// A simulation begins; in a sweep with a model beside it.
    pub fn begin(&mut self, settings: Settings) -> Result<(), SimError> {
        if self.swept {
            let model = Model::of(&settings)?;
            self.models.push(if self.timings { model } else { model.without_timings() });
        }
        if self.tables {
            self.out.print(&output::heading(&settings));
        }
        self.reports.push(Report { settings, rounds: Vec::new(), interrupted: false });
        Ok(())
    }

    /// A round of the simulation at hand has ended.
    pub fn round(&mut self, mut round: RoundReport) {
        let Some(report) = self.reports.last_mut() else { return };
        if !self.timings {
            round.timing = None;
        }
        if let Some(model) = self.models.last_mut() {
            model.add(&round);
        }
        if self.tables {
            self.out.print(&output::table(&round));
        }
        if let Some(csv) = &mut self.csv {
            csv.add(&report.settings, &round, self.models.last());
        }
        report.rounds.push(round);
    }

    /// The simulation at hand has ended.
    pub fn end(&mut self, interrupted: bool) {
        if let Some(report) = self.reports.last_mut() {
            report.interrupted = interrupted;
        }
        if self.tables {
            self.out.print(if interrupted { "interrupted: the rounds above were finished\n\n" } else { "\n" });
        }
    }

    /// Whether nobody can learn of further rounds: the CSV file has failed, or standard output without there being a file.
    pub fn in_vain(&self) -> bool {
        let files = self.csv.is_some() || self.csv_summary.is_some() || self.plot.is_some();
        self.csv.as_ref().is_some_and(Csv::has_failed) || (self.out.0.is_some() && !files)
    }

    /// Whether a round's sum was not that of its survivors.
    pub fn wrong_sum(&self) -> bool {
        self.reports.iter().flat_map(|report| &report.rounds).any(|round| round.exact_sum == Some(false))
    }

    /// Writes what is written at the end. Each part is tried; the first failure is returned.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { reports, repeats, swept, models, mut out, csv, csv_summary, plot, tables, .. } = self;
        let models = swept.then_some(models.as_slice());
        let text = if !tables {
            output::json(&reports, repeats, models).map(|text| text + "\n")
        } else {
            let summary = match (repeats, swept) {
                (1, false) => String::new(),
                (1, true) => output::summary(&reports),
                _ => reports.chunks(repeats).map(summary::table).collect(),
            };
            Ok(summary + &models.map_or_else(String::new, |models| output::models(&reports, models)))
        };
        let text = text.map(|text| out.print(&text)).context("can't make JSON");
        let csv = csv.map_or(Ok(()), Csv::end);
        let csv_summary = csv_summary.map_or(Ok(()), |csv| csv.write(reports.chunks(repeats)));
        let drawn = plot.map_or(Ok(()), |directory| plot::draw(&directory, &reports, repeats, models));
        text.and(csv).and(csv_summary).and(drawn).and(out.end())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use unisono_sim::Simulation;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_was_finished_before_a_later_simulation_failed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (csv, plots) = (folder.path().join("rounds.csv"), folder.path().join("plots"));
        let (csv_text, plots_text) = (csv.to_str().unwrap(), plots.to_str().unwrap());
        let arguments = ["simulate", "--csv", csv_text, "--plot", plots_text, "--sweep", "bits=16"];
        let mut results = Results::open(&Cli::parse_from(arguments).args).unwrap();
        let report = Simulation::builder().clients(20).dimension(10).build().unwrap().run(&mut ()).unwrap();
        results.begin(report.settings.clone()).unwrap();
        results.round(report.rounds[0].clone());
        results.end(false);
        // No graph is secure when this many may drop out.
        assert!(results.begin(Settings { delta: 0.99, ..report.settings }).is_err());
        results.finish().unwrap();
        assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 6);
        assert!(plots.join("phase-bytes.png").exists());
    }
}
