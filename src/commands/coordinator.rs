//! `unisono coordinator`: the service.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use unisono::coordinator::{Config, Coordinator};

use super::metrics;

/// Serves a task until it is stopped: rounds, training, and the release at the end. State is durable: after a crash, start it
/// again with the same configuration.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration, a TOML file; docs/operations.md explains every setting.
    #[arg(long)]
    config: PathBuf,
    /// Only check the configuration and the files that it names.
    #[arg(long)]
    check: bool,
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
        let Args { config, exit_when_trained, .. } = args;
        let starting = tokio::spawn(start(config));
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

fn check(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    config.raise_open_files()?;
    if let Some(keys) = config.round_keys()? {
        keys.read_roster()?;
    }
    config.release_keys()?;
    let model = config.initial_model()?;
    println!("the configuration is fine; the model has {} elements", model.values().len());
    Ok(())
}

async fn start(config: PathBuf) -> Result<Coordinator> {
    let config = Config::load(&config)?;
    let started = metrics::Started::default();
    if let Some(address) = config.metrics_listen {
        metrics::serve(address, started.clone()).await?;
    }
    let coordinator = Coordinator::start(config).await?;
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
