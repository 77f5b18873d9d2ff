//! The coordinator of unisono: opens rounds, serves clients over gRPC, survives restarts, and turns sums into models.
//!
//! [`Coordinator::start`] takes a [`Config`] and runs until [`Coordinator::stop`]; [`Coordinator::events`] tells what
//! happens, for logs and live views. It needs a multi-threaded tokio runtime. The coordinator is not trusted by clients:
//! whatever it does, it learns sums (`docs/security.md`).
//!
//! - `config`: one TOML file; `storage`: SQLite and blobs; `active`: the round at hand, made durable;
//! - `settings`: what a task learns with may not change unnoticed;
//! - `training`: the loop over rounds; `waiting`: how long a phase stays open; `sums`: what a sum gives; `learning`: optimisers and early stop;
//! - `models`: every model goes out sealed; `grants`: who gets its key; `content_keys`: content keys at rest;
//! - `tally`: what all rounds add up to; `retention`: what is over is deleted;
//! - `plausible`: which sums are used; `roster`: which roster is in force;
//! - `connections`: who may connect; `stream`: how a connection begins; [`tls`]: certificates; `gate`: rates and room; `known`: for whom room is kept; `calls`: every call on its way in and out; `sampled`: lines about refusals;
//! - `service`: the gRPC calls and their errors; `health`: whether devices can be served; `asked`: devices that wait for a round;
//! - `admin`: what an operator asks of a running coordinator; `internal`: what fuzz targets need, no part of the API.

mod active;
pub mod admin;
mod asked;
mod calls;
pub mod config;
mod connections;
mod content_keys;
mod gate;
mod grants;
mod health;
#[doc(hidden)]
pub mod internal;
mod known;
pub mod learning;
mod models;
mod plausible;
mod privacy;
mod retention;
mod roster;
mod sampled;
mod service;
mod settings;
pub mod storage;
mod stream;
mod sums;
mod tally;
pub mod tls;
mod training;
mod waiting;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, broadcast, watch};
use tokio::task::JoinHandle;
use unisono_protocol::server::{Outcome, Phase, Refusal};
use unisono_protocol::{ClientId, RoundId};
use unisono_wire::MAX_MESSAGE_LEN;
use unisono_wire::proto::coordinator_server::CoordinatorServer;

use active::Active;
pub use config::{Config, ConfigError};
use config::{ReleaseKeys, RoundKeys};
pub use health::Health;
pub use roster::RosterRefused;
pub use settings::{Change, changes};
use storage::{Store, StoreError};
use tls::{Listener, ServerTls};

/// Why a coordinator could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The configuration or a file that it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The storage.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A round can't be opened.
    #[error("can't open a round: {0}")]
    Open(String),
    /// A stored model is none.
    #[error("the stored model: {0}")]
    Model(#[from] unisono_wire::model::ModelError),
    /// There is no roster that can be in force.
    #[error("no roster can be used: {0}")]
    Roster(#[from] RosterRefused),
    /// The release.
    #[error("the release: {0}")]
    Release(#[from] unisono_release::ReleaseError),
    /// The settings are not those with which the task has learned.
    #[error("the settings of task `{task}` have changed over its state:{}", settings::list(.changes))]
    Changed {
        /// Which task.
        task: String,
        /// The changes that were not accepted.
        changes: Vec<Change>,
    },
    /// A change of something that is no stored setting was accepted.
    #[error("`{name}` is no setting whose change can be accepted; these are: {known}")]
    NoSuchSetting {
        /// What was named.
        name: String,
        /// What can be.
        known: String,
    },
    /// The roster does not name the publisher: no device could open the model.
    #[error(
        "the roster (epoch {epoch}) does not name the publisher's key of `release.publisher`, so no device could open the \
             model: publish one that does (`unisono registrar publish --publisher`)"
    )]
    PublisherNotNamed {
        /// Epoch of the roster in force.
        epoch: u64,
    },
    /// The key-encryption key is another one than before: nobody could get a grant.
    #[error(
        "`release.key_encryption_key` is not the key under which version {version} of model `{model_id}` was released, so no device \
             could get its grant: configure the key of before"
    )]
    OtherKeyEncryptionKey {
        /// Which model.
        model_id: String,
        /// Its latest release.
        version: u64,
    },
    /// An error of this software.
    #[error("the training loop panicked: {0}")]
    Panicked(String),
}

