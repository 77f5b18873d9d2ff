//! One round in memory: the protocol's two state machines, no network, no disk. Twelve devices, malicious mode; two of them
//! vanish after they have shared their keys.
//!
//! `cargo run --release --example in_memory_round`

use std::error::Error;
use std::sync::Arc;

use getrandom::SysRng;
use rand_core::UnwrapErr;
use unisono::crypto::ring::RingVector;
use unisono::crypto::sign::{Level, SigningKey};
use unisono::protocol::client::{Advertised, Confirmed, Joining, Masked, Shared, Trust};
use unisono::protocol::encoding::{Contribution, modulus_bits};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::policy::{MemoryRecord, Policy};
use unisono::protocol::proto::{self, ServerMessage, server_message::View};
use unisono::protocol::roster::{Roster, release_key_hash};
use unisono::protocol::server::{Authority, Closed, Outcome, Server};

const CLIENTS: u32 = 12;
const VANISH: usize = 2;
const DIMENSION: usize = 1000;
const NOW: u64 = 1_800_000_000;

/// The view that a client is shown, of the kind that its state waits for.
macro_rules! view {
    ($server:expr, $id:expr, $kind:ident) => {
        match $server.view($id) {
            Some(ServerMessage { view: Some(View::$kind(view)) }) => view,
            _ => return Err("the coordinator shows another view".into()),
        }
    };
}

fn next(server: Server) -> Result<Server, Box<dyn Error>> {
    match server.close()? {
        Closed::Next(next) => Ok(*next),
        Closed::Finished(_) => Err("the round is over too early".into()),
    }
}

