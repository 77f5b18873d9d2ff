//! The trained model goes out: sealed and signed once, granted to each enrolled device that asks.

use std::sync::{Arc, Mutex, PoisonError};

use getrandom::SysRng;
use prost::Message;
use rand_core::UnwrapErr;
use tonic::Status;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::EncapsulationKey;
use unisono_protocol::ClientId;
use unisono_protocol::roster::release_key_hash;
use unisono_release::proto::{PayloadType, Provenance, ProvenanceMode, ReleaseHeader};
use unisono_release::{ContentKey, Header, Recipient, Release, grant, seal};
use unisono_wire::proto::{GrantRequest, GrantRequestBody, GrantResponse};

use crate::gate::Caller;
use crate::sampled::REFUSALS;
use crate::service::refuse;
use crate::storage::{FinishedRound, StoredRelease};
use crate::{CoordinatorError, Event, Shared, StoreError, now};

/// Seconds by which a request's time may differ from the coordinator's.
const MAX_SKEW: u64 = 300;
/// The keyring's only key so far.
const KEY_ID: &str = "default";

/// Seals and signs the model of the last round, unless that was done before.
pub(crate) async fn release(shared: &Shared, last: Option<&FinishedRound>) -> Result<(), CoordinatorError> {
    let (Some(config), Some(keys), Some(last)) = (&shared.config.release, &shared.release_keys, last) else {
        return Ok(());
    };
    let previous = shared.store.latest_release(&config.model_id).await?;
    if previous.as_ref().is_some_and(|previous| previous.model_version == last.model_version) {
        return Ok(());
    }
    let task = &shared.config.task.name;
    let damaged = || StoreError::Damaged(format!("version {} of the model is missing", last.model_version));
    let model = shared.store.get_model(task, last.model_version).await?.ok_or_else(damaged)?;
    let roster_epoch = shared.roster().await?.map_or(0, |roster| roster.head().epoch);
    let mode = if shared.config.malicious() { ProvenanceMode::Malicious } else { ProvenanceMode::SemiHonest };
    let created_at = now();
    let fields = ReleaseHeader {
        model_id: config.model_id.clone(),
        version: previous.as_ref().map_or(0, |previous| previous.version) + 1,
        previous: previous.map(|previous| previous.header_hash.to_vec()).unwrap_or_default(),
        created_at,
        not_after: created_at + config.valid_days * 86_400,
        payload_type: PayloadType::Safetensors as i32,
        key_id: KEY_ID.into(),
        key_version: 1,
        roster_epoch,
        provenance: Some(Provenance {
            task: task.clone(),
            round_id: last.round_id.to_vec(),
            clients: last.survivors,
            drop_outs: last.cohort - last.survivors,
            mode: mode as i32,
        }),
        ..ReleaseHeader::default()
    };
    let rng = &mut UnwrapErr(SysRng);
    let key = ContentKey::random(rng);
    let (file, header) = seal(fields, &model, &key, &keys.publisher, rng)?;
    let stored = StoredRelease {
        model_id: config.model_id.clone(),
        version: header.fields.version,
        header_hash: header.hash,
        wrapped_key: keys.key_encryption_key.wrap(&key, &header.hash)?,
        model_version: last.model_version,
    };
    let length = file.len();
    shared.store.put_release(&stored, file).await?;
    tracing::info!(model_id = stored.model_id, version = stored.version, length, "model released");
    shared.emit(Event::Released { model_id: stored.model_id, version: stored.version, length });
    Ok(())
}

/// Releases whose headers are kept.
const MOST_HEADERS: usize = 8;

/// Headers of releases for which grants were asked: the file is read once, not for each grant.
#[derive(Default)]
pub(crate) struct Headers(Mutex<Vec<Arc<(StoredRelease, Header)>>>);

