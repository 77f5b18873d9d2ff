//! The gRPC calls: who may ask for what, how long a poll waits, and which status a refusal becomes.

use std::cmp::Ordering;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use metrics::counter;
use prost::Message;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};
use unisono_crypto::kdf::label;
use unisono_protocol::proto::{ClientMessage, client_message::Step};
use unisono_protocol::roster::RosterError;
use unisono_protocol::server::{Accepted, Phase, Progress, Reason, Refusal};
use unisono_protocol::{ClientId, RoundId, signed};
use unisono_wire::proto::coordinator_server::Coordinator;
use unisono_wire::proto::get_round_response::State;
use unisono_wire::proto::poll_response::Answer;
use unisono_wire::proto::*;
use unisono_wire::{FILE_CHUNK_LEN, MAX_WAIT_MS, REASON_KEY, RETRY_AFTER_KEY, missed};

use crate::active::{Active, StepError, UploadState};
use crate::calls::AnswerPlace;
use crate::gate::{Caller, later, limited};
use crate::sampled::REFUSALS;
use crate::storage::StoredFile;
use crate::{Event, Shared, Stage, StoreError, grants, models, now};

/// A stream that sends no chunk for so long is given up; its client goes on where it stopped.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

/// How long a call still waits.
struct Patience {
    deadline: Instant,
    changes: watch::Receiver<u64>,
}

impl Patience {
    /// Waits until round or phase change; `false` when the time is over.
    async fn more(&mut self) -> bool {
        matches!(tokio::time::timeout_at(self.deadline, self.changes.changed()).await, Ok(Ok(())))
    }
}

/// A status with a short stable name under [`REASON_KEY`].
pub(crate) fn refuse(code: Code, reason: &'static str, message: &dyn Display) -> Status {
    let mut status = Status::new(code, message.to_string());
    status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static(reason));
    status
}

fn status_of(refusal: &Refusal) -> Status {
    let code = match &refusal.reason {
        Reason::Roster(RosterError::Unreadable(_)) => Code::Unavailable,
        Reason::Unknown { .. } | Reason::Roster(_) => Code::PermissionDenied,
        Reason::OtherRound
        | Reason::WrongPhase { .. }
        | Reason::NotExpected
        | Reason::Full { .. }
        | Reason::Suspended { .. } => Code::FailedPrecondition,
        Reason::Conflict => Code::AlreadyExists,
        Reason::UploadHash => Code::DataLoss,
        _ => Code::InvalidArgument,
    };
    refuse(code, refusal.reason.code(), refusal)
}

pub(crate) fn storage(error: &StoreError) -> Status {
    if REFUSALS.admits(None, "storage failed") {
        tracing::error!(%error, "storage failed");
    }
    refuse(Code::Unavailable, "storage", &"the coordinator can't store this now; try again")
}

pub(crate) fn malformed(why: &dyn Display) -> Status {
    refuse(Code::InvalidArgument, "malformed", why)
}

fn round_id(bytes: &[u8]) -> Result<RoundId, Status> {
    RoundId::from_slice(bytes).ok_or_else(|| malformed(&format!("a round id has 32 bytes, not {}", bytes.len())))
}

fn client_id(bytes: &[u8]) -> Result<ClientId, Status> {
    ClientId::from_slice(bytes).ok_or_else(|| malformed(&format!("a client id has 16 bytes, not {}", bytes.len())))
}

/// A connection whose last large answers are not read after so long gets no further one now.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// For a device that there was no room for: shortest and longest time until it comes back.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// As long as no round has shown how long one takes.
const RETRY_AFTER_UNKNOWN: Duration = Duration::from_secs(5);

/// The refusal while training can't go on. What the operator has to know is in the log.
fn failed(code: &str) -> Status {
    let why = format!("the task can't go on now ({code}); the coordinator tries again, and its log says why");
    refuse(Code::Unavailable, "task_failed", &why)
}

/// Longest step that has no part for each neighbour, in bytes; an advert has 6 kB.
const SMALL_STEP_LEN: usize = 32 << 10;

