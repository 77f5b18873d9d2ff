//! Strangers at the service's edge: what they may take of it is bounded, and devices go on. Over real connections, some of them from
//! addresses of their own.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;
use tonic::transport::Channel;
use unisono::client::Summary;
use unisono::coordinator::Coordinator;
use unisono::crypto::kdf::label;
use unisono::local::{Deployment, TASK};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::proto::{ClientMessage, Signed, UploadHeader, client_message::Step};
use unisono::protocol::server::{Authority, Reason, Server, place_in_draw};
use unisono::protocol::signed;
use unisono::wire::model::Model;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::get_round_response::State;
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::{
    GetModelRequest, GetRoundRequest, GrantRequest, PollRequest, RoundPhase, SubmitResponse, UploadChunk,
};
use unisono::wire::{MAX_MESSAGE_LEN, RETRY_AFTER_KEY};

#[path = "../deployed/mod.rs"]
#[allow(dead_code)]
mod deployed;

mod process;
mod rooms;

use deployed::{Raw, all, deployment, devices, free_port, reason};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")).unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}

/// Nobody's address is a proxy's: limits of an address hold on loopback, too.
fn without_proxies(mut deployment: Deployment) -> Deployment {
    deployment.config.limits.proxies = Vec::new();
    deployment
}

/// A connection from an address of the loopback network.
async fn connect(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
    socket.connect(to).await
}

/// HTTP/2 by hand, over which calls are begun and left as they are.
async fn http2(stream: TcpStream) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 30);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    let closed = tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, closed)
}

fn request(call: &str) -> http::Request<()> {
    let uri = format!("http://x/unisono.v1.Coordinator/{call}");
    let builder = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    builder.body(()).unwrap()
}

fn framed(message: &impl prost::Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed.into()
}

async fn stub(address: SocketAddr) -> CoordinatorClient<Channel> {
    CoordinatorClient::connect(format!("http://{address}")).await.unwrap().max_decoding_message_size(MAX_MESSAGE_LEN)
}

fn ask(wait_ms: u64) -> GetRoundRequest {
    GetRoundRequest { task: TASK.into(), wait_ms, ..GetRoundRequest::default() }
}

