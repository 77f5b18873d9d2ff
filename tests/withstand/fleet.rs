//! Devices stay: they leave on the coordinator's own word only, and being left out of a round is normal.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn devices_leave_only_on_the_coordinators_own_word_that_the_task_is_finished() {
    let deployment = deployment(1);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let text = std::fs::read_to_string(deployment.folder().join("coordinator.key")).unwrap();
    let own = keyfile::signing_key_from_text(Role::Coordinator, &text).unwrap();
    let stranger = deployment.device_keys(0).signing_key;
    let finish = |task: &str, round| TaskFinished { task: task.into(), round };
    let lies = [
        None,
        Some(signed::sign(&finish(TASK, 1), label::SIG_TASK_FINISHED, None)),
        Some(signed::sign(&finish(TASK, 1), label::SIG_TASK_FINISHED, Some(&stranger))),
        Some(signed::sign(&finish("another", 1), label::SIG_TASK_FINISHED, Some(&own))),
        Some(signed::sign(&finish(TASK, 1), label::SIG_ROUND_PARAMS, Some(&own))),
    ];
    let mut waiting = JoinSet::new();
    for (i, lie) in lies.into_iter().enumerate() {
        let lied = Arc::new(AtomicU64::new(0));
        let count = lied.clone();
        let lie = move |response: &mut GetRoundResponse| {
            // The head is the true one: it is public.
            let head = response.offer.take().and_then(|offer| offer.roster_head);
            // The truth comes after three lies.
            if count.fetch_add(1, Ordering::Relaxed) < 3 {
                *response = GetRoundResponse {
                    state: State::Finished as i32,
                    finished: lie.clone(),
                    roster_head: head,
                    ..GetRoundResponse::default()
                };
            } else {
                response.state = State::Waiting as i32;
            }
        };
        let (proxied, _, serving) = Proxy::start(&endpoint, Lie::Offer(Box::new(lie))).await;
        let mut client = builder(&deployment, &proxied, i as u32).build(constant(i as u32)).unwrap();
        waiting.spawn(async move {
            let left = tokio::time::timeout(Duration::from_secs(3), client.run_round()).await;
            assert!(left.is_err(), "device {i} left: {left:?}");
            assert!(lied.load(Ordering::Relaxed) >= 3, "device {i} asks again");
            serving.abort();
        });
    }
    while let Some(done) = waiting.join_next().await {
        done.unwrap();
    }
    // The coordinator's own word, after the round: they leave. It names the last round, whatever number a stranger sends: a word for
    // a high one could be kept, and used once the task goes on.
    all(devices(&deployment, &endpoint, 0..5)).await;
    coordinator.trained().await.unwrap();
    let request = GetRoundRequest { task: TASK.into(), after_round: 900, wait_ms: 0, ..Default::default() };
    let channel = tonic::transport::Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    let mut stub = unisono::wire::proto::coordinator_client::CoordinatorClient::new(channel);
    let response = stub.get_round(request).await.unwrap().into_inner();
    let said = response.finished.unwrap();
    let said: TaskFinished =
        signed::verify(&said, label::SIG_TASK_FINISHED, Some(&own.verifying_key()), "word").unwrap();
    assert_eq!((said.task.as_str(), said.round), (TASK, 1));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_record_can_not_be_written_comes_back_when_it_can() {
    let mut deployment = deployment(1);
    // No sum without it.
    deployment.config.round.n_min = 5;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = devices(&deployment, &endpoint, 0..4);
    let record = deployment.device_state(4).join("record.json");
    let (blocked, missed) = (record.clone(), Arc::new(AtomicU64::new(0)));
    let count = missed.clone();
    let observe = move |event: &Event<'_>| {
        if let Event::Missed { error, .. } = event {
            assert!(error.to_string().contains("record failed"), "{error}");
            if count.fetch_add(1, Ordering::Relaxed) == 1 {
                std::fs::remove_dir(&blocked).unwrap();
            }
        }
    };
    let mut device = builder(&deployment, &endpoint, 4).on_event(observe).build(constant(4)).unwrap();
    // Where the file is to be; as a full disk, it fails every write.
    std::fs::create_dir(&record).unwrap();
    // What a kill leaves in the middle of a write goes at the next start.
    let left = deployment.device_state(0).join(".tmpABCDEF");
    set.spawn(async move { device.run().await });
    let summaries = all(set).await;
    assert!(summaries.iter().all(|summary| summary.completed == 1), "{summaries:?}");
    assert_eq!(missed.load(Ordering::Relaxed), 2);
    std::fs::write(&left, "{").unwrap();
    drop(builder(&deployment, &endpoint, 0).build(constant(0)).unwrap());
    assert!(!left.exists());
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_larger_than_a_cohort_does_not_bleed_out() {
    let mut deployment = deployment(8);
    let n = deployment.n_min;
    (deployment.config.round.n_max, deployment.config.round.n_min) = (n, n);
    assert!(n < 5, "some are left out of each round");
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let left_out = Arc::new(AtomicU64::new(0));
    let mut set = JoinSet::new();
    for i in 0..5 {
        let count = left_out.clone();
        let observe = move |event: &Event<'_>| {
            if let Event::LeftOut { .. } = event {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        // One missed round would be the last.
        let client = builder(&deployment, &endpoint, i).max_failures(0).on_event(observe);
        let mut client = client.build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    let summaries = all(set).await;
    assert_eq!(summaries.iter().map(|summary| summary.completed).sum::<u64>(), 8 * u64::from(n), "{summaries:?}");
    assert!(summaries.iter().all(|summary| summary.missed == 0), "{summaries:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_enrolled_and_not_published_yet_waits_until_it_is() {
    let mut deployment = deployment(1);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 2_000);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    registrar.enrol(&keys.enrolment(), now() - 60, 1, std::collections::BTreeMap::new()).unwrap();
    let mut set = devices(&deployment, &endpoint, 0..4);
    let (told, mut missed) = tokio::sync::mpsc::unbounded_channel();
    let observe = move |event: &Event<'_>| {
        if let Event::Missed { error, .. } = event {
            let _ = told.send(error.to_string());
        }
    };
    let mut newcomer = Client::builder(&endpoint, TASK, keys)
        .registrar(deployment.registrar.clone())
        .policy(Policy { n_min: deployment.n_min, min_interval_s: 0, ..Policy::default() })
        .retry(Retry { max_pause: Duration::from_millis(300), ..Retry::default() })
        .on_event(observe)
        .build(constant(4))
        .unwrap();
    set.spawn(async move { newcomer.run().await });
    assert!(missed.recv().await.unwrap().contains("unknown_client"));
    let round_keys = deployment.config.round_keys().unwrap().unwrap();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    let roster = registrar.publish(&[round_keys.signing_key.verifying_key()], &[publisher], now()).unwrap();
    unisono::files::replace(&deployment.folder().join("roster.bin"), &roster.to_bytes().unwrap()).unwrap();
    // The round at hand is under the roster before, and can't have its five: it ends by itself.
    let (_, reason) = aborted(&mut events).await;
    assert!(reason.contains("one of epoch 2 is in force now"), "{reason}");
    let summaries = all(set).await;
    assert_eq!(summaries.iter().map(|summary| summary.completed).collect::<Vec<_>>(), [1; 5]);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gives_up_only_where_it_is_asked_to() {
    let deployment = deployment(1);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let retry = Retry { give_up_after: Some(Duration::from_millis(500)), ..Retry::default() };
    let endpoint = format!("http://{nobody}");
    let mut client = builder(&deployment, &endpoint, 0).retry(retry).build(constant(0)).unwrap();
    assert!(matches!(client.run().await, Err(Error::Unreachable(_))));
    drop(client);
    let mut patient = builder(&deployment, &endpoint, 0).build(constant(0)).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(2), patient.run()).await.is_err());
}

