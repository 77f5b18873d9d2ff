//! The coordinator of unisono: opens rounds, serves clients over gRPC, survives restarts, and turns sums into models.
//!
//! [`Coordinator::start`] takes a [`Config`] and runs until [`Coordinator::stop`]; [`Coordinator::events`] tells what
//! happens, for logs and live views. It needs a multi-threaded tokio runtime. The coordinator is not trusted by clients:
//! whatever it does, it learns sums (`docs/security.md`).
//!
//! - `config`: one TOML file; `storage`: SQLite and blobs; `active`: the round at hand, made durable;
//! - `training`: the loop over rounds; `learning`: optimisers and early stop; `releases`: the model goes out;
//! - `connections`: who may connect; `service`: the gRPC calls, their limits and errors.

mod active;
pub mod config;
mod connections;
pub mod learning;
mod privacy;
mod releases;
mod service;
pub mod storage;
mod training;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
use storage::{Store, StoreError};

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
    /// The model that the sum gives is none.
    #[error("the new model: {0}")]
    Model(#[from] unisono_wire::model::ModelError),
    /// The sum can't be decoded.
    #[error("the sum of round {round} can't be decoded: {source}")]
    Decode {
        /// Number of the round.
        round: u64,
        /// The cause.
        source: unisono_protocol::encoding::EncodingError,
    },
    /// The release.
    #[error("the release: {0}")]
    Release(#[from] unisono_release::ReleaseError),
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
    /// Over.
    Finished,
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

/// What service and training share.
struct Shared {
    config: Config,
    store: Store,
    round_keys: Option<RoundKeys>,
    release_keys: Option<ReleaseKeys>,
    stage: Mutex<Stage>,
    /// End of the last round, for clients that ask for it.
    last_end: Mutex<Option<End>>,
    /// Counts changes of round or phase: wakes long polls.
    changes: watch::Sender<u64>,
    /// A step was accepted: wakes the training loop.
    accepted: Notify,
    events: broadcast::Sender<Event>,
}

impl Shared {
    fn emit(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A running coordinator.
pub struct Coordinator {
    shared: Arc<Shared>,
    address: SocketAddr,
    service: JoinHandle<()>,
    /// Taken when it has been waited for.
    training: Option<JoinHandle<Result<(), CoordinatorError>>>,
}

impl Coordinator {
    /// Loads keys and state, goes on with the round that a restart interrupted, and serves clients.
    ///
    /// # Errors
    /// [`CoordinatorError`]: configuration, storage or address.
    pub async fn start(config: Config) -> Result<Self, CoordinatorError> {
        let (round_keys, release_keys) = (config.round_keys()?, config.release_keys()?);
        if let Some(keys) = &round_keys {
            keys.read_roster()?;
        }
        let store = Store::open(&config.state_dir).await?;
        if store.get_model(&config.task.name, 0).await?.is_none() {
            let model = config.initial_model()?.to_safetensors()?;
            store.put_model(&config.task.name, 0, model, None).await?;
        }
        let listen_error = |source| CoordinatorError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let shared = Arc::new(Shared {
            store,
            round_keys,
            release_keys,
            stage: Mutex::new(Stage::Starting),
            last_end: Mutex::new(None),
            changes: watch::Sender::new(0),
            accepted: Notify::new(),
            events: broadcast::Sender::new(4096),
            config,
        });
        let server = CoordinatorServer::new(service::Service::new(shared.clone()))
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN);
        let router = tonic::transport::Server::builder()
            .layer(service::CountErrors)
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
            .add_service(server);
        let incoming = connections::incoming(listener, shared.config.max_connections);
        let service = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming(incoming).await {
                tracing::error!(%error, "the service stopped");
            }
        });
        let training = Some(tokio::spawn(training::run(shared.clone())));
        tracing::info!(%address, mode = if shared.config.malicious() { "malicious" } else { "semi-honest" }, "serving");
        Ok(Self { shared, address, service, training })
    }

    /// The address on which clients are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on. A receiver that falls far behind misses events.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Waits until training is over (or can't go on); clients are still served afterwards.
    ///
    /// # Errors
    /// Why training can't go on, told once.
    pub async fn trained(&mut self) -> Result<(), CoordinatorError> {
        let Some(training) = &mut self.training else { return Ok(()) };
        let result = training.await;
        self.training = None;
        result.unwrap_or_else(|panic| Err(CoordinatorError::Open(format!("the training loop failed: {panic}"))))
    }

    /// Stops at once, as a `kill` would, and releases the state folder.
    pub async fn stop(self) {
        self.service.abort();
        if let Some(training) = self.training {
            training.abort();
            let _ = training.await;
        }
        let _ = self.service.await;
        self.shared.store.close().await;
    }
}
