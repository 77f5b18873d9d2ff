//! Clients that follow the protocol up to a point, then lie. Their messages are well-signed.

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_protocol::proto::{self, ClientMessage, SecretKind, client_message::Step};
use unisono_protocol::server::{Abort, Closed, Fault, Outcome, Phase, Reason, Server};
use unisono_protocol::signed;

use crate::world::{Device, NOW, State, open, params, plain_sum};

/// Takes part for everybody up to the end; `tamper` sees each message before it is sent, and may withhold it.
fn play(
    delta: f64,
    count: usize,
    mut tamper: impl FnMut(usize, Phase, ClientMessage) -> Option<ClientMessage>,
) -> (Result<Outcome, Abort>, Vec<Device>, Vec<Reason>) {
    let mut server: Server = open(&params(true, 4, count as u32, 0.0, delta, 20));
    let mut devices: Vec<Device> = (0..count).map(|i| Device::new(i, &server, 1)).collect();
    let mut reasons = Vec::new();
    loop {
        let phase = server.phase();
        for (i, device) in devices.iter_mut().enumerate() {
            match server.view(device.id()) {
                None if phase == Phase::Advertise => device.join(server.offer()).unwrap(),
                Some(view) => drop(device.receive(&view)),
                None => continue,
            }
            let Some(message) = device.message().cloned().and_then(|message| tamper(i, phase, message)) else {
                device.state = State::Idle;
                continue;
            };
            if let Err(refusal) = server.absorb(&message, NOW) {
                assert_eq!(refusal.client, Some(device.id()));
                reasons.push(refusal.reason);
            } else if let Some(bytes) = device.upload() {
                server.absorb_upload(device.id(), &bytes).unwrap();
            }
        }
        match server.close() {
            Ok(Closed::Next(next)) => server = *next,
            Ok(Closed::Finished(outcome)) => return (Ok(outcome), devices, reasons),
            Err(abort) => return (Err(abort), devices, reasons),
        }
    }
}

/// Changes a signed step and signs it again with the device's own key.
fn resign<M: Message + Default>(
    i: usize,
    signed: &mut proto::Signed,
    label: unisono_crypto::kdf::Label,
    change: impl FnOnce(&mut M),
) {
    let mut message = M::decode(signed.payload.as_slice()).unwrap();
    change(&mut message);
    *signed = signed::sign(&message, label, Some(&crate::world::CAST.identities[i].signing_key));
}

fn exact((outcome, devices): (&Outcome, &[Device])) -> bool {
    let server = open(&params(true, 4, devices.len() as u32, 0.0, 0.25, 20));
    outcome.sum == plain_sum(devices, &outcome.survivors, server.params())
}

#[test]
fn a_wrong_share_is_corrected_and_reported() {
    let (outcome, devices, _) = play(0.25, 10, |i, phase, mut message| {
        if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(0, signed, label::SIG_UNMASK, |unmask| {
                unmask.shares.iter_mut().for_each(|share| share.value[0] ^= 1);
            });
        }
        Some(message)
    });
    let outcome = outcome.unwrap();
    assert!(exact((&outcome, &devices)));
    assert!(outcome.reports.iter().any(|report| report.what == Fault::WrongShare && report.by == devices[0].id()));
}

#[test]
fn shares_of_the_other_secret_are_refused() {
    let (outcome, _, reasons) = play(0.25, 10, |i, phase, mut message| {
        if let (0, Phase::Unmask, Some(Step::Unmask(signed))) = (i, phase, &mut message.step) {
            resign::<proto::UnmaskShares>(0, signed, label::SIG_UNMASK, |unmask| {
                unmask.shares[0].kind = SecretKind::Mask as i32;
            });
        }
        Some(message)
    });
    assert!(outcome.is_ok());
    assert!(matches!(reasons[..], [Reason::Shape { .. }]), "{reasons:?}");
}

#[test]
fn a_wrong_mask_ciphertext_of_a_vanished_client_ends_the_round_with_its_name() {
    let liar = 3;
    let (outcome, devices, _) = play(0.25, 10, |i, phase, mut message| {
        if i == liar && phase >= Phase::Mask {
            return None;
        }
        if let (true, Some(Step::ShareKeys(shares))) = (i == liar, &mut message.step) {
            for bytes in &mut shares.messages {
                let mut neighbour = proto::NeighbourShares::decode(bytes.as_slice()).unwrap();
                neighbour.mask_ct.iter_mut().for_each(|byte| *byte ^= 1);
                *bytes = neighbour.encode_to_vec();
            }
            let root = merkle::Tree::new(label::TREE_SHARES, &shares.messages).root().to_vec();
            let signed = shares.root.as_mut().unwrap();
            resign::<proto::SharesRoot>(liar, signed, label::SIG_SHARES, |message| message.root = root);
        }
        Some(message)
    });
    assert_eq!(outcome.unwrap_err(), Abort::WrongCiphertext { client: devices[liar].id() });
}

#[test]
fn unreadable_shares_and_invalid_tags_are_reported_and_the_sum_is_exact() {
    let liar = 2;
    let (outcome, devices, _) = play(0.25, 10, |i, _, mut message| {
        if i != liar {
            return Some(message);
        }
        match &mut message.step {
            Some(Step::ShareKeys(shares)) => {
                let mut neighbour = proto::NeighbourShares::decode(shares.messages[0].as_slice()).unwrap();
                neighbour.sealed[0] ^= 1;
                shares.messages[0] = neighbour.encode_to_vec();
                let root = merkle::Tree::new(label::TREE_SHARES, &shares.messages).root().to_vec();
                let signed = shares.root.as_mut().unwrap();
                resign::<proto::SharesRoot>(liar, signed, label::SIG_SHARES, |message| message.root = root);
            }
            Some(Step::Tags(signed)) => {
                resign::<proto::ConsistencyTags>(liar, signed, label::SIG_CONFIRM, |tags| tags.tags[1].tag[0] ^= 1);
            }
            _ => {}
        }
        Some(message)
    });
    let outcome = outcome.unwrap();
    assert!(exact((&outcome, &devices)));
    let about_liar =
        |what| outcome.reports.iter().any(|report| report.what == what && report.about == devices[liar].id());
    assert!(about_liar(Fault::UnreadableShares) && about_liar(Fault::InvalidTag), "{:?}", outcome.reports);
}

#[test]
fn an_advert_with_a_neighbours_key_is_refused() {
    let mut stolen = None;
    let (outcome, _, reasons) = play(0.25, 8, |i, _, mut message| {
        if let Some(Step::Advert(signed)) = &mut message.step {
            let advert = proto::Advert::decode(signed.payload.as_slice()).unwrap();
            match (i, &stolen) {
                (0, _) => stolen = Some(advert.mask_ek),
                (1, Some(key)) => {
                    resign::<proto::Advert>(1, signed, label::SIG_ADVERT, |advert| advert.channel_ek = key.clone());
                }
                _ => {}
            }
        }
        Some(message)
    });
    assert_eq!(outcome.unwrap().survivors.len(), 7);
    assert_eq!(reasons, [Reason::KeysRepeat]);
}