/// Refuses a step that is longer than any of its kind, before it is looked at.
fn check_step_len(message: &ClientMessage) -> Result<(), Status> {
    let (len, small) = (message.encoded_len(), !matches!(message.step, Some(Step::ShareKeys(_) | Step::Unmask(_))));
    if small && len > SMALL_STEP_LEN {
        limited("too_large");
        let why = format!("a step of {len} bytes: one of this phase has {SMALL_STEP_LEN} at most");
        return Err(refuse(Code::OutOfRange, "too_large", &why));
    }
    Ok(())
}

/// Who makes the call, as the layer before this has found.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("a call of no connection"))
}

type FileStream = Pin<Box<dyn Stream<Item = Result<FileChunk, Status>> + Send>>;

/// How far the phase at hand is, for a log.
fn still_open(active: &Active) -> String {
    let (server, progress) = (active.server(), active.server().progress());
    let left = active.remaining(server.phase()).as_secs();
    format!("phase {} ({} of {} clients, {left} s left)", server.phase(), progress.answered, progress.expected)
}

/// Runs what changes a round as a task: a client that hangs up must not stop it between the round's state and the disk.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|error| Status::internal(error.to_string()))?
}

impl Service {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The chunks of a file from byte `from` on, each read when it is about to be sent.
    fn file_stream(&self, (file, from): (StoredFile, u64)) -> Response<FileStream> {
        let shared = self.shared.clone();
        let starts = tokio_stream::iter((from..file.length()).step_by(FILE_CHUNK_LEN));
        let chunks = starts.then(move |start| {
            let (shared, file) = (shared.clone(), file.clone());
            async move {
                match shared.store.read_file(&file, start, FILE_CHUNK_LEN).await {
                    Ok(data) => Ok(FileChunk { data }),
                    Err(error) if error.is_gone() => {
                        let why = "the round whose base model this was is over, and the file is gone";
                        Err(refuse(Code::NotFound, "no_such_model", &why))
                    }
                    Err(error) => Err(storage(&error)),
                }
            }
        });
        Response::new(Box::pin(chunks))
    }

    /// When a device that there was no room for comes back: when the round will be over, if it takes as long as the last one.
    fn retry_after_ms(&self) -> u64 {
        let pace = *self.shared.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.unwrap_or(RETRY_AFTER_UNKNOWN).clamp(RETRY_AFTER.0, RETRY_AFTER.1).as_millis() as u64
    }

