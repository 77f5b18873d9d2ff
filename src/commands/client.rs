//! `unisono client`: a device from the command line, with the example trainer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use unisono::client::{Client, ClientBuilder, Event, Retry};
use unisono::coordinator::config::TOKEN_VARIABLE;
use unisono::crypto::sign::VerifyingKey;
use unisono::examples::Examples;
use unisono::files;
use unisono::protocol::keyfile::{self, DeviceKeys, Role};
use unisono::protocol::policy::{Policy, PrivacyDemand};
use unisono::release::Token;
use unisono::release::proto::ReleaseHeader;
use unisono::softmax::{Sgd, SoftmaxTrainer};
use zeroize::Zeroizing;

use super::{read_key, read_secret, write_key};

/// A device.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Makes a device's keys: FILE (secret, stays on the device) and FILE.pub, which the registrar enrols.
    Keys {
        /// File of the secret keys.
        file: PathBuf,
        /// Write only FILE.pub, anew, from the keys that are in FILE: when it was lost, or is of a version that did not sign it.
        #[arg(long)]
        public_only: bool,
    },
    /// Takes part in a task's rounds until it is finished, training a softmax regression on a CSV file.
    Run(Box<Run>),
    /// Opens the released model as an enrolled device, and writes it as safetensors.
    Open {
        #[command(flatten)]
        device: Box<Device>,
        /// Name of the model.
        #[arg(long)]
        model: String,
        /// Where to write the opened model. It is plaintext then.
        #[arg(long)]
        out: PathBuf,
        /// Largest model to take, in MiB.
        #[arg(long, default_value_t = 1024)]
        max_mib: u64,
    },
}

/// Who the device is, and whom it asks.
#[derive(clap::Args)]
pub struct Device {
    /// The coordinator's address, such as https://coordinator.example:7700.
    #[arg(long, env = "UNISONO_COORDINATOR")]
    coordinator: String,
    /// PEM file with the authorities that may have issued the coordinator's certificate; these alone are trusted then [default: the
    /// public authorities].
    #[arg(long, value_name = "FILE", env = "UNISONO_CA")]
    ca: Option<PathBuf>,
    /// PEM file with the certificate that this device shows, where the coordinator asks for one.
    #[arg(long, value_name = "FILE", env = "UNISONO_CERTIFICATE", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    #[arg(long, value_name = "FILE", env = "UNISONO_CERTIFICATE_KEY", requires = "certificate")]
    certificate_key: Option<PathBuf>,
    /// The device's secret keys.
    #[arg(long, env = "UNISONO_DEVICE_KEYS")]
    keys: PathBuf,
    /// The registrar's public key; without it only semi-honest rounds can be joined.
    #[arg(long, env = "UNISONO_REGISTRAR")]
    registrar: Option<PathBuf>,
    /// The token of semi-honest mode, a file; where it is not given, the environment variable UNISONO_TOKEN may hold the token itself.
    #[arg(long, env = "UNISONO_TOKEN_FILE")]
    token: Option<PathBuf>,
    /// Folder of the device's durable record. Keep it: it is what stops the device from answering a round twice.
    #[arg(long, env = "UNISONO_STATE_DIR")]
    state_dir: PathBuf,
    /// Seconds without an answer, or of refusals that may pass, after which to give up [default: never; 600 for `open`].
    #[arg(long, value_name = "SECONDS")]
    give_up_after: Option<u64>,
}

#[derive(clap::Args)]
pub struct Run {
    #[command(flatten)]
    device: Device,
    /// Name of the task.
    #[arg(long)]
    task: String,
    /// The device's examples: CSV without header, numbers and at the end the class (from 0). They stay here.
    #[arg(long)]
    data: PathBuf,
    /// The CSV's numbers are divided by this.
    #[arg(long, default_value_t = 1.0)]
    scale: f32,
    /// Passes over the examples in a round.
    #[arg(long, default_value_t = 25)]
    epochs: usize,
    /// Examples in a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 0.3)]
    learning_rate: f32,
    /// Smallest number of updates in a sum that this device accepts.
    #[arg(long, default_value_t = 10)]
    n_min: u32,
    /// Smallest adversarial fraction that a round must withstand.
    #[arg(long, default_value_t = 0.05)]
    min_gamma: f64,
    /// Largest drop-out fraction for which a round may be made.
    #[arg(long, default_value_t = 0.3)]
    max_delta: f64,
    /// Shortest time between two rounds, in seconds; a round that comes earlier is waited for.
    #[arg(long, default_value_t = 10)]
    min_interval: u64,
    /// Take part only in rounds with noise for differential privacy, whose epsilon is at most this.
    #[arg(long)]
    max_epsilon: Option<f64>,
    /// Largest epsilon of all rounds of the task together; the record counts it. Needs --max-epsilon.
    #[arg(long, requires = "max_epsilon")]
    max_total_epsilon: Option<f64>,
    /// Most rounds of the task in which this device takes part; the record counts them.
    #[arg(long)]
    max_rounds: Option<u64>,
    /// Take part only in rounds whose base model a publisher of the roster has signed.
    #[arg(long)]
    signed_base_model: bool,
    /// Fewest colluders that a round must withstand, whatever its gamma says.
    #[arg(long, default_value_t = 1)]
    min_colluders: u32,
    /// Fewest honest inputs that a sum must have: n_min less the colluders that are assumed.
    #[arg(long, default_value_t = 2)]
    min_honest: u32,
    /// The delta for which --max-epsilon holds.
    #[arg(long, default_value_t = 1e-5)]
    privacy_delta: f64,
    /// Take part in rounds without signatures, roster and consistency check.
    #[arg(long)]
    allow_semi_honest: bool,
}

