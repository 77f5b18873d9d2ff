//! Vectors of the quantiser, of degree and graph, of key files and of a release with its grant.

use hex::encode as hex;
use prost::Message;
use serde_json::{Value, json};
use unisono_crypto::kdf::{derive_secret, hash, label};
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::ring::Modulus;
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::degree::{Assumptions, Committee, SecurityMode, Topology, find};
use unisono_protocol::encoding::{Contribution, Quantiser, Rounding, modulus_bits};
use unisono_protocol::graph::Graph;
use unisono_protocol::keyfile::{self, DeviceKeys, Role};
use unisono_protocol::rotation::Rotation;
use unisono_protocol::{CohortId, RoundId, roster, signed};
use unisono_release::proto::{Grant, PayloadType, Provenance, ProvenanceMode, ReleaseHeader, SignedGrant};
use unisono_release::{
    ContentKey, Issuer, Issuers, KeyEncryptionKey, OpenPolicy, Recipient, Release, ReleaseError, Seen, Token,
    VersionRecord, grant, open, open_grant, seal,
};
use unisono_wire::proto::GrantRequestBody;

use super::{Drawn, check, decimal, derivation};

const NOW: u64 = 1_800_000_000;

#[test]
fn encoded_updates_and_their_mean_are_those_in_the_vectors() {
    let update = [0.0f32, 1.0, -1.0, 0.25, -0.75, 3.0, -3.0, 0.015625, 1.5, -0.5];
    let metrics = [0.5f32];
    let mut cases = Vec::new();
    for (bits, clip, l2_clip, rounding, name) in [
        (8u32, 1.0f32, None, Rounding::Deterministic, "deterministic"),
        (16, 2.0, None, Rounding::Stochastic, "stochastic"),
        (24, 1.0, Some(2.0f32), Rounding::Stochastic, "stochastic"),
        (32, 4.0, None, Rounding::Deterministic, "deterministic"),
    ] {
        let quantiser = Quantiser {
            bits,
            clip,
            clips: Vec::new(),
            l2_clip,
            max_weight: 16.0,
            rounding,
            metric_bounds: vec![(-1.0, 1.0)],
            privacy: None,
            rotation: None,
        };
        let modulus = Modulus::new(modulus_bits(bits, 5).unwrap()).unwrap();
        let mut rng = Drawn::new(bits.into());
        let contribution = Contribution { update: &update, metrics: &metrics, weight: 4.0 };
        let encoded = quantiser.encode(contribution, update.len(), modulus, &mut rng).unwrap();
        let decoded = quantiser.decode(&encoded, update.len(), 1).unwrap();
        cases.push(json!({
            "bits": bits, "clip": clip, "l2_clip": l2_clip, "max_weight": 16.0, "rounding": name,
            "metric_bounds": [[-1.0, 1.0]], "update": update, "metrics": metrics, "weight": 4.0,
            "rounding_secret": hex(rng.take()), "modulus_bits": modulus.bits(), "encoded": encoded.to_u64(),
            "mean_decimal": decimal(&decoded.mean), "mean_metrics_decimal": decimal(&decoded.metrics),
            "total_weight_decimal": decoded.total_weight.to_string(), "error_bound_decimal": decoded.error_bound.to_string(),
        }));
    }
    let moduli: Vec<Value> = [(1u32, 1u32), (1, 2), (16, 20), (16, 1 << 16), (32, u32::MAX), (8, 257)]
        .into_iter()
        .map(|(q, n)| json!({ "bits": q, "clients": n, "modulus_bits": modulus_bits(q, n).unwrap() }))
        .collect();
    check("encoding.json", &json!({ "cases": cases, "moduli": moduli }));
}