impl CoordinatorError {
    /// A short name for metrics and devices, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "configuration",
            Self::Store(_) | Self::Roster(RosterRefused::Store(_)) => "storage",
            Self::Listen { .. } => "address",
            Self::Open(_) => "open",
            Self::Model(_) => "model",
            Self::Roster(_) => "roster",
            Self::Release(_) => "release",
            Self::Changed { .. } | Self::NoSuchSetting { .. } => "settings",
            Self::PublisherNotNamed { .. } => "publisher",
            Self::OtherKeyEncryptionKey { .. } => "key_encryption_key",
            Self::Panicked(_) => "panic",
        }
    }

    /// Whether waiting may help by itself: the disk has room again, a lock is gone.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Roster(RosterRefused::Store(error)) if error.may_pass())
    }
}

/// What happens, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A round was opened, or goes on after a restart.
    RoundOpened {
        /// Its number.
        round: u64,
        /// Its id.
        round_id: RoundId,
        /// The phase in which it is.
        phase: Phase,
    },
    /// A client's step was accepted for the first time.
    Progress {
        /// Number of the round.
        round: u64,
        /// The phase.
        phase: Phase,
        /// Clients that took its step.
        answered: usize,
        /// Clients that may take it.
        expected: usize,
    },
    /// A client's step was refused.
    Refused {
        /// Who, where and why.
        refusal: Refusal,
    },
    /// A phase was closed.
    PhaseClosed {
        /// Number of the round.
        round: u64,
        /// The phase.
        phase: Phase,
        /// Clients that did not take its step.
        missing: Vec<ClientId>,
        /// How long it was open, in seconds.
        seconds: f64,
    },
    /// A round gave a sum.
    RoundFinished(Arc<RoundResult>),
    /// A round ended without a sum.
    RoundAborted {
        /// Its number.
        round: u64,
        /// Why.
        reason: String,
        /// The clients that are suspected of it, and suspended in malicious mode.
        suspects: Vec<ClientId>,
    },
    /// The model was released.
    Released {
        /// Its name.
        model_id: String,
        /// Version of the release.
        version: u64,
        /// Bytes of the file.
        length: usize,
    },
    /// Training is over; clients are still served releases and grants.
    TrainingFinished {
        /// Successful rounds in all.
        rounds: u64,
        /// Whether it stopped before the last round.
        early: bool,
    },
}

/// A successful round.
#[derive(Debug)]
pub struct RoundResult {
    /// Its number.
    pub round: u64,
    /// Its parameters.
    pub params: Arc<unisono_protocol::params::RoundParams>,
    /// The sum and who is in it.
    pub outcome: Outcome,
    /// The decoded sum.
    pub aggregate: unisono_protocol::encoding::Aggregate,
    /// Version of the model that came out.
    pub model_version: u64,
    /// That model, as safetensors.
    pub model: Vec<u8>,
    /// Duration of each phase in seconds. After a restart, of those since.
    pub seconds: Vec<(Phase, f64)>,
    /// What the sum has spent; `None` without privacy.
    pub privacy: Option<PrivacySpent>,
}

pub use privacy::PrivacySpent;

/// Where the training is.
enum Stage {
    /// The round that a restart interrupted is not read yet: clients are asked to wait.
    Starting,
    /// Between two rounds.
    Idle,
    /// A round is at hand.
    Running(Box<Active>),
    /// Something failed that has nothing to do with devices: they are asked to wait, and it is tried again.
    Failed(Failed),
    /// Over.
    Finished,
}

/// Why training does not go on.
struct Failed {
    /// [`CoordinatorError::code`].
    code: &'static str,
    /// For the operator; it may name files.
    reason: String,
}

/// How a round ended.
struct End {
    round_id: RoundId,
    gave_sum: bool,
    /// For a log.
    reason: String,
}

