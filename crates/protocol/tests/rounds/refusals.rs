//! Bad input to either side: a typed error to its sender, and the round goes on.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_crypto::sign::{Level, SigningKey};
use unisono_protocol::client::{ClientError, Identity};
use unisono_protocol::cohort::Cohort;
use unisono_protocol::policy::{ParticipationRecord, Spent, TaskEntry};
use unisono_protocol::proto::{self, server_message::View};
use unisono_protocol::roster::{HeadTerms, Roster, RosterError};
use unisono_protocol::server::{Abort, Accepted, Authority, Closed, OpenError, Phase, Reason, Server, place_in_draw};
use unisono_protocol::{ClientId, CohortId};

use crate::world::{CAST, Device, NOW, leaf, open, params};

pub fn next(server: Server) -> Server {
    match server.close() {
        Ok(Closed::Next(next)) => *next,
        Ok(Closed::Finished(_)) => panic!("the round is over"),
        Err(abort) => panic!("{abort}"),
    }
}

/// A round of five in malicious mode, up to the given phase, with everybody's step taken in the phases before.
pub fn up_to(phase: Phase) -> (Server, Vec<Device>) {
    let mut server = open(&params(true, 3, 5, 0.0, 0.25, 20));
    let mut devices: Vec<Device> = (0..5).map(|i| Device::new(i, &server, 9)).collect();
    loop {
        for device in &mut devices {
            match server.view(device.id()) {
                Some(view) => device.receive(&view).unwrap(),
                None => device.join(server.offer()).unwrap(),
            }
        }
        if server.phase() == phase {
            return (server, devices);
        }
        for device in &devices {
            assert_eq!(server.absorb(device.message().unwrap(), NOW), Ok(Accepted::New));
            if let Some(bytes) = device.upload() {
                assert_eq!(server.absorb_upload(device.id(), &bytes), Ok(Accepted::New));
            }
        }
        assert!(server.ready());
        server = next(server);
    }
}

