//! The coordinator puts its own keys and ciphertexts where those of clients belong (sections 3 and 4).

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::DecapsulationKey;
use unisono_crypto::secret::Secret32;
use unisono_protocol::client::{ClientError, NeighbourFault};
use unisono_protocol::proto::{self, NeighbourShares, RoundParams, SharesRoot, Signed, server_message::View};
use unisono_protocol::server::Phase;
use unisono_protocol::signed::{self, SignedError};

use crate::coordinator::{Forged, Member, advert_of, altered, members};
use crate::harness::{Stage, six};
use crate::world::{CAST, Device, open};

/// A key pair that the attacker holds.
fn own_key() -> Vec<u8> {
    DecapsulationKey::from_seed(&Secret32::from_bytes([9; 32])).encapsulation_key().as_bytes().to_vec()
}

fn neighbour(index: u32, why: NeighbourFault) -> ClientError {
    ClientError::Neighbour { index, why }
}

fn bad_signature(what: &'static str) -> NeighbourFault {
    SignedError::Signature { what }.into()
}

/// The victim, device 0, is shown a cohort in which member 3 was replaced; then the honest one.
fn replace_member(change: impl FnOnce(&Stage, &mut Member)) -> ClientError {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut members = members(&stage.devices);
    change(&stage, &mut members[3]);
    let params = stage.server().params().clone();
    let view = Forged::new(&params, &members, |_| {}).view(0);
    let error = stage.refuses(0, View::Cohort(view));
    stage.completes(&[], 6);
    error
}

#[test]
fn a_substituted_channel_key() {
    let error =
        replace_member(|_, member| member.advert = altered(&member.advert, |advert| advert.channel_ek = own_key()));
    assert_eq!(error, neighbour(3, bad_signature("neighbour's advert")));
}

#[test]
fn a_substituted_mask_key() {
    let error =
        replace_member(|_, member| member.advert = altered(&member.advert, |advert| advert.mask_ek = own_key()));
    assert_eq!(error, neighbour(3, bad_signature("neighbour's advert")));
}

#[test]
fn a_substituted_commitment() {
    let change = |advert: &mut proto::Advert| advert.self_mask_commitment = vec![1; 32];
    let error = replace_member(|_, member| member.advert = altered(&member.advert, change));
    assert_eq!(error, neighbour(3, bad_signature("neighbour's advert")));
}

#[test]
fn a_key_substituted_beside_the_signed_cohort() {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut view = stage.cohort_view(0);
    let advert = view.neighbours[2].advert.as_ref().unwrap();
    view.neighbours[2].advert = Some(altered(advert, |advert| advert.mask_ek = own_key()));
    assert_eq!(stage.refuses(0, View::Cohort(view)), neighbour(3, NeighbourFault::Path));
    stage.completes(&[], 6);
}

#[test]
fn an_advert_signed_by_another_enrolled_device() {
    let error = replace_member(|_, member| {
        let forged = altered(&member.advert, |advert| advert.mask_ek = own_key());
        member.advert = signed::sign_bytes(forged.payload, label::SIG_ADVERT, Some(&CAST.identities[20].signing_key));
    });
    assert_eq!(error, neighbour(3, bad_signature("neighbour's advert")));
}

#[test]
fn a_signature_taken_from_another_kind_of_message() {
    // Device 3 is made to sign the same bytes for another purpose: the label keeps them apart.
    let error = replace_member(|_, member| {
        let payload = member.advert.payload.clone();
        member.advert = signed::sign_bytes(payload, label::SIG_SHARES, Some(&CAST.identities[3].signing_key));
    });
    assert_eq!(error, neighbour(3, bad_signature("neighbour's advert")));
}

#[test]
fn an_advert_replayed_from_another_round() {
    let error = replace_member(|_, member| {
        let other = open(&RoundParams { round: 2, ..six() });
        let mut device = Device::new(3, &other, 5);
        device.join(other.offer()).unwrap();
        member.advert = advert_of(&device);
    });
    let why = SignedError::Malformed { what: "advert", why: "it is of another round".into() };
    assert_eq!(error, neighbour(3, why.into()));
}

