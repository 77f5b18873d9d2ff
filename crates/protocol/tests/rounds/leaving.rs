//! A client that leaves is not waited for; nobody can say it in another's name, and it changes nothing else.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unisono_protocol::client::{self, Identity};
use unisono_protocol::proto;
use unisono_protocol::server::{Abort, Accepted, Closed, Phase, Reason, Server};

use crate::refusals::{next, up_to};
use crate::world::{CAST, Device, NOW, open, params};

fn word(server: &Server, identity: &Identity) -> Vec<u8> {
    client::leave(server.params(), identity, &mut ChaCha8Rng::seed_from_u64(1))
}

fn leave(server: &mut Server, device: &Device) -> Result<Accepted, Reason> {
    let word = word(server, &device.identity);
    server.leave(device.id(), &word, NOW).map_err(|refusal| refusal.reason)
}

/// Takes the step of a device, with its upload.
fn step(server: &mut Server, device: &Device) {
    assert_eq!(server.absorb(device.message().unwrap(), NOW), Ok(Accepted::New));
    if let Some(bytes) = device.upload() {
        assert_eq!(server.absorb_upload(device.id(), &bytes), Ok(Accepted::New));
    }
}

#[test]
fn a_phase_is_ready_without_those_who_leave() {
    for phase in [Phase::Share, Phase::Mask] {
        let (mut server, devices) = up_to(phase);
        for device in &devices[1..] {
            assert!(!server.ready(), "{phase}");
            step(&mut server, device);
        }
        assert!(!server.ready(), "{phase}");
        assert_eq!(leave(&mut server, &devices[0]), Ok(Accepted::New));
        assert_eq!(leave(&mut server, &devices[0]), Ok(Accepted::Repeat));
        assert_eq!((server.progress().answered, server.progress().expected, server.ready()), (4, 4, true), "{phase}");
        // The word closes nothing: a step that comes after all counts.
        step(&mut server, &devices[0]);
        assert_eq!((server.progress().answered, server.progress().expected), (5, 5), "{phase}");
        next(server);
    }
}

#[test]
fn an_offer_is_open_for_those_who_may_still_come() {
    // The roster has more devices than the cohort; all but four leave.
    let mut server = open(&params(true, 3, 60, 0.0, 0.25, 20));
    assert_eq!((server.fleet(), server.progress().expected), (Some(CAST.identities.len()), 60));
    for identity in &CAST.identities[4..] {
        let word = word(&server, identity);
        server.leave(identity.client_id, &word, NOW).unwrap();
    }
    assert_eq!((server.fleet(), server.progress().expected), (Some(4), 4));
    for i in 0..4 {
        assert!(!server.ready());
        let mut device = Device::new(i, &server, 5);
        device.join(server.offer()).unwrap();
        step(&mut server, &device);
        // It has come: it is expected, whatever it says now.
        assert_eq!(leave(&mut server, &device), Ok(Accepted::New));
    }
    assert_eq!((server.fleet(), server.progress().answered, server.ready()), (Some(4), 4, true));
}

#[test]
fn the_quorum_is_waited_for_as_long_as_it_can_come_and_never_done_without() {
    let (mut server, devices) = up_to(Phase::Confirm);
    let quorum = server.progress().expected;
    assert!(quorum < devices.len(), "some can be spared");
    for device in &devices[quorum..] {
        assert_eq!(leave(&mut server, device), Ok(Accepted::New));
        assert_eq!(server.progress().expected, quorum);
    }
    for device in &devices[1..quorum] {
        step(&mut server, device);
    }
    assert!(!server.ready());
    assert_eq!(leave(&mut server, &devices[0]), Ok(Accepted::New));
    assert!(server.ready(), "nobody is left who could sign");
    let Err(abort) = server.close() else { panic!("a certificate without its quorum") };
    assert_eq!(abort, Abort::TooFew { phase: Phase::Confirm, have: quorum - 1, need: quorum });
}

#[test]
fn shares_of_those_who_stay_are_enough_for_the_sum() {
    let (mut server, devices) = up_to(Phase::Unmask);
    assert_eq!(leave(&mut server, &devices[0]), Ok(Accepted::New));
    devices[1..].iter().for_each(|device| step(&mut server, device));
    assert!(server.ready());
    let Ok(Closed::Finished(outcome)) = server.close() else { panic!("no sum") };
    assert_eq!(outcome.survivors.len(), 5);
}

#[test]
fn nobody_leaves_in_anothers_name() {
    for phase in Phase::ALL {
        let (mut server, devices) = up_to(phase);
        let before = server.progress();
        let own = word(&server, &devices[1].identity);
        let mut other_round = params(true, 3, 5, 0.0, 0.25, 20);
        other_round.round += 1;
        let replayed = word(&open(&other_round), &devices[0].identity);
        let advert = match &devices[0].message().unwrap().step {
            Some(proto::client_message::Step::Advert(signed)) => signed.signature.clone(),
            _ => vec![0; own.len()],
        };
        for word in [own, replayed, advert, Vec::new()] {
            let refusal = server.leave(devices[0].id(), &word, NOW).unwrap_err();
            assert_eq!((refusal.client, refusal.reason.code()), (Some(devices[0].id()), "signature"), "{phase}");
        }
        // Enrolled, and not in the cohort.
        let identity = &CAST.identities[7];
        let word = word(&server, identity);
        let said = server.leave(identity.client_id, &word, NOW).map_err(|refusal| refusal.reason);
        match phase {
            Phase::Advertise => assert_eq!(said, Ok(Accepted::New)),
            _ => assert_eq!(said, Err(Reason::NotExpected)),
        }
        let stranger = unisono_protocol::ClientId([0xEE; 16]);
        assert_eq!(server.leave(stranger, &[], NOW).unwrap_err().reason, Reason::Unknown { epoch: 7 });
        assert_eq!(server.progress(), before, "{phase}");
    }
}

#[test]
fn without_signatures_only_members_leave() {
    let server_params = params(false, 3, 5, 0.0, 0.25, 20);
    let mut server = open(&server_params);
    let mut devices: Vec<Device> = (0..4).map(|i| Device::new(i, &server, 9)).collect();
    assert_eq!(leave(&mut server, &devices[0]), Err(Reason::NotExpected));
    for device in &mut devices {
        device.join(server.offer()).unwrap();
        step(&mut server, device);
    }
    let mut server = next(server);
    let other = Device::new(9, &server, 9);
    assert_eq!(leave(&mut server, &other), Err(Reason::NotExpected));
    assert_eq!(leave(&mut server, &devices[0]), Ok(Accepted::New));
    assert_eq!(server.progress().expected, 3);
}
