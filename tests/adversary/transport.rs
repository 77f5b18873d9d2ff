//! A network that is hostile or fails, and a disk that is full: junk, slow and half-open connections, storage errors. The
//! round goes on for those who behave, and what was refused is counted.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use unisono::client::{Error, Event, Summary};
use unisono::coordinator::{Coordinator, Event as Happened};
use unisono::local::{Deployment, TASK};
use unisono::protocol::client::{Session, Trust};
use unisono::protocol::encoding::Contribution;
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::policy::{MemoryRecord, Policy};
use unisono::protocol::proto::{Signed, UploadHeader, client_message::Step, server_message::View};
use unisono::protocol::server::Phase;
use unisono::registrar::Registrar;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::{GetRoundRequest, PollRequest, RoundPhase, UploadChunk, UploadStatusRequest};

use crate::deployed::{Raw, all, builder, constant, deployment, devices, finished, reason};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn rng() -> rand_core::UnwrapErr<getrandom::SysRng> {
    rand_core::UnwrapErr(getrandom::SysRng)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// When an attack happens.
#[derive(PartialEq)]
enum When {
    /// While devices may still join; they come when it is over.
    Before,
    /// While they go through the round.
    Meanwhile,
}

/// Five honest devices complete the coordinator's only round.
async fn completes(deployment: &Deployment, coordinator: &Coordinator) {
    let mut events = coordinator.events();
    let set = devices(deployment, &format!("http://{}", coordinator.address()), 0..5);
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 5);
    assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3, "{}", result.aggregate.mean[0]);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
}

/// They do so in spite of `attack`, which gets the coordinator's address.
async fn withstands(deployment: Deployment, when: When, attack: impl AsyncFnOnce(String)) {
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address().to_string();
    if when == When::Before {
        attack(address).await;
        completes(&deployment, &coordinator).await;
    } else {
        tokio::join!(completes(&deployment, &coordinator), attack(address));
    }
    coordinator.stop().await;
}