#[test]
fn rotated_updates_are_those_in_the_vectors() {
    let round_id: [u8; 32] = std::array::from_fn(|i| i as u8);
    let mut cases = Vec::new();
    // Windows of 1, 4, 8 and 4096 elements; the last overlaps the one before at 6, 13 and 4100.
    for len in [1usize, 6, 8, 13, 4100] {
        let update: Vec<f32> = (0..len).map(|i| (37 * i % 101) as f32 / 64.0 - 0.75).collect();
        let quantiser = Quantiser {
            bits: 16,
            clip: 4.0,
            clips: Vec::new(),
            l2_clip: None,
            max_weight: 1.0,
            rounding: Rounding::Deterministic,
            metric_bounds: Vec::new(),
            privacy: None,
            rotation: Some(Rotation::of_round(RoundId(round_id))),
        };
        let modulus = Modulus::new(modulus_bits(16, 5).unwrap()).unwrap();
        let contribution = Contribution { update: &update, metrics: &[], weight: 1.0 };
        let encoded = quantiser.encode(contribution, len, modulus, &mut Drawn::new(0)).unwrap();
        let elements = &encoded.to_u64()[..len];
        let steps = |x: f32| (f64::from(x.clamp(-4.0, 4.0)) + 4.0) / 8.0 * 65535.0;
        for (element, x) in elements.iter().zip(derivation::rotate(&round_id, &update)) {
            assert!((*element as f64 - steps(x)).abs() < 0.501, "{len}: {element} for {x}");
        }
        let mean = quantiser.decode(&encoded, len, 1).unwrap().mean;
        assert!(mean.iter().zip(&update).all(|(a, b)| (a - b).abs() < 1e-2), "{len}");
        cases.push(json!({
            "len": len, "bits": 16, "clip": 4.0, "weight": 1.0, "max_weight": 1.0, "rounding": "deterministic",
            "round_id": hex(round_id), "modulus_bits": modulus.bits(), "packed": hex(encoded.pack()),
        }));
    }
    check("rotation.json", &json!({ "update": "element i is ((37 i) mod 101) / 64 - 0.75", "cases": cases }));
}

#[test]
fn degree_threshold_window_committee_and_quorum_are_those_in_the_vectors() {
    let mut cases = Vec::new();
    for (mode, name) in [(SecurityMode::Malicious, "malicious"), (SecurityMode::SemiHonest, "semi-honest")] {
        for n in [3u32, 4, 5, 6, 10, 20, 32, 33, 50, 100, 333, 1000, 10_000] {
            for (gamma, delta, min_colluders) in [
                (0.0, 0.0, 1),
                (0.05, 0.05, 1),
                (0.05, 0.1, 1),
                (0.05, 0.1, 3),
                (0.05, 0.2, 1),
                (0.1, 0.3, 1),
                (0.3, 0.4, 1),
            ] {
                let found = find(n, &Assumptions { gamma, delta, min_colluders, mode }).ok();
                let found = found.map(|found| {
                    json!({
                        "degree": found.degree, "threshold": found.threshold, "window_bound": found.window_bound,
                        "committee": found.committee.map(|committee| committee.size),
                        "quorum": found.committee.map(|committee| committee.quorum),
                    })
                });
                cases.push(json!({
                    "n": n, "gamma": gamma, "delta": delta, "min_colluders": min_colluders, "mode": name, "topology": found,
                }));
            }
        }
    }
    check("degree.json", &Value::Array(cases));
}

