//! The service over real gRPC: bad input gets a typed error and the round goes on for the others; a restarted or killed
//! coordinator goes on; an interrupted upload resumes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use unisono::client::{Client, Error, Event, Retry, Summary, TrainingRound, Update};
use unisono::coordinator::config::Privacy;
use unisono::coordinator::{Config, Coordinator};
use unisono::crypto::kdf::label;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::client::{Session, Trust};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::policy::{Policy, PrivacyDemand};
use unisono::protocol::proto::{ClientMessage, UploadHeader, client_message::Step};
use unisono::protocol::signed;
use unisono::wire::MAX_MESSAGE_LEN;
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::{GetRoundRequest, PollRequest, RoundPhase, UploadChunk, UploadStatusRequest};

mod deployed;

use deployed::{CLIENTS, Raw, all, builder, constant, deployment, devices, finished, free_port, reason};

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_get_typed_errors_and_the_round_goes_on_for_the_others() {
    let deployment = deployment(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut raw = Raw::join(&endpoint, deployment.device_keys(4)).await;
    let refused = |result: Result<bool, Status>, code: Code, name: &str| {
        let status = result.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (code, name), "{status}");
    };

    // A stranger; a message of another round; a forged signature; no step; a frame beyond the limit.
    let stranger = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    let mut unknown = Raw::join(&endpoint, stranger).await;
    let advert = unknown.advert();
    refused(unknown.submit(advert).await, Code::PermissionDenied, "unknown_client");
    let good = raw.advert();
    let other = ClientMessage { round_id: vec![9; 32], ..good.clone() };
    refused(raw.submit(other).await, Code::FailedPrecondition, "no_such_round");
    let mut forged = good.clone();
    let Some(Step::Advert(signed)) = &mut forged.step else { unreachable!() };
    signed.signature[100] ^= 1;
    refused(raw.submit(forged).await, Code::InvalidArgument, "signature");
    refused(raw.submit(ClientMessage { step: None, ..good.clone() }).await, Code::InvalidArgument, "incomplete");
    let mut huge = good.clone();
    let Some(Step::Advert(signed)) = &mut huge.step else { unreachable!() };
    signed.payload = vec![0; MAX_MESSAGE_LEN + 1];
    assert_eq!(raw.submit(huge).await.unwrap_err().code(), Code::OutOfRange);

    // The same advert again is a repeat; another one under the same id, and a later phase's step, are refused.
    assert!(!raw.submit(good.clone()).await.unwrap());
    assert!(raw.submit(good).await.unwrap());
    let second = raw.advert();
    refused(raw.submit(second).await, Code::AlreadyExists, "conflict");
    let header = UploadHeader { cohort_id: vec![0; 32], from: 0, length: 1, hash: vec![0; 32] };
    let header = raw.message(Step::Upload(signed::sign(&header, label::SIG_UPLOAD, Some(&raw.keys.signing_key))));
    refused(raw.submit(header).await, Code::FailedPrecondition, "wrong_phase");

    // Polls and uploads of nobody, and of no round.
    let poll = |round_id: Vec<u8>, client_id: Vec<u8>| PollRequest {
        round_id,
        client_id,
        phase: RoundPhase::Share as i32,
        wait_ms: 0,
    };
    let status = raw.stub.poll(poll(vec![1], vec![2])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "malformed"));
    let answer = raw.stub.poll(poll(vec![1; 32], vec![2; 16])).await.unwrap().into_inner().answer;
    assert!(matches!(answer, Some(Answer::Ended(_))), "{answer:?}");
    let chunk = UploadChunk {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        upload_hash: vec![0; 32],
        index: 0,
        data: vec![1],
    };
    let status = raw.stub.upload(tokio_stream::iter([chunk])).await.unwrap_err();
    assert_eq!(reason(&status), "incomplete", "{status}");
    let request = GetRoundRequest { task: "another".into(), after_round: 0, wait_ms: 0, ..Default::default() };
    assert_eq!(reason(&raw.stub.get_round(request).await.unwrap_err()), "no_such_task");

    // The four honest devices finish the round; the raw one counts as a drop-out.
    let honest = devices(&deployment, &endpoint, 0..4);
    let result = finished(&mut events).await;
    assert_eq!((result.outcome.cohort.len(), result.outcome.survivors.len()), (5, 4));
    assert!((result.aggregate.mean[0] - 0.025).abs() < 1e-3, "{}", result.aggregate.mean[0]);
    assert!(all(honest).await.iter().all(|summary| summary.completed == 1));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lies_about_itself_is_refused_and_an_interrupted_one_resumes() {
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = Some(20_000);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let honest = devices(&deployment, &endpoint, 0..4);

    // Device 4 drives its session by hand up to its upload.
    let keys = deployment.device_keys(4);
    let mut raw = Raw::join(&endpoint, deployment.device_keys(4)).await;
    let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 10_000, ..Default::default() };
    let offer = raw.stub.get_round(request).await.unwrap().into_inner().offer.unwrap();
    let policy = Policy { n_min: deployment.n_min, min_interval_s: 0, ..Policy::default() };
    let trust = Trust { registrar: Some(deployment.registrar.clone()), policy };
    let mut record = unisono::protocol::policy::MemoryRecord::default();
    let rng = &mut rand_core::UnwrapErr(getrandom::SysRng);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let identity = Arc::new(keys.identity());
    let mut session = Session::join(&offer, identity, &trust, &mut record, now, rng).unwrap();
    let params = session.params().clone();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let poll = |phase: RoundPhase| PollRequest {
        round_id: params.round_id.to_vec(),
        client_id: keys.client_id.to_vec(),
        phase: phase as i32,
        wait_ms: 20_000,
    };
    macro_rules! view {
        ($phase:ident) => {
            loop {
                match raw.stub.poll(poll(RoundPhase::$phase)).await.unwrap().into_inner().answer.unwrap() {
                    Answer::View(view) => break view.view.unwrap(),
                    Answer::Waiting(_) => {}
                    Answer::Ended(ended) => panic!("{}", ended.reason),
                    Answer::LeftOut(left_out) => panic!("{}", left_out.reason),
                }
            }
        };
    }
    session.receive(&view!(Share), None, &mut record, now, rng).unwrap();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let update = vec![0.05; params.wire.dimension as usize];
    let contribution = unisono::protocol::encoding::Contribution { update: &update, metrics: &[1.0, 0.5], weight: 1.0 };
    let input = params.quantiser.encode(contribution, update.len(), params.modulus, rng).unwrap();
    session.receive(&view!(Mask), Some(input), &mut record, now, rng).unwrap();
    let message = session.message().unwrap().clone();
    raw.submit(message.clone()).await.unwrap();
    let Some(Step::Upload(header)) = &message.step else { unreachable!() };
    let hash = UploadHeader::decode(header.payload.as_slice()).unwrap().hash;
    let chunk = |index: u64, data: Vec<u8>| UploadChunk {
        round_id: params.round_id.to_vec(),
        client_id: keys.client_id.to_vec(),
        upload_hash: hash.clone(),
        index,
        data,
    };
    let good = |index: u64| chunk(index, session.chunk(index).unwrap());
    let total = session.chunks();
    assert!(total > 3);

    // Too short a chunk, too long a one, out of order, beyond the end, of another upload.
    let (mut uploader, mut stub) = (raw.stub.clone(), raw.stub.clone());
    let mut send =
        async |chunks: Vec<UploadChunk>| uploader.upload(tokio_stream::iter(chunks)).await.map(|r| r.into_inner());
    let bad = |status: Status, name: &str| assert_eq!(reason(&status), name, "{status}");
    bad(send(vec![chunk(0, session.chunk(0).unwrap()[1..].to_vec())]).await.unwrap_err(), "upload_length");
    bad(send(vec![chunk(0, [session.chunk(0).unwrap(), vec![0]].concat())]).await.unwrap_err(), "upload_length");
    bad(send(vec![good(1)]).await.unwrap_err(), "upload_order");
    let other = UploadChunk { upload_hash: vec![1; 32], ..good(0) };
    bad(send(vec![other]).await.unwrap_err(), "upload_hash");

    // Two chunks, and the stream ends: the third is what is missing, and sending it alone is enough.
    assert_eq!(send(vec![good(0), good(1)]).await.unwrap().chunks, 2);
    let mut wrong: Vec<UploadChunk> = (2..total).map(good).collect();
    wrong[0].data[0] ^= 1;
    bad(send(wrong).await.unwrap_err(), "upload_hash");
    // The whole was wrong, so that none of it counts; the right one does.
    let status = UploadStatusRequest { round_id: params.round_id.to_vec(), client_id: keys.client_id.to_vec() };
    let arrived = stub.get_upload_status(status.clone()).await.unwrap().into_inner();
    assert_eq!((arrived.chunks, arrived.complete), (0, false));
    assert_eq!(send((0..3).map(good).collect()).await.unwrap().chunks, 3);
    let resumed = send((3..total).map(good).collect()).await.unwrap();
    assert!(resumed.complete && stub.get_upload_status(status).await.unwrap().into_inner().complete);

    // In a cohort of five all are on the committee.
    assert!(session.owes_endorsement());
    for phase in 0..2 {
        let view = if phase == 0 { view!(Confirm) } else { view!(Unmask) };
        session.receive(&view, None, &mut record, now, rng).unwrap();
        let submitted = raw.submit(session.message().unwrap().clone()).await;
        // The others' endorsements may have been enough.
        assert!(submitted.is_ok() || phase == 0, "{submitted:?}");
    }
    assert!(session.is_done());
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 5);
    assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3, "{}", result.aggregate.mean[0]);
    assert_eq!(all(honest).await.len(), 4);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_with_nan_misses_the_round_of_its_own_device_only() {
    let deployment = deployment(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let honest = devices(&deployment, &endpoint, 0..4);
    let nan = |round: &TrainingRound| {
        let mut update = vec![0.0; round.model.values().len()];
        update[17] = f32::NAN;
        Ok(Update { update, weight: 1.0, metrics: vec![0.0, 0.0] })
    };
    let mut client = builder(&deployment, &endpoint, 4).build(nan).unwrap();
    let missed = client.run_round().await.unwrap().unwrap().unwrap_err();
    assert_eq!(missed.to_string(), "element 17 of the update is NaN: only finite numbers can be sent");
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 4);
    all(honest).await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_told_so_and_gets_no_grant() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 4;
    let mut registrar = unisono::registrar::Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = deployment.config.round_keys().unwrap().unwrap();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    registrar.revoke(deployment.device_keys(4).client_id, now).unwrap();
    let roster = registrar.publish(&[keys.signing_key.verifying_key()], &[publisher], now).unwrap();
    unisono::files::replace(&deployment.folder().join("roster.bin"), &roster.to_bytes().unwrap()).unwrap();

    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    // It has never taken part: it may be published later, so that it gives up only because it is told to.
    let retry = Retry { give_up_after: Some(Duration::ZERO), ..Retry::default() };
    let mut revoked = builder(&deployment, &endpoint, 4).retry(retry).build(constant(4)).unwrap();
    let error = revoked.run().await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    let mut honest = devices(&deployment, &endpoint, 0..4);
    coordinator.trained().await.unwrap();
    let error = revoked.open_release(TASK, 1 << 20).await.err().unwrap();
    assert!(error.to_string().contains("unknown_client"), "{error}");
    while let Some(result) = honest.join_next().await {
        assert_eq!(result.unwrap().unwrap().completed, 1);
    }
    let mut enrolled = builder(&deployment, &endpoint, 0).build(constant(0)).unwrap();
    let opened = enrolled.open_release(TASK, 1 << 20).await.unwrap();
    assert!((opened.model().unwrap().values()[0] - 0.025).abs() < 1e-3);
    assert!(matches!(enrolled.open_release(TASK, 10).await, Err(Error::Release(_))), "larger than the device takes");
    coordinator.stop().await;
}

