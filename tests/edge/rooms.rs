//! Room for connections, calls and answers: strangers fill their part of it.

use super::*;

/// How many of `count` connections from an address are still there after a moment.
async fn connections(from: &str, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        if let Ok(stream) = connect(from, to).await {
            stream.writable().await.unwrap();
            let _ = stream.try_write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
            open.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    open.into_iter().filter(is_open).collect()
}

fn is_open(stream: &TcpStream) -> bool {
    let mut bytes = [0; 1024];
    loop {
        match stream.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_fill_their_part_of_the_connections_and_known_devices_have_theirs() {
    let mut deployment = without_proxies(deployment(2));
    deployment.config.max_connections = 40;
    deployment.config.limits.connections_per_address = 12;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    // An accepted advert makes this address a known device's.
    let mut raw = Raw::join(&format!("http://{address}"), deployment.device_keys(4)).await;
    let advert = raw.advert();
    raw.submit(advert).await.unwrap();
    // One address gets so many; all strangers together half.
    let one = connections("127.0.0.2", address, 30).await;
    assert_eq!(one.len(), 12);
    let two = connections("127.0.0.3", address, 30).await;
    assert_eq!(two.len(), 8);
    assert_eq!(connections("127.0.0.4", address, 5).await.len(), 0);
    let set = devices(&deployment, &format!("http://{address}"), 0..4);
    let summaries = tokio::time::timeout(Duration::from_secs(60), all(set)).await.expect("devices go on");
    assert!(summaries.iter().all(|summary| summary.completed == 2), "{summaries:?}");
    assert!(one.iter().chain(&two).all(is_open));
    coordinator.stop().await;
}

/// A call by hand; its answer's headers, and what keeps the rest of the answer from being read.
async fn call(sender: &SendRequest<Bytes>, name: &str, message: &impl prost::Message) -> h2::client::ResponseFuture {
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(request(name), false).unwrap();
    stream.send_data(framed(message), true).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_fill_their_part_of_the_calls_and_known_devices_have_theirs() {
    let mut deployment = without_proxies(deployment(1));
    // 200 calls at a time, half of them strangers'.
    deployment.config.max_connections = 100;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let mut raw = Raw::join(&format!("http://{address}"), deployment.device_keys(4)).await;
    let advert = raw.advert();
    raw.submit(advert).await.unwrap();
    let (mut waiting, mut busy) = (Vec::new(), 0);
    for from in ["127.0.0.2", "127.0.0.3"] {
        let (sender, closed) = http2(connect(from, address).await.unwrap()).await;
        for _ in 0..60 {
            let answer = call(&sender, "GetRound", &GetRoundRequest { after_round: 5, ..ask(20_000) }).await;
            waiting.push((answer, sender.clone()));
        }
        drop(closed);
    }
    for (answer, _sender) in &mut waiting {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), answer).await {
            assert_eq!(answer.unwrap().headers()["unisono-reason"], "busy");
            busy += 1;
        }
    }
    assert_eq!(busy, 20);
    let set = devices(&deployment, &format!("http://{address}"), 0..4);
    let summaries = tokio::time::timeout(Duration::from_secs(60), all(set)).await.expect("devices go on");
    assert!(summaries.iter().all(|summary| summary.completed == 1), "{summaries:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_read_its_views_gets_no_further_ones() {
    let mut deployment = deployment(1);
    deployment.config.round.straggler_grace_ms = None;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let endpoint = format!("http://{address}");
    let mut raw = Raw::join(&endpoint, deployment.device_keys(4)).await;
    let set = devices(&deployment, &endpoint, 0..4);
    raw.submit(raw.advert()).await.unwrap();
    let poll = PollRequest {
        round_id: raw.round_id.clone(),
        client_id: raw.keys.client_id.to_vec(),
        phase: RoundPhase::Share as i32,
        wait_ms: 20_000,
    };
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(64);
    let (sender, connection) = builder.handshake(connect("127.0.0.1", address).await.unwrap()).await.unwrap();
    let open = tokio::spawn(connection);
    let began = Instant::now();
    let mut unread = Vec::new();
    for _ in 0..4 {
        let answer = call(&sender, "Poll", &poll).await.await.unwrap();
        assert!(answer.headers().get("unisono-reason").is_none());
        unread.push(answer);
    }
    let fifth = call(&sender, "Poll", &poll).await.await.unwrap();
    assert_eq!(fifth.headers()["unisono-reason"], "answers");
    assert!(began.elapsed() >= Duration::from_secs(20) && began.elapsed() < Duration::from_secs(50));
    // On another connection it gets its view.
    assert!(matches!(raw.stub.poll(poll).await.unwrap().into_inner().answer, Some(Answer::View(_))));
    drop((unread, set, open));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_calls_are_closed_and_messages_come_in_time() {
    let mut deployment = without_proxies(deployment(1));
    let limits = &mut deployment.config.limits;
    (limits.stranger_idle_ms, limits.body_ms) = (1_500, 500);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let address = coordinator.address();
    let idle = connections("127.0.0.2", address, 5).await;
    assert_eq!(idle.len(), 5);
    let (sender, _closed) = http2(connect("127.0.0.1", address).await.unwrap()).await;
    let mut sender = sender.ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(request("Submit"), false).unwrap();
    stream.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 1]), false).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("it is not waited for").unwrap();
    assert_eq!(answer.headers()["unisono-reason"], "body_stalled");
    // A call that waits keeps its connection.
    let mut plain = stub(address).await;
    let request = GetRoundRequest { after_round: 5, ..ask(4_000) };
    assert_eq!(plain.get_round(request).await.unwrap().into_inner().state, State::Waiting as i32);
    assert!(!idle.iter().any(is_open));
    coordinator.stop().await;
}
