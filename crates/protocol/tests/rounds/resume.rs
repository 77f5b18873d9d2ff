//! Devices that keep nothing but bytes between two messages.

use unisono_protocol::client::{ClientError, Session, Trust};
use unisono_protocol::proto::RoundOffer;
use unisono_protocol::roster::{HeadTerms, Roster};
use unisono_protocol::server::{Closed, Outcome, Server};

use crate::world::{CAST, Device, NOW, leaf, open, params, plain_sum};

/// Saves the device's state and puts the resumed one in its place.
fn restart(device: &mut Device, offer: &RoundOffer) {
    let Some(session) = &device.session else { return };
    let saved = session.save().unwrap();
    let before = device.message().cloned();
    let resumed = Session::resume(&saved, offer, device.identity.clone(), &device.trust).unwrap();
    device.session = Some(resumed);
    assert_eq!(device.message().cloned(), before, "a repeated message has the same bytes");
}

/// Devices of a round; few and without signatures for Miri.
const N: usize = if cfg!(miri) { 4 } else { 6 };
const MODES: &[bool] = if cfg!(miri) { &[false] } else { &[true, false] };

/// A round in which every device restarts after every message, and one vanishes after sharing.
fn play(malicious: bool) -> (Outcome, bool) {
    let params = params(malicious, N as u32 - 1, N as u32, 0.0, 0.25, 20);
    let mut server = open(&params);
    let offer = server.offer().clone();
    let mut devices: Vec<Device> = (0..N).map(|i| Device::new(i, &server, 3)).collect();
    for device in &mut devices {
        device.join(&offer).unwrap();
    }
    loop {
        for (i, device) in devices.iter_mut().enumerate() {
            if i == 2 && server.phase() >= unisono_protocol::server::Phase::Mask {
                continue;
            }
            if let Some(view) = server.view(device.id()) {
                device.receive(&view).unwrap();
            }
            server.absorb(device.message().unwrap(), NOW).unwrap();
            if let Some(upload) = device.upload() {
                let _ = server.absorb_upload(device.id(), &upload);
            }
            restart(device, &offer);
        }
        let round_params = server.params().clone();
        match server.close().unwrap() {
            Closed::Next(next) => server = *next,
            Closed::Finished(outcome) => {
                let exact = plain_sum(&devices, &outcome.survivors, &round_params) == outcome.sum;
                return (outcome, exact);
            }
        }
    }
}

#[test]
fn a_round_of_devices_that_restart_after_every_message_gives_the_exact_sum() {
    for &malicious in MODES {
        let (outcome, exact) = play(malicious);
        assert!(exact && outcome.survivors.len() == N - 1, "{outcome:?}");
    }
}

#[test]
fn a_saved_state_is_refused_when_cut_or_of_another_round_or_device() {
    let server: Server = open(&params(true, 4, 6, 0.0, 0.2, 20));
    let mut device = Device::new(0, &server, 1);
    device.join(server.offer()).unwrap();
    let saved = device.session.as_ref().unwrap().save().unwrap();
    let trust = device.trust.clone();
    let resume = |bytes: &[u8], offer: &RoundOffer, device: usize| {
        Session::resume(bytes, offer, CAST.identities[device].clone(), &trust).err()
    };
    assert_eq!(resume(&saved, server.offer(), 0), None);
    assert!(matches!(resume(&saved, server.offer(), 1), Some(ClientError::Saved(_))));
    let other = open(&params(true, 4, 6, 0.0, 0.2, 21));
    assert!(matches!(resume(&saved, other.offer(), 0), Some(ClientError::Saved(_))));
    for len in 0..saved.len() {
        assert!(resume(&saved[..len], server.offer(), 0).is_some(), "cut to {len} bytes");
    }
    let nobody = Trust { registrar: None, policy: trust.policy.clone() };
    assert!(Session::resume(&saved, server.offer(), CAST.identities[0].clone(), &nobody).is_err());
}

/// The reader of an offer is one for joining and resuming: the resumed one once took a head of another roster.
#[test]
fn a_saved_state_is_refused_under_an_offer_with_the_head_of_another_roster() {
    let server: Server = open(&params(true, 4, 6, 0.0, 0.2, 20));
    let mut device = Device::new(0, &server, 1);
    device.join(server.offer()).unwrap();
    let saved = device.session.as_ref().unwrap().save().unwrap();
    let leaves = vec![leaf(&device.identity, NOW)];
    let other =
        Roster::publish(leaves, HeadTerms::new(8, NOW), &[CAST.coordinator.verifying_key()], &[], &CAST.registrar)
            .unwrap();
    let offer = RoundOffer { roster_head: Some(other.signed_head().clone()), ..server.offer().clone() };
    let resumed = Session::resume(&saved, &offer, device.identity.clone(), &device.trust);
    assert_eq!(resumed.err(), Some(ClientError::OtherRoster { proposed: 7, head: 8 }));
}

/// Found by fuzzing: the message inside a saved state was once not compared with the round.
#[test]
fn a_saved_state_whose_message_is_of_another_round_is_refused() {
    let server: Server = open(&params(true, 4, 6, 0.0, 0.2, 20));
    let mut device = Device::new(0, &server, 1);
    device.join(server.offer()).unwrap();
    let mut saved = device.session.as_ref().unwrap().save().unwrap().to_vec();
    let round_id = server.params().round_id.0;
    let mut places = saved.windows(32).enumerate().filter(|(_, bytes)| *bytes == round_id).map(|(at, _)| at);
    // The session's own, its advert's, its message's.
    let third = places.nth(2).unwrap();
    saved[third] ^= 1;
    let resumed = Session::resume(&saved, server.offer(), CAST.identities[0].clone(), &device.trust);
    assert!(matches!(resumed.err(), Some(ClientError::Saved("it is of another round or device"))));
}
