//! The round behind `round-*.json`, played by the real state machines with generators that remember what they gave.

use std::sync::Arc;

use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{Identity, Session, Trust};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, ServerMessage, Signed, client_message::Step, server_message::View};
use unisono_protocol::roster::{HeadTerms, Roster};
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
    session: Option<Session>,
    pub update: Vec<f32>,
    pub metrics: Vec<f32>,
    pub weight: f32,
    /// What rounding drew.
    pub rounding: Vec<u8>,
    /// What each step drew, and each step's message and view.
    pub drawn: Vec<Vec<u8>>,
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
            session: None,
            // Multiples of 1/64, some of them beyond the clipping bound of 1.
            update: (0..DIMENSION).map(|j| ((i * 37 + j * 11) % 160) as f32 / 64.0 - 1.25).collect(),
            metrics: vec![i as f32 / 4.0],
            weight: 1.0 + i as f32,
            rounding: Vec::new(),
            drawn: Vec::new(),
            messages: Vec::new(),
            views: Vec::new(),
            input: Vec::new(),
            packed: Vec::new(),
        }
    }

    pub fn id(&self) -> ClientId {
        self.identity.client_id
    }

    /// Bytes that a signature of it draws: 32 for each half, if there are signatures.
    pub fn signs(&self) -> usize {
        let signed = self.step(|step| if let Step::Advert(signed) = step { Some(signed) } else { None });
        if signed.is_some_and(|(signed, _)| !signed.signature.is_empty()) { 64 } else { 0 }
    }

    fn join(&mut self, server: &Server, trust: &Trust) {
        let (identity, rng) = (self.identity.clone(), &mut self.rng);
        let session = Session::join(server.offer(), identity, trust, &mut self.record, NOW, rng).unwrap();
        self.session = Some(session);
        self.owes();
    }

    /// Keeps the message that is owed now, and what it drew.
    fn owes(&mut self) {
        self.messages.push(self.session.as_ref().unwrap().message().unwrap().clone());
        self.drawn.push(self.rng.take());
    }

    /// Takes a view and owes a message more.
    fn go_on(&mut self, server: &Server) {
        let shown = server.view(self.id()).unwrap();
        let view = shown.view.as_ref().unwrap();
        let input = matches!(view, View::Masking(_)).then(|| {
            let params = server.params();
            let contribution = Contribution { update: &self.update, metrics: &self.metrics, weight: self.weight };
            let input = params.quantiser.encode(contribution, DIMENSION, params.modulus, &mut self.rng).unwrap();
            self.rounding = self.rng.take();
            self.input = input.to_u64();
            input
        });
        let session = self.session.as_mut().unwrap();
        session.receive(view, input, &mut self.record, NOW, &mut self.rng).unwrap();
        if session.chunks() > 0 {
            self.packed = (0..session.chunks()).flat_map(|i| session.chunk(i).unwrap()).collect();
        }
        self.views.push(shown);
        self.owes();
    }

    /// The signed part of the first step for which `which` finds one, with what the step drew.
    pub fn step(&self, which: impl Fn(&Step) -> Option<&Signed>) -> Option<(&Signed, &[u8])> {
        let mut steps = self.messages.iter().zip(&self.drawn);
        steps.find_map(|(message, drawn)| Some((which(message.step.as_ref()?)?, drawn.as_slice())))
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
    let roster =
        Roster::publish(leaves, HeadTerms::new(3, NOW - 10), &[coordinator.verifying_key()], &[], &registrar).unwrap();
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
            clips: Vec::new(),
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
        min_colluders: 1,
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
