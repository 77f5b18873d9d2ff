//! `unisono demo`: a registrar, a coordinator on a loopback port and clients that talk gRPC to it, on the bundled digits.
//!
//! Everything is real: keys and roster are files, clients are SDK clients with durable records, and those that vanish drop
//! their connection in the middle of a phase. What only a demo can do, holding every client's input in one process, is used
//! to check that each sum is exact.

mod devices;
mod summary;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use getrandom::SysRng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_core::UnwrapErr;
use tokio::sync::broadcast::error::RecvError;
use unisono::client::Client;
use unisono::coordinator::{Coordinator, Event, RoundResult};
use unisono::crypto::ring::RingVector;
use unisono::examples::Examples;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::softmax::{Sgd, Softmax};
use unisono::wire::model::Model;

use devices::{Devices, Ledger};
use summary::{ReleaseCheck, Round, Summary};
use view::View;

/// Trains a digit recogniser over many clients whose data stays with them, in malicious mode, while some of them vanish.
///
/// Each round's sum is compared with the survivors' plaintext sum, the model with one trained centrally, and the released
/// model is opened by an enrolled client and refused to a stranger.
#[derive(clap::Args, Clone)]
pub struct Args {
    /// Clients, 5 to 500.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=500))]
    clients: u32,
    /// Rounds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Fraction of the clients that vanish in each round, spread over the phases.
    #[arg(long, default_value_t = 0.2)]
    drop: f64,
    /// Passes over its own examples that a client makes in a round.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    epochs: u32,
    /// Seed of the data's split and of who vanishes when. Keys and masks come from the operating system all the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON summary to standard output; the live view goes to standard error.
    #[arg(long)]
    json: bool,
}

/// Fraction of the examples that no client has.
const HELD_OUT: f64 = 0.2;
/// Largest difference to the centrally trained model.
const ACCURACY_GAP: f32 = 0.01;

