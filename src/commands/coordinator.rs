//! `unisono coordinator`: the service.

use std::path::PathBuf;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusBuilder;
use unisono::coordinator::{Config, Coordinator};

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
    let config = Config::load(&args.config)?;
    if args.check {
        if let Some(keys) = config.round_keys()? {
            keys.read_roster()?;
        }
        config.release_keys()?;
        let model = config.initial_model()?;
        println!("the configuration is fine; the model has {} elements", model.values().len());
        return Ok(());
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        if let Some(address) = config.metrics_listen {
            let prometheus = PrometheusBuilder::new().with_http_listener(address);
            prometheus.install().with_context(|| format!("can't serve metrics on {address}"))?;
        }
        let mut coordinator = Coordinator::start(config).await?;
        let stop = async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                result = tokio::signal::ctrl_c() => result,
                _ = terminate.recv() => Ok(()),
            }
        };
        tokio::pin!(stop);
        tokio::select! {
            result = coordinator.trained() => {
                result?;
                if !args.exit_when_trained {
                    stop.await?;
                }
            }
            result = &mut stop => result?,
        }
        tracing::info!("stopping; a round in progress goes on at the next start");
        coordinator.stop().await;
        Ok(())
    })
}
