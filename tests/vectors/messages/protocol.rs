//! The messages of `protocol.proto`: in `opening.rs` what a round opens with, here what comes after, and what carries the others.

mod opening;

use hex::encode as hex;
use serde_json::{Value, json};
use unisono_protocol::proto::*;
use unisono_protocol::proto::{client_message::Step, server_message::View};

use super::{CLIENT, COHORT, Cases, HASH, Made, ROUND};
use crate::wire::Field::{self, Bytes, Varint};
use crate::wire::packed;

/// A path of two hashes in a tree.
const PATH: [[u8; 32]; 2] = [[0x45; 32], [0x46; 32]];

/// `PATH` as the library has it, as a repeated field, and as JSON.
fn path(number: u32) -> (Vec<Vec<u8>>, [Field; 2], Value) {
    (PATH.map(|hash| hash.to_vec()).to_vec(), PATH.map(|hash| Bytes(number, hash.to_vec())), json!(PATH.map(hex)))
}

/// Every message of the file.
pub fn add_to(cases: &mut Cases) {
    let signed = signed(cases);
    opening::params(cases);
    let proof = opening::roster(cases, &signed);
    opening::offer_and_advert(cases, &signed);
    let cohort = cohort(cases, &signed, &proof);
    let (shares, masking) = shares(cases, &signed);
    let (survivors, certificate) = confirming(cases, &proof);
    unmasking(cases);
    client_messages(cases, &signed, &shares);
    server_messages(cases, &cohort, &masking, &survivors, &certificate);
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

fn cohort(cases: &mut Cases, signed: &Made<Signed>, proof: &Made<RosterProof>) -> Made<CohortView> {
    // A bound of 0 is written; none is not. No committee, in semi-honest mode, is not written either.
    for (window_bound, committee, quorum) in [(Some(150u32), 58, 45), (Some(0), 1000, 526), (None, 0, 0)] {
        let mut fields =
            vec![Bytes(1, ROUND.to_vec()), Varint(2, 1000), Varint(3, 200), Varint(4, 130), Bytes(6, HASH.to_vec())];
        if let Some(bound) = window_bound {
            fields.insert(4, Varint(5, bound.into()));
        }
        fields.push(Bytes(7, vec![0x63; 32]));
        if committee > 0 {
            fields.extend([Varint(8, committee.into()), Varint(9, quorum.into())]);
        }
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
                committee,
                quorum,
            },
            &fields,
            json!({
                "round_id": hex(ROUND), "n": 1000, "degree": 200, "threshold": 130, "window_bound": window_bound,
                "adverts_root": hex(HASH), "members_hash": hex([0x63; 32]), "committee": committee, "quorum": quorum,
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
            own_roster: Some(proof.message.clone()),
        },
        &[
            signed.at(1),
            Varint(2, 2),
            first,
            second,
            first_client.at(4),
            near.at(4),
            packed(5, &[0, 1, 300, 5_000_000_000]),
            proof.at(6),
        ],
        json!({
            "cohort": signed.json, "index": 2, "own_path": path_json, "neighbours": [first_client.json, near.json],
            "members": [0, 1, 300, 5_000_000_000u64], "own_roster": proof.json,
        }),
    )
}

fn shares(cases: &mut Cases, signed: &Made<Signed>) -> (Made<ShareKeys>, Made<MaskingView>) {
    let encapsulated = cases.add(
        "NeighbourShares",
        NeighbourShares {
            from: 2,
            to: 300,
            channel_ct: vec![0x64; 5],
            sealed: vec![0x65; 6],
            mask_ct: vec![0x66; 7],
            self_mask_commitment: vec![0x6e; 16],
            mask_commitment: vec![0x6f; 16],
        },
        &[
            Varint(1, 2),
            Varint(2, 300),
            Bytes(3, vec![0x64; 5]),
            Bytes(4, vec![0x65; 6]),
            Bytes(5, vec![0x66; 7]),
            Bytes(6, vec![0x6e; 16]),
            Bytes(7, vec![0x6f; 16]),
        ],
        json!({
            "from": 2, "to": 300, "channel_ct": hex([0x64; 5]), "sealed": hex([0x65; 6]), "mask_ct": hex([0x66; 7]),
            "self_mask_commitment": hex([0x6e; 16]), "mask_commitment": hex([0x6f; 16]),
        }),
    );
    let message = cases.add(
        "NeighbourShares",
        NeighbourShares {
            from: 2,
            to: 0,
            channel_ct: vec![0x64; 5],
            sealed: vec![0x65; 6],
            mask_ct: Vec::new(),
            self_mask_commitment: vec![0x6e; 16],
            mask_commitment: vec![0x6f; 16],
        },
        &[
            Varint(1, 2),
            Bytes(3, vec![0x64; 5]),
            Bytes(4, vec![0x65; 6]),
            Bytes(6, vec![0x6e; 16]),
            Bytes(7, vec![0x6f; 16]),
        ],
        json!({
            "from": 2, "to": 0, "channel_ct": hex([0x64; 5]), "sealed": hex([0x65; 6]), "mask_ct": "",
            "self_mask_commitment": hex([0x6e; 16]), "mask_commitment": hex([0x6f; 16]),
        }),
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

fn confirming(cases: &mut Cases, proof: &Made<RosterProof>) -> (Made<SurvivorsView>, Made<Certificate>) {
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
    // The first of the cohort, whose index is not written, and without a leaf, as in a complete graph.
    let first = cases.add(
        "Endorsement",
        Endorsement { signer: 0, signature: vec![0x69; 5], roster: None },
        &[Bytes(2, vec![0x69; 5])],
        json!({ "signer": 0, "signature": hex([0x69; 5]), "roster": null }),
    );
    let second = cases.add(
        "Endorsement",
        Endorsement { signer: 300, signature: vec![0x6a; 6], roster: Some(proof.message.clone()) },
        &[Varint(1, 300), Bytes(2, vec![0x6a; 6]), proof.at(3)],
        json!({ "signer": 300, "signature": hex([0x6a; 6]), "roster": proof.json }),
    );
    let certificate = cases.add(
        "Certificate",
        Certificate {
            cohort_id: COHORT.to_vec(),
            sharers_hash: HASH.to_vec(),
            survivors: vec![0xfe, 0x05],
            endorsements: vec![first.message.clone(), second.message.clone()],
        },
        &[Bytes(1, COHORT.to_vec()), Bytes(2, HASH.to_vec()), Bytes(3, vec![0xfe, 0x05]), first.at(4), second.at(4)],
        json!({
            "cohort_id": hex(COHORT), "sharers_hash": hex(HASH), "survivors": hex([0xfe, 0x05]),
            "endorsements": [first.json, second.json],
        }),
    );
    (survivors, certificate)
}

fn unmasking(cases: &mut Cases) {
    let of_survivor = cases.add(
        "RevealedShare",
        RevealedShare { of: 1, kind: SecretKind::SelfMask as i32, value: vec![0x6b; 32] },
        &[Varint(1, 1), Varint(2, 1), Bytes(3, vec![0x6b; 32])],
        json!({ "of": 1, "kind": "SECRET_KIND_SELF_MASK", "value": hex([0x6b; 32]) }),
    );
    let of_vanished = cases.add(
        "RevealedShare",
        RevealedShare { of: 300, kind: SecretKind::Mask as i32, value: vec![0x6c; 32] },
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
            self_mask_secret: vec![0x6d; 32],
        },
        &[
            Bytes(1, COHORT.to_vec()),
            Varint(2, 130),
            of_survivor.at(3),
            of_vanished.at(3),
            packed(4, &[0, 301]),
            Bytes(5, vec![0x6d; 32]),
        ],
        json!({
            "cohort_id": hex(COHORT), "from": 130, "shares": [of_survivor.json, of_vanished.json],
            "unreadable": [0, 301], "self_mask_secret": hex([0x6d; 32]),
        }),
    );
}

fn client_messages(cases: &mut Cases, signed: &Made<Signed>, shares: &Made<ShareKeys>) {
    let content = || signed.message.clone();
    for (step, field, name, json) in [
        (Step::Advert(content()), signed.at(3), "advert", &signed.json),
        (Step::ShareKeys(shares.message.clone()), shares.at(4), "share_keys", &shares.json),
        (Step::Upload(content()), signed.at(5), "upload", &signed.json),
        (Step::Endorsement(content()), signed.at(6), "endorsement", &signed.json),
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

fn server_messages(
    cases: &mut Cases,
    cohort: &Made<CohortView>,
    masking: &Made<MaskingView>,
    survivors: &Made<SurvivorsView>,
    certificate: &Made<Certificate>,
) {
    let shown = |view| ServerMessage { view: Some(view) };
    let json = json!({ "cohort": cohort.json });
    cases.add("ServerMessage", shown(View::Cohort(cohort.message.clone())), &[cohort.at(1)], json);
    let json = json!({ "masking": masking.json });
    cases.add("ServerMessage", shown(View::Masking(masking.message.clone())), &[masking.at(2)], json);
    let json = json!({ "survivors": survivors.json });
    cases.add("ServerMessage", shown(View::Survivors(survivors.message.clone())), &[survivors.at(3)], json);
    let json = json!({ "certificate": certificate.json });
    cases.add("ServerMessage", shown(View::Certificate(certificate.message.clone())), &[certificate.at(4)], json);
}
