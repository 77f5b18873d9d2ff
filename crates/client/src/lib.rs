//! The device SDK of unisono: a [`Trainer`] computes updates, a [`Client`] takes part in rounds with them and opens the
//! released model.
//!
//! The client only dials out. Every step is repeated until it is acknowledged, an upload goes on at the first chunk that is
//! missing, and a client that lost its connection goes on in the phase where it was. What must survive the process is in a
//! [`Record`]: in which rounds this device took part, and the newest roster and model that it has seen.
//!
//! ```no_run
//! # use unisono_client::{Client, TrainError, Trainer, TrainingRound, Update};
//! struct Mine;
//! impl Trainer for Mine {
//!     fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError> {
//!         let update = vec![0.0; round.model.values().len()]; // new weights minus `round.model`
//!         Ok(Update { update, weight: 1.0, metrics: vec![] })
//!     }
//! }
//! # async fn run(keys: unisono_protocol::keyfile::DeviceKeys, registrar: unisono_crypto::sign::VerifyingKey)
//! # -> Result<(), unisono_client::Error> {
//! let mut client = Client::builder("https://coordinator.example:7700", "digits", keys)
//!     .registrar(registrar)
//!     .state_dir("/var/lib/mine")
//!     .build(Mine)?;
//! let summary = client.run().await?;
//! println!("took part in {} rounds", summary.completed);
//! # Ok(())
//! # }
//! ```

mod connection;
mod download;
mod error;
mod finished;
mod head;
#[doc(hidden)]
pub mod internal;
mod models;
mod record;
mod round;
mod tls;
mod traffic;
mod trainer;

use std::borrow::Cow;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use unisono_crypto::ring::RingVector;
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::client::{Identity, Trust};
use unisono_protocol::keyfile::DeviceKeys;
use unisono_protocol::policy::{ParticipationRecord, Policy};
use unisono_protocol::server::Phase;
use unisono_wire::proto::get_round_response::State;
use unisono_wire::proto::{GetRoundRequest, GetRoundResponse};

pub use connection::Retry;
use connection::{Connection, Waiting};
pub use error::Error;
pub use models::OpenedModel;
pub use record::{Record, RecordFileError};
use tls::Credentials;
pub use tls::TlsFault;
pub use traffic::Traffic;
pub use trainer::{Declined, TrainError, Trainer, TrainingRound, Update};
use unisono_release::Token;
use zeroize::Zeroizing;

/// What happens, for logs and live views. It is not printable as a whole: one kind holds this device's update.
#[non_exhaustive]
pub enum Event<'a> {
    /// The coordinator has no round to join; the client waits.
    Waiting,
    /// A round was accepted by trust anchors, policy and record.
    Joined {
        /// Its number.
        round: u64,
    },
    /// The client has taken the step before and waits for this phase, or has begun it.
    Phase {
        /// Number of the round.
        round: u64,
        /// The phase.
        phase: Phase,
    },
    /// The trainer is done.
    Trained {
        /// Number of the round.
        round: u64,
        /// The update's weight.
        weight: f32,
        /// The trainer's metrics.
        metrics: &'a [f32],
    },
    /// The update as it will be masked. It is this device's secret: for tests and audits in this process only.
    Encoded {
        /// Number of the round.
        round: u64,
        /// The encoded update.
        vector: &'a RingVector,
    },
    /// This client's part of the round is done: its update is in the sum, or nothing more is asked of it.
    Completed {
        /// Number of the round.
        round: u64,
        /// Bytes sent and received in each phase.
        traffic: &'a Traffic,
    },
    /// The round ended for this client without its full part.
    Missed {
        /// Number of the round, 0 when the offer could not be read.
        round: u64,
        /// Why.
        error: &'a Error,
    },
    /// The trainer declined the round; the coordinator was told.
    Declined {
        /// Number of the round.
        round: u64,
        /// Why.
        why: &'a str,
    },
    /// There was no room in the round for this device, which is no failure; it comes back.
    LeftOut {
        /// Number of the round.
        round: u64,
        /// When it comes back.
        after: Duration,
    },
    /// The client has waited for another minute.
    StillWaiting {
        /// How long, in all.
        waited: Duration,
        /// For what, in the coordinator's words.
        why: &'a str,
    },
    /// A call failed and will be repeated.
    Retrying {
        /// What failed.
        error: &'a Error,
        /// Pause before the next try.
        pause: Duration,
    },
}

