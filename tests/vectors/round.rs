//! One round of five clients in each mode, in which the last client vanishes after it has shared its keys. The real state
//! machines make the messages; the derivations beside them must give the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use hex::encode as hex;
use prost::Message;
use serde_json::{Value, json};
use unisono_crypto::kdf::{Hasher, hash, label};
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, SecretScalar};
use unisono_crypto::sign::{Level, SigningKey};
use unisono_crypto::{aead, merkle};
use unisono_protocol::ClientId;
use unisono_protocol::client::{Advertised, Confirmed, Done, Identity, Joining, Masked, Shared, Trust};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::policy::{MemoryRecord, Policy};
use unisono_protocol::proto::{self, ClientMessage, ServerMessage, Signed, client_message::Step, server_message::View};
use unisono_protocol::roster::Roster;
use unisono_protocol::server::{Authority, Closed, Server};

use super::derivation::{self as derive, End};
use super::{Again, Drawn, check, decimal};

const NOW: u64 = 1_800_000_000;
const N: usize = 5;
const GONE: usize = 4;
const DIMENSION: usize = 20;
const RELEASE_KEY: [u8; 32] = [0x77; 32];

fn seed(byte: u8) -> Secret32 {
    Secret32::from_bytes([byte; 32])
}

fn signed(message: &Signed) -> Value {
    json!({ "payload": hex(&message.payload), "signature": hex(&message.signature) })
}

/// One client's way through the round.
struct Client {
    identity: Arc<Identity>,
    record: MemoryRecord,
    rng: Drawn,
    advertised: Option<Advertised>,
    shared: Option<Shared>,
    masked: Option<Masked>,
    confirmed: Option<Confirmed>,
    done: Option<Done>,
    update: Vec<f32>,
    metrics: Vec<f32>,
    weight: f32,
    /// What each step drew, and each step's message and view.
    drawn: [Vec<u8>; 3],
    messages: Vec<ClientMessage>,
    views: Vec<ServerMessage>,
    input: Vec<u64>,
    packed: Vec<u8>,
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
            done: None,
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

    fn id(&self) -> ClientId {
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
                let shared = self.advertised.take().unwrap().share(view, NOW, &mut self.rng).unwrap();
                self.drawn[1] = self.rng.take();
                self.shared.insert(shared).message()
            }
            View::Masking(view) => {
                let params = server.params();
                let contribution =
                    Contribution { update: &self.update, metrics: &self.metrics, weight: self.weight };
                let input = params.quantiser.encode(contribution, DIMENSION, params.modulus, &mut self.rng).unwrap();
                self.drawn[2] = self.rng.take();
                self.input = input.to_u64();
                let masked = self.shared.take().unwrap().mask(view, input, &mut self.record, NOW).unwrap();
                self.packed = (0..masked.chunks()).flat_map(|i| masked.chunk(i).unwrap()).collect();
                self.masked.insert(masked).message()
            }
            View::Survivors(view) if server.params().malicious() => {
                let confirmed = self.masked.take().unwrap().confirm(view).unwrap();
                self.confirmed.insert(confirmed).message()
            }
            View::Survivors(view) => {
                let done = self.masked.take().unwrap().release(view).unwrap();
                self.done.insert(done).message()
            }
            View::Tags(view) => {
                let done = self.confirmed.take().unwrap().release(view).unwrap();
                self.done.insert(done).message()
            }
        }
        .clone();
        self.views.push(server.view(self.id()).unwrap());
        self.messages.push(message);
    }

    fn step(&self, which: impl Fn(&Step) -> Option<&Signed>) -> Option<&Signed> {
        self.messages.iter().find_map(|message| which(message.step.as_ref()?))
    }
}

