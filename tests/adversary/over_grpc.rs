//! The most telling attacks over real connections: a proxy stands between one device and the coordinator, and changes what the
//! device is shown. The device is the SDK's; the other four reach the coordinator directly. Where the proxy has the coordinator's
//! key, both together are a coordinator that lies to one device.

use std::sync::{Arc, Mutex};

use prost::Message;
use unisono::client::{Error, Event, Summary};
use unisono::coordinator::{Coordinator, Event as Happened, RoundResult};
use unisono::crypto::kdf::label;
use unisono::crypto::kem::DecapsulationKey;
use unisono::crypto::merkle;
use unisono::crypto::secret::Secret32;
use unisono::crypto::sign::SigningKey;
use unisono::local::Deployment;
use unisono::protocol::client::{CertificateFault, ClientError, NeighbourFault};
use unisono::protocol::policy::PolicyRefusal;
use unisono::protocol::proto::{
    Advert, ClientMessage, Cohort, NeighbourAdvert, NeighbourShares, RoundParams, UploadHeader, client_message::Step,
    server_message::View,
};
use unisono::protocol::server::Phase;
use unisono::protocol::signed::{self, SignedError};
use unisono::wire::proto::GetRoundResponse;

use crate::deployed::{all, builder, constant, deployment, devices, finished};
use crate::harness::{Outbox, phase_of};
use crate::lying::resign_shares_with;
use crate::proxy::{CertificateLie, Lie, Proxy, Sent, ask_all_the_same};

/// Puts a key of the liar's in the place of a neighbour's, under the neighbour's signature.
fn substitute_key(neighbour: &mut NeighbourAdvert) {
    let signed = neighbour.advert.as_mut().unwrap();
    let mut advert = Advert::decode(signed.payload.as_slice()).unwrap();
    let own = DecapsulationKey::from_seed(&Secret32::from_bytes([1; 32]));
    advert.channel_ek = own.encapsulation_key().as_bytes().to_vec();
    signed.payload = advert.encode_to_vec();
}

/// Changes the parameters of an offer. The coordinator's key signs them again; without it the signature stays.
fn change_params(response: &mut GetRoundResponse, key: Option<&SigningKey>, change: impl FnOnce(&mut RoundParams)) {
    let Some(signed) = response.offer.as_mut().and_then(|offer| offer.params.as_mut()) else { return };
    let mut params = RoundParams::decode(signed.payload.as_slice()).unwrap();
    change(&mut params);
    match key {
        Some(key) => *signed = signed::sign(&params, label::SIG_ROUND_PARAMS, Some(key)),
        None => signed.payload = params.encode_to_vec(),
    }
}

/// The coordinator's signing key.
pub fn coordinator_key(deployment: &Deployment) -> SigningKey {
    deployment.config.round_keys().unwrap().unwrap().signing_key
}

/// Those who wait for the victim wait so long.
pub fn patient() -> Deployment {
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = Some(2_500);
    deployment
}

pub struct Attacked {
    pub error: Error,
    /// Phases in which the victim sent something.
    pub sent: Vec<Phase>,
    /// Whether a masked input left it.
    pub uploaded: bool,
    result: Arc<RoundResult>,
}

/// Device 4 behind the lying proxy: why it gave up, what it had sent by then; the round completes for the others.
async fn attack(lie: Lie) -> Attacked {
    attack_in(patient(), lie).await
}