async fn complete(deployment: &Deployment, coordinator: &Coordinator) {
    let set = devices(deployment, &format!("http://{}", coordinator.address()), 0..5);
    let summaries = tokio::time::timeout(Duration::from_secs(120), all(set)).await.expect("devices go on");
    assert_eq!(summaries, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
}

/// A stranger's stream that sends all of a message of `length` bytes but the last one. `None`: the server takes no further stream.
async fn unfinished(mut sender: SendRequest<Bytes>, call: &str, length: usize) -> Option<h2::SendStream<Bytes>> {
    let opening = async {
        sender = sender.clone().ready().await.ok()?;
        sender.send_request(request(call), false).ok()
    };
    let (_, mut stream) = tokio::time::timeout(Duration::from_millis(200), opening).await.ok()??;
    let mut head = vec![0];
    head.extend((length as u32).to_be_bytes());
    stream.send_data(head.into(), false).ok()?;
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = length - 1;
    while left > 0 {
        stream.reserve_capacity(left.min(ZEROS.len()));
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context));
        match tokio::time::timeout(Duration::from_millis(100), capacity).await {
            Ok(Some(Ok(capacity))) if capacity > 0 => {
                let piece = capacity.min(left).min(ZEROS.len());
                stream.send_data(Bytes::from_static(&ZEROS[..piece]), false).ok()?;
                left -= piece;
            }
            // No further byte is taken: it stays as it is.
            _ => break,
        }
    }
    // Where none was, the stream is not open: this side holds it back.
    (left < length - 1).then_some(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_streams_take_bounded_memory_and_devices_go_on() {
    let mut deployment = deployment(1);
    // One chunk of 2.5 MB.
    deployment.config.round.chunk_elements = 1 << 20;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let mut plain = stub(address).await;
    assert_eq!(plain.get_round(ask(10_000)).await.unwrap().into_inner().state, State::Open as i32);
    let before = resident();
    let (sender, _closed) = http2(connect("127.0.0.1", address).await.unwrap()).await;
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let sender = sender.clone();
        streams.spawn(async move { unfinished(sender, "Upload", 2_400_000).await });
    }
    let streams: Vec<_> = streams.join_all().await.into_iter().flatten().collect();
    let grown = resident().saturating_sub(before);
    eprintln!("{} streams, {} MB", streams.len(), grown >> 20);
    assert!(streams.len() <= 64 && streams.len() > 10, "{} streams", streams.len());
    assert!(grown < 100 << 20, "{grown} bytes");
    complete(&deployment, &coordinator).await;
    drop(streams);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_that_nobody_reads_take_bounded_memory_and_end() {
    let mut deployment = deployment(1);
    deployment.config.limits.stall_ms = 3_000;
    // 32 MB.
    let model = Model::new([("w", vec![8 << 20], vec![0.5; 8 << 20])]).unwrap().to_safetensors().unwrap();
    let path = deployment.folder().join("large.safetensors");
    std::fs::write(&path, &model).unwrap();
    deployment.config.task.initial_model = path;
    deployment.config.limits.proxies = Vec::new();
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let mut plain = stub(address).await;
    assert_eq!(plain.get_round(ask(20_000)).await.unwrap().into_inner().state, State::Open as i32);
    let before = resident();
    let began = Instant::now();
    let (sender, closed) = http2(connect("127.0.0.1", address).await.unwrap()).await;
    let message = framed(&GetModelRequest { task: TASK.into(), ..Default::default() });
    let mut unread = Vec::new();
    for _ in 0..60 {
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut stream) = sender.send_request(request("GetModel"), false).unwrap();
        stream.send_data(message.clone(), true).unwrap();
        unread.push((answer.await.unwrap(), stream));
    }
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let grown = resident().saturating_sub(before);
    eprintln!("60 downloads of {} MB: {} MB", model.len() >> 20, grown >> 20);
    // What the client itself holds of each, 1 MiB, is in it.
    assert!(grown < 200 << 20, "{grown} bytes");
    // Whoever reads gets all of it meanwhile.
    let chunks = plain.get_model(GetModelRequest { task: TASK.into(), ..Default::default() });
    let mut chunks = chunks.await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        file.extend(chunk.data);
    }
    let header = unisono::release::Header::of_file(&file).unwrap().unwrap();
    assert_eq!((header.file_len(), header.fields.payload_length), (file.len() as u64, model.len() as u64));
    // The others are cut off.
    tokio::time::timeout(Duration::from_secs(20), closed).await.expect("they are cut off").unwrap();
    assert!(began.elapsed() >= Duration::from_secs(3));
    drop(unread);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_have_no_part_is_told_so_at_once_and_messages_have_the_size_of_their_call() {
    let deployment = deployment(1);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut device = Raw::join(&endpoint, deployment.device_keys(4)).await;
    let stranger = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    let mut stranger = Raw::join(&endpoint, stranger).await;
    let poll = |raw: &Raw| PollRequest {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        phase: RoundPhase::Share as i32,
        wait_ms: 20_000,
    };
    let chunk = |raw: &Raw| UploadChunk {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        upload_hash: vec![0; 32],
        index: 0,
        data: vec![1],
    };
    // A long poll does not wait for nobody.
    let began = Instant::now();
    let status = stranger.stub.poll(poll(&stranger)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "unknown_client"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let status = stranger.stub.upload(tokio_stream::iter([chunk(&stranger)])).await.unwrap_err();
    assert_eq!(reason(&status), "unknown_client");
    // Also in a phase in which the step can't be taken.
    let header = UploadHeader { cohort_id: vec![0; 32], from: 0, length: 1, hash: vec![0; 32] };
    let signed = signed::sign(&header, label::SIG_UPLOAD, Some(&stranger.keys.signing_key));
    let message = stranger.message(Step::Upload(signed));
    assert_eq!(reason(&stranger.submit(message).await.unwrap_err()), "unknown_client");

    // An advert of 60 kB, which a step of this round may have and an advert has not.
    let mut large = device.advert();
    let Some(Step::Advert(signed)) = &mut large.step else { unreachable!() };
    signed.payload.resize(60_000, 0);
    assert_eq!(reason(&device.submit(large.clone()).await.unwrap_err()), "too_large");
    // A step of 1 MB, which is none of a round with five clients; it is refused by its first bytes.
    let Some(Step::Advert(signed)) = &mut large.step else { unreachable!() };
    signed.payload.resize(1_000_000, 0);
    let status = device.submit(large).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::OutOfRange, "too_large"), "{status}");
    let mut long = poll(&device);
    long.client_id = vec![0; 10_000];
    assert_eq!(reason(&device.stub.poll(long).await.unwrap_err()), "too_large");
    let grant = Signed { payload: vec![0; 100_000], signature: Vec::new() };
    let status = device.stub.request_grant(GrantRequest { request: Some(grant) }).await.unwrap_err();
    assert_eq!(reason(&status), "too_large");
    complete(&deployment, &coordinator).await;
    coordinator.stop().await;
}

