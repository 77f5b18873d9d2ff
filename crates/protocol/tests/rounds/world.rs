//! Devices, keys and rosters for whole rounds in memory.

use std::sync::{Arc, LazyLock};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::ring::RingVector;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{Advertised, ClientError, Confirmed, Done, Identity, Joining, Masked, Shared, Trust};
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, ServerMessage, server_message::View};
use unisono_protocol::roster::Roster;
use unisono_protocol::server::{Authority, Server};

pub const NOW: u64 = 1_800_000_000;
/// Identities at hand: more than any round uses.
pub const DEVICES: usize = if cfg!(miri) { 5 } else { 40 };

/// Keys that take long to make, made once.
pub struct Cast {
    pub registrar: SigningKey,
    pub coordinator: SigningKey,
    pub identities: Vec<Arc<Identity>>,
    pub roster: Arc<Roster>,
}

pub static CAST: LazyLock<Cast> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(0xCA57);
    let registrar = SigningKey::generate(Level::L65, &mut rng);
    let coordinator = SigningKey::generate(Level::L65, &mut rng);
    let identities: Vec<Arc<Identity>> = (0..DEVICES)
        .map(|i| {
            let signing_key = SigningKey::generate(Level::L44, &mut rng);
            Arc::new(Identity { client_id: ClientId([i as u8; 16]), signing_key })
        })
        .collect();
    let leaves = identities.iter().map(|identity| leaf(identity, NOW + 1000)).collect();
    let roster = Roster::publish(leaves, 7, NOW, &[coordinator.verifying_key()], &[], &registrar).unwrap();
    Cast { registrar, coordinator, identities, roster: Arc::new(roster) }
});

pub fn leaf(identity: &Identity, not_after: u64) -> proto::RosterLeaf {
    proto::RosterLeaf {
        client_id: identity.client_id.to_vec(),
        identity_key: identity.signing_key.verifying_key().as_bytes().to_vec(),
        release_key_hash: vec![0; 32],
        not_before: 0,
        not_after,
        attributes: Vec::new(),
    }
}

