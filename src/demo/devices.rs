//! The demo's clients, and who of them vanishes when. A client that vanishes is dropped with its connection in the middle of
//! a phase, and comes back, with the same keys and record, when the round is over.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use unisono::client::{Client, Error, Event, Traffic};
use unisono::coordinator::Event as Happened;
use unisono::crypto::ring::RingVector;
use unisono::examples::Examples;
use unisono::local::{Deployment, TASK};
use unisono::protocol::ClientId;
use unisono::protocol::policy::Policy;
use unisono::protocol::server::Phase;
use unisono::softmax::{Sgd, SoftmaxTrainer};

use super::Args;
use super::summary::Bytes;

/// What the demo sees in the clients, and no coordinator could.
#[derive(Default)]
pub struct Ledger(Mutex<Content>);

#[derive(Default)]
struct Content {
    inputs: HashMap<(u64, ClientId), RingVector>,
    traffic: BTreeMap<u64, Vec<Traffic>>,
    vanished: BTreeMap<&'static str, usize>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client's encoded update.
    pub fn input(&self, round: u64, client: ClientId) -> Option<RingVector> {
        self.lock().inputs.get(&(round, client)).cloned()
    }

    /// Mean bytes of the clients that completed each round up to `last`, for those rounds that somebody completed.
    pub fn traffic(&self, last: u64) -> Vec<Bytes> {
        let content = self.lock();
        (1..=last).filter_map(|round| content.traffic.get(&round).map(|all| Bytes::mean(all))).collect()
    }

    /// How often a client vanished, by phase.
    pub fn vanished(&self) -> BTreeMap<&'static str, usize> {
        self.lock().vanished.clone()
    }

    fn note(&self, client: ClientId, event: &Event<'_>) {
        match event {
            Event::Encoded { round, vector } => {
                self.lock().inputs.insert((*round, client), (*vector).clone());
            }
            Event::Completed { round, traffic } => self.lock().traffic.entry(*round).or_default().push(**traffic),
            _ => {}
        }
    }
}

/// Who vanishes in a round, and in which phase; a function of the seed.
fn fates(args: &Args, round: u64) -> BTreeMap<u32, Phase> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut clients: Vec<u32> = (0..args.clients).collect();
    clients.shuffle(&mut rng);
    let gone = (args.drop * f64::from(args.clients) + 1e-9) as usize;
    let first = rng.random_range(0..Phase::ALL.len());
    clients.into_iter().take(gone).enumerate().map(|(i, u)| (u, Phase::ALL[(first + i) % Phase::ALL.len()])).collect()
}

/// The running clients.
pub struct Devices(JoinSet<Result<(), Error>>);

impl Devices {
    pub fn start(
        args: &Args,
        endpoint: &str,
        setup: &Deployment,
        parts: Vec<Examples>,
        sgd: Sgd,
        ledger: Arc<Ledger>,
        mut events: broadcast::Receiver<Happened>,
    ) -> Self {
        // Number of rounds that are over.
        let (over, rounds_over) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                match events.recv().await {
                    Ok(Happened::RoundAborted { round, .. }) => over.send_replace(round),
                    Ok(Happened::RoundFinished(result)) => over.send_replace(result.round),
                    Ok(Happened::TrainingFinished { .. }) | Err(broadcast::error::RecvError::Closed) => {
                        over.send_replace(u64::MAX);
                        return Ok(());
                    }
                    _ => 0,
                };
            }
        });
        for (i, examples) in (0..args.clients).zip(parts) {
            // Rounds follow each other at once.
            let policy = Policy { n_min: setup.n_min, min_interval_s: 0, ..Policy::default() };
            let device = Device {
                number: i,
                args: args.clone(),
                endpoint: endpoint.to_owned(),
                policy,
                examples,
                sgd,
                ledger: ledger.clone(),
                rounds_over: rounds_over.clone(),
                registrar: setup.registrar.clone(),
                state: setup.device_state(i),
                keys: setup.device_keys(i).to_text().to_string().into(),
            };
            tasks.spawn(device.live());
        }
        Self(tasks)
    }

    /// Waits until every client has heard that the task is finished.
    pub async fn finish(mut self) -> Result<()> {
        while let Some(result) = self.0.join_next().await {
            result??;
        }
        Ok(())
    }
}

struct Device {
    number: u32,
    args: Args,
    endpoint: String,
    policy: Policy,
    examples: Examples,
    sgd: Sgd,
    ledger: Arc<Ledger>,
    rounds_over: watch::Receiver<u64>,
    registrar: unisono::crypto::sign::VerifyingKey,
    state: std::path::PathBuf,
    keys: zeroize::Zeroizing<String>,
}

impl Device {
    /// Runs the client, again and again when it vanishes, until the task is finished.
    async fn live(mut self) -> Result<(), Error> {
        loop {
            let gone = Arc::new(Notify::new());
            let at = Arc::new(Mutex::new(0));
            let mut client = self.client(gone.clone(), at.clone()).await?;
            tokio::select! {
                biased;
                () = gone.notified() => {}
                result = client.run() => return result.map(|_| ()),
            }
            drop(client);
            let round = *at.lock().unwrap_or_else(PoisonError::into_inner);
            if self.rounds_over.wait_for(|&over| over >= round).await.is_err() {
                return Ok(());
            }
        }
    }

    /// A client that tells `gone` when its time has come, after it has noted the round in `at`.
    async fn client(&self, gone: Arc<Notify>, at: Arc<Mutex<u64>>) -> Result<Client, Error> {
        loop {
            let keys = unisono::protocol::keyfile::DeviceKeys::from_text(&self.keys).expect("the demo wrote this text");
            let (id, number, args) = (keys.client_id, self.number, self.args.clone());
            let (ledger, gone, at) = (self.ledger.clone(), gone.clone(), at.clone());
            let observe = move |event: &Event<'_>| {
                ledger.note(id, event);
                if let Event::Phase { round, phase } = event
                    && fates(&args, *round).get(&number) == Some(phase)
                {
                    *at.lock().unwrap_or_else(PoisonError::into_inner) = *round;
                    *ledger.lock().vanished.entry(phase.name()).or_default() += 1;
                    gone.notify_one();
                }
            };
            let trainer =
                SoftmaxTrainer::new(self.examples.clone(), self.sgd, self.args.seed ^ u64::from(number) << 32);
            let builder = Client::builder(&self.endpoint, TASK, keys)
                .registrar(self.registrar.clone())
                .policy(self.policy.clone())
                .state_dir(&self.state)
                .max_failures(1000)
                .on_event(observe);
            match builder.build(trainer) {
                // The vanished client's last blocking call may still hold the record for a moment.
                Err(Error::Record(unisono::client::RecordFileError::InUse { .. })) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }
}
