//! No device, no stranger and no operator's slip ends a task or loses a device: over real gRPC, with real devices.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::task::JoinSet;
use unisono::client::{Client, Error, Event, Retry, Summary, TrainingRound, Update};
use unisono::coordinator::{Coordinator, Event as Happened};
use unisono::crypto::kdf::label;
use unisono::crypto::ring::RingVector;
use unisono::local::{Deployment, TASK};
use unisono::protocol::client::{Session, Trust};
use unisono::protocol::keyfile::{self, DeviceKeys, Role};
use unisono::protocol::policy::{MemoryRecord, Policy};
use unisono::protocol::proto::{self, client_message::Step};
use unisono::protocol::server::Phase;
use unisono::protocol::signed;
use unisono::registrar::Registrar;
use unisono::wire::proto::get_round_response::State;
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::{GetRoundRequest, GetRoundResponse, PollRequest, RoundPhase, TaskFinished, UploadChunk};

#[allow(dead_code)]
mod deployed;
#[path = "adversary/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use deployed::{Raw, all, builder, constant, deployment, devices, finished, reason};
use proxy::{Lie, Proxy};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// The next round that ends without a sum: its number and why.
async fn aborted(events: &mut Receiver<Happened>) -> (u64, String) {
    loop {
        match events.recv().await.unwrap() {
            Happened::RoundAborted { round, reason, .. } => return (round, reason),
            Happened::RoundFinished(result) => panic!("round {} has a sum", result.round),
            _ => {}
        }
    }
}

/// Number of the next round that is opened.
async fn opened(events: &mut Receiver<Happened>) -> u64 {
    loop {
        if let Happened::RoundOpened { round, .. } = events.recv().await.unwrap() {
            return round;
        }
    }
}

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
        let request = GetRoundRequest { task: TASK.into(), after_round: after, wait_ms: 10_000 };
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
    let request = GetRoundRequest { task: TASK.into(), after_round: 900, wait_ms: 0 };
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
async fn a_roster_file_that_is_older_truncated_or_foreign_is_refused_and_the_last_good_one_stays() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 4;
    let file = deployment.folder().join("roster.bin");
    let older = std::fs::read(&file).unwrap();
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = deployment.config.round_keys().unwrap().unwrap();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    registrar.revoke(deployment.device_keys(4).client_id, now()).unwrap();
    let newer = registrar
        .publish(&[keys.signing_key.verifying_key()], std::slice::from_ref(&publisher), now())
        .unwrap()
        .to_bytes()
        .unwrap();
    let foreign = registrar
        .publish(std::slice::from_ref(&publisher), std::slice::from_ref(&publisher), now())
        .unwrap()
        .to_bytes()
        .unwrap();
    let put = |bytes: &[u8]| unisono::files::replace(&file, bytes).unwrap();
    put(&newer);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    // Before the round's end, so that it is opened and released under the last good one.
    put(&newer[..newer.len() / 2]);
    all(devices(&deployment, &endpoint, 0..4)).await;
    coordinator.trained().await.unwrap();
    // A device in force gets its grant, the revoked one does not.
    let check = async |endpoint: &str| {
        let mut device = builder(&deployment, endpoint, 0).build(constant(0)).unwrap();
        device.open_release(TASK, 1 << 20).await.unwrap();
        let mut revoked = builder(&deployment, endpoint, 4).build(constant(4)).unwrap();
        let error = revoked.open_release(TASK, 1 << 20).await.err().unwrap();
        assert!(error.to_string().contains("unknown_client"), "{error}");
    };
    for bytes in [&older[..], &newer[..100], b"", &foreign[..], &newer[..]] {
        put(bytes);
        check(&endpoint).await;
    }
    std::fs::remove_file(&file).unwrap();
    check(&endpoint).await;
    coordinator.stop().await;
    // Also after a restart.
    put(&older);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    check(&format!("http://{}", coordinator.address())).await;
    coordinator.stop().await;
    // Without the copy that is kept, an older file is no roster at all.
    std::fs::remove_dir_all(deployment.config.state_dir.join("blobs/rosters")).unwrap();
    let error = Coordinator::start(deployment.config.clone()).await.err().unwrap();
    assert!(error.to_string().contains("a roster of epoch 2 was in force"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_says_unavailable_and_goes_on_when_it_is_mended() {
    let deployment = deployment(1);
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
    let model = deployment.config.state_dir.join("blobs/models/digits/0/model.safetensors");
    let good = std::fs::read(&model).unwrap();
    // The round that was opened is over, so that another one needs the model.
    let db = database(&deployment).await;
    sqlx::query("UPDATE rounds SET state = 'aborted'").execute(&db).await.unwrap();
    db.close().await;
    std::fs::write(&model, b"junk").unwrap();
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let channel = tonic::transport::Channel::from_shared(endpoint.clone()).unwrap().connect().await.unwrap();
    let mut stub = unisono::wire::proto::coordinator_client::CoordinatorClient::new(channel);
    let status = loop {
        let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 100 };
        if let Err(status) = stub.get_round(request).await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status)), (tonic::Code::Unavailable, "task_failed"), "{status}");
    assert!(coordinator.health().ready().unwrap_err().contains("failed"));
    let set = devices(&deployment, &endpoint, 0..5);
    tokio::time::sleep(Duration::from_secs(2)).await;
    std::fs::write(&model, good).unwrap();
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0 }; 5]);
    coordinator.trained().await.unwrap();
    assert_eq!(coordinator.health().ready(), Ok(()));
    coordinator.stop().await;
}

