//! The coordinator's configuration: one TOML file. Paths in it are relative to its own folder.

mod error;
mod faults;
mod keys;
mod limits;
mod retention;
mod round;
mod tls;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::learning::{EarlyStop, OptimizerConfig};

pub use error::ConfigError;
pub use faults::Fault;
pub(crate) use faults::parse;
pub use keys::{ReleaseKeys, RoundKeys, TOKEN_VARIABLE};
pub use limits::Limits;
pub use retention::{Keep, Retention};
pub use tls::{Tls, Validity};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address on which clients are served.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Address on which Prometheus metrics are served; absent: nowhere.
    #[serde(default, deserialize_with = "some_address")]
    pub metrics_listen: Option<SocketAddr>,
    /// Whether listeners that others than this machine can reach do without TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Certificate and key of the listeners; absent: they speak plain HTTP.
    pub tls: Option<Tls>,
    /// Most connections at a time; further ones wait. A device holds one, a proxy's count for many. The process needs as many open
    /// files and 256 more. Absent: 20,000, or as many as the system allows if that is less.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// What strangers and devices may take of the service.
    #[serde(default)]
    pub limits: Limits,
    /// Folder of database and blobs; made if missing.
    pub state_dir: PathBuf,
    /// The registrar's public key; needed in malicious mode.
    pub registrar: Option<PathBuf>,
    /// The roster file, read again before each round; needed in malicious mode.
    pub roster: Option<PathBuf>,
    /// The coordinator's secret key; needed in malicious mode.
    pub key: Option<PathBuf>,
    /// The token that coordinator and devices share; needed in semi-honest mode, unless the environment has it.
    pub token: Option<PathBuf>,
    /// What is learned.
    pub task: Task,
    /// How a round runs.
    pub round: Round,
    /// How updates become integers.
    pub quantiser: Quantiser,
    /// Noise for differential privacy; absent: none.
    pub privacy: Option<Privacy>,
    /// The trainers' metrics, in their order.
    #[serde(default, rename = "metric")]
    pub metrics: Vec<Metric>,
    /// How updates change the model.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// When to stop early; absent: never.
    pub early_stop: Option<EarlyStop>,
    /// How the model is released at the end; absent: it is not.
    pub release: Option<Release>,
    /// How much of what is over is kept.
    #[serde(default)]
    pub retention: Retention,
}

/// Unless set: 20,000, or what the system's limit of open files leaves room for if that is less.
fn max_connections() -> usize {
    limits::most_connections().map_or(20_000, |most| most.clamp(1, 20_000))
}

/// What is learned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name, 1 to 64 characters.
    pub name: String,
    /// Successful rounds after which training ends.
    pub rounds: u64,
    /// Safetensors file with the initial model.
    pub initial_model: PathBuf,
    /// Pause after a round that was aborted, in milliseconds.
    #[serde(default = "default_pause")]
    pub pause_after_abort_ms: u64,
    /// Most by which round numbers are raised above the last round with a sum when so many devices are in later rounds that none can be
    /// had without them, as after a restored backup; 0: never.
    #[serde(default = "max_round_jump")]
    pub max_round_jump: u64,
}

fn max_round_jump() -> u64 {
    10_000
}

fn default_pause() -> u64 {
    1000
}

/// Security mode of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Signatures, roster and consistency check.
    Malicious,
    /// None of these: a trusted consortium, or simulation.
    SemiHonest,
}

/// How a round runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Security mode.
    #[serde(default = "malicious")]
    pub mode: Mode,
    /// Smallest cohort, and smallest number of updates in a sum.
    pub n_min: u32,
    /// Largest cohort.
    pub n_max: u32,
    /// Fraction of the cohort that is assumed adversarial.
    pub gamma: f64,
    /// Fraction of the cohort that may drop out.
    pub delta: f64,
    /// Longest duration of phase 0, in milliseconds. It goes on until `n_min` clients have come.
    #[serde(default = "minute")]
    pub advertise_ms: u64,
    /// Longest duration of phase 1, in milliseconds.
    #[serde(default = "minute")]
    pub share_ms: u64,
    /// Longest duration of phase 2 (training and upload), in milliseconds.
    #[serde(default = "ten_minutes")]
    pub mask_ms: u64,
    /// Longest duration of phase 3, in milliseconds.
    #[serde(default = "minute")]
    pub confirm_ms: u64,
    /// Longest duration of phase 4, in milliseconds.
    #[serde(default = "minute")]
    pub unmask_ms: u64,
    /// Once as many clients have answered as the drop-out fraction promises, the phase stays open this much longer, in
    /// milliseconds; absent: until its longest duration.
    pub straggler_grace_ms: Option<u64>,
    /// How long phase 0 stays open at least where more devices may come than a cohort has room for, in milliseconds: members are drawn
    /// among all who come by then. Absent: 2000 where the roster has more devices than `n_max`, otherwise 0.
    pub draw_ms: Option<u64>,
    /// Fewest colluders that graph, thresholds and committee are made for, whatever `gamma` says; at least 1.
    #[serde(default = "min_colluders")]
    pub min_colluders: u32,
    /// In malicious mode: rounds for which a client is suspended after it dealt wrong shares of a secret of its own; 0: none, and
    /// one client can make every round end.
    #[serde(default = "suspend_rounds")]
    pub suspend_rounds: u64,
    /// Elements in one upload chunk, a multiple of 8.
    #[serde(default = "chunk_elements")]
    pub chunk_elements: u32,
}

