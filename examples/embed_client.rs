//! The SDK in an application: a trainer of one's own, and a run loop that survives reconnects.
//!
//! `cargo run --release --example embed_client` starts a coordinator beside the clients, so that it runs by itself. In an
//! application only the part between the lines stays, with the device's own key file and the real address.

use std::sync::Arc;

use tokio::task::JoinSet;
use unisono::client::{Client, Event, TrainError, Trainer, TrainingRound, Update};
use unisono::coordinator::Coordinator;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::policy::Policy;

// ---------------------------------------------------------------------------------------------------------------------

/// Pulls the model towards the mean of what this device has measured. A real trainer runs its own framework here.
struct Measurements(Vec<f32>);

impl Trainer for Measurements {
    fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError> {
        let mean = self.0.iter().sum::<f32>() / self.0.len() as f32;
        let update: Vec<f32> = round.model.values().iter().map(|weight| mean - weight).collect();
        let loss = update.iter().map(|x| x * x).sum::<f32>() / update.len() as f32;
        // The weight and both metrics of the task are masked like the update itself.
        Ok(Update { update, weight: self.0.len() as f32, metrics: vec![loss, 0.0] })
    }
}

async fn device(endpoint: String, deployment: Arc<Deployment>, i: u32) -> anyhow::Result<u64> {
    let mut client = Client::builder(endpoint, TASK, deployment.device_keys(i))
        .registrar(deployment.registrar.clone())
        .state_dir(deployment.device_state(i))
        // The rounds of this example follow each other at once; those of a real task should not.
        .policy(Policy { n_min: 4, min_interval_s: 0, ..Policy::default() })
        .on_event(move |event| match event {
            Event::Completed { round, traffic } if i == 0 => {
                println!("device 0: round {round}, {} bytes up, {} down", traffic.total_up(), traffic.total_down());
            }
            Event::Missed { round, error } => println!("device {i}: missed round {round}: {error}"),
            _ => {}
        })
        .build(Measurements((0..=i).map(|x| x as f32 * 0.1).collect()))?;
    Ok(client.run().await?.completed)
}

// ---------------------------------------------------------------------------------------------------------------------

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let deployment = Arc::new(Deployment::make(&Plan { clients: 6, rounds: 3, delta: 0.0, max_examples: 6 })?);
    let mut coordinator = Coordinator::start(deployment.config.clone()).await?;
    let mut devices = JoinSet::new();
    for i in 0..6 {
        devices.spawn(device(format!("http://{}", coordinator.address()), deployment.clone(), i));
    }
    coordinator.trained().await?;
    while let Some(completed) = devices.join_next().await {
        println!("a device completed {} rounds", completed??);
    }
    coordinator.stop().await;
    Ok(())
}
