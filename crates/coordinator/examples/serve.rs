//! Serves one task from a configuration file until training is over: `cargo run --example serve -- coordinator.toml`.
//! Prints the address on the first line, and a line for each round.

use std::io::Write;
use std::path::Path;

use unisono_coordinator::{Config, Coordinator, Event};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name the configuration file")?;
    let mut coordinator = Coordinator::start(Config::load(Path::new(&path))?).await?;
    let mut events = coordinator.events();
    println!("http://{}", coordinator.address());
    std::io::stdout().flush()?;
    let printing = tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            match event {
                Event::RoundFinished(result) => {
                    println!("round {} finished with {} updates", result.round, result.outcome.survivors.len());
                }
                Event::RoundAborted { round, reason } => println!("round {round} aborted: {reason}"),
                _ => {}
            }
        }
    });
    coordinator.trained().await?;
    // Clients still ask whether the task is finished.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    printing.abort();
    coordinator.stop().await;
    Ok(())
}