/// A coordinator as a process of its own.
struct Process(Child);

impl Process {
    fn start(deployment: &Deployment, listen: &str) -> Self {
        let path = deployment.folder().join("coordinator.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let line = |line: &str| match line.starts_with("listen") {
            true => format!("listen = \"{listen}\"\n"),
            false => format!("{line}\n"),
        };
        // Phases wait for everybody: a client that pauses before it dials again is no straggler here.
        let fixed: String = text.lines().filter(|line| !line.contains("straggler_grace_ms")).map(line).collect();
        std::fs::write(&path, fixed).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_unisono"))
            .args(["coordinator", "--config"])
            .arg(&path)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Serving when it says so.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("serving")), "it stopped at once");
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nothing is written in passing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_in_any_phase_goes_on_with_the_round_and_clients_hardly_notice() {
    let deployment = Arc::new(deployment(5));
    let listen = format!("127.0.0.1:{}", free_port());
    let endpoint = format!("http://{listen}");
    let (told, mut phases) = tokio::sync::mpsc::unbounded_channel();
    let process = Arc::new(std::sync::Mutex::new(Some(Process::start(&deployment, &listen))));

    let mut set = JoinSet::new();
    for i in 0..CLIENTS {
        let told = told.clone();
        let observe = move |event: &Event<'_>| match event {
            Event::Phase { round, phase } if i == 0 => drop(told.send((*round, *phase))),
            Event::Missed { round, error } => eprintln!("device {i} missed round {round}: {error}"),
            _ => {}
        };
        let mut client = builder(&deployment, &endpoint, i).on_event(observe).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    drop(told);
    // Round 1 is killed in phase 0, round 2 in phase 1, and so on.
    let mut kills = 0;
    while let Some((round, phase)) = phases.recv().await {
        if round == kills + 1 && phase as u64 == kills {
            kills += 1;
            let (process, deployment, listen) = (process.clone(), deployment.clone(), listen.clone());
            let restart = move || {
                let mut process = process.lock().unwrap();
                drop(process.take());
                *process = Some(Process::start(&deployment, &listen));
            };
            tokio::task::spawn_blocking(restart).await.unwrap();
        }
    }
    assert_eq!(kills, 5);
    for summary in all(set).await {
        assert_eq!(summary, Summary { completed: 5, missed: 0, declined: 0 });
    }
    drop(process.lock().unwrap().take());
    // The model moved by the mean of all five devices' updates in each of the five rounds: nothing was lost or counted twice.
    let config = Config::load(&deployment.folder().join("coordinator.toml")).unwrap();
    let model = std::fs::read(config.state_dir.join("blobs/models/digits/5/model.safetensors")).unwrap();
    let model = unisono::wire::model::Model::from_safetensors(&model).unwrap();
    assert!((model.values()[0] - 0.15).abs() < 5e-3, "{}", model.values()[0]);
}

