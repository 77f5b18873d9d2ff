//! `unisono coordinator`: the service.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use unisono::coordinator::tls::{Listener, ServerTls};
use unisono::coordinator::{Change, Config, Coordinator, CoordinatorError};

use super::{metrics, now};

/// Serves a task until it is stopped: rounds, training, and the release at the end. State is durable: after a crash, start it
/// again with the same configuration.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration, a TOML file; docs/operations.md explains every setting.
    #[arg(long)]
    config: PathBuf,
    /// Only check the configuration and what it names: keys, roster, model, addresses, folders. All that is wrong is told at once.
    #[arg(long)]
    check: bool,
    /// Accept that these settings differ from those with which the task has learned: names with commas between them, as the refusal
    /// lists them.
    #[arg(long, value_name = "SETTINGS", value_delimiter = ',')]
    accept_changes: Vec<String>,
    /// Stop when the training is finished, instead of serving releases and grants.
    #[arg(long)]
    exit_when_trained: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.check {
        return check(&args);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(async {
        // Before anything is read: from here on a signal is a clean stop.
        let mut stop = Stop::catch()?;
        let Args { config, accept_changes, exit_when_trained, .. } = args;
        let starting = tokio::spawn(start(config, accept_changes));
        let mut coordinator = tokio::select! {
            biased;
            () = stop.asked() => {
                tracing::info!("stopped while starting");
                return Ok(());
            }
            started = starting => started.context("starting failed")??,
        };
        tokio::select! {
            result = coordinator.trained() => {
                result?;
                if !exit_when_trained {
                    stop.asked().await;
                }
            }
            () = stop.asked() => {}
        }
        tracing::info!("stopping; a round in progress goes on at the next start");
        coordinator.stop().await;
        Ok(())
    });
    // What still loads is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Tells everything that is wrong, one fault a line on standard error.
fn check(args: &Args) -> Result<()> {
    let (config, faults) = Config::examine(&args.config, now());
    let mut faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    if let Some(config) = config.as_ref() {
        config.warnings(now()).iter().for_each(|warning| eprintln!("{}: warning: {warning}", args.config.display()));
        faults.extend(config.raise_open_files().err().map(|error| error.to_string()));
        let runtime = tokio::runtime::Runtime::new()?;
        let changes = runtime.block_on(unisono::coordinator::changes(config));
        match changes {
            Ok(changes) => {
                let not_accepted =
                    |change: &&Change| change.ruled_out_by > 0 || !args.accept_changes.contains(&change.setting);
                let advice = "put the stored value back, or start with --accept-changes";
                faults.extend(changes.iter().filter(not_accepted).map(|change| format!("{change}; {advice}")));
            }
            // Told above.
            Err(CoordinatorError::Config(_)) => {}
            Err(error) => faults.push(format!("state_dir: {error}")),
        }
        match runtime.block_on(unisono::coordinator::check_key_encryption_key(config)) {
            Ok(()) | Err(CoordinatorError::Config(_)) => {}
            Err(error) => faults.push(error.to_string()),
        }
    }
    match (faults.as_slice(), config) {
        ([], Some(config)) => {
            println!("the configuration is fine; the model has {} elements", elements(&config));
            Ok(())
        }
        (faults, _) => {
            faults.iter().for_each(|fault| eprintln!("{}: {fault}", args.config.display()));
            bail!("{} faults in {}", faults.len(), args.config.display())
        }
    }
}

/// Elements of the initial model; "the stored number of" where only the state has it.
fn elements(config: &Config) -> String {
    config.initial_model().map_or_else(|_| "the stored number of".into(), |model| model.values().len().to_string())
}

async fn start(config: PathBuf, accept: Vec<String>) -> Result<Coordinator> {
    let config = Config::load(&config)?;
    let started = metrics::Started::default();
    if let Some(address) = config.metrics_listen {
        let tls = config.metrics_tls().map(|files| ServerTls::load(files, Listener::Metrics)).transpose()?;
        metrics::serve(address, started.clone(), tls).await?;
    }
    let coordinator = Coordinator::start_accepting(config, &accept).await?;
    let _ = started.set(coordinator.health());
    Ok(coordinator)
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn catch() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