/// As [`attack`], in a deployment whose keys the lie may have.
pub async fn attack_in(deployment: Deployment, lie: Lie) -> Attacked {
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let (proxied, sent, serving) = Proxy::start(&endpoint, lie).await;
    let mut victim = builder(&deployment, &proxied, 4).build(constant(4)).unwrap();
    let attacked = tokio::spawn(async move { victim.run_round().await.unwrap().unwrap().unwrap_err() });
    let honest = devices(&deployment, &endpoint, 0..4);
    let error = attacked.await.unwrap();
    let result = finished(&mut events).await;
    assert!(all(honest).await.iter().all(|summary| summary.completed == 1));
    // Exact means the mean of constants: 0.01 to 0.04, and 0.05 if the victim's upload had come.
    let survivors = result.outcome.survivors.len();
    let mean = if survivors == 5 { 0.03 } else { 0.025 };
    assert!((result.aggregate.mean[0] - mean).abs() < 1e-3, "{survivors}: {}", result.aggregate.mean[0]);
    coordinator.stop().await;
    serving.abort();
    let sent = sent.lock().unwrap();
    let phases = sent.messages.iter().map(|message| phase_of(message).unwrap()).collect();
    Attacked { error, sent: phases, uploaded: !sent.chunks.is_empty(), result }
}

fn refusal(error: Error) -> ClientError {
    let Error::Protocol(refusal) = error else { panic!("{error}") };
    *refusal
}