/// Counts of rounds in which each of the deployment's devices took part, until eight are done; the last `slow` come half a second late
/// to each round.
async fn rounds_of_each(draw_ms: Option<u64>, slow: u32) -> Vec<u64> {
    let plan = Plan { clients: 9, rounds: 8, delta: 0.2, max_examples: 10 };
    let mut deployment = Deployment::make(&plan).unwrap();
    (deployment.config.round.n_max, deployment.config.round.n_min, deployment.n_min) = (5, 4, 4);
    deployment.config.round.draw_ms = draw_ms;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = JoinSet::new();
    for i in 0..plan.clients {
        let endpoint = if i + slow < plan.clients {
            endpoint.clone()
        } else {
            Proxy::start(&endpoint, Lie::LateOffer(Duration::from_millis(500))).await.0
        };
        // One missed round would be the last.
        let mut client = builder(&deployment, &endpoint, i).max_failures(0).build(constant(i)).unwrap();
        set.spawn(async move { (i, client.run().await.unwrap()) });
    }
    let mut rounds = vec![0; plan.clients as usize];
    while let Some(done) = set.join_next().await {
        let (i, summary) = done.unwrap();
        assert_eq!(summary.missed, 0, "device {i}");
        rounds[i as usize] = summary.completed;
    }
    coordinator.stop().await;
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_devices_of_a_large_fleet_are_drawn_like_the_others() {
    let rounds = rounds_of_each(None, 3).await;
    eprintln!("rounds of each device: {rounds:?}");
    assert_eq!(rounds.iter().sum::<u64>(), 8 * 5);
    // Nobody of three has been in any of eight rounds: less than one in 10^7 where five of nine are drawn.
    assert!(rounds[6..].iter().sum::<u64>() > 0, "{rounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_come_first_served_is_a_setting_and_starves_the_slow() {
    let rounds = rounds_of_each(Some(0), 3).await;
    assert_eq!(rounds[6..].iter().sum::<u64>(), 0, "{rounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_a_draw_keeps_it_and_who_is_left_out_is_told_when_to_come_back() {
    let mut deployment = deployment(1);
    (deployment.config.round.n_max, deployment.config.round.n_min, deployment.n_min) = (4, 4, 4);
    deployment.config.round.draw_ms = Some(3_000);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    // The last one of the draw comes first, and is accepted.
    let mut raw = Raw::join(&endpoint, deployment.device_keys(0)).await;
    let round = RoundId::from_slice(&raw.round_id).unwrap();
    let mut order: Vec<u32> = (0..5).collect();
    order.sort_by_key(|&i| place_in_draw(round, deployment.device_keys(i).client_id));
    let last = order[4];
    raw.keys = deployment.device_keys(last);
    assert!(!raw.submit(raw.advert()).await.unwrap());
    let mut set = JoinSet::new();
    let mut devices = Vec::new();
    for &i in &order[..4] {
        let mut client = builder(&deployment, &endpoint, i).build(constant(i)).unwrap();
        devices.push(tokio::spawn(async move { client.run_round().await }));
    }
    let poll = PollRequest {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        phase: RoundPhase::Share as i32,
        wait_ms: 0,
    };
    // As soon as the fourth of the others has come it is known.
    let left_out = async |raw: &mut Raw| loop {
        match raw.stub.poll(poll.clone()).await.map(|answer| answer.into_inner().answer.unwrap()) {
            Ok(Answer::LeftOut(left_out)) => return left_out,
            Ok(Answer::Waiting(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(other) => panic!("{other:?}"),
        }
    };
    let told = left_out(&mut raw).await;
    assert!(told.reason.contains("takes 4 clients") && (1_000..=600_000).contains(&told.after_ms), "{told:?}");
    devices.iter().for_each(tokio::task::JoinHandle::abort);
    coordinator.stop().await;
    coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut again = Raw::join(&endpoint, deployment.device_keys(last)).await;
    assert_eq!(again.round_id, raw.round_id);
    left_out(&mut again).await;
    for i in 0..5 {
        let mut client = builder(&deployment, &endpoint, i).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    // The round at hand ends without its devices, which have lost their keys; another one gives the sum.
    let request = unisono::coordinator::admin::Request::AbortRound { task: None };
    unisono::coordinator::admin::call(&deployment.config.state_dir, &request).await.unwrap();
    let completed: u64 = all(set).await.iter().map(|summary| summary.completed).sum();
    assert_eq!(completed, 4);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_tells_in_its_next_call_why_it_missed_a_round() {
    let deployment = deployment(2);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (proxied, sent, serving) = Proxy::start(&endpoint, Lie::None).await;
    let seen = said.clone();
    let fails_once = {
        let mut first = true;
        move |round: &TrainingRound| {
            if std::mem::take(&mut first) { Err("no data today".into()) } else { constant(4)(round) }
        }
    };
    let mut device = builder(&deployment, &proxied, 4).build(fails_once).unwrap();
    let device = tokio::spawn(async move { device.run().await });
    let honest = devices(&deployment, &endpoint, 0..4);
    let summary = device.await.unwrap().unwrap();
    assert_eq!(summary, Summary { completed: 1, missed: 1, declined: 0 });
    all(honest).await;
    seen.lock().unwrap().extend(sent.lock().unwrap().missed.iter().filter(|why| !why.is_empty()).cloned());
    assert_eq!(*said.lock().unwrap(), ["trainer"], "once, and without the trainer's words");
    coordinator.stop().await;
    serving.abort();
}
