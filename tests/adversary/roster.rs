//! Clients that do not exist, no longer exist, or exist twice (sections 1 and 3).

use std::sync::Arc;

use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::ClientId;
use unisono_protocol::client::{ClientError, Identity, NeighbourFault};
use unisono_protocol::proto::{RoundParams, ServerMessage, server_message::View};
use unisono_protocol::roster::{HeadTerms, Roster, RosterError};
use unisono_protocol::server::{Authority, Closed, Phase, Reason, Server};
use unisono_protocol::signed::SignedError;

use crate::coordinator::{Forged, Member, advert_of, members};
use crate::harness::{Stage, forty, six};
use crate::world::{CAST, Device, NOW, leaf};

fn rng(seed: u64) -> rand_chacha::ChaCha8Rng {
    rand_chacha::rand_core::SeedableRng::seed_from_u64(seed)
}

/// A roster of the registrar's, of another epoch or with other leaves.
fn publish(epoch: u64, leaves: Vec<unisono_protocol::proto::RosterLeaf>) -> Roster {
    Roster::publish(leaves, HeadTerms::new(epoch, NOW), &[CAST.coordinator.verifying_key()], &[], &CAST.registrar)
        .unwrap()
}

fn under(roster: &Arc<Roster>) -> Server {
    let head = roster.head();
    let params = RoundParams { roster_epoch: head.epoch, roster_root: head.root.to_vec(), ..six() };
    let authority = Authority { signing_key: CAST.coordinator.clone(), roster: roster.clone() };
    Server::open(&params, Some(authority)).unwrap()
}

fn why(error: ClientError) -> (u32, NeighbourFault) {
    let ClientError::Neighbour { index, why } = error else { panic!("{error}") };
    (index, why)
}

/// Shows the victim, device 0, a cohort that `change` made.
fn cohort(change: impl FnOnce(&mut Stage, &mut Vec<Member>)) -> ClientError {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let mut members = members(&stage.devices);
    change(&mut stage, &mut members);
    let params = stage.server().params().clone();
    let view = Forged::new(&params, &members, |_| {}).view(0);
    let error = stage.refuses(0, View::Cohort(view));
    stage.completes(&[], 6);
    error
}

/// A device that the registrar never saw, with a valid advert for this round.
fn stranger(stage: &Stage, id: u8) -> (Device, Member) {
    let mut device = Device::new(5, stage.server(), 77);
    let signing_key = SigningKey::generate(Level::L44, &mut rng(1));
    device.identity = Arc::new(Identity { client_id: ClientId([id; 16]), signing_key });
    device.join(stage.server().offer()).unwrap();
    let member = Member { advert: advert_of(&device), roster: None };
    (device, member)
}

#[test]
fn an_unenrolled_client() {
    let error = cohort(|stage, members| members[5] = stranger(stage, 5).1);
    let absent = SignedError::Malformed { what: "neighbour's advert", why: "its roster leaf is missing".into() };
    assert_eq!(why(error), (5, absent.into()));
}

#[test]
fn an_unenrolled_client_with_a_leaf_of_a_roster_that_the_coordinator_made() {
    let error = cohort(|stage, members| {
        let (device, mut member) = stranger(stage, 5);
        let own = Roster::publish(
            vec![leaf(&device.identity, NOW + 10)],
            HeadTerms::new(7, NOW),
            &[CAST.coordinator.verifying_key()],
            &[],
            &CAST.coordinator,
        );
        member.roster = own.unwrap().proof(device.id()).unwrap();
        members[5] = member;
    });
    assert_eq!(why(error), (5, RosterError::NotInRoster(ClientId([5; 16])).into()));
}

#[test]
fn an_unenrolled_client_with_another_ones_leaf() {
    let error = cohort(|stage, members| {
        let (_, mut member) = stranger(stage, 5);
        member.roster = CAST.roster.proof(ClientId([5; 16])).unwrap();
        members[5] = member;
    });
    assert_eq!(why(error), (5, SignedError::Signature { what: "neighbour's advert" }.into()));
}

#[test]
fn an_enrolled_client_under_another_name() {
    // Device 5 colludes: its advert, well signed, names device 20.
    let error = cohort(|stage, members| {
        let mut device = Device::new(5, stage.server(), 3);
        let signing_key = CAST.identities[5].signing_key.clone();
        device.identity = Arc::new(Identity { client_id: ClientId([20; 16]), signing_key });
        device.join(stage.server().offer()).unwrap();
        members[5].advert = advert_of(&device);
    });
    assert_eq!(why(error), (5, NeighbourFault::ClientId));
}

