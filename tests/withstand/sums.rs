//! Sums that no honest devices give.

use super::*;

/// A device with the largest weight, which is encoded without rounding.
fn heavy(round: &TrainingRound) -> Result<Update, unisono::client::TrainError> {
    Ok(Update { update: vec![0.1; round.model.values().len()], weight: 10.0, metrics: vec![1.0, 0.5] })
}

/// Takes part in the round after `after` as device 4 and uploads a vector of its own: `element(i, modulus mask)` at each place.
async fn upload_anything(
    deployment: &Deployment,
    endpoint: &str,
    after: u64,
    element: impl Fn(usize, usize, u64) -> u64,
) {
    let keys = deployment.device_keys(4);
    let mut raw = Raw::join(endpoint, deployment.device_keys(4)).await;
    let offer = loop {
        let request = GetRoundRequest { task: TASK.into(), after_round: after, wait_ms: 10_000, ..Default::default() };
        if let Some(offer) = raw.stub.get_round(request).await.unwrap().into_inner().offer {
            break offer;
        }
    };
    let policy = Policy { n_min: deployment.n_min, min_interval_s: 0, ..Policy::default() };
    let trust = Trust { registrar: Some(deployment.registrar.clone()), policy };
    let (mut record, rng) = (MemoryRecord::default(), &mut rand_core::UnwrapErr(getrandom::SysRng));
    let mut session = Session::join(&offer, Arc::new(keys.identity()), &trust, &mut record, now(), rng).unwrap();
    let params = session.params().clone();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let (modulus, length) = (params.modulus, params.wire.dimension as usize + 3);
    let values: Vec<u64> = (0..length).map(|i| element(i, length, modulus.mask()) & modulus.mask()).collect();
    let input = RingVector::from_u64(modulus, &values).unwrap();
    while let Some(phase) = session.awaits() {
        let poll = PollRequest {
            round_id: params.round_id.to_vec(),
            client_id: keys.client_id.to_vec(),
            phase: RoundPhase::from(phase) as i32,
            wait_ms: 20_000,
        };
        let view = match raw.stub.poll(poll).await.unwrap().into_inner().answer.unwrap() {
            Answer::View(view) => view.view.unwrap(),
            Answer::Waiting(_) => continue,
            Answer::Ended(ended) => panic!("{}", ended.reason),
            Answer::LeftOut(left_out) => panic!("{}", left_out.reason),
        };
        session.receive(&view, Some(input.clone()), &mut record, now(), rng).unwrap();
        // The quorum's endorsements, and the others' shares, may have been enough.
        let submitted = raw.submit(session.message().unwrap().clone()).await;
        assert!(submitted.is_ok() || phase >= Phase::Confirm, "{submitted:?}");
        let Some(Step::Upload(header)) = &session.message().unwrap().step else { continue };
        let header: proto::UploadHeader = prost::Message::decode(header.payload.as_slice()).unwrap();
        let chunk = |index| UploadChunk {
            round_id: params.round_id.to_vec(),
            client_id: keys.client_id.to_vec(),
            upload_hash: header.hash.clone(),
            index,
            data: session.chunk(index).unwrap(),
        };
        let chunks: Vec<UploadChunk> = (0..session.chunks()).map(chunk).collect();
        assert!(raw.stub.upload(tokio_stream::iter(chunks)).await.unwrap().into_inner().complete);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sum_that_no_honest_devices_give_ends_its_round_and_training_goes_on() {
    let mut deployment = deployment(1);
    // Phases wait for the attacker, too.
    deployment.config.round.straggler_grace_ms = Some(3_000);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut honest = JoinSet::new();
    for i in 0..4 {
        let mut client = builder(&deployment, &endpoint, i).build(heavy).unwrap();
        honest.spawn(async move { client.run().await });
    }
    let full = 65_535;
    // The others' four weights away: the sum is 0.
    upload_anything(&deployment, &endpoint, 0, |i, length, mask| if i == length - 1 { mask + 1 - 4 * full } else { 0 })
        .await;
    let (round, reason) = aborted(&mut events).await;
    assert!(round == 1 && reason.contains("sum to zero"), "{reason}");
    // More weight than five devices can have.
    upload_anything(&deployment, &endpoint, 1, |i, length, _| if i == length - 1 { 2 * full } else { full / 2 }).await;
    let (round, reason) = aborted(&mut events).await;
    assert!(round == 2 && reason.contains("the weights of 5 clients sum to 60"), "{reason}");
    // An element far beyond the clip, and a metric out of its bounds.
    upload_anything(&deployment, &endpoint, 2, |i, length, _| match i {
        7 => 4 * full,
        _ if i == length - 1 => full,
        _ => full / 2,
    })
    .await;
    let (round, reason) = aborted(&mut events).await;
    assert!(round == 3 && reason.contains("element 7 of the mean"), "{reason}");
    upload_anything(&deployment, &endpoint, 3, |i, length, _| match i {
        _ if i == length - 2 => 4 * full,
        _ if i == length - 1 => full,
        _ => full / 2,
    })
    .await;
    let (round, reason) = aborted(&mut events).await;
    assert!(round == 4 && reason.contains("metric 1 has a mean"), "{reason}");
    // Without the attacker there is a sum, on the initial model.
    let result = finished(&mut events).await;
    assert_eq!((result.round, result.model_version, result.outcome.survivors.len()), (5, 1, 4));
    assert!((result.aggregate.mean[0] - 0.1).abs() < 1e-3);
    assert!(all(honest).await.iter().all(|summary| summary.completed >= 4));
    coordinator.trained().await.unwrap();
    coordinator.stop().await;
}