#[test]
fn one_key_under_two_names() {
    // Device 3 colludes and advertises device 2's mask key as its own.
    let error = replace_member(|stage, member| {
        let stolen = proto::Advert::decode(advert_of(&stage.devices[2]).payload.as_slice()).unwrap().mask_ek;
        let forged = altered(&member.advert, |advert| advert.channel_ek = stolen);
        member.advert = signed::sign_bytes(forged.payload, label::SIG_ADVERT, Some(&CAST.identities[3].signing_key));
    });
    assert_eq!(error, neighbour(3, NeighbourFault::KeysRepeat));
}

#[test]
fn keys_that_are_none() {
    let error = replace_member(|_, member| {
        let forged = altered(&member.advert, |advert| advert.mask_ek = vec![0xff; advert.mask_ek.len()]);
        member.advert = signed::sign_bytes(forged.payload, label::SIG_ADVERT, Some(&CAST.identities[3].signing_key));
    });
    let ClientError::Neighbour { index: 3, why: NeighbourFault::Signed(SignedError::Malformed { what: "advert", .. }) } =
        error
    else {
        panic!("{error}")
    };
}

#[test]
fn the_victims_own_advert_replaced_or_left_out() {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let params = stage.server().params().clone();
    let honest = members(&stage.devices);
    let mut replaced = honest.clone();
    replaced[0].advert = altered(&replaced[0].advert, |advert| advert.mask_ek = own_key());
    let view = Forged::new(&params, &replaced, |_| {}).view(0);
    assert_eq!(stage.refuses(0, View::Cohort(view)), ClientError::OwnAdvert(0));
    // Left out, or shown somebody else's place, or one beyond the end.
    let without = Forged::new(&params, &honest[1..], |_| {});
    assert_eq!(stage.refuses(0, View::Cohort(without.view(2))), ClientError::OwnPlace(2));
    let view = proto::CohortView { index: 6, ..stage.cohort_view(0) };
    assert_eq!(stage.refuses(0, View::Cohort(view)), ClientError::OwnPlace(6));
    stage.completes(&[], 6);
}

/// The victim's view of phase 2 is changed in what comes from the first neighbour, device 1.
fn tamper_with_delivery(change: impl FnOnce(&Stage, &mut proto::DeliveredShares)) -> ClientError {
    let mut stage = Stage::at(Phase::Mask, &six(), 6);
    let mut view = stage.masking_view(0);
    change(&stage, &mut view.deliveries[0]);
    let error = stage.refuses(0, View::Masking(view));
    stage.completes(&[], 6);
    error
}

fn edited(message: &[u8], change: impl FnOnce(&mut NeighbourShares)) -> Vec<u8> {
    let mut message = NeighbourShares::decode(message).unwrap();
    change(&mut message);
    message.encode_to_vec()
}

#[test]
fn an_injected_mask_ciphertext() {
    // The coordinator encapsulates to the victim's mask key itself, and would know the pair's mask.
    let error = tamper_with_delivery(|stage, delivery| {
        let key = proto::Advert::decode(advert_of_cohort(stage, 0).payload.as_slice()).unwrap().mask_ek;
        let key = unisono_crypto::kem::EncapsulationKey::from_bytes(&key).unwrap();
        let (ciphertext, _) = key.encapsulate_with_coins(&[3; 64]);
        delivery.message = edited(&delivery.message, |message| message.mask_ct = ciphertext);
    });
    assert_eq!(error, neighbour(1, NeighbourFault::Path));
}

/// The advert of device `i`, as another member is shown it. (The devices have gone on.)
fn advert_of_cohort(_: &Stage, i: usize) -> Signed {
    let stage = Stage::at(Phase::Share, &six(), 6);
    advert_of(&stage.devices[i])
}