struct Cast {
    registrar: SigningKey,
    coordinator: SigningKey,
    roster: Arc<Roster>,
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

fn play(malicious: bool) -> (Server, Cast, Vec<Client>, unisono_protocol::server::Outcome) {
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

/// Secrets of one client, from what it drew.
struct Secrets {
    mask: SecretScalar,
    own: SecretScalar,
    channel: DecapsulationKey,
}

impl Secrets {
    fn of(client: &Client) -> Self {
        let mut again = Again(&client.drawn[0]);
        let secrets = Self {
            mask: SecretScalar::random(&mut again),
            own: SecretScalar::random(&mut again),
            channel: DecapsulationKey::generate(&mut again),
        };
        assert!(again.0.is_empty(), "advertise draws 64, 64 and 32 bytes");
        secrets
    }
}

/// What one client sent another in phase 1, taken apart.
struct Sent {
    message: Vec<u8>,
    channel_secret: Secret32,
    mask_ct: Vec<u8>,
}

/// A round as JSON.
fn vectors(malicious: bool) -> Value {
    let (server, cast, clients, outcome) = play(malicious);
    let params = server.params().clone();
    let round_id = hash(label::ROUND_ID, &[&server.offer().params.as_ref().unwrap().payload]);
    assert_eq!(round_id, params.round_id.0);
    let View::Cohort(view) = clients[0].views[0].view.as_ref().unwrap() else { panic!("the cohort comes first") };
    let signed_cohort = view.cohort.as_ref().unwrap();
    let cohort_id = hash(label::COHORT_ID, &[&signed_cohort.payload]);
    let cohort = proto::Cohort::decode(signed_cohort.payload.as_slice()).unwrap();
    let threshold = cohort.threshold as usize;
    assert_eq!((cohort.n, cohort.degree), (5, 4));

    // The ring, and who follows whom on it (section 3).
    let mut ring: Vec<u32> = (0..N as u32).collect();
    ring.sort_by_key(|i| hash(label::GRAPH_SEED, &[&cohort_id, &i.to_le_bytes()]));
    let place = |u: usize| ring.iter().position(|&i| i == u as u32).unwrap();
    let encapsulates = |u: usize, v: usize| matches!((place(v) + N - place(u)) % N, 1 | 2);

    let secrets: Vec<Secrets> = clients.iter().map(Secrets::of).collect();
    let advert = |u: usize| clients[u].step(|step| if let Step::Advert(signed) = step { Some(signed) } else { None });
    let adverts: Vec<proto::Advert> =
        (0..N).map(|u| proto::Advert::decode(advert(u).unwrap().payload.as_slice()).unwrap()).collect();
    let advert_tree = merkle::Tree::new(label::TREE_ADVERTS, (0..N).map(|u| &advert(u).unwrap().payload));
    assert_eq!(advert_tree.root().as_slice(), cohort.adverts_root);
    let end = |u: usize| End(u as u32, &adverts[u].client_id, &adverts[u].channel_ek);

    let mut sent: BTreeMap<(usize, usize), Sent> = BTreeMap::new();
    let mut shares_json: Vec<Value> = Vec::new();
    for u in 0..N {
        let (client, own) = (&clients[u], &secrets[u]);
        let neighbours: Vec<usize> = (0..N).filter(|&v| v != u).collect();
        let abscissas: Vec<u32> = neighbours.iter().map(|&v| v as u32 + 1).collect();
        let mut again = Again(&client.drawn[1]);
        let coefficients = |again: &Again<'_>| -> Vec<String> {
            (0..threshold - 1).map(|i| hex(&again.0[64 * i..64 * i + 64])).collect()
        };
        let self_coefficients = coefficients(&again);
        let self_shares = shamir::split(&own.own, threshold, &abscissas, &mut again).unwrap();
        let mask_coefficients = coefficients(&again);
        let mask_shares = shamir::split(&own.mask, threshold, &abscissas, &mut again).unwrap();
        let mut messages = Vec::new();
        let mut to_json = Vec::new();
        for (j, &v) in neighbours.iter().enumerate() {
            let coins: [u8; 64] = again.0[..64].try_into().unwrap();
            again.0 = &again.0[64..];
            let channel_ek = EncapsulationKey::from_bytes(&adverts[v].channel_ek).unwrap();
            let (channel_ct, channel_secret) = channel_ek.encapsulate_with_coins(&coins);
            assert!(secrets[v].channel.decapsulate(&channel_ct).unwrap().ct_eq(&channel_secret));
            let key = derive::share_key(&channel_secret, &cohort_id, end(u), end(v));
            let pair = proto::SharePair {
                from: u as u32,
                to: v as u32,
                self_mask_share: self_shares[j].value_bytes().to_vec(),
                mask_share: mask_shares[j].value_bytes().to_vec(),
            };
            let sealed = aead::seal(&key, &cohort_id, &pair.encode_to_vec()).unwrap();
            let mut mask = Value::Null;
            let mut mask_ct = Vec::new();
            if encapsulates(u, v) {
                let coins = derive::mask_coins(&own.mask, &cohort_id, v as u32, &adverts[v].mask_ek);
                let mask_ek = EncapsulationKey::from_bytes(&adverts[v].mask_ek).unwrap();
                mask_ct = mask_ek.encapsulate_with_coins(&coins).0;
                mask = json!({ "mask_coins": hex(&coins), "mask_ct": hex(&mask_ct) });
            }
            let message = proto::NeighbourShares {
                from: u as u32,
                to: v as u32,
                channel_ct: channel_ct.clone(),
                sealed: sealed.clone(),
                mask_ct: mask_ct.clone(),
            }
            .encode_to_vec();
            to_json.push(json!({
                "to": v, "channel_coins": hex(&coins), "channel_ct": hex(&channel_ct),
                "channel_secret": hex(channel_secret.expose()), "share_key": hex(key.expose()),
                "share_pair": hex(&pair.encode_to_vec()), "sealed": hex(&sealed), "mask": mask,
            }));
            messages.push(message.clone());
            sent.insert((u, v), Sent { message, channel_secret, mask_ct });
        }
        assert!(again.0.is_empty(), "share draws the coefficients and the coins, in that order");
        let Some(Step::ShareKeys(real)) = client.messages[1].step.as_ref() else { panic!("shares are second") };
        assert_eq!(real.messages, messages);
        let tree = merkle::Tree::new(label::TREE_SHARES, &messages);
        shares_json.push(json!({
            "self_coefficients": self_coefficients, "mask_coefficients": mask_coefficients,
            "messages": to_json, "root": hex(&tree.root()),
            "signed_root": signed(real.root.as_ref().unwrap()),
        }));
    }

    // Pair masks, from either end alone.
    let mut pairs = BTreeMap::new();
    let mut pairs_json = Vec::new();
    for (&(u, v), message) in sent.iter().filter(|((u, v), _)| encapsulates(*u, *v)) {
        let at = (cohort_id.as_slice(), round_id.as_slice(), v as u32);
        let shared = derive::either_end(&secrets[u].mask, &secrets[v].mask, at, &adverts[v].mask_ek, &message.mask_ct);
        let ends = [(u as u32, adverts[u].mask_ek.as_slice()), (v as u32, adverts[v].mask_ek.as_slice())];
        let secret = derive::pair_secret(&shared, &cohort_id, ends, &message.mask_ct);
        let mask = derive::mask(&secret, params.modulus, params.vector_len());
        pairs_json.push(json!({
            "encapsulator": u, "other": v, "mask_secret": hex(shared.expose()), "pair_secret": hex(secret.expose()),
            "prg_key": hex(derive::prg_key(&secret).expose()), "mask": mask,
        }));
        pairs.insert((u, v), mask);
    }

    let survivors: Vec<bool> = (0..N).map(|u| u != GONE).collect();
    let survivors_bytes = [0b0_1111u8];
    let survivors_hash = hash(label::SURVIVORS, &[&survivors_bytes]);
    let mut masks_json = Vec::new();
    let mut confirm_json = Vec::new();
    let mut release_json = Vec::new();
    for u in (0..N).filter(|&u| survivors[u]) {
        let client = &clients[u];
        let self_secret = derive::self_mask_secret(&secrets[u].own, &cohort_id);
        let self_mask = derive::mask(&self_secret, params.modulus, params.vector_len());
        let mut masked = client.input.clone();
        derive::add(&mut masked, &self_mask, true, params.modulus);
        for ((from, to), mask) in &pairs {
            if *from == u {
                derive::add(&mut masked, mask, true, params.modulus);
            } else if *to == u {
                derive::add(&mut masked, mask, false, params.modulus);
            }
        }
        assert_eq!(derive::unpack(&client.packed, params.modulus, params.vector_len()), masked);
        assert_eq!(derive::pack(&masked, params.modulus.bits()), client.packed);
        let upload_hash = Hasher::new(label::UPLOAD).update(&client.packed).finalize();
        let header = client.step(|step| if let Step::Upload(signed) = step { Some(signed) } else { None }).unwrap();
        assert_eq!(proto::UploadHeader::decode(header.payload.as_slice()).unwrap().hash, upload_hash);
        masks_json.push(json!({
            "index": u, "update": client.update, "metrics": client.metrics, "weight": client.weight,
            "rounding_secret": hex(&client.drawn[2]), "encoded": client.input,
            "self_mask_secret": hex(self_secret.expose()), "self_mask": self_mask,
            "masked": masked, "packed": hex(&client.packed), "upload_hash": hex(&upload_hash), "header": signed(header),
        }));

        let channel = |v: usize| {
            let (low, high) = (u.min(v), u.max(v));
            derive::channel_key(&cohort_id, &sent[&(low, high)].channel_secret, &sent[&(high, low)].channel_secret)
        };
        let tag_to = |v: usize| derive::tag(&channel(v), &cohort_id, u as u32, &survivors_hash);
        let peers = || (0..N).filter(move |&v| v != u);
        if malicious {
            let tags = client.step(|step| if let Step::Tags(signed) = step { Some(signed) } else { None }).unwrap();
            let expected: Vec<proto::Tag> = peers()
                .filter(|&v| survivors[v])
                .map(|v| proto::Tag { neighbour: v as u32, tag: tag_to(v).to_vec() })
                .collect();
            assert_eq!(proto::ConsistencyTags::decode(tags.payload.as_slice()).unwrap().tags, expected);
            let list: Vec<Value> = peers()
                .filter(|&v| survivors[v])
                .map(|v| json!({ "neighbour": v, "channel_key": hex(channel(v).expose()), "tag": hex(&tag_to(v)) }))
                .collect();
            confirm_json.push(json!({ "index": u, "tags": list, "message": signed(tags) }));
        }
        let release = client.step(|step| if let Step::Unmask(signed) = step { Some(signed) } else { None }).unwrap();
        let released = proto::UnmaskShares::decode(release.payload.as_slice()).unwrap();
        for share in &released.shares {
            let v = share.of as usize;
            assert_eq!(share.kind, if survivors[v] { 1 } else { 2 }, "one share of each, by who survived");
        }
        release_json.push(json!({ "index": u, "message": signed(release) }));
    }

    // What the coordinator subtracts: the survivors' self masks, and the pair masks next to the one that is gone.
    let mut sum = vec![0; params.vector_len()];
    for u in (0..N).filter(|&u| survivors[u]) {
        derive::add(&mut sum, &clients[u].input, true, params.modulus);
    }
    assert_eq!(outcome.sum.to_u64(), sum);
    let aggregate = params.quantiser.decode(&outcome.sum, DIMENSION, 4).unwrap();

    let clients_json: Vec<Value> = (0..N)
        .map(|u| {
            let (client, own) = (&clients[u], &secrets[u]);
            let mask_seed = derive::mask_key_seed(&own.mask, &round_id);
            let mask_key = DecapsulationKey::from_seed(&mask_seed);
            assert_eq!(mask_key.encapsulation_key().as_bytes(), adverts[u].mask_ek);
            assert_eq!(own.channel.encapsulation_key().as_bytes(), adverts[u].channel_ek);
            let commitment = derive::commitment(&own.own, &round_id, &adverts[u].client_id);
            assert_eq!(commitment.as_slice(), adverts[u].self_mask_commitment);
            json!({
                "index": u, "client_id": hex(&client.id().0), "identity_seed": hex(&[0x10 + u as u8; 32]),
                "drawn": {
                    "mask_secret": hex(&client.drawn[0][..64]), "self_secret": hex(&client.drawn[0][64..128]),
                    "channel_seed": hex(&client.drawn[0][128..]),
                },
                "mask_secret": hex(own.mask.to_secret().expose()), "self_secret": hex(own.own.to_secret().expose()),
                "mask_key_seed": hex(mask_seed.expose()), "self_mask_commitment": hex(&commitment),
                "advert": signed(advert(u).unwrap()),
                "advert_path": advert_tree.path(u).unwrap().iter().map(|hash| hex(hash)).collect::<Vec<_>>(),
                "shares": shares_json[u],
            })
        })
        .collect();
    let roster_json = if malicious {
        let file = proto::RosterFile::decode(cast.roster.to_bytes().as_slice()).unwrap();
        let proof = cast.roster.proof(clients[1].id()).unwrap();
        json!({
            "registrar_seed": hex(&[1; 32]), "head": signed(file.head.as_ref().unwrap()),
            "leaves": file.leaves.iter().map(|leaf| hex(leaf)).collect::<Vec<_>>(),
            "root": hex(&cast.roster.head().root),
            "proof_of_client_1": { "index": proof.index, "path": proof.path.iter().map(|hash| hex(hash)).collect::<Vec<_>>() },
        })
    } else {
        Value::Null
    };
    json!({
        "mode": if malicious { "malicious" } else { "semi-honest" }, "now": NOW,
        "coordinator_seed": hex(&[2; 32]), "roster": roster_json,
        "round_params": signed(server.offer().params.as_ref().unwrap()), "round_id": hex(&round_id),
        "cohort": signed(signed_cohort), "cohort_id": hex(&cohort_id), "ring": ring,
        "degree": cohort.degree, "threshold": cohort.threshold, "window_bound": cohort.window_bound,
        "clients": clients_json, "pairs": pairs_json,
        "shared": hex(&[0b1_1111u8]), "masking": masks_json,
        "survivors": hex(&survivors_bytes), "survivors_hash": hex(&survivors_hash), "confirm": confirm_json,
        "release": release_json, "sum": sum,
        "mean_decimal": decimal(&aggregate.mean), "mean_metrics_decimal": decimal(&aggregate.metrics),
        "total_weight_decimal": aggregate.total_weight.to_string(),
        // Client 0's side of the wire, as it is: envelopes, and what the coordinator showed.
        "client_0": {
            "messages": clients[0].messages.iter().map(|m| hex(&m.encode_to_vec())).collect::<Vec<_>>(),
            "views": clients[0].views.iter().map(|v| hex(&v.encode_to_vec())).collect::<Vec<_>>(),
        },
        "example_neighbour_shares": hex(&sent[&(0, 1)].message),
    })
}

#[test]
fn a_malicious_round_is_the_one_in_the_vectors_and_every_step_of_it_follows_from_the_specification() {
    check("round-malicious.json", &vectors(true));
}

#[test]
fn a_semi_honest_round_is_the_one_in_the_vectors_and_every_step_of_it_follows_from_the_specification() {
    check("round-semi-honest.json", &vectors(false));
}