pub fn run(args: Args) -> Result<()> {
    if !(0.0..=0.4).contains(&args.drop) {
        bail!("--drop is {}; a fraction from 0 to 0.4 can be withstood: with more, no threshold is left", args.drop);
    }
    let summary = tokio::runtime::Runtime::new()?.block_on(play(&args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    let failures = summary.failures(ACCURACY_GAP);
    if !failures.is_empty() {
        bail!("the demo's checks failed: {}", failures.join("; "));
    }
    Ok(())
}

async fn play(args: &Args) -> Result<Summary> {
    let began = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let digits = Examples::digits()?;
    let (training, held_out) = digits.split(HELD_OUT, &mut rng);
    let parts = training.deal(args.clients as usize, &mut rng);
    let sgd = Sgd { epochs: args.epochs as usize, ..Sgd::default() };

    let view = View::new(args);
    view.line(format!(
        "unisono demo: {} clients hold {} handwritten digits ({} to {} each), {} more are held out; malicious mode, seed {}",
        args.clients,
        training.len(),
        parts.iter().map(Examples::len).min().unwrap_or(0),
        parts.iter().map(Examples::len).max().unwrap_or(0),
        held_out.len(),
        args.seed
    ));
    let max_examples = parts.iter().map(Examples::len).max().unwrap_or(1);
    let plan = Plan { clients: args.clients, rounds: args.rounds, delta: args.drop, max_examples };
    let setup = Deployment::make(&plan)?;
    view.line(format!(
        "registrar: roster of epoch 1 with {} devices; coordinator: sums of at least {} clients, {:.0} % may vanish",
        args.clients,
        setup.n_min,
        100.0 * args.drop
    ));
    let mut coordinator = Coordinator::start(setup.config.clone()).await?;
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let ledger = Arc::new(Ledger::default());
    let devices = Devices::start(args, &endpoint, &setup, parts, sgd, ledger.clone(), coordinator.events());

    let mut rounds = Vec::new();
    let (mut missing, mut aborted, mut trained) = (BTreeMap::new(), 0u64, false);
    let release = loop {
        let event = tokio::select! {
            event = events.recv() => event,
            result = coordinator.trained(), if !trained => {
                result?;
                trained = true;
                continue;
            }
        };
        match event {
            Ok(Event::RoundOpened { round, .. }) => {
                missing = BTreeMap::new();
                view.round(round);
            }
            Ok(Event::Progress { round, phase, answered, expected }) => view.progress(round, phase, answered, expected),
            Ok(Event::PhaseClosed { phase, missing: gone, .. }) => {
                if !gone.is_empty() {
                    missing.insert(phase.name(), gone.len());
                }
            }
            Ok(Event::RoundFinished(result)) => {
                let round = finished(&result, &ledger, &held_out, missing.clone())?;
                view.finished(&round);
                rounds.push(round);
            }
            Ok(Event::RoundAborted { round, reason, .. }) => {
                aborted += 1;
                view.line(format!("round {round}: no sum, nothing learned ({reason})"));
                if aborted > 2 * args.rounds {
                    bail!("{aborted} rounds were aborted, the last one because {reason}");
                }
            }
            Ok(Event::Released { version, length, .. }) => break (version, length),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => bail!("the coordinator stopped before it released the model"),
        }
    };
    devices.finish().await?;
    for (round, traffic) in rounds.iter_mut().zip(ledger.traffic(args.rounds + aborted)) {
        round.bytes_per_client = traffic;
    }

    // The same model, trained on all the data in one place.
    let mut central = Softmax::zeros(digits.columns(), digits.classes());
    central.train(&training, &Sgd { epochs: sgd.epochs * args.rounds as usize, ..sgd }, &mut rng);
    let central_accuracy = central.evaluate(&held_out).1;
    let release = check_release(&endpoint, &setup, release, &ledger).await;
    coordinator.stop().await;
    let summary = Summary::new(args, setup.n_min, rounds, aborted, central_accuracy, release, began.elapsed());
    view.end(&summary);
    Ok(summary)
}

/// What came of a round, with its sum compared to the survivors' inputs.
fn finished(
    result: &RoundResult,
    ledger: &Ledger,
    held_out: &Examples,
    missing: BTreeMap<&'static str, usize>,
) -> Result<Round> {
    let mut expected = RingVector::zeros(result.params.modulus, result.params.vector_len());
    let mut known = 0;
    for client in &result.outcome.survivors {
        if let Some(input) = ledger.input(result.round, *client) {
            expected.add_assign(&input)?;
            known += 1;
        }
    }
    let exact_sum = known == result.outcome.survivors.len() && expected == result.outcome.sum;
    let softmax =
        Softmax::from_model(&Model::from_safetensors(&result.model)?).context("the model changed its shape")?;
    let (loss, accuracy) = softmax.evaluate(held_out);
    Ok(Round {
        round: result.round,
        cohort: result.outcome.cohort.len(),
        survivors: result.outcome.survivors.len(),
        missing,
        accuracy,
        loss,
        clients_loss: result.aggregate.metrics[0],
        exact_sum,
        bytes_per_client: Default::default(),
        seconds: result.seconds.iter().map(|(phase, seconds)| (phase.name(), *seconds)).collect(),
    })
}

/// Opens the release as an enrolled device, and tries it as a stranger.
async fn check_release(
    endpoint: &str,
    setup: &Deployment,
    (version, length): (u64, usize),
    ledger: &Ledger,
) -> ReleaseCheck {
    let open = async |keys: DeviceKeys| {
        let nothing = |_: &unisono::client::TrainingRound| Err("this client only opens releases".into());
        let client = Client::builder(endpoint, TASK, keys).registrar(setup.registrar.clone()).build(nothing);
        client?.open_release(TASK, 1 << 20).await
    };
    let opened = open(setup.device_keys(0)).await;
    let stranger = open(DeviceKeys::generate(&mut UnwrapErr(SysRng))).await;
    ReleaseCheck {
        version,
        bytes: length,
        opened_by_enrolled: opened.is_ok(),
        refused_to_stranger: stranger.err().map(|error| error.to_string()),
        open_error: opened.err().map(|error| error.to_string()),
        vanished: ledger.vanished(),
    }
}
