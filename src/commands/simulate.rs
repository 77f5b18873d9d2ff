//! `unisono simulate`: rounds with thousands of real clients in this process, on a virtual clock. One setting, or a grid.

mod csv_file;
mod output;
mod plot;
mod results;
mod summary;
mod sweep;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use unisono::federation::{DIMENSION, Federation, deal_digits};
use unisono::softmax::Sgd;
use unisono_protocol::degree::SecurityMode;
use unisono_protocol::encoding::{Aggregate, Quantiser, Rounding};
use unisono_protocol::rotation::Rotation;
use unisono_protocol::server::Phase;
use unisono_sim::{Builder, Dropout, Network, Observer, RoundReport, Simulation, updates};

use results::Results;
use sweep::{Axis, Point};

const EXAMPLES: &str = "\
Examples:
  A first look: 100 clients, 10,000 elements, malicious mode
    unisono simulate

  Ten thousand clients, a tenth of which share keys and then vanish
    unisono simulate --clients 10000 --dim 100000 --dropout 0.1 --rounds 5

  Phones and laptops on their usual connections; slow ones miss the deadline
    unisono simulate --network mixed --deadline 20 --dropout class:mobile=0.05

  Noise for differential privacy, and what five rounds spend
    unisono simulate --noise-multiplier 1 --l2-clip 1 --rounds 5 --dropout 0.1

  What a round costs against n and d, as curves
    unisono simulate --sweep n=100,300,1000 --sweep dim=10000,100000 --plot plots --csv costs.csv

  The same five times, with other seeds: mean and 95 % confidence interval of all that was measured
    unisono simulate --sweep n=100,300,1000 --repeats 5 --csv-summary costs.csv --plot plots

  Accuracy after each round, with and without drop-outs, as curves
    unisono simulate --learn --rounds 10 --sweep dropout=0,0.3 --mode semi-honest --plot plots

  The same output, byte for byte, whenever and wherever it is run
    unisono simulate --seed 7 --json --no-timings

Every client runs the protocol's real state machine with real keys; only the network is left out. The same seed gives the
same report, byte for byte, but for measured times. Two kinds of time are told apart:
  virtual   from the models of latency, bandwidth, computing and drop-outs: what a round would take out there
  measured  CPU time of one client and of the coordinator in this process

A sweep also tells what its rounds would cost with SecAgg+ (Bell et al., CCS 2020): dashed in plots, `secaggplus_model` in JSON
and CSV. That is a model, no measurement of SecAgg+: the operations and bytes of its semi-honest protocol, counted for the same
clients, gamma, delta and drop-outs, times what each operation costs on this machine. docs/research.md says what is left out.

Updates are random, unless --learn is given: then the devices train, and accuracy is in all outputs. The example
simulate_learning compares optimisers beside it (cargo run --release --example simulate_learning -- --plot plots).

Tables and CSV lines come out as each round ends. Ctrl-C drops the round at hand, writes the rest and exits with code 130; a
run that it stopped is left out of means over --repeats. Pictures name the settings that their curves have in common.";

/// Most runs of one setting.
const MAX_REPEATS: u32 = 10_000;

/// How often each setting is played.
fn repeats(text: &str) -> Result<u32, String> {
    match sweep::count(text)? {
        count @ 1..=MAX_REPEATS => Ok(count),
        _ => Err(format!("allowed is 1 to {MAX_REPEATS}; a confidence interval needs 2")),
    }
}