#[test]
fn an_injected_mask_ciphertext_under_a_root_of_the_coordinators() {
    // A tree of its own around the changed message: the root is not signed by the neighbour.
    let error = tamper_with_delivery(|_, delivery| {
        delivery.message = edited(&delivery.message, |message| message.mask_ct = vec![7; 1120]);
        let tree = unisono_crypto::merkle::Tree::new(label::TREE_SHARES, [&delivery.message]);
        let signed = delivery.root.as_mut().unwrap();
        let mut root = SharesRoot::decode(signed.payload.as_slice()).unwrap();
        (root.count, root.root) = (1, tree.root().to_vec());
        (delivery.position, delivery.path) = (0, Vec::new());
        *signed = signed::sign(&root, label::SIG_SHARES, Some(&CAST.coordinator));
    });
    assert_eq!(error, neighbour(1, bad_signature("neighbour's shares")));
}

#[test]
fn mask_ciphertexts_swapped_between_two_recipients() {
    // Device 1's message to device 2, with its true path, is delivered to the victim.
    let error = tamper_with_delivery(|stage, delivery| {
        *delivery = stage.masking_view(2).deliveries[1].clone();
        let message = NeighbourShares::decode(delivery.message.as_slice()).unwrap();
        assert_eq!((message.from, message.to), (1, 2));
    });
    assert_eq!(error, neighbour(1, NeighbourFault::Addressee));
}

#[test]
fn shares_swapped_between_two_senders() {
    let error = tamper_with_delivery(|stage, delivery| *delivery = stage.masking_view(0).deliveries[1].clone());
    assert_eq!(error, neighbour(1, bad_signature("neighbour's shares")));
}

#[test]
fn a_sealed_share_replaced_by_the_coordinators() {
    let error = tamper_with_delivery(|_, delivery| {
        delivery.message = edited(&delivery.message, |message| message.sealed[5] ^= 1);
    });
    assert_eq!(error, neighbour(1, NeighbourFault::Path));
}

#[test]
fn a_mask_ciphertext_of_another_length_from_a_neighbour_in_league() {
    // Well signed by the neighbour, and delivered: the victim can't decapsulate it, and masks nothing.
    let lengths = [0, 1119, 1121];
    for length in lengths {
        let mut stage = Stage::at(Phase::Mask, &six(), 6);
        let mut view = stage.masking_view(0);
        let encapsulated = |delivery: &&mut proto::DeliveredShares| {
            !NeighbourShares::decode(delivery.message.as_slice()).unwrap().mask_ct.is_empty()
        };
        let delivery =
            view.deliveries.iter_mut().find(encapsulated).expect("a neighbour that encapsulates to the victim");
        delivery.message = edited(&delivery.message, |message| message.mask_ct = vec![7; length]);
        let signed = delivery.root.as_mut().unwrap();
        let mut root = SharesRoot::decode(signed.payload.as_slice()).unwrap();
        (root.count, root.root) =
            (1, unisono_crypto::merkle::Tree::new(label::TREE_SHARES, [&delivery.message]).root().to_vec());
        (delivery.position, delivery.path) = (0, Vec::new());
        let from = root.from;
        *signed = signed::sign(&root, label::SIG_SHARES, Some(&CAST.identities[from as usize].signing_key));
        let ClientError::Neighbour { index, why } = stage.refuses(0, View::Masking(view)) else {
            panic!("another refusal")
        };
        assert!(index == from && matches!(why, NeighbourFault::Ciphertext(_)), "{length}: {why}");
        stage.completes(&[], 6);
    }
}

#[test]
fn a_delivery_at_another_place_of_its_tree() {
    let place = |change: fn(&mut proto::DeliveredShares)| tamper_with_delivery(|_, delivery| change(delivery));
    let changes: [fn(&mut proto::DeliveredShares); 4] = [
        |delivery| delivery.position += 1,
        |delivery| delivery.position = u32::MAX,
        |delivery| delivery.path[0][0] ^= 1,
        |delivery| drop(delivery.path.pop()),
    ];
    for change in changes {
        assert_eq!(place(change), neighbour(1, NeighbourFault::Path));
    }
}
