//! One round of five clients in each mode, in which the last client vanishes after it has shared its keys. The real state
//! machines make the messages (`play.rs`); the derivations beside them must give the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use hex::encode as hex;
use prost::Message;
use serde_json::{Value, json};
use unisono_crypto::kdf::{Hasher, Label, hash, label};
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::shamir::{self, SecretScalar, Share};
use unisono_crypto::{aead, merkle};
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{self, Signed, client_message::Step, server_message::View};

use super::derivation::{self as derive, End};
use super::play::{Cast, Client, DIMENSION, GONE, N, NOW, play};
use super::{Again, check, decimal};

fn signed(message: &Signed) -> Value {
    json!({ "payload": hex(&message.payload), "signature": hex(&message.signature) })
}

/// What `client` signed, and the bytes from which its signature came.
fn hedged(client: &Client, message: &Signed, label: Label, drawn: &[u8]) -> Value {
    if message.signature.is_empty() {
        assert!(drawn.is_empty(), "without signatures nothing is drawn for them");
        return signed(message);
    }
    let signature = client.identity.signing_key.sign_hedged(label, &message.payload, &mut Again(drawn));
    assert_eq!(signature, message.signature, "a signature draws 32 bytes for each half");
    json!({ "payload": hex(&message.payload), "signature": hex(signature), "drawn": hex(drawn) })
}

fn hexes(hashes: &[[u8; 32]]) -> Vec<String> {
    hashes.iter().map(hex).collect()
}

fn survives(u: usize) -> bool {
    u != GONE
}

fn peers(u: usize) -> impl Iterator<Item = usize> {
    (0..N).filter(move |&v| v != u)
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
        assert_eq!(again.0.len(), client.signs(), "advertise draws 64, 64 and 32 bytes, then its signature's");
        secrets
    }
}

/// What one client sent another in phase 1, taken apart.
struct Sent {
    message: Vec<u8>,
    mask_ct: Vec<u8>,
}

/// Both shares of one client, and what it drew for them.
struct Split {
    coefficients: Vec<String>,
    shares: Vec<Share>,
}

/// A played round with what follows from it.
struct Round {
    params: Arc<RoundParams>,
    round_id: [u8; 32],
    cohort_id: [u8; 32],
    /// `H(U1)`.
    sharers_hash: [u8; 32],
    cohort: proto::Cohort,
    ring: Vec<u32>,
    clients: Vec<Client>,
    secrets: Vec<Secrets>,
    adverts: Vec<proto::Advert>,
    /// By sender and recipient.
    sent: BTreeMap<(usize, usize), Sent>,
    /// Masks by encapsulator and other end.
    pairs: BTreeMap<(usize, usize), Vec<u64>>,
}

