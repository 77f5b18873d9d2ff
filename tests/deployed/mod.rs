//! A real coordinator with five enrolled devices, in this process: shared by the tests that go over gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;
use unisono::client::{Client, ClientBuilder, Error, Retry, Summary, TrainingRound, Update};
use unisono::coordinator::{Event as Happened, RoundResult};
use unisono::crypto::kdf::label;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::policy::Policy;
use unisono::protocol::proto::{Advert, ClientMessage, client_message::Step};
use unisono::protocol::signed;
use unisono::wire::proto::GetRoundRequest;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::get_round_response::State;
use unisono::wire::{MAX_MESSAGE_LEN, REASON_KEY};

pub const CLIENTS: u32 = 5;

/// A port that is free on every address. It is none of those that the system gives out by itself, one of which another test may have got
/// before this one is listened on.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let place = std::process::id().wrapping_mul(61).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (place % 20_000) as u16;
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

pub fn deployment(rounds: u64) -> Deployment {
    let mut deployment = Deployment::make(&Plan { clients: CLIENTS, rounds, delta: 0.2, max_examples: 10 }).unwrap();
    // Several chunks of 650 elements; phases that wait for all who live, on a busy machine, too.
    (deployment.config.round.chunk_elements, deployment.config.round.straggler_grace_ms) = (64, Some(1_500));
    deployment
}

/// An update that tells the device apart.
pub fn constant(i: u32) -> impl FnMut(&TrainingRound) -> Result<Update, unisono::client::TrainError> + Send + 'static {
    move |round: &TrainingRound| {
        let update = vec![0.01 * (i + 1) as f32; round.model.values().len()];
        Ok(Update { update, weight: 1.0, metrics: vec![1.0, 0.5] })
    }
}

pub fn builder(deployment: &Deployment, endpoint: &str, i: u32) -> ClientBuilder {
    let retry = Retry { max_pause: Duration::from_millis(300), ..Retry::default() };
    Client::builder(endpoint, TASK, deployment.device_keys(i))
        .registrar(deployment.registrar.clone())
        // Rounds follow each other at once.
        .policy(Policy { n_min: deployment.n_min, min_interval_s: 0, ..Policy::default() })
        .state_dir(deployment.device_state(i))
        .retry(retry)
}

/// Honest devices with the given numbers.
pub fn devices(
    deployment: &Deployment,
    endpoint: &str,
    which: std::ops::Range<u32>,
) -> JoinSet<Result<Summary, Error>> {
    let mut set = JoinSet::new();
    for i in which {
        let mut client = builder(deployment, endpoint, i).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    set
}

pub async fn all(mut devices: JoinSet<Result<Summary, Error>>) -> Vec<Summary> {
    let mut summaries = Vec::new();
    while let Some(result) = devices.join_next().await {
        summaries.push(result.unwrap().unwrap());
    }
    summaries
}

/// The next round that is finished.
pub async fn finished(events: &mut tokio::sync::broadcast::Receiver<Happened>) -> Arc<RoundResult> {
    loop {
        match events.recv().await.unwrap() {
            Happened::RoundFinished(result) => return result,
            Happened::RoundAborted { reason, .. } => panic!("aborted: {reason}"),
            _ => {}
        }
    }
}

pub fn reason(status: &Status) -> &str {
    status.metadata().get(REASON_KEY).map_or("", |value| value.to_str().unwrap())
}

/// A client made of raw calls, for what the SDK would never send.
pub struct Raw {
    pub stub: CoordinatorClient<Channel>,
    pub keys: DeviceKeys,
    pub round_id: Vec<u8>,
}

impl Raw {
    pub async fn join(endpoint: &str, keys: DeviceKeys) -> Self {
        let channel = Channel::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap();
        let mut stub = CoordinatorClient::new(channel).max_encoding_message_size(2 * MAX_MESSAGE_LEN);
        let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 10_000, ..Default::default() };
        let response = stub.get_round(request).await.unwrap().into_inner();
        assert_eq!(response.state, State::Open as i32);
        let params = response.offer.unwrap().params.unwrap();
        let round_id = unisono::protocol::params::RoundParams::from_payload(&params.payload).unwrap().round_id;
        Self { stub, keys, round_id: round_id.to_vec() }
    }

    pub fn message(&self, step: Step) -> ClientMessage {
        ClientMessage { round_id: self.round_id.clone(), client_id: self.keys.client_id.to_vec(), step: Some(step) }
    }

    pub async fn submit(&mut self, message: ClientMessage) -> Result<bool, Status> {
        self.stub.submit(message).await.map(|response| response.into_inner().repeat)
    }

    /// An advert with keys of its own.
    pub fn advert(&self) -> ClientMessage {
        let key = || DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng)).release_key.encapsulation_key();
        let advert = Advert {
            round_id: self.round_id.clone(),
            client_id: self.keys.client_id.to_vec(),
            mask_ek: key().as_bytes().to_vec(),
            channel_ek: key().as_bytes().to_vec(),
            self_mask_commitment: vec![7; 32],
        };
        self.message(Step::Advert(signed::sign(&advert, label::SIG_ADVERT, Some(&self.keys.signing_key))))
    }
}
