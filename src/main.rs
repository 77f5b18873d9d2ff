//! The `unisono` command: demo, registrar, coordinator, client, keys and models in one binary.

mod commands;
mod demo;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Secure aggregation for federated learning: devices keep their data, the coordinator learns sums only, and the model
/// leaves signed and encrypted.
///
/// Begin with `unisono demo`. For a deployment: `unisono registrar init`, `unisono keys`, `unisono client keys`, `unisono
/// registrar enrol` and `publish`, then `unisono coordinator` and on each device `unisono client run`; docs/operations.md
/// walks through it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// A whole training run on this machine: registrar, coordinator and clients over gRPC, on real data.
    Demo(demo::Args),
    /// Says which devices exist: init, enrol, revoke, publish, list, audit.
    #[command(subcommand)]
    Registrar(commands::registrar::Command),
    /// Serves a task: rounds, training, release.
    Coordinator(commands::coordinator::Args),
    /// Commands to a running coordinator: status, abort-round, skip-to-round.
    Admin(commands::admin::Args),
    /// Copies a coordinator's state, of a running one too.
    Backup(commands::admin::Backup),
    /// A device: make its keys, train on its data, open the released model.
    #[command(subcommand)]
    Client(commands::client::Command),
    /// Makes a service's keys.
    #[command(subcommand)]
    Keys(commands::keys::Command),
    /// Thousands of clients in one process, with the real protocol and no network; tables, JSON, CSV and plots.
    Simulate(commands::simulate::Args),
    /// Makes an initial model; inspects a released one.
    #[command(subcommand)]
    Model(commands::model::Command),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Some errors tell their cause themselves.
            let tell = |text: String, cause: &(dyn std::error::Error + 'static)| match cause.to_string() {
                cause if text.contains(&cause) => text,
                cause => format!("{text}: {cause}"),
            };
            eprintln!("error: {}", error.chain().fold(String::new(), tell).trim_start_matches(": "));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let default = if matches!(cli.command, Command::Demo(_) | Command::Simulate(_)) { "error" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // Colours are for people: a file or a pipe gets none, and neither does who asked for none (no-color.org).
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    if cli.log_json {
        log.json().init()
    } else {
        log.init()
    }
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Registrar(command) => commands::registrar::run(command),
        Command::Coordinator(args) => commands::coordinator::run(args),
        Command::Admin(args) => commands::admin::run(args),
        Command::Backup(args) => commands::admin::backup(args),
        Command::Client(command) => commands::client::run(command),
        Command::Keys(command) => commands::keys::run(command),
        Command::Simulate(args) => commands::simulate::run(args),
        Command::Model(command) => commands::model::run(command),
    }
}