impl End {
    fn with_sum(round_id: RoundId) -> Self {
        Self { round_id, gave_sum: true, reason: "the round is finished".into() }
    }
}

/// Bytes that one call may have sent before they are read: what HTTP/2 calls its window.
const STREAM_WINDOW: u32 = 128 << 10;
/// The same of a connection, at most.
const MOST_WINDOW: u32 = 16 << 20;
/// Longest headers of a call, in bytes.
const MAX_HEADERS: u32 = 16 << 10;

/// What service and training share.
struct Shared {
    config: Config,
    store: Store,
    round_keys: Option<RoundKeys>,
    release_keys: Option<ReleaseKeys>,
    /// The roster in force.
    rosters: roster::Rosters,
    /// Proves requests and grants in semi-honest mode, where there is no roster.
    token: Option<unisono_release::Token>,
    content_keys: content_keys::ContentKeys,
    /// Sealed models and their grants.
    models: models::Models,
    /// What every call passes.
    gate: Arc<gate::Gate>,
    stage: Mutex<Stage>,
    /// Why devices can't be served now; `None`: they can. As in the stage, which may be locked for long.
    unready: std::sync::Mutex<Option<String>>,
    /// The word that the task is finished, with the round that it names.
    farewell: Mutex<Option<(u64, unisono_protocol::proto::Signed)>>,
    /// Devices that wait for a round.
    asked: asked::Asked,
    /// What an operator has ordered.
    orders: admin::Orders,
    /// How long the last round took after its phase 0; for devices that are told when to come back.
    pace: std::sync::Mutex<Option<Duration>>,
    /// End of the last round, for clients that ask for it.
    last_end: Mutex<Option<End>>,
    /// Counts changes of round or phase: wakes long polls.
    changes: watch::Sender<u64>,
    /// A step was accepted: wakes the training loop.
    accepted: Notify,
    events: broadcast::Sender<Event>,
    /// What the rounds up to now add up to; what is over by then can be deleted.
    tallies: watch::Sender<Option<storage::StoredTally>>,
}

