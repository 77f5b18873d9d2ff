//! The round behind `round-*.json`, played by the real state machines with generators that remember what they gave.

use std::sync::Arc;

use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{Advertised, Confirmed, Identity, Joining, Masked, Shared, Trust};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, ServerMessage, Signed, client_message::Step, server_message::View};
use unisono_protocol::roster::Roster;
use unisono_protocol::server::{Authority, Closed, Outcome, Server};

use super::Drawn;

pub const NOW: u64 = 1_800_000_000;
pub const N: usize = 5;
pub const GONE: usize = 4;
pub const DIMENSION: usize = 20;
const RELEASE_KEY: [u8; 32] = [0x77; 32];

fn seed(byte: u8) -> Secret32 {
    Secret32::from_bytes([byte; 32])
}

/// One client's way through the round.
pub struct Client {
    pub identity: Arc<Identity>,
    record: MemoryRecord,
    rng: Drawn,
    advertised: Option<Advertised>,
    shared: Option<Shared>,
    masked: Option<Masked>,
    confirmed: Option<Confirmed>,
    pub update: Vec<f32>,
    pub metrics: Vec<f32>,
    pub weight: f32,
    /// What each step drew, and each step's message and view.
    pub drawn: [Vec<u8>; 3],
    pub messages: Vec<ClientMessage>,
    pub views: Vec<ServerMessage>,
    pub input: Vec<u64>,
    pub packed: Vec<u8>,
}

impl Client {
    fn new(i: usize) -> Self {
        let identity = Identity {
            client_id: ClientId([0xa0 + i as u8; 16]),
            signing_key: SigningKey::from_seed(Level::L44, &seed(0x10 + i as u8)),
        };
        Self {
            identity: Arc::new(identity),
            record: MemoryRecord::default(),
            rng: Drawn::new(i as u64),
            advertised: None,
            shared: None,
            masked: None,
            confirmed: None,
            // Multiples of 1/64, some of them beyond the clipping bound of 1.
            update: (0..DIMENSION).map(|j| ((i * 37 + j * 11) % 160) as f32 / 64.0 - 1.25).collect(),
            metrics: vec![i as f32 / 4.0],
            weight: 1.0 + i as f32,
            drawn: [const { Vec::new() }; 3],
            messages: Vec::new(),
            views: Vec::new(),
            input: Vec::new(),
            packed: Vec::new(),
        }
    }

    pub fn id(&self) -> ClientId {
        self.identity.client_id
    }

    fn join(&mut self, server: &Server, trust: &Trust) {
        let joining = Joining::new(server.offer(), self.identity.clone(), trust, &mut self.record, NOW).unwrap();
        let advertised = joining.advertise(&mut self.rng);
        self.drawn[0] = self.rng.take();
        self.messages.push(advertised.message().clone());
        self.advertised = Some(advertised);
    }

    /// Takes a view and owes a message more.
    fn go_on(&mut self, server: &Server) {
        let message = server.view(self.id()).unwrap();
        let message = match message.view.as_ref().unwrap() {
            View::Cohort(view) => {
                let shared = self.advertised.take().unwrap().share(view, &mut self.record, NOW, &mut self.rng).unwrap();
                self.drawn[1] = self.rng.take();
                self.shared.insert(shared).message().clone()
            }
            View::Masking(view) => {
                let params = server.params();
                let contribution = Contribution { update: &self.update, metrics: &self.metrics, weight: self.weight };
                let input = params.quantiser.encode(contribution, DIMENSION, params.modulus, &mut self.rng).unwrap();
                self.drawn[2] = self.rng.take();
                self.input = input.to_u64();
                let masked = self.shared.take().unwrap().mask(view, input, &mut self.record, NOW).unwrap();
                self.packed = (0..masked.chunks()).flat_map(|i| masked.chunk(i).unwrap()).collect();
                self.masked.insert(masked).message().clone()
            }
            View::Survivors(view) if server.params().malicious() => {
                let confirmed = self.masked.take().unwrap().confirm(view, &mut self.record).unwrap();
                self.confirmed.insert(confirmed).message().clone()
            }
            View::Survivors(view) => {
                let done = self.masked.take().unwrap().release(view, &mut self.record).unwrap();
                done.message().clone()
            }
            View::Tags(view) => {
                let done = self.confirmed.take().unwrap().release(view, &mut self.record).unwrap();
                done.message().clone()
            }
        };
        self.views.push(server.view(self.id()).unwrap());
        self.messages.push(message);
    }

