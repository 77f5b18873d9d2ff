//! The coordinator's configuration: one TOML file. Paths in it are relative to its own folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use unisono_crypto::sign::{SigningKey, VerifyingKey};
use unisono_protocol::keyfile::{self, KeyFileError, Role};
use unisono_protocol::params::{ParamsError, RoundParams, honest, quantiser_from_wire};
use unisono_protocol::privacy::{Privacy as Noise, Sensitivity};
use unisono_protocol::proto;
use unisono_protocol::roster::{Roster, RosterError};
use unisono_release::KeyEncryptionKey;
use unisono_wire::MAX_MESSAGE_LEN;
use unisono_wire::model::{Model, ModelError};
use zeroize::Zeroizing;

use crate::learning::{EarlyStop, OptimizerConfig};

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration is no TOML, or has an unknown or ill-typed field.
    #[error("{}: {source}", .path.display())]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Place and cause.
        source: Box<toml::de::Error>,
    },
    /// A key file is none.
    #[error("{}: {source}", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: KeyFileError,
    },
    /// The roster is none, or another registrar's.
    #[error("{}: {source}", .path.display())]
    Roster {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: RosterError,
    },
    /// The initial model is none.
    #[error("{}: {source}", .path.display())]
    Model {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: ModelError,
    },
    /// No round can run with these settings.
    #[error("these settings can't give a round: {0}")]
    Params(#[from] ParamsError),
    /// A setting is out of range.
    #[error("setting `{setting}` is {got}; allowed is {allowed}")]
    Setting {
        /// Its name with the section.
        setting: &'static str,
        /// Value found.
        got: String,
        /// What would be accepted.
        allowed: String,
    },
    /// A setting that the mode needs is missing.
    #[error("setting `{setting}` is missing: {why}")]
    Missing {
        /// Its name.
        setting: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address on which clients are served.
    pub listen: SocketAddr,
    /// Address on which Prometheus metrics are served; absent: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Most connections at a time; further ones wait. A device holds one, a proxy's count for many.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// Folder of database and blobs; made if missing.
    pub state_dir: PathBuf,
    /// The registrar's public key; needed in malicious mode.
    pub registrar: Option<PathBuf>,
    /// The roster file, read again before each round; needed in malicious mode.
    pub roster: Option<PathBuf>,
    /// The coordinator's secret key; needed in malicious mode.
    pub key: Option<PathBuf>,
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
}

fn max_connections() -> usize {
    20_000
}

/// What is learned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name, 1 to 64 characters.
    pub name: String,
    /// Successful rounds after which training ends.
    pub rounds: u64,
    /// Safetensors file with the initial model (F32).
    pub initial_model: PathBuf,
    /// Pause after a round that was aborted, in milliseconds.
    #[serde(default = "default_pause")]
    pub pause_after_abort_ms: u64,
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
    /// L2 bound of an update, applied first; absent: none.
    pub l2_clip: Option<f32>,
    /// Largest weight of a client.
    pub max_weight: f32,
    /// How scaled values are rounded.
    #[serde(default = "stochastic")]
    pub rounding: Rounding,
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

/// Keys that sign and wrap releases.
pub struct ReleaseKeys {
    /// Signs releases and grants.
    pub publisher: SigningKey,
    /// Wraps content keys.
    pub key_encryption_key: KeyEncryptionKey,
}

/// Keys of malicious mode.
pub struct RoundKeys {
    /// Verifies rosters.
    pub registrar: VerifyingKey,
    /// Signs rounds.
    pub signing_key: SigningKey,
    /// Where the roster is.
    pub roster: PathBuf,
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

/// Reads a key file and parses it.
fn read_key<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&Zeroizing::new(text)).map_err(|source| ConfigError::Key { path: path.into(), source })
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
        let folder = path.parent().unwrap_or(Path::new("."));
        let resolve = |path: &mut PathBuf| *path = folder.join(&path);
        resolve(&mut config.state_dir);
        resolve(&mut config.task.initial_model);
        [&mut config.registrar, &mut config.roster, &mut config.key].into_iter().flatten().for_each(resolve);
        if let Some(release) = &mut config.release {
            resolve(&mut release.publisher);
            resolve(&mut release.key_encryption_key);
        }
        config.check()?;
        Ok(config)
    }

    /// Checks that a round can run with these settings.
    ///
    /// # Errors
    /// [`ConfigError`] says which setting, and what would make it feasible.
    pub fn check(&self) -> Result<(), ConfigError> {
        let setting = |setting, got: &dyn ToString, allowed: &str| {
            Err(ConfigError::Setting { setting, got: got.to_string(), allowed: allowed.into() })
        };
        if self.max_connections == 0 {
            return setting("max_connections", &0, "1 or more");
        }
        if self.task.rounds == 0 {
            return setting("task.rounds", &0, "1 or more");
        }
        if let Err((name, got, allowed)) = self.optimizer.check() {
            return setting(name, &got, allowed);
        }
        if let Some(stop) = &self.early_stop {
            if self.metric_index(&stop.metric).is_none() {
                return setting("early_stop.metric", &stop.metric, "the name of a [[metric]]");
            }
            if stop.patience == 0 {
                return setting("early_stop.patience", &0, "1 or more");
            }
        }
        if let Some(privacy) = &self.privacy {
            let positive = |x: f64| x > 0.0 && x.is_finite();
            if !(privacy.delta > 0.0 && privacy.delta < 1.0) {
                return setting("privacy.delta", &privacy.delta, "above 0 and below 1");
            }
            match (privacy.noise_multiplier, privacy.epsilon) {
                (Some(z), None) if positive(z) => {}
                (None, Some(epsilon)) if positive(epsilon) => {}
                (Some(z), None) => return setting("privacy.noise_multiplier", &z, "a finite number above 0"),
                (None, Some(epsilon)) => return setting("privacy.epsilon", &epsilon, "a finite number above 0"),
                (Some(_), Some(_)) => return setting("privacy", &"both", "one of noise_multiplier and epsilon"),
                (None, None) => return setting("privacy", &"neither", "one of noise_multiplier and epsilon"),
            }
        }
        if let Some(release) = &self.release
            && !(1..=36_500).contains(&release.valid_days)
        {
            return setting("release.valid_days", &release.valid_days, "1 to 36500");
        }
        let roster = (0, if self.malicious() { vec![0; 32] } else { Vec::new() });
        let params =
            RoundParams::from_payload(&prost::Message::encode_to_vec(&self.params(1, 0, [0; 32], 1, roster)?))?;
        let (chunk, limit) = (params.chunk_len(), MAX_MESSAGE_LEN - 1024);
        if chunk > limit {
            return setting("round.chunk_elements", &format!("{chunk} bytes"), &format!("at most {limit} bytes"));
        }
        Ok(())
    }

    /// Whether rounds run in malicious mode.
    pub fn malicious(&self) -> bool {
        self.round.mode == Mode::Malicious
    }

    /// Place of a metric in the vectors.
    pub fn metric_index(&self, name: &str) -> Option<usize> {
        self.metrics.iter().position(|metric| metric.name == name)
    }

    /// Parameters of a round on the model with the given version, hash and number of elements, under a roster's epoch and
    /// root. `opened_at` is left at 0.
    ///
    /// # Errors
    /// [`ConfigError::Params`] for quantiser settings out of range, or noise that can't be had with them.
    pub fn params(
        &self,
        round: u64,
        model_version: u64,
        model_hash: [u8; 32],
        dimension: u64,
        (roster_epoch, roster_root): (u64, Vec<u8>),
    ) -> Result<proto::RoundParams, ConfigError> {
        let (r, q) = (&self.round, &self.quantiser);
        let rounding = match q.rounding {
            Rounding::Stochastic => proto::Rounding::Stochastic,
            Rounding::Deterministic => proto::Rounding::Deterministic,
        };
        let mode = if self.malicious() { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
        let metric = |m: &Metric| proto::MetricBound { lower: m.lower, upper: m.upper };
        let mut quantiser = proto::Quantiser {
            bits: q.bits,
            clip: q.clip,
            l2_clip: q.l2_clip,
            max_weight: q.max_weight,
            rounding: rounding as i32,
            metrics: self.metrics.iter().map(metric).collect(),
            privacy: None,
        };
        if let Some(privacy) = &self.privacy {
            quantiser.privacy =
                Some(proto::Privacy { noise_variance: self.noise_variance(privacy, &quantiser, dimension)? });
        }
        let modulus_bits = quantiser_from_wire(Some(&quantiser))?.modulus_bits(r.n_max).map_err(ParamsError::from)?;
        Ok(proto::RoundParams {
            task: self.task.name.clone(),
            round,
            suite: unisono_protocol::params::SUITE_V1,
            roster_epoch,
            roster_root,
            dimension,
            modulus_bits,
            quantiser: Some(quantiser),
            n_min: r.n_min,
            n_max: r.n_max,
            gamma: r.gamma,
            delta: r.delta,
            mode: mode as i32,
            deadlines: Some(proto::PhaseDeadlines {
                advertise_ms: r.advertise_ms,
                share_ms: r.share_ms,
                mask_ms: r.mask_ms,
                confirm_ms: r.confirm_ms,
                unmask_ms: r.unmask_ms,
            }),
            model_version,
            model_hash: model_hash.to_vec(),
            chunk_elements: r.chunk_elements,
            opened_at: 0,
        })
    }

    /// Variance of each client's noise, so that a sum of `n_min` less the assumed colluders' part has what is asked for.
    fn noise_variance(
        &self,
        privacy: &Privacy,
        quantiser: &proto::Quantiser,
        dimension: u64,
    ) -> Result<f64, ConfigError> {
        let mut quantiser = quantiser_from_wire(Some(quantiser))?;
        // What privacy needs of the quantiser is said first; then the noise has its size.
        quantiser.privacy = Some(Noise { noise_variance: 1.0 });
        quantiser.validate().map_err(ParamsError::from)?;
        let missing = ConfigError::Missing { setting: "quantiser.l2_clip", why: "noise for privacy is made for it" };
        let sensitivity = Sensitivity::of(&quantiser, dimension).ok_or(missing)?;
        let contributions = honest(self.round.n_min, self.round.n_max, self.round.gamma);
        let noise = match (privacy.noise_multiplier, privacy.epsilon) {
            (Some(multiplier), _) => Some(Noise::of_multiplier(multiplier, sensitivity, contributions)),
            (None, epsilon) => {
                let epsilon = epsilon.unwrap_or_default();
                Noise::of_epsilon(epsilon, privacy.delta, self.task.rounds, sensitivity, contributions)
            }
        };
        let noise = noise.ok_or_else(|| ConfigError::Setting {
            setting: "privacy.epsilon",
            got: privacy.epsilon.unwrap_or_default().to_string(),
            allowed: format!("what {} rounds can keep to with any noise", self.task.rounds),
        })?;
        Ok(noise.noise_variance)
    }

    /// The keys of malicious mode; `None` in semi-honest mode.
    ///
    /// # Errors
    /// [`ConfigError`] for a missing setting, or a file that is no such key.
    pub fn round_keys(&self) -> Result<Option<RoundKeys>, ConfigError> {
        if !self.malicious() {
            return Ok(None);
        }
        let why = "a round in malicious mode needs it";
        let need = |path: &Option<PathBuf>, setting| path.clone().ok_or(ConfigError::Missing { setting, why });
        let registrar = need(&self.registrar, "registrar")?;
        let key = need(&self.key, "key")?;
        Ok(Some(RoundKeys {
            registrar: read_key(&registrar, |text| keyfile::verifying_key_from_text(Role::Registrar, text))?,
            signing_key: read_key(&key, |text| keyfile::signing_key_from_text(Role::Coordinator, text))?,
            roster: need(&self.roster, "roster")?,
        }))
    }

    /// The keys of releases; `None` when the model is not released.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that is no such key.
    pub fn release_keys(&self) -> Result<Option<ReleaseKeys>, ConfigError> {
        let Some(release) = &self.release else { return Ok(None) };
        let kek = read_key(&release.key_encryption_key, keyfile::key_encryption_key_from_text)?;
        Ok(Some(ReleaseKeys {
            publisher: read_key(&release.publisher, |text| keyfile::signing_key_from_text(Role::Publisher, text))?,
            key_encryption_key: KeyEncryptionKey::from_secret(kek),
        }))
    }

    /// The initial model.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::Model`].
    pub fn initial_model(&self) -> Result<Model, ConfigError> {
        let path = &self.task.initial_model;
        Model::from_safetensors(&read(path)?).map_err(|source| ConfigError::Model { path: path.clone(), source })
    }
}

impl RoundKeys {
    /// Reads the roster as it is now.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::Roster`].
    pub fn read_roster(&self) -> Result<Roster, ConfigError> {
        let bytes = read(&self.roster)?;
        let error = |source| ConfigError::Roster { path: self.roster.clone(), source };
        Roster::from_bytes(&bytes, &self.registrar).map_err(error)
    }
}
