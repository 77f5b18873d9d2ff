//! What the processes need: a folder with keys, roster, configuration and each device's data.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use unisono::files;
use unisono::local::{Deployment, Plan, TASK};
use unisono::protocol::keyfile::{self, Role};
use unisono::softmax::MAX_LOSS;

use crate::sums::example;

/// Devices that are in the first roster.
pub const ENROLLED: u32 = 12;
/// Devices that are enrolled and published while the soak runs.
pub const LATE: u32 = 2;
pub const DEVICES: u32 = ENROLLED + LATE;
/// Devices whose records are on the small file system, too.
const ON_DISK: u32 = 3;
/// Limits of the coordinator that are checked from outside.
pub const MAX_CONNECTIONS: u64 = 1000;
pub const BITS: u32 = 16;
pub const CLIP: f32 = 0.5;

pub struct World {
    deployment: Deployment,
    disk: Option<PathBuf>,
    pub state: PathBuf,
    pub address: SocketAddr,
}

/// A loopback address of this process's own, so that nobody else's port is in the way between two starts.
fn own_address() -> SocketAddr {
    let pid = std::process::id().to_le_bytes();
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let ip = Ipv4Addr::new(127, 100 + pid[0] % 100, pid[1], 1 + (nanos / 1000 % 250) as u8);
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

impl World {
    /// `disk`: a small file system for the coordinator's state.
    pub fn make(disk: Option<&Path>) -> Self {
        let plan = Plan { clients: ENROLLED, rounds: 1, delta: 0.2, max_examples: 1 };
        let deployment = Deployment::make(&plan).unwrap();
        let state = disk.map_or_else(|| deployment.folder().join("state"), |disk| disk.join("state"));
        let world = Self { deployment, disk: disk.map(Into::into), state, address: own_address() };
        for late in ENROLLED..DEVICES {
            world.succeed(&["client", "keys", &format!("device-{late}.key")]);
        }
        for i in 0..DEVICES {
            let public = world.path(&format!("device-{i}.key.pub"));
            if !public.exists() {
                std::fs::write(public, world.deployment.device_keys(i).enrolment().to_text()).unwrap();
            }
            std::fs::write(world.path(&format!("device-{i}.csv")), example(i)).unwrap();
        }
        let public = |role, name: &str| {
            let text = std::fs::read_to_string(world.path(name)).unwrap();
            let key = keyfile::signing_key_from_text(role, &text).unwrap().verifying_key();
            std::fs::write(world.path(&format!("{name}.pub")), keyfile::verifying_key_to_text(role, &key)).unwrap();
        };
        public(Role::Coordinator, "coordinator.key");
        public(Role::Publisher, "publisher.key");
        world.configure(1_000_000);
        world.succeed(&["coordinator", "--check", "--config", "coordinator.toml"]);
        world
    }

    /// Writes the coordinator's configuration.
    pub fn configure(&self, rounds: u64) {
        let (address, state, n_min) = (self.address, self.state.display(), self.deployment.n_min);
        let text = format!(
            r#"listen = "{address}"
state_dir = "{state}"
registrar = "registrar/registrar.pub"
roster = "roster.bin"
key = "coordinator.key"
max_connections = {MAX_CONNECTIONS}
metric = [
    {{ name = "loss", lower = 0.0, upper = {MAX_LOSS:?} }},
    {{ name = "accuracy", lower = 0.0, upper = 1.0 }},
]

# No address is a proxy's: every limit holds for the flood.
[limits]
proxies = []

[task]
name = "{TASK}"
rounds = {rounds}
initial_model = "initial.safetensors"
pause_after_abort_ms = 50

[round]
n_min = {n_min}
n_max = {DEVICES}
gamma = 0.05
delta = 0.2
advertise_ms = 6000
share_ms = 6000
mask_ms = 8000
confirm_ms = 6000
unmask_ms = 8000
straggler_grace_ms = 400
chunk_elements = 64

[quantiser]
bits = {BITS}
clip = {CLIP:?}
max_weight = 1.0
rounding = "deterministic"

[release]
model_id = "{TASK}"
publisher = "publisher.key"
key_encryption_key = "kek.key"
valid_days = 30
"#
        );
        files::replace(&self.path("coordinator.toml"), text.as_bytes()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.deployment.folder().join(name)
    }

    pub fn registrar(&self) -> &unisono::crypto::sign::VerifyingKey {
        &self.deployment.registrar
    }

    /// Client ids of the first devices.
    pub fn client_ids(&self) -> Vec<[u8; 16]> {
        (0..ENROLLED).map(|i| self.deployment.device_keys(i).client_id.0).collect()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
        command.args(arguments).current_dir(self.deployment.folder()).env_remove("RUST_LOG");
        command
    }

    pub fn coordinator(&self) -> Command {
        self.command(&["--log-json", "coordinator", "--config", "coordinator.toml"])
    }

    /// Folder of device `i`'s record.
    pub fn device_state(&self, i: u32) -> String {
        let folder = self.disk.as_deref().filter(|_| i < ON_DISK).unwrap_or(self.deployment.folder());
        folder.join(format!("device-{i}")).display().to_string()
    }

    pub fn device(&self, i: u32, port: u16) -> Command {
        let (n_min, endpoint) = (self.deployment.n_min.to_string(), format!("http://127.0.0.1:{port}"));
        let name = |suffix: &str| format!("device-{i}{suffix}");
        let mut command = self.command(&["client", "run", "--task", TASK, "--registrar", "registrar/registrar.pub"]);
        command.args(["--coordinator", &endpoint, "--keys", &name(".key"), "--state-dir", &self.device_state(i)]);
        command.args(["--data", &name(".csv"), "--epochs", "1", "--n-min", &n_min, "--min-interval", "0"]);
        command
    }

    /// What a command prints, which must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(output.stdout), text(output.stderr));
        text(output.stdout)
    }
}

/// Where device `i`'s connections come from: an address of its own, as in a fleet.
pub fn address_of(i: u32) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, 1 + i as u8).into()
}