type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rounds in which every step was taken.
    pub completed: u64,
    /// Rounds that were joined or offered, and not completed.
    pub missed: u64,
    /// Rounds that the trainer declined.
    pub declined: u64,
}

/// Makes a [`Client`].
pub struct ClientBuilder {
    endpoint: String,
    task: String,
    keys: DeviceKeys,
    credentials: Credentials,
    registrar: Option<VerifyingKey>,
    token: Option<Token>,
    policy: Policy,
    state_dir: Option<PathBuf>,
    retry: Retry,
    max_failures: u64,
    observer: Observer,
}

impl ClientBuilder {
    /// The authorities that may have issued the coordinator's certificate, as PEM: these alone are trusted then. Without them the
    /// public authorities are, as they are compiled in (Mozilla's list). For `https://` endpoints only.
    pub fn certificate_authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.credentials.authority = Some(pem.into());
        self
    }

    /// The certificate that this device shows to a coordinator that asks for one, with those of the authorities between it and the
    /// coordinator's, and its private key without a password; both as PEM. For `https://` endpoints only. The coordinator sees it, and
    /// nobody else does.
    pub fn client_certificate(mut self, chain_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        self.credentials.certificate = Some((chain_pem.into(), Zeroizing::new(key_pem.into())));
        self
    }

    /// The registrar's verifying key. Without it only semi-honest rounds can be joined, and models opened by [`Self::token`] alone.
    pub fn registrar(mut self, key: VerifyingKey) -> Self {
        self.registrar = Some(key);
        self
    }

    /// The token that the coordinator of semi-honest rounds shares with its devices: without it they get no model. It is not used
    /// where there is a roster.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// This device's own limits; the default is [`Policy::default`]. Of tasks, only the client's own is accepted.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Folder of the durable [`Record`], made if missing. Without it the record is in memory, and a restart forgets in which
    /// rounds this device took part: for tests only.
    pub fn state_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(folder.into());
        self
    }

    /// How failed calls are repeated.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Rounds that may be missed in a row: with one more, [`Client::run`] gives up. It never does unless this is set. Rounds without room
    /// for this device, those that it declines, and those for which it is suspended are not counted.
    pub fn max_failures(mut self, rounds: u64) -> Self {
        self.max_failures = rounds;
        self
    }

    /// A function that is told what happens. It is called from the client's task and must not block.
    pub fn on_event(mut self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Arc::new(observer);
        self
    }

    /// Makes the client; nothing is dialled yet.
    ///
    /// # Errors
    /// [`Error::Endpoint`] for an address that is none, [`Error::Certificate`] for a certificate or key that can't be used,
    /// [`Error::Record`] when the state folder can't be used.
    pub fn build(self, trainer: impl Trainer + 'static) -> Result<Client, Error> {
        let record = match &self.state_dir {
            Some(folder) => Record::open(folder)?,
            None => Record::in_memory(),
        };
        Ok(Client {
            connection: Connection::new(&self.endpoint, &self.credentials, self.retry, self.observer.clone())?,
            task: self.task.clone(),
            identity: Arc::new(self.keys.identity()),
            trust: Trust {
                registrar: self.registrar,
                policy: Policy { tasks: vec![self.task.clone()], ..self.policy },
            },
            keys: self.keys,
            token: self.token,
            record,
            trainer: Arc::new(Mutex::new(Box::new(trainer))),
            observer: self.observer,
            max_failures: self.max_failures,
            attempted: 0,
            missed: None,
        })
    }
}

/// A device that was left out of a round comes back no earlier.
const SHORTEST_REST: Duration = Duration::from_millis(100);