impl Device {
    fn builder(&self, task: &str, give_up_after: Option<u64>) -> Result<ClientBuilder> {
        let keys = read_secret(&self.keys, DeviceKeys::from_text)?;
        let parse = |text: &str| keyfile::verifying_key_from_text(Role::Registrar, text);
        let registrar: Option<VerifyingKey> = self.registrar.as_ref().map(|path| read_key(path, parse)).transpose()?;
        let builder = Client::builder(&self.coordinator, task, keys).state_dir(&self.state_dir).on_event(log);
        let builder = match &self.ca {
            Some(path) => builder.certificate_authority(read_file(path)?),
            None => builder,
        };
        let builder = match (&self.certificate, &self.certificate_key) {
            (Some(chain), Some(key)) => {
                let secret = keyfile::read_secret(key).with_context(|| format!("can't read {}", key.display()))?;
                builder.client_certificate(read_file(chain)?, secret.as_bytes())
            }
            _ => builder,
        };
        let give_up_after = self.give_up_after.or(give_up_after).map(Duration::from_secs);
        let builder = builder.retry(Retry { give_up_after, ..Retry::default() });
        let builder = match registrar {
            Some(key) => builder.registrar(key),
            None => builder,
        };
        Ok(match self.token()? {
            Some(token) => builder.token(token),
            None => builder,
        })
    }

    fn token(&self) -> Result<Option<Token>> {
        if let Some(path) = &self.token {
            let text = keyfile::read_secret(path).with_context(|| format!("can't read {}", path.display()))?;
            return Token::from_text(&text).map(Some).with_context(|| path.display().to_string());
        }
        let text = Zeroizing::new(std::env::var(TOKEN_VARIABLE).unwrap_or_default());
        if text.is_empty() {
            return Ok(None);
        }
        Token::from_text(&text).map(Some).context(TOKEN_VARIABLE)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

fn log(event: &Event<'_>) {
    match event {
        Event::Joined { round } => tracing::info!(round, "joined"),
        Event::Phase { round, phase } => tracing::debug!(round, %phase, "waiting for the phase"),
        Event::Trained { round, weight, .. } => tracing::info!(round, weight, "trained"),
        Event::Completed { round, traffic } => {
            tracing::info!(round, up = traffic.total_up(), down = traffic.total_down(), "completed");
        }
        Event::LeftOut { round, after } => tracing::info!(round, ?after, "no room in this round; coming back"),
        Event::Missed { round, error } => tracing::warn!(round, %error, "missed"),
        _ => {}
    }
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Keys { file, public_only } => {
            let mut public = file.clone().into_os_string();
            public.push(".pub");
            let (public, what) = (PathBuf::from(public), "device public keys, for the registrar");
            let keys = if public_only {
                let keys = read_secret(&file, DeviceKeys::from_text)?;
                unisono::files::replace(&public, keys.enrolment().to_text().as_bytes())
                    .with_context(|| format!("can't write {}", public.display()))?;
                println!("{what}: {}", public.display());
                keys
            } else {
                let keys = DeviceKeys::generate(&mut UnwrapErr(SysRng));
                write_key(&file, &keys.to_text(), "device keys (secret)")?;
                write_key(&public, &keys.enrolment().to_text(), what)?;
                keys
            };
            println!("client id: {}", keys.client_id);
            Ok(())
        }
        Command::Run(run) => {
            let file = File::open(&run.data).with_context(|| format!("can't read {}", run.data.display()))?;
            let examples = Examples::from_csv(file, run.scale).with_context(|| run.data.display().to_string())?;
            tracing::info!(examples = examples.len(), features = examples.columns(), "read the device's data");
            let sgd = Sgd { epochs: run.epochs, batch: run.batch, learning_rate: run.learning_rate, ..Sgd::default() };
            let policy = Policy {
                n_min: run.n_min,
                min_gamma: run.min_gamma,
                max_delta: run.max_delta,
                min_interval_s: run.min_interval,
                max_rounds: run.max_rounds,
                signed_base_model: run.signed_base_model,
                min_colluders: run.min_colluders,
                min_honest: run.min_honest,
                allow_semi_honest: run.allow_semi_honest,
                privacy: run.max_epsilon.map(|max_epsilon| PrivacyDemand {
                    max_epsilon,
                    max_total_epsilon: run.max_total_epsilon,
                    delta: run.privacy_delta,
                }),
                ..Policy::default()
            };
            let trainer = SoftmaxTrainer::new(examples, sgd, rand::random());
            let mut client = run.device.builder(&run.task, None)?.policy(policy).build(trainer)?;
            let summary = tokio::runtime::Runtime::new()?.block_on(client.run())?;
            println!("the task is finished: {} rounds completed, {} missed", summary.completed, summary.missed);
            Ok(())
        }
        Command::Open { device, model, out, max_mib } => {
            let no_training = |_: &unisono::client::TrainingRound| Err("this client only opens releases".into());
            let mut client = device.builder(&model, Some(600))?.build(no_training)?;
            let runtime = tokio::runtime::Runtime::new()?;
            let mut header = None;
            let write = |file: &mut File| {
                header = Some(runtime.block_on(client.open_release_to(&model, max_mib << 20, file))?);
                anyhow::Ok(())
            };
            files::replace_by(&out, write).with_context(|| format!("can't write {}", out.display()))?;
            let ReleaseHeader { model_id, version, payload_length, .. } = header.context("nothing was opened")?;
            println!("{model_id} version {version}: {payload_length} bytes to {}", out.display());
            Ok(())
        }
    }
}