/// Plays rounds with thousands of real clients in this process, on a virtual clock.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Number of clients, n; 1e3 is understood
    #[arg(short = 'n', long, default_value = "100", value_parser = sweep::count, allow_negative_numbers = true)]
    clients: u32,
    /// Elements of an update, d; 1e6 is understood
    #[arg(short = 'd', long, default_value = "10000", value_parser = sweep::whole, allow_negative_numbers = true)]
    dim: u64,
    /// Whether the coordinator is distrusted: signatures, roster and consistency check
    #[arg(long, value_enum, default_value_t = Mode::Malicious)]
    mode: Mode,
    /// Rounds
    #[arg(long, default_value = "1", value_parser = sweep::whole, allow_negative_numbers = true)]
    rounds: u64,
    /// Who vanishes: a fraction of the cohort before uploading, or PHASE=FRACTION,.., or class:NAME=FRACTION,.., or trace:FILE
    /// (CSV: round,client,phase)
    #[arg(long, default_value = "0", value_name = "MODEL", allow_negative_numbers = true)]
    dropout: String,
    /// Connections and devices: lan, broadband, mobile, mixed, or latency=50ms,up=10,down=40,slowdown=4 (Mbit/s), or trace:FILE
    /// (CSV: latency_ms,up_mbit,down_mbit,slowdown[,class])
    #[arg(long, default_value = "lan", value_name = "MODEL")]
    network: String,
    /// Virtual seconds after which a phase is closed without those that have not answered
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", allow_negative_numbers = true)]
    deadline: f64,
    /// Assumed adversarial fraction
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    gamma: f64,
    /// Assumed drop-out fraction [default: what --dropout leads one to expect, at least 0.05]
    #[arg(long, allow_negative_numbers = true)]
    delta: Option<f64>,
    /// Smallest number of updates whose sum may be learned [default: from n and delta]
    #[arg(long, value_parser = sweep::count, allow_negative_numbers = true)]
    n_min: Option<u32>,
    /// Bits of one quantised element
    #[arg(long, default_value_t = 16)]
    bits: u32,
    /// Rotates updates by random signs and Hadamard transforms before they are clipped to 1; bits at most 24
    #[arg(long)]
    rotate: bool,
    /// L2 bound of an update; needed for --noise-multiplier
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    l2_clip: Option<f32>,
    /// Differential privacy: standard deviation of the noise that counts in the smallest sum, in units of how far one client
    /// can move it; epsilon is told for each round
    #[arg(long, value_name = "Z", requires = "l2_clip", allow_negative_numbers = true)]
    noise_multiplier: Option<f64>,
    /// The delta for which epsilon is told (--delta is the drop-out fraction) [default: 1e-5]
    #[arg(long, value_name = "D", requires = "noise_multiplier", allow_negative_numbers = true)]
    privacy_delta: Option<f64>,
    /// Learns: the devices train a softmax regression on the bundled digits (d = 650), and each round's mean is added to the
    /// model; tables, JSON, CSV and pictures have its accuracy on digits that no device has
    #[arg(long, conflicts_with = "dim")]
    learn: bool,
    /// How alike the devices' digits are: concentration of the Dirichlet split; the smaller, the fewer digits a device has
    /// [default: 1]
    #[arg(long, value_name = "ALPHA", requires = "learn", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Plays each setting N times, with the seeds SEED, SEED+1, ..: summary, JSON (`summary`), --csv-summary and pictures have
    /// the mean and its 95 % confidence interval (Student's t) over these runs
    #[arg(long, default_value = "1", value_name = "N", value_parser = repeats, allow_negative_numbers = true)]
    repeats: u32,
    /// Threads, at most 1024; 0 for as many as there are cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Verifies each signature once for all clients, as they are in one process: rounds take less time, but a client's CPU time is
    /// no longer that of a device
    #[arg(long)]
    share_checks: bool,
    /// Runs a grid: n=.., dim=.., dropout=.., bits=.. or mode=..; several options multiply
    #[arg(long, value_name = "NAME=V1,V2,..")]
    sweep: Vec<Axis>,
    /// Prints JSON instead of tables: one report, or with --sweep an array of them; with --repeats each has a `summary` and the
    /// reports of its `runs`
    #[arg(long)]
    json: bool,
    /// Leaves measured times out of tables, JSON, CSV and pictures: what is left is the same for one seed, byte for byte
    #[arg(long)]
    no_timings: bool,
    /// Writes one line for each round and phase to a CSV file, as soon as the round has ended
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Writes one line for each quantity of each setting to a CSV file, at the end: mean, standard deviation and the 95 %
    /// confidence interval over --repeats
    #[arg(long, value_name = "FILE")]
    csv_summary: Option<PathBuf>,
    /// Draws time and bytes by phase, and with --sweep the curves against n, d and k beside those of a model of SecAgg+, as PNG
    /// and SVG; with --learn also the accuracy of each round
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

