//! A second process that floods the coordinator with junk, from addresses that no device has: bytes that are no HTTP/2, connections
//! that say nothing, and every call with contents that are nobody's, some of them in a device's name and for the round at hand.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use unisono::local::TASK;
use unisono::protocol::params::RoundParams;
use unisono::protocol::proto::{ClientMessage, Signed, client_message::Step};
use unisono::wire::MAX_MESSAGE_LEN;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::*;

use crate::world::World;

/// Address of the coordinator, in the second process.
pub const TARGET: &str = "UNISONO_SOAK_FLOOD";
const SEED: &str = "UNISONO_SOAK_FLOOD_SEED";
const COUNTS: &str = "UNISONO_SOAK_FLOOD_COUNTS";
const CLIENTS: &str = "UNISONO_SOAK_FLOOD_CLIENTS";

/// Addresses from which it comes.
const SOURCES: u8 = 8;
/// Tasks that make calls, and those that make connections.
const CALLERS: u64 = 8;
const CONNECTORS: u64 = 4;
/// Each pauses so long in between, at most: the flood is to press the service, not to take the processor from it.
const PAUSE_MS: u64 = 12;
/// Calls that wait for a round after one that there is not yet, as if the coordinator's state had gone back.
const LIARS: u64 = 12;
/// Silent connections that are held, unless set.
const HELD: usize = 240;

type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// The second process's command.
pub fn command(world: &World, seed: u64) -> (Command, PathBuf) {
    let counts = world.path("flood.json");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let clients: Vec<String> = world.client_ids().iter().map(hex::encode).collect();
    command.args(["--exact", "flood", "--ignored", "--nocapture"]).env(TARGET, world.address.to_string());
    command.env(SEED, seed.to_string()).env(COUNTS, &counts).env(CLIENTS, clients.join(","));
    (command, counts)
}

/// What the flood has counted so far: attempts by kind, and answers.
pub fn counts(path: &Path) -> BTreeMap<String, u64> {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Runs in the second process until it is killed.
pub fn run(target: SocketAddr) {
    let variable = |name| std::env::var(name).unwrap();
    let seed: u64 = variable(SEED).parse().unwrap();
    let clients: Vec<Vec<u8>> = variable(CLIENTS).split(',').map(|id| hex::decode(id).unwrap()).collect();
    let (counts, path) = (Counts::default(), variable(COUNTS));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for i in 0..CALLERS {
            let rng = ChaCha8Rng::seed_from_u64(seed ^ (i + 1) << 32);
            tokio::spawn(
                Caller { target, rng, counts: counts.clone(), clients: clients.clone(), round: Vec::new() }.run(),
            );
        }
        for i in 0..LIARS {
            tokio::spawn(lie_for_ever(target, ChaCha8Rng::seed_from_u64(seed ^ (i + 201) << 32), counts.clone()));
        }
        for i in 0..CONNECTORS {
            let rng = ChaCha8Rng::seed_from_u64(seed ^ (i + 101) << 32);
            tokio::spawn(connect_for_ever(target, rng, counts.clone()));
        }
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let text = serde_json::to_vec(&*counts.lock().unwrap()).unwrap();
            unisono::files::replace(Path::new(&path), &text).unwrap();
        }
    });
}

fn source(rng: &mut ChaCha8Rng) -> IpAddr {
    Ipv4Addr::new(127, 0, 2, 1 + rng.random_range(0..SOURCES)).into()
}

fn count(counts: &Counts, what: &str) {
    *counts.lock().unwrap().entry(what.into()).or_default() += 1;
}

