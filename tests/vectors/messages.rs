//! Vectors of the messages: each one of `proto/unisono/v1/protocol.proto` and `release.proto` with every field set, and where
//! something may be absent, once more without it.
//!
//! As in `service.rs`, the bytes are put together from numbers and types of fields and compared with what the library writes
//! and reads. What `proto/` declares must all be in one of the two files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hex::encode as hex;
use prost::Message;
use serde_json::{Value, json};
use unisono_protocol::proto::*;
use unisono_protocol::proto::{client_message::Step, server_message::View};
use unisono_release::proto::{Grant, PayloadType, Provenance, ProvenanceMode, ReleaseHeader, SignedGrant};

use super::wire::Field::{self, Bytes, Double, Float, Varint};
use super::wire::{case, encode, packed};
use super::{check, service};

const ROUND: [u8; 32] = [0x11; 32];
const CLIENT: [u8; 16] = [0x22; 16];
const COHORT: [u8; 32] = [0x33; 32];
const HASH: [u8; 32] = [0x44; 32];
/// A path of two hashes in a tree.
const PATH: [[u8; 32]; 2] = [[0x45; 32], [0x46; 32]];

/// A message of which a case was made, for those that carry it.
struct Made<M> {
    message: M,
    bytes: Vec<u8>,
    json: Value,
}

impl<M> Made<M> {
    /// This message as a field of another.
    fn at(&self, number: u32) -> Field {
        Bytes(number, self.bytes.clone())
    }
}

#[derive(Default)]
struct Cases(Vec<Value>);

impl Cases {
    fn add<M: Message + Default + PartialEq>(
        &mut self,
        name: &str,
        message: M,
        fields: &[Field],
        json: Value,
    ) -> Made<M> {
        self.0.push(case(name, &message, fields, json.clone()));
        Made { message, bytes: encode(fields), json }
    }
}

/// `PATH` as the library has it, as a repeated field, and as JSON.
fn path(number: u32) -> (Vec<Vec<u8>>, [Field; 2], Value) {
    (PATH.map(|hash| hash.to_vec()).to_vec(), PATH.map(|hash| Bytes(number, hash.to_vec())), json!(PATH.map(hex)))
}

#[test]
fn the_messages_of_rounds_and_releases_are_those_in_the_vectors() {
    check("messages.json", &json!(cases()));
}

/// Every message, compared with what the library makes of it.
fn cases() -> Vec<Value> {
    let mut cases = Cases::default();
    let signed = signed(&mut cases);
    params(&mut cases);
    let proof = roster(&mut cases, &signed);
    offer_and_advert(&mut cases, &signed);
    let cohort = cohort(&mut cases, &signed, &proof);
    let (shares, masking) = shares(&mut cases, &signed);
    let (survivors, forwarded) = confirming(&mut cases);
    unmasking(&mut cases);
    client_messages(&mut cases, &signed, &shares);

    let json = json!({ "cohort": cohort.json });
    cases.add("ServerMessage", shown(View::Cohort(cohort.message.clone())), &[cohort.at(1)], json);
    let json = json!({ "masking": masking.json });
    cases.add("ServerMessage", shown(View::Masking(masking.message.clone())), &[masking.at(2)], json);
    let json = json!({ "survivors": survivors.json });
    cases.add("ServerMessage", shown(View::Survivors(survivors.message.clone())), &[survivors.at(3)], json);
    let json = json!({ "tags": forwarded.json });
    cases.add("ServerMessage", shown(View::Tags(forwarded.message.clone())), &[forwarded.at(4)], json);

    release(&mut cases);
    cases.0
}

fn shown(view: View) -> ServerMessage {
    ServerMessage { view: Some(view) }
}

fn signed(cases: &mut Cases) -> Made<Signed> {
    let (payload, signature) = (vec![0x55; 3], vec![0x56; 4]);
    cases.add(
        "Signed",
        Signed { payload: payload.clone(), signature: Vec::new() },
        &[Bytes(1, payload.clone())],
        json!({ "payload": hex(&payload), "signature": "" }),
    );
    cases.add(
        "Signed",
        Signed { payload: payload.clone(), signature: signature.clone() },
        &[Bytes(1, payload.clone()), Bytes(2, signature.clone())],
        json!({ "payload": hex(&payload), "signature": hex(&signature) }),
    )
}

