//! Models leave the coordinator sealed: who gets none, whatever he asks for and records.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::transport::Channel;
use unisono::client::{Event, TrainError, TrainingRound, Update};
use unisono::coordinator::{Config, Coordinator};
use unisono::crypto::kdf::label;
use unisono::local::{Deployment, TASK};
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::signed;
use unisono::registrar::Registrar;
use unisono::release::{Header, Issuers, ReleaseError, open_grant};
use unisono::wire::model::Model;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::{FileChunk, GetModelRequest, GetReleaseRequest, GrantRequest, GrantRequestBody};

use crate::deployed::{CLIENTS, all, builder, constant, deployment, finished, reason};
use crate::tap::{Tap, contains};

type Stub = CoordinatorClient<Channel>;

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A model of `count` elements of which no two are alike.
pub fn distinct(count: usize) -> Vec<u8> {
    let values: Vec<f32> =
        (0..count as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) % 65_521) as f32 / 1e5 + 0.01).collect();
    Model::new([("w", vec![count], values)]).unwrap().to_safetensors().unwrap()
}

/// Lets the deployment's task begin with that model.
pub fn begin_with(deployment: &mut Deployment, model: &[u8]) {
    let path = deployment.folder().join("distinct.safetensors");
    std::fs::write(&path, model).unwrap();
    deployment.config.task.initial_model = path;
}

/// A version of the model as the coordinator has it.
pub fn version(config: &Config, version: u64) -> Vec<u8> {
    std::fs::read(config.state_dir.join(format!("blobs/models/{TASK}/{version}/model.safetensors"))).unwrap()
}

/// Pieces of a model that would give it away.
pub fn pieces(model: &[u8]) -> impl Iterator<Item = &[u8]> {
    // After the header; short, so that no frame cuts them all.
    model[200..].chunks_exact(24).step_by(7)
}

/// A device that begins to train when it is told to.
pub fn held(
    i: u32,
    go: watch::Receiver<bool>,
) -> impl FnMut(&TrainingRound) -> Result<Update, TrainError> + Send + 'static {
    let mut train = constant(i);
    move |round: &TrainingRound| {
        while !*go.borrow() {
            std::thread::sleep(Duration::from_millis(10));
        }
        train(round)
    }
}

pub async fn all_of(chunks: Result<tonic::Response<tonic::Streaming<FileChunk>>, Status>) -> Result<Vec<u8>, Status> {
    let chunks: Vec<FileChunk> = chunks?.into_inner().collect::<Result<_, _>>().await?;
    Ok(chunks.into_iter().flat_map(|chunk| chunk.data).collect())
}

async fn get_model(stub: &mut Stub, version: u64) -> Result<Vec<u8>, Status> {
    all_of(stub.get_model(GetModelRequest { task: TASK.into(), version, ..Default::default() }).await).await
}

async fn get_release(stub: &mut Stub) -> Result<Vec<u8>, Status> {
    all_of(stub.get_release(GetReleaseRequest { model_id: TASK.into(), ..Default::default() }).await).await
}

fn body(keys: &DeviceKeys, header_hash: &[u8]) -> GrantRequestBody {
    GrantRequestBody {
        client_id: keys.client_id.to_vec(),
        header_hash: header_hash.to_vec(),
        release_key: keys.release_key.encapsulation_key().as_bytes().to_vec(),
        requested_at: now(),
    }
}

fn sign(body: &GrantRequestBody, keys: &DeviceKeys) -> GrantRequest {
    GrantRequest { request: Some(signed::sign(body, label::SIG_CLIENT_REQUEST, Some(&keys.signing_key))) }
}

