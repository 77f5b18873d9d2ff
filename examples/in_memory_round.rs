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
use unisono::protocol::client::{Session, Trust};
use unisono::protocol::encoding::{Contribution, modulus_bits};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::policy::{MemoryRecord, Policy};
use unisono::protocol::proto;
use unisono::protocol::roster::{HeadTerms, Roster, release_key_hash};
use unisono::protocol::server::{Authority, Closed, Phase, Server};

const CLIENTS: u32 = 12;
const VANISH: usize = 2;
const DIMENSION: usize = 1000;
const NOW: u64 = 1_800_000_000;

/// A device: its keys, its record, and its side of the round.
struct Device {
    keys: DeviceKeys,
    record: MemoryRecord,
    session: Session,
}

fn main() -> Result<(), Box<dyn Error>> {
    let rng = &mut UnwrapErr(SysRng);

    // The registrar says which devices exist and which coordinator may open rounds.
    let registrar = SigningKey::generate(Level::L65, rng);
    let coordinator = SigningKey::generate(Level::L65, rng);
    let keys: Vec<DeviceKeys> = (0..CLIENTS).map(|_| DeviceKeys::generate(rng)).collect();
    let leaf = |keys: &DeviceKeys| proto::RosterLeaf {
        client_id: keys.client_id.to_vec(),
        identity_key: keys.signing_key.verifying_key().as_bytes().to_vec(),
        release_key_hash: release_key_hash(keys.release_key.encapsulation_key().as_bytes()).to_vec(),
        not_before: NOW,
        not_after: NOW + 86_400,
        attributes: Vec::new(),
    };
    let leaves = keys.iter().map(leaf).collect();
    let roster = Roster::publish(leaves, HeadTerms::new(1, NOW), &[coordinator.verifying_key()], &[], &registrar)?;

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
            clips: Vec::new(),
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
        min_colluders: 1,
    };
    let authority = Authority { signing_key: coordinator, roster: Arc::new(roster) };
    let mut server = Server::open(&params, Some(authority))?;

    // Phase 0: devices check the offer and advertise keys.
    let policy = Policy { n_min: CLIENTS - VANISH as u32, ..Policy::default() };
    let trust = Trust { registrar: Some(registrar.verifying_key()), policy };
    let mut devices = Vec::new();
    for keys in keys {
        let mut record = MemoryRecord::default();
        let session = Session::join(server.offer(), Arc::new(keys.identity()), &trust, &mut record, NOW, rng)?;
        devices.push(Device { keys, record, session });
    }

    // What follows: in phase 1 each device splits two secrets among its neighbours, in phase 2 it uploads its masked input, in phase 3
    // the committee endorses the set of survivors, and in phase 4 survivors reveal one share of each neighbour.
    let round = server.params().clone();
    let mut plain_sum = RingVector::zeros(round.modulus, round.vector_len());
    let mut means = vec![0f64; DIMENSION];
    let outcome = loop {
        let phase = server.phase();
        for (i, Device { keys, record, session }) in devices.iter_mut().enumerate() {
            // The first two vanish after they have shared their keys.
            if phase >= Phase::Mask && i < VANISH {
                continue;
            }
            // In phase 0 the advert is owed already. Later the coordinator shows what the device waits for.
            if phase > Phase::Advertise {
                let Some(view) = server.view(keys.client_id).and_then(|message| message.view) else { continue };
                let mut input = None;
                if session.wants_input() {
                    let update: Vec<f32> = (0..DIMENSION).map(|j| ((i * j) as f32 * 0.01).sin()).collect();
                    let share = 1.0 / f64::from(CLIENTS - VANISH as u32);
                    means.iter_mut().zip(&update).for_each(|(mean, &x)| *mean += share * f64::from(x));
                    let contribution = Contribution { update: &update, metrics: &[i as f32], weight: 1.0 };
                    let encoded = round.quantiser.encode(contribution, DIMENSION, round.modulus, rng)?;
                    plain_sum.add_assign(&encoded)?;
                    input = Some(encoded);
                }
                session.receive(&view, input, record, NOW, rng)?;
            }
            server.absorb(session.message().ok_or("the round was closed")?, NOW)?;
            if phase == Phase::Mask {
                let upload: Vec<u8> =
                    (0..session.chunks()).filter_map(|chunk| session.chunk(chunk)).flatten().collect();
                server.absorb_upload(keys.client_id, &upload)?;
            }
        }
        match server.close()? {
            Closed::Next(next) => server = *next,
            Closed::Finished(outcome) => break outcome,
        }
    };

    assert!(outcome.sum == plain_sum, "the sum is exact");
    let aggregate = round.quantiser.decode(&outcome.sum, DIMENSION, outcome.survivors.len() as u32)?;
    let worst = aggregate.mean.iter().zip(&means).map(|(&x, mean)| (f64::from(x) - mean).abs()).fold(0.0, f64::max);
    assert!(worst <= aggregate.error_bound + 1e-6, "the mean is within its bound");
    println!("cohort {}, in the sum {}", outcome.cohort.len(), outcome.survivors.len());
    println!("the sum equals the survivors' plaintext sum exactly");
    println!("largest error of the mean {worst:.2e}, bound {:.2e}", aggregate.error_bound);
    Ok(())
}