#[test]
fn a_configuration_that_could_overflow_or_is_infeasible_says_what_would_help() {
    let check = |from: &str, to: &str| {
        let deployment = deployment(1);
        let path = deployment.folder().join("coordinator.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_unisono"))
            .args(["coordinator", "--check", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(check("rounds = 1", "rounds = 2").0);
    for (from, to, words) in [
        ("delta = 0.2", "delta = 0.6", "no secure graph"),
        ("bits = 16", "bits = 40", "1 to 32"),
        ("clip = 4.0", "clip = 0.0", "above 0"),
        ("rounds = 1", "rounds = 0", "1 or more"),
        ("n_max = 5", "n_max = 2", "n_min"),
        ("bits = 16", "bitz = 16", "unknown field"),
        ("key = \"coordinator.key\"", "key = \"publisher.key\"", "not a coordinator secret key"),
        ("roster = \"roster.bin\"", "roster = \"missing.bin\"", "can't read"),
    ] {
        let (good, stderr) = check(from, to);
        assert!(!good && stderr.contains(words), "{to}: {stderr}");
    }
    let private = |section: &str| check("[release]", &format!("[privacy]\n{section}\n[release]")).1;
    for (section, words) in [
        ("noise_multiplier = 1.0\ndelta = 2.0", "privacy.delta = 2.0"),
        ("noise_multiplier = 0.0\ndelta = 1e-5", "privacy.noise_multiplier = 0.0"),
        ("delta = 1e-5", "privacy: neither"),
        ("noise_multiplier = 1.0\nepsilon = 1.0\ndelta = 1e-5", "privacy: both"),
        // The deployment's quantiser has no L2 bound, and its devices report metrics.
        ("epsilon = 1.0\ndelta = 1e-5", "`l2_clip`"),
    ] {
        let stderr = private(section);
        assert!(stderr.contains(words), "{section}: {stderr}");
    }
}

/// A device in rounds with privacy, which demands at most `max_epsilon`.
fn private(deployment: &Deployment, endpoint: &str, i: u32, max_epsilon: f64) -> Client {
    let privacy = Some(PrivacyDemand { max_epsilon, max_total_epsilon: None, delta: 1e-5 });
    let policy = Policy { n_min: deployment.n_min, min_interval_s: 0, privacy, ..Policy::default() };
    let train = |round: &TrainingRound| {
        Ok(Update { update: vec![0.001; round.model.values().len()], weight: 10.0, metrics: Vec::new() })
    };
    builder(deployment, endpoint, i).policy(policy).build(train).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_with_privacy_tell_what_they_spent_and_a_restart_forgets_none_of_it() {
    let mut deployment = deployment(2);
    deployment.config.metrics.clear();
    deployment.config.quantiser.l2_clip = Some(1.0);
    deployment.config.quantiser.clip = 1.0;
    deployment.config.privacy = Some(Privacy { noise_multiplier: None, epsilon: Some(6.0), delta: 1e-5 });
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    // A device that demands more privacy than the round has stays away and says why.
    let mut strict = private(&deployment, &endpoint, 4, 0.1);
    let refused = strict.run_round().await.unwrap().unwrap().unwrap_err();
    assert!(refused.to_string().contains("`privacy.max_epsilon`"), "{refused}");
    let mut devices = JoinSet::new();
    for i in 0..4 {
        let mut client = private(&deployment, &endpoint, i, 6.0);
        devices.spawn(async move { client.run().await });
    }
    let first = finished(&mut events).await.privacy.unwrap();
    let second = finished(&mut events).await;
    let spent = second.privacy.unwrap();
    assert_eq!(first.epsilon, first.total_epsilon);
    assert!(spent.total_epsilon > first.total_epsilon && spent.total_epsilon <= 6.0, "{first:?} {spent:?}");
    assert!(second.aggregate.noise_deviation > 0.0);
    all(devices).await;
    coordinator.stop().await;

    // With an epsilon for the whole task, another number of rounds is other noise.
    deployment.config.task.rounds = 3;
    let refused = Coordinator::start(deployment.config.clone()).await.err().unwrap();
    assert!(refused.to_string().contains("privacy"), "{refused}");
    let coordinator = Coordinator::start_accepting(deployment.config.clone(), &["privacy".into()]).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut devices = JoinSet::new();
    for i in 0..4 {
        let mut client = private(&deployment, &endpoint, i, 6.0);
        devices.spawn(async move { client.run().await });
    }
    let third = finished(&mut events).await.privacy.unwrap();
    assert!(third.total_epsilon > spent.total_epsilon, "{spent:?} {third:?}");
    all(devices).await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_on_the_same_state_is_refused() {
    let deployment = deployment(1);
    let first = Coordinator::start(deployment.config.clone()).await.unwrap();
    let second = Coordinator::start(deployment.config.clone()).await.err().unwrap();
    assert!(second.to_string().contains("in use by another coordinator"), "{second}");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cohorts_of_three_four_and_ten_give_a_sum() {
    for clients in [3, 4, 10] {
        let plan = Plan { clients, rounds: 1, delta: 0.1, max_examples: 10 };
        let deployment = Deployment::make(&plan).unwrap();
        let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
        let mut events = coordinator.events();
        let endpoint = format!("http://{}", coordinator.address());
        let set = devices(&deployment, &endpoint, 0..clients);
        let result = finished(&mut events).await;
        assert!(result.outcome.survivors.len() >= deployment.n_min as usize, "{clients} clients");
        assert_eq!(all(set).await.len(), clients as usize);
        coordinator.stop().await;
    }
}
