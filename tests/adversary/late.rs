//! Who is late: a device whose round is over by its own clock, and one whose upload comes after its phase. Over real connections.

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use unisono::client::{Error, TrainingRound, Update};
use unisono::coordinator::{Coordinator, Event as Happened};
use unisono::protocol::client::ClientError;
use unisono::protocol::policy::Policy;
use unisono::protocol::proto::{ClientMessage, client_message::Step};
use unisono::protocol::server::Phase;

use crate::deployed::{Raw, all, builder, constant, deployment, devices, finished};
use crate::proxy::{Lie, Proxy};

/// Waits until the phase is closed.
async fn closed(events: &mut Receiver<Happened>, which: Phase) {
    loop {
        match events.recv().await.unwrap() {
            Happened::PhaseClosed { phase, .. } if phase == which => return,
            Happened::RoundAborted { reason, .. } => panic!("aborted: {reason}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_leaves_a_round_that_is_over_by_its_own_clock_whatever_it_waits_for() {
    // Phases stay open for a minute: one device never shares its keys.
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = None;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let policy = || Policy { n_min: deployment.n_min, min_interval_s: 0, max_round_s: 1, ..Policy::default() };
    let waits = |i| builder(&deployment, &endpoint, i).policy(policy()).build(constant(i)).unwrap();
    // This one's trainer is what takes long.
    let slow = |round: &TrainingRound| {
        std::thread::sleep(Duration::from_secs(20));
        constant(3)(round)
    };
    let mut rounds = tokio::task::JoinSet::new();
    for mut device in
        [waits(0), waits(1), waits(2), builder(&deployment, &endpoint, 3).policy(policy()).build(slow).unwrap()]
    {
        rounds.spawn(async move { device.run_round().await.unwrap().unwrap().unwrap_err() });
    }
    let mut raw = Raw::join(&endpoint, deployment.device_keys(4)).await;
    raw.submit(raw.advert()).await.unwrap();
    let left = tokio::time::timeout(Duration::from_secs(15), rounds.join_all()).await.expect("they leave");
    for error in left {
        let Error::Protocol(why) = &error else { panic!("{error}") };
        let ClientError::Expired { erase_at, now } = **why else { panic!("{error}") };
        assert!(now > erase_at && now <= erase_at + 3, "{error}");
    }
    coordinator.stop().await;
}

/// Device 4 is late with its upload, and of the other members of the committee one does not endorse: there is a certificate only if
/// the late one endorses the set without itself.
async fn late_upload(header_in_time: bool) {
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = Some(500);
    // Of the four in the sum three give their shares, which is enough.
    deployment.config.round.unmask_ms = 3_000;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let (mut events, mut phases) = (coordinator.events(), coordinator.events());
    let endpoint = format!("http://{}", coordinator.address());
    let (over, mask_is_over) = tokio::sync::watch::channel(false);
    let lie = if header_in_time { Lie::HoldChunks(mask_is_over.clone()) } else { Lie::None };
    let (proxied, sent, serving) = Proxy::start(&endpoint, lie).await;
    let train = move |round: &TrainingRound| -> Result<Update, unisono::client::TrainError> {
        while !header_in_time && !*mask_is_over.borrow() {
            std::thread::sleep(Duration::from_millis(20));
        }
        constant(4)(round)
    };
    let mut late = builder(&deployment, &proxied, 4).build(train).unwrap();
    let late = tokio::spawn(async move { late.run_round().await.unwrap().unwrap().unwrap_err() });
    let spoil = |step: &mut Step| {
        if let Step::Endorsement(signed) = step {
            signed.signature[0] ^= 1;
        }
    };
    let (silent_endpoint, _, silent_serving) = Proxy::start(&endpoint, Lie::Step(Box::new(spoil))).await;
    let mut silent = builder(&deployment, &silent_endpoint, 3).build(constant(3)).unwrap();
    let silent = tokio::spawn(async move { silent.run_round().await.unwrap().unwrap() });
    let honest = devices(&deployment, &endpoint, 0..3);
    closed(&mut phases, Phase::Mask).await;
    over.send(true).unwrap();
    let result = finished(&mut events).await;
    let survivors = result.outcome.survivors.len();
    assert_eq!((result.outcome.cohort.len(), survivors), (5, 4));
    assert!((result.aggregate.mean[0] - 0.025).abs() < 1e-3, "{}", result.aggregate.mean[0]);
    let error = late.await.unwrap();
    assert!(error.to_string().contains("the certified set of survivors is without this device"), "{error}");
    let endorses = |message: &&ClientMessage| matches!(message.step, Some(Step::Endorsement(_)));
    let endorsed = sent.lock().unwrap().messages.iter().filter(endorses).count();
    assert_eq!(endorsed, 1);
    assert!(silent.await.unwrap().is_err());
    assert!(all(honest).await.iter().all(|summary| summary.completed == 1));
    coordinator.stop().await;
    serving.abort();
    silent_serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_input_is_masked_too_late_endorses_the_set_without_it() {
    late_upload(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_chunks_come_too_late_endorses_the_set_without_it() {
    late_upload(true).await;
}