/// One device's part in one task.
pub struct Client {
    connection: Connection,
    task: String,
    keys: DeviceKeys,
    identity: Arc<Identity>,
    trust: Trust,
    token: Option<Token>,
    record: Record,
    trainer: Arc<Mutex<Box<dyn Trainer>>>,
    observer: Observer,
    max_failures: u64,
    /// Highest round number that this process has tried.
    attempted: u64,
    /// Why the last round was missed, until the coordinator has been told.
    missed: Option<Cow<'static, str>>,
}

/// What the coordinator says about rounds.
enum Offer {
    Round(Box<unisono_protocol::proto::RoundOffer>),
    Finished,
}

impl Client {
    /// A client for `task` of the coordinator at `endpoint`: `https://host:port` for TLS 1.3, or `http://host:port`. By plain HTTP
    /// whoever is on the way sees what the coordinator sees (sums and models stay as safe as from a dishonest coordinator,
    /// `docs/security.md`), so it is for a tunnel's local end, or a network of its own.
    pub fn builder(endpoint: impl Into<String>, task: impl Into<String>, keys: DeviceKeys) -> ClientBuilder {
        ClientBuilder {
            endpoint: endpoint.into(),
            task: task.into(),
            keys,
            credentials: Credentials::default(),
            registrar: None,
            token: None,
            policy: Policy::default(),
            state_dir: None,
            retry: Retry::default(),
            max_failures: u64::MAX,
            observer: Arc::new(|_| {}),
        }
    }

    fn tell(&self, event: &Event<'_>) {
        (self.observer)(event);
    }

    /// Takes part in rounds until the coordinator says that the task is finished, which in malicious mode it has to sign. Whatever
    /// else fails is tried again after growing pauses, without an end unless one is set ([`Retry::give_up_after`],
    /// [`ClientBuilder::max_failures`]).
    ///
    /// # Errors
    /// What can't get better by waiting ([`Error::is_final`], and that the roster does not have this device though it has taken part
    /// before), or the last of the tries that were set.
    pub async fn run(&mut self) -> Result<Summary, Error> {
        self.run_until(std::future::pending()).await
    }