impl Headers {
    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Arc<(StoredRelease, Header)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The release with the given header hash, if there is one.
    async fn get(&self, shared: &Shared, hash: &[u8]) -> Result<Option<Arc<(StoredRelease, Header)>>, Status> {
        if let Some(known) = self.kept().iter().find(|known| known.0.header_hash == hash) {
            return Ok(Some(known.clone()));
        }
        let store = |error: StoreError| refuse(tonic::Code::Unavailable, "storage", &error);
        let Some(stored) = shared.store.release_by_header(hash).await.map_err(store)? else { return Ok(None) };
        let file = shared.store.release_file(&stored).await.map_err(store)?;
        let internal = |e: unisono_release::ReleaseError| refuse(tonic::Code::Internal, "release", &e);
        let header = Release::parse(&file).map_err(internal)?.header;
        let found = Arc::new((stored, header));
        let mut kept = self.kept();
        if kept.len() >= MOST_HEADERS {
            kept.remove(0);
        }
        kept.push(found.clone());
        Ok(Some(found))
    }
}

/// Checks a device's request and issues its grant: who it is by its id, by its signature, then what it asks for.
pub(crate) async fn issue(shared: &Shared, caller: &Caller, request: &GrantRequest) -> Result<GrantResponse, Status> {
    let no_releases = || refuse(tonic::Code::FailedPrecondition, "no_releases", &"this coordinator releases no models");
    let keys = shared.release_keys.as_ref().ok_or_else(no_releases)?;
    let round_keys = shared.round_keys.as_ref().ok_or_else(no_releases)?;
    let malformed = |why: &dyn ToString| refuse(tonic::Code::InvalidArgument, "malformed", &why.to_string());
    let signed = request.request.as_ref().ok_or_else(|| malformed(&"there is no signed request"))?;
    let body = GrantRequestBody::decode(signed.payload.as_slice()).map_err(|e| malformed(&e))?;
    let client = ClientId::from_slice(&body.client_id).ok_or_else(|| malformed(&"the client id has no 16 bytes"))?;
    // The roster as it is now: a revoked device gets no grant.
    let no_roster = |error: &dyn std::fmt::Display| {
        if REFUSALS.admits(None, "no grant") {
            tracing::error!(%error, "no grant can be issued");
        }
        refuse(tonic::Code::Unavailable, "roster", &"the coordinator has no roster that it can use; try again")
    };
    let roster = shared.rosters.newest_soon(round_keys).await.ok_or_else(|| no_roster(&"no roster is in force"))?;
    let epoch = roster.head().epoch;
    let unknown = || {
        let why = format!("the roster of epoch {epoch} has no client {client}: never enrolled, or revoked");
        refuse(tonic::Code::PermissionDenied, "unknown_client", &why)
    };
    let leaf = roster.leaf(client).map_err(|error| {
        shared.rosters.doubt();
        no_roster(&error)
    })?;
    let leaf = leaf.ok_or_else(unknown)?;
    leaf.check_validity(now()).map_err(|e| refuse(tonic::Code::PermissionDenied, "expired_client", &e))?;
    shared.gate.device(caller, client)?;
    let verified = leaf.identity_key.verify(label::SIG_CLIENT_REQUEST, &signed.payload, &signed.signature);
    verified.map_err(|e| refuse(tonic::Code::PermissionDenied, "signature", &e))?;
    caller.authenticated();
    if now().abs_diff(body.requested_at) > MAX_SKEW {
        let why = format!("the request is of {}, it is {}: set the device's clock", body.requested_at, now());
        return Err(refuse(tonic::Code::InvalidArgument, "clock", &why));
    }
    if release_key_hash(&body.release_key) != leaf.release_key_hash {
        let why = "the release key is not the enrolled one: enrol the device again";
        return Err(refuse(tonic::Code::PermissionDenied, "release_key", &why));
    }
    let key = EncapsulationKey::from_bytes(&body.release_key).map_err(|e| malformed(&e))?;
    let release = shared.headers.get(shared, &body.header_hash).await?;
    let release =
        release.ok_or_else(|| refuse(tonic::Code::NotFound, "no_such_release", &"there is no such release"))?;
    let (stored, header) = &*release;
    let internal = |e: unisono_release::ReleaseError| refuse(tonic::Code::Internal, "release", &e);
    let content = keys.key_encryption_key.unwrap(&stored.wrapped_key, &stored.header_hash).map_err(internal)?;
    let recipient = Recipient { client_id: client.0, key, roster_epoch: epoch };
    let rng = &mut UnwrapErr(SysRng);
    let grant = tokio::task::block_in_place(|| grant(header, &content, &recipient, &keys.publisher, rng));
    Ok(GrantResponse { grant: Some(grant.map_err(internal)?), roster_head: Some(roster.signed_head().clone()) })
}