pub fn params(malicious: bool, n_min: u32, n_max: u32, gamma: f64, delta: f64, dimension: u64) -> proto::RoundParams {
    let mode = if malicious { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
    let head = CAST.roster.head();
    proto::RoundParams {
        task: "test".into(),
        round: 1,
        suite: 1,
        roster_epoch: if malicious { head.epoch } else { 0 },
        roster_root: if malicious { head.root.to_vec() } else { Vec::new() },
        dimension,
        modulus_bits: 8 + 6,
        quantiser: Some(proto::Quantiser {
            bits: 8,
            clip: 1.0,
            l2_clip: None,
            max_weight: 1.0,
            rounding: proto::Rounding::Deterministic as i32,
            metrics: Vec::new(),
            privacy: None,
            rotate: false,
        }),
        n_min,
        n_max,
        gamma,
        delta,
        mode: mode as i32,
        deadlines: Some(proto::PhaseDeadlines::default()),
        model_version: 1,
        model_hash: vec![0; 32],
        chunk_elements: 8,
        opened_at: NOW,
    }
}

pub fn open(params: &proto::RoundParams) -> Server {
    let malicious = params.mode() == proto::SecurityMode::Malicious;
    let authority = malicious.then(|| Authority { signing_key: CAST.coordinator.clone(), roster: CAST.roster.clone() });
    Server::open(params, authority).unwrap()
}

#[allow(clippy::large_enum_variant)]
pub enum State {
    Idle,
    Advertised(Advertised),
    Shared(Shared),
    Masked(Masked),
    Confirmed(Confirmed),
    Done(Done),
}

/// A device with its input.
pub struct Device {
    pub identity: Arc<Identity>,
    pub trust: Trust,
    pub record: MemoryRecord,
    pub input: RingVector,
    pub state: State,
    rng: ChaCha8Rng,
}

impl Device {
    /// Device number `i` with a random input for a round with `params`.
    pub fn new(i: usize, server: &Server, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (i as u64) << 32);
        let params = server.params();
        let values: Vec<u64> = (0..params.vector_len()).map(|_| rng.next_u64() & params.modulus.mask()).collect();
        let policy = Policy { n_min: 3, min_gamma: 0.0, allow_semi_honest: !params.malicious(), ..Policy::default() };
        Self {
            identity: CAST.identities[i].clone(),
            trust: Trust { registrar: Some(CAST.registrar.verifying_key()), policy },
            record: MemoryRecord::default(),
            input: RingVector::from_u64(params.modulus, &values).unwrap(),
            state: State::Idle,
            rng,
        }
    }

    pub fn id(&self) -> ClientId {
        self.identity.client_id
    }

    pub fn join(&mut self, offer: &proto::RoundOffer) -> Result<(), ClientError> {
        let joining = Joining::new(offer, self.identity.clone(), &self.trust, &mut self.record, NOW)?;
        // Miri takes minutes to verify a signature, so each is verified once for all devices.
        #[cfg(miri)]
        let joining = {
            static CHECKS: LazyLock<Arc<unisono_protocol::client::SharedChecks>> = LazyLock::new(Arc::default);
            joining.share_checks(&CHECKS)
        };
        self.state = State::Advertised(joining.advertise(&mut self.rng));
        Ok(())
    }

    /// Takes what the coordinator shows, if this state waits for it. A refused view leaves the state as it was.
    pub fn receive(&mut self, message: &ServerMessage) -> Result<(), ClientError> {
        let view = message.view.as_ref().unwrap();
        let (state, result) = match (std::mem::replace(&mut self.state, State::Idle), view) {
            (State::Advertised(state), View::Cohort(view)) => {
                match state.share(view, &mut self.record, NOW, &mut self.rng) {
                    Ok(next) => (State::Shared(next), Ok(())),
                    Err(refused) => (State::Advertised(*refused.state), Err(refused.error)),
                }
            }
            (State::Shared(state), View::Masking(view)) => {
                match state.mask(view, self.input.clone(), &mut self.record, NOW) {
                    Ok(next) => (State::Masked(next), Ok(())),
                    Err(refused) => (State::Shared(*refused.state), Err(refused.error)),
                }
            }
            (State::Masked(state), View::Survivors(view)) if self.trust.policy.allow_semi_honest => {
                match state.release(view, &mut self.record) {
                    Ok(next) => (State::Done(next), Ok(())),
                    Err(refused) => (State::Masked(*refused.state), Err(refused.error)),
                }
            }
            (State::Masked(state), View::Survivors(view)) => match state.confirm(view, &mut self.record) {
                Ok(next) => (State::Confirmed(next), Ok(())),
                Err(refused) => (State::Masked(*refused.state), Err(refused.error)),
            },
            (State::Confirmed(state), View::Tags(view)) => match state.release(view, &mut self.record) {
                Ok(next) => (State::Done(next), Ok(())),
                Err(refused) => (State::Confirmed(*refused.state), Err(refused.error)),
            },
            (state, _) => (state, Ok(())),
        };
        self.state = state;
        result
    }

    /// What this device owes the coordinator.
    pub fn message(&self) -> Option<&ClientMessage> {
        match &self.state {
            State::Idle => None,
            State::Advertised(state) => Some(state.message()),
            State::Shared(state) => Some(state.message()),
            State::Masked(state) => Some(state.message()),
            State::Confirmed(state) => Some(state.message()),
            State::Done(state) => Some(state.message()),
        }
    }

    /// The packed masked vector, put together from its chunks; `None` when it was resumed, too.
    pub fn upload(&self) -> Option<Vec<u8>> {
        let State::Masked(masked) = &self.state else { return None };
        (0..masked.chunks()).map(|i| masked.chunk(i)).collect::<Option<Vec<_>>>().map(|chunks| chunks.concat())
    }
}

/// The plaintext sum of the devices with the given ids.
pub fn plain_sum(
    devices: &[Device],
    ids: &[ClientId],
    server_params: &unisono_protocol::params::RoundParams,
) -> RingVector {
    let mut sum = RingVector::zeros(server_params.modulus, server_params.vector_len());
    for device in devices.iter().filter(|device| ids.contains(&device.id())) {
        sum.add_assign(&device.input).unwrap();
    }
    sum
}