fn malicious() -> Mode {
    Mode::Malicious
}
fn minute() -> u64 {
    60_000
}
fn ten_minutes() -> u64 {
    600_000
}
fn min_colluders() -> u32 {
    1
}
fn suspend_rounds() -> u64 {
    10
}
fn chunk_elements() -> u32 {
    65536
}

/// How scaled values become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Unbiased.
    Stochastic,
    /// To the nearest.
    Deterministic,
}

/// The encoder's settings (`docs/protocol.md` section 7).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiser {
    /// Bits of one quantised element, 1 to 32.
    pub bits: u32,
    /// L-infinity bound of an update's elements.
    pub clip: f32,
    /// Bounds of some tensors in the place of `clip`; the first that names a tensor counts. Not with `rotate` or privacy.
    #[serde(default)]
    pub clips: Vec<TensorClip>,
    /// L2 bound of an update, applied first; absent: none.
    pub l2_clip: Option<f32>,
    /// Largest weight of a client.
    pub max_weight: f32,
    /// Smallest weight that the trainers give; a sum with less than it for each client is not used. 0: not known.
    #[serde(default)]
    pub min_weight: f32,
    /// How scaled values are rounded.
    #[serde(default = "stochastic")]
    pub rounding: Rounding,
    /// Whether updates are rotated before the L-infinity bound.
    #[serde(default)]
    pub rotate: bool,
}

/// An L-infinity bound for some tensors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorClip {
    /// Their names, where `*` stands for any characters and `?` for one: `*.running_var`.
    pub tensors: String,
    /// The bound, above 0.
    pub clip: f32,
}

/// An address, or a name of this machine, with a port. Of a name with several addresses, the IPv4 one.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut found: Vec<SocketAddr> = text.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    found.sort_by_key(SocketAddr::is_ipv6);
    let why = || format!("{text:?} is no address of this machine with a port: give one like 127.0.0.1:7700");
    found.first().copied().ok_or_else(|| D::Error::custom(why()))
}

fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

fn stochastic() -> Rounding {
    Rounding::Stochastic
}

/// Noise that the clients add, and for which delta its epsilon is told (`docs/protocol.md` section 12). Either the multiplier or
/// the epsilon is given.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// Standard deviation of the noise of the smallest sum, less the assumed colluders' part, in L2 sensitivities.
    pub noise_multiplier: Option<f64>,
    /// What all `task.rounds` rounds together may spend; the noise is made for it.
    pub epsilon: Option<f64>,
    /// Delta, above 0 and below 1; a good deal less than one over the number of devices.
    pub delta: f64,
}

/// One of the trainer's metrics.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name, for logs and early stop.
    pub name: String,
    /// Smallest value; smaller ones are clamped.
    pub lower: f32,
    /// Largest value; larger ones are clamped.
    pub upper: f32,
}

/// How the model is released.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Name of the model.
    pub model_id: String,
    /// The publisher's secret key.
    pub publisher: PathBuf,
    /// The key-encryption key that wraps content keys.
    pub key_encryption_key: PathBuf,
    /// Days for which a release may be opened.
    pub valid_days: u64,
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

impl Config {
    /// Reads a configuration file; relative paths become relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Toml`], or what [`Self::check`] refuses.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let mut config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Toml { path: path.into(), source: Box::new(source) })?;
        config.resolve(path);
        config.check()?;
        Ok(config)
    }

    /// Makes paths that are relative to the folder of the file `path` relative to where the process is.
    fn resolve(&mut self, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new("."));
        let resolve = |path: &mut PathBuf| *path = folder.join(&path);
        resolve(&mut self.state_dir);
        resolve(&mut self.task.initial_model);
        [&mut self.registrar, &mut self.roster, &mut self.key, &mut self.token].into_iter().flatten().for_each(resolve);
        if let Some(tls) = &mut self.tls {
            tls.resolve(resolve);
        }
        if let Some(release) = &mut self.release {
            resolve(&mut release.publisher);
            resolve(&mut release.key_encryption_key);
        }
    }

    /// Whether rounds run in malicious mode.
    pub fn malicious(&self) -> bool {
        self.round.mode == Mode::Malicious
    }

    /// Place of a metric in the vectors.
    pub fn metric_index(&self, name: &str) -> Option<usize> {
        self.metrics.iter().position(|metric| metric.name == name)
    }
}

/// A small configuration in semi-honest mode, for unit tests; `more` is appended. Its fields are set as a test needs them.
#[cfg(test)]
pub(crate) fn example(more: &str) -> Config {
    let text = r#"
        listen = "127.0.0.1:0"
        state_dir = "state"
        [task]
        name = "t"
        rounds = 1000
        initial_model = "m"
        [round]
        mode = "semi-honest"
        n_min = 3
        n_max = 5
        gamma = 0.05
        delta = 0.2
        advertise_ms = 60000
        [quantiser]
        bits = 8
        clip = 1.0
        l2_clip = 1.0
        max_weight = 1.0
    "#;
    toml::from_str(&format!("{text}\n{more}")).unwrap()
}
