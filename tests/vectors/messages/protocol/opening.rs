//! What a round opens with: its parameters, the roster, the offer to a client, and the client's advert.

use hex::encode as hex;
use serde_json::json;
use unisono_protocol::proto::*;

use super::path;
use crate::messages::{CLIENT, Cases, HASH, Made, ROUND};
use crate::wire::Field::{Bytes, Double, Float, Varint};

pub fn params(cases: &mut Cases) {
    let accuracy = cases.add(
        "MetricBound",
        MetricBound { lower: 0.0, upper: 1.0 },
        &[Float(2, 1.0)],
        json!({ "lower": 0.0, "upper": 1.0 }),
    );
    let loss = cases.add(
        "MetricBound",
        MetricBound { lower: -1.5, upper: 40.25 },
        &[Float(1, -1.5), Float(2, 40.25)],
        json!({ "lower": -1.5, "upper": 40.25 }),
    );
    let privacy = cases.add(
        "Privacy",
        Privacy { noise_variance: 1_234_567.890_625 },
        &[Double(1, 1_234_567.890_625)],
        json!({ "noise_variance": 1_234_567.890_625 }),
    );
    let narrow = cases.add(
        "ClipRun",
        ClipRun { elements: 300, clip: 0.125 },
        &[Varint(1, 300), Float(2, 0.125)],
        json!({ "elements": 300, "clip": 0.125 }),
    );
    let wide = cases.add(
        "ClipRun",
        ClipRun { elements: 1, clip: 50.0 },
        &[Varint(1, 1), Float(2, 50.0)],
        json!({ "elements": 1, "clip": 50.0 }),
    );
    let plain = cases.add(
        "Quantiser",
        Quantiser {
            bits: 8,
            clip: 0.75,
            clips: vec![narrow.message, wide.message],
            l2_clip: None,
            max_weight: 16.0,
            rounding: Rounding::Deterministic as i32,
            metrics: vec![accuracy.message, loss.message],
            privacy: None,
            rotate: false,
        },
        &[
            Varint(1, 8),
            Float(2, 0.75),
            Float(4, 16.0),
            Varint(5, 2),
            accuracy.at(6),
            loss.at(6),
            narrow.at(9),
            wide.at(9),
        ],
        json!({
            "bits": 8, "clip": 0.75, "l2_clip": null, "max_weight": 16.0, "rounding": "ROUNDING_DETERMINISTIC",
            "metrics": [accuracy.json, loss.json], "privacy": null, "rotate": false, "clips": [narrow.json, wide.json],
        }),
    );
    let quantiser = cases.add(
        "Quantiser",
        Quantiser {
            bits: 16,
            clip: 0.75,
            clips: Vec::new(),
            l2_clip: Some(3.125),
            max_weight: 1.0,
            rounding: Rounding::Stochastic as i32,
            metrics: vec![loss.message],
            privacy: Some(privacy.message),
            rotate: true,
        },
        &[
            Varint(1, 16),
            Float(2, 0.75),
            Float(3, 3.125),
            Float(4, 1.0),
            Varint(5, 1),
            loss.at(6),
            privacy.at(7),
            Varint(8, 1),
        ],
        json!({
            "bits": 16, "clip": 0.75, "l2_clip": 3.125, "max_weight": 1.0, "rounding": "ROUNDING_STOCHASTIC",
            "metrics": [loss.json], "privacy": privacy.json, "rotate": true, "clips": [],
        }),
    );
    let deadlines = cases.add(
        "PhaseDeadlines",
        PhaseDeadlines {
            advertise_ms: 100,
            share_ms: 1000,
            mask_ms: 5_000_000_000,
            confirm_ms: 20_000,
            unmask_ms: 300_000,
        },
        &[Varint(1, 100), Varint(2, 1000), Varint(3, 5_000_000_000), Varint(4, 20_000), Varint(5, 300_000)],
        json!({
            "advertise_ms": 100, "share_ms": 1000, "mask_ms": 5_000_000_000u64, "confirm_ms": 20_000,
            "unmask_ms": 300_000,
        }),
    );
    let malicious = RoundParams {
        task: "digits".into(),
        round: 300,
        suite: 1,
        roster_epoch: 7,
        roster_root: HASH.to_vec(),
        dimension: 1_000_000,
        modulus_bits: 24,
        quantiser: Some(quantiser.message.clone()),
        n_min: 20,
        n_max: 200,
        gamma: 0.0625,
        delta: 0.25,
        mode: SecurityMode::Malicious as i32,
        deadlines: Some(deadlines.message),
        model_version: 8,
        model_hash: vec![0x57; 32],
        chunk_elements: 4096,
        opened_at: 1_800_000_000,
        min_colluders: 3,
    };
    // Without roster, and without colluders: a 0 is not written, and counts as 1.
    let semi_honest = RoundParams {
        roster_epoch: 0,
        roster_root: Vec::new(),
        modulus_bits: 16,
        quantiser: Some(plain.message.clone()),
        gamma: 0.0,
        min_colluders: 0,
        mode: SecurityMode::SemiHonest as i32,
        ..malicious.clone()
    };
    cases.add(
        "RoundParams",
        malicious,
        &[
            Bytes(1, b"digits".into()),
            Varint(2, 300),
            Varint(3, 1),
            Varint(4, 7),
            Bytes(5, HASH.to_vec()),
            Varint(6, 1_000_000),
            Varint(7, 24),
            quantiser.at(8),
            Varint(9, 20),
            Varint(10, 200),
            Double(11, 0.0625),
            Double(12, 0.25),
            Varint(13, 1),
            deadlines.at(14),
            Varint(15, 8),
            Bytes(16, vec![0x57; 32]),
            Varint(17, 4096),
            Varint(18, 1_800_000_000),
            Varint(19, 3),
        ],
        json!({
            "task": "digits", "round": 300, "suite": 1, "roster_epoch": 7, "roster_root": hex(HASH),
            "dimension": 1_000_000, "modulus_bits": 24, "quantiser": quantiser.json, "n_min": 20, "n_max": 200,
            "gamma": 0.0625, "delta": 0.25, "mode": "SECURITY_MODE_MALICIOUS", "deadlines": deadlines.json,
            "model_version": 8, "model_hash": hex([0x57; 32]), "chunk_elements": 4096, "opened_at": 1_800_000_000,
            "min_colluders": 3,
        }),
    );
    cases.add(
        "RoundParams",
        semi_honest,
        &[
            Bytes(1, b"digits".into()),
            Varint(2, 300),
            Varint(3, 1),
            Varint(6, 1_000_000),
            Varint(7, 16),
            plain.at(8),
            Varint(9, 20),
            Varint(10, 200),
            Double(12, 0.25),
            Varint(13, 2),
            deadlines.at(14),
            Varint(15, 8),
            Bytes(16, vec![0x57; 32]),
            Varint(17, 4096),
            Varint(18, 1_800_000_000),
        ],
        json!({
            "task": "digits", "round": 300, "suite": 1, "roster_epoch": 0, "roster_root": "",
            "dimension": 1_000_000, "modulus_bits": 16, "quantiser": plain.json, "n_min": 20, "n_max": 200,
            "gamma": 0.0, "delta": 0.25, "mode": "SECURITY_MODE_SEMI_HONEST", "deadlines": deadlines.json,
            "model_version": 8, "model_hash": hex([0x57; 32]), "chunk_elements": 4096, "opened_at": 1_800_000_000,
            "min_colluders": 0,
        }),
    );
}

