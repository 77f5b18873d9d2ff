//! No device, no stranger and no operator's slip ends a task or loses a device: over real gRPC, with real devices.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::task::JoinSet;
use unisono::client::{Client, Declined, Error, Event, Retry, Summary, TrainError, Trainer, TrainingRound, Update};
use unisono::coordinator::{Config, Coordinator, Event as Happened};
use unisono::crypto::kdf::label;
use unisono::crypto::ring::RingVector;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::RoundId;
use unisono::protocol::client::{Session, Trust};
use unisono::protocol::keyfile::{self, DeviceKeys, Role};
use unisono::protocol::params::RoundParams;
use unisono::protocol::policy::{MemoryRecord, Policy};
use unisono::protocol::proto::{self, client_message::Step};
use unisono::protocol::server::{Phase, place_in_draw};
use unisono::protocol::signed;
use unisono::registrar::{Issue, Registrar};
use unisono::wire::proto::get_round_response::State;
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::{GetRoundRequest, GetRoundResponse, PollRequest, RoundPhase, TaskFinished, UploadChunk};

#[path = "../deployed/mod.rs"]
#[allow(dead_code)]
mod deployed;
#[path = "../adversary/proxy.rs"]
#[allow(dead_code)]
mod proxy;

mod fleet;
mod leaving;
mod operator;
mod process;
mod state;
mod sums;

use deployed::{Raw, all, builder, constant, deployment, devices, finished, free_port, reason};
use proxy::{Lie, Proxy};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// The next round that ends without a sum: its number and why.
async fn aborted(events: &mut Receiver<Happened>) -> (u64, String) {
    loop {
        match events.recv().await.unwrap() {
            Happened::RoundAborted { round, reason, .. } => return (round, reason),
            Happened::RoundFinished(result) => panic!("round {} has a sum", result.round),
            _ => {}
        }
    }
}

/// Number of the next round that is opened.
async fn opened(events: &mut Receiver<Happened>) -> u64 {
    loop {
        if let Happened::RoundOpened { round, .. } = events.recv().await.unwrap() {
            return round;
        }
    }
}
