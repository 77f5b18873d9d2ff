//! Federated learning on the bundled digits, every round through the real protocol in this process: server and client
//! algorithms on uneven data, what quantisation costs, and accuracy against epsilon.
//!
//! `cargo run --release --example simulate_learning -- --plot plots`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use unisono::coordinator::learning::{Moments, OptimizerConfig, step};
use unisono::examples::Examples;
use unisono::federation::{DIMENSION, Federation, deal_digits};
use unisono::plot::{Curves, Intervals, Picture, Scale, draw};
use unisono::protocol::degree::SecurityMode;
use unisono::protocol::encoding::{Aggregate, Quantiser, Rounding};
use unisono::sim::{Dropout, Learned, Observer, RoundReport, Simulation, Update, updates};
use unisono::softmax::Sgd;

/// Learns the digits with many small settings, and compares them.
#[derive(Parser)]
struct Args {
    /// Devices
    #[arg(short = 'n', long, default_value_t = 60)]
    clients: u32,
    /// Rounds of each run
    #[arg(long, default_value_t = 15)]
    rounds: u64,
    /// Concentration of the Dirichlet split: the smaller, the fewer digits a device has
    #[arg(long, default_value_t = 0.3)]
    alpha: f64,
    /// Passes over a device's examples in a round
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Learning rate of the devices
    #[arg(long, default_value_t = 0.1)]
    learning_rate: f32,
    /// Strength of FedProx's proximal term
    #[arg(long, default_value_t = 0.3)]
    proximal: f32,
    /// Learning rate of FedAdam on the server
    #[arg(long, default_value_t = 0.1)]
    adam_rate: f32,
    /// Bits of a quantised element that are compared with floating-point numbers
    #[arg(long, value_delimiter = ',', default_values_t = [8, 12, 16, 20])]
    bits: Vec<u32>,
    /// Noise multipliers of the runs with differential privacy
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 1.0, 2.0, 4.0, 8.0])]
    noise: Vec<f64>,
    /// L2 bound of an update in these runs
    #[arg(long, default_value_t = 1.0)]
    l2_clip: f32,
    /// The delta for which epsilon is told
    #[arg(long, default_value_t = 1e-4)]
    privacy_delta: f64,
    /// Fraction of the devices that share keys and then vanish in each round
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Signatures, roster and consistency check in every round: the same sums, at several times the computing
    #[arg(long)]
    malicious: bool,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Writes one line for each run and round to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draws the curves as PNG and SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

/// How one run learns.
#[derive(Clone)]
struct Setting {
    group: &'static str,
    name: String,
    optimizer: OptimizerConfig,
    proximal: f32,
    /// `None` for the mean of the updates in floating-point numbers, without the protocol.
    quantiser: Option<Quantiser>,
    /// Noise multiplier.
    noise: Option<f64>,
}

/// What one run came to after one round.
#[derive(Debug, Clone, Serialize)]
struct Line {
    group: &'static str,
    run: String,
    round: u64,
    survivors: usize,
    /// Of the model on held-out digits.
    accuracy: f32,
    loss: f32,
    /// Of all rounds so far; absent without noise.
    epsilon: Option<f64>,
    /// Why the round gave no sum.
    abort: Option<String>,
}

/// The mean of all devices' updates in floating-point numbers.
fn float_mean(federation: &Federation, round: u64) -> Vec<f32> {
    let updates: Vec<Update> = (0..federation.devices()).map(|client| federation.update(client, round)).collect();
    let total: f64 = updates.iter().map(|update| f64::from(update.weight)).sum();
    let element = |i: usize| {
        let sum: f64 = updates.iter().map(|u| f64::from(u.weight) * f64::from(u.values[i])).sum();
        (sum / total) as f32
    };
    (0..updates[0].values.len()).map(element).collect()
}

/// Applies each round's mean, and writes down how good the model is.
struct Learner<'a> {
    setting: &'a Setting,
    federation: Arc<Federation>,
    moments: Moments,
    lines: Vec<Line>,
}

impl Learner<'_> {
    fn learn(
        &mut self,
        round: u64,
        survivors: usize,
        mean: Option<&[f32]>,
        epsilon: Option<f64>,
        abort: Option<String>,
    ) {
        if let Some(mean) = mean {
            self.federation.step(|values| step(&self.setting.optimizer, &mut self.moments, values, mean));
        }
        let Learned { accuracy, loss } = self.federation.evaluate();
        let (group, run) = (self.setting.group, self.setting.name.clone());
        let epsilon = epsilon.or_else(|| self.lines.last().and_then(|line| line.epsilon));
        self.lines.push(Line { group, run, round, survivors, accuracy, loss, epsilon, abort });
    }
}