fn params(cases: &mut Cases) {
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
    let plain = cases.add(
        "Quantiser",
        Quantiser {
            bits: 8,
            clip: 0.75,
            l2_clip: None,
            max_weight: 16.0,
            rounding: Rounding::Deterministic as i32,
            metrics: vec![accuracy.message, loss.message],
            privacy: None,
            rotate: false,
        },
        &[Varint(1, 8), Float(2, 0.75), Float(4, 16.0), Varint(5, 2), accuracy.at(6), loss.at(6)],
        json!({
            "bits": 8, "clip": 0.75, "l2_clip": null, "max_weight": 16.0, "rounding": "ROUNDING_DETERMINISTIC",
            "metrics": [accuracy.json, loss.json], "privacy": null, "rotate": false,
        }),
    );
    let quantiser = cases.add(
        "Quantiser",
        Quantiser {
            bits: 16,
            clip: 0.75,
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
            "metrics": [loss.json], "privacy": privacy.json, "rotate": true,
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
    };
    // Without roster, and without adversaries in the cohort.
    let semi_honest = RoundParams {
        roster_epoch: 0,
        roster_root: Vec::new(),
        modulus_bits: 16,
        quantiser: Some(plain.message.clone()),
        gamma: 0.0,
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
        ],
        json!({
            "task": "digits", "round": 300, "suite": 1, "roster_epoch": 7, "roster_root": hex(HASH),
            "dimension": 1_000_000, "modulus_bits": 24, "quantiser": quantiser.json, "n_min": 20, "n_max": 200,
            "gamma": 0.0625, "delta": 0.25, "mode": "SECURITY_MODE_MALICIOUS", "deadlines": deadlines.json,
            "model_version": 8, "model_hash": hex([0x57; 32]), "chunk_elements": 4096, "opened_at": 1_800_000_000,
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
        }),
    );
}