#[test]
fn there_is_room_or_not_before_a_signature_is_verified() {
    let mut deployment = deployment(1);
    deployment.config.round.n_max = 4;
    let keys = deployment.config.round_keys().unwrap().unwrap();
    let roster = std::sync::Arc::new(keys.read_roster().unwrap());
    let place = (roster.head().epoch, roster.head().root.to_vec());
    let mut params = deployment.config.params(1, 0, [0; 32], 8, place).unwrap();
    params.opened_at = now();
    let mut server = Server::open(&params, Some(Authority { signing_key: keys.signing_key, roster })).unwrap();
    let round_id = server.params().round_id.to_vec();
    let advert = |i: u32| {
        let keys = deployment.device_keys(i);
        let key = || DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng)).release_key.encapsulation_key();
        let advert = unisono::protocol::proto::Advert {
            round_id: round_id.clone(),
            client_id: keys.client_id.to_vec(),
            mask_ek: key().as_bytes().to_vec(),
            channel_ek: key().as_bytes().to_vec(),
            self_mask_commitment: vec![7; 32],
        };
        let step = Step::Advert(signed::sign(&advert, label::SIG_ADVERT, Some(&keys.signing_key)));
        ClientMessage { round_id: round_id.clone(), client_id: keys.client_id.to_vec(), step: Some(step) }
    };
    // The last one of the draw: of any other the signature would be looked at.
    let round = server.params().round_id;
    let last = (0..5).max_by_key(|&i| place_in_draw(round, deployment.device_keys(i).client_id)).unwrap();
    let mut forged = advert(last);
    let Some(Step::Advert(signed)) = &mut forged.step else { unreachable!() };
    signed.signature[0] ^= 1;
    assert!(matches!(server.absorb(&forged, now()).unwrap_err().reason, Reason::Signed(_)));
    let others: Vec<u32> = (0..5).filter(|&i| i != last).collect();
    for &i in &others {
        server.absorb(&advert(i), now()).unwrap();
    }
    assert_eq!(server.absorb(&forged, now()).unwrap_err().reason, Reason::Full { n_max: 4 });
    // Whoever is in is told that it is, not that there is no room.
    assert_eq!(server.absorb(&advert(others[0]), now()).unwrap_err().reason, Reason::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_an_address_and_in_a_devices_name_have_a_rate() {
    let mut deployment = without_proxies(deployment(1));
    (deployment.config.limits.calls_per_address, deployment.config.limits.calls_per_device) = (20, 3);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let mut raw = Raw::join(&format!("http://{address}"), deployment.device_keys(4)).await;
    let poll = PollRequest {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        phase: RoundPhase::Share as i32,
        wait_ms: 0,
    };
    let refused = |status: tonic::Status, name: &str| {
        assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, name), "{status}");
        let after: u64 = status.metadata().get(RETRY_AFTER_KEY).unwrap().to_str().unwrap().parse().unwrap();
        assert!((1..=1_000).contains(&after), "{after}");
    };
    let mut polled = 0;
    loop {
        match raw.stub.poll(poll.clone()).await {
            Ok(_) => polled += 1,
            Err(status) => break refused(status, "calls_device"),
        }
    }
    assert!((30..60).contains(&polled), "{polled}");
    let mut asked = 0;
    loop {
        match raw.stub.get_round(ask(0)).await {
            Ok(_) => asked += 1,
            Err(status) => break refused(status, "calls_address"),
        }
    }
    assert!((100..2_000).contains(&asked), "{asked}");
    // Another address is not affected.
    let (sender, _closed) = http2(connect("127.0.0.2", address).await.unwrap()).await;
    let mut sender = sender.ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(request("GetRound"), false).unwrap();
    stream.send_data(framed(&ask(0)), true).unwrap();
    let answer = answer.await.unwrap();
    assert!(answer.headers().get("grpc-status").is_none(), "{answer:?}");
    // And devices, of the same address, go on: they come back. One that was told to wait may be too late for a phase.
    let set = devices(&deployment, &format!("http://{address}"), 0..5);
    let summaries = tokio::time::timeout(Duration::from_secs(120), all(set)).await.expect("devices go on");
    let completed = summaries.iter().filter(|summary| summary.completed == 1).count();
    assert!(completed >= deployment.n_min as usize, "{summaries:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_step_which_anybody_can_send_makes_nobody_known() {
    let mut deployment = without_proxies(deployment(1));
    deployment.config.limits.stranger_idle_ms = 1_000;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let mut device = Raw::join(&format!("http://{address}"), deployment.device_keys(4)).await;
    // The advert's bytes, as whoever overhears them has them.
    let advert = device.advert();
    let open_after = async |from: &str| {
        let (sender, mut closed) = http2(connect(from, address).await.unwrap()).await;
        let mut sender = sender.ready().await.unwrap();
        let (answer, mut stream) = sender.send_request(request("Submit"), false).unwrap();
        stream.send_data(framed(&advert), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let mut bytes = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            let _ = body.flow_control().release_capacity(piece.len());
            bytes.extend(piece);
        }
        let answer: SubmitResponse = prost::Message::decode(&bytes[5..]).unwrap();
        let open = tokio::time::timeout(Duration::from_secs(4), &mut closed).await.is_err();
        (answer.repeat, open)
    };
    assert_eq!(open_after("127.0.0.31").await, (false, true), "the first to bring it is known");
    assert_eq!(open_after("127.0.0.32").await, (true, false), "who repeats it is a stranger");
    assert!(device.submit(advert.clone()).await.unwrap());
    coordinator.stop().await;
}
