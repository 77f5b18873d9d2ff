//! One round as a device lives it: the protocol's session, driven over the network.

use std::sync::Arc;
use std::time::Duration;

use getrandom::SysRng;
use prost::Message;
use rand_core::UnwrapErr;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use unisono_crypto::ring::RingVector;
use unisono_protocol::client::{self, ClientError, Joining, Session};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::params::RoundParams;
use unisono_protocol::policy::{CLOCK, ParticipationRecord, ROUND_JUMP};
use unisono_protocol::proto::{RoundOffer, UploadHeader, client_message::Step, server_message::View};
use unisono_protocol::server::Phase;
use unisono_wire::model::{MAX_MODEL_HEADER, Model, model_hash};
use unisono_wire::proto::poll_response::Answer;
use unisono_wire::proto::{
    Ended, LeaveRequest, LeftOut, PollRequest, RoundPhase, UploadChunk, UploadStatusRequest, UploadStatusResponse,
};

use crate::connection::{Stub, WAIT_MS, Waiting};
use crate::models::Authority;
use crate::traffic::Meter;
use crate::{Client, Declined, Error, Event, Stop, TrainingRound, Update, now};

/// So long a device waits for the coordinator to hear that it leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// Runs what takes long on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether the offer is a genuine one for this task, and will not become acceptable. The number of any other round must not
/// be believed: a large one would keep this device from all true rounds.
fn refused_for_good(error: &ClientError) -> bool {
    match error {
        // A number that is too high, or a clock that is behind, says nothing about the rounds to come.
        ClientError::Policy(refusal) => !["tasks", ROUND_JUMP, CLOCK].contains(&refusal.setting),
        ClientError::OldRound { .. } => true,
        _ => false,
    }
}

/// Waits until this device's own clock says that the session's secrets are to be erased.
async fn expiry(erase_at: Option<u64>) -> ClientError {
    let Some(erase_at) = erase_at else { return std::future::pending().await };
    // Looked at again now and then: a clock may be set, and a device may sleep.
    while now() <= erase_at {
        tokio::time::sleep(Duration::from_secs((erase_at + 1).saturating_sub(now()).clamp(1, 60))).await;
    }
    ClientError::Expired { erase_at, now: now() }
}

