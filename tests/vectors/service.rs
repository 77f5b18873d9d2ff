//! Vectors of the calls between devices and coordinator: each message of `proto/unisono/v1/service.proto` with every field set.
//!
//! The bytes are put together from numbers and types of fields (`wire.rs`) and compared with what the library writes and reads.

use hex::encode as hex;
use serde_json::{Value, json};
use unisono_protocol::proto::{
    ClientMessage, RoundOffer, ServerMessage, Signed, SurvivorsView, client_message::Step, server_message::View,
};
use unisono_release::proto::SignedGrant;
use unisono_wire::proto::poll_response::Answer;
use unisono_wire::proto::*;

use super::check;
use super::wire::Field::{Bytes, Varint};
use super::wire::{case, encode};

#[test]
fn the_messages_of_the_service_are_those_in_the_vectors() {
    check("service.json", &json!(cases()));
}

/// Every message, compared with what the library makes of it.
pub fn cases() -> Vec<Value> {
    let (round_id, client_id, hash) = ([0x11; 32], [0x22; 16], [0x33; 32]);
    let (payload, signature) = (vec![0x44; 3], vec![0x55; 4]);
    let signed = Signed { payload: payload.clone(), signature: signature.clone() };
    let signed_bytes = encode(&[Bytes(1, payload.clone()), Bytes(2, signature.clone())]);
    let signed_json = json!({ "payload": hex(&payload), "signature": hex(&signature) });
    let ids_json = json!({ "round_id": hex(round_id), "client_id": hex(client_id) });
    let ids = || [Bytes(1, round_id.to_vec()), Bytes(2, client_id.to_vec())];
    let survivors = [0x17];
    let shown = SurvivorsView { cohort_id: hash.to_vec(), survivors: survivors.to_vec() };
    let view = ServerMessage { view: Some(View::Survivors(shown)) };
    let view_bytes = encode(&[Bytes(3, encode(&[Bytes(1, hash.to_vec()), Bytes(2, survivors.to_vec())]))]);
    let step = ClientMessage {
        round_id: round_id.to_vec(),
        client_id: client_id.to_vec(),
        step: Some(Step::Upload(signed.clone())),
    };
    let [round, client] = ids();
    let step_bytes = [round, client, Bytes(5, signed_bytes.clone())];
    let answer = |answer| PollResponse { answer: Some(answer) };
    let poll = |phase: RoundPhase, number: u64, name: &str| {
        let [round, client] = ids();
        case(
            "PollRequest",
            &PollRequest {
                round_id: round_id.to_vec(),
                client_id: client_id.to_vec(),
                phase: phase as i32,
                wait_ms: 20_000,
            },
            &[round, client, Varint(3, number), Varint(4, 20_000)],
            json!({ "round_id": hex(round_id), "client_id": hex(client_id), "phase": name, "wait_ms": 20_000 }),
        )
    };
    vec![
        case(
            "GetRoundRequest",
            &GetRoundRequest { task: "digits".into(), after_round: 300, wait_ms: 20_000, missed: "trainer".into() },
            &[Bytes(1, b"digits".into()), Varint(2, 300), Varint(3, 20_000), Bytes(4, b"trainer".into())],
            json!({ "task": "digits", "after_round": 300, "wait_ms": 20_000, "missed": "trainer" }),
        ),
        case(
            "GetRoundResponse",
            &GetRoundResponse {
                state: get_round_response::State::Open as i32,
                offer: Some(RoundOffer {
                    params: Some(signed.clone()),
                    roster_head: Some(signed.clone()),
                    base_model: None,
                }),
                ..GetRoundResponse::default()
            },
            &[Varint(1, 1), Bytes(2, encode(&[Bytes(1, signed_bytes.clone()), Bytes(2, signed_bytes.clone())]))],
            json!({ "state": "STATE_OPEN", "offer": { "params": signed_json, "roster_head": signed_json } }),
        ),
        case(
            "GetRoundResponse",
            &GetRoundResponse {
                state: get_round_response::State::Waiting as i32,
                reason: "later".into(),
                ..GetRoundResponse::default()
            },
            &[Varint(1, 2), Bytes(5, b"later".into())],
            json!({ "state": "STATE_WAITING", "reason": "later" }),
        ),
        case(
            "GetRoundResponse",
            &GetRoundResponse {
                state: get_round_response::State::Finished as i32,
                finished: Some(signed.clone()),
                roster_head: Some(signed.clone()),
                ..GetRoundResponse::default()
            },
            &[Varint(1, 3), Bytes(3, signed_bytes.clone()), Bytes(4, signed_bytes.clone())],
            json!({ "state": "STATE_FINISHED", "finished": signed_json, "roster_head": signed_json }),
        ),
        case(
            "LeaveRequest",
            &LeaveRequest { round_id: round_id.to_vec(), client_id: client_id.to_vec(), signature: vec![7; 2484] },
            &[Bytes(1, round_id.to_vec()), Bytes(2, client_id.to_vec()), Bytes(3, vec![7; 2484])],
            json!({ "round_id": hex(round_id), "client_id": hex(client_id), "signature": hex([7; 2484]) }),
        ),
        case("LeaveResponse", &LeaveResponse {}, &[], json!({})),
        case(
            "TaskFinished",
            &TaskFinished { task: "digits".into(), round: 300 },
            &[Bytes(1, b"digits".into()), Varint(2, 300)],
            json!({ "task": "digits", "round": 300 }),
        ),
        case(
            "ClientMessage",
            &step,
            &step_bytes,
            json!({ "round_id": hex(round_id), "client_id": hex(client_id), "upload": signed_json }),
        ),
        case("SubmitResponse", &SubmitResponse { repeat: true }, &[Varint(1, 1)], json!({ "repeat": true })),
        case("SubmitResponse", &SubmitResponse { repeat: false }, &[], json!({ "repeat": false })),
        poll(RoundPhase::Advertise, 1, "ROUND_PHASE_ADVERTISE"),
        poll(RoundPhase::Share, 2, "ROUND_PHASE_SHARE"),
        poll(RoundPhase::Mask, 3, "ROUND_PHASE_MASK"),
        poll(RoundPhase::Confirm, 4, "ROUND_PHASE_CONFIRM"),
        poll(RoundPhase::Unmask, 5, "ROUND_PHASE_UNMASK"),
        case(
            "PollResponse",
            &answer(Answer::View(view)),
            &[Bytes(1, view_bytes)],
            json!({ "view": { "survivors": { "cohort_id": hex(hash), "survivors": hex(survivors) } } }),
        ),
        case(
            "LeftOut",
            &LeftOut { reason: "others were drawn".into(), after_ms: 5_000 },
            &[Bytes(1, b"others were drawn".into()), Varint(2, 5_000)],
            json!({ "reason": "others were drawn", "after_ms": 5_000 }),
        ),
        case(
            "PollResponse",
            &answer(Answer::LeftOut(LeftOut { reason: "others were drawn".into(), after_ms: 5_000 })),
            &[Bytes(4, encode(&[Bytes(1, b"others were drawn".into()), Varint(2, 5_000)]))],
            json!({ "left_out": { "reason": "others were drawn", "after_ms": 5_000 } }),
        ),
        case(
            "Waiting",
            &Waiting { reason: "later".into() },
            &[Bytes(1, b"later".into())],
            json!({ "reason": "later" }),
        ),
        case(
            "PollResponse",
            &answer(Answer::Waiting(Waiting { reason: String::new() })),
            &[Bytes(2, vec![])],
            json!({ "waiting": {} }),
        ),
        case(
            "Ended",
            &Ended { reason: "over".into(), gave_sum: true },
            &[Bytes(1, b"over".into()), Varint(2, 1)],
            json!({ "reason": "over", "gave_sum": true }),
        ),
        case(
            "PollResponse",
            &answer(Answer::Ended(Ended { reason: "over".into(), gave_sum: true })),
            &[Bytes(3, encode(&[Bytes(1, b"over".into()), Varint(2, 1)]))],
            json!({ "ended": { "reason": "over", "gave_sum": true } }),
        ),
        case(
            "UploadStatusRequest",
            &UploadStatusRequest { round_id: round_id.to_vec(), client_id: client_id.to_vec() },
            &ids(),
            ids_json,
        ),
        case(
            "UploadStatusResponse",
            &UploadStatusResponse { chunks: 5, complete: true },
            &[Varint(1, 5), Varint(2, 1)],
            json!({ "chunks": 5, "complete": true }),
        ),
        case(
            "UploadChunk",
            &UploadChunk {
                round_id: round_id.to_vec(),
                client_id: client_id.to_vec(),
                upload_hash: hash.to_vec(),
                index: 130,
                data: vec![0x66; 5],
            },
            &[
                Bytes(1, round_id.to_vec()),
                Bytes(2, client_id.to_vec()),
                Bytes(3, hash.to_vec()),
                Varint(4, 130),
                Bytes(5, vec![0x66; 5]),
            ],
            json!({
                "round_id": hex(round_id), "client_id": hex(client_id), "upload_hash": hex(hash), "index": 130,
                "data": hex([0x66; 5]),
            }),
        ),
        case(
            "GetModelRequest",
            &GetModelRequest { task: "digits".into(), version: 7, offset: 262_144, header_hash: vec![0x33; 32] },
            &[Bytes(1, b"digits".into()), Varint(2, 7), Varint(3, 262_144), Bytes(4, vec![0x33; 32])],
            json!({ "task": "digits", "version": 7, "offset": 262_144, "header_hash": hex([0x33; 32]) }),
        ),
        case(
            "GetReleaseRequest",
            &GetReleaseRequest { model_id: "digits".into(), offset: 262_144, header_hash: vec![0x33; 32] },
            &[Bytes(1, b"digits".into()), Varint(2, 262_144), Bytes(3, vec![0x33; 32])],
            json!({ "model_id": "digits", "offset": 262_144, "header_hash": hex([0x33; 32]) }),
        ),
        case(
            "FileChunk",
            &FileChunk { data: vec![0x77; 6] },
            &[Bytes(1, vec![0x77; 6])],
            json!({ "data": hex([0x77; 6]) }),
        ),
        case(
            "GrantRequestBody",
            &GrantRequestBody {
                client_id: client_id.to_vec(),
                header_hash: hash.to_vec(),
                release_key: vec![0x88; 1216],
                requested_at: 1_800_000_000,
            },
            &[
                Bytes(1, client_id.to_vec()),
                Bytes(2, hash.to_vec()),
                Bytes(3, vec![0x88; 1216]),
                Varint(4, 1_800_000_000),
            ],
            json!({
                "client_id": hex(client_id), "header_hash": hex(hash), "release_key": hex([0x88; 1216]),
                "requested_at": 1_800_000_000,
            }),
        ),
        case(
            "GrantRequest",
            &GrantRequest { request: Some(signed.clone()) },
            &[Bytes(1, signed_bytes.clone())],
            json!({ "request": signed_json }),
        ),
        case(
            "GrantResponse",
            &GrantResponse { grant: Some(SignedGrant { payload, signature }), roster_head: Some(signed) },
            &[Bytes(1, signed_bytes.clone()), Bytes(2, signed_bytes)],
            json!({ "grant": signed_json, "roster_head": signed_json }),
        ),
    ]
}