impl Round {
    fn end(&self, u: usize) -> End<'_> {
        End(u as u32, &self.adverts[u].client_id, &self.adverts[u].channel_ek)
    }

    /// Whether `v` is one of the two that follow `u` on the ring (section 3).
    fn encapsulates(&self, u: usize, v: usize) -> bool {
        let place = |u: usize| self.ring.iter().position(|&i| i == u as u32).unwrap();
        matches!((place(v) + N - place(u)) % N, 1 | 2)
    }

    fn advert(&self, u: usize) -> (&Signed, &[u8]) {
        self.clients[u].step(|step| if let Step::Advert(signed) = step { Some(signed) } else { None }).unwrap()
    }

    /// Phase 0 of one client (section 3).
    fn advertised(&self, u: usize, tree: &merkle::Tree, shares: &Value) -> Value {
        let (client, own, advert) = (&self.clients[u], &self.secrets[u], &self.adverts[u]);
        let mask_seed = derive::mask_key_seed(&own.mask, &self.round_id);
        assert_eq!(DecapsulationKey::from_seed(&mask_seed).encapsulation_key().as_bytes(), advert.mask_ek);
        assert_eq!(own.channel.encapsulation_key().as_bytes(), advert.channel_ek);
        let commitment = derive::commitment(&own.own, &self.round_id, &advert.client_id);
        assert_eq!(commitment.as_slice(), advert.self_mask_commitment);
        json!({
            "index": u, "client_id": hex(client.id().0), "identity_seed": hex([0x10 + u as u8; 32]),
            "drawn": {
                "mask_secret": hex(&client.drawn[0][..64]), "self_secret": hex(&client.drawn[0][64..128]),
                "channel_seed": hex(&client.drawn[0][128..160]),
            },
            "mask_secret": hex(own.mask.to_secret().expose()), "self_secret": hex(own.own.to_secret().expose()),
            "mask_key_seed": hex(mask_seed.expose()), "self_mask_commitment": hex(commitment),
            "advert": hedged(client, self.advert(u).0, label::SIG_ADVERT, &client.drawn[0][160..]), "advert_path": hexes(&tree.path(u).unwrap()), "shares": shares,
        })
    }

    fn split(&self, secret: &SecretScalar, u: usize, again: &mut Again<'_>) -> Split {
        let threshold = self.cohort.threshold as usize;
        let coefficients = again.0[..64 * (threshold - 1)].chunks(64).map(hex).collect();
        let abscissas: Vec<u32> = peers(u).map(|v| v as u32 + 1).collect();
        Split { coefficients, shares: shamir::split(secret, threshold, &abscissas, again).unwrap() }
    }

    /// Phase 1 of one client (section 4): coefficients are drawn first, then coins for each neighbour.
    fn shared(&mut self, u: usize) -> Value {
        let drawn = std::mem::take(&mut self.clients[u].drawn[1]);
        let mut again = Again(&drawn);
        let own = self.split(&self.secrets[u].own, u, &mut again);
        let mask = self.split(&self.secrets[u].mask, u, &mut again);
        let (mut messages, mut sent) = (Vec::new(), Vec::new());
        for (v, (own, mask)) in peers(u).zip(own.shares.iter().zip(&mask.shares)) {
            let (json, message) = self.message(u, v, [own, mask], &mut again);
            messages.push(json);
            sent.push((v, message));
        }
        let client = &self.clients[u];
        assert_eq!(again.0.len(), client.signs(), "share draws its signature's bytes last");
        let Some(Step::ShareKeys(real)) = client.messages[1].step.as_ref() else { panic!("shares are second") };
        assert!(real.messages.iter().eq(sent.iter().map(|(_, sent)| &sent.message)));
        let json = json!({
            "self_coefficients": own.coefficients, "mask_coefficients": mask.coefficients, "messages": messages,
            "root": hex(merkle::Tree::new(label::TREE_SHARES, &real.messages).root()),
            "signed_root": hedged(client, real.root.as_ref().unwrap(), label::SIG_SHARES, again.0),
        });
        self.sent.extend(sent.into_iter().map(|(v, sent)| ((u, v), sent)));
        json
    }

    fn message(&self, u: usize, v: usize, [own, mask]: [&Share; 2], again: &mut Again<'_>) -> (Value, Sent) {
        let (coins, rest) = again.0.split_first_chunk::<64>().unwrap();
        again.0 = rest;
        let channel_ek = EncapsulationKey::from_bytes(&self.adverts[v].channel_ek).unwrap();
        let (channel_ct, channel_secret) = channel_ek.encapsulate_with_coins(coins);
        assert!(self.secrets[v].channel.decapsulate(&channel_ct).unwrap().ct_eq(&channel_secret));
        let key = derive::share_key(&channel_secret, &self.cohort_id, self.end(u), self.end(v));
        let (from, to) = (u as u32, v as u32);
        let (self_mask_share, mask_share) = (own.value_bytes().to_vec(), mask.value_bytes().to_vec());
        let commitment = |share: &[u8], kind| derive::share_commitment(share, &self.cohort_id, from, to, kind);
        let (self_mask_commitment, mask_commitment) = (commitment(&self_mask_share, 1), commitment(&mask_share, 2));
        let pair = proto::SharePair { from, to, self_mask_share, mask_share }.encode_to_vec();
        let sealed = aead::seal(&key, &self.cohort_id, &pair).unwrap();
        let (mut mask_json, mut mask_ct) = (Value::Null, Vec::new());
        if self.encapsulates(u, v) {
            let mask_ek = &self.adverts[v].mask_ek;
            let coins = derive::mask_coins(&self.secrets[u].mask, &self.cohort_id, to, mask_ek);
            mask_ct = EncapsulationKey::from_bytes(mask_ek).unwrap().encapsulate_with_coins(&coins).0;
            mask_json = json!({ "mask_coins": hex(coins), "mask_ct": hex(&mask_ct) });
        }
        let json = json!({
            "to": v, "channel_coins": hex(coins), "channel_ct": hex(&channel_ct),
            "channel_secret": hex(channel_secret.expose()), "share_key": hex(key.expose()),
            "share_pair": hex(&pair), "sealed": hex(&sealed), "mask": mask_json,
            "self_mask_commitment": hex(&self_mask_commitment), "mask_commitment": hex(&mask_commitment),
        });
        let message = proto::NeighbourShares {
            from,
            to,
            channel_ct,
            sealed,
            mask_ct: mask_ct.clone(),
            self_mask_commitment,
            mask_commitment,
        };
        (json, Sent { message: message.encode_to_vec(), mask_ct })
    }

    /// The pair masks for this U1, each from either end alone (sections 4 and 5).
    fn pair_masks(&mut self) -> Vec<Value> {
        let mut json = Vec::new();
        let mut pairs = BTreeMap::new();
        for (&(u, v), message) in self.sent.iter().filter(|((u, v), _)| self.encapsulates(*u, *v)) {
            let at = (self.cohort_id.as_slice(), self.round_id.as_slice(), v as u32);
            let (from, to) = (&self.adverts[u].mask_ek, &self.adverts[v].mask_ek);
            let shared = derive::either_end(&self.secrets[u].mask, &self.secrets[v].mask, at, to, &message.mask_ct);
            let ends = [(u as u32, from.as_slice()), (v as u32, to.as_slice())];
            let secret = derive::pair_secret(&shared, (&self.cohort_id, &self.sharers_hash), ends, &message.mask_ct);
            let mask = derive::mask(&secret, self.params.modulus, self.params.vector_len());
            json.push(json!({
                "encapsulator": u, "other": v, "mask_secret": hex(shared.expose()), "pair_secret": hex(secret.expose()),
                "prg_key": hex(derive::prg_key(&secret).expose()), "mask": mask,
            }));
            pairs.insert((u, v), mask);
        }
        self.pairs = pairs;
        json
    }

    /// Phase 2 of one client (section 5).
    fn masked(&self, u: usize) -> Value {
        let (client, params) = (&self.clients[u], &self.params);
        let seed = derive::self_mask_seed(&self.secrets[u].own, &self.cohort_id, &self.sharers_hash);
        let self_mask = derive::mask(&seed, params.modulus, params.vector_len());
        let mut masked = client.input.clone();
        derive::add(&mut masked, &self_mask, true, params.modulus);
        for ((from, to), mask) in self.pairs.iter().filter(|((from, to), _)| *from == u || *to == u) {
            assert_ne!(from, to);
            derive::add(&mut masked, mask, *from == u, params.modulus);
        }
        assert_eq!(derive::unpack(&client.packed, params.modulus, params.vector_len()), masked);
        assert_eq!(derive::pack(&masked, params.modulus.bits()), client.packed);
        let upload_hash = Hasher::new(label::UPLOAD).update(&client.packed).finalize();
        let (header, drawn) =
            client.step(|step| if let Step::Upload(signed) = step { Some(signed) } else { None }).unwrap();
        assert_eq!(proto::UploadHeader::decode(header.payload.as_slice()).unwrap().hash, upload_hash);
        json!({
            "index": u, "update": client.update, "metrics": client.metrics, "weight": client.weight,
            "rounding_secret": hex(&client.rounding), "encoded": client.input,
            "self_mask_seed": hex(seed.expose()), "self_mask": self_mask,
            "masked": masked, "packed": hex(&client.packed), "upload_hash": hex(upload_hash),
            "header": hedged(client, header, label::SIG_UPLOAD, drawn),
        })
    }

    /// Phase 3, malicious mode: what each member of the committee signed, and the certificate that comes of it (section 6).
    fn confirmed(&self, survivors: &[u8], survivors_hash: &[u8; 32]) -> (Value, Value) {
        let count = (0..N).filter(|&u| survives(u)).count() as u32;
        let payload = derive::endorsement(&self.cohort_id, &self.sharers_hash, survivors_hash, count);
        let (mut json, mut endorsements) = (Vec::new(), Vec::new());
        for u in (0..N).filter(|&u| survives(u)) {
            let client = &self.clients[u];
            let find = |step: &Step| if let Step::Endorsement(signed) = step { Some(signed.clone()) } else { None };
            let (message, drawn) = client
                .messages
                .iter()
                .zip(&client.drawn)
                .find_map(|(m, drawn)| Some((find(m.step.as_ref()?)?, drawn)))
                .unwrap();
            assert_eq!(message.payload, payload, "all sign the same 100 bytes");
            let verifying = client.identity.signing_key.verifying_key();
            assert_eq!(verifying.verify(label::SIG_ENDORSEMENT, &payload, &message.signature), Ok(()));
            json.push(json!({ "index": u, "message": hedged(client, &message, label::SIG_ENDORSEMENT, drawn) }));
            endorsements.push(proto::Endorsement { signer: u as u32, signature: message.signature, roster: None });
        }
        endorsements.truncate(self.cohort.quorum as usize);
        let certificate = proto::Certificate {
            cohort_id: self.cohort_id.to_vec(),
            sharers_hash: self.sharers_hash.to_vec(),
            survivors: survivors.to_vec(),
            endorsements,
        };
        for client in self.clients.iter().filter(|client| client.views.len() > 2) {
            assert_eq!(client.views[3].view, Some(View::Certificate(certificate.clone())), "the same for all");
        }
        (Value::Array(json), json!(hex(certificate.encode_to_vec())))
    }

    /// Phase 4 of one client (section 6).
    fn revealed(&self, u: usize) -> Value {
        let client = &self.clients[u];
        let (message, drawn) =
            client.step(|step| if let Step::Unmask(signed) = step { Some(signed) } else { None }).unwrap();
        let revealed = proto::UnmaskShares::decode(message.payload.as_slice()).unwrap();
        assert!(revealed.shares.iter().map(|share| share.of as usize).eq(peers(u)), "one of each neighbour");
        for share in &revealed.shares {
            assert_eq!(
                share.kind,
                if survives(share.of as usize) { 1 } else { 2 },
                "one share of each, by who survived"
            );
        }
        assert_eq!(revealed.self_mask_secret, self.secrets[u].own.to_secret().expose());
        json!({ "index": u, "message": hedged(client, message, label::SIG_UNMASK, drawn) })
    }
}

