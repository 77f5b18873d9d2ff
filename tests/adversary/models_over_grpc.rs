//! Sealed models over real connections: a coordinator that lies about them, a wire that breaks, and the token of semi-honest mode.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use getrandom::SysRng;
use prost::Message;
use rand_core::UnwrapErr;
use tokio::sync::watch;
use tokio::task::JoinSet;
use unisono::client::{Client, ClientBuilder, Error, Event, Retry, Summary};
use unisono::coordinator::config::Mode;
use unisono::coordinator::{Coordinator, CoordinatorError};
use unisono::crypto::kem::EncapsulationKey;
use unisono::crypto::secret::Secret32;
use unisono::crypto::sign::SigningKey;
use unisono::local::{Deployment, TASK};
use unisono::protocol::client::ClientError;
use unisono::protocol::policy::Policy;
use unisono::protocol::server::Phase;
use unisono::release::proto::{PayloadType, ReleaseHeader, SealedKind, SignedGrant};
use unisono::release::{ContentKey, Header, Issuer, Recipient, ReleaseError, Token, grant, seal};
use unisono::wire::proto::{GrantRequest, GrantRequestBody, GrantResponse};

use crate::deployed::{CLIENTS, all, builder, constant, deployment, devices, finished};
use crate::models::{begin_with, distinct, held, now, pieces, version};
use crate::over_grpc::{Attacked, attack_in, coordinator_key, patient};
use crate::proxy::{Lie, Proxy};
use crate::tap::Tap;

/// A file of the liar's own, and what it takes to grant it.
struct Own {
    file: Vec<u8>,
    header: Header,
    key: ContentKey,
}

fn own(fields: ReleaseHeader, payload: &[u8], signer: &SigningKey) -> Own {
    let rng = &mut UnwrapErr(SysRng);
    let key = ContentKey::random(rng);
    let (file, header) = seal(fields, payload, &key, Some(signer), rng).unwrap();
    Own { file, header, key }
}

fn fields(kind: SealedKind, version: u64) -> ReleaseHeader {
    ReleaseHeader {
        kind: kind as i32,
        model_id: TASK.into(),
        version,
        created_at: now(),
        not_after: u64::MAX,
        payload_type: PayloadType::Safetensors as i32,
        key_id: "default".into(),
        key_version: 1,
        roster_epoch: 1,
        ..ReleaseHeader::default()
    }
}

impl Own {
    /// A grant of it for the device that asks.
    fn grant(&self, request: &GrantRequest, issuer: &SigningKey) -> SignedGrant {
        let body = GrantRequestBody::decode(request.request.as_ref().unwrap().payload.as_slice()).unwrap();
        let recipient = Recipient {
            client_id: body.client_id.as_slice().try_into().unwrap(),
            key: EncapsulationKey::from_bytes(&body.release_key).unwrap(),
            roster_epoch: 1,
        };
        grant(&self.header, &self.key, &recipient, Issuer::Key(issuer), &mut UnwrapErr(SysRng)).unwrap()
    }
}

/// A liar with the coordinator's key serves `file`, and grants `granted` under `issuer`.
fn serves(deployment: &Deployment, file: &Own, granted: Own, issuer: SigningKey) -> Lie {
    let roster = deployment.config.round_keys().unwrap().unwrap().read_roster().unwrap();
    let (file, roster_head) = (file.file.clone(), Some(roster.signed_head().clone()));
    Lie::Models {
        file: Box::new(move |genuine| genuine.clone_from(&file)),
        grant: Box::new(move |request| {
            let grant = Some(granted.grant(request, &issuer));
            Some(GrantResponse { grant, roster_head: roster_head.clone() })
        }),
    }
}

/// The device leaves the round with nothing but its advert sent, and says why.
fn refused(attacked: Attacked) -> Error {
    assert_eq!((attacked.sent, attacked.uploaded), (vec![Phase::Advertise], false), "no shares, no input");
    attacked.error
}