#[test]
fn rings_neighbours_windows_and_committees_are_those_in_the_vectors() {
    let mut cases = Vec::new();
    for (byte, n, degree, window_bound, size) in
        [(1u8, 5u32, 4u32, None, 5), (2, 6, 5, None, 0), (3, 20, 12, Some(1), 7), (4, 21, 4, None, 0)]
    {
        let cohort = CohortId([byte; 32]);
        let committee = (size > 0).then_some(Committee { size, quorum: size / 2 + 1 });
        let graph = Graph::new(cohort, n, Topology { degree, threshold: 2, window_bound, committee });
        let ring = derivation::ring(&cohort.0, n);
        assert_eq!(graph.committee(), derivation::committee(&cohort.0, n, size));
        let encapsulated =
            |u: u32| graph.neighbours(u).into_iter().filter(|&v| graph.encapsulates(u, v)).collect::<Vec<_>>();
        // A run of the ring that drops out, and whether the windows still hold.
        let windows: Vec<Value> = (0..n.min(8) as usize)
            .map(|gone| {
                let mut members = vec![true; n as usize];
                ring[..gone].iter().for_each(|&i| members[i as usize] = false);
                json!({ "first_places_gone": gone, "thin_window": graph.thin_window(&members) })
            })
            .collect();
        cases.push(json!({
            "cohort_id": hex(cohort.0), "n": n, "degree": degree, "window_bound": window_bound, "ring": ring,
            "committee": graph.committee(),
            "neighbours": (0..n).map(|u| graph.neighbours(u)).collect::<Vec<_>>(),
            "encapsulates_to": (0..n).map(encapsulated).collect::<Vec<_>>(), "windows": windows,
        }));
    }
    check("graph.json", &Value::Array(cases));
}

#[test]
fn key_files_are_those_in_the_vectors() {
    let mut rng = Drawn::new(9);
    let device = DeviceKeys::generate(&mut rng);
    let drawn = rng.take();
    let key = SigningKey::from_seed(Level::L65, &Secret32::from_bytes([4; 32]));
    let secret = Secret32::from_bytes([5; 32]);
    check(
        "keyfiles.json",
        &json!({
            "device_drawn": hex(drawn), "device_secret": *device.to_text(), "device_public": device.enrolment().to_text(),
            "release_key_hash": hex(roster::release_key_hash(device.release_key.encapsulation_key().as_bytes())),
            "registrar_seed": hex([4; 32]), "registrar_secret": *keyfile::signing_key_to_text(Role::Registrar, &key),
            "registrar_public": keyfile::verifying_key_to_text(Role::Registrar, &key.verifying_key()),
            "key_encryption_key": *keyfile::key_encryption_key_to_text(&secret),
        }),
    );
}

struct NoRecord;

impl VersionRecord for NoRecord {
    fn newest(&self, _: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(None)
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(0)
    }

    fn see(&mut self, _: &str, _: Seen, _: u64) -> Result<(), ReleaseError> {
        Ok(())
    }
}

