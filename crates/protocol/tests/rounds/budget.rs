//! What a device allows over the rounds of a task: its record counts, and the count is spent before the input leaves.

use unisono_protocol::client::{ClientError, Session};
use unisono_protocol::policy::{
    CLOCK, MAX_FIRST_ROUND, MAX_ROUND_JUMP, ParticipationRecord, PolicyRefusal, PrivacyDemand, ROUND_JUMP,
};
use unisono_protocol::proto;
use unisono_protocol::server::{Closed, Phase, Server};

use crate::world::{Device, NOW, open, params};

fn of_round(round: u64) -> proto::RoundParams {
    proto::RoundParams { round, ..params(true, 3, 5, 0.0, 0.0, 20) }
}

/// Plays round `round` up to the end of `last`, at `now`; what the first device says to the view that it refuses.
fn play(devices: &mut [Device], round: &proto::RoundParams, now: u64) -> Result<(), ClientError> {
    let mut server: Server = open(round);
    for device in devices.iter_mut() {
        device.input = unisono_crypto::ring::RingVector::zeros(server.params().modulus, server.params().vector_len());
        device.join_at(server.offer(), now)?;
    }
    loop {
        for device in devices.iter_mut() {
            if server.phase() > Phase::Advertise {
                let view = server.view(device.id()).unwrap();
                device.receive_at(&view, now)?;
            }
            server.absorb(device.message().unwrap(), NOW).unwrap();
            if let Some(upload) = device.upload() {
                server.absorb_upload(device.id(), &upload).unwrap();
            }
        }
        match server.close().unwrap() {
            Closed::Next(next) => server = *next,
            Closed::Finished(_) => return Ok(()),
        }
    }
}

fn refused(result: Result<(), ClientError>) -> PolicyRefusal {
    match result {
        Err(ClientError::Policy(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn devices(change: impl Fn(&mut unisono_protocol::policy::Policy)) -> Vec<Device> {
    let server = open(&of_round(1));
    let device = |i| {
        let mut device = Device::new(i, &server, 7);
        change(&mut device.trust.policy);
        device
    };
    (0..5).map(device).collect()
}

#[test]
fn rounds_are_counted_and_the_last_one_is_refused() {
    let mut devices = devices(|policy| policy.max_rounds = Some(2));
    for round in [1, 2] {
        play(&mut devices, &of_round(round), NOW + 100 * round).unwrap();
    }
    let refusal = refused(play(&mut devices, &of_round(3), NOW + 300));
    assert_eq!((refusal.setting, refusal.value.as_str(), refusal.limit.as_str()), ("max_rounds", "3", "2"));
    assert_eq!(devices[0].record.entry("test").unwrap().unwrap().spent.rounds, 2);
}

#[test]
fn two_rounds_too_close_to_each_other_are_refused_by_default() {
    let mut devices = devices(|_| {});
    play(&mut devices, &of_round(1), NOW).unwrap();
    for now in [NOW, NOW + 9] {
        assert_eq!(refused(play(&mut devices, &of_round(2), now)).setting, "min_interval_s", "at {now}");
    }
    assert_eq!(refused(play(&mut devices, &of_round(2), NOW - 5000)).setting, CLOCK);
    play(&mut devices, &of_round(2), NOW + 10).unwrap();
}

#[test]
fn a_number_that_would_end_all_later_rounds_is_refused() {
    let mut devices = devices(|_| {});
    assert_eq!(refused(play(&mut devices, &of_round(MAX_FIRST_ROUND + 1), NOW)).setting, ROUND_JUMP);
    play(&mut devices, &of_round(1), NOW).unwrap();
    for round in [2 + MAX_ROUND_JUMP, u64::MAX] {
        assert!(refused(play(&mut devices, &of_round(round), NOW + 100)).what.contains("number"));
    }
    play(&mut devices, &of_round(1 + MAX_ROUND_JUMP), NOW + 100).unwrap();
}

/// A round with noise.
fn private(round: u64) -> proto::RoundParams {
    let mut params = of_round(round);
    let quantiser = params.quantiser.as_mut().unwrap();
    quantiser.l2_clip = Some(1.0);
    quantiser.privacy = Some(proto::Privacy { noise_variance: 4e5 });
    params.modulus_bits = 24;
    params
}

#[test]
fn epsilon_adds_up_in_the_record_and_is_refused_beyond_the_limit() {
    let params =
        unisono_protocol::params::RoundParams::from_payload(&prost::Message::encode_to_vec(&private(1))).unwrap();
    let guarantee = params.guarantee().unwrap();
    let account = |rounds| unisono_protocol::privacy::Accountant::new().and(&guarantee, rounds).epsilon(1e-5);
    let demand = |limit| PrivacyDemand { max_epsilon: 100.0, max_total_epsilon: Some(limit), delta: 1e-5 };
    let limit = (account(2) + account(3)) / 2.0;
    let mut all = devices(|policy| policy.privacy = Some(demand(limit)));
    for round in [1, 2] {
        play(&mut all, &private(round), NOW + 100 * round).unwrap();
        let spent = all[0].record.entry("test").unwrap().unwrap().spent;
        assert!((spent.epsilon(1e-5) - account(round)).abs() < 1e-9);
    }
    assert_eq!(refused(play(&mut all, &private(3), NOW + 300)).setting, "privacy.max_total_epsilon");
    // A round without noise is beyond any limit afterwards.
    let mut unprotected = devices(|_| {});
    play(&mut unprotected, &of_round(1), NOW).unwrap();
    unprotected.iter_mut().for_each(|device| device.trust.policy.privacy = Some(demand(1e9)));
    let refusal = refused(play(&mut unprotected, &private(2), NOW + 100));
    assert_eq!((refusal.setting, refusal.value.as_str()), ("privacy.max_total_epsilon", "inf"));
}

#[test]
fn what_was_joined_before_the_budget_was_spent_is_asked_again_before_masking() {
    let mut all = devices(|policy| policy.max_rounds = Some(1));
    // Round 2 is joined first; then round 1 is played, by the same record, to its end.
    let second = open(&of_round(2));
    let early: Vec<Session> = all
        .iter_mut()
        .map(|device| {
            device.join_at(second.offer(), NOW).unwrap();
            device.session.take().unwrap()
        })
        .collect();
    play(&mut all, &of_round(1), NOW).unwrap();
    let mut server = second;
    for (device, session) in all.iter_mut().zip(early) {
        device.session = Some(session);
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    let Closed::Next(server) = server.close().unwrap() else { panic!("phase 1 follows") };
    let mut server = *server;
    for device in &mut all {
        device.receive_at(&server.view(device.id()).unwrap(), NOW + 100).unwrap();
        server.absorb(device.message().unwrap(), NOW).unwrap();
    }
    let Closed::Next(server) = server.close().unwrap() else { panic!("phase 2 follows") };
    let view = server.view(all[0].id()).unwrap();
    let refusal = refused(all[0].receive_at(&view, NOW + 100));
    assert_eq!(refusal.setting, "max_rounds");
    assert!(all[0].upload().is_none());
}