    /// As [`Self::run`], until `stop` is ready: a client that waits for a round, or for a cohort, returns at once, one in a cohort when its
    /// part in the round is over. Dropping the future instead leaves the round at hand, as a device does that loses its power.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_until(&mut self, stop: impl Future<Output = ()>) -> Result<Summary, Error> {
        let mut stop = Stop { signal: pin!(stop), over: false };
        let mut summary = Summary::default();
        let mut failures = 0;
        let (began, mut since) = (tokio::time::Instant::now(), None);
        while let Some(Some(result)) = self.next_round(&mut stop).await? {
            let error = match result {
                Ok(()) => {
                    summary.completed += 1;
                    (failures, since) = (0, None);
                    continue;
                }
                Err(error) => error,
            };
            if error.left_out().is_some() {
                continue;
            }
            if let Error::Declined(_) = error {
                summary.declined += 1;
                continue;
            }
            summary.missed += 1;
            if error.is_suspension() {
                continue;
            }
            failures += 1;
            let waited = since.get_or_insert(began.elapsed()).abs_diff(began.elapsed());
            if failures > self.max_failures || self.gives_up(&error, waited) {
                return Err(error);
            }
            // The round's end is not this device's doing: the next one may come at once.
            if !matches!(error, Error::Ended { .. }) {
                let pause = self.connection.retry().pause(failures.min(64) as u32, waited);
                stop.unless(tokio::time::sleep(pause)).await;
            }
        }
        Ok(summary)
    }

    /// Whether an error that is not final has lasted too long.
    fn gives_up(&self, error: &Error, waited: Duration) -> bool {
        let limit = self.connection.retry().give_up_after;
        matches!(error, Error::Refused { .. }) && limit.is_some_and(|limit| waited >= limit)
    }

    /// Waits for the next round and takes part in it: `None` when the task is finished, otherwise whether the round was
    /// completed or why not. A missed round is told to the observer too. Where there was no room ([`Error::LeftOut`]) it returns when
    /// it is time to come back.
    ///
    /// # Errors
    /// What can't get better by waiting, as in [`Self::run`].
    pub async fn run_round(&mut self) -> Result<Option<Result<(), Error>>, Error> {
        Ok(self.run_round_until(std::future::pending()).await?.flatten())
    }

    /// As [`Self::run_round`]; the outer `None` when `stop` was ready before this device was in a cohort.
    ///
    /// # Errors
    /// As [`Self::run_round`].
    pub async fn run_round_until(
        &mut self,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Option<Result<(), Error>>>, Error> {
        self.next_round(&mut Stop { signal: pin!(stop), over: false }).await
    }

    async fn next_round(
        &mut self,
        stop: &mut Stop<'_, impl Future<Output = ()>>,
    ) -> Result<Option<Option<Result<(), Error>>>, Error> {
        let Some(offer) = stop.unless(self.next_offer()).await.transpose()? else { return Ok(None) };
        let Offer::Round(offer) = offer else { return Ok(Some(None)) };
        let before = self.attempted;
        let Err(error) = self.take_part(&offer, stop).await else { return Ok(Some(Some(Ok(())))) };
        let round = self.attempted;
        if let Some(after) = error.left_out() {
            self.tell(&Event::LeftOut { round, after });
            // All who were left out are told the same, and whoever says it has not to be believed.
            let pause = after.max(SHORTEST_REST).mul_f64(rand::rng().random_range(1.0..1.25));
            stop.unless(tokio::time::sleep(pause)).await;
            return Ok(Some(Some(Err(error))));
        }
        if let Error::Declined(why) = &error {
            if stop.over {
                return Ok(None);
            }
            self.tell(&Event::Declined { round, why });
            return Ok(Some(Some(Err(error))));
        }
        self.tell(&Event::Missed { round, error: &error });
        self.missed = Some(error.missed());
        let revoked = error.is_unknown_device() && self.record.entry(&self.task)?.is_some();
        if error.is_final() || revoked {
            return Err(error);
        }
        if round == before {
            // The same offer would come again at once.
            stop.unless(tokio::time::sleep(self.connection.retry().max_pause)).await;
        }
        Ok(Some(Some(Err(error))))
    }

    async fn next_offer(&mut self) -> Result<Offer, Error> {
        let mut record = self.record.clone();
        let mut waiting = Waiting::new(&self.observer);
        let mut patience = self.connection.patience();
        loop {
            let spent = self.record.entry(&self.task)?.map_or(0, |entry| entry.round);
            let request = GetRoundRequest {
                task: self.task.clone(),
                after_round: spent.max(self.attempted),
                wait_ms: connection::WAIT_MS,
                missed: self.missed.as_deref().unwrap_or_default().to_owned(),
            };
            let call = |mut stub: connection::Stub| {
                let request = request.clone();
                async move { stub.get_round(request).await }
            };
            let response = match self.connection.call(call).await {
                Ok(response) => response,
                // A proxy's words, or a coordinator's that says no for now.
                Err(error @ Error::Refused { .. }) if !error.is_final() => {
                    patience.retry(error).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.missed = None;
            match (State::try_from(response.state), response) {
                (Ok(State::Open), GetRoundResponse { offer: Some(offer), .. }) => {
                    return Ok(Offer::Round(Box::new(offer)));
                }
                (Ok(State::Finished), response) => {
                    match finished::check(&response, &self.task, request.after_round, &self.trust, &mut record) {
                        Ok(()) => return Ok(Offer::Finished),
                        // Somebody on the way says so, or an older word is repeated: it is no reason to leave.
                        Err(error) => patience.retry(error).await?,
                    }
                }
                (_, response) => {
                    self.tell(&Event::Waiting);
                    waiting.still(&response.reason);
                    patience = self.connection.patience();
                }
            }
        }
    }
}

/// The caller's wish that a client stops.
pub(crate) struct Stop<'a, F> {
    signal: Pin<&'a mut F>,
    over: bool,
}

impl<F: Future<Output = ()>> Stop<'_, F> {
    /// What comes of `work`, unless the client is to stop first.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.over {
            return None;
        }
        tokio::select! {
            biased;
            () = self.signal.as_mut() => {
                self.over = true;
                None
            }
            value = work => Some(value),
        }
    }
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
