//! What a device is told when there is no TLS connection, and that it goes on when that is mended.

use super::certificates::write;
use super::*;

const DAY: i64 = 86_400;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_a_device_refuses_is_told_with_the_endpoint_and_what_to_do() {
    let refused = async |terms: Terms| {
        let world = World::new(terms);
        let coordinator = world.start().await;
        let endpoint = https(&coordinator);
        let (fault, text) = of_tls(fault(world.device(&endpoint, 0)).await);
        assert!(text.contains(&endpoint), "{text}");
        coordinator.stop().await;
        (fault, text)
    };
    let (expired, text) = refused(Terms { from: Some(-30 * DAY), until: Some(-DAY), ..Terms::default() }).await;
    assert!(expired == TlsFault::Expired && text.contains("renew"), "{text}");
    let (early, text) = refused(Terms { from: Some(DAY), ..Terms::default() }).await;
    assert!(early == TlsFault::NotYetValid && text.contains("clock"), "{text}");
    let (other, text) = refused(Terms { names: Some("other.example"), ..Terms::default() }).await;
    assert!(matches!(other, TlsFault::WrongName { .. }) && text.contains("other.example"), "{text}");
    // For clients, not for servers.
    let (purpose, text) = refused(Terms { client: true, ..Terms::default() }).await;
    assert!(matches!(purpose, TlsFault::Certificate(_)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_authority_that_a_device_was_given_is_trusted_or_else_the_public_ones() {
    let world = World::new(Terms::default());
    let coordinator = world.start().await;
    let endpoint = https(&coordinator);
    let stranger = Authority::new("stranger").pem();
    let device = builder(&world.deployment, &endpoint, 0);
    for device in [device, builder(&world.deployment, &endpoint, 0).certificate_authority(stranger)] {
        let (fault, text) = of_tls(fault(device).await);
        assert!(fault == TlsFault::UnknownIssuer && text.contains("certificate_authority"), "{text}");
    }
    // A certificate that nobody but itself has signed.
    let alone = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let folder = world.deployment.folder();
    let pair = certificates::Pair { certificate: alone.cert.pem(), key: alone.signing_key.serialize_pem() };
    coordinator.stop().await;
    pair.write(folder);
    let coordinator = world.start().await;
    let (fault, text) = of_tls(fault(world.device(&https(&coordinator), 0)).await);
    assert_eq!(fault, TlsFault::UnknownIssuer, "{text}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_tells_that_it_retries_and_goes_on_when_the_certificate_is_renewed() {
    let world = World::new(Terms { from: Some(-30 * DAY), until: Some(-DAY), ..Terms::default() });
    let coordinator = world.start().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let devices = world.devices(&https(&coordinator), |device| {
        let told = told.clone();
        device.on_event(move |event| {
            if let Event::Retrying { error, pause } = event {
                told.lock().unwrap().push((error.to_string(), *pause));
            }
        })
    });
    while told.lock().unwrap().len() < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.authority.issue(Terms::default()).write(world.deployment.folder());
    assert_eq!(all(devices).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    let told = told.lock().unwrap().clone();
    assert!(told.iter().take(20).all(|(text, _)| text.contains("has expired")), "{told:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_the_certificate_that_the_coordinator_asks_for_is_refused() {
    let mut world = World::new(Terms::default());
    let (ours, theirs) = (Authority::new("devices"), Authority::new("others"));
    let path = world.deployment.folder().join("devices.pem");
    write(&path, &ours.pem());
    world.deployment.config.tls.as_mut().unwrap().client_ca = Some(path);
    let coordinator = world.start().await;
    let endpoint = https(&coordinator);
    let (without, text) = of_tls(fault(world.device(&endpoint, 0)).await);
    assert!(matches!(without, TlsFault::ClientCertificate(_)) && text.contains("client_certificate"), "{text}");
    let of = |authority: &Authority, client| authority.issue(Terms { client, ..Terms::default() });
    // Another authority's; and one of the right authority that is for servers.
    for pair in [of(&theirs, true), of(&ours, false)] {
        let device = world.device(&endpoint, 0).client_certificate(pair.certificate, pair.key);
        let (refused, text) = of_tls(fault(device).await);
        assert!(matches!(refused, TlsFault::ClientCertificate(_)), "{text}");
    }
    let pair = of(&ours, true);
    let devices =
        world.devices(&endpoint, |device| device.client_certificate(pair.certificate.clone(), pair.key.clone()));
    assert_eq!(all(devices).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dials_the_wrong_scheme_is_told_the_right_one() {
    let world = World::new(Terms::default());
    let coordinator = world.start().await;
    let plain = builder(&world.deployment, &format!("http://{}", coordinator.address()), 0);
    let (fault_, text) = of_tls(fault(plain).await);
    assert!(fault_ == TlsFault::Plain && text.contains("https://"), "{text}");
    coordinator.stop().await;
    let mut config = world.deployment.config.clone();
    config.tls = None;
    let coordinator = Coordinator::start(config).await.unwrap();
    let (closed, text) = of_tls(fault(world.device(&https(&coordinator), 0)).await);
    assert!(closed == TlsFault::Closed && text.contains("speak no TLS"), "{text}");
    coordinator.stop().await;
}

/// A server that answers every connection with these bytes.
async fn server_that_says(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 4096];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut hello).await;
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_1_3_is_told_from_one_without_tls() {
    let world = World::new(Terms::default());
    let old = server_that_says(&[21, 3, 3, 0, 2, 2, 70]).await;
    assert_eq!(of_tls(fault(world.device(&old, 0)).await).0, TlsFault::Version);
    let http = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let (not_tls, text) = of_tls(fault(world.device(&http, 0)).await);
    assert!(not_tls == TlsFault::NotTls && text.contains("http://"), "{text}");
}

#[test]
fn a_device_whose_own_files_are_wrong_is_told_before_it_dials() {
    let (world, pair) = (World::new(Terms::default()), Authority::new("a").issue(Terms::default()));
    let device = || builder(&world.deployment, "https://127.0.0.1:1", 0);
    let error = |device: ClientBuilder| device.build(constant(0)).err().unwrap();
    let other = Authority::new("b").issue(Terms::default());
    for (device, words) in [
        (device().certificate_authority(""), "certificate authority"),
        (device().client_certificate(pair.certificate.clone(), ""), "no private key"),
        (device().client_certificate("", pair.key.clone()), "no certificate"),
        (device().client_certificate(pair.certificate.clone(), other.key.clone()), "not that of the certificate"),
    ] {
        let error = error(device);
        let text = error.to_string();
        assert!(matches!(error, Error::Certificate { .. }) && text.contains(words) && error.is_final(), "{text}");
    }
    let plain = builder(&world.deployment, "http://127.0.0.1:1", 0).certificate_authority(world.authority.pem());
    assert!(matches!(error(plain), Error::Endpoint { .. }));
}
