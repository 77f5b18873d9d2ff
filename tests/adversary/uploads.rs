//! Masked vectors that are not what their headers say (section 5). Chunks out of order are in `transport`.

use prost::Message;
use unisono_crypto::kdf::{Hasher, label};
use unisono_protocol::proto::{self, ClientMessage, UploadHeader, client_message::Step};
use unisono_protocol::server::{Accepted, Phase, Reason};
use unisono_protocol::signed::{self, SignedError};

use crate::harness::{Stage, six};
use crate::world::{CAST, NOW};

/// Everybody has masked its input; nothing is uploaded yet.
fn masked() -> (Stage, Vec<ClientMessage>, Vec<Vec<u8>>) {
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    for i in 0..6 {
        let view = stage.masking_view(i);
        stage.show(i, proto::server_message::View::Masking(view)).unwrap();
    }
    let headers = stage.devices.iter().map(|device| device.message().unwrap().clone()).collect();
    let uploads = stage.devices.iter().map(|device| device.upload().unwrap()).collect();
    (stage, headers, uploads)
}

/// Device `i`'s header with a change, signed by it again.
fn header(i: usize, message: &ClientMessage, change: impl FnOnce(&mut UploadHeader)) -> ClientMessage {
    let mut message = message.clone();
    let Some(Step::Upload(signed)) = &mut message.step else { panic!("no header") };
    let mut header = UploadHeader::decode(signed.payload.as_slice()).unwrap();
    change(&mut header);
    *signed = signed::sign(&header, label::SIG_UPLOAD, Some(&CAST.identities[i].signing_key));
    message
}

/// The other five upload what they masked, and the round goes on with them.
fn completes_without_device_0(mut stage: Stage, headers: &[ClientMessage], uploads: &[Vec<u8>]) {
    assert_eq!(stage.server().progress().answered, 0);
    for i in 1..6 {
        let id = stage.devices[i].id();
        stage.server_mut().absorb(&headers[i], NOW).unwrap();
        assert_eq!(stage.server_mut().absorb_upload(id, &uploads[i]), Ok(Accepted::New));
    }
    stage.close();
    stage.completes(&[0], 5);
}

/// Device 0 sends its header and then, instead of its vector, something else.
fn instead(bytes: impl FnOnce(&[Vec<u8>]) -> Vec<u8>) -> Reason {
    let (mut stage, headers, uploads) = masked();
    let id = stage.devices[0].id();
    stage.server_mut().absorb(&headers[0], NOW).unwrap();
    let refusal = stage.server_mut().absorb_upload(id, &bytes(&uploads)).unwrap_err();
    assert_eq!((refusal.client, refusal.phase), (Some(id), Phase::Mask));
    completes_without_device_0(stage, &headers, &uploads);
    refusal.reason
}

#[test]
fn a_truncated_upload() {
    // 21 elements of 14 bits are 37 bytes.
    assert_eq!(instead(|all| all[0][..36].to_vec()), Reason::UploadLength { expected: 37, got: 36 });
    assert_eq!(instead(|_| Vec::new()), Reason::UploadLength { expected: 37, got: 0 });
}

#[test]
fn an_oversized_upload() {
    assert_eq!(instead(|all| [all[0].as_slice(), &[0]].concat()), Reason::UploadLength { expected: 37, got: 38 });
    assert_eq!(instead(|_| vec![0; 1 << 20]), Reason::UploadLength { expected: 37, got: 1 << 20 });
}

#[test]
fn an_upload_with_its_bytes_in_another_order() {
    let reversed = |all: &[Vec<u8>]| all[0].iter().rev().copied().collect();
    assert_eq!(instead(reversed), Reason::UploadHash);
}

#[test]
fn an_upload_whose_hash_does_not_match() {
    let flipped = |all: &[Vec<u8>]| {
        let mut bytes = all[0].clone();
        bytes[17] ^= 4;
        bytes
    };
    assert_eq!(instead(flipped), Reason::UploadHash);
}

#[test]
fn another_clients_upload() {
    assert_eq!(instead(|all| all[1].clone()), Reason::UploadHash);
    // Its header in the victim's envelope, and under the sender's own signature.
    let (mut stage, headers, uploads) = masked();
    let stolen = ClientMessage { client_id: headers[0].client_id.clone(), ..headers[1].clone() };
    let refusal = stage.server_mut().absorb(&stolen, NOW).unwrap_err();
    assert_eq!(refusal.reason, SignedError::Signature { what: "upload header" }.into());
    let resigned = header(0, &stolen, |_| {});
    assert_eq!(stage.server_mut().absorb(&resigned, NOW).unwrap_err().reason, Reason::OtherCohort);
    completes_without_device_0(stage, &headers, &uploads);
}

#[test]
fn an_upload_without_a_header() {
    let (mut stage, headers, uploads) = masked();
    let id = stage.devices[0].id();
    let refusal = stage.server_mut().absorb_upload(id, &uploads[0]).unwrap_err();
    assert_eq!(refusal.reason, Reason::Incomplete("upload header yet"));
    completes_without_device_0(stage, &headers, &uploads);
}

#[test]
fn a_header_of_another_length_or_cohort() {
    let (mut stage, headers, uploads) = masked();
    let long = header(0, &headers[0], |header| header.length = u64::MAX);
    let refusal = stage.server_mut().absorb(&long, NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::UploadLength { expected: 37, got: u64::MAX });
    let other = header(0, &headers[0], |header| header.cohort_id = vec![0; 32]);
    assert_eq!(stage.server_mut().absorb(&other, NOW).unwrap_err().reason, Reason::OtherCohort);
    completes_without_device_0(stage, &headers, &uploads);
}

#[test]
fn an_upload_that_is_no_packed_vector() {
    // A bit beyond the last element, under a header that is true to it.
    let (mut stage, headers, uploads) = masked();
    let mut bytes = uploads[0].clone();
    bytes[36] |= 0x80;
    let id = stage.devices[0].id();
    let hash = Hasher::new(label::UPLOAD).update(&bytes).finalize();
    let honest = header(0, &headers[0], |header| header.hash = hash.to_vec());
    stage.server_mut().absorb(&honest, NOW).unwrap();
    let refusal = stage.server_mut().absorb_upload(id, &bytes).unwrap_err();
    assert!(matches!(refusal.reason, Reason::UploadEncoding(_)), "{refusal}");
    completes_without_device_0(stage, &headers, &uploads);
}