fn roster(cases: &mut Cases, signed: &Made<Signed>) -> Made<RosterProof> {
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
        ],
        json!({
            "epoch": 7, "root": hex(HASH), "size": 300, "issued_at": 1_800_000_000,
            "coordinator_keys": [hex([0x59; 3]), hex([0x5a; 4])], "publisher_keys": [hex([0x5b; 5]), hex([0x5c; 6])],
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

fn offer_and_advert(cases: &mut Cases, signed: &Made<Signed>) {
    cases.add(
        "RoundOffer",
        RoundOffer { params: Some(signed.message.clone()), roster_head: Some(signed.message.clone()) },
        &[signed.at(1), signed.at(2)],
        json!({ "params": signed.json, "roster_head": signed.json }),
    );
    cases.add(
        "RoundOffer",
        RoundOffer { params: Some(signed.message.clone()), roster_head: None },
        &[signed.at(1)],
        json!({ "params": signed.json, "roster_head": null }),
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

fn cohort(cases: &mut Cases, signed: &Made<Signed>, proof: &Made<RosterProof>) -> Made<CohortView> {
    // A bound of 0 is written; none is not.
    for window_bound in [Some(150u32), Some(0), None] {
        let mut fields =
            vec![Bytes(1, ROUND.to_vec()), Varint(2, 1000), Varint(3, 200), Varint(4, 130), Bytes(6, HASH.to_vec())];
        if let Some(bound) = window_bound {
            fields.insert(4, Varint(5, bound.into()));
        }
        fields.push(Bytes(7, vec![0x63; 32]));
        cases.add(
            "Cohort",
            Cohort {
                round_id: ROUND.to_vec(),
                n: 1000,
                degree: 200,
                threshold: 130,
                window_bound,
                adverts_root: HASH.to_vec(),
                members_hash: vec![0x63; 32],
            },
            &fields,
            json!({
                "round_id": hex(ROUND), "n": 1000, "degree": 200, "threshold": 130, "window_bound": window_bound,
                "adverts_root": hex(HASH), "members_hash": hex([0x63; 32]),
            }),
        );
    }
    let (advert_path, [first, second], path_json) = path(3);
    let near = cases.add(
        "NeighbourAdvert",
        NeighbourAdvert {
            index: 300,
            advert: Some(signed.message.clone()),
            advert_path: advert_path.clone(),
            roster: Some(proof.message.clone()),
        },
        &[Varint(1, 300), signed.at(2), first, second, proof.at(4)],
        json!({ "index": 300, "advert": signed.json, "advert_path": path_json, "roster": proof.json }),
    );
    // The first of the cohort, whose index is not written, in semi-honest mode.
    let (_, [first, second], _) = path(3);
    let first_client = cases.add(
        "NeighbourAdvert",
        NeighbourAdvert { index: 0, advert: Some(signed.message.clone()), advert_path, roster: None },
        &[signed.at(2), first, second],
        json!({ "index": 0, "advert": signed.json, "advert_path": path_json, "roster": null }),
    );
    let (own_path, [first, second], path_json) = path(3);
    cases.add(
        "CohortView",
        CohortView {
            cohort: Some(signed.message.clone()),
            index: 2,
            own_path,
            neighbours: vec![first_client.message.clone(), near.message.clone()],
            members: vec![0, 1, 300, 5_000_000_000],
        },
        &[
            signed.at(1),
            Varint(2, 2),
            first,
            second,
            first_client.at(4),
            near.at(4),
            packed(5, &[0, 1, 300, 5_000_000_000]),
        ],
        json!({
            "cohort": signed.json, "index": 2, "own_path": path_json, "neighbours": [first_client.json, near.json],
            "members": [0, 1, 300, 5_000_000_000u64],
        }),
    )
}

fn shares(cases: &mut Cases, signed: &Made<Signed>) -> (Made<ShareKeys>, Made<MaskingView>) {
    let encapsulated = cases.add(
        "NeighbourShares",
        NeighbourShares { from: 2, to: 300, channel_ct: vec![0x64; 5], sealed: vec![0x65; 6], mask_ct: vec![0x66; 7] },
        &[Varint(1, 2), Varint(2, 300), Bytes(3, vec![0x64; 5]), Bytes(4, vec![0x65; 6]), Bytes(5, vec![0x66; 7])],
        json!({
            "from": 2, "to": 300, "channel_ct": hex([0x64; 5]), "sealed": hex([0x65; 6]), "mask_ct": hex([0x66; 7]),
        }),
    );
    let message = cases.add(
        "NeighbourShares",
        NeighbourShares { from: 2, to: 0, channel_ct: vec![0x64; 5], sealed: vec![0x65; 6], mask_ct: Vec::new() },
        &[Varint(1, 2), Bytes(3, vec![0x64; 5]), Bytes(4, vec![0x65; 6])],
        json!({ "from": 2, "to": 0, "channel_ct": hex([0x64; 5]), "sealed": hex([0x65; 6]), "mask_ct": "" }),
    );
    cases.add(
        "SharePair",
        SharePair { from: 2, to: 300, self_mask_share: vec![0x67; 32], mask_share: vec![0x68; 32] },
        &[Varint(1, 2), Varint(2, 300), Bytes(3, vec![0x67; 32]), Bytes(4, vec![0x68; 32])],
        json!({ "from": 2, "to": 300, "self_mask_share": hex([0x67; 32]), "mask_share": hex([0x68; 32]) }),
    );
    cases.add(
        "SharesRoot",
        SharesRoot { cohort_id: COHORT.to_vec(), from: 2, count: 200, root: HASH.to_vec() },
        &[Bytes(1, COHORT.to_vec()), Varint(2, 2), Varint(3, 200), Bytes(4, HASH.to_vec())],
        json!({ "cohort_id": hex(COHORT), "from": 2, "count": 200, "root": hex(HASH) }),
    );
    let share_keys = cases.add(
        "ShareKeys",
        ShareKeys {
            root: Some(signed.message.clone()),
            messages: vec![message.bytes.clone(), encapsulated.bytes.clone()],
        },
        &[signed.at(1), message.at(2), encapsulated.at(2)],
        json!({ "root": signed.json, "messages": [hex(&message.bytes), hex(&encapsulated.bytes)] }),
    );
    let (path, [first, second], path_json) = path(4);
    let delivery = cases.add(
        "DeliveredShares",
        DeliveredShares {
            root: Some(signed.message.clone()),
            message: encapsulated.bytes.clone(),
            position: 130,
            path: path.clone(),
        },
        &[signed.at(1), encapsulated.at(2), Varint(3, 130), first, second],
        json!({ "root": signed.json, "message": hex(&encapsulated.bytes), "position": 130, "path": path_json }),
    );
    // The first of its sender's messages: its position is not written.
    let first_of_sender = cases.add(
        "DeliveredShares",
        DeliveredShares {
            root: Some(signed.message.clone()),
            message: message.bytes.clone(),
            position: 0,
            path: Vec::new(),
        },
        &[signed.at(1), message.at(2)],
        json!({ "root": signed.json, "message": hex(&message.bytes), "position": 0, "path": [] }),
    );
    let masking = cases.add(
        "MaskingView",
        MaskingView {
            cohort_id: COHORT.to_vec(),
            shared: vec![0xff, 0x07],
            deliveries: vec![first_of_sender.message.clone(), delivery.message.clone()],
        },
        &[Bytes(1, COHORT.to_vec()), Bytes(2, vec![0xff, 0x07]), first_of_sender.at(3), delivery.at(3)],
        json!({
            "cohort_id": hex(COHORT), "shared": hex([0xff, 0x07]),
            "deliveries": [first_of_sender.json, delivery.json],
        }),
    );
    (share_keys, masking)
}

fn confirming(cases: &mut Cases) -> (Made<SurvivorsView>, Made<ForwardedTags>) {
    cases.add(
        "UploadHeader",
        UploadHeader { cohort_id: COHORT.to_vec(), from: 300, length: 5_000_000_000, hash: HASH.to_vec() },
        &[Bytes(1, COHORT.to_vec()), Varint(2, 300), Varint(3, 5_000_000_000), Bytes(4, HASH.to_vec())],
        json!({ "cohort_id": hex(COHORT), "from": 300, "length": 5_000_000_000u64, "hash": hex(HASH) }),
    );
    let survivors = cases.add(
        "SurvivorsView",
        SurvivorsView { cohort_id: COHORT.to_vec(), survivors: vec![0xfe, 0x05] },
        &[Bytes(1, COHORT.to_vec()), Bytes(2, vec![0xfe, 0x05])],
        json!({ "cohort_id": hex(COHORT), "survivors": hex([0xfe, 0x05]) }),
    );
    let first = cases.add(
        "Tag",
        Tag { neighbour: 0, tag: vec![0x69; 16] },
        &[Bytes(2, vec![0x69; 16])],
        json!({ "neighbour": 0, "tag": hex([0x69; 16]) }),
    );
    let second = cases.add(
        "Tag",
        Tag { neighbour: 300, tag: vec![0x6a; 16] },
        &[Varint(1, 300), Bytes(2, vec![0x6a; 16])],
        json!({ "neighbour": 300, "tag": hex([0x6a; 16]) }),
    );
    let tags = vec![first.message.clone(), second.message.clone()];
    cases.add(
        "ConsistencyTags",
        ConsistencyTags { cohort_id: COHORT.to_vec(), from: 130, tags: tags.clone() },
        &[Bytes(1, COHORT.to_vec()), Varint(2, 130), first.at(3), second.at(3)],
        json!({ "cohort_id": hex(COHORT), "from": 130, "tags": [first.json, second.json] }),
    );
    let forwarded = cases.add(
        "ForwardedTags",
        ForwardedTags { cohort_id: COHORT.to_vec(), tags },
        &[Bytes(1, COHORT.to_vec()), first.at(2), second.at(2)],
        json!({ "cohort_id": hex(COHORT), "tags": [first.json, second.json] }),
    );
    (survivors, forwarded)
}

fn unmasking(cases: &mut Cases) {
    let of_survivor = cases.add(
        "ReleasedShare",
        ReleasedShare { of: 1, kind: SecretKind::SelfMask as i32, value: vec![0x6b; 32] },
        &[Varint(1, 1), Varint(2, 1), Bytes(3, vec![0x6b; 32])],
        json!({ "of": 1, "kind": "SECRET_KIND_SELF_MASK", "value": hex([0x6b; 32]) }),
    );
    let of_vanished = cases.add(
        "ReleasedShare",
        ReleasedShare { of: 300, kind: SecretKind::Mask as i32, value: vec![0x6c; 32] },
        &[Varint(1, 300), Varint(2, 2), Bytes(3, vec![0x6c; 32])],
        json!({ "of": 300, "kind": "SECRET_KIND_MASK", "value": hex([0x6c; 32]) }),
    );
    cases.add(
        "UnmaskShares",
        UnmaskShares {
            cohort_id: COHORT.to_vec(),
            from: 130,
            shares: vec![of_survivor.message.clone(), of_vanished.message.clone()],
            unreadable: vec![0, 301],
            invalid_tags: vec![5],
        },
        &[
            Bytes(1, COHORT.to_vec()),
            Varint(2, 130),
            of_survivor.at(3),
            of_vanished.at(3),
            packed(4, &[0, 301]),
            packed(5, &[5]),
        ],
        json!({
            "cohort_id": hex(COHORT), "from": 130, "shares": [of_survivor.json, of_vanished.json],
            "unreadable": [0, 301], "invalid_tags": [5],
        }),
    );
}

fn client_messages(cases: &mut Cases, signed: &Made<Signed>, shares: &Made<ShareKeys>) {
    let content = || signed.message.clone();
    for (step, field, name, json) in [
        (Step::Advert(content()), signed.at(3), "advert", &signed.json),
        (Step::ShareKeys(shares.message.clone()), shares.at(4), "share_keys", &shares.json),
        (Step::Upload(content()), signed.at(5), "upload", &signed.json),
        (Step::Tags(content()), signed.at(6), "tags", &signed.json),
        (Step::Unmask(content()), signed.at(7), "unmask", &signed.json),
    ] {
        cases.add(
            "ClientMessage",
            ClientMessage { round_id: ROUND.to_vec(), client_id: CLIENT.to_vec(), step: Some(step) },
            &[Bytes(1, ROUND.to_vec()), Bytes(2, CLIENT.to_vec()), field],
            json!({ "round_id": hex(ROUND), "client_id": hex(CLIENT), name: json }),
        );
    }
}

fn release(cases: &mut Cases) {
    let mut provenance = |mode: ProvenanceMode, number: u64, name: &str| {
        cases.add(
            "Provenance",
            Provenance {
                task: "digits".into(),
                round_id: ROUND.to_vec(),
                clients: 180,
                drop_outs: 20,
                mode: mode as i32,
            },
            &[Bytes(1, b"digits".into()), Bytes(2, ROUND.to_vec()), Varint(3, 180), Varint(4, 20), Varint(5, number)],
            json!({ "task": "digits", "round_id": hex(ROUND), "clients": 180, "drop_outs": 20, "mode": name }),
        )
    };
    provenance(ProvenanceMode::SemiHonest, 2, "PROVENANCE_MODE_SEMI_HONEST");
    let provenance = provenance(ProvenanceMode::Malicious, 1, "PROVENANCE_MODE_MALICIOUS");
    let header = ReleaseHeader {
        suite: 1,
        model_id: "digits".into(),
        version: 300,
        previous: HASH.to_vec(),
        created_at: 1_800_000_000,
        not_after: 1_900_000_000,
        payload_type: PayloadType::Safetensors as i32,
        payload_length: 5_000_000_000,
        chunk_length: 65_536,
        key_id: "default".into(),
        key_version: 2,
        publisher_id: vec![0x71; 32],
        roster_epoch: 7,
        provenance: Some(provenance.message.clone()),
        salt: vec![0x72; 32],
        key_commitment: vec![0x73; 32],
    };
    // The first release of a model that no round has trained.
    let first = ReleaseHeader { version: 1, previous: Vec::new(), provenance: None, ..header.clone() };
    cases.add(
        "ReleaseHeader",
        header,
        &[
            Varint(1, 1),
            Bytes(2, b"digits".into()),
            Varint(3, 300),
            Bytes(4, HASH.to_vec()),
            Varint(5, 1_800_000_000),
            Varint(6, 1_900_000_000),
            Varint(7, 1),
            Varint(8, 5_000_000_000),
            Varint(9, 65_536),
            Bytes(10, b"default".into()),
            Varint(11, 2),
            Bytes(12, vec![0x71; 32]),
            Varint(13, 7),
            provenance.at(14),
            Bytes(15, vec![0x72; 32]),
            Bytes(16, vec![0x73; 32]),
        ],
        json!({
            "suite": 1, "model_id": "digits", "version": 300, "previous": hex(HASH), "created_at": 1_800_000_000,
            "not_after": 1_900_000_000, "payload_type": "PAYLOAD_TYPE_SAFETENSORS", "payload_length": 5_000_000_000u64,
            "chunk_length": 65_536, "key_id": "default", "key_version": 2, "publisher_id": hex([0x71; 32]),
            "roster_epoch": 7, "provenance": provenance.json, "salt": hex([0x72; 32]),
            "key_commitment": hex([0x73; 32]),
        }),
    );
    cases.add(
        "ReleaseHeader",
        first,
        &[
            Varint(1, 1),
            Bytes(2, b"digits".into()),
            Varint(3, 1),
            Varint(5, 1_800_000_000),
            Varint(6, 1_900_000_000),
            Varint(7, 1),
            Varint(8, 5_000_000_000),
            Varint(9, 65_536),
            Bytes(10, b"default".into()),
            Varint(11, 2),
            Bytes(12, vec![0x71; 32]),
            Varint(13, 7),
            Bytes(15, vec![0x72; 32]),
            Bytes(16, vec![0x73; 32]),
        ],
        json!({
            "suite": 1, "model_id": "digits", "version": 1, "previous": "", "created_at": 1_800_000_000,
            "not_after": 1_900_000_000, "payload_type": "PAYLOAD_TYPE_SAFETENSORS", "payload_length": 5_000_000_000u64,
            "chunk_length": 65_536, "key_id": "default", "key_version": 2, "publisher_id": hex([0x71; 32]),
            "roster_epoch": 7, "provenance": null, "salt": hex([0x72; 32]), "key_commitment": hex([0x73; 32]),
        }),
    );
    let grant = cases.add(
        "Grant",
        Grant {
            suite: 1,
            header_hash: HASH.to_vec(),
            client_id: CLIENT.to_vec(),
            release_key_hash: vec![0x74; 32],
            roster_epoch: 7,
            kem_ct: vec![0x75; 5],
            sealed_key: vec![0x76; 48],
        },
        &[
            Varint(1, 1),
            Bytes(2, HASH.to_vec()),
            Bytes(3, CLIENT.to_vec()),
            Bytes(4, vec![0x74; 32]),
            Varint(5, 7),
            Bytes(6, vec![0x75; 5]),
            Bytes(7, vec![0x76; 48]),
        ],
        json!({
            "suite": 1, "header_hash": hex(HASH), "client_id": hex(CLIENT), "release_key_hash": hex([0x74; 32]),
            "roster_epoch": 7, "kem_ct": hex([0x75; 5]), "sealed_key": hex([0x76; 48]),
        }),
    );
    cases.add(
        "SignedGrant",
        SignedGrant { payload: grant.bytes.clone(), signature: vec![0x77; 4] },
        &[grant.at(1), Bytes(2, vec![0x77; 4])],
        json!({ "payload": hex(&grant.bytes), "signature": hex([0x77; 4]) }),
    );
}

/// What a file of `proto/` declares, one declaration a line: messages with their fields, and values of enums.
fn declared(text: &str) -> (BTreeMap<&str, Vec<&str>>, Vec<&str>) {
    let (mut messages, mut values) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
    // Kind of each open block, and the message that its fields are of.
    let mut open: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split("//").next().unwrap_or_default().split_whitespace().collect();
        match words[..] {
            ["message", name, block @ ("{" | "{}")] => {
                messages.entry(name).or_default();
                if block == "{" {
                    open.push(("message", name));
                }
            }
            [kind @ ("enum" | "oneof" | "service"), name, "{"] => {
                open.push((kind, open.last().map_or(name, |&(_, message)| message)));
            }
            ["}"] => assert!(open.pop().is_some()),
            [.., name, "=", _] => match open.last() {
                Some(&("enum", _)) => values.push(name),
                Some(&(_, message)) => messages.entry(message).or_default().push(name),
                None => {}
            },
            _ => {
                let declares = ["=", "{", "{}"].iter().any(|sign| words.contains(sign));
                assert!(!declares, "{line:?} is not read here");
            }
        }
    }
    assert!(open.is_empty(), "a block is open at the end");
    (messages, values)
}

#[test]
fn every_message_field_and_value_that_is_declared_is_in_a_vector() {
    let cases = [cases(), service::cases()].concat();
    let text = json!(cases).to_string();
    let unset = [json!(null), json!(""), json!([]), json!(0), json!(0.0), json!(false)];
    for file in ["protocol.proto", "release.proto", "service.proto"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/unisono/v1").join(file);
        let definitions = fs::read_to_string(path).unwrap();
        let (messages, values) = declared(&definitions);
        assert!(messages.len() > 3, "{file}");
        for (message, fields) in messages {
            let of_it: Vec<&Value> =
                cases.iter().filter(|case| case["message"] == message).map(|case| &case["fields"]).collect();
            assert!(!of_it.is_empty(), "{message} is in no vector");
            for field in fields {
                let is_set = of_it.iter().any(|case| case.get(field).is_some_and(|value| !unset.contains(value)));
                assert!(is_set, "{message}.{field} is set in no vector");
            }
        }
        // The first value of each is what is not written.
        for value in values.iter().filter(|value| !value.ends_with("_UNSPECIFIED")) {
            assert!(text.contains(&format!("{value:?}")), "{value} is in no vector");
        }
    }
}