fn finish(server: Server) -> Result<Outcome, Box<dyn Error>> {
    match server.close()? {
        Closed::Finished(outcome) => Ok(outcome),
        Closed::Next(_) => Err("the round goes on".into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let rng = &mut UnwrapErr(SysRng);

    // The registrar says which devices exist and which coordinator may open rounds.
    let registrar = SigningKey::generate(Level::L65, rng);
    let coordinator = SigningKey::generate(Level::L65, rng);
    let devices: Vec<DeviceKeys> = (0..CLIENTS).map(|_| DeviceKeys::generate(rng)).collect();
    let leaf = |keys: &DeviceKeys| proto::RosterLeaf {
        client_id: keys.client_id.to_vec(),
        identity_key: keys.signing_key.verifying_key().as_bytes().to_vec(),
        release_key_hash: release_key_hash(keys.release_key.encapsulation_key().as_bytes()).to_vec(),
        not_before: NOW,
        not_after: NOW + 86_400,
        attributes: Vec::new(),
    };
    let leaves = devices.iter().map(leaf).collect();
    let roster = Roster::publish(leaves, 1, NOW, &[coordinator.verifying_key()], &[], &registrar)?;

    // The coordinator opens a round.
    let params = proto::RoundParams {
        task: "example".into(),
        round: 1,
        suite: 1,
        roster_epoch: 1,
        roster_root: roster.head().root.to_vec(),
        dimension: DIMENSION as u64,
        modulus_bits: modulus_bits(16, CLIENTS)?,
        quantiser: Some(proto::Quantiser {
            bits: 16,
            clip: 1.0,
            l2_clip: None,
            max_weight: 1.0,
            rounding: proto::Rounding::Stochastic as i32,
            metrics: vec![proto::MetricBound { lower: 0.0, upper: 10.0 }],
            privacy: None,
            rotate: false,
        }),
        n_min: CLIENTS - VANISH as u32,
        n_max: CLIENTS,
        gamma: 0.05,
        delta: 0.2,
        mode: proto::SecurityMode::Malicious as i32,
        deadlines: Some(proto::PhaseDeadlines::default()),
        model_version: 0,
        model_hash: vec![0; 32],
        chunk_elements: 1024,
        opened_at: NOW,
    };
    let authority = Authority { signing_key: coordinator, roster: Arc::new(roster) };
    let mut server = Server::open(&params, Some(authority))?;

    // Phase 0: devices check the offer and advertise keys.
    let policy = Policy { n_min: CLIENTS - VANISH as u32, ..Policy::default() };
    let trust = Trust { registrar: Some(registrar.verifying_key()), policy };
    let mut records: Vec<MemoryRecord> = devices.iter().map(|_| MemoryRecord::default()).collect();
    let mut advertised: Vec<Advertised> = Vec::new();
    for (keys, record) in devices.iter().zip(&mut records) {
        let joining = Joining::new(server.offer(), Arc::new(keys.identity()), &trust, record, NOW)?;
        advertised.push(joining.advertise(rng));
    }
    for state in &advertised {
        server.absorb(state.message(), NOW)?;
    }

    // Phase 1: each device splits its two secrets among its neighbours.
    let mut server = next(server)?;
    let mut shared: Vec<Shared> = Vec::new();
    for (state, (keys, record)) in advertised.into_iter().zip(devices.iter().zip(&mut records)) {
        shared.push(state.share(&view!(server, keys.client_id, Cohort), record, NOW, rng)?);
    }
    for state in &shared {
        server.absorb(state.message(), NOW)?;
    }

    // Phase 2: inputs are masked and uploaded; the first two devices vanish instead.
    let mut server = next(server)?;
    let round = server.params().clone();
    let mut plain_sum = RingVector::zeros(round.modulus, round.vector_len());
    let mut masked: Vec<(Masked, &DeviceKeys, &mut MemoryRecord)> = Vec::new();
    let mut means = vec![0f64; DIMENSION];
    for ((i, state), (keys, record)) in
        shared.into_iter().enumerate().zip(devices.iter().zip(&mut records)).skip(VANISH)
    {
        let update: Vec<f32> = (0..DIMENSION).map(|j| ((i * j) as f32 * 0.01).sin()).collect();
        means.iter_mut().zip(&update).for_each(|(mean, &x)| *mean += f64::from(x) / f64::from(CLIENTS - VANISH as u32));
        let contribution = Contribution { update: &update, metrics: &[i as f32], weight: 1.0 };
        let input = round.quantiser.encode(contribution, DIMENSION, round.modulus, rng)?;
        plain_sum.add_assign(&input)?;
        let state = state.mask(&view!(server, keys.client_id, Masking), input, record, NOW)?;
        server.absorb(state.message(), NOW)?;
        let upload: Vec<u8> = (0..state.chunks()).filter_map(|chunk| state.chunk(chunk)).flatten().collect();
        server.absorb_upload(keys.client_id, &upload)?;
        masked.push((state, keys, record));
    }

    // Phase 3: survivors agree on who survives. Phase 4: they release one share of each neighbour.
    let mut server = next(server)?;
    let mut confirmed: Vec<(Confirmed, &DeviceKeys, &mut MemoryRecord)> = Vec::new();
    for (state, keys, record) in masked {
        let state = state.confirm(&view!(server, keys.client_id, Survivors), record)?;
        server.absorb(state.message(), NOW)?;
        confirmed.push((state, keys, record));
    }
    let mut server = next(server)?;
    for (state, keys, record) in confirmed {
        let done = state.release(&view!(server, keys.client_id, Tags), record)?;
        server.absorb(done.message(), NOW)?;
    }

    let outcome = finish(server)?;
    assert!(outcome.sum == plain_sum, "the sum is exact");
    let aggregate = round.quantiser.decode(&outcome.sum, DIMENSION, outcome.survivors.len() as u32)?;
    let worst = aggregate.mean.iter().zip(&means).map(|(&x, mean)| (f64::from(x) - mean).abs()).fold(0.0, f64::max);
    assert!(worst <= aggregate.error_bound + 1e-6, "the mean is within its bound");
    println!("cohort {}, in the sum {}", outcome.cohort.len(), outcome.survivors.len());
    println!("the sum equals the survivors' plaintext sum exactly");
    println!("largest error of the mean {worst:.2e}, bound {:.2e}", aggregate.error_bound);
    Ok(())
}