impl Observer for Learner<'_> {
    fn round_finished(&mut self, report: &RoundReport, aggregate: Option<&Aggregate>) {
        let mean = aggregate.map(|aggregate| aggregate.mean.as_slice());
        let epsilon = report.privacy.map(|privacy| privacy.total_epsilon);
        self.learn(report.round, report.survivors, mean, epsilon, report.abort.clone());
    }
}

fn settings(args: &Args) -> Vec<Setting> {
    let fedavg = OptimizerConfig::default();
    let fedadam = OptimizerConfig::FedAdam { learning_rate: args.adam_rate, beta1: 0.9, beta2: 0.99, tau: 0.01 };
    let quantiser = |bits, l2_clip: Option<f32>| Quantiser {
        bits,
        clip: l2_clip.unwrap_or(2.0),
        clips: Vec::new(),
        l2_clip,
        max_weight: 1.0, // the largest part's, once the data is dealt
        rounding: Rounding::Stochastic,
        metric_bounds: Vec::new(),
        privacy: None,
        rotation: None,
    };
    let setting = |group, name: String, optimizer, proximal, quantiser, noise| Setting {
        group,
        name,
        optimizer,
        proximal,
        quantiser,
        noise,
    };
    let mut settings = vec![
        setting("algorithm", "FedAvg".into(), fedavg, 0.0, Some(quantiser(16, None)), None),
        setting(
            "algorithm",
            format!("FedProx, mu = {}", args.proximal),
            fedavg,
            args.proximal,
            Some(quantiser(16, None)),
            None,
        ),
        setting("algorithm", "FedAdam".into(), fedadam, 0.0, Some(quantiser(16, None)), None),
        setting("bits", "float, no protocol".into(), fedavg, 0.0, None, None),
    ];
    settings.extend(
        args.bits
            .iter()
            .map(|&bits| setting("bits", format!("{bits} bits"), fedavg, 0.0, Some(quantiser(bits, None)), None)),
    );
    let clipped = Some(quantiser(16, Some(args.l2_clip)));
    settings.push(setting("privacy", "no noise, clipped".into(), fedavg, 0.0, clipped.clone(), None));
    settings.extend(
        args.noise.iter().map(|&z| setting("privacy", format!("z = {z}"), fedavg, 0.0, clipped.clone(), Some(z))),
    );
    settings
}

/// One run: a fresh model, all rounds.
fn run(args: &Args, setting: &Setting, parts: &[Examples], held_out: &Examples) -> anyhow::Result<Vec<Line>> {
    let sgd = Sgd { epochs: args.epochs, batch: 8, learning_rate: args.learning_rate, proximal: setting.proximal };
    // As privacy needs it; the run without noise beside it is weighted alike.
    let equal_weights = setting.group == "privacy";
    let federation = Arc::new(Federation::new(parts.to_vec(), held_out.clone(), sgd, args.seed, equal_weights));
    let mut learner =
        Learner { setting, federation: federation.clone(), moments: Moments::default(), lines: Vec::new() };
    let Some(quantiser) = &setting.quantiser else {
        for round in 1..=args.rounds {
            let mean = float_mean(&federation, round);
            learner.learn(round, parts.len(), Some(&mean), None, None);
        }
        return Ok(learner.lines);
    };
    let source = federation.clone();
    let mode = if args.malicious { SecurityMode::Malicious } else { SecurityMode::SemiHonest };
    let mut builder = Simulation::builder()
        .clients(args.clients)
        .dimension(DIMENSION)
        .mode(mode)
        .quantiser(Quantiser { max_weight: federation.max_weight(), ..quantiser.clone() })
        .dropout(Dropout::constant(args.dropout)?)
        .rounds(args.rounds)
        .seed(args.seed)
        .updates(updates(move |client, round| source.update(client, round)));
    if let Some(multiplier) = setting.noise {
        builder = builder.privacy(multiplier, args.privacy_delta);
    }
    builder.build()?.run(&mut learner)?;
    Ok(learner.lines)
}