/// The coordinator's database, beside the coordinator.
async fn database(deployment: &Deployment) -> sqlx::SqlitePool {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(deployment.config.state_dir.join("coordinator.sqlite"))
        .busy_timeout(Duration::from_secs(10));
    sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_fails_in_the_same_way_at_two_replays_is_aborted() {
    let deployment = deployment(1);
    Coordinator::start(deployment.config.clone()).await.unwrap().stop().await;
    // Round 1 is stored; what every replay reads is damaged.
    let db = database(&deployment).await;
    sqlx::query("INSERT INTO suspended (task, client_id, round) VALUES ('digits', x'01', 0)")
        .execute(&db)
        .await
        .unwrap();
    for restart in 0..2 {
        let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
        let state = async || -> Option<String> {
            let row = sqlx::query_scalar("SELECT reason FROM rounds WHERE number = 1");
            row.fetch_one(&db).await.unwrap()
        };
        if restart == 0 {
            // One failure in this life of the process.
            while coordinator.health().ready().is_ok_and(|()| true)
                || coordinator.health().ready() == Err("starting".into())
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(state().await, None);
        } else {
            let why = loop {
                if let Some(why) = state().await {
                    break why;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert!(why.contains("replayed 2 times") && why.contains("does not have 16 bytes"), "{why}");
        }
        coordinator.stop().await;
    }
    sqlx::query("DELETE FROM suspended").execute(&db).await.unwrap();
    db.close().await;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(all(devices(&deployment, &endpoint, 0..5)).await, vec![Summary { completed: 1, missed: 0 }; 5]);
    coordinator.stop().await;
}

fn unisono(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unisono")).args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_aborts_and_skips_rounds_over_the_socket() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 5;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let folder = deployment.config.state_dir.clone();
    let mode = std::fs::metadata(folder.join("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let state = folder.to_str().unwrap().to_owned();
    let admin = move |arguments: &[&str]| {
        let output = unisono(&[&["admin", "--state", &state], arguments].concat());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let admin = async |arguments: &'static [&'static str]| {
        let admin = admin.clone();
        tokio::task::spawn_blocking(move || admin(arguments)).await.unwrap()
    };
    let status = loop {
        let (good, status) = admin(&["status"]).await;
        assert!(good, "{status}");
        if !status.contains("\"starting\"") {
            break status;
        }
    };
    assert!(status.contains("\"phase\": \"advertise\"") && status.contains("\"answered\": 0"), "{status}");
    let (good, why) = admin(&["abort-round", "--task", "another"]).await;
    assert!(!good && why.contains("runs task \"digits\""), "{why}");
    let (good, said) = admin(&["abort-round", "--task", TASK]).await;
    assert!(good && said.contains("round 1"), "{said}");
    assert_eq!(aborted(&mut events).await, (1, "an operator aborted it".to_owned()));
    assert_eq!(opened(&mut events).await, 2);
    let (good, why) = admin(&["skip-to-round", "2"]).await;
    assert!(!good && why.contains("not above round 2"), "{why}");
    let (good, why) = admin(&["skip-to-round", "18446744073709551615"]).await;
    assert!(!good && why.contains("highest number"), "{why}");
    assert!(admin(&["skip-to-round", "50"]).await.0);
    assert_eq!(opened(&mut events).await, 50);
    // Junk on the socket is answered, and nothing else happens.
    let mut stream = std::os::unix::net::UnixStream::connect(folder.join("admin.sock")).unwrap();
    stream.write_all(b"{\"command\":\"explode\"}\n").unwrap();
    let mut answer = String::new();
    tokio::task::spawn_blocking(move || {
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("refused"), "{answer}");
    })
    .await
    .unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(all(devices(&deployment, &endpoint, 0..5)).await, vec![Summary { completed: 1, missed: 0 }; 5]);
    let (good, why) = admin(&["abort-round"]).await;
    assert!(!good && why.contains("finished"), "{why}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_service_is_restored_and_its_devices_which_are_ahead_go_on() {
    let mut deployment = deployment(1_000);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 500);
    let state = deployment.config.state_dir.clone();
    let copy = deployment.folder().join("backups/one");
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = devices(&deployment, &endpoint, 0..5);
    finished(&mut events).await;
    let (from, to) = (state.to_str().unwrap().to_owned(), copy.to_str().unwrap().to_owned());
    let made = {
        let (from, to) = (from.clone(), to.clone());
        tokio::task::spawn_blocking(move || unisono(&["backup", "--state", &from, "--out", &to])).await.unwrap()
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!copy.join("blobs/uploads").exists() && !deployment.folder().join("backups/one.partial").exists());
    let again = unisono(&["backup", "--state", &from, "--out", &to]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists"));
    let nothing = unisono(&["backup", "--state", deployment.folder().to_str().unwrap(), "--out", "/nonexistent/x"]);
    assert!(!nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("no coordinator's state"));
    // Training goes on meanwhile, and then further.
    let mut last = 0;
    for _ in 0..4 {
        last = finished(&mut events).await.round;
    }
    set.shutdown().await;
    coordinator.stop().await;

    // The guide: the state away, the copy in its place, start.
    std::fs::rename(&state, deployment.folder().join("broken")).unwrap();
    let copied = Command::new("cp").args(["-a", &to, &from]).status().unwrap();
    assert!(copied.success());
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = devices(&deployment, &endpoint, 0..5);
    let (round, why) = aborted(&mut events).await;
    assert!(round <= last, "the state went back: round {round} after round {last}");
    assert!(why.contains("devices are ahead"), "{why}");
    let result = finished(&mut events).await;
    assert!(result.round > last && result.round <= last + 2, "{} after {last}", result.round);
    set.shutdown().await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_about_their_round_move_the_number_by_a_bounded_step_at_most() {
    let mut deployment = deployment(1);
    (deployment.config.round.n_min, deployment.config.round.advertise_ms) = (5, 300);
    deployment.config.task.max_round_jump = 7;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut liars = JoinSet::new();
    for _ in 0..6 {
        let channel = tonic::transport::Channel::from_shared(endpoint.clone()).unwrap().connect().await.unwrap();
        let mut stub = unisono::wire::proto::coordinator_client::CoordinatorClient::new(channel);
        let request = GetRoundRequest { task: TASK.into(), after_round: u64::MAX, wait_ms: 20_000 };
        liars.spawn(async move { stub.get_round(request).await.map(|_| ()) });
    }
    assert!(aborted(&mut events).await.1.contains("ahead"));
    assert_eq!(opened(&mut events).await, 8);
    liars.shutdown().await;
    assert_eq!(all(devices(&deployment, &endpoint, 0..5)).await.len(), 5);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_upload_ends_its_round_and_a_restart_goes_on() {
    let mut deployment = deployment(1);
    (deployment.config.round.straggler_grace_ms, deployment.config.round.n_min) = (None, 5);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    // Device 4 takes a day to train: the others' uploads are in.
    let mut set = devices(&deployment, &endpoint, 0..4);
    let slow = |_: &TrainingRound| {
        std::thread::sleep(Duration::from_secs(3));
        Err("asleep".into())
    };
    let mut sleeper = builder(&deployment, &endpoint, 4).build(slow).unwrap();
    set.spawn(async move { sleeper.run().await });
    loop {
        if let Happened::Progress { phase: unisono::protocol::server::Phase::Mask, answered: 4, .. } =
            events.recv().await.unwrap()
        {
            break;
        }
    }
    set.abort_all();
    coordinator.stop().await;
    while set.join_next().await.is_some() {}
    let uploads = deployment.config.state_dir.join("blobs/uploads");
    for round in std::fs::read_dir(&uploads).unwrap() {
        let client = std::fs::read_dir(round.unwrap().path()).unwrap().next().unwrap().unwrap();
        std::fs::remove_file(client.path().join("1")).unwrap();
    }
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    assert_eq!(all(devices(&deployment, &endpoint, 0..5)).await, vec![Summary { completed: 1, missed: 0 }; 5]);
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
        let client = builder(&deployment, &endpoint, i).max_failures(1).on_event(observe);
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
    deployment.config.round.n_min = 5;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
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
    // The round at hand is under the roster before.
    let abort = unisono::coordinator::admin::Request::AbortRound { task: None };
    unisono::coordinator::admin::call(&deployment.config.state_dir, &abort).await.unwrap();
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

/// A coordinator as a process of its own; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Changes lines of the configuration, and starts it.
fn process(deployment: &Deployment, listen: &str, more: &str) -> Process {
    let path = deployment.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{listen}\"\n{more}"));
    std::fs::write(&path, text).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_unisono"))
        .args(["coordinator", "--config"])
        .arg(&path)
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn();
    Process(command.unwrap())
}

fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Status line and body of a GET request.
fn get(address: &str, path: &str) -> Option<(String, String)> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_listener_tells_whether_the_process_lives_and_is_ready() {
    let deployment = deployment(1);
    let (listen, metrics) = (free_port(), free_port());
    let mut process = process(&deployment, &listen, &format!("metrics_listen = \"{metrics}\""));
    let stderr = process.0.stderr.take().unwrap();
    std::thread::spawn(move || BufReader::new(stderr).lines().for_each(drop));
    let ready = loop {
        if let Some((status, body)) = get(&metrics, "/readyz")
            && body == "ready\n"
        {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(ready.contains("200"), "{ready}");
    assert!(get(&metrics, "/livez").unwrap().0.contains("200"));
    assert!(get(&metrics, "/other").unwrap().0.contains("404"));
    all(devices(&deployment, &format!("http://{listen}"), 0..5)).await;
    let (_, text) = get(&metrics, "/metrics").unwrap();
    for line in [
        "unisono_phase_seconds_bucket{phase=\"mask\",le=\"10\"} 1",
        "unisono_rounds_total{result=\"sum\"} 1",
        "unisono_task_failed 0",
        "unisono_phase_answered 0",
        "unisono_roster_epoch 1",
        "unisono_devices_ahead 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn sigterm_while_the_coordinator_loads_is_a_clean_stop() {
    let deployment = deployment(1);
    // Reading the roster does not end.
    let roster = deployment.folder().join("roster.bin");
    std::fs::remove_file(&roster).unwrap();
    assert!(Command::new("mkfifo").arg(&roster).status().unwrap().success());
    let mut process = process(&deployment, &free_port(), "");
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(process.0.try_wait().unwrap().is_none(), "it loads");
    assert!(Command::new("kill").arg(process.0.id().to_string()).status().unwrap().success());
    for _ in 0..200 {
        if let Some(status) = process.0.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0), "{status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not stop");
}