/// Sends junk over one connection after another as long as `going`, and counts the frames; how many connections were closed on it.
fn send_junk(address: &str, seed: u64, sent: &AtomicU64, going: impl Fn() -> bool) -> u64 {
    const BATCH: u64 = 64;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // So that the round has some of the machine, too.
    let pause = || std::thread::sleep(Duration::from_millis(5));
    let mut closed = 0;
    while going() {
        let Ok(mut stream) = TcpStream::connect(address) else {
            pause();
            continue;
        };
        // A good beginning on most connections, then frames of random kind, flags, stream and content.
        if next() % 8 != 0 {
            let _ = stream.write_all(&[PREFACE, &SETTINGS].concat());
        }
        while going() {
            let mut batch = Vec::new();
            for _ in 0..BATCH {
                let (head, len) = (next(), (next() % 40) as usize);
                batch.extend([0, 0, len as u8, head as u8 % 12, (head >> 8) as u8, 0, 0, 0, (head >> 16) as u8]);
                batch.extend((0..len).map(|i| (head >> (i % 8)) as u8));
            }
            if stream.write_all(&batch).is_err() {
                closed += 1;
                break;
            }
            sent.fetch_add(BATCH, Ordering::Relaxed);
            pause();
        }
    }
    closed
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
fn resident() -> u64 {
    if !cfg!(target_os = "linux") {
        return 0;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")).unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_connections_worth_of_junk_frames() {
    const FRAMES: u64 = 100_000;
    static SENT: AtomicU64 = AtomicU64::new(0);
    static OVER: AtomicBool = AtomicBool::new(false);
    let mut deployment = deployment(1);
    // Fewer than the flood opens: there is room for the devices only if the others give their places back.
    deployment.config.max_connections = 100;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address().to_string();
    let before = resident();
    // It goes on until the round is over; where that fails, not for ever.
    let latest = Instant::now() + Duration::from_secs(60);
    let going =
        move || (SENT.load(Ordering::Relaxed) < FRAMES || !OVER.load(Ordering::Relaxed)) && Instant::now() < latest;
    let mut senders = tokio::task::JoinSet::new();
    for seed in 0..16 {
        let address = address.clone();
        senders.spawn_blocking(move || send_junk(&address, seed, &SENT, going));
    }
    let begun = async {
        while SENT.load(Ordering::Relaxed) < 1_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        SENT.load(Ordering::Relaxed)
    };
    let begun = tokio::time::timeout(Duration::from_secs(20), begun).await.expect("the flood does not begin");
    completes(&deployment, &coordinator).await;
    assert!(Instant::now() < latest, "the flood ended before the round did");
    let met = SENT.load(Ordering::Relaxed) - begun;
    let meanwhile = resident();
    OVER.store(true, Ordering::Relaxed);
    let closed: u64 = senders.join_all().await.iter().sum();
    assert!(met >= FRAMES / 10, "only {met} frames met the round");
    assert!(SENT.load(Ordering::Relaxed) >= FRAMES, "the flood took too long");
    // The senders are thrown out again and again: their junk is read, and refused.
    assert!(closed > 100, "only {closed} connections were closed");
    let grown = meanwhile.max(resident()).saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more are held after the flood");
    let answer = async {
        let mut stub = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
        stub.get_round(GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 0, ..Default::default() })
            .await
            .unwrap();
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.expect("no answer after the flood");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_loris_connections() {
    withstands(deployment(1), When::Meanwhile, async |address| {
        // Nothing at all; half a preface; a preface and half a frame; a request whose headers never end.
        let headers = [PREFACE, &SETTINGS, &[0, 0, 4, 1, 0, 0, 0, 0, 1, 0x83, 0x86, 0x84, 0x41]].concat();
        let beginnings: [&[u8]; 4] = [b"", &PREFACE[..10], &headers[..30], &headers];
        let mut held = Vec::new();
        for i in 0..200 {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            stream.write_all(beginnings[i % 4]).await.unwrap();
            held.push(stream);
        }
        // Those that have not begun to speak HTTP/2 are closed within seconds, the others when they don't answer to a ping.
        let mut closed = async |kinds: [usize; 2], within: u64| {
            let closed = async {
                for stream in kinds.into_iter().flat_map(|kind| (kind..200).step_by(4)) {
                    while held[stream].read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
                }
            };
            tokio::time::timeout(Duration::from_secs(within), closed).await.expect("silent connections are kept");
        };
        closed([0, 1], 15).await;
        closed([2, 3], 75).await;
    })
    .await;
}

/// A device driven by hand up to its masked input, with its header accepted.
async fn masked(deployment: &Deployment, endpoint: &str, i: u32) -> (Raw, Session, MemoryRecord) {
    let keys = deployment.device_keys(i);
    let mut raw = Raw::join(endpoint, deployment.device_keys(i)).await;
    let request = GetRoundRequest { task: TASK.into(), after_round: 0, wait_ms: 10_000, ..Default::default() };
    let offer = raw.stub.get_round(request).await.unwrap().into_inner().offer.unwrap();
    let policy = Policy { n_min: deployment.n_min, ..Policy::default() };
    let trust = Trust { registrar: Some(deployment.registrar.clone()), policy };
    let mut record = MemoryRecord::default();
    let identity = Arc::new(keys.identity());
    let mut session = Session::join(&offer, identity, &trust, &mut record, now(), &mut rng()).unwrap();
    let params = session.params().clone();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let cohort = view(&mut raw, Phase::Share).await;
    session.receive(&cohort, None, &mut record, now(), &mut rng()).unwrap();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let masking = view(&mut raw, Phase::Mask).await;
    let update = vec![0.05; params.wire.dimension as usize];
    let contribution = Contribution { update: &update, metrics: &[1.0, 0.5], weight: 1.0 };
    let input = params.quantiser.encode(contribution, update.len(), params.modulus, &mut rng()).unwrap();
    session.receive(&masking, Some(input), &mut record, now(), &mut rng()).unwrap();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    (raw, session, record)
}

async fn view(raw: &mut Raw, phase: Phase) -> View {
    let request = PollRequest {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        phase: RoundPhase::from(phase) as i32,
        wait_ms: 20_000,
    };
    loop {
        match raw.stub.poll(request.clone()).await.unwrap().into_inner().answer.unwrap() {
            Answer::View(message) => return message.view.unwrap(),
            Answer::Waiting(_) => {}
            Answer::Ended(ended) => panic!("{}", ended.reason),
            Answer::LeftOut(left_out) => panic!("{}", left_out.reason),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_upload_stream_and_chunks_out_of_order() {
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = Some(20_000);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let honest = devices(&deployment, &endpoint, 0..4);
    let (mut raw, mut session, mut record) = masked(&deployment, &endpoint, 4).await;
    let Some(Step::Upload(header)) = &session.message().unwrap().step else { panic!("no header") };
    let hash = UploadHeader::decode(header.payload.as_slice()).unwrap().hash;
    let chunk = |index: u64| UploadChunk {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        upload_hash: hash.clone(),
        index,
        data: session.chunk(index).unwrap(),
    };
    // One stream sends a chunk and hangs: its connection stays alive, and nothing more comes.
    let (hanging, receiver) = tokio::sync::mpsc::channel(4);
    hanging.send(chunk(0)).await.unwrap();
    let mut stub = raw.stub.clone();
    let hung = tokio::spawn(async move { stub.upload(tokio_stream::wrappers::ReceiverStream::new(receiver)).await });
    let who = UploadStatusRequest { round_id: raw.round_id.clone(), client_id: raw.keys.client_id.to_vec() };
    let mut stub = raw.stub.clone();
    let arrived = async {
        while stub.get_upload_status(who.clone()).await.unwrap().into_inner().chunks == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("a hanging stream blocks its client");
    // Another stream of the same client goes on beside it; chunks out of order, or another client's, are refused by name.
    let mut stub = raw.stub.clone();
    let mut send = async |chunks: Vec<UploadChunk>| stub.upload(tokio_stream::iter(chunks)).await;
    assert_eq!(reason(&send(vec![chunk(2)]).await.unwrap_err()), "upload_order");
    assert_eq!(reason(&send(vec![chunk(1), chunk(3), chunk(2)]).await.unwrap_err()), "upload_order");
    // (An honest one, which is uploading at this moment: it must not notice.)
    let other = UploadChunk { client_id: deployment.device_keys(0).client_id.to_vec(), ..chunk(2) };
    match send(vec![other.clone()]).await {
        Ok(status) => {
            assert!(status.into_inner().complete, "only an upload that is complete already has no use for it")
        }
        Err(status) => assert!(["upload_hash", "incomplete", "upload_order"].contains(&reason(&status)), "{status}"),
    }
    assert_eq!(reason(&send(vec![chunk(2), other]).await.unwrap_err()), "malformed");
    let rest = (3..session.chunks()).map(chunk).collect();
    let complete = tokio::time::timeout(Duration::from_secs(10), send(rest)).await.expect("blocked").unwrap();
    assert!(complete.into_inner().complete);
    assert!(!hung.is_finished(), "it hangs meanwhile");

    // Four of five make the certificate, so that nobody waits for this device's endorsement.
    let certificate = view(&mut raw, Phase::Unmask).await;
    session.receive(&certificate, None, &mut record, now(), &mut rng()).unwrap();
    raw.submit(session.message().unwrap().clone()).await.unwrap();
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 5);
    assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3);
    assert_eq!(all(honest).await.len(), 4);
    // The stream is given up after a minute without a chunk, although its connection is alive; its sender is told why.
    let stalled = tokio::time::timeout(Duration::from_secs(75), hung).await.expect("a hanging stream is kept").unwrap();
    let status = stalled.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "upload_stalled"));
    drop(hanging);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_in_the_metrics() {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let deployment = deployment(1);
    let keys = deployment.device_keys(4);
    withstands(deployment, When::Before, async |address| {
        let endpoint = format!("http://{address}");
        let mut stranger = Raw::join(&endpoint, DeviceKeys::generate(&mut rng())).await;
        let advert = stranger.advert();
        for _ in 0..100 {
            let status = stranger.submit(advert.clone()).await.unwrap_err();
            assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "unknown_client"));
        }
        // In an enrolled device's name, unsigned, and no message at all.
        let mut forger = Raw { keys, ..stranger };
        let junk = Signed { payload: vec![0xA5; 500], signature: vec![1; 2484] };
        let forged = forger.message(Step::Advert(junk));
        for _ in 0..50 {
            let status = forger.submit(forged.clone()).await.unwrap_err();
            // Whether the device itself has come by then or not.
            assert!(
                ["signature", "conflict", "no_such_round", "round_finished"].contains(&reason(&status)),
                "{status}"
            );
        }
    })
    .await;
    let text = metrics.render();
    let count = |name: &str, label: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
        line.unwrap_or_else(|| panic!("no {name} with {label} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("unisono_refusals_total", "reason=\"unknown_client\"") >= 100);
    assert!(count("unisono_call_errors_total", "code=\"PermissionDenied\"") >= 100);
    assert!(text.contains("unisono_steps_total"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_during_uploads() {
    // A file where the uploads' folder would be: every chunk fails to be stored, as on a full disk.
    let deployment = deployment(1);
    let blobs = deployment.config.state_dir.join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("uploads"), b"").unwrap();
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let (told, mut failed) = tokio::sync::mpsc::unbounded_channel();
    let mut set = devices(&deployment, &endpoint, 0..4);
    let observe = move |event: &Event<'_>| {
        if let Event::Retrying { error, .. } = event {
            let _ = told.send(error.to_string());
        }
    };
    let mut client = builder(&deployment, &endpoint, 4).on_event(observe).build(constant(4)).unwrap();
    set.spawn(async move { client.run().await });
    // It is told so, in words that say that it passes; then there is room again.
    for _ in 0..2 {
        assert!(failed.recv().await.unwrap().contains("can't store this now"));
    }
    std::fs::remove_file(blobs.join("uploads")).unwrap();
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 5);
    assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_when_the_sum_is_there() {
    // The new model can't be stored for a while: the round is not lost, and the training does not end.
    let deployment = deployment(2);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let model = deployment.config.state_dir.join("blobs/models").join(TASK).join("1");
    std::fs::write(&model, b"").unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let set = devices(&deployment, &endpoint, 0..5);
    loop {
        match events.recv().await.unwrap() {
            Happened::PhaseClosed { phase: Phase::Unmask, .. } => break,
            Happened::RoundFinished(_) | Happened::RoundAborted { .. } => panic!("its model can't be stored"),
            _ => {}
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::remove_file(&model).unwrap();
    for round in 1..=2 {
        let result = finished(&mut events).await;
        assert_eq!((result.round, result.outcome.survivors.len()), (round, 5));
        assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3);
    }
    coordinator.trained().await.unwrap();
    assert_eq!(all(set).await, vec![Summary { completed: 2, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_locked_for_a_while() {
    let deployment = deployment(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let file = deployment.config.state_dir.join("coordinator.sqlite");
    // Before anybody has joined, so that nothing of the round is stored before it is over.
    let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.unwrap();
    let began = Instant::now();
    let lock = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        sqlx::query("ROLLBACK").execute(&mut *connection).await.unwrap();
    };
    let honest = async {
        let set = devices(&deployment, &endpoint, 0..5);
        let result = finished(&mut events).await;
        assert!(began.elapsed() >= Duration::from_secs(7), "the lock met the round");
        assert_eq!(result.outcome.survivors.len(), 5);
        assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    };
    tokio::join!(lock, honest);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_client_over_grpc() {
    let deployment = deployment(1);
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    let keys = deployment.config.round_keys().unwrap().unwrap();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    let expired = DeviceKeys::generate(&mut rng());
    // Its one day ends in two seconds: the roster still has it.
    registrar.enrol(&expired.enrolment(), now() - 86_400 + 2, 1, Default::default()).unwrap();
    let roster = registrar.publish(&[keys.signing_key.verifying_key()], &[publisher], now()).unwrap();
    assert!(roster.contains(expired.client_id));
    unisono::files::replace(&deployment.folder().join("roster.bin"), &roster.to_bytes().unwrap()).unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let folder = deployment.folder().join("expired");
    let (registrar, n_min) = (deployment.registrar.clone(), deployment.n_min);
    withstands(deployment, When::Before, async |address| {
        let mut client = unisono::client::Client::builder(format!("http://{address}"), TASK, expired)
            .registrar(registrar)
            .policy(Policy { n_min, ..Policy::default() })
            .state_dir(folder)
            .build(constant(9))
            .unwrap();
        let error = client.run().await.unwrap_err();
        let Error::Refused { reason, .. } = &error else { panic!("{error}") };
        assert_eq!(reason, "expired_client");
        assert!(error.is_final() && error.to_string().contains("enrol the device again"), "{error}");
    })
    .await;
}