/// Security mode.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Signatures, roster and consistency check
    Malicious,
    /// None of these
    SemiHonest,
}

/// Exit code of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Runs the command. What was finished before an interruption or an error is written; an error is returned after that.
///
/// # Errors
/// Settings that can't work, files that can't be read or written.
pub fn run(args: Args) -> anyhow::Result<()> {
    // All settings are checked and all files opened before the first round, which may be hours before the last.
    let planned = args.plan()?;
    let mut results = Results::open(&args)?;
    let stop = catch_interrupts()?;
    let played = play(&args, &planned, &stop, &mut results);
    let interrupted = stop.load(Ordering::Relaxed) && results.reports.iter().any(|report| report.interrupted);
    let wrong = results.wrong_sum();
    // What can be written is, whatever else failed.
    let written = results.finish();
    played.and(written)?;
    anyhow::ensure!(!wrong, "a round gave a sum that is not that of its survivors' updates: this must not happen");
    if interrupted {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}

/// Set at the first Ctrl-C; the second one ends the process.
fn catch_interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        // Whoever closed standard error needs no message.
        let _ = writeln!(std::io::stderr(), "stopping: finished rounds are kept; once more to stop at once");
    })
    .context("can't catch Ctrl-C")?;
    Ok(stop)
}

/// A simulation, and the devices that learn in it.
struct Planned {
    simulation: Simulation,
    federation: Option<Arc<Federation>>,
}

/// Plays one simulation after the other until they end, fail or are stopped; what they give is in `results`.
fn play(args: &Args, planned: &[Planned], stop: &AtomicBool, results: &mut Results) -> anyhow::Result<()> {
    for (i, Planned { simulation, federation }) in planned.iter().enumerate() {
        let title = if planned.len() > 1 { format!("{}/{} ", i + 1, planned.len()) } else { String::new() };
        let settings = simulation.settings();
        let context = || format!("n = {}, d = {}", settings.clients, settings.dimension);
        results.begin(settings.clone()).with_context(context)?;
        let mut watch = Watch::new(stop, title, args.rounds, federation.as_deref(), results);
        let played = simulation.run(&mut watch);
        watch.bar.finish_and_clear();
        let interrupted = played.as_ref().is_ok_and(|report| report.interrupted);
        results.end(interrupted);
        played.with_context(context)?;
        if interrupted {
            break;
        }
    }
    Ok(())
}

impl Args {
    fn plan(&self) -> anyhow::Result<Vec<Planned>> {
        let Self { clients, dim, bits, mode, .. } = *self;
        let dim = if self.learn { DIMENSION } else { dim };
        let points = sweep::grid(&self.sweep, Point { clients, dim, bits, mode, dropout: self.dropout.clone() })?;
        let last = self.seed.checked_add(u64::from(self.repeats) - 1);
        let last = last.with_context(|| {
            format!("--seed {}: the last of --repeats {} would be above {}", self.seed, self.repeats, u64::MAX)
        })?;
        let plan = |(point, seed): (&Point, u64)| {
            let federation = self.learn.then(|| self.federation(point, seed)).transpose()?.map(Arc::new);
            let simulation = self.builder(point, federation.clone())?.seed(seed).build();
            let simulation = simulation.with_context(|| format!("n = {}, d = {}", point.clients, point.dim))?;
            Ok(Planned { simulation, federation })
        };
        points.iter().flat_map(|point| (self.seed..=last).map(move |seed| (point, seed))).map(plan).collect()
    }

    fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(1.0)
    }

    fn federation(&self, point: &Point, seed: u64) -> anyhow::Result<Federation> {
        anyhow::ensure!(
            point.dim == DIMENSION,
            "--learn has a model of {DIMENSION} elements: dim can't be swept with it"
        );
        let (parts, held_out) = deal_digits(point.clients, self.alpha(), seed).context("--learn")?;
        let sgd = Sgd { epochs: 5, learning_rate: 0.1, ..Sgd::default() };
        Ok(Federation::new(parts, held_out, sgd, seed, self.noise_multiplier.is_some()))
    }

    fn builder(&self, point: &Point, federation: Option<Arc<Federation>>) -> anyhow::Result<Builder> {
        let mode = match point.mode {
            Mode::Malicious => SecurityMode::Malicious,
            Mode::SemiHonest => SecurityMode::SemiHonest,
        };
        let quantiser = Quantiser {
            bits: point.bits,
            // Random updates lie within 1; what a device learns from its digits in a round within 2.
            clip: if self.learn { self.l2_clip.unwrap_or(2.0) } else { 1.0 },
            clips: Vec::new(),
            l2_clip: self.l2_clip,
            max_weight: federation.as_ref().map_or(1.0, |federation| federation.max_weight()),
            rounding: Rounding::Stochastic,
            metric_bounds: Vec::new(),
            privacy: None,
            rotation: self.rotate.then(Rotation::default),
        };
        let mut builder = Simulation::builder()
            .clients(point.clients)
            .dimension(point.dim)
            .mode(mode)
            .gamma(self.gamma)
            .quantiser(quantiser)
            .network(Network::parse(&self.network)?)
            .dropout(Dropout::parse(&point.dropout)?)
            .deadline(self.deadline)
            .rounds(self.rounds)
            .threads(self.threads)
            .share_checks(self.share_checks);
        if let Some(federation) = federation {
            let name = format!("learned from the bundled digits, Dirichlet alpha = {}", self.alpha());
            builder = builder.named_updates(name, updates(move |client, round| federation.update(client, round)));
        }
        if let Some(delta) = self.delta {
            builder = builder.delta(delta);
        }
        if let Some(multiplier) = self.noise_multiplier {
            builder = builder.privacy(multiplier, self.privacy_delta.unwrap_or(1e-5));
        }
        if let Some(n_min) = self.n_min {
            builder = builder.n_min(n_min);
        }
        Ok(builder)
    }
}

/// A progress bar on standard error, hidden when that is no terminal; finished rounds go to the results.
struct Watch<'a> {
    stop: &'a AtomicBool,
    title: String,
    rounds: u64,
    bar: ProgressBar,
    federation: Option<&'a Federation>,
    results: &'a mut Results,
}

impl<'a> Watch<'a> {
    fn new(
        stop: &'a AtomicBool,
        title: String,
        rounds: u64,
        federation: Option<&'a Federation>,
        results: &'a mut Results,
    ) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg:32} [{bar:30}] {pos}/{len} clients, {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { stop, title, rounds, bar, federation, results }
    }
}

impl Observer for Watch<'_> {
    fn progress(&mut self, round: u64, phase: Phase, done: usize, clients: usize) {
        self.bar.set_length(clients as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{}round {round} of {}, {phase}", self.title, self.rounds));
    }

    fn round_finished(&mut self, round: &RoundReport, aggregate: Option<&Aggregate>) {
        let mut round = round.clone();
        if let Some(federation) = self.federation {
            // FedAvg; a round without a sum teaches nothing.
            if let Some(Aggregate { mean, .. }) = aggregate {
                federation.step(|values| values.iter().zip(mean).map(|(value, change)| value + change).collect());
            }
            round.learned = Some(federation.evaluate());
        }
        let results = &mut *self.results;
        self.bar.suspend(|| results.round(round));
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.results.in_vain()
    }
}