#[test]
fn a_release_its_grant_and_its_wrapped_key_are_those_in_the_vectors() {
    let mut rng = Drawn::new(77);
    let publisher = SigningKey::from_seed(Level::L65, &Secret32::from_bytes([6; 32]));
    let device = DecapsulationKey::from_seed(&Secret32::from_bytes([7; 32]));
    let key = ContentKey::random(&mut rng);
    let content_key = rng.take();
    let fields = ReleaseHeader {
        model_id: "digits".into(),
        version: 3,
        previous: vec![0x11; 32],
        created_at: NOW,
        not_after: NOW + 100,
        payload_type: PayloadType::Safetensors as i32,
        key_id: "default".into(),
        key_version: 1,
        roster_epoch: 7,
        provenance: Some(Provenance {
            task: "vectors".into(),
            round_id: vec![0x22; 32],
            clients: 4,
            drop_outs: 1,
            mode: ProvenanceMode::Malicious as i32,
        }),
        ..ReleaseHeader::default()
    };
    let payload = b"not a model, but it need not be one";
    let (file, header) = seal(fields, payload, &key, Some(&publisher), &mut rng).unwrap();
    let salt = rng.take();
    let client_id = [0xc1; 16];
    let recipient = Recipient { client_id, key: device.encapsulation_key(), roster_epoch: 7 };
    let granted = grant(&header, &key, &recipient, Issuer::Key(&publisher), &mut rng).unwrap();
    let coins = rng.take();
    let body = GrantRequestBody {
        client_id: client_id.to_vec(),
        header_hash: header.hash.to_vec(),
        release_key: device.encapsulation_key().as_bytes().to_vec(),
        requested_at: NOW + 10,
    };
    let identity = SigningKey::from_seed(Level::L44, &Secret32::from_bytes([9; 32]));
    let request = signed::sign(&body, label::SIG_CLIENT_REQUEST, Some(&identity));
    let verified = identity.verifying_key().verify(label::SIG_CLIENT_REQUEST, &request.payload, &request.signature);
    assert_eq!(verified, Ok(()));
    let kek = KeyEncryptionKey::from_secret(Secret32::from_bytes([8; 32]));
    let wrapped = kek.wrap(&key, &header.hash).unwrap();

    // In semi-honest mode: proofs of the token in the place of the two signatures.
    let token_text = hex([0x5e; 15]) + "01";
    let token = Token::from_text(&token_text).unwrap();
    let proofs = [(label::MAC_CLIENT_REQUEST, &request.payload), (label::MAC_GRANT, &granted.payload)];
    let token_bytes = [&[0x5e; 15][..], &[1]].concat();
    let token_key = derive_secret(label::TOKEN_KEY, &token_bytes, &[]);
    let proofs = proofs.map(|(label, payload)| {
        let proof = token.prove(label, payload);
        assert_eq!(derive_secret(label, token_key.expose(), &[payload]).expose().as_slice(), proof);
        hex(proof)
    });

    // The parts, derived from the labelled functions.
    assert_eq!(hash(label::KEY_COMMITMENT, &[&content_key, &salt]).as_slice(), header.fields.key_commitment);
    let chunk_key = derive_secret(label::CHUNK_KEY, &content_key, &[&header.hash]);
    let (kem_ct, shared) = device.encapsulation_key().encapsulate_with_coins(coins.as_slice().try_into().unwrap());
    let wire = Grant::decode(granted.payload.as_slice()).unwrap();
    assert_eq!(wire.kem_ct, kem_ct);
    let unsealed = Grant { sealed_key: Vec::new(), ..wire.clone() }.encode_to_vec();
    let grant_key = derive_secret(label::GRANT_KEY, shared.expose(), &[&unsealed]);
    assert_eq!(*unisono_crypto::aead::open(&grant_key, &header.hash, &wire.sealed_key).unwrap(), content_key);

    let release = Release::parse(&file).unwrap();
    let publishers = vec![publisher.verifying_key()];
    let signed_grant = SignedGrant { payload: granted.payload.clone(), signature: granted.signature.clone() };
    let opened_key = open_grant(&signed_grant, &header, client_id, &device, Issuers::Keys(&publishers), 0).unwrap();
    let policy = OpenPolicy { min_roster_epoch: 7, ..OpenPolicy::release(publishers, 1000) };
    assert_eq!(*open(&release, &opened_key, &policy, &mut NoRecord, NOW).unwrap(), payload);
    check(
        "release.json",
        &json!({
            "publisher_seed": hex([6; 32]), "device_release_seed": hex([7; 32]), "client_id": hex(client_id),
            "content_key": hex(&content_key), "salt": hex(&salt), "payload": hex(payload), "now": NOW,
            "header_hash": hex(header.hash), "chunk_key": hex(chunk_key.expose()), "file": hex(&file),
            "grant_coins": hex(&coins), "grant_secret": hex(shared.expose()), "grant_key": hex(grant_key.expose()),
            "device_identity_seed": hex([9; 32]),
            "grant_request": { "payload": hex(&request.payload), "signature": hex(&request.signature) },
            "grant": { "payload": hex(&granted.payload), "signature": hex(&granted.signature) },
            "key_encryption_key": hex([8; 32]), "wrapped_key": hex(&wrapped),
            "token": token_text, "token_key": hex(token_key.expose()), "token_request_proof": proofs[0],
            "token_grant_proof": proofs[1],
        }),
    );
}