#[test]
fn an_expired_client() {
    let leaves = (0..6).map(|i| leaf(&CAST.identities[i], if i == 4 { NOW + 1 } else { NOW + 1000 })).collect();
    let roster = Arc::new(publish(8, leaves));
    let mut stage = Stage::of(under(&roster), Phase::Share, 6);
    // The victim's clock has gone on: device 4's enrolment has ended in the meantime.
    let view = stage.cohort_view(0);
    let before = stage.devices[0].message().cloned();
    let shown = ServerMessage { view: Some(View::Cohort(view)) };
    let error = stage.devices[0].receive_at(&shown, NOW + 2).unwrap_err();
    let expired = RosterError::Expired { client: ClientId([4; 16]), not_after: NOW + 1, now: NOW + 2 };
    assert_eq!(why(error), (4, expired.into()));
    assert_eq!(stage.devices[0].message(), before.as_ref());
    // The coordinator's side refuses it too, and the round goes on without.
    let mut server = under(&roster);
    let mut device = Device::new(4, &server, 1);
    device.join(server.offer()).unwrap();
    let refusal = server.absorb(device.message().unwrap(), NOW + 2).unwrap_err();
    assert!(matches!(refusal.reason, Reason::Roster(RosterError::Expired { .. })), "{refusal}");
}

#[test]
fn a_client_whose_enrolment_has_not_begun() {
    let mut early = leaf(&CAST.identities[4], NOW + 1000);
    early.not_before = NOW + 500;
    let mut leaves: Vec<_> = (0..6).filter(|&i| i != 4).map(|i| leaf(&CAST.identities[i], NOW + 1000)).collect();
    leaves.push(early);
    let roster = Arc::new(publish(8, leaves));
    let mut server = under(&roster);
    let mut device = Device::new(4, &server, 1);
    device.join(server.offer()).unwrap();
    let refusal = server.absorb(device.message().unwrap(), NOW).unwrap_err();
    let reason = RosterError::NotYetValid { client: ClientId([4; 16]), not_before: NOW + 500, now: NOW };
    assert_eq!(refusal.reason, reason.clone().into());

    // A coordinator whose clock is ahead takes it; its neighbours do not.
    let mut devices: Vec<Device> = (0..6).map(|i| Device::new(i, &server, 11)).collect();
    for device in &mut devices {
        device.join(server.offer()).unwrap();
        server.absorb(device.message().unwrap(), NOW + 500).unwrap();
    }
    let Closed::Next(server) = server.close().unwrap() else { panic!("finished") };
    let view = server.view(devices[0].id()).unwrap();
    let before = devices[0].message().cloned();
    assert_eq!(why(devices[0].receive(&view).unwrap_err()), (4, reason.into()));
    assert_eq!(devices[0].message().cloned(), before);
}

#[test]
fn a_revoked_client_with_its_leaf_of_the_epoch_before() {
    // Epoch 7 has it; the round is under epoch 8, which does not.
    let leaves = (0..6).filter(|&i| i != 4).chain([6]).map(|i| leaf(&CAST.identities[i], NOW + 1000)).collect();
    let roster = Arc::new(publish(8, leaves));
    let server = under(&roster);
    let mut devices: Vec<Device> = (0..6).map(|i| Device::new(i, &server, 11)).collect();
    devices.iter_mut().for_each(|device| device.join(server.offer()).unwrap());
    let mut members = members(&devices);
    for (member, device) in members.iter_mut().zip(&devices).filter(|(_, device)| device.id() != ClientId([4; 16])) {
        member.roster = roster.proof(device.id()).unwrap();
    }
    let view = Forged::new(server.params(), &members, |_| {}).view(0);
    let before = devices[0].message().cloned();
    let error = devices[0].receive(&unisono_protocol::proto::ServerMessage { view: Some(View::Cohort(view)) });
    assert_eq!(why(error.unwrap_err()), (4, RosterError::NotInRoster(ClientId([4; 16])).into()));
    assert_eq!(devices[0].message().cloned(), before);
}

#[test]
fn a_duplicated_client() {
    // Device 3 colludes and has made two adverts, with different keys; the second takes device 4's place.
    let error = cohort(|stage, members| {
        let mut again = Device::new(3, stage.server(), 99);
        again.join(stage.server().offer()).unwrap();
        members[4] = Member { advert: advert_of(&again), roster: CAST.roster.proof(again.id()).unwrap() };
    });
    assert_eq!(why(error), (4, NeighbourFault::Place));
}

#[test]
fn a_duplicated_client_of_which_nobody_sees_both_places() {
    // In a sparse graph hardly anybody sees both of a colluder's places. With a few identities at many places each, a coordinator
    // would have more of the ring than `gamma`. The list of members has each place of the roster once: whoever looks at the
    // second one refuses.
    let mut stage = Stage::at(Phase::Share, &forty(), 40);
    let mut all = members(&stage.devices);
    let mut again = Device::new(3, stage.server(), 99);
    again.join(stage.server().offer()).unwrap();
    all[4] = Member { advert: advert_of(&again), roster: CAST.roster.proof(again.id()).unwrap() };
    let params = stage.server().params().clone();
    let forged = Forged::new(&params, &all, |_| {});
    let mut saw_one = 0;
    for i in (0..20).filter(|i| ![3, 4].contains(i)) {
        let view = forged.view(i as u32);
        let sees = |index| view.neighbours.iter().any(|neighbour| neighbour.index == index);
        if !sees(4) {
            continue;
        }
        saw_one += usize::from(!sees(3));
        let (index, _) = why(stage.refuses(i, View::Cohort(view)));
        assert_eq!(index, 4);
    }
    assert!(saw_one > 0);
}