impl Client {
    /// Takes part in the offered round from the first step to the last.
    ///
    /// Until the cohort is closed, `stop` ends it: as declined.
    pub(crate) async fn take_part(
        &mut self,
        offer: &RoundOffer,
        stop: &mut Stop<'_, impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let joining = match Joining::new(offer, self.identity.clone(), &self.trust, &mut self.record, now()) {
            Ok(joining) => joining,
            Err(ClientError::Policy(refusal)) if refusal.setting == "min_interval_s" => {
                // The same round may still be open when it is time.
                let last_at = self.record.entry(&self.task)?.map_or(0, |entry| entry.spent.last_at);
                let due = last_at.saturating_add(self.trust.policy.min_interval_s);
                let after = Duration::from_secs(due.saturating_sub(now()).clamp(1, 3600));
                return Err(Error::LeftOut { why: refusal.to_string(), after });
            }
            Err(error) => {
                if refused_for_good(&error)
                    && let Some(Ok(params)) = offer.params.as_ref().map(|it| RoundParams::from_payload(&it.payload))
                {
                    self.attempted = params.wire.round;
                }
                return Err(error.into());
            }
        };
        let params = Arc::new(joining.params().clone());
        // Whatever comes of it, this process does not try the round again: a second advert would be another one.
        self.attempted = params.wire.round;
        let mut in_cohort = false;
        let taken = self.join(joining, &params, stop, &mut in_cohort).await;
        // Without signatures, members of a cohort alone can leave.
        if let Err(error) = &taken
            && error.leaves(in_cohort)
            && (in_cohort || params.malicious())
        {
            self.leave(&params).await;
        }
        taken
    }

    async fn join(
        &mut self,
        joining: Joining,
        params: &Arc<RoundParams>,
        stop: &mut Stop<'_, impl Future<Output = ()>>,
        in_cohort: &mut bool,
    ) -> Result<(), Error> {
        let stopped = || Error::Declined("this client was stopped".into());
        let round = params.wire.round;
        let (trainer, offered) = (self.trainer.clone(), params.clone());
        let accepts = tokio::task::spawn_blocking(move || {
            let mut trainer = trainer.lock().map_err(|_| Error::TrainerPanicked)?;
            trainer.accepts(&offered).map_err(Error::Train)
        });
        let accepts = stop.unless(accepts).await.ok_or_else(stopped)?;
        if !accepts.unwrap_or(Err(Error::TrainerPanicked))? {
            return Err(Error::Declined("the trainer does not accept it".into()));
        }
        let mut meter = Meter::new(self.connection.counters());
        self.tell(&Event::Joined { round });

        self.tell(&Event::Phase { round, phase: Phase::Advertise });
        let session = blocking(move || Session::advertise(joining, &mut rng())).await;
        stop.unless(self.submit(&session)).await.ok_or_else(stopped)?.map_err(Error::of_advert)?;
        meter.assign(Phase::Advertise);

        let view = stop.unless(self.poll(&session)).await.ok_or_else(stopped)??;
        *in_cohort = true;
        let session = self.receive(session, view, None).await?;
        let session_erase_at = session.erase_at();
        // Whatever this device waits for from here on, its secrets go with the session when its own clock says so.
        tokio::select! {
            played = self.play(session, params, &mut meter) => played?,
            expired = expiry(session_erase_at) => return Err(expired.into()),
        }
        self.tell(&Event::Completed { round, traffic: meter.traffic() });
        Ok(())
    }

    /// Tells the coordinator that this device takes no further step. Once: it is a courtesy.
    async fn leave(&self, params: &RoundParams) {
        let signature = client::leave(params, &self.identity, &mut rng());
        let (round_id, client_id) = (params.round_id.to_vec(), self.identity.client_id.to_vec());
        let mut stub = self.connection.stub();
        let told = stub.leave(LeaveRequest { round_id, client_id, signature });
        if let Ok(Err(status)) = tokio::time::timeout(LEAVE_TIMEOUT, told).await {
            tracing::debug!(
                round = params.wire.round,
                why = status.message(),
                "the coordinator was not told of leaving"
            );
        }
    }

    /// The steps of a round whose cohort this device has accepted.
    async fn play(&self, session: Session, params: &Arc<RoundParams>, meter: &mut Meter) -> Result<(), Error> {
        let training = self.start_training(params).await?;
        self.submit(&session).await?;
        meter.assign(Phase::Share);

        let view = self.poll(&session).await?;
        let input = self.input(params, training).await?;
        let mut session = self.receive(session, view, Some(input)).await?;
        let uploaded = match self.submit(&session).await {
            Ok(()) => self.upload(&session).await,
            Err(error) => Err(error),
        };
        if let Err(error) = uploaded {
            // Too late for the sum, not for its certificate: this device has masked for the set that others reveal for.
            if error.is_late() && session.owes_endorsement() {
                self.unmask(session, meter).await?;
            }
            return Err(error);
        }
        session.uploaded();
        meter.assign(Phase::Mask);

        // The upload is in: from here on the round may be over, with its sum, before this device's shares are needed.
        match self.unmask(session, meter).await {
            Err(error) if error.is_summed() => {}
            result => result?,
        }
        meter.assign(Phase::Unmask);
        Ok(())
    }

    /// The steps after the upload: an endorsement, for members of the committee, then the shares. What is left of the round's
    /// secrets is erased when this returns.
    async fn unmask(&self, mut session: Session, meter: &mut Meter) -> Result<(), Error> {
        while let Some(phase) = session.awaits() {
            let view = self.poll(&session).await?;
            session = self.receive(session, view, None).await?;
            match self.submit(&session).await {
                // The quorum was there without this device.
                Err(error) if error.is_late() && session.awaits().is_some() => {}
                result => result?,
            }
            if phase == Phase::Confirm && session.awaits().is_some() {
                meter.assign(Phase::Confirm);
            }
        }
        Ok(())
    }

    /// Lets the session take a view, on a thread that may block. When it refuses, the round is over for this device.
    async fn receive(&self, mut session: Session, view: View, input: Option<RingVector>) -> Result<Session, Error> {
        let mut record = self.record.clone();
        blocking(move || {
            session.receive(&view, input, &mut record, now(), &mut rng())?;
            Ok(session)
        })
        .await
    }

    async fn submit(&self, session: &Session) -> Result<(), Error> {
        let message = session.message().ok_or(ClientError::Erased)?;
        self.connection
            .call(|mut stub: Stub| {
                let message = message.clone();
                async move { stub.submit(message).await }
            })
            .await
            .map(|_| ())
    }

    /// Waits for the phase that the session awaits, and for what this device gets to see in it.
    async fn poll(&self, session: &Session) -> Result<View, Error> {
        let params = session.params();
        let phase = session.awaits().ok_or(ClientError::Erased)?;
        self.tell(&Event::Phase { round: params.wire.round, phase });
        let request = PollRequest {
            round_id: params.round_id.to_vec(),
            client_id: self.identity.client_id.to_vec(),
            phase: RoundPhase::from(phase) as i32,
            wait_ms: WAIT_MS,
        };
        let mut waiting = Waiting::new(&self.observer);
        loop {
            let response = self
                .connection
                .call(|mut stub: Stub| {
                    let request = request.clone();
                    async move { stub.poll(request).await }
                })
                .await?;
            match response.answer {
                Some(Answer::Waiting(answer)) => {
                    waiting.still(&format!("round {}, before phase {phase}: {}", params.wire.round, answer.reason));
                }
                Some(Answer::Ended(Ended { reason, gave_sum })) => return Err(Error::Ended { reason, gave_sum }),
                Some(Answer::LeftOut(LeftOut { reason, after_ms })) if phase == Phase::Share => {
                    return Err(Error::left_out_for(reason, after_ms));
                }
                Some(Answer::View(view)) => {
                    let empty = || Error::Answer(format!("phase {phase} came without a view"));
                    return view.view.ok_or_else(empty);
                }
                Some(Answer::LeftOut(_)) => {
                    return Err(Error::Answer(format!(
                        "left out of a cohort in phase {phase}, of which it is a member"
                    )));
                }
                None => return Err(Error::Answer("an empty answer to a poll".into())),
            }
        }
    }

    /// Fetches the base model and starts the trainer, which works while the keys are shared.
    async fn start_training(&self, params: &Arc<RoundParams>) -> Result<JoinHandle<Result<Update, Error>>, Error> {
        let version = params.wire.model_version;
        let limit = params.wire.dimension * size_of::<f32>() as u64 + MAX_MODEL_HEADER;
        let authority = if params.malicious() { Authority::Roster } else { Authority::Token };
        let bytes = self.base_model(version, limit, authority).await?.plaintext;
        if model_hash(&bytes).as_slice() != params.wire.model_hash {
            return Err(Error::ModelHash { version });
        }
        let model = Model::from_safetensors(&bytes)?;
        if model.values().len() as u64 != params.wire.dimension {
            let (elements, dimension) = (model.values().len(), params.wire.dimension);
            return Err(Error::Answer(format!("the base model has {elements} elements, the round {dimension}")));
        }
        let round = TrainingRound { params: params.clone(), model: Arc::new(model) };
        let trainer = self.trainer.clone();
        Ok(tokio::task::spawn_blocking(move || {
            let mut trainer = trainer.lock().map_err(|_| Error::TrainerPanicked)?;
            trainer.train(&round).map_err(|error| match error.downcast::<Declined>() {
                Ok(declined) => Error::Declined(declined.0),
                Err(error) => Error::Train(error),
            })
        }))
    }

    /// Waits for the trainer, and encodes its update.
    async fn input(
        &self,
        params: &Arc<RoundParams>,
        training: JoinHandle<Result<Update, Error>>,
    ) -> Result<RingVector, Error> {
        let round = params.wire.round;
        let update = training.await.unwrap_or(Err(Error::TrainerPanicked))?;
        self.tell(&Event::Trained { round, weight: update.weight, metrics: &update.metrics });
        let params = params.clone();
        let vector = blocking(move || {
            let Update { update, weight, metrics } = &update;
            let contribution = Contribution { update, metrics, weight: *weight };
            params.quantiser.encode(contribution, params.wire.dimension as usize, params.modulus, &mut rng())
        })
        .await?;
        self.tell(&Event::Encoded { round, vector: &vector });
        Ok(vector)
    }

    /// Uploads the masked vector, from the first chunk that the coordinator does not have, until it has all.
    async fn upload(&self, session: &Session) -> Result<(), Error> {
        let params = session.params();
        let Some(Step::Upload(header)) = session.message().and_then(|message| message.step.as_ref()) else {
            return Err(ClientError::Erased.into());
        };
        let header = UploadHeader::decode(header.payload.as_slice()).map_err(|e| Error::Answer(e.to_string()))?;
        let status =
            UploadStatusRequest { round_id: params.round_id.to_vec(), client_id: self.identity.client_id.to_vec() };
        while !self.connection.repeat(|| self.upload_missing(session, &status, &header.hash)).await? {}
        Ok(())
    }

    /// Sends what is missing in one stream; whether the upload is complete. Without any progress that is an error that
    /// passes, so that the pauses of the retry policy apply.
    async fn upload_missing(&self, session: &Session, who: &UploadStatusRequest, hash: &[u8]) -> Result<bool, Error> {
        let status = async || {
            let call = |mut stub: Stub| {
                let who = who.clone();
                async move { stub.get_upload_status(who).await }
            };
            self.connection.call(call).await
        };
        let UploadStatusResponse { chunks: first, complete } = status().await?;
        if complete {
            return Ok(true);
        }
        // Packed one by one while they are sent: the packed vector is never held as a whole.
        let (sender, receiver) = mpsc::channel(2);
        let feed = async move {
            for index in first..session.chunks() {
                let chunk = UploadChunk {
                    round_id: who.round_id.clone(),
                    client_id: who.client_id.clone(),
                    upload_hash: hash.to_vec(),
                    index,
                    data: session.chunk(index).unwrap_or_default(),
                };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        };
        let mut stub = self.connection.stub();
        let (sent, ()) = tokio::join!(stub.upload(ReceiverStream::new(receiver)), feed);
        match sent.map_err(Error::of_status) {
            Ok(response) => Ok(response.get_ref().complete),
            Err(error) if error.is_passing() && status().await?.chunks > first => Ok(false),
            Err(error) => Err(error),
        }
    }
}