fn refusal(attacked: Attacked) -> ReleaseError {
    match refused(attacked) {
        Error::Release(refusal) => refusal,
        error => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_model_that_was_changed_on_the_way() {
    let changed = |at: fn(&mut Vec<u8>)| Lie::Models { file: Box::new(at), grant: Box::new(|_| None) };
    let signature = attack_in(patient(), changed(|file| *file.last_mut().unwrap() ^= 1)).await;
    assert_eq!(refusal(signature), ReleaseError::Signature);
    let body = attack_in(patient(), changed(|file| file[1000] ^= 1)).await;
    assert_eq!(refusal(body), ReleaseError::BodyChanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_base_model_or_version_sealed_by_the_coordinator_for_one_client() {
    let payload = distinct(650);
    let lying = async |fields: ReleaseHeader| {
        let deployment = patient();
        let key = coordinator_key(&deployment);
        let file = own(fields, &payload, &key);
        let granted = Own { file: Vec::new(), header: file.header.clone(), key: file.key.clone() };
        let lie = serves(&deployment, &file, granted, key);
        attack_in(deployment, lie).await
    };
    // Of the right version, with another content: the round's parameters name the hash.
    let other = refused(lying(fields(SealedKind::BaseModel, 0)).await);
    assert!(matches!(other, Error::ModelHash { version: 0 }), "{other}");
    let version = refusal(lying(fields(SealedKind::BaseModel, 7)).await);
    assert_eq!(version, ReleaseError::WrongVersion { got: 7, expected: 0 });
    let release = refusal(lying(fields(SealedKind::Release, 1)).await);
    assert_eq!(release, ReleaseError::WrongKind { got: 0, expected: 1 });
    let task = ReleaseHeader { model_id: "letters".into(), ..fields(SealedKind::BaseModel, 0) };
    assert!(matches!(refusal(lying(task).await), ReleaseError::WrongModel { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_model_or_grant_by_another_key_and_a_grant_of_another_version() {
    let payload = distinct(650);
    let base = || fields(SealedKind::BaseModel, 0);
    let lying = async |file_by: fn(&Deployment) -> SigningKey, grant_by: fn(&Deployment) -> SigningKey, same: bool| {
        let deployment = patient();
        let file = own(base(), &payload, &file_by(&deployment));
        let granted = match same {
            true => Own { file: Vec::new(), header: file.header.clone(), key: file.key.clone() },
            false => own(fields(SealedKind::BaseModel, 1), &payload, &file_by(&deployment)),
        };
        let lie = serves(&deployment, &file, granted, grant_by(&deployment));
        refusal(attack_in(deployment, lie).await)
    };
    let publisher = |deployment: &Deployment| deployment.config.release_keys().unwrap().unwrap().publisher;
    assert_eq!(lying(publisher, coordinator_key, true).await, ReleaseError::OtherPublisher);
    assert_eq!(lying(coordinator_key, publisher, true).await, ReleaseError::GrantSignature);
    assert_eq!(lying(coordinator_key, coordinator_key, false).await, ReleaseError::GrantOfAnotherRelease);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_older_or_another_one_of_its_version() {
    let deployment = deployment(1);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    all(devices(&deployment, &endpoint, 0..CLIENTS)).await;
    coordinator.trained().await.unwrap();
    let publisher = || deployment.config.release_keys().unwrap().unwrap().publisher;
    let payload = distinct(650);
    let lying = async |version| {
        let file = own(fields(SealedKind::Release, version), &payload, &publisher());
        let granted = Own { file: Vec::new(), header: file.header.clone(), key: file.key.clone() };
        let lie = serves(&deployment, &file, granted, publisher());
        let (proxied, _, serving) = Proxy::start(&endpoint, lie).await;
        let mut device = builder(&deployment, &proxied, 0).build(constant(0)).unwrap();
        let result = device.open_release(TASK, 1 << 20).await;
        serving.abort();
        result.err().map(|error| match error {
            Error::Release(refusal) => refusal,
            error => panic!("{error}"),
        })
    };
    let mut device = builder(&deployment, &endpoint, 0).build(constant(0)).unwrap();
    device.open_release(TASK, 1 << 20).await.unwrap();
    device.open_release(TASK, 1 << 20).await.unwrap();
    drop(device);
    // An old head still names publishers that were revoked since: a device may demand a newer one.
    let policy = Policy { n_min: deployment.n_min, min_roster_epoch: 2, ..Policy::default() };
    let mut demanding = builder(&deployment, &endpoint, 1).policy(policy).build(constant(1)).unwrap();
    let error = demanding.open_release(TASK, 1 << 20).await.err().unwrap();
    let Error::Protocol(why) = &error else { panic!("{error}") };
    assert_eq!(**why, ClientError::StaleRoster { epoch: 1, seen: 2 });
    // What it opened is in its record, over restarts.
    let model_id = || TASK.to_owned();
    assert_eq!(lying(1).await, Some(ReleaseError::AnotherOfThisVersion { model_id: model_id(), version: 1 }));
    assert_eq!(lying(2).await, Some(ReleaseError::BrokenChain { model_id: model_id(), version: 2 }));
    assert_eq!(lying(5).await, None, "a publisher may release what it likes");
    let genuine = builder(&deployment, &endpoint, 0).build(constant(0)).unwrap().open_release(TASK, 1 << 20).await;
    assert!(matches!(genuine, Err(Error::Release(ReleaseError::OlderVersion { got: 1, minimum: 5, .. }))));
    coordinator.stop().await;
}

/// The wire of one device breaks in the middle of a large base model, and the coordinator restarts: bytes that the device got
/// after that, and the length of the file.
async fn broken(mut deployment: Deployment) -> (u64, u64) {
    let model = distinct(1_000_000);
    begin_with(&mut deployment, &model);
    deployment.config.round.chunk_elements = 65_536;
    deployment.config.round.straggler_grace_ms = None;
    let port = SocketAddr::from(([127, 0, 0, 1], crate::deployed::free_port()));
    deployment.config.listen = port;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let (tap, others) = (Tap::start(port).await, Tap::start(port).await);
    tap.cut_at(2 << 20);
    let (go, wait) = watch::channel(false);
    let mut set = JoinSet::new();
    for i in 0..CLIENTS {
        let endpoint = if i == 4 { &tap.endpoint } else { &others.endpoint };
        let tell = move |event: &Event<'_>| {
            if let Event::Missed { error, .. } = event {
                eprintln!("device {i}: {error}");
            }
        };
        let mut client = builder(&deployment, endpoint, i).on_event(tell).build(held(i, wait.clone())).unwrap();
        set.spawn(async move { client.run().await });
    }
    tap.cut.notified().await;
    coordinator.stop().await;
    tap.hang_up();
    others.hang_up();
    let before = tap.down.load(Ordering::SeqCst);
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    go.send(true).unwrap();
    assert_eq!(finished(&mut events).await.outcome.survivors.len(), 5);
    assert_eq!(all(set).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
    (tap.down.load(Ordering::SeqCst) - before, model.len() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_broke_over_a_restart_of_the_coordinator() {
    let (after, length) = broken(deployment(1)).await;
    assert!(after < length, "{after} of {length} bytes came again");
    // Without a key-encryption key, content keys are not kept: the file is sealed anew, and fetched from its beginning.
    let mut deployment = deployment(1);
    deployment.config.release = None;
    let (after, length) = broken(deployment).await;
    assert!(after > length, "{after} of {length} bytes");
}

/// A deployment in semi-honest mode, and the text of its token.
fn semi_honest(rounds: u64) -> (Deployment, String) {
    let mut deployment = deployment(rounds);
    deployment.config.round.mode = Mode::SemiHonest;
    // On a busy machine, too, everybody comes in time.
    deployment.config.round.straggler_grace_ms = Some(5_000);
    let text = Token::text(&Secret32::random(&mut UnwrapErr(SysRng))).to_string();
    let path = deployment.folder().join("token.key");
    unisono::files::create(&path, text.as_bytes()).unwrap();
    deployment.config.token = Some(path);
    begin_with(&mut deployment, &distinct(650));
    (deployment, text)
}

fn member(deployment: &Deployment, endpoint: &str, i: u32, token: Option<&str>) -> ClientBuilder {
    let retry = Retry { max_pause: Duration::from_millis(300), ..Retry::default() };
    let policy = Policy { n_min: deployment.n_min, min_interval_s: 0, allow_semi_honest: true, ..Policy::default() };
    let builder =
        Client::builder(endpoint, TASK, deployment.device_keys(i)).policy(policy).retry(retry).max_failures(0);
    match token {
        Some(token) => builder.token(Token::from_text(token).unwrap()),
        None => builder,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_semi_honest_mode_the_token_opens_models_and_is_never_sent() {
    let (deployment, token) = semi_honest(2);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let tap = Tap::start(coordinator.address()).await;
    let mut set = JoinSet::new();
    for i in 0..CLIENTS {
        let mut client = member(&deployment, &tap.endpoint, i, Some(&token)).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    assert_eq!(all(set).await, vec![Summary { completed: 2, missed: 0, declined: 0 }; 5]);
    coordinator.trained().await.unwrap();
    let open = async |token: Option<&str>| {
        let mut client = member(&deployment, &tap.endpoint, 0, token).build(constant(0)).unwrap();
        client.open_release(TASK, 1 << 20).await
    };
    assert!(*open(Some(&token)).await.unwrap().plaintext == version(&deployment.config, 2));
    let wrong = "0123456789abcdef0123456789abcdef";
    let error = open(Some(wrong)).await.err().unwrap();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason == "token") && error.is_final(), "{error}");
    assert!(matches!(open(None).await, Err(Error::NoAuthority)));
    for number in 0..=2 {
        for piece in pieces(&version(&deployment.config, number)) {
            assert!(!tap.saw(piece), "a piece of version {number} went over the wire");
        }
    }
    let raw: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&token[2 * i..2 * i + 2], 16).unwrap()).collect();
    assert!(!tap.saw(token.trim().as_bytes()) && !tap.saw(&raw));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_semi_honest_mode_nobody_without_the_token_gets_a_base_model() {
    let (mut deployment, token) = semi_honest(1);
    deployment.config.round.n_min = 4;
    let coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let mut set = JoinSet::new();
    for i in 0..4 {
        let mut client = member(&deployment, &endpoint, i, Some(&token)).build(constant(i)).unwrap();
        set.spawn(async move { client.run().await });
    }
    let mut impostor =
        member(&deployment, &endpoint, 4, Some("0123456789abcdef0123456789abcdef")).build(constant(4)).unwrap();
    let error = impostor.run().await.unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason == "token"), "{error}");
    assert_eq!(finished(&mut events).await.outcome.survivors.len(), 4);
    all(set).await;
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_in_semi_honest_mode_does_not_start_without_a_token() {
    let (mut deployment, _) = semi_honest(1);
    let path = deployment.config.token.take().unwrap();
    let error = async |config: &unisono::coordinator::Config| match Coordinator::start(config.clone()).await.err() {
        Some(CoordinatorError::Config(error)) => error.to_string(),
        other => panic!("{}", other.is_some()),
    };
    assert!(error(&deployment.config).await.contains("unisono keys token"));
    for (text, words) in [("00112233", "128"), ("hunter2", "hexadecimal"), ("", "hexadecimal")] {
        unisono::files::replace(&path, text.as_bytes()).unwrap();
        deployment.config.token = Some(path.clone());
        let told = error(&deployment.config).await;
        assert!(told.contains(words) && (text.is_empty() || !told.contains(text)), "{told}");
    }
}