#[test]
fn a_list_of_members_that_lies() {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let honest = stage.cohort_view(0);
    assert_eq!(honest.members, [0, 1, 1, 1, 1, 1]);
    // A place twice, another place, too few, too many, beyond the roster of 24, a sum that wraps: none is the signed list.
    for members in [
        vec![0, 1, 1, 1, 0, 1],
        vec![0, 1, 1, 1, 1, 2],
        vec![0, 1, 1, 1, 1],
        vec![0, 1, 1, 1, 1, 1, 1],
        vec![0, 1, 1, 1, 1, 24],
        vec![1, u64::MAX, 2, 1, 1, 1],
        vec![],
    ] {
        let view = unisono_protocol::proto::CohortView { members, ..honest.clone() };
        assert_eq!(stage.refuses(0, View::Cohort(view)), ClientError::Members);
    }
    // And a list that is signed, in which device 4's place is another one's.
    let params = stage.server().params().clone();
    let mut all = members(&stage.devices);
    all[4].roster = CAST.roster.proof(ClientId([5; 16])).unwrap();
    all[5].roster = CAST.roster.proof(ClientId([6; 16])).unwrap();
    let mut view = Forged::new(&params, &all, |_| {}).view(0);
    for (neighbour, id) in view.neighbours.iter_mut().zip(1..) {
        neighbour.roster = CAST.roster.proof(ClientId([id; 16])).unwrap();
    }
    assert_eq!(why(stage.refuses(0, View::Cohort(view))), (4, NeighbourFault::Place));
    stage.completes(&[], 6);
}

#[test]
fn members_out_of_order() {
    let error = cohort(|_, members| members.swap(2, 4));
    assert_eq!(why(error), (3, NeighbourFault::Place));
}

#[test]
fn an_older_roster_epoch() {
    let newer = under(&Arc::new(publish(8, (0..6).map(|i| leaf(&CAST.identities[i], NOW + 9)).collect())));
    let older = crate::world::open(&six());
    let mut device = Device::new(0, &newer, 1);
    device.join(newer.offer()).unwrap();
    device.session = None;
    assert_eq!(device.join(older.offer()), Err(ClientError::StaleRoster { epoch: 7, seen: 8 }));
    assert!(device.message().is_none(), "not even an advert");
}

#[test]
fn a_roster_older_than_the_policy_accepts() {
    let server = crate::world::open(&six());
    let mut device = Device::new(0, &server, 1);
    device.trust.policy.min_roster_epoch = 8;
    let Err(ClientError::Policy(refusal)) = device.join(server.offer()) else { panic!("joined") };
    assert_eq!((refusal.setting, refusal.value.as_str(), refusal.limit.as_str()), ("min_roster_epoch", "7", "8"));
    assert!(device.message().is_none());
}

#[test]
fn a_roster_head_signed_by_somebody_else() {
    let server = crate::world::open(&six());
    let mut offer = server.offer().clone();
    let head = offer.roster_head.as_mut().unwrap();
    head.signature = CAST.coordinator.sign(unisono_crypto::kdf::label::SIG_ROSTER, &head.payload);
    let mut device = Device::new(0, &server, 1);
    let signature = SignedError::Signature { what: "roster head" };
    assert_eq!(device.join(&offer), Err(RosterError::from(signature).into()));
    assert!(device.message().is_none());
}

#[test]
fn wrong_merkle_paths() {
    let mut stage = Stage::at(Phase::Share, &six(), 6);
    let honest = stage.cohort_view(0);
    let mut view = honest.clone();
    view.own_path[0][0] ^= 1;
    assert_eq!(stage.refuses(0, View::Cohort(view)), ClientError::OwnAdvert(0));
    let mut view = honest.clone();
    view.neighbours[2].advert_path.swap(0, 1);
    assert_eq!(why(stage.refuses(0, View::Cohort(view))), (3, NeighbourFault::Path));
    let mut view = honest.clone();
    view.neighbours[2].advert_path.pop();
    assert_eq!(why(stage.refuses(0, View::Cohort(view))), (3, NeighbourFault::Path));
    for change in [
        (|proof| proof.path[1][31] ^= 128) as fn(&mut unisono_protocol::proto::RosterProof),
        |proof| proof.index ^= 1,
        |proof| proof.index += 1 << 40,
        |proof| proof.path.push(vec![0; 32]),
    ] {
        let mut view = honest.clone();
        change(view.neighbours[4].roster.as_mut().unwrap());
        let not_there = RosterError::NotInRoster(ClientId([5; 16]));
        assert_eq!(why(stage.refuses(0, View::Cohort(view))), (5, not_there.into()));
    }
    stage.completes(&[], 6);
}