fn on_view(lie: impl Fn(&mut View, &[ClientMessage]) + Send + Sync + 'static) -> Lie {
    Lie::View(Box::new(lie))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_substituted_channel_key_over_grpc() {
    let lie = on_view(|view, _| {
        if let View::Cohort(view) = view {
            substitute_key(&mut view.neighbours[0]);
        }
    });
    let attacked = attack(lie).await;
    let ClientError::Neighbour { why, .. } = refusal(attacked.error) else { panic!("another refusal") };
    assert_eq!((why, attacked.sent, attacked.uploaded), (NeighbourFault::Path, vec![Phase::Advertise], false));
    assert_eq!(attacked.result.outcome.survivors.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_substituted_channel_key_in_a_cohort_signed_by_the_coordinator_over_grpc() {
    let deployment = patient();
    let key = coordinator_key(&deployment);
    let lie = on_view(move |view, messages| {
        let View::Cohort(view) = view else { return };
        substitute_key(&mut view.neighbours[0]);
        // Everybody is everybody's neighbour: with the device's own advert these are all. Tree and cohort are made anew of them.
        let Some(Step::Advert(own)) = &messages[0].step else { panic!("another step") };
        let mut payloads: Vec<Vec<u8>> =
            view.neighbours.iter().map(|neighbour| neighbour.advert.as_ref().unwrap().payload.clone()).collect();
        payloads.insert(view.index as usize, own.payload.clone());
        let tree = merkle::Tree::new(label::TREE_ADVERTS, &payloads);
        let path = |index: u32| tree.path(index as usize).unwrap().iter().map(|hash| hash.to_vec()).collect();
        view.own_path = path(view.index);
        for neighbour in &mut view.neighbours {
            neighbour.advert_path = path(neighbour.index);
        }
        let signed = view.cohort.as_mut().unwrap();
        let mut cohort = Cohort::decode(signed.payload.as_slice()).unwrap();
        cohort.adverts_root = tree.root().to_vec();
        *signed = signed::sign(&cohort, label::SIG_COHORT, Some(&key));
    });
    let attacked = attack_in(deployment, lie).await;
    let ClientError::Neighbour { why, .. } = refusal(attacked.error) else { panic!("another refusal") };
    assert_eq!(why, NeighbourFault::Signed(SignedError::Signature { what: "neighbour's advert" }));
    assert_eq!((attacked.sent, attacked.uploaded), (vec![Phase::Advertise], false));
    assert_eq!((attacked.result.outcome.cohort.len(), attacked.result.outcome.survivors.len()), (5, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_injected_mask_ciphertext_over_grpc() {
    let lie = on_view(|view, _| {
        let View::Masking(view) = view else { return };
        for delivery in &mut view.deliveries {
            let mut message = NeighbourShares::decode(delivery.message.as_slice()).unwrap();
            message.mask_ct.iter_mut().for_each(|byte| *byte = 7);
            message.channel_ct[0] ^= 1;
            delivery.message = message.encode_to_vec();
        }
    });
    let attacked = attack(lie).await;
    let ClientError::Neighbour { why, .. } = refusal(attacked.error) else { panic!("another refusal") };
    assert_eq!(why, NeighbourFault::Path);
    assert_eq!((attacked.sent, attacked.uploaded), (vec![Phase::Advertise, Phase::Share], false));
    assert_eq!(attacked.result.outcome.survivors.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_isolated_victim_over_grpc() {
    // It alone is told that another client dropped out, and endorses that. Then it is shown what the others certified; that with its own
    // set put in; and its own endorsement as the whole certificate.
    let other = ClientError::OtherSurvivors { task: unisono::local::TASK.into(), round: 1 };
    let forged = ClientError::Certificate(CertificateFault::Signature { signer: 0 });
    let alone = ClientError::Certificate(CertificateFault::Quorum { have: 1, need: 4 });
    let lies: [(CertificateLie, ClientError); 3] = [
        (|_, _, _| {}, other),
        (|certificate, survivors, _| certificate.survivors = survivors.to_vec(), forged),
        (
            |certificate, survivors, own| {
                certificate.survivors = survivors.to_vec();
                certificate.endorsements.truncate(1);
                certificate.endorsements[0].signature = own.to_vec();
            },
            alone,
        ),
    ];
    for (lie, expected) in lies {
        let attacked = attack(Lie::Isolate(lie)).await;
        let refused = refusal(attacked.error);
        let names_a_signer =
            |error: &ClientError| matches!(error, ClientError::Certificate(CertificateFault::Signature { .. }));
        assert!(refused == expected || names_a_signer(&refused) && names_a_signer(&expected), "{refused}");
        assert_eq!(attacked.sent, [Phase::Advertise, Phase::Share, Phase::Mask, Phase::Confirm], "no shares");
        assert_eq!(attacked.result.outcome.survivors.len(), 5, "its input is in the sum, and in nothing smaller");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_told_that_it_dropped_itself_over_grpc() {
    // The set in the certificate is another than the one that was signed.
    let lie = on_view(|view, messages| {
        let View::Certificate(view) = view else { return };
        let upload = messages.iter().find_map(|message| match &message.step {
            Some(Step::Upload(signed)) => Some(signed.payload.as_slice()),
            _ => None,
        });
        view.survivors[0] &= !(1 << UploadHeader::decode(upload.unwrap()).unwrap().from);
    });
    let attacked = attack(lie).await;
    let error = refusal(attacked.error);
    assert!(matches!(error, ClientError::Certificate(CertificateFault::Signature { .. })), "{error}");
    assert!(!attacked.sent.contains(&Phase::Unmask));
    assert_eq!(attacked.result.outcome.survivors.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endorsement_under_another_signers_name_over_grpc() {
    let lie = on_view(|view, _| {
        let View::Certificate(view) = view else { return };
        view.endorsements[1].signature = view.endorsements[0].signature.clone();
    });
    let attacked = attack(lie).await;
    let error = refusal(attacked.error);
    assert!(matches!(error, ClientError::Certificate(CertificateFault::Signature { .. })), "{error}");
    assert!(!attacked.sent.contains(&Phase::Unmask));
}

/// The phase whose view this is, in malicious mode.
fn shown_in(view: &View) -> Phase {
    match view {
        View::Cohort(_) => Phase::Share,
        View::Masking(_) => Phase::Mask,
        View::Survivors(_) => Phase::Confirm,
        View::Certificate(_) => Phase::Unmask,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_phase_with_each_other_phases_view_over_grpc() {
    const VIEWS: [Phase; 4] = [Phase::Share, Phase::Mask, Phase::Confirm, Phase::Unmask];
    let mut deployment = deployment(100);
    deployment.config.round.straggler_grace_ms = Some(1_500);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    // In the first round the device is shown what is true, which is kept; then in `phase` the view of `instead`.
    let swap: Arc<Mutex<Option<(Phase, Phase)>>> = Arc::default();
    let seen: Arc<Mutex<Vec<View>>> = Arc::default();
    let lie = on_view({
        let (swap, seen) = (swap.clone(), seen.clone());
        move |view, messages| {
            if matches!(messages.last().unwrap().step, Some(Step::Upload(_))) {
                ask_all_the_same(view);
            }
            match *swap.lock().unwrap() {
                None => seen.lock().unwrap().push(view.clone()),
                Some((phase, instead)) if shown_in(view) == phase => {
                    *view = seen.lock().unwrap().iter().find(|seen| shown_in(seen) == instead).unwrap().clone();
                }
                Some(_) => {}
            }
        }
    });
    let (proxied, sent, serving) = Proxy::start(&endpoint, lie).await;
    let mut honest = devices(&deployment, &endpoint, 0..4);
    let mut victim = builder(&deployment, &proxied, 4).build(constant(4)).unwrap();
    victim.run_round().await.unwrap().unwrap().unwrap();
    assert_eq!(seen.lock().unwrap().iter().map(shown_in).collect::<Vec<_>>(), VIEWS);

    for phase in VIEWS {
        for instead in VIEWS.into_iter().filter(|&instead| instead != phase) {
            *swap.lock().unwrap() = Some((phase, instead));
            let error = loop {
                *sent.lock().unwrap() = Sent::default();
                match victim.run_round().await.unwrap().unwrap() {
                    Err(error) => break refusal(error),
                    // The others' shares were enough before this device asked for the certificate.
                    Ok(()) => assert_eq!(phase, Phase::Unmask),
                }
            };
            // A member of the committee takes a certificate also when it was not asked; this one is of the first round.
            let expected = match (phase, instead) {
                (Phase::Confirm, Phase::Unmask) => matches!(error, ClientError::OtherCohort),
                _ => matches!(error, ClientError::UnexpectedView { awaited, .. } if awaited == phase.name()),
            };
            assert!(expected, "{instead} in {phase}: {error}");
            // Nothing of this phase or of a later one leaves the device, and a masked input only before this phase.
            let sent = sent.lock().unwrap();
            let phases: Vec<Phase> = sent.messages.iter().map(|message| phase_of(message).unwrap()).collect();
            assert_eq!(phases, Phase::ALL.into_iter().filter(|&sent| sent < phase).collect::<Vec<_>>(), "{instead}");
            assert_eq!(!sent.chunks.is_empty(), phase > Phase::Mask, "{instead} in {phase}");
        }
    }
    // It is none the worse for it.
    *swap.lock().unwrap() = None;
    victim.run_round().await.unwrap().unwrap().unwrap();
    honest.shutdown().await;
    coordinator.stop().await;
    serving.abort();
}

/// A coordinator that offers device 4 something else than a round of its task: the refusal, and that it goes on with true ones.
async fn offers(deployment: Deployment, lie: impl Fn(&mut GetRoundResponse) + Send + Sync + 'static) -> ClientError {
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let (proxied, sent, serving) = Proxy::start(&endpoint, Lie::Offer(Box::new(lie))).await;
    let mut victim = builder(&deployment, &proxied, 4).build(constant(4)).unwrap();
    let error = victim.run_round().await.unwrap().unwrap().unwrap_err();
    assert!(sent.lock().unwrap().messages.is_empty(), "not even an advert");
    drop(victim);
    let set = devices(&deployment, &endpoint, 0..5);
    assert_eq!(finished(&mut events).await.outcome.survivors.len(), 5);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
    serving.abort();
    refusal(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_of_another_task_over_grpc() {
    // It would be counted by another record, and the same update asked again.
    let lie = |response: &mut GetRoundResponse| change_params(response, None, |params| params.task = "another".into());
    // Not signed so: the proxy has no key here. (With the key, the policy refuses; see below.)
    assert_eq!(offers(patient(), lie).await, ClientError::UntrustedCoordinator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_cohort_signed_by_the_coordinator_over_grpc() {
    // One client alone is offered a round whose sum may be of fewer.
    let mut deployment = patient();
    (deployment.config.round.n_min, deployment.n_min) = (4, 4);
    let key = coordinator_key(&deployment);
    let lie = move |response: &mut GetRoundResponse| change_params(response, Some(&key), |params| params.n_min = 3);
    let refused = offers(deployment, lie).await;
    let ClientError::Policy(PolicyRefusal { setting, value, limit, .. }) = refused else { panic!("{refused}") };
    assert_eq!((setting, value.as_str(), limit.as_str()), ("n_min", "3", "4"));
}

#[test]
fn a_round_of_another_task_signed_by_the_coordinator() {
    use crate::world::{Device, open};
    let server = open(&RoundParams { task: "another".into(), ..crate::harness::six() });
    let mut device = Device::new(0, &server, 1);
    device.trust.policy.tasks = vec!["test".into()];
    let Err(ClientError::Policy(PolicyRefusal { setting, value, .. })) = device.join(server.offer()) else {
        panic!("joined")
    };
    assert_eq!((setting, value.as_str()), ("tasks", "\"another\""));
    assert!(device.message().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_in_each_phase_and_started_again_over_grpc() {
    // Its task is dropped when a phase begins; a new client with the same folder takes its place.
    let mut deployment = deployment(5);
    deployment.config.round.straggler_grace_ms = Some(1_500);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let (proxied, sent, serving) = Proxy::start(&endpoint, Lie::None).await;
    let honest = devices(&deployment, &endpoint, 0..4);
    let mut phases = Phase::ALL.into_iter();
    let mut kill_in = phases.next();
    loop {
        let (told, mut killed) = tokio::sync::mpsc::unbounded_channel();
        let until = kill_in;
        let observe = move |event: &Event<'_>| match event {
            Event::Phase { phase, .. } if Some(*phase) == until => drop(told.send(())),
            _ => {}
        };
        let mut client =
            builder(&deployment, &proxied, 4).on_event(observe).max_failures(100).build(constant(4)).unwrap();
        let mut life = tokio::spawn(async move { client.run().await });
        tokio::select! {
            Some(()) = killed.recv() => {
                life.abort();
                let _ = life.await;
                kill_in = phases.next();
            }
            ended = &mut life => {
                ended.unwrap().unwrap();
                break;
            }
        }
    }
    for summary in all(honest).await {
        assert_eq!(summary, Summary { completed: 5, missed: 0, declined: 0 });
    }
    coordinator.stop().await;
    serving.abort();
    let sent = sent.lock().unwrap();
    let mut rounds: Vec<&Vec<u8>> = sent.messages.iter().map(|message| &message.round_id).collect();
    rounds.sort_unstable();
    rounds.dedup();
    for round in rounds {
        let of_round = sent.messages.iter().filter(|message| message.round_id == *round).cloned().collect();
        let outbox = Outbox(of_round);
        for phase in [Phase::Share, Phase::Mask, Phase::Confirm, Phase::Unmask] {
            assert!(outbox.distinct(deployment.device_keys(4).client_id, phase).len() <= 1, "{phase}");
        }
        let mut hashes: Vec<&Vec<u8>> =
            sent.chunks.iter().filter(|chunk| chunk.round_id == *round).map(|chunk| &chunk.upload_hash).collect();
        hashes.dedup();
        assert!(hashes.len() <= 1, "two masked inputs in one round");
    }
    assert!(kill_in.is_none() || kill_in == Some(Phase::Unmask), "it was killed in the first four phases at least");
}

/// How a round ended: its number, of how many clients there is a sum, and how many are suspected.
type Ended = (u64, Option<usize>, usize);

/// Four honest devices, and device 4, which deals shares that nobody can open, until `count` rounds have ended. It gives its
/// secret itself, or vanishes before that: what it sends then is not signed.
async fn deal_unreadable_shares(deployment: &Deployment, vanishes: bool, count: usize) -> Vec<Ended> {
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let (key, cheat) = (deployment.device_keys(4).signing_key, deployment.device_keys(4).client_id);
    let lie = Lie::Step(Box::new(move |step| match step {
        Step::ShareKeys(shares) => {
            resign_shares_with(&key, shares, |to| to.sealed.iter_mut().for_each(|byte| *byte ^= 1));
        }
        Step::Unmask(signed) if vanishes => signed.signature.clear(),
        _ => {}
    }));
    let (proxied, sent, serving) = Proxy::start(&endpoint, lie).await;
    let mut set = devices(deployment, &endpoint, 0..4);
    // It gives up after two rounds that it misses for another reason than that it is suspended.
    let mut client = builder(deployment, &proxied, 4).max_failures(1).build(constant(4)).unwrap();
    set.spawn(async move { client.run().await });
    let mut ends = Vec::new();
    while ends.len() < count {
        match events.recv().await.unwrap() {
            Happened::RoundAborted { round, suspects, .. } => {
                assert!(suspects.iter().all(|suspect| *suspect == cheat));
                ends.push((round, None, suspects.len()));
            }
            Happened::RoundFinished(result) => {
                let (of, mean) = (result.outcome.survivors.len(), result.aggregate.mean[0]);
                // Device i contributes (i + 1) / 100.
                assert!((mean - (of as f32 + 1.0) / 200.0).abs() < 1e-3, "{mean} of {of}");
                assert_eq!(result.outcome.survivors.contains(&cheat), of == 5);
                let suspects = result.outcome.suspects();
                assert!(suspects.iter().all(|suspect| *suspect == cheat));
                ends.push((result.round, Some(of), suspects.len()));
            }
            _ => {}
        }
    }
    set.shutdown().await;
    coordinator.stop().await;
    serving.abort();
    let sent = sent.lock().unwrap();
    let adverts = sent.messages.iter().filter(|message| matches!(message.step, Some(Step::Advert(_)))).count();
    assert!(adverts <= count + 1, "{adverts} adverts in {count} rounds: who is suspended must not hammer");
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_deals_unreadable_shares_in_each_round_over_grpc() {
    let mut deployment = patient();
    (deployment.config.task.rounds, deployment.config.round.suspend_rounds) = (10, 3);
    // The first round has a sum, because it gives its secret itself; the next ones are without it.
    let before = deal_unreadable_shares(&deployment, false, 3).await;
    assert_eq!(before, [(1, Some(5), 1), (2, Some(4), 0), (3, Some(4), 0)]);
    // Also after a restart, which may have met round 4 on its way; then it has another chance.
    let after = deal_unreadable_shares(&deployment, false, 3).await;
    assert_eq!(after[1..], [(5, Some(5), 1), (6, Some(4), 0)], "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_deals_unreadable_shares_and_vanishes_over_grpc() {
    let mut deployment = patient();
    (deployment.config.task.rounds, deployment.config.round.unmask_ms) = (10, 3_000);
    // The first round ends because of it, with its name; the next ones are without it.
    let ends = deal_unreadable_shares(&deployment, true, 3).await;
    assert_eq!(ends, [(1, None, 1), (2, Some(4), 0), (3, Some(4), 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_client_without_which_there_are_too_few_comes_back() {
    // Nobody else can make up the number: rounds without it end at the deadline of phase 0, until its time is over.
    let mut deployment = patient();
    (deployment.config.task.rounds, deployment.config.round.suspend_rounds) = (10, 2);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 200);
    deployment.n_min = 5;
    let ends = deal_unreadable_shares(&deployment, false, 4).await;
    assert_eq!(ends, [(1, Some(5), 1), (2, None, 0), (3, None, 0), (4, Some(5), 1)]);
}