pub fn roster(cases: &mut Cases, signed: &Made<Signed>) -> Made<RosterProof> {
    let mut attribute = |name: &str, value: &str| {
        cases.add(
            "Attribute",
            Attribute { name: name.into(), value: value.into() },
            &[Bytes(1, name.into()), Bytes(2, value.into())],
            json!({ "name": name, "value": value }),
        )
    };
    let (model, site) = (attribute("model", "gateway 3"), attribute("site", "Zürich"));
    let leaf = cases.add(
        "RosterLeaf",
        RosterLeaf {
            client_id: CLIENT.to_vec(),
            identity_key: vec![0x58; 5],
            release_key_hash: HASH.to_vec(),
            not_before: 1_700_000_000,
            not_after: 1_900_000_000,
            attributes: vec![model.message.clone(), site.message.clone()],
        },
        &[
            Bytes(1, CLIENT.to_vec()),
            Bytes(2, vec![0x58; 5]),
            Bytes(3, HASH.to_vec()),
            Varint(4, 1_700_000_000),
            Varint(5, 1_900_000_000),
            model.at(6),
            site.at(6),
        ],
        json!({
            "client_id": hex(CLIENT), "identity_key": hex([0x58; 5]), "release_key_hash": hex(HASH),
            "not_before": 1_700_000_000, "not_after": 1_900_000_000, "attributes": [model.json, site.json],
        }),
    );
    cases.add(
        "RosterHead",
        RosterHead {
            epoch: 7,
            root: HASH.to_vec(),
            size: 300,
            issued_at: 1_800_000_000,
            coordinator_keys: vec![vec![0x59; 3], vec![0x5a; 4]],
            publisher_keys: vec![vec![0x5b; 5], vec![0x5c; 6]],
            valid_until: 1_900_000_000,
        },
        &[
            Varint(1, 7),
            Bytes(2, HASH.to_vec()),
            Varint(3, 300),
            Varint(4, 1_800_000_000),
            Bytes(5, vec![0x59; 3]),
            Bytes(5, vec![0x5a; 4]),
            Bytes(6, vec![0x5b; 5]),
            Bytes(6, vec![0x5c; 6]),
            Varint(7, 1_900_000_000),
        ],
        json!({
            "epoch": 7, "root": hex(HASH), "size": 300, "issued_at": 1_800_000_000,
            "coordinator_keys": [hex([0x59; 3]), hex([0x5a; 4])], "publisher_keys": [hex([0x5b; 5]), hex([0x5c; 6])],
            "valid_until": 1_900_000_000,
        }),
    );
    cases.add(
        "RosterFile",
        RosterFile { head: Some(signed.message.clone()), leaves: vec![leaf.bytes.clone(), vec![0x5d; 3]] },
        &[signed.at(1), leaf.at(2), Bytes(2, vec![0x5d; 3])],
        json!({ "head": signed.json, "leaves": [hex(&leaf.bytes), hex([0x5d; 3])] }),
    );
    let (path, [first, second], path_json) = path(3);
    cases.add(
        "RosterProof",
        RosterProof { leaf: leaf.bytes.clone(), index: 130, path },
        &[leaf.at(1), Varint(2, 130), first, second],
        json!({ "leaf": hex(&leaf.bytes), "index": 130, "path": path_json }),
    )
}