    /// The signed part of the first step for which `which` finds one.
    pub fn step(&self, which: impl Fn(&Step) -> Option<&Signed>) -> Option<&Signed> {
        self.messages.iter().find_map(|message| which(message.step.as_ref()?))
    }
}

/// Long-term keys and the roster.
pub struct Cast {
    registrar: SigningKey,
    coordinator: SigningKey,
    pub roster: Arc<Roster>,
}

fn cast(clients: &[Client]) -> Cast {
    let (registrar, coordinator) =
        (SigningKey::from_seed(Level::L65, &seed(1)), SigningKey::from_seed(Level::L65, &seed(2)));
    let leaf = |client: &Client| proto::RosterLeaf {
        client_id: client.id().to_vec(),
        identity_key: client.identity.signing_key.verifying_key().as_bytes().to_vec(),
        release_key_hash: RELEASE_KEY.to_vec(),
        not_before: NOW - 1000,
        not_after: NOW + 1000,
        attributes: vec![proto::Attribute { name: "site".into(), value: "a".into() }],
    };
    let leaves = clients.iter().map(leaf).collect();
    let roster = Roster::publish(leaves, 3, NOW - 10, &[coordinator.verifying_key()], &[], &registrar).unwrap();
    Cast { registrar, coordinator, roster: Arc::new(roster) }
}

fn params(malicious: bool, cast: &Cast) -> proto::RoundParams {
    let head = cast.roster.head();
    proto::RoundParams {
        task: "vectors".into(),
        round: 4,
        suite: 1,
        roster_epoch: if malicious { head.epoch } else { 0 },
        roster_root: if malicious { head.root.to_vec() } else { Vec::new() },
        dimension: DIMENSION as u64,
        modulus_bits: 19,
        quantiser: Some(proto::Quantiser {
            bits: 16,
            clip: 1.0,
            l2_clip: None,
            max_weight: 8.0,
            rounding: proto::Rounding::Stochastic as i32,
            metrics: vec![proto::MetricBound { lower: 0.0, upper: 2.0 }],
            privacy: None,
            rotate: false,
        }),
        n_min: 4,
        n_max: 6,
        gamma: 0.0,
        delta: 0.2,
        mode: if malicious { 1 } else { 2 },
        deadlines: Some(proto::PhaseDeadlines {
            advertise_ms: 1000,
            share_ms: 2000,
            mask_ms: 3000,
            confirm_ms: 4000,
            unmask_ms: 5000,
        }),
        model_version: 2,
        model_hash: vec![0x5a; 32],
        chunk_elements: 8,
        opened_at: NOW,
    }
}

/// Plays the round; gives it as opened, the roster, the clients with all that they drew and sent, and the result.
pub fn play(malicious: bool) -> (Server, Cast, Vec<Client>, Outcome) {
    let mut clients: Vec<Client> = (0..N).map(Client::new).collect();
    let cast = cast(&clients);
    let authority = || Authority { signing_key: cast.coordinator.clone(), roster: cast.roster.clone() };
    let open = || Server::open(&params(malicious, &cast), malicious.then(authority)).unwrap();
    let mut server = open();
    let policy = Policy { n_min: 4, min_gamma: 0.0, allow_semi_honest: true, ..Policy::default() };
    let trust = Trust { registrar: Some(cast.registrar.verifying_key()), policy };
    for phase in 0.. {
        for (i, client) in clients.iter_mut().enumerate().filter(|(i, _)| phase < 2 || *i != GONE) {
            match phase {
                0 => client.join(&server, &trust),
                _ => client.go_on(&server),
            }
            server.absorb(client.messages.last().unwrap(), NOW).unwrap();
            if phase == 2 {
                server.absorb_upload(client.id(), &client.packed).unwrap();
            }
            assert!(i < N);
        }
        match server.close().unwrap() {
            Closed::Next(next) => server = *next,
            Closed::Finished(outcome) => return (open(), cast, clients, outcome),
        }
    }
    unreachable!("a round ends")
}