    /// The refusal of a step, counted and told; the layer before this logs it. A device for which there is no room is told when to come back.
    fn refused(&self, refusal: Refusal) -> Status {
        let mut status = status_of(&refusal);
        if matches!(refusal.reason, Reason::Full { .. }) {
            status.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from(self.retry_after_ms()));
        }
        if let Reason::Roster(RosterError::Unreadable(_)) = &refusal.reason {
            self.shared.rosters.doubt();
        }
        let phase = refusal.phase.name();
        counter!("unisono_refusals_total", "phase" => phase, "reason" => refusal.reason.code()).increment(1);
        self.shared.emit(Event::Refused { refusal });
        status
    }

    fn step_failed(&self, error: StepError) -> Status {
        match error {
            StepError::Refused(refusal) => self.refused(refusal),
            StepError::Store(error) => storage(&error),
        }
    }

    /// The round with the given id, if it is at hand.
    async fn running<'a>(&self, stage: &'a mut Stage, id: RoundId) -> Result<&'a mut Active, Status> {
        match stage {
            Stage::Running(active) if active.round_id == id => Ok(active),
            Stage::Starting => Err(refuse(Code::Unavailable, "starting", &"the coordinator is starting; try again")),
            Stage::Failed(why) => Err(failed(why.code)),
            _ => {
                let (gave_sum, why) = self.end_of(id).await;
                let reason = if gave_sum { "round_finished" } else { "no_such_round" };
                Err(refuse(Code::FailedPrecondition, reason, &why))
            }
        }
    }

    /// Whether a round that is not at hand gave a sum, as far as is known, and why it is not at hand.
    async fn end_of(&self, id: RoundId) -> (bool, String) {
        match &*self.shared.last_end.lock().await {
            Some(end) if end.round_id == id => (end.gave_sum, end.reason.clone()),
            _ => (false, "this round is not, or no longer, at hand".into()),
        }
    }

    /// Counts and tells that steps were stored, if any were: a repeat can bring earlier ones to a disk that was full.
    fn progress(&self, active: &Active, stored: u64) {
        if stored > 0 {
            counter!("unisono_steps_total", "phase" => active.server().phase().name()).increment(stored);
            self.tell_progress(active);
        }
    }

    fn tell_progress(&self, active: &Active) {
        let (Progress { answered, expected, .. }, phase) = (active.server().progress(), active.server().phase());
        self.shared.emit(Event::Progress { round: active.number, phase, answered, expected });
        self.shared.accepted.notify_one();
    }

    /// Refuses who can have no part in a round, by what its id says, and a device in whose name too many calls come.
    async fn check_client(&self, caller: &Caller, round: RoundId, client: ClientId) -> Result<(), Status> {
        let refusal = match &*self.shared.stage.lock().await {
            Stage::Running(active) if active.round_id == round => active.server().may_come(client).err(),
            // What is said about a round that is not at hand is said to all.
            _ => None,
        };
        refusal.map_or(Ok(()), |refusal| Err(self.refused(refusal)))?;
        self.shared.gate.device(caller, client)
    }

    /// Takes a client's step.
    async fn take(self, caller: Caller, message: ClientMessage) -> Result<Accepted, Status> {
        let round = round_id(&message.round_id)?;
        if let Some(client) = ClientId::from_slice(&message.client_id) {
            self.check_client(&caller, round, client).await?;
        }
        check_step_len(&message)?;
        let mut stage = self.shared.stage.lock().await;
        let active = self.running(&mut stage, round).await?;
        let taken = active.absorb(&self.shared.store, &message, now()).await;
        let (accepted, stored) = taken.map_err(|e| self.step_failed(e))?;
        self.progress(active, stored);
        // A repeat proves nothing: its signature is not looked at.
        if accepted == Accepted::New {
            caller.authenticated();
        }
        Ok(accepted)
    }

    /// Takes an upload whose chunks have all arrived; how many there are, `arrived` of them if that is fewer.
    async fn take_upload(self, round: RoundId, client: ClientId, arrived: UploadState) -> Result<(u64, bool), Status> {
        let chunks = {
            let mut stage = self.shared.stage.lock().await;
            self.running(&mut stage, round).await?.server().params().chunks()
        };
        let mut arrived = arrived.lock().await;
        if *arrived < chunks {
            return Ok((*arrived, false));
        }
        let store = &self.shared.store;
        let upload = match store.read_upload(round, client, chunks).await {
            Ok(upload) => upload,
            // A chunk that was there is gone: it is asked for again.
            Err(error @ StoreError::Damaged(_)) => {
                tracing::error!(%error, "a stored chunk is gone; its client sends it again");
                *arrived = store.count_chunks(round, client).await.map_err(|e| storage(&e))?;
                return Ok((*arrived, false));
            }
            Err(error) => return Err(storage(&error)),
        };
        let mut stage = self.shared.stage.lock().await;
        let active = self.running(&mut stage, round).await?;
        match active.absorb_upload(store, client, &upload).await {
            Ok(stored) => self.progress(active, stored),
            Err(error) => {
                if matches!(&error, StepError::Refused(_)) {
                    store.delete_upload(round, client).await.map_err(|e| storage(&e))?;
                    *arrived = 0;
                }
                return Err(self.step_failed(error));
            }
        }
        Ok((chunks, true))
    }

    /// What a client that waits for `phase` is told now.
    async fn answer(&self, round: RoundId, client: ClientId, phase: Phase) -> Answer {
        let ended = |reason: String| Answer::Ended(Ended { reason, gave_sum: false });
        let mut stage = self.shared.stage.lock().await;
        let active = match self.running(&mut stage, round).await {
            Ok(active) => active,
            Err(status) if status.code() == Code::Unavailable => {
                return Answer::Waiting(Waiting { reason: status.message().to_owned() });
            }
            Err(_) => {
                let (gave_sum, reason) = self.end_of(round).await;
                return Answer::Ended(Ended { reason, gave_sum });
            }
        };
        let server = active.server();
        if server.is_left_out(client) {
            let n_max = server.params().wire.n_max;
            let reason = format!("this round takes {n_max} clients, and others were drawn; the next one can be joined");
            return Answer::LeftOut(LeftOut { reason, after_ms: self.retry_after_ms() });
        }
        match server.phase().cmp(&phase) {
            Ordering::Less => Answer::Waiting(Waiting { reason: still_open(active) }),
            Ordering::Equal => match server.view(client) {
                Some(view) => Answer::View(view),
                None => ended(format!("phase {phase} goes on without client {client}")),
            },
            // The quorum was there without this member of the committee: it goes on with the certificate.
            Ordering::Greater if phase == Phase::Confirm && server.phase() == Phase::Unmask => {
                match server.view(client) {
                    Some(view) => Answer::View(view),
                    None => ended(format!("phase {phase} is over")),
                }
            }
            Ordering::Greater => ended(format!("phase {phase} is over")),
        }
    }

    /// Why a device that has been in round `after` waits while round `number` is at hand.
    fn reached(&self, number: u64, after: u64) -> String {
        if after > number {
            return format!(
                "the coordinator is in round {number}, this device has been in round {after}: the coordinator's state went back, \
                 which its operator can mend"
            );
        }
        format!("round {number} goes on without this device, which has been in it; the next one can be joined")
    }

    /// The word that the task is finished: in malicious mode signed, so that nobody else can say it.
    async fn farewell(&self) -> Result<Response<GetRoundResponse>, Status> {
        let shared = &self.shared;
        // Not the caller's number, which anybody may send: the word for a high one could be kept, and used once the task goes on.
        let round = shared.asked.reached();
        let roster_head = shared.rosters.in_force().map(|roster| roster.signed_head().clone());
        let mut farewell = shared.farewell.lock().await;
        let finished = match &*farewell {
            Some((known, signed)) if *known == round => signed.clone(),
            _ => {
                let message = TaskFinished { task: shared.config.task.name.clone(), round };
                let key = shared.round_keys.as_ref().map(|keys| &keys.signing_key);
                signed::sign(&message, label::SIG_TASK_FINISHED, key)
            }
        };
        *farewell = Some((round, finished.clone()));
        let (state, finished) = (State::Finished as i32, Some(finished));
        Ok(Response::new(GetRoundResponse { state, finished, roster_head, ..Default::default() }))
    }

    /// For a call that waits up to `wait_ms` for a change.
    fn patience(&self, wait_ms: u64) -> Patience {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.min(MAX_WAIT_MS));
        Patience { deadline, changes: self.shared.changes.subscribe() }
    }

    async fn upload_state(
        &self,
        round: RoundId,
        client: ClientId,
    ) -> Result<(UploadState, UploadStatusResponse), Status> {
        let mut stage = self.shared.stage.lock().await;
        let active = self.running(&mut stage, round).await?;
        let (phase, server) = (active.server().phase(), active.server());
        if server.has_upload(client) {
            // Also after the phase, and after a restart: the acknowledgement may have been lost.
            let chunks = server.params().chunks();
            return Ok((UploadState::default(), UploadStatusResponse { chunks, complete: true }));
        }
        if server.awaited_upload(client).is_none() {
            let reason = match phase {
                Phase::Confirm | Phase::Unmask => Reason::WrongPhase { step: Phase::Mask },
                _ => Reason::Incomplete("upload header that was accepted in this phase"),
            };
            return Err(self.refused(Refusal { client: Some(client), phase, reason }));
        }
        // The last chunk is what completes an upload: where all are stored and it is not complete (the coordinator or the
        // connection broke in between), that one is asked for again.
        let last = server.params().chunks() - 1;
        if let Some(state) = active.uploads.get(&client).cloned() {
            drop(stage);
            let chunks = (*state.lock().await).min(last);
            return Ok((state, UploadStatusResponse { chunks, complete: false }));
        }
        let stored = self.shared.store.count_chunks(round, client).await.map_err(|e| storage(&e))?;
        let chunks = stored.min(last);
        let state: UploadState = Arc::new(Mutex::new(chunks));
        active.uploads.insert(client, state.clone());
        Ok((state, UploadStatusResponse { chunks, complete: false }))
    }

    /// Checks a chunk against the header, and stores it. `next` is the number of the chunk that is missing.
    async fn store_chunk(
        &self,
        chunk: UploadChunk,
        next: &mut u64,
        round: RoundId,
        client: ClientId,
    ) -> Result<(), Status> {
        let (params, phase, awaited) = {
            let mut stage = self.shared.stage.lock().await;
            let active = self.running(&mut stage, round).await?;
            let server = active.server();
            (server.params().clone(), server.phase(), server.awaited_upload(client))
        };
        let refused = |reason| self.refused(Refusal { client: Some(client), phase, reason });
        let Some((length, hash)) = awaited else { return Err(refused(Reason::WrongPhase { step: Phase::Mask })) };
        if chunk.upload_hash != hash {
            return Err(refused(Reason::UploadHash));
        }
        // All are stored and the upload is not complete: the last one is asked for again. Only now that the sender has shown that it
        // knows the hash: a stranger must not move another client's place.
        *next = (*next).min(params.chunks() - 1);
        if chunk.index != *next {
            let why = format!("chunk {} came, chunk {next} is missing: ask for the upload's status", chunk.index);
            return Err(refuse(Code::OutOfRange, "upload_order", &why));
        }
        let start = chunk.index.saturating_mul(params.chunk_len() as u64);
        let expected = length.saturating_sub(start).min(params.chunk_len() as u64);
        if chunk.data.len() as u64 != expected || expected == 0 {
            let got = start.saturating_add(chunk.data.len() as u64);
            return Err(refused(Reason::UploadLength { expected: length, got }));
        }
        counter!("unisono_upload_bytes_total").increment(chunk.data.len() as u64);
        self.shared.store.put_chunk(round, client, chunk.index, chunk.data).await.map_err(|e| storage(&e))?;
        *next += 1;
        Ok(())
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type GetModelStream = FileStream;
    type GetReleaseStream = FileStream;

    async fn get_round(&self, request: Request<GetRoundRequest>) -> Result<Response<GetRoundResponse>, Status> {
        let request = request.into_inner();
        if request.task != self.shared.config.task.name {
            let why = format!("this coordinator runs task {:?}, not {:?}", self.shared.config.task.name, request.task);
            return Err(refuse(Code::NotFound, "no_such_task", &why));
        }
        if !request.missed.is_empty() {
            let why = missed(&request.missed);
            counter!("unisono_device_misses_total", "reason" => why).increment(1);
            if REFUSALS.admits(None, why) {
                tracing::info!(after_round = request.after_round, why, "a device says that it missed a round");
            }
        }
        let mut patience = self.patience(request.wait_ms);
        let _place = self.shared.asked.wait(request.after_round);
        loop {
            let reason = match &*self.shared.stage.lock().await {
                Stage::Running(active) => {
                    let (server, number) = (active.server(), active.number);
                    if number <= request.after_round {
                        self.reached(number, request.after_round)
                    } else if server.phase() != Phase::Advertise {
                        format!("round {number} is in {}; the next one can be joined", still_open(active))
                    } else {
                        let offer = Some(server.offer().clone());
                        let response = GetRoundResponse { state: State::Open as i32, offer, ..Default::default() };
                        return Ok(Response::new(response));
                    }
                }
                Stage::Finished => String::new(),
                Stage::Failed(why) => return Err(failed(why.code)),
                Stage::Starting => "the coordinator is starting".into(),
                Stage::Idle => "the next round is about to begin".into(),
            };
            if reason.is_empty() {
                return self.farewell().await;
            }
            if !patience.more().await {
                let state = State::Waiting as i32;
                return Ok(Response::new(GetRoundResponse { state, reason, ..Default::default() }));
            }
        }
    }

    async fn submit(&self, request: Request<ClientMessage>) -> Result<Response<SubmitResponse>, Status> {
        let (caller, message) = (caller(&request)?, request.into_inner());
        let accepted = to_its_end(self.clone().take(caller, message)).await?;
        Ok(Response::new(SubmitResponse { repeat: accepted == Accepted::Repeat }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let (caller, request) = (caller(&request)?, request.into_inner());
        let (round, client) = (round_id(&request.round_id)?, client_id(&request.client_id)?);
        self.check_client(&caller, round, client).await?;
        let mut stage = self.shared.stage.lock().await;
        let active = self.running(&mut stage, round).await?;
        let accepted = active.leave(client, &request.signature, now()).map_err(|refusal| self.refused(refusal))?;
        if accepted == Accepted::New {
            caller.authenticated();
            counter!("unisono_leaves_total", "phase" => active.server().phase().name()).increment(1);
            self.tell_progress(active);
        }
        Ok(Response::new(LeaveResponse {}))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollResponse>, Status> {
        let (caller, request) = (caller(&request)?, request.into_inner());
        let (round, client) = (round_id(&request.round_id)?, client_id(&request.client_id)?);
        let phase = request.phase().to_phase().ok_or_else(|| malformed(&"the poll names no phase"))?;
        self.check_client(&caller, round, client).await?;
        let mut patience = self.patience(request.wait_ms);
        loop {
            // Views are large: a connection has few of them at a time that it has not read.
            let place = tokio::time::timeout(ANSWER_TIMEOUT, caller.peer.answers().acquire_owned()).await;
            let unread = |_| later("answers", Duration::from_secs(1), "this connection reads its answers too slowly");
            let place = place.map_err(unread)?.ok();
            let answer = self.answer(round, client, phase).await;
            let is_view = matches!(answer, Answer::View(_));
            let waiting = matches!(answer, Answer::Waiting(_));
            let place = place.filter(|_| is_view);
            if !waiting || !patience.more().await {
                let mut response = Response::new(PollResponse { answer: Some(answer) });
                response.extensions_mut().insert(AnswerPlace(Arc::new(std::sync::Mutex::new(place))));
                return Ok(response);
            }
        }
    }

    async fn get_upload_status(
        &self,
        request: Request<UploadStatusRequest>,
    ) -> Result<Response<UploadStatusResponse>, Status> {
        let (caller, request) = (caller(&request)?, request.into_inner());
        let (round, client) = (round_id(&request.round_id)?, client_id(&request.client_id)?);
        self.check_client(&caller, round, client).await?;
        Ok(Response::new(self.upload_state(round, client).await?.1))
    }

    async fn upload(&self, request: Request<Streaming<UploadChunk>>) -> Result<Response<UploadStatusResponse>, Status> {
        let caller = caller(&request)?;
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(CHUNK_TIMEOUT, stream.next()).await.unwrap_or_default().transpose()?;
        let Some(first) = first else {
            return Err(malformed(&"an upload has at least one chunk"));
        };
        let (round, client) = (round_id(&first.round_id)?, client_id(&first.client_id)?);
        self.check_client(&caller, round, client).await?;
        let (state, status) = self.upload_state(round, client).await?;
        if status.complete {
            return Ok(Response::new(status));
        }
        let mut chunk = Some(first);
        while let Some(now) = chunk {
            if now.round_id != round.0 || now.client_id != client.0 {
                return Err(malformed(&"the chunks of one stream are of one client's upload"));
            }
            // Not locked while the next chunk is awaited: a stream that hangs must not keep its client from another one.
            self.store_chunk(now, &mut *state.lock().await, round, client).await?;
            chunk = match tokio::time::timeout(CHUNK_TIMEOUT, stream.next()).await {
                Ok(chunk) => chunk.transpose()?,
                Err(_) => return Err(refuse(Code::DeadlineExceeded, "upload_stalled", &"no chunk came for a minute")),
            };
        }
        let (chunks, complete) = to_its_end(self.clone().take_upload(round, client, state)).await?;
        Ok(Response::new(UploadStatusResponse { chunks, complete }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<FileStream>, Status> {
        Ok(self.file_stream(models::base_file(&self.shared, request.get_ref()).await?))
    }

    async fn get_release(&self, request: Request<GetReleaseRequest>) -> Result<Response<FileStream>, Status> {
        Ok(self.file_stream(models::release_file(&self.shared, request.get_ref()).await?))
    }

    async fn request_grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(grants::issue(&self.shared, &caller, request.get_ref()).await?))
    }
}
