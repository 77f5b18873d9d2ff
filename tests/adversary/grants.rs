//! Requests for the key of a release that must not be answered with one.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio_stream::StreamExt;
use unisono::coordinator::Coordinator;
use unisono::crypto::kdf::label;
use unisono::local::TASK;
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::signed;
use unisono::release::Release;
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::{GetReleaseRequest, GrantRequest, GrantRequestBody};

use crate::deployed::{CLIENTS, all, deployment, devices, finished, reason};

#[tokio::test(flavor = "multi_thread")]
async fn grants_asked_for_with_a_wrong_clock_key_name_or_signature() {
    let deployment = deployment(1);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await.unwrap();
    let mut events = coordinator.events();
    let endpoint = format!("http://{}", coordinator.address());
    let honest = devices(&deployment, &endpoint, 0..CLIENTS);
    finished(&mut events).await;
    all(honest).await;
    coordinator.trained().await.unwrap();
    let mut stub = CoordinatorClient::connect(endpoint).await.unwrap();
    let pieces =
        stub.get_release(GetReleaseRequest { model_id: TASK.into(), ..Default::default() }).await.unwrap().into_inner();
    let pieces: Vec<_> = pieces.collect::<Result<_, _>>().await.unwrap();
    let file: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.data).collect();
    let header_hash = Release::parse(&file).unwrap().header.hash.to_vec();

    let (device, other) = (deployment.device_keys(0), deployment.device_keys(1));
    let stranger = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
    let release_key = |keys: &DeviceKeys| keys.release_key.encapsulation_key().as_bytes().to_vec();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let body = GrantRequestBody {
        client_id: device.client_id.to_vec(),
        header_hash,
        release_key: release_key(&device),
        requested_at: now,
    };
    let by = |body: &GrantRequestBody, keys: &DeviceKeys| GrantRequest {
        request: Some(signed::sign(body, label::SIG_CLIENT_REQUEST, Some(&keys.signing_key))),
    };
    let with = |change: &dyn Fn(&mut GrantRequestBody)| {
        let mut body = body.clone();
        change(&mut body);
        body
    };
    let mut cut = by(&body, &device);
    cut.request.as_mut().unwrap().payload.truncate(20);
    let for_another_purpose = signed::sign(&body, label::SIG_ADVERT, Some(&device.signing_key));
    let requests = [
        // Recorded, or of a device whose clock is wrong.
        (by(&with(&|body| body.requested_at -= 600), &device), "clock"),
        (by(&with(&|body| body.requested_at += 600), &device), "clock"),
        (by(&with(&|body| body.requested_at = u64::MAX), &device), "clock"),
        // In another device's name, by another device; for another purpose; by nobody.
        (by(&body, &other), "signature"),
        (GrantRequest { request: Some(for_another_purpose) }, "signature"),
        (by(&with(&|body| body.client_id = stranger.client_id.to_vec()), &stranger), "unknown_client"),
        // For a key that the registrar did not see: whoever has stolen the identity key alone.
        (by(&with(&|body| body.release_key = release_key(&stranger)), &device), "release_key"),
        (by(&with(&|body| body.release_key = vec![0; 3]), &device), "release_key"),
        (by(&with(&|body| body.header_hash = vec![7; 32]), &device), "no_such_release"),
        (by(&with(&|body| body.client_id = vec![1; 3]), &device), "malformed"),
        (cut, "malformed"),
        (GrantRequest { request: None }, "malformed"),
    ];
    for (i, (request, expected)) in requests.into_iter().enumerate() {
        let status = stub.request_grant(request).await.unwrap_err();
        assert_eq!(reason(&status), expected, "request {i}: {status}");
    }
    let response = stub.request_grant(by(&body, &device)).await.unwrap().into_inner();
    assert!(response.grant.is_some() && response.roster_head.is_some());
    coordinator.stop().await;
}