async fn refused(stub: &mut Stub, request: GrantRequest) -> String {
    reason(&stub.request_grant(request).await.unwrap_err()).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eavesdropper_and_a_stranger_get_no_version_in_clear() {
    let mut deployment = deployment(2);
    begin_with(&mut deployment, &distinct(650));
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let tap = Tap::start(coordinator.address()).await;
    let mut stub = CoordinatorClient::connect(tap.endpoint.clone()).await.unwrap();
    let (go, wait) = watch::channel(false);
    let mut set = JoinSet::new();
    let (told, mut phases) = tokio::sync::mpsc::unbounded_channel();
    for i in 0..CLIENTS {
        let told = told.clone();
        let observe = move |event: &Event<'_>| {
            if let Event::Joined { round } = event {
                let _ = told.send(*round);
            }
        };
        let mut client = builder(&deployment, &tap.endpoint, i).on_event(observe).build(held(i, wait.clone())).unwrap();
        set.spawn(async move { client.run().await });
    }
    phases.recv().await.unwrap();
    // What a stranger gets while round 1 is open: the file, sealed, of its base model alone.
    let base = get_model(&mut stub, 0).await.unwrap();
    let header = Header::of_file(&base).unwrap().unwrap();
    assert_eq!((header.fields.version, header.file_len()), (0, base.len() as u64));
    for other in [1, 2, u64::MAX] {
        assert_eq!(reason(&get_model(&mut stub, other).await.unwrap_err()), "no_such_model", "version {other}");
    }
    let stranger = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    let asked = sign(&body(&stranger, &header.hash), &stranger);
    assert_eq!(refused(&mut stub, asked).await, "unknown_client");
    go.send(true).unwrap();
    for _ in 0..2 {
        finished(&mut events).await;
    }
    all(set).await;
    coordinator.trained().await.unwrap();
    // Afterwards: the released one, sealed; no base model.
    let release = get_release(&mut stub).await.unwrap();
    for version in 0..=2 {
        assert_eq!(reason(&get_model(&mut stub, version).await.unwrap_err()), "no_such_model", "version {version}");
    }
    let mut device = builder(&deployment, &tap.endpoint, 0).build(constant(0)).unwrap();
    let opened = device.open_release(TASK, 1 << 20).await.unwrap();
    assert!(*opened.plaintext == version(&deployment.config, 2), "the enrolled device has it");

    assert!(tap.saw(&base[1000..1100]) && tap.saw(&release[1000..1100]), "the wire is recorded");
    for number in 0..=2 {
        let model = version(&deployment.config, number);
        assert!(pieces(&model).count() > 10);
        for piece in pieces(&model) {
            assert!(contains(&model, piece) && !tap.saw(piece), "a piece of version {number} went over the wire");
            assert!(!contains(&base, piece) && !contains(&release, piece));
        }
    }
    coordinator.stop().await;
}

