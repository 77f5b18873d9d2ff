//! The devices and their roster, made from the seed.

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::{ChaCha8Rng, ChaCha20Rng};
use rayon::prelude::*;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{Identity, Trust};
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto;
use unisono_protocol::roster::{HeadTerms, Roster};
use unisono_protocol::server::Authority;

use crate::error::SimError;
use crate::network::{Link, Network};

/// Unix time at which the simulated rounds take place.
pub(crate) const NOW: u64 = 1_800_000_000;

/// What a stream of random numbers is for: two purposes never share one.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Identity = 1,
    Authorities = 2,
    Link = 3,
    Dropout = 4,
    Round = 5,
    Update = 6,
}

/// Key of the stream for `purpose`, `index` and `round`.
fn key(seed: u64, purpose: Purpose, index: u64, round: u64) -> [u8; 32] {
    let mut key = [0; 32];
    for (part, value) in key.chunks_exact_mut(8).zip([seed, purpose as u64, index, round]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    key
}

/// Random numbers for models and generated updates.
pub(crate) fn rng(seed: u64, purpose: Purpose, index: u64, round: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(key(seed, purpose, index, round))
}

/// Random numbers that stand for a device's operating system's.
pub(crate) fn crypto_rng(seed: u64, purpose: Purpose, index: u64, round: u64) -> ChaCha20Rng {
    ChaCha20Rng::from_seed(key(seed, purpose, index, round))
}

/// A simulated device between rounds.
pub(crate) struct Device {
    pub identity: Arc<Identity>,
    pub record: MemoryRecord,
    pub link: Link,
}

pub(crate) struct Population {
    pub devices: Vec<Device>,
    pub trust: Trust,
    pub authority: Option<Authority>,
}

impl Population {
    /// Makes `clients` devices; in malicious mode with a roster and its authorities. Runs on the current thread pool.
    pub fn new(clients: u32, malicious: bool, network: &Network, seed: u64) -> Result<Self, SimError> {
        let device = |i: u32| {
            let mut secrets = crypto_rng(seed, Purpose::Identity, i.into(), 0);
            let mut id = [0; ClientId::LEN];
            // In order of number, so that cohort index and device number agree while nobody is missing.
            id[..4].copy_from_slice(&i.to_be_bytes());
            let signing_key = SigningKey::generate(Level::L44, &mut secrets);
            Device {
                identity: Arc::new(Identity { client_id: ClientId(id), signing_key }),
                record: MemoryRecord::default(),
                link: network.device(i as usize, &mut rng(seed, Purpose::Link, i.into(), 0)),
            }
        };
        let devices: Vec<Device> = (0..clients).into_par_iter().map(device).collect();
        let policy = Policy {
            n_min: 3,
            min_gamma: 0.0,
            max_delta: 1.0,
            max_dimension: u64::MAX,
            min_interval_s: 0,
            allow_semi_honest: !malicious,
            ..Policy::default()
        };
        if !malicious {
            return Ok(Self { devices, trust: Trust { registrar: None, policy }, authority: None });
        }
        let mut secrets = crypto_rng(seed, Purpose::Authorities, 0, 0);
        let registrar = SigningKey::generate(Level::L65, &mut secrets);
        let coordinator = SigningKey::generate(Level::L65, &mut secrets);
        let leaf = |device: &Device| proto::RosterLeaf {
            client_id: device.identity.client_id.to_vec(),
            identity_key: device.identity.signing_key.verifying_key().as_bytes().to_vec(),
            release_key_hash: vec![0; 32],
            not_before: NOW - 1,
            not_after: NOW + (1 << 30),
            attributes: Vec::new(),
        };
        let leaves = devices.iter().map(leaf).collect();
        let roster = Roster::publish(leaves, HeadTerms::new(1, NOW), &[coordinator.verifying_key()], &[], &registrar)?;
        let trust = Trust { registrar: Some(registrar.verifying_key()), policy };
        Ok(Self { devices, trust, authority: Some(Authority { signing_key: coordinator, roster: Arc::new(roster) }) })
    }
}