fn roster(cast: &Cast, of: &Client) -> Value {
    let file = proto::RosterFile::decode(cast.roster.to_bytes().unwrap().as_slice()).unwrap();
    let proof = cast.roster.proof(of.id()).unwrap().unwrap();
    json!({
        "registrar_seed": hex([1; 32]), "head": signed(file.head.as_ref().unwrap()),
        "leaves": file.leaves.iter().map(hex).collect::<Vec<_>>(), "root": hex(cast.roster.head().root),
        "proof_of_client_1": { "index": proof.index, "path": proof.path.iter().map(hex).collect::<Vec<_>>() },
    })
}

/// A round as JSON.
fn vectors(malicious: bool) -> Value {
    let (server, cast, clients, outcome) = play(malicious);
    let params = server.params().clone();
    let signed_params = server.offer().params.as_ref().unwrap();
    let round_id = hash(label::ROUND_ID, &[&signed_params.payload]);
    assert_eq!(round_id, params.round_id.0);
    let View::Cohort(view) = clients[0].views[0].view.as_ref().unwrap() else { panic!("the cohort comes first") };
    let signed_cohort = view.cohort.clone().unwrap();
    let cohort_id = hash(label::COHORT_ID, &[&signed_cohort.payload]);
    let cohort = proto::Cohort::decode(signed_cohort.payload.as_slice()).unwrap();
    assert_eq!((cohort.n, cohort.degree), (5, 4));
    // The list of members comes as distances; its hash is over the places.
    let members = view.members.iter().scan(0, |place, distance| {
        *place += distance;
        Some(*place)
    });
    let members: Vec<u64> = members.collect();
    let places: Vec<u8> = members.iter().flat_map(|place| place.to_le_bytes()).collect();
    let members_hash = if malicious { hash(label::MEMBERS, &[&places]).to_vec() } else { Vec::new() };
    assert_eq!(members_hash, cohort.members_hash);
    // All are the committee of a complete graph.
    assert_eq!((cohort.committee, cohort.quorum), if malicious { (5, 4) } else { (0, 0) });
    let ring = derive::ring(&cohort_id, N as u32);
    let shared_bytes = derive::bitmap(&[true; N]);
    let sharers_hash = derive::sharers_hash(&shared_bytes);
    let secrets = clients.iter().map(Secrets::of).collect();
    let (adverts, sent, pairs) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut round =
        Round { params, round_id, cohort_id, sharers_hash, cohort, ring, clients, secrets, adverts, sent, pairs };
    let decoded = |u| proto::Advert::decode(round.advert(u).0.payload.as_slice()).unwrap();
    round.adverts = (0..N).map(decoded).collect();
    let tree = merkle::Tree::new(label::TREE_ADVERTS, (0..N).map(|u| &round.advert(u).0.payload));
    assert_eq!(tree.root().as_slice(), round.cohort.adverts_root);

    let shares: Vec<Value> = (0..N).map(|u| round.shared(u)).collect();
    let pairs = round.pair_masks();
    let advertised: Vec<Value> =
        shares.iter().enumerate().map(|(u, shares)| round.advertised(u, &tree, shares)).collect();
    let survivors = || (0..N).filter(|&u| survives(u));
    let survivors_bytes = derive::bitmap(&std::array::from_fn::<_, N, _>(survives));
    let survivors_hash = derive::survivors_hash(&survivors_bytes);
    let (confirmed, certificate) =
        if malicious { round.confirmed(&survivors_bytes, &survivors_hash) } else { (Value::Null, Value::Null) };

    let mut sum = vec![0; round.params.vector_len()];
    survivors().for_each(|u| derive::add(&mut sum, &round.clients[u].input, true, round.params.modulus));
    assert_eq!(outcome.sum.to_u64(), sum);
    let aggregate = round.params.quantiser.decode(&outcome.sum, DIMENSION, 4).unwrap();
    let first = &round.clients[0];
    json!({
        "mode": if malicious { "malicious" } else { "semi-honest" }, "now": NOW, "coordinator_seed": hex([2; 32]),
        "roster": if malicious { roster(&cast, &round.clients[1]) } else { Value::Null },
        "round_params": signed(signed_params), "round_id": hex(round_id),
        "cohort": signed(&signed_cohort), "cohort_id": hex(cohort_id), "ring": round.ring,
        "members": members, "members_hash": hex(members_hash), "degree": round.cohort.degree, "threshold": round.cohort.threshold, "window_bound": round.cohort.window_bound,
        "committee": round.cohort.committee, "quorum": round.cohort.quorum,
        "clients": advertised, "pairs": pairs, "shared": hex(shared_bytes), "sharers_hash": hex(sharers_hash),
        "masking": survivors().map(|u| round.masked(u)).collect::<Vec<_>>(),
        "survivors": hex(survivors_bytes), "survivors_hash": hex(survivors_hash),
        "confirm": confirmed, "certificate": certificate,
        "reveal": survivors().map(|u| round.revealed(u)).collect::<Vec<_>>(), "sum": sum,
        "mean_decimal": decimal(&aggregate.mean), "mean_metrics_decimal": decimal(&aggregate.metrics),
        "total_weight_decimal": aggregate.total_weight.to_string(),
        // Client 0's side of the wire, as it is: envelopes, and what the coordinator showed.
        "client_0": {
            "messages": first.messages.iter().map(|m| hex(m.encode_to_vec())).collect::<Vec<_>>(),
            "views": first.views.iter().map(|v| hex(v.encode_to_vec())).collect::<Vec<_>>(),
        },
        "example_neighbour_shares": hex(&round.sent[&(0, 1)].message),
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
