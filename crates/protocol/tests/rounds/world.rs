//! Devices, keys and rosters for whole rounds in memory.

use std::sync::{Arc, LazyLock};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use unisono_crypto::ring::RingVector;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{ClientError, Identity, Session, Trust};
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, ServerMessage};
use unisono_protocol::roster::{HeadTerms, Roster};
use unisono_protocol::server::{Authority, Server};

pub const NOW: u64 = 1_800_000_000;
/// Identities at hand: more than any round uses.
pub const DEVICES: usize = if cfg!(miri) { 5 } else { 104 };

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
    let roster =
        Roster::publish(leaves, HeadTerms::new(7, NOW), &[coordinator.verifying_key()], &[], &registrar).unwrap();
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
            clips: Vec::new(),
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
        min_colluders: 0,
    }
}

pub fn open(params: &proto::RoundParams) -> Server {
    let malicious = params.mode() == proto::SecurityMode::Malicious;
    let authority = malicious.then(|| Authority { signing_key: CAST.coordinator.clone(), roster: CAST.roster.clone() });
    Server::open(params, authority).unwrap()
}

/// A device with its input.
pub struct Device {
    pub identity: Arc<Identity>,
    pub trust: Trust,
    pub record: MemoryRecord,
    pub input: RingVector,
    /// `None` before it has joined, and when it has vanished.
    pub session: Option<Session>,
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
            session: None,
            rng,
        }
    }

    pub fn id(&self) -> ClientId {
        self.identity.client_id
    }

    pub fn join(&mut self, offer: &proto::RoundOffer) -> Result<(), ClientError> {
        self.join_at(offer, NOW)
    }

    /// The same, at another time.
    pub fn join_at(&mut self, offer: &proto::RoundOffer, now: u64) -> Result<(), ClientError> {
        let (identity, record) = (self.identity.clone(), &mut self.record);
        let session = Session::join(offer, identity, &self.trust, record, now, &mut self.rng)?;
        // Miri takes minutes to verify a signature, so each is verified once for all devices.
        #[cfg(miri)]
        let session = {
            static CHECKS: LazyLock<Arc<unisono_protocol::client::SharedChecks>> = LazyLock::new(Arc::default);
            let mut session = session;
            session.share_checks(&CHECKS);
            session
        };
        self.session = Some(session);
        Ok(())
    }

    /// Takes what the coordinator shows, if this device waits for such a view. A refused view changes nothing.
    pub fn receive(&mut self, message: &ServerMessage) -> Result<(), ClientError> {
        self.receive_at(message, NOW)
    }

    /// The same, at another time.
    pub fn receive_at(&mut self, message: &ServerMessage, now: u64) -> Result<(), ClientError> {
        let view = message.view.as_ref().unwrap();
        let Some(session) = &mut self.session else { return Ok(()) };
        match session.receive(view, Some(self.input.clone()), &mut self.record, now, &mut self.rng) {
            Err(ClientError::UnexpectedView { .. }) => Ok(()),
            result => result,
        }
    }

    /// What this device owes the coordinator.
    pub fn message(&self) -> Option<&ClientMessage> {
        self.session.as_ref()?.message()
    }

    /// The packed masked vector, put together from its chunks; `None` when it was resumed, too.
    pub fn upload(&self) -> Option<Vec<u8>> {
        let session = self.session.as_ref().filter(|session| session.chunks() > 0)?;
        (0..session.chunks()).map(|i| session.chunk(i)).collect::<Option<Vec<_>>>().map(|chunks| chunks.concat())
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