/// The last round of each run.
fn last(lines: &[Line]) -> Vec<&Line> {
    let runs: BTreeMap<(&str, &str), &Line> =
        lines.iter().map(|line| ((line.group, line.run.as_str()), line)).collect();
    let mut last: Vec<&Line> = runs.into_values().collect();
    last.sort_by_key(|line| lines.iter().position(|other| (other.group, &other.run) == (line.group, &line.run)));
    last
}

fn table(lines: &[Line]) {
    println!("{:<10} {:<22} {:>6} {:>9} {:>7} {:>9}", "group", "run", "rounds", "accuracy", "loss", "epsilon");
    for line in last(lines) {
        let epsilon = line.epsilon.map_or_else(|| "-".into(), |epsilon| format!("{epsilon:.2}"));
        println!(
            "{:<10} {:<22} {:>6} {:>8.1}% {:>7.3} {:>9}",
            line.group,
            line.run,
            line.round,
            100.0 * line.accuracy,
            line.loss,
            epsilon
        );
    }
    let aborted = lines.iter().filter(|line| line.abort.is_some()).count();
    if aborted > 0 {
        println!("{aborted} rounds gave no sum");
    }
}

fn pictures(args: &Args, lines: &[Line]) -> Vec<(String, Picture)> {
    let about = format!("{} devices, Dirichlet alpha = {}", args.clients, args.alpha);
    let by_round = |group: &str, what: &str| {
        let mut curves = Curves::new();
        for line in lines.iter().filter(|line| line.group == group) {
            curves.entry(line.run.clone()).or_default().push((line.round as f64, f64::from(line.accuracy)));
        }
        let title = format!("{what}: {about}");
        Picture::Curves {
            title,
            x: ("round", Scale::Linear),
            y: ("accuracy on held-out digits", Scale::Linear),
            curves,
            modelled: Curves::new(),
            intervals: Intervals::new(),
        }
    };
    let mut against: Vec<(f64, f64)> = last(lines)
        .into_iter()
        .filter_map(|line| Some((line.epsilon.filter(|epsilon| epsilon.is_finite())?, f64::from(line.accuracy))))
        .collect();
    against.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut pictures = vec![
        ("accuracy-algorithms".to_owned(), by_round("algorithm", "Algorithms")),
        ("accuracy-bits".to_owned(), by_round("bits", "Quantisation")),
    ];
    if let (Some(first), Some(end)) = (against.first(), against.last()) {
        let exact = lines.iter().rfind(|line| line.group == "privacy" && line.epsilon.is_none());
        let mut curves = Curves::new();
        if let Some(exact) = exact {
            let accuracy = f64::from(exact.accuracy);
            curves.insert("no noise".into(), vec![(first.0, accuracy), (end.0, accuracy)]);
        }
        curves.insert(format!("Skellam noise, {} rounds, delta = {:e}", args.rounds, args.privacy_delta), against);
        let title = format!("Accuracy against epsilon: {about}");
        let y = ("accuracy on held-out digits", Scale::Linear);
        pictures.push((
            "accuracy-epsilon".to_owned(),
            Picture::Curves {
                title,
                x: ("epsilon", Scale::Logarithmic),
                y,
                curves,
                modelled: Curves::new(),
                intervals: Intervals::new(),
            },
        ));
    }
    pictures
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (parts, held_out) = deal_digits(args.clients, args.alpha, args.seed)?;
    let mut lines = Vec::new();
    for setting in settings(&args) {
        // The mean in floating-point numbers knows no drop-outs: beside them it would be another experiment.
        if setting.quantiser.is_none() && args.dropout > 0.0 {
            continue;
        }
        lines.extend(run(&args, &setting, &parts, &held_out).with_context(|| setting.name.clone())?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        table(&lines);
    }
    if let Some(path) = &args.csv {
        let mut writer = csv::Writer::from_path(path).with_context(|| format!("can't write {}", path.display()))?;
        lines.iter().try_for_each(|line| writer.serialize(line))?;
        writer.flush()?;
    }
    if let Some(directory) = &args.plot {
        let mode = if args.malicious { "malicious" } else { "semi-honest" };
        let caption = format!(
            "{} devices, bundled digits, Dirichlet alpha = {}, {} rounds, {} epochs at rate {}, {mode} mode, drop-out {}, seed {}",
            args.clients, args.alpha, args.rounds, args.epochs, args.learning_rate, args.dropout, args.seed
        );
        let drawn = draw(directory, &pictures(&args, &lines), &caption);
        drawn.with_context(|| format!("can't plot into {}", directory.display()))?;
    }
    Ok(())
}