pub fn offer_and_advert(cases: &mut Cases, signed: &Made<Signed>) {
    cases.add(
        "RoundOffer",
        RoundOffer {
            params: Some(signed.message.clone()),
            roster_head: Some(signed.message.clone()),
            base_model: Some(signed.message.clone()),
        },
        &[signed.at(1), signed.at(2), signed.at(3)],
        json!({ "params": signed.json, "roster_head": signed.json, "base_model": signed.json }),
    );
    cases.add(
        "RoundOffer",
        RoundOffer { params: Some(signed.message.clone()), roster_head: None, base_model: None },
        &[signed.at(1)],
        json!({ "params": signed.json, "roster_head": null, "base_model": null }),
    );
    cases.add(
        "BaseModel",
        BaseModel { task: "digits".into(), version: 300, hash: HASH.to_vec() },
        &[Bytes(1, b"digits".into()), Varint(2, 300), Bytes(3, HASH.to_vec())],
        json!({ "task": "digits", "version": 300, "hash": hex(HASH) }),
    );
    cases.add(
        "Advert",
        Advert {
            round_id: ROUND.to_vec(),
            client_id: CLIENT.to_vec(),
            mask_ek: vec![0x61; 5],
            channel_ek: vec![0x62; 6],
            self_mask_commitment: HASH.to_vec(),
        },
        &[
            Bytes(1, ROUND.to_vec()),
            Bytes(2, CLIENT.to_vec()),
            Bytes(3, vec![0x61; 5]),
            Bytes(4, vec![0x62; 6]),
            Bytes(5, HASH.to_vec()),
        ],
        json!({
            "round_id": hex(ROUND), "client_id": hex(CLIENT), "mask_ek": hex([0x61; 5]), "channel_ek": hex([0x62; 6]),
            "self_mask_commitment": hex(HASH),
        }),
    );
}
