//! Models leave sealed: the base model of the round at hand, and the trained one at the end. Each is sealed once, one file for all;
//! `grants` gives its key to each device that may have it.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use getrandom::SysRng;
use rand_core::UnwrapErr;
use tonic::{Code, Status};
use unisono_protocol::params::RoundParams;
use unisono_release::proto::{PayloadType, Provenance, ProvenanceMode, ReleaseHeader, SealedKind};
use unisono_release::{ContentKey, Header, publisher_id, seal};
use unisono_wire::model::{Model, Released, model_hash};
use unisono_wire::proto::{GetModelRequest, GetReleaseRequest};

use crate::grants::Grants;
use crate::service::{refuse, storage};
use crate::storage::{FinishedRound, StoredFile, StoredSeal};
use crate::{CoordinatorError, Event, Shared, Stage, StoreError, now};

/// Releases whose headers are kept.
const MOST_HEADERS: usize = 8;

/// A sealed model with its header.
pub(crate) struct Sealed {
    pub stored: StoredSeal,
    pub header: Header,
}

/// The sealed models that are asked for: their headers are read once, not for each grant.
#[derive(Default)]
pub(crate) struct Models {
    /// The base model of the round at hand, or of the last one.
    base: Mutex<Option<Arc<Sealed>>>,
    /// Releases for which grants were asked.
    releases: Mutex<Vec<Arc<Sealed>>>,
    pub grants: Grants,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Models {
    fn base(&self) -> Option<Arc<Sealed>> {
        lock(&self.base).clone()
    }

    /// The model with this header, if it is one of those that are kept.
    pub fn kept(&self, header_hash: &[u8]) -> Option<Arc<Sealed>> {
        let is = |sealed: &&Arc<Sealed>| sealed.stored.header_hash == header_hash;
        self.base().filter(|sealed| is(&sealed)).or_else(|| lock(&self.releases).iter().find(is).cloned())
    }

    /// The release with this header, if there is one. An older base model is not found.
    pub async fn release(&self, shared: &Shared, header_hash: &[u8]) -> Result<Option<Arc<Sealed>>, StoreError> {
        let stored = shared.store.sealed_by_header(header_hash).await?;
        let Some(stored) = stored.filter(|stored| stored.kind == SealedKind::Release) else { return Ok(None) };
        let header = shared.store.sealed_header(&stored).await?;
        let found = Arc::new(Sealed { stored, header });
        let mut releases = lock(&self.releases);
        // Another call may have been faster.
        if let Some(known) = releases.iter().find(|known| known.stored.header_hash == header_hash) {
            return Ok(Some(known.clone()));
        }
        if releases.len() >= MOST_HEADERS {
            releases.remove(0);
        }
        releases.push(found.clone());
        Ok(Some(found))
    }
}

/// Fields that every header has.
fn fields(shared: &Shared, kind: SealedKind, model_id: &str, version: u64, roster_epoch: u64) -> ReleaseHeader {
    let (key_id, key_version) = shared.content_keys.active();
    ReleaseHeader {
        kind: kind as i32,
        model_id: model_id.to_owned(),
        version,
        created_at: now(),
        payload_type: PayloadType::Safetensors as i32,
        key_id,
        key_version,
        roster_epoch,
        ..ReleaseHeader::default()
    }
}

/// Seals a version of the task's model under a fresh content key, and stores it.
async fn seal_and_store(
    shared: &Shared,
    fields: ReleaseHeader,
    model_version: u64,
) -> Result<(Sealed, usize), CoordinatorError> {
    let damaged = || StoreError::Damaged(format!("version {model_version} of the model is missing"));
    let model = shared.store.get_model(&shared.config.task.name, model_version).await?.ok_or_else(damaged)?;
    let kind = fields.kind();
    let signer = match kind {
        SealedKind::Release => shared.release_keys.as_ref().map(|keys| &keys.publisher),
        SealedKind::BaseModel => shared.round_keys.as_ref().map(|keys| &keys.signing_key),
    };
    let (file, header, key, model_hash) = crate::in_place(|| {
        let rng = &mut UnwrapErr(SysRng);
        let key = ContentKey::random(rng);
        let payload = match kind {
            SealedKind::Release => {
                let Released { file, beyond } = Model::released(&model)?;
                if beyond > 0 {
                    tracing::warn!(
                        model_version,
                        beyond,
                        "elements beyond their type's range are released as its largest number"
                    );
                }
                file
            }
            SealedKind::BaseModel => Cow::Borrowed(model.as_slice()),
        };
        let (file, header) = seal(fields, &payload, &key, signer, rng)?;
        Ok::<_, CoordinatorError>((file, header, key, model_hash(&model).to_vec()))
    })?;
    let stored = StoredSeal {
        kind,
        name: header.fields.model_id.clone(),
        version: header.fields.version,
        header_hash: header.hash,
        model_version,
        model_hash,
        wrapped_key: shared.content_keys.wrap(&key, &header.hash)?,
    };
    let length = file.len();
    shared.store.put_sealed(&stored, file).await?;
    Ok((Sealed { stored, header }, length))
}

/// What is stored of a base model, if it can be granted: of the same model, signed by this coordinator, with a key that opens.
async fn usable(shared: &Shared, params: &RoundParams) -> Result<Option<Sealed>, CoordinatorError> {
    let stored = shared.store.sealed_base(&params.wire.task, params.wire.model_version).await?;
    let Some(stored) = stored.filter(|stored| stored.model_hash == params.wire.model_hash) else { return Ok(None) };
    let header = match shared.store.sealed_header(&stored).await {
        Ok(header) => header,
        Err(StoreError::Damaged(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let signer = shared.round_keys.as_ref().map(|keys| publisher_id(&keys.signing_key.verifying_key()).to_vec());
    let opens = shared.content_keys.unwrap(&stored.wrapped_key, &stored.header_hash).is_ok();
    // One that was sealed by a clock that was ahead: devices would take it for a model from the future.
    let due = header.fields.created_at <= now();
    let good = opens && due && header.fields.publisher_id == signer.unwrap_or_default();
    Ok(good.then_some(Sealed { stored, header }))
}

/// Sees that the base model of a round is sealed, once for all rounds with it; after a restart, what was sealed before is taken.
pub(crate) async fn seal_base(shared: &Shared, params: &RoundParams) -> Result<(), CoordinatorError> {
    let (task, version) = (&params.wire.task, params.wire.model_version);
    let sealed = match usable(shared, params).await? {
        Some(sealed) => sealed,
        None => {
            let mut fields = fields(shared, SealedKind::BaseModel, task, version, params.wire.roster_epoch);
            // Its round ends it.
            fields.not_after = u64::MAX;
            let (sealed, length) = seal_and_store(shared, fields, version).await?;
            tracing::info!(version, length, "base model sealed");
            sealed
        }
    };
    shared.models.grants.forget_bases_but(&sealed.stored.header_hash);
    *lock(&shared.models.base) = Some(Arc::new(sealed));
    Ok(shared.store.forget_sealed_bases_before(task, version).await?)
}

/// No round follows: no base model is served or granted any more, and their sealed files go.
pub(crate) async fn close(shared: &Shared) -> Result<(), StoreError> {
    *lock(&shared.models.base) = None;
    shared.store.forget_sealed_bases_before(&shared.config.task.name, i64::MAX as u64).await
}

/// Seals and signs the model of the last round, unless that was done before.
pub(crate) async fn release(shared: &Shared, last: Option<&FinishedRound>) -> Result<(), CoordinatorError> {
    let (Some(config), Some(_), Some(last)) = (&shared.config.release, &shared.release_keys, last) else {
        return Ok(());
    };
    let previous = shared.store.latest_release(&config.model_id).await?;
    if previous.as_ref().is_some_and(|previous| previous.model_version == last.model_version) {
        return Ok(());
    }
    let roster_epoch = shared.roster().await?.map_or(0, |roster| roster.head().epoch);
    let mode = if shared.config.malicious() { ProvenanceMode::Malicious } else { ProvenanceMode::SemiHonest };
    let version = previous.as_ref().map_or(0, |previous| previous.version) + 1;
    let mut fields = fields(shared, SealedKind::Release, &config.model_id, version, roster_epoch);
    fields.previous = previous.map(|previous| previous.header_hash.to_vec()).unwrap_or_default();
    fields.not_after = fields.created_at + config.valid_days * 86_400;
    fields.provenance = Some(Provenance {
        task: shared.config.task.name.clone(),
        round_id: last.round_id.to_vec(),
        clients: last.survivors,
        drop_outs: last.cohort - last.survivors,
        mode: mode as i32,
    });
    let (Sealed { stored, .. }, length) = seal_and_store(shared, fields, last.model_version).await?;
    tracing::info!(model_id = stored.name, version = stored.version, length, "model released");
    shared.emit(Event::Released { model_id: stored.name, version: stored.version, length });
    Ok(())
}

/// The refusal of what a round that is not at hand yet may have.
pub(crate) fn starting() -> Status {
    refuse(Code::Unavailable, "starting", &"the coordinator is starting; try again")
}

/// Until the round that a restart interrupted is at hand, nobody is told that there is no such model.
pub(crate) async fn check_started(shared: &Shared) -> Result<(), Status> {
    match &*shared.stage.lock().await {
        Stage::Starting | Stage::Failed(_) => Err(starting()),
        _ => Ok(()),
    }
}

/// The sealed base model that is asked for, and the first byte that is wanted.
pub(crate) async fn base_file(shared: &Shared, request: &GetModelRequest) -> Result<(StoredFile, u64), Status> {
    let GetModelRequest { task, version, offset, header_hash } = request;
    let base = shared.models.base().filter(|base| base.stored.name == *task && base.stored.version == *version);
    let Some(base) = base else {
        check_started(shared).await?;
        let why = format!("version {version} of the model of task {task:?} is not the base model of the round at hand");
        return Err(refuse(Code::NotFound, "no_such_model", &why));
    };
    file(shared, &base.stored, *offset, header_hash).await
}

/// The latest release of the model that is asked for, and the first byte that is wanted.
pub(crate) async fn release_file(shared: &Shared, request: &GetReleaseRequest) -> Result<(StoredFile, u64), Status> {
    let GetReleaseRequest { model_id, offset, header_hash } = request;
    let stored = shared.store.latest_release(model_id).await.map_err(|e| storage(&e))?;
    let missing = || refuse(Code::NotFound, "no_such_release", &"there is no release of this model");
    file(shared, &stored.ok_or_else(missing)?, *offset, header_hash).await
}

async fn file(
    shared: &Shared,
    stored: &StoredSeal,
    offset: u64,
    header_hash: &[u8],
) -> Result<(StoredFile, u64), Status> {
    if !header_hash.is_empty() && header_hash != stored.header_hash {
        let why = "the file was sealed anew, or is another version by now: begin again";
        return Err(refuse(Code::FailedPrecondition, "other_file", &why));
    }
    let file = shared.store.sealed_file(stored).await.map_err(|e| storage(&e))?;
    if offset > file.length() {
        let why = format!("byte {offset} is asked for, the file has {}", file.length());
        return Err(refuse(Code::OutOfRange, "malformed", &why));
    }
    Ok((file, offset))
}
