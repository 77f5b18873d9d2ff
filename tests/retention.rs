//! What is over goes, and nothing that is needed does: quick rounds over gRPC with small limits and kills in between.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;
use unisono::client::{Client, Error, Summary, TrainError, TrainingRound, Update};
use unisono::coordinator::config::{Keep, Privacy, Retention};
use unisono::coordinator::learning::OptimizerConfig;
use unisono::coordinator::storage::{Store, backup};
use unisono::coordinator::{Config, Coordinator, Event, RoundResult};
use unisono::local::{Deployment, TASK};
use unisono::protocol::policy::Policy;
use unisono::protocol::privacy::Accountant;
use unisono::wire::proto::GetModelRequest;
use unisono::wire::proto::coordinator_client::CoordinatorClient;

#[allow(dead_code)]
mod deployed;

use deployed::{CLIENTS, all, builder, constant, deployment, finished, reason};

const DELTA: f64 = 1e-5;

/// Noise, and limits that a few rounds reach.
fn small(rounds: u64) -> Deployment {
    let mut deployment = deployment(rounds);
    let config = &mut deployment.config;
    config.metrics.clear();
    (config.quantiser.l2_clip, config.quantiser.max_weight) = (Some(1.0), 1.0);
    config.privacy = Some(Privacy { noise_multiplier: Some(1.0), epsilon: None, delta: DELTA });
    config.optimizer = OptimizerConfig::FedAdam { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 0.001 };
    let retention = &mut config.retention;
    (retention.models, retention.moments) = (Keep::Newest(3), Keep::Newest(1));
    (retention.finished_rounds, retention.aborted_rounds) = (Keep::Newest(2), Keep::Newest(1));
    deployment
}

/// Devices that send what a round with privacy takes.
fn private_devices(deployment: &Deployment, endpoint: &str) -> tokio::task::JoinSet<Result<Summary, Error>> {
    let mut set = tokio::task::JoinSet::new();
    for i in 0..CLIENTS {
        let train = move |round: &TrainingRound| -> Result<Update, TrainError> {
            let update = vec![1e-3 * (i + 1) as f32; round.model.values().len()];
            Ok(Update { update, weight: 1.0, metrics: Vec::new() })
        };
        let policy = Policy { n_min: deployment.n_min, min_interval_s: 0, ..Policy::default() };
        let mut client: Client = builder(deployment, endpoint, i).policy(policy).build(train).unwrap();
        set.spawn(async move { client.run().await });
    }
    set
}

fn names(folder: &Path) -> Vec<String> {
    let found = std::fs::read_dir(folder).map(|found| found.flatten().map(|e| e.file_name().into_string().unwrap()));
    let mut names: Vec<String> = found.map(Iterator::collect).unwrap_or_default();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// A coordinator with a runtime of its own, which ends with it: no connection outlives it.
struct Life {
    coordinator: Coordinator,
    events: tokio::sync::broadcast::Receiver<Event>,
    runtime: tokio::runtime::Runtime,
}

impl Life {
    async fn start(config: &Config) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = config.clone();
        let starting = runtime.spawn(async move {
            let coordinator = Coordinator::start(config).await.unwrap();
            (coordinator.events(), coordinator)
        });
        let (events, coordinator) = starting.await.unwrap();
        Self { coordinator, events, runtime }
    }

    async fn kill(self) {
        let Self { coordinator, runtime, .. } = self;
        let end = move || {
            runtime.shutdown_timeout(Duration::from_secs(10));
            drop(coordinator);
        };
        tokio::task::spawn_blocking(end).await.unwrap();
    }
}

/// Waits until what is over is deleted: that is done beside the rounds.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..100 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

async fn get_model(endpoint: &str, version: u64) -> Result<Vec<u8>, tonic::Status> {
    let mut stub = CoordinatorClient::connect(endpoint.to_owned()).await.unwrap();
    let mut chunks =
        stub.get_model(GetModelRequest { task: TASK.into(), version, ..Default::default() }).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.extend(chunk.data);
    }
    Ok(bytes)
}