/// Takes device `i` out of the roster.
fn revoke(deployment: &Deployment, i: u32) {
    let mut registrar = Registrar::open(&deployment.folder().join("registrar")).unwrap();
    registrar.revoke(deployment.device_keys(i).client_id, now()).unwrap();
    let coordinator = deployment.config.round_keys().unwrap().unwrap().signing_key.verifying_key();
    let publisher = deployment.config.release_keys().unwrap().unwrap().publisher.verifying_key();
    let roster = registrar.publish(&[coordinator], &[publisher], now()).unwrap();
    unisono::files::replace(&deployment.folder().join("roster.bin"), &roster.to_bytes().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_of_the_cohort_get_the_base_model_and_only_of_the_round_at_hand() {
    let mut deployment = deployment(1);
    deployment.config.round.n_min = 4;
    begin_with(&mut deployment, &distinct(650));
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let endpoint = format!("http://{}", coordinator.address());
    let mut stub = CoordinatorClient::connect(endpoint.clone()).await.unwrap();
    let keys: Vec<DeviceKeys> = (0..CLIENTS).map(|i| deployment.device_keys(i)).collect();
    let base = loop {
        match get_model(&mut stub, 0).await {
            Ok(base) => break base,
            Err(status) => assert_eq!(reason(&status), "starting"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let header = Header::of_file(&base).unwrap().unwrap();
    let ask = |device: &DeviceKeys| sign(&body(device, &header.hash), device);
    // Enrolled, and the round has no cohort yet.
    assert_eq!(refused(&mut stub, ask(&keys[0])).await, "not_granted");

    let (go, wait) = watch::channel(false);
    let mut set = JoinSet::new();
    let (told, mut phases) = tokio::sync::mpsc::unbounded_channel();
    for i in 0..4 {
        let told = told.clone();
        let observe = move |event: &Event<'_>| {
            if let Event::Phase { phase, .. } = event {
                let _ = told.send((i, *phase as u32));
            }
        };
        let mut client = builder(&deployment, &endpoint, i).on_event(observe).build(held(i, wait.clone())).unwrap();
        set.spawn(async move { client.run().await });
    }
    // All wait for the masking phase: they have the base model, the one that is revoked below too.
    let mut masking = BTreeSet::new();
    while masking.len() < 4 {
        let (device, phase) = phases.recv().await.unwrap();
        if phase >= 2 {
            masking.insert(device);
        }
    }

    // A member: two requests, and one of them again, give one grant; the second time without its signature being looked at.
    let request = ask(&keys[0]);
    let first = stub.request_grant(request.clone()).await.unwrap().into_inner();
    let again = stub.request_grant(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again, "a request that is sent again, by whomever, makes no second grant");
    let anew = stub.request_grant(ask(&keys[0])).await.unwrap().into_inner();
    assert_eq!(first.grant, anew.grant);
    // Whoever recorded it can't open it.
    let head =
        unisono::protocol::roster::Head::verify(first.roster_head.as_ref().unwrap(), &deployment.registrar).unwrap();
    let grant = first.grant.unwrap();
    let opened = |keys: &DeviceKeys, id| {
        let issuers = Issuers::Keys(&head.coordinator_keys);
        open_grant(&grant, &header, id, &keys.release_key, issuers, head.epoch).err()
    };
    assert_eq!(opened(&keys[0], keys[0].client_id.0), None);
    assert_eq!(opened(&keys[1], keys[1].client_id.0), Some(ReleaseError::GrantOfAnotherDevice));
    assert_eq!(opened(&keys[1], keys[0].client_id.0), Some(ReleaseError::GrantOfAnotherKey));
    // The coordinator alone issues it, not the publisher.
    let by_publisher = Issuers::Keys(&head.publisher_keys);
    let result = open_grant(&grant, &header, keys[0].client_id.0, &keys[0].release_key, by_publisher, 0).err();
    assert_eq!(result, Some(ReleaseError::GrantSignature));

    // Enrolled, yet not in the cohort.
    assert_eq!(refused(&mut stub, ask(&keys[4])).await, "not_a_member");
    // A stranger, with a signature of its own and with a member's: its name decides, before any signature.
    let stranger = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    assert_eq!(refused(&mut stub, ask(&stranger)).await, "unknown_client");
    assert_eq!(refused(&mut stub, sign(&body(&stranger, &header.hash), &keys[1])).await, "unknown_client");
    // In a member's name: by another member, with a changed request, for a key of one's own.
    let of_one = body(&keys[1], &header.hash);
    assert_eq!(refused(&mut stub, sign(&of_one, &keys[2])).await, "signature");
    let mut changed = sign(&of_one, &keys[1]);
    let signed = changed.request.as_mut().unwrap();
    signed.payload = GrantRequestBody { requested_at: of_one.requested_at - 1, ..of_one.clone() }.encode_to_vec();
    assert_eq!(refused(&mut stub, changed).await, "signature");
    let own_key = GrantRequestBody { release_key: body(&stranger, &[]).release_key, ..of_one.clone() };
    assert_eq!(refused(&mut stub, sign(&own_key, &keys[1])).await, "release_key");
    assert_eq!(refused(&mut stub, sign(&body(&keys[1], &[7; 32]), &keys[1])).await, "no_such_release");
    let recorded = GrantRequestBody { requested_at: now() - 301, ..of_one };
    assert_eq!(refused(&mut stub, sign(&recorded, &keys[1])).await, "clock");
    // Revoked while the round runs.
    stub.request_grant(ask(&keys[3])).await.unwrap();
    revoke(&deployment, 3);
    assert_eq!(refused(&mut stub, ask(&keys[3])).await, "unknown_client");
    let newer = stub.request_grant(request.clone()).await.unwrap().into_inner();
    assert_ne!(newer.grant.unwrap(), grant, "a newer roster, a newer grant");

    go.send(true).unwrap();
    all(set).await;
    coordinator.trained().await.unwrap();
    // The round is over: its base model is nobody's, and the request of then, answered before, is answered no more.
    for request in [request, ask(&keys[0])] {
        let reason = refused(&mut stub, request).await;
        assert!(["not_granted", "no_such_release"].contains(&reason.as_str()), "{reason}");
    }
    coordinator.stop().await;
}
