//! The messages of `release.proto`.

use hex::encode as hex;
use serde_json::json;
use unisono_release::proto::{Grant, PayloadType, Provenance, ProvenanceMode, ReleaseHeader, SealedKind, SignedGrant};

use super::{CLIENT, Cases, HASH, ROUND};
use crate::wire::Field::{Bytes, Varint};

/// Every message of the file.
pub fn add_to(cases: &mut Cases) {
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
        kind: SealedKind::BaseModel as i32,
    };
    // The first release of a model that no round has trained.
    let first = ReleaseHeader {
        version: 1,
        previous: Vec::new(),
        provenance: None,
        kind: SealedKind::Release as i32,
        ..header.clone()
    };
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
            Varint(17, 1),
        ],
        json!({
            "suite": 1, "model_id": "digits", "version": 300, "previous": hex(HASH), "created_at": 1_800_000_000,
            "not_after": 1_900_000_000, "payload_type": "PAYLOAD_TYPE_SAFETENSORS", "payload_length": 5_000_000_000u64,
            "chunk_length": 65_536, "key_id": "default", "key_version": 2, "publisher_id": hex([0x71; 32]),
            "roster_epoch": 7, "provenance": provenance.json, "salt": hex([0x72; 32]),
            "key_commitment": hex([0x73; 32]), "kind": "SEALED_KIND_BASE_MODEL",
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
            "kind": "SEALED_KIND_RELEASE",
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