impl Shared {
    fn emit(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Sets the stage, and wakes who waits for it.
    async fn enter(&self, stage: Stage) {
        let unready = match &stage {
            Stage::Starting => Some("starting".to_owned()),
            Stage::Failed(failed) => Some(format!("failed: {}", failed.reason)),
            Stage::Idle | Stage::Running(_) | Stage::Finished => None,
        };
        if let Stage::Running(active) = &stage {
            self.gate.open(active.server().params());
        }
        *self.stage.lock().await = stage;
        *self.unready.lock().unwrap_or_else(PoisonError::into_inner) = unready;
        self.changed();
    }

    /// The roster in force, after its file was read if it has changed; `None` in semi-honest mode.
    ///
    /// # Errors
    /// There is none, or it is over: devices act on it no more.
    async fn roster(&self) -> Result<Option<Arc<unisono_protocol::roster::Roster>>, RosterRefused> {
        let Some(keys) = &self.round_keys else { return Ok(None) };
        let roster = self.rosters.newest(&self.store, keys).await?;
        let refused = |source| RosterRefused::Roster { path: keys.roster.clone(), source };
        roster.head().check_validity(now()).map_err(refused)?;
        Ok(Some(roster))
    }
}

/// The gRPC calls of devices.
fn calls_of(shared: Arc<Shared>) -> CoordinatorServer<service::Service> {
    CoordinatorServer::new(service::Service::new(shared))
        .max_decoding_message_size(MAX_MESSAGE_LEN)
        .max_encoding_message_size(MAX_MESSAGE_LEN)
}

/// Checks that devices will take what the publisher signs.
fn check_publisher(
    roster: &unisono_protocol::roster::Roster,
    keys: Option<&ReleaseKeys>,
) -> Result<(), CoordinatorError> {
    let head = roster.head();
    match keys {
        Some(keys) if !head.publisher_keys.contains(&keys.publisher.verifying_key()) => {
            Err(CoordinatorError::PublisherNotNamed { epoch: head.epoch })
        }
        _ => Ok(()),
    }
}

/// Checks that the key-encryption key opens the wrapped content key of the latest release.
async fn check_wrap(
    store: &Store,
    model_id: &str,
    content_keys: &content_keys::ContentKeys,
) -> Result<(), CoordinatorError> {
    match store.latest_release(model_id).await? {
        Some(latest) if content_keys.unwrap(&latest.wrapped_key, &latest.header_hash).is_err() => {
            Err(CoordinatorError::OtherKeyEncryptionKey { model_id: latest.name, version: latest.version })
        }
        _ => Ok(()),
    }
}

/// Checks, as a start does, that the configured key-encryption key is that of the latest release in the state folder, which is not
/// changed. One that is not there, or is of a version that kept releases elsewhere, has none.
///
/// # Errors
/// [`CoordinatorError::OtherKeyEncryptionKey`]; the storage, or the key's file.
pub async fn check_key_encryption_key(config: &Config) -> Result<(), CoordinatorError> {
    let (Some(release), Some(store)) = (&config.release, Store::open_to_read(&config.state_dir).await?) else {
        return Ok(());
    };
    let content_keys = content_keys::ContentKeys::new(Some(release.key_encryption_key()?));
    let checked = match store.keeps_sealed_models().await? {
        true => check_wrap(&store, &release.model_id, &content_keys).await,
        false => Ok(()),
    };
    store.close().await;
    checked
}

/// Runs what takes long where it is. On a runtime of several threads others take over this one's tasks meanwhile; on a runtime of one, as
/// tests have it, they wait.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Unix time in milliseconds.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// A running coordinator.
pub struct Coordinator {
    shared: Arc<Shared>,
    address: SocketAddr,
    service: JoinHandle<()>,
    admin: Option<JoinHandle<()>>,
    /// What is done from time to time.
    upkeep: JoinHandle<()>,
    /// Deletes what is over.
    retention: JoinHandle<()>,
    /// Reads a roster that has changed.
    rosters: JoinHandle<()>,
    /// Reads a certificate that has changed.
    certificate: Option<JoinHandle<()>>,
    /// Taken when it has been waited for.
    training: Option<JoinHandle<Result<(), CoordinatorError>>>,
}

impl Coordinator {
    /// Loads keys and state, goes on with the round that a restart interrupted, and serves clients.
    ///
    /// # Errors
    /// [`CoordinatorError`]: configuration, storage or address.
    pub async fn start(config: Config) -> Result<Self, CoordinatorError> {
        Self::start_accepting(config, &[]).await
    }

