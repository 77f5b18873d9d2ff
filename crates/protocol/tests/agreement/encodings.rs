//! Bytes that are no message, or another than they seem: typed errors, and nothing moves.

use std::cell::RefCell;

use proptest::prelude::*;
use prost::Message;
use unisono_crypto::kdf::label;
use unisono_protocol::client::{CertificateFault, ClientError};
use unisono_protocol::params::ParamsError;
use unisono_protocol::proto::{
    self, Certificate, ClientMessage, Endorsement, client_message::Step, server_message::View,
};
use unisono_protocol::server::{Phase, Reason, Server};
use unisono_protocol::signed::{self, SignedError};

use crate::malicious::{Attack, Stage, close, twelve};
use crate::world::{CAST, Device, NOW, open};

/// A field beyond all known ones; the first field with a varint again; that one with a byte of padding; the last two fields in
/// the other order. `first` are the bytes of a varint field of `payload`.
fn not_canonical(payload: &[u8], first: [u8; 2]) -> Vec<Vec<u8>> {
    let at = payload.windows(2).position(|bytes| bytes == first).unwrap();
    let padded = [&payload[..at + 1], &[first[1] | 0x80, 0], &payload[at + 2..]].concat();
    let moved = [&payload[..at], &payload[at + 2..], &first].concat();
    vec![[payload, &[0xA0, 0x06, 0x01]].concat(), [payload, &first].concat(), padded, moved]
}

#[test]
fn round_parameters_that_are_not_canonical() {
    let server = open(&twelve());
    let payload = &server.offer().params.as_ref().unwrap().payload;
    let mut device = Device::new(0, &server, 1);
    for payload in not_canonical(payload, [2 << 3, 1]) {
        let wire = proto::RoundParams::decode(payload.as_slice()).unwrap();
        assert_eq!(wire, server.params().wire, "the same parameters");
        let params = signed::sign_bytes(payload, label::SIG_ROUND_PARAMS, Some(&CAST.coordinator));
        let offer = proto::RoundOffer { params: Some(params), ..server.offer().clone() };
        let error = device.join(&offer).unwrap_err();
        assert!(matches!(error, ClientError::Params(ParamsError::Malformed(_))), "{error}");
    }
    assert_eq!(device.join(server.offer()), Ok(()));
}

#[test]
fn a_cohort_that_is_not_canonical() {
    let stage = Stage::new(&twelve());
    let mut attack = Attack::new(&stage, []);
    attack.set_back(0, &stage.kept[0][0], true);
    let view = &stage.cohort_views[0];
    let signed = view.cohort.as_ref().unwrap();
    for payload in not_canonical(&signed.payload, [2 << 3, 12]) {
        let cohort = signed::sign_bytes(payload, label::SIG_COHORT, Some(&CAST.coordinator));
        let view = View::Cohort(proto::CohortView { cohort: Some(cohort), ..view.clone() });
        let error = attack.refuses(0, view);
        assert!(matches!(error, ClientError::Signed(SignedError::Malformed { .. })), "{error}");
    }
    assert_eq!(attack.show(0, View::Cohort(view.clone())), Ok(()));
}

/// All of twelve have masked; a certificate for all, and device 0 that waits for it.
fn awaiting(stage: &Stage) -> (Attack<'_>, Certificate) {
    let everybody = stage.without([]);
    let mut attack = Attack::new(stage, []);
    attack.mask(0, &everybody).unwrap();
    (attack, stage.by_all(&everybody, &everybody))
}

#[test]
fn a_certificate_of_very_many_signers() {
    let stage = Stage::new(&twelve());
    let (mut attack, good) = awaiting(&stage);
    let mut many = good.clone();
    many.endorsements = (0..200_000).map(|signer| Endorsement { signer, ..Endorsement::default() }).collect();
    let quorum = CertificateFault::Quorum { have: 200_000, need: 7 };
    assert_eq!(attack.refuses(0, View::Certificate(many)), ClientError::Certificate(quorum));
    let mut last = good.clone();
    last.endorsements[6].signer = u32::MAX;
    let far = CertificateFault::NotOnCommittee { signer: u32::MAX };
    assert_eq!(attack.refuses(0, View::Certificate(last)), ClientError::Certificate(far));
    // 2^32 bytes of endorsements are announced, and do not come; so is every cut.
    let bytes = good.encode_to_vec();
    let announced = [&bytes[..], &[4 << 3 | 2, 0x80, 0x80, 0x80, 0x80, 0x10]].concat();
    assert!(Certificate::decode(announced.as_slice()).is_err());
    for len in 1..bytes.len() {
        if let Ok(cut) = Certificate::decode(&bytes[..len]) {
            attack.refuses(0, View::Certificate(cut));
        }
    }
    attack.show_certificate(0, &good).unwrap();
}

