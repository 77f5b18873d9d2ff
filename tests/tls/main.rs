//! TLS of the coordinator and the SDK, over real sockets: what is agreed on, what is refused and how that is told, certificates that
//! change while connections go on, and strangers who begin a handshake and don't end it.

mod certificates;
#[path = "../deployed/mod.rs"]
#[allow(dead_code)]
mod deployed;
mod faults;
mod handshakes;
mod raw;
mod reload;
mod settings;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unisono::client::{ClientBuilder, Error, Event, Retry, Summary, TlsFault};
use unisono::coordinator::Coordinator;
use unisono::coordinator::config::Tls;
use unisono::coordinator::tls::{Listener, ServerTls};
use unisono::local::Deployment;
use unisono_tls::rustls::NamedGroup;

use certificates::{Authority, Terms};
use deployed::{all, builder, constant, deployment, finished, free_port};

/// Five devices, a coordinator's certificate, and its authority.
struct World {
    deployment: Deployment,
    authority: Authority,
}

impl World {
    fn new(terms: Terms) -> Self {
        let (mut deployment, authority) = (deployment(1), Authority::new("authority"));
        authority.issue(terms).write(deployment.folder());
        deployment.config.tls = Some(files(&deployment));
        Self { deployment, authority }
    }

    async fn start(&self) -> Coordinator {
        Coordinator::start(self.deployment.config.clone()).await.unwrap()
    }

    /// A device that trusts the authority.
    fn device(&self, endpoint: &str, i: u32) -> ClientBuilder {
        builder(&self.deployment, endpoint, i).certificate_authority(self.authority.pem())
    }

    /// All five, as `set` makes them.
    fn devices(&self, endpoint: &str, set: impl Fn(ClientBuilder) -> ClientBuilder) -> JoinSet<Result<Summary, Error>> {
        let mut devices = JoinSet::new();
        for i in 0..5 {
            let mut client = set(self.device(endpoint, i)).build(constant(i)).unwrap();
            devices.spawn(async move { client.run().await });
        }
        devices
    }
}

fn files(deployment: &Deployment) -> Tls {
    let path = |name| deployment.folder().join(name);
    Tls { certificate: path("server.pem"), key: path("server.key"), client_ca: None }
}

fn https(coordinator: &Coordinator) -> String {
    format!("https://{}", coordinator.address())
}

/// What a device says that gives up at the first fault.
async fn fault(device: ClientBuilder) -> Error {
    let retry = Retry { give_up_after: Some(Duration::ZERO), ..Retry::default() };
    let mut client = device.retry(retry).build(constant(0)).unwrap();
    tokio::time::timeout(Duration::from_secs(30), client.run()).await.expect("it hangs").unwrap_err()
}

/// The fault, and the text that a person reads.
fn of_tls(error: Error) -> (TlsFault, String) {
    let text = error.to_string();
    match error {
        Error::Tls { fault, .. } => (fault, text),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_over_tls_gives_its_sum() {
    let world = World::new(Terms::default());
    let coordinator = world.start().await;
    let mut events = coordinator.events();
    let devices = world.devices(&https(&coordinator), |device| device);
    let result = finished(&mut events).await;
    assert_eq!(result.outcome.survivors.len(), 5);
    assert!((result.aggregate.mean[0] - 0.03).abs() < 1e-3, "{}", result.aggregate.mean[0]);
    assert_eq!(all(devices).await, vec![Summary { completed: 1, missed: 0, declined: 0 }; 5]);
    coordinator.stop().await;
}