/// Epsilon of these rounds, from the rounds themselves.
fn epsilon(rounds: &[Arc<RoundResult>]) -> f64 {
    let mut account = Accountant::new();
    for round in rounds {
        let survivors = round.outcome.survivors.len() as u32;
        let guarantee = round.params.guarantee_of(survivors, CLIENTS).expect("it has noise");
        account.add(&guarantee, 1);
    }
    account.epsilon(DELTA)
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_come_and_go_and_the_state_folder_stays_as_it_is() {
    let rounds = 12;
    let deployment = small(rounds);
    let state = deployment.config.state_dir.clone();
    let models = state.join("blobs/models").join(TASK);
    // What can't be deleted, since it is no folder, is told and hinders nothing.
    std::fs::create_dir_all(state.join("blobs/uploads")).unwrap();
    std::fs::write(state.join("blobs/uploads/junk"), "").unwrap();
    let mut results = Vec::new();
    let mut life = Life::start(&deployment.config).await;
    let mut restarted = deployment.config.clone();
    restarted.listen = life.coordinator.address();
    let endpoint = format!("http://{}", restarted.listen);
    let set = private_devices(&deployment, &endpoint);
    while results.len() < rounds as usize {
        // Three rounds, and then a kill at whatever it is doing: deleting, or opening the next round.
        let result = tokio::time::timeout(Duration::from_secs(60), finished(&mut life.events)).await;
        results.push(result.expect("no round is finished"));
        if results.len() % 3 == 0 && results.len() < rounds as usize {
            life.kill().await;
            life = Life::start(&restarted).await;
        }
    }
    // Exact, over three restarts and the deletion of ten rounds.
    let spent = results.last().unwrap().privacy.unwrap();
    assert_eq!(spent.total_epsilon, epsilon(&results));
    assert_eq!(results.iter().map(|result| result.model_version).collect::<Vec<_>>(), (1..=rounds).collect::<Vec<_>>());

    until("old models are deleted", || names(&models) == ["10", "11", "12"]).await;
    until("uploads are deleted with their folders", || names(&state.join("blobs/uploads")) == ["junk"]).await;
    assert_eq!(names(&models.join("12")), ["model.safetensors", "moments.safetensors"]);
    until("old moments are deleted", || names(&models.join("11")) == ["model.safetensors"]).await;

    // The current version is the last one learned; a deleted one is nobody's base any more.
    let current = std::fs::read(models.join("12/model.safetensors")).unwrap();
    assert_eq!(current, results.last().unwrap().model);
    let gone = get_model(&endpoint, 1).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone)), (Code::NotFound, "no_such_model"));
    // No device has noticed anything.
    assert_eq!(all(set).await, vec![Summary { completed: rounds, missed: 0, declined: 0 }; CLIENTS as usize]);
    // The release is of the last version, and a device opens it.
    let mut device = builder(&deployment, &endpoint, 0).build(constant(0)).unwrap();
    assert_eq!(*device.open_release(TASK, 1 << 20).await.unwrap().plaintext, current);
    drop(device);
    life.kill().await;

    // Rows: the newest two, and the account of all. No number comes again.
    let store = Store::open(&state).await.unwrap();
    let left = store.ended_rounds(TASK, 0).await.unwrap();
    assert_eq!(left.iter().map(|round| round.number).collect::<Vec<_>>(), [11, 12]);
    let tally = store.tally(TASK).await.unwrap().unwrap();
    assert_eq!((tally.through, tally.exact, tally.discarded), (12, false, 0));
    assert_eq!(Accountant::from_bytes(&tally.spent).unwrap().epsilon(DELTA), epsilon(&results));
    assert_eq!(store.last_round_number(TASK).await.unwrap(), 12);
    store.close().await;
    drop(store);

    // It goes on from there, and from a copy: the initial model is gone, and was the first to go.
    let copy = deployment.folder().join("copy");
    backup(&state, &copy).await.unwrap();
    let mut longer = restarted.clone();
    (longer.state_dir, longer.task.rounds) = (copy, rounds + 1);
    assert!(unisono::coordinator::changes(&longer).await.unwrap().is_empty());
    std::fs::remove_file(&longer.task.initial_model).unwrap();
    let coordinator = Coordinator::start(longer).await.unwrap();
    let mut events = coordinator.events();
    let set = private_devices(&deployment, &endpoint);
    let result = finished(&mut events).await;
    assert_eq!((result.round, result.model_version), (13, 13));
    results.push(result.clone());
    assert_eq!(result.privacy.unwrap().total_epsilon, epsilon(&results));
    drop(set);
    coordinator.stop().await;
}

/// Bytes and files of a folder.
fn size_of(folder: &Path) -> (u64, u64) {
    // What goes meanwhile has none.
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => size_of(&entry.path()),
        data => data.map_or((0, 0), |data| (data.len(), 1)),
    };
    let add = |(a, b): (u64, u64), (c, d)| (a + c, b + d);
    std::fs::read_dir(folder).map_or((0, 0), |found| found.flatten().map(of).fold((0, 0), add))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; docs/benchmarks.md has its figures"]
async fn size_of_the_state_folder_after_50_and_500_rounds() {
    let rows = Keep::Newest(20);
    let few = Retention { finished_rounds: rows, aborted_rounds: rows, ..Retention::default() };
    let all =
        Retention { models: Keep::All, moments: Keep::All, finished_rounds: Keep::All, aborted_rounds: Keep::All };
    for (name, retention) in [("models = 10, finished_rounds = 20", few), ("all is kept", all)] {
        let mut deployment = small(1000);
        deployment.config.retention = retention;
        let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
        let mut events = coordinator.events();
        let set = private_devices(&deployment, &format!("http://{}", coordinator.address()));
        let began = std::time::Instant::now();
        for rounds in [50, 500] {
            while finished(&mut events).await.round < rounds {}
            // What the next round has stored by then is in it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (bytes, files) = size_of(&deployment.config.state_dir);
            let log = std::fs::metadata(deployment.config.state_dir.join("coordinator.sqlite-wal")).unwrap().len();
            let uploads = size_of(&deployment.config.state_dir.join("blobs/uploads")).1;
            println!(
                "{name}: {rounds} rounds, {} kB with {} of the log, {files} files with {uploads} of uploads, {:.0?}",
                bytes / 1000,
                log / 1000,
                began.elapsed()
            );
        }
        drop(set);
        coordinator.stop().await;
    }
}
