//! Which handshakes succeed and with which key exchange; and what those take who don't end theirs.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_and_the_listener_agree_on_the_hybrid_key_exchange() {
    let world = World::new(Terms::default());
    // The listener's own rules, where the test sees both sides.
    let tls = ServerTls::load(&files(&world.deployment), Listener::Devices).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let mut client = world.device(&endpoint, 0).build(constant(0)).unwrap();
    let device = tokio::spawn(async move { client.run().await });
    let accepted = tls.acceptor().accept(listener.accept().await.unwrap().0).await.unwrap();
    let server = accepted.get_ref().1;
    assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    device.abort();

    let coordinator = world.start().await;
    let address = coordinator.address().to_string();
    let stream = raw::connect(&address, &world.authority.pem(), &[]).await.unwrap();
    assert_eq!(raw::group(&stream), NamedGroup::X25519MLKEM768);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_x25519_alone_is_served_and_one_of_tls_1_2_is_not() {
    let world = World::new(Terms::default());
    let coordinator = world.start().await;
    let address = coordinator.address().to_string();
    let mut stream = raw::connect(&address, &world.authority.pem(), &[NamedGroup::X25519]).await.unwrap();
    assert_eq!(raw::group(&stream), NamedGroup::X25519);
    raw::begin(&mut stream).await;
    assert!(raw::answers(&mut stream).await);

    let mut old = tokio::net::TcpStream::connect(&address).await.unwrap();
    old.write_all(&raw::hello_of_1_2()).await.unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await.unwrap();
    // A fatal alert: protocol_version (RFC 8446, 6.2).
    assert_eq!((answer[0], &answer[answer.len() - 2..]), (21, &[2, 70][..]), "{answer:?}");
    coordinator.stop().await;
}

/// Bytes of a connection that the coordinator closes, and after how long.
async fn closed_after(address: &str, first: &[u8]) -> Duration {
    let began = tokio::time::Instant::now();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(first).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("not closed");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_end_are_closed_in_seconds_and_hold_no_place_for_longer() {
    let mut world = World::new(Terms::default());
    let config = &mut world.deployment.config;
    // Four places for strangers, of whom this address is one here.
    (config.max_connections, config.limits.reserved_percent, config.limits.proxies) = (8, 50, vec![]);
    let coordinator = world.start().await;
    let (address, authority) = (coordinator.address().to_string(), world.authority.pem());
    // Junk is closed at once, and what is neither TLS nor HTTP.
    for junk in [&b"\0\0\0\0\0\0"[..], b"SSH-2.0-x\r\n", &[22, 3, 1, 0, 5, 9, 9, 9, 9, 9], &[22; 600]] {
        let after = closed_after(&address, junk).await;
        assert!(after < Duration::from_secs(5), "{junk:?}: {after:?}");
    }
    assert!(raw::is_served(&address, &authority).await);
    // Three who stop in the middle: the fourth place is a good client's, who does not wait for them.
    let hello = raw::hello_of_1_2();
    let mut slow = JoinSet::new();
    let stop_early = async |slow: &mut JoinSet<Duration>| {
        let (address, part) = (address.clone(), hello[..40].to_vec());
        slow.spawn(async move { closed_after(&address, &part).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for _ in 0..3 {
        stop_early(&mut slow).await;
    }
    let began = tokio::time::Instant::now();
    assert!(raw::is_served(&address, &authority).await);
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for others: {:?}", began.elapsed());
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop_early(&mut slow).await;
    assert!(!raw::is_served(&address, &authority).await, "all strangers' places are taken");
    while let Some(after) = slow.join_next().await {
        let after = after.unwrap();
        assert!((Duration::from_secs(8)..Duration::from_secs(14)).contains(&after), "{after:?}");
    }
    assert!(raw::is_served(&address, &authority).await, "they gave their places back");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_gets_no_more_handshakes_than_calls() {
    let mut world = World::new(Terms::default());
    let limits = &mut world.deployment.config.limits;
    // One a second, and ten at once.
    (limits.calls_per_address, limits.proxies) = (1, vec![]);
    let coordinator = world.start().await;
    let (address, authority) = (coordinator.address().to_string(), world.authority.pem());
    let mut done = 0;
    for _ in 0..40 {
        done += u32::from(raw::connect(&address, &authority, &[]).await.is_ok());
    }
    assert!((10..30).contains(&done), "{done} handshakes");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(raw::connect(&address, &authority, &[]).await.is_ok(), "the rate has passed");
    coordinator.stop().await;
}
