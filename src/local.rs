//! A whole deployment in a temporary folder: keys, roster and configuration as files, for the demo, examples and tests. The
//! folder goes when the deployment is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use getrandom::SysRng;
use rand_core::UnwrapErr;
use tempfile::TempDir;
use unisono_coordinator::{Config, ConfigError};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use unisono_protocol::degree::{Assumptions, SecurityMode, adversaries, find};
use unisono_protocol::keyfile::{self, DeviceKeys, Role};
use unisono_wire::model::ModelError;
use zeroize::Zeroizing;

use crate::examples::{DIGITS, PIXELS};
use crate::files;
use crate::registrar::{Candidate, Registrar, RegistrarError, Terms};
use crate::softmax::{MAX_LOSS, METRICS, Softmax};

/// Name of the task, and of the released model.
pub const TASK: &str = "digits";
/// Fraction of the clients that is assumed to collude with the coordinator.
const GAMMA: f64 = 0.05;

/// Why there is no deployment.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file.
    #[error("the deployment's folder: {0}")]
    Io(#[from] std::io::Error),
    /// The registrar.
    #[error(transparent)]
    Registrar(#[from] RegistrarError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The initial model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What a deployment is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Enrolled devices, and the largest cohort.
    pub clients: u32,
    /// Successful rounds.
    pub rounds: u64,
    /// Fraction of the clients that may vanish.
    pub delta: f64,
    /// Most examples of a client.
    pub max_examples: usize,
}

/// A registrar, a coordinator's configuration, and devices' keys.
pub struct Deployment {
    folder: TempDir,
    /// The coordinator's configuration, as loaded from its file; it listens on a free loopback port.
    pub config: Config,
    /// The trust anchor of every device.
    pub registrar: VerifyingKey,
    /// Smallest number of updates in a sum.
    pub n_min: u32,
}

/// The smallest cohort from 60 % of the clients up that has two honest members, and for which there is a secure graph.
fn n_min(plan: &Plan) -> u32 {
    let assumptions = Assumptions { gamma: GAMMA, delta: plan.delta, min_colluders: 1, mode: SecurityMode::Malicious };
    let least = (plan.clients * 3).div_ceil(5).max(adversaries(plan.clients, &assumptions) + 2).max(3);
    (least..=plan.clients).find(|&n| find(n, &assumptions).is_ok()).unwrap_or(plan.clients)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Deployment {
    /// Makes everything for `plan`, in malicious mode, for the digits.
    ///
    /// # Errors
    /// [`LocalError`]; a plan for which there is no secure graph says what would make it feasible.
    pub fn make(plan: &Plan) -> Result<Self, LocalError> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let rng = &mut UnwrapErr(SysRng);
        let mut registrar = Registrar::init(&path("registrar"))?;
        let mut candidates = Vec::new();
        for i in 0..plan.clients {
            let keys = DeviceKeys::generate(rng);
            files::create(&path(&format!("device-{i}.key")), keys.to_text().as_bytes())?;
            let candidate = Candidate { enrolment: keys.enrolment(), attributes: BTreeMap::new(), at: None };
            candidates.push(Ok(candidate));
        }
        registrar.enrol_all(candidates, now(), Terms { days: 1, ..Terms::default() })?;
        let mut service_key = |role: Role, name: &str| -> Result<VerifyingKey, LocalError> {
            let key = SigningKey::generate(Level::L65, rng);
            files::create(&path(name), keyfile::signing_key_to_text(role, &key).as_bytes())?;
            Ok(key.verifying_key())
        };
        let coordinator = service_key(Role::Coordinator, "coordinator.key")?;
        let publisher = service_key(Role::Publisher, "publisher.key")?;
        let kek = keyfile::key_encryption_key_to_text(&Secret32::random(&mut UnwrapErr(SysRng)));
        files::create(&path("kek.key"), kek.as_bytes())?;
        let roster = registrar.publish(&[coordinator], &[publisher], now())?;
        files::replace(&path("roster.bin"), &roster.to_bytes().map_err(RegistrarError::from)?)?;
        files::replace(&path("initial.safetensors"), &Softmax::zeros(PIXELS, DIGITS).to_model()?.to_safetensors()?)?;

        let n_min = n_min(plan);
        let Plan { clients, rounds, delta, max_examples } = *plan;
        let [loss, accuracy] = METRICS;
        files::replace(
            &path("coordinator.toml"),
            format!(
                r#"listen = "127.0.0.1:0"
state_dir = "state"
registrar = "registrar/registrar.pub"
roster = "roster.bin"
key = "coordinator.key"
metric = [
    {{ name = "{loss}", lower = 0.0, upper = {MAX_LOSS:?} }},
    {{ name = "{accuracy}", lower = 0.0, upper = 1.0 }},
]

[task]
name = "{TASK}"
rounds = {rounds}
initial_model = "initial.safetensors"
pause_after_abort_ms = 50

[round]
n_min = {n_min}
n_max = {clients}
gamma = {GAMMA:?}
delta = {delta:?}
straggler_grace_ms = 250

[quantiser]
bits = 16
clip = 4.0
max_weight = {max_examples}.0

[release]
model_id = "{TASK}"
publisher = "publisher.key"
key_encryption_key = "kek.key"
valid_days = 30
"#
            )
            .as_bytes(),
        )?;
        let config = Config::load(&path("coordinator.toml"))?;
        Ok(Self { registrar: registrar.verifying_key(), config, n_min, folder })
    }

    /// The deployment's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keys of enrolled device `i`, from its file.
    ///
    /// # Panics
    /// For a number that is not below the plan's clients.
    pub fn device_keys(&self, i: u32) -> DeviceKeys {
        let path = self.folder.path().join(format!("device-{i}.key"));
        let text = Zeroizing::new(std::fs::read_to_string(path).expect("the device's file is there"));
        DeviceKeys::from_text(&text).expect("`make` wrote it")
    }

    /// Folder of a device's durable record.
    pub fn device_state(&self, i: u32) -> PathBuf {
        self.folder.path().join(format!("device-{i}"))
    }
}