#[test]
fn a_retry_is_a_repeat_in_every_later_phase_and_other_content_a_conflict() {
    let (mut server, devices) = up_to(Phase::Share);
    let message = devices[0].message().unwrap().clone();
    assert_eq!(server.absorb(&message, NOW), Ok(Accepted::New));
    assert_eq!(server.absorb(&message, NOW), Ok(Accepted::Repeat));
    let mut other = message.clone();
    other.step = devices[1].message().unwrap().step.clone();
    assert_eq!(server.absorb(&other, NOW).unwrap_err().reason, Reason::Conflict);
    for device in &devices[1..] {
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    let mut server = next(server);
    assert_eq!(server.absorb(&message, NOW), Ok(Accepted::Repeat));
    assert_eq!(server.progress().answered, 0);
}

#[test]
fn a_step_of_another_phase_or_round_is_refused_by_name() {
    let (mut server, devices) = up_to(Phase::Advertise);
    let advert = devices[0].message().unwrap();
    let mut other_round = advert.clone();
    other_round.round_id[0] ^= 1;
    let refusal = server.absorb(&other_round, NOW).unwrap_err();
    assert_eq!((refusal.client, refusal.reason), (Some(devices[0].id()), Reason::OtherRound));
    assert!(matches!(
        server.absorb(&proto::ClientMessage { client_id: vec![1], ..advert.clone() }, NOW).unwrap_err().reason,
        Reason::Incomplete(_)
    ));
    assert!(matches!(
        server.absorb(&proto::ClientMessage { step: None, ..advert.clone() }, NOW).unwrap_err().reason,
        Reason::Incomplete(_)
    ));
    let (_, later) = up_to(Phase::Share);
    let refusal = server.absorb(later[0].message().unwrap(), NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::WrongPhase { step: Phase::Share });
}

#[test]
fn an_unknown_expired_or_impersonated_client_is_refused() {
    let (mut server, devices) = up_to(Phase::Advertise);
    let advert = devices[0].message().unwrap();
    let late = server.absorb(advert, NOW + 1001).unwrap_err();
    assert!(matches!(late.reason, Reason::Roster(RosterError::Expired { .. })), "{late}");
    let stranger = proto::ClientMessage { client_id: vec![0xEE; 16], ..advert.clone() };
    assert_eq!(server.absorb(&stranger, NOW).unwrap_err().reason, Reason::Unknown { epoch: 7 });
    let impostor = proto::ClientMessage { client_id: devices[1].id().to_vec(), ..advert.clone() };
    assert_eq!(server.absorb(&impostor, NOW).unwrap_err().reason.code(), "signature");
    assert_eq!(server.progress().answered, 0);
    assert_eq!(server.absorb(advert, NOW), Ok(Accepted::New));
}

#[test]
fn members_are_drawn_among_those_who_come_whoever_was_first() {
    let server_params = params(true, 3, 5, 0.0, 0.25, 20);
    let server = open(&server_params);
    let mut devices: Vec<Device> = (0..9).map(|i| Device::new(i, &server, 3)).collect();
    devices.iter_mut().for_each(|device| device.join(server.offer()).unwrap());
    let round = server.params().round_id;
    let mut drawn: Vec<usize> = (0..9).collect();
    drawn.sort_by_key(|&i| place_in_draw(round, devices[i].id()));
    let orders = [(0..9).collect(), (0..9).rev().collect(), drawn.iter().rev().copied().collect(), drawn.clone()];
    let cohorts = orders.map(|order: Vec<usize>| {
        let mut server = open(&server_params);
        let (mut came, mut accepted): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for i in order {
            came.push(i);
            came.sort_by_key(|i| drawn.iter().position(|place| place == i));
            came.truncate(5);
            let result = server.absorb(devices[i].message().unwrap(), NOW);
            match came.contains(&i) {
                true => assert_eq!(result, Ok(Accepted::New)),
                false => assert_eq!(result.unwrap_err().reason, Reason::Full { n_max: 5 }),
            }
            assert_eq!(server.progress().answered, came.len());
            // Who was accepted and then left out is told so, and its step stays the one that counts.
            accepted.extend(came.contains(&i).then_some(i));
            for &other in &accepted {
                assert_eq!(server.absorb(devices[other].message().unwrap(), NOW), Ok(Accepted::Repeat));
                assert_eq!(server.is_left_out(devices[other].id()), !came.contains(&other));
            }
        }
        let Closed::Next(server) = server.close().unwrap() else { unreachable!() };
        let is_in = |device: &&Device| server.view(device.id()).is_some();
        let mut cohort: Vec<ClientId> = devices.iter().filter(is_in).map(Device::id).collect();
        assert!(cohort.iter().all(|&client| !server.is_left_out(client)));
        cohort.sort();
        cohort
    });
    let mut lowest: Vec<ClientId> = drawn[..5].iter().map(|&i| devices[i].id()).collect();
    lowest.sort();
    assert!(cohorts.iter().all(|cohort| *cohort == lowest));
}

#[test]
fn in_semi_honest_mode_free_ids_take_places_a_bounded_number_of_times() {
    let mut server = open(&params(false, 3, 5, 0.0, 0.25, 20));
    let mut devices: Vec<Device> = (0..40).map(|i| Device::new(i, &server, 3)).collect();
    // Each one takes the place of another: as somebody would who can choose ids.
    let round = server.params().round_id;
    devices.sort_by_key(|device| std::cmp::Reverse(place_in_draw(round, device.id())));
    let mut accepted = 0;
    for device in &mut devices {
        device.join(server.offer()).unwrap();
        match server.absorb(device.message().unwrap(), NOW) {
            Ok(new) => accepted += usize::from(new == Accepted::New),
            Err(refusal) => assert_eq!(refusal.reason, Reason::Full { n_max: 5 }),
        }
    }
    assert_eq!(accepted, 5 + 4 * 5);
    assert_eq!(server.progress().answered, 5);
}

#[test]
fn a_short_long_or_changed_upload_is_refused_and_may_be_repeated() {
    let (mut server, devices) = up_to(Phase::Mask);
    let (client, good) = (devices[0].id(), devices[0].upload().unwrap());
    assert!(matches!(server.absorb_upload(client, &good).unwrap_err().reason, Reason::Incomplete(_)));
    server.absorb(devices[0].message().unwrap(), NOW).unwrap();
    assert_eq!(server.awaited_upload(client).unwrap().0, good.len() as u64);
    let short = server.absorb_upload(client, &good[1..]).unwrap_err().reason;
    assert_eq!(short, Reason::UploadLength { expected: good.len() as u64, got: good.len() as u64 - 1 });
    let long = server.absorb_upload(client, &[good.as_slice(), &[0]].concat()).unwrap_err().reason;
    assert_eq!(long.code(), "upload_length");
    let mut changed = good.clone();
    changed[3] ^= 16;
    assert_eq!(server.absorb_upload(client, &changed).unwrap_err().reason, Reason::UploadHash);
    assert_eq!(server.progress().answered, 0);
    assert_eq!(server.absorb_upload(client, &good), Ok(Accepted::New));
    assert_eq!(server.absorb_upload(client, &good), Ok(Accepted::Repeat));
    assert_eq!((server.progress().answered, server.awaited_upload(client)), (1, None));
}

#[test]
fn a_client_that_skipped_a_phase_takes_no_later_step() {
    let (mut server, devices) = up_to(Phase::Share);
    for device in &devices[1..] {
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    assert_eq!(server.missing(), [devices[0].id()]);
    let mut server = next(server);
    assert!(server.view(devices[0].id()).is_none());
    let refusal = server.absorb(devices[0].message().unwrap(), NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::WrongPhase { step: Phase::Share });
    assert_eq!(server.absorb_upload(devices[0].id(), &[]).unwrap_err().reason, Reason::NotExpected);
}

#[test]
fn a_coordinator_without_the_rosters_word_opens_no_round() {
    let wire = params(true, 3, 5, 0.0, 0.25, 20);
    assert!(matches!(Server::open(&wire, None), Err(OpenError::Authority)));
    let stranger = SigningKey::generate(Level::L65, &mut ChaCha8Rng::seed_from_u64(5));
    let authority = Authority { signing_key: stranger, roster: CAST.roster.clone() };
    assert!(matches!(Server::open(&wire, Some(authority)), Err(OpenError::NotNamed { epoch: 7 })));
    let authority = Authority { signing_key: CAST.coordinator.clone(), roster: CAST.roster.clone() };
    let other = proto::RoundParams { roster_epoch: 6, ..wire };
    assert!(matches!(Server::open(&other, Some(authority)), Err(OpenError::OtherRoster { proposed: 6, epoch: 7 })));
}

#[test]
fn a_device_refuses_a_stranger_an_older_roster_and_a_spent_round() {
    let server = open(&params(true, 3, 5, 0.0, 0.25, 20));
    let mut device = Device::new(0, &server, 2);
    let mut forged = server.offer().clone();
    forged.params.as_mut().unwrap().signature[0] ^= 1;
    assert_eq!(device.join(&forged), Err(ClientError::UntrustedCoordinator));

    // Epoch 8 was seen; the offer is of epoch 7.
    let leaves = vec![leaf(&device.identity, NOW)];
    let newer =
        Roster::publish(leaves, HeadTerms::new(8, NOW), &[CAST.coordinator.verifying_key()], &[], &CAST.registrar)
            .unwrap();
    let wire = proto::RoundParams {
        roster_epoch: 8,
        roster_root: newer.head().root.to_vec(),
        ..params(true, 3, 5, 0.0, 0.25, 20)
    };
    let authority = Authority { signing_key: CAST.coordinator.clone(), roster: Arc::new(newer) };
    let newer = Server::open(&wire, Some(authority)).unwrap();
    device.join(newer.offer()).unwrap();
    assert_eq!(device.join(server.offer()), Err(ClientError::StaleRoster { epoch: 7, seen: 8 }));

    let (_, mut devices) = up_to(Phase::Confirm);
    let again = devices[0].join(server.offer());
    assert!(matches!(again, Err(ClientError::OldRound { round: 1, last: 1, .. })), "{again:?}");
    // Semi-honest rounds need an explicit yes.
    let semi_honest = open(&params(false, 3, 5, 0.0, 0.25, 20));
    assert!(matches!(Device::new(3, &server, 1).join(semi_honest.offer()), Err(ClientError::Policy(_))));
}

#[test]
fn a_device_joins_no_round_under_a_roster_that_is_over_and_ends_one_that_it_has_joined() {
    let leaves = (0..5).map(|i| leaf(&CAST.identities[i], NOW + 1000)).collect();
    let terms = HeadTerms { epoch: 8, issued_at: NOW - 10, valid_until: NOW };
    let roster = Roster::publish(leaves, terms, &[CAST.coordinator.verifying_key()], &[], &CAST.registrar).unwrap();
    let wire = proto::RoundParams {
        roster_epoch: 8,
        roster_root: roster.head().root.to_vec(),
        ..params(true, 3, 5, 0.0, 0.25, 20)
    };
    let authority = Authority { signing_key: CAST.coordinator.clone(), roster: Arc::new(roster) };
    let mut server = Server::open(&wire, Some(authority)).unwrap();
    let mut devices: Vec<Device> = (0..5).map(|i| Device::new(i, &server, 1)).collect();
    let over = RosterError::HeadExpired { epoch: 8, valid_until: NOW, now: NOW + 1 };
    assert_eq!(devices[4].join_at(server.offer(), NOW + 1), Err(over.clone().into()));
    // A clock that was set back since it last took part.
    let spent = Spent { rounds: 1, last_at: NOW + 1, ..Spent::default() };
    let entry = TaskEntry { round: 0, cohort: CohortId([7; 32]), masked_for: None, survivors: None, spent };
    let mut again = Device::new(3, &server, 1);
    again.trust.policy.min_interval_s = 0;
    again.record.replace(&wire.task, None, entry).unwrap();
    assert_eq!(again.join_at(server.offer(), NOW - 50), Err(over.into()));
    // Nothing of it stays: in time it joins.
    for device in &mut devices {
        device.join_at(server.offer(), NOW).unwrap();
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    // The cohort is shown when the roster is over.
    let Closed::Next(server) = server.close().unwrap() else { panic!("phase 1 follows") };
    for device in &mut devices {
        device.receive_at(&server.view(device.id()).unwrap(), NOW + 5).unwrap();
    }
}

#[test]
fn a_committee_member_refuses_a_set_that_is_too_small_or_no_set_and_signs_once() {
    let (server, _) = up_to(Phase::Confirm);
    let (_, mut devices) = up_to(Phase::Mask);
    let Some(View::Survivors(good)) = server.view(ClientId([0; 16])).unwrap().view else { panic!() };
    let mut receive = |survivors: u8| {
        let view = proto::SurvivorsView { survivors: vec![survivors], ..good.clone() };
        devices[0].receive(&proto::ServerMessage { view: Some(View::Survivors(view)) })
    };
    assert!(matches!(receive(0b00011), Err(ClientError::TooFew { have: 2, need: 3, .. })));
    assert!(matches!(receive(0b111111), Err(ClientError::Bitmap(_))));
    assert_eq!(receive(0b11111), Ok(()));
    // A second request in the phase, with another set, does not move the device.
    assert_eq!(receive(0b01111), Ok(()));
    assert_eq!(devices[0].session.as_ref().unwrap().awaits(), Some(Phase::Unmask));
}

#[test]
fn an_identity_that_the_roster_does_not_know_is_noticed_by_its_own_device() {
    let (server, _) = up_to(Phase::Advertise);
    let signing_key = SigningKey::generate(Level::L44, &mut ChaCha8Rng::seed_from_u64(6));
    let mut device = Device::new(0, &server, 1);
    device.identity = Arc::new(Identity { client_id: device.id(), signing_key });
    device.join(server.offer()).unwrap();
    let mut server = server;
    assert_eq!(server.absorb(device.message().unwrap(), NOW).unwrap_err().reason.code(), "signature");
}

#[test]
fn a_device_that_demands_it_takes_only_a_base_model_that_a_publisher_signed() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let [publisher, stranger] = [(); 2].map(|()| SigningKey::generate(Level::L65, &mut rng));
    let leaves = (0..5).map(|i| leaf(&CAST.identities[i], NOW + 1000)).collect();
    let (coordinators, publishers) = ([CAST.coordinator.verifying_key()], [publisher.verifying_key()]);
    let roster =
        Arc::new(Roster::publish(leaves, HeadTerms::new(8, NOW), &coordinators, &publishers, &CAST.registrar).unwrap());
    let wire = proto::RoundParams {
        roster_epoch: 8,
        roster_root: roster.head().root.to_vec(),
        ..params(true, 3, 5, 0.0, 0.25, 20)
    };
    let offer = |key: Option<&SigningKey>, wire: &proto::RoundParams| {
        let authority = Authority { signing_key: CAST.coordinator.clone(), roster: roster.clone() };
        let mut server = Server::open(wire, Some(authority)).unwrap();
        key.into_iter().for_each(|key| server.sign_base_model(key));
        (server.offer().clone(), server)
    };
    let join = |offer: &proto::RoundOffer, server: &Server, demand: bool| {
        let mut device = Device::new(0, server, 1);
        device.trust.policy.signed_base_model = demand;
        device.join(offer)
    };
    let unsigned = |result| matches!(result, Err(ClientError::UnsignedBaseModel(_)));
    let (good, server) = offer(Some(&publisher), &wire);
    assert_eq!(join(&good, &server, true), Ok(()));
    let (none, server) = offer(None, &wire);
    assert!(unsigned(join(&none, &server, true)));
    assert_eq!(join(&none, &server, false), Ok(()));
    let (foreign, server) = offer(Some(&stranger), &wire);
    assert!(unsigned(join(&foreign, &server, true)));
    // A genuine signature on another version, or on another model of this version.
    for other in [
        proto::RoundParams { model_version: 2, ..wire.clone() },
        proto::RoundParams { model_hash: vec![1; 32], ..wire.clone() },
        proto::RoundParams { task: "other".into(), ..wire.clone() },
    ] {
        let moved = proto::RoundOffer { base_model: offer(Some(&publisher), &other).0.base_model, ..none.clone() };
        assert!(unsigned(join(&moved, &server, true)));
    }
}

#[test]
fn a_head_with_a_weak_key_of_a_coordinator_or_publisher_is_refused() {
    let weak = SigningKey::generate(Level::L44, &mut ChaCha8Rng::seed_from_u64(9)).verifying_key();
    let strong = CAST.coordinator.verifying_key();
    for (coordinators, publishers) in [(&[weak.clone()][..], &[][..]), (&[strong][..], &[weak.clone()][..])] {
        let leaves = vec![leaf(&CAST.identities[0], NOW)];
        let error =
            Roster::publish(leaves, HeadTerms::new(8, NOW), coordinators, publishers, &CAST.registrar).err().unwrap();
        assert!(error.to_string().contains("ML-DSA-65"), "{error}");
    }
}

#[test]
fn nobody_masks_where_too_few_of_the_committee_have_shared() {
    let mut server = open(&params(true, 30, 40, 0.05, 0.05, 20));
    let mut devices: Vec<Device> = (0..40).map(|i| Device::new(i, &server, 9)).collect();
    for device in &mut devices {
        device.join(server.offer()).unwrap();
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    let mut server = next(server);
    let Some(View::Cohort(view)) = server.view(devices[0].id()).unwrap().view else { panic!("a cohort follows") };
    let cohort = Cohort::from_payload(&view.cohort.unwrap().payload, server.params()).unwrap();
    let (committee, quorum) = (cohort.graph.committee(), cohort.graph.quorum());
    let vanished = &committee[..committee.len() - quorum + 1];
    for (i, device) in devices.iter_mut().enumerate().filter(|(i, _)| !vanished.contains(&(*i as u32))) {
        device.receive(&server.view(device.id()).unwrap()).unwrap();
        assert_eq!(server.absorb(device.message().unwrap(), NOW), Ok(Accepted::New), "device {i}");
    }
    let abort = server.close().err().unwrap();
    assert_eq!(abort, Abort::TooFew { phase: Phase::Share, have: quorum - 1, need: quorum });
}