fn junk(rng: &mut ChaCha8Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

async fn pause(rng: &mut ChaCha8Rng) {
    let pause = rng.random_range(0..=PAUSE_MS);
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// Waits for a round after the last one of all.
async fn lie_for_ever(target: SocketAddr, mut rng: ChaCha8Rng, counts: Counts) {
    loop {
        count(&counts, "lie about the round");
        let endpoint = Endpoint::from_shared(format!("http://{target}")).unwrap().local_address(Some(source(&mut rng)));
        if let Ok(channel) = endpoint.connect().await {
            let after_round = [u64::MAX, i64::MAX as u64, 1 << 40, 1_000_000][rng.random_range(0..4)];
            let request = GetRoundRequest { task: TASK.into(), after_round, wait_ms: 20_000, ..Default::default() };
            let _ = CoordinatorClient::new(channel).get_round(request).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Connections that say nothing, half a preface or a whole one, or junk.
async fn connect_for_ever(target: SocketAddr, mut rng: ChaCha8Rng, counts: Counts) {
    let mut held: Vec<TcpStream> = Vec::new();
    let most = crate::variable("UNISONO_SOAK_HELD").unwrap_or(HELD);
    loop {
        pause(&mut rng).await;
        let socket = TcpSocket::new_v4().unwrap();
        let _ = socket.bind((source(&mut rng), 0).into());
        let connected = tokio::time::timeout(Duration::from_secs(2), socket.connect(target)).await;
        let Ok(Ok(mut stream)) = connected else {
            count(&counts, "no connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let kind = rng.random_range(0..5);
        let bytes = match kind {
            0 => junk(&mut rng, 4096),
            1 => [&preface[..], &junk(&mut rng, 16 << 10)].concat(),
            2 => preface[..rng.random_range(0..=preface.len())].to_vec(),
            // With settings: a good beginning, and no call.
            3 => [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat(),
            _ => Vec::new(),
        };
        count(&counts, ["junk bytes", "junk frames", "half a preface", "idle connection", "silent connection"][kind]);
        let _ = stream.write_all(&bytes).await;
        if kind < 2 {
            let mut answer = [0; 256];
            let _ = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut answer)).await;
            continue;
        }
        held.push(stream);
        if held.len() > most / CONNECTORS as usize {
            let gone = rng.random_range(0..held.len());
            drop(held.swap_remove(gone));
        }
    }
}

/// Makes calls that are good gRPC, and whose contents are not.
struct Caller {
    target: SocketAddr,
    rng: ChaCha8Rng,
    counts: Counts,
    clients: Vec<Vec<u8>>,
    /// Id of the round at hand, as anybody may ask.
    round: Vec<u8>,
}

impl Caller {
    async fn run(mut self) {
        loop {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.target)).unwrap();
            let endpoint = endpoint.local_address(Some(source(&mut self.rng))).timeout(Duration::from_secs(3));
            let Ok(channel) = endpoint.connect().await else {
                count(&self.counts, "no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let mut stub = CoordinatorClient::new(channel).max_encoding_message_size(4 * MAX_MESSAGE_LEN);
            for _ in 0..self.rng.random_range(1..400) {
                pause(&mut self.rng).await;
                if !self.call(&mut stub).await {
                    break;
                }
            }
        }
    }

    /// One call; whether the connection is still good.
    async fn call(&mut self, stub: &mut CoordinatorClient<Channel>) -> bool {
        let kind = self.rng.random_range(0..8);
        let what =
            ["get_round", "submit", "poll", "upload_status", "upload", "get_model", "get_release", "grant"][kind];
        count(&self.counts, what);
        let result = match kind {
            0 => self.get_round(stub).await,
            1 => stub.submit(self.message()).await.map(drop),
            2 => {
                let (round_id, client_id) = (self.round(), self.client());
                let phase = self.rng.random_range(-1..8);
                stub.poll(PollRequest { round_id, client_id, phase, wait_ms: 50 }).await.map(drop)
            }
            3 => {
                let (round_id, client_id) = (self.round(), self.client());
                stub.get_upload_status(UploadStatusRequest { round_id, client_id }).await.map(drop)
            }
            4 => {
                let chunks: Vec<UploadChunk> = (0..self.rng.random_range(0..4)).map(|_| self.chunk()).collect();
                stub.upload(tokio_stream::iter(chunks)).await.map(drop)
            }
            5 => {
                let version = [0, 1, u64::MAX, self.rng.random()][self.rng.random_range(0..4)];
                match stub.get_model(GetModelRequest { task: TASK.into(), version, ..Default::default() }).await {
                    // One that is read, and one that is not.
                    Ok(response) if self.rng.random() => response.into_inner().message().await.map(drop),
                    other => other.map(drop),
                }
            }
            6 => stub.get_release(GetReleaseRequest { model_id: TASK.into(), ..Default::default() }).await.map(drop),
            _ => {
                let body = GrantRequestBody {
                    client_id: self.client(),
                    header_hash: junk(&mut self.rng, 32),
                    release_key: junk(&mut self.rng, 1200),
                    requested_at: self.rng.random(),
                };
                let request = Signed { payload: body.encode_to_vec(), signature: junk(&mut self.rng, 4000) };
                stub.request_grant(GrantRequest { request: Some(request) }).await.map(drop)
            }
        };
        let code = result.err().map_or("Ok".to_owned(), |status: Status| format!("{:?}", status.code()));
        count(&self.counts, &format!("answer {code}"));
        !matches!(code.as_str(), "Unknown" | "Cancelled")
    }

    async fn get_round(&mut self, stub: &mut CoordinatorClient<Channel>) -> Result<(), Status> {
        let after_round = [0, u64::MAX, self.rng.random_range(0..1000)][self.rng.random_range(0..3)];
        let response = stub
            .get_round(GetRoundRequest { task: TASK.into(), after_round, wait_ms: 50, ..Default::default() })
            .await?;
        let params = response.into_inner().offer.and_then(|offer| offer.params);
        if let Some(params) = params.and_then(|params| RoundParams::from_payload(&params.payload).ok()) {
            self.round = params.round_id.to_vec();
        }
        Ok(())
    }

    /// The round at hand, or any.
    fn round(&mut self) -> Vec<u8> {
        if self.rng.random_bool(0.8) { self.round.clone() } else { junk(&mut self.rng, 40) }
    }

    /// A device, or nobody.
    fn client(&mut self) -> Vec<u8> {
        if self.rng.random_bool(0.8) {
            self.clients[self.rng.random_range(0..self.clients.len())].clone()
        } else {
            junk(&mut self.rng, 20)
        }
    }

    fn message(&mut self) -> ClientMessage {
        let most = if self.rng.random_bool(0.05) { 2 * MAX_MESSAGE_LEN } else { 20_000 };
        let signed = Signed { payload: junk(&mut self.rng, most), signature: junk(&mut self.rng, 4000) };
        let step = match self.rng.random_range(0..5) {
            0 => Some(Step::Advert(signed)),
            1 => Some(Step::Upload(signed)),
            2 => Some(Step::Endorsement(signed)),
            3 => Some(Step::Advert(Signed::default())),
            _ => None,
        };
        ClientMessage { round_id: self.round(), client_id: self.client(), step }
    }

    fn chunk(&mut self) -> UploadChunk {
        UploadChunk {
            round_id: self.round(),
            client_id: self.client(),
            upload_hash: junk(&mut self.rng, 32),
            index: self.rng.random_range(0..20),
            data: junk(&mut self.rng, 4096),
        }
    }
}