    /// As [`Self::start`], but changes of the settings in `accept` over a used state folder are taken, which are refused otherwise
    /// ([`CoordinatorError::Changed`] names them). A round that was opened with the settings before is aborted then.
    ///
    /// # Errors
    /// As of [`Self::start`], and [`CoordinatorError::NoSuchSetting`].
    pub async fn start_accepting(config: Config, accept: &[String]) -> Result<Self, CoordinatorError> {
        config.check_listeners()?;
        config.raise_open_files()?;
        let tls = config.tls.as_ref().map(|files| ServerTls::load(files, Listener::Devices)).transpose()?.map(Arc::new);
        let (round_keys, release_keys, token) = (config.round_keys()?, config.release_keys()?, config.token()?);
        let kek = release_keys.as_ref().map(|keys| keys.key_encryption_key.clone());
        let content_keys = content_keys::ContentKeys::new(kek);
        let store = Store::open(&config.state_dir).await?;
        let rosters = roster::Rosters::open(&store, round_keys.as_ref()).await?;
        if let Some(keys) = &round_keys {
            let roster = rosters.newest(&store, keys).await?;
            check_publisher(&roster, release_keys.as_ref())?;
        }
        if let Some(release) = &config.release {
            check_wrap(&store, &release.model_id, &content_keys).await?;
        }
        settings::settle(&store, &config, accept).await?;
        let listen_error = |source| CoordinatorError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let shared = Arc::new(Shared {
            store,
            round_keys,
            release_keys,
            rosters,
            token,
            content_keys,
            models: models::Models::default(),
            gate: Arc::new(gate::Gate::new(
                config.limits.clone(),
                config.max_connections,
                known::Known::open(&config.state_dir),
            )),
            stage: Mutex::new(Stage::Starting),
            unready: std::sync::Mutex::new(Some("starting".into())),
            farewell: Mutex::new(None),
            asked: asked::Asked::default(),
            orders: admin::Orders::default(),
            pace: std::sync::Mutex::new(None),
            last_end: Mutex::new(None),
            changes: watch::Sender::new(0),
            accepted: Notify::new(),
            events: broadcast::Sender::new(4096),
            tallies: watch::Sender::new(None),
            config,
        });
        let server = calls_of(shared.clone());
        let limits = &shared.config.limits;
        // What is received and not read, of all streams of a connection: who does not read one of them keeps no other from coming.
        let window = STREAM_WINDOW.saturating_mul(limits.streams_per_connection).min(MOST_WINDOW);
        let router = tonic::transport::Server::builder()
            .layer(calls::Calls(shared.gate.clone()))
            .max_concurrent_streams(limits.streams_per_connection)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(Health::new(shared.clone()).service())
            .add_service(server);
        let incoming = connections::incoming(listener, shared.config.max_connections, shared.gate.clone(), tls.clone());
        let certificate = tls.map(|tls| tokio::spawn(async move { tls.watch().await }));
        let gate = shared.gate.clone();
        let upkeep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(sampled::INTERVAL).await;
                sampled::REFUSALS.flush();
                gate.forget_old();
            }
        });
        let for_rosters = shared.clone();
        let rosters = tokio::spawn(async move {
            if let Some(keys) = &for_rosters.round_keys {
                for_rosters.rosters.watch(&for_rosters.store, keys).await;
            }
        });
        let service = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming(incoming).await {
                tracing::error!(%error, "the service stopped");
            }
        });
        let admin = match admin::listen(&shared.config.state_dir) {
            Ok(listener) => Some(tokio::spawn(admin::serve(shared.clone(), listener))),
            Err(error) => {
                let folder = shared.config.state_dir.display();
                tracing::error!(%error, %folder, "no admin socket: its path may have 100 bytes at most");
                None
            }
        };
        let retention = tokio::spawn(retention::run(shared.clone()));
        let training = Some(tokio::spawn(training::run(shared.clone())));
        let transport = if certificate.is_some() { "TLS 1.3" } else { "plain HTTP" };
        if shared.config.insecure {
            tracing::warn!(%address, "insecure = true: devices are served by plain HTTP, which whoever is on the way can read and change");
        }
        tracing::info!(%address, transport, mode = if shared.config.malicious() { "malicious" } else { "semi-honest" }, "serving");
        Ok(Self { shared, address, service, admin, upkeep, retention, rosters, certificate, training })
    }

    /// The address on which clients are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on. A receiver that falls far behind misses events.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Tells whether devices can be served, also while it is held elsewhere.
    pub fn health(&self) -> Health {
        Health::new(self.shared.clone())
    }

    /// Waits until training is over; clients are still served afterwards. What fails meanwhile is logged, counted and tried again.
    ///
    /// # Errors
    /// [`CoordinatorError::Panicked`], told once.
    pub async fn trained(&mut self) -> Result<(), CoordinatorError> {
        let Some(training) = &mut self.training else { return Ok(()) };
        let result = training.await;
        self.training = None;
        result.unwrap_or_else(|panic| Err(CoordinatorError::Panicked(panic.to_string())))
    }

    /// Stops at once, as a `kill` would, and releases the state folder.
    pub async fn stop(self) {
        self.service.abort();
        self.upkeep.abort();
        self.retention.abort();
        let _ = self.retention.await;
        self.rosters.abort();
        let _ = self.rosters.await;
        if let Some(certificate) = self.certificate {
            certificate.abort();
        }
        if let Some(admin) = self.admin {
            admin.abort();
            let _ = admin.await;
        }
        if let Some(training) = self.training {
            training.abort();
            let _ = training.await;
        }
        let _ = self.service.await;
        self.shared.store.close().await;
    }
}
