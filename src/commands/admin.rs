//! `unisono admin` and `unisono backup`: what an operator asks of a coordinator on this machine.

use std::path::PathBuf;

use anyhow::Result;
use unisono::coordinator::admin::{self, Request};
use unisono::coordinator::storage;

/// Commands to a running coordinator, over the socket in its state folder.
#[derive(clap::Args)]
pub struct Args {
    /// The `state_dir` of the coordinator's configuration.
    #[arg(long, value_name = "DIR", env = "UNISONO_COORDINATOR_STATE")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Prints as JSON what the coordinator does now.
    Status,
    /// Ends the round at hand without a sum; the next one is opened.
    AbortRound {
        /// Name of the task, as a check.
        #[arg(long)]
        task: Option<String>,
    },
    /// Ends the round at hand without a sum and goes on with another number: for a coordinator whose state went back.
    SkipToRound {
        /// Number of the next round.
        round: u64,
        /// Name of the task, as a check.
        #[arg(long)]
        task: Option<String>,
    },
}

pub fn run(args: Args) -> Result<()> {
    let request = match args.command {
        Command::Status => Request::Status,
        Command::AbortRound { task } => Request::AbortRound { task },
        Command::SkipToRound { round, task } => Request::SkipToRound { task, round },
    };
    let answer = tokio::runtime::Runtime::new()?.block_on(admin::call(&args.state, &request))?;
    match answer {
        serde_json::Value::String(text) => println!("{text}"),
        other => println!("{other:#}"),
    }
    Ok(())
}

/// Copies a coordinator's state, of a running one too. What is copied is consistent; docs/operations.md says how to restore it.
#[derive(clap::Args)]
pub struct Backup {
    /// The `state_dir` of the coordinator's configuration.
    #[arg(long, value_name = "DIR", env = "UNISONO_COORDINATOR_STATE")]
    state: PathBuf,
    /// The new folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn backup(args: Backup) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(storage::backup(&args.state, &args.out))?;
    println!("backup: {}", args.out.display());
    Ok(())
}