#[test]
fn bitmaps_that_are_padded_too_long_too_short_or_empty() {
    let stage = Stage::new(&twelve());
    let (mut attack, good) = awaiting(&stage);
    let full = good.survivors.clone();
    assert_eq!(full, [0xFF, 0x0F]);
    let none = [
        vec![0xFF, 0x1F],
        vec![0xFF, 0xFF],
        vec![0xFF, 0x0F, 0],
        vec![0xFF, 0x0F, 0xFF],
        vec![0xFF],
        vec![],
        vec![0xFF; 70_000],
    ];
    for survivors in none {
        let certificate = Certificate { survivors: survivors.clone(), ..good.clone() };
        let error = attack.refuses(0, View::Certificate(certificate));
        assert!(matches!(error, ClientError::Bitmap(_)), "{error}");
        let view = proto::SurvivorsView { survivors: survivors.clone(), ..stage.survivors_view(&stage.without([])) };
        assert!(matches!(attack.refuses(0, View::Survivors(view)), ClientError::Bitmap(_)));
        // And as U1.
        attack.set_back(1, &stage.kept[1][1], true);
        let view = proto::MaskingView { shared: survivors, ..stage.masking_view(1, &stage.without([])) };
        assert!(matches!(attack.refuses(1, View::Masking(view)), ClientError::Bitmap(_)));
    }
    attack.show_certificate(0, &good).unwrap();
}

#[test]
fn changed_bytes_of_a_certificate_are_no_certificate() {
    let stage = Stage::new(&twelve());
    let (attack, good) = awaiting(&stage);
    let attack = RefCell::new(attack);
    let bytes = good.encode_to_vec();
    proptest!(ProptestConfig::with_cases(300), |(at in 0..bytes.len(), change in 1..=255u8, cut in any::<bool>())| {
        let mut changed = bytes.clone();
        changed[at] ^= change;
        if cut {
            changed.remove((at * 7 + 1) % bytes.len());
        }
        if let Ok(certificate) = Certificate::decode(changed.as_slice()) && certificate != good {
            attack.borrow_mut().refuses(0, View::Certificate(certificate));
        }
    });
    attack.into_inner().show_certificate(0, &good).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_a_certificate_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for bytes in [&bytes[..], &[&[4 << 3 | 2, bytes.len().min(127) as u8], &bytes[..bytes.len().min(127)]].concat()] {
            if let Ok(certificate) = Certificate::decode(bytes) {
                prop_assert_eq!(&Certificate::decode(certificate.encode_to_vec().as_slice()).unwrap(), &certificate);
            }
        }
        if let Ok(endorsement) = Endorsement::decode(bytes.as_slice()) {
            prop_assert_eq!(&Endorsement::decode(endorsement.encode_to_vec().as_slice()).unwrap(), &endorsement);
        }
    }
}

/// The honest coordinator, in phase 3, with everybody's masked input.
fn confirming(stage: &Stage) -> (Server, Vec<ClientMessage>) {
    let mut attack = Attack::new(stage, []);
    attack.mask_all(&stage.without([]));
    let mut server = open(&twelve());
    let mut endorsements = Vec::new();
    for step in 0..2 {
        for u in 0..12 {
            let device = stage.device(u, &stage.kept[u as usize][step]);
            server.absorb(device.message().unwrap(), NOW).unwrap();
        }
        server = close(server);
    }
    for device in &attack.devices {
        server.absorb(device.message().unwrap(), NOW).unwrap();
        server.absorb_upload(device.id(), &device.upload().unwrap()).unwrap();
    }
    server = close(server);
    for u in 0..12 {
        attack.ask(u, &stage.without([])).unwrap();
        endorsements.push(attack.devices[u as usize].message().unwrap().clone());
    }
    (server, endorsements)
}

#[test]
fn the_coordinator_takes_the_one_endorsement_and_no_other_bytes() {
    let stage = Stage::new(&twelve());
    let (mut server, messages) = confirming(&stage);
    assert_eq!(server.phase(), Phase::Confirm);
    let Some(Step::Endorsement(good)) = messages[0].step.clone() else { panic!("no endorsement") };
    let key = &CAST.identities[0].signing_key;
    let mut refused = |payload: Vec<u8>, signature: Option<Vec<u8>>| {
        let mut signed = signed::sign_bytes(payload, label::SIG_ENDORSEMENT, Some(key));
        signed.signature = signature.unwrap_or(signed.signature);
        let message = ClientMessage { step: Some(Step::Endorsement(signed)), ..messages[0].clone() };
        server.absorb(&message, NOW).unwrap_err().reason
    };
    // Signed by the member itself: other sets, another cohort, more or fewer bytes.
    let others = [
        stage.endorsed_bytes(&stage.without([]), &stage.without([5])),
        stage.endorsed_bytes(&stage.without([5]), &stage.without([])),
        [&[1; 32], &good.payload[32..]].concat(),
        [&good.payload[..], &[0]].concat(),
        good.payload[..99].to_vec(),
        Vec::new(),
    ];
    for payload in others {
        assert_eq!(refused(payload, None), Reason::OtherSets);
    }
    let Some(Step::Endorsement(others)) = &messages[1].step else { panic!("no endorsement") };
    for signature in [others.signature.clone(), vec![], good.signature[1..].to_vec()] {
        assert_eq!(refused(good.payload.clone(), Some(signature)).code(), "signature");
    }
    assert_eq!(server.progress().answered, 0);
    for message in &messages {
        server.absorb(message, NOW).unwrap();
    }
    assert_eq!(server.progress().answered, 12);
}
