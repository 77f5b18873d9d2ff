//! A registrar and a coordinator with a fleet: what they take in time, memory and files, by the number of devices.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use tempfile::TempDir;
use unisono::protocol::keyfile::{self, DeviceKeys, Role};
use unisono::protocol::roster::{ReadAt, Roster};

const CONFIGURATION: &str = r#"
listen = "127.0.0.1:0"
state_dir = "state"
registrar = "registrar/registrar.pub"
roster = "roster.bin"
key = "coordinator.key"
metric = [{ name = "loss", lower = 0.0, upper = 10.0 }]
[task]
name = "digits"
rounds = 2
initial_model = "initial.safetensors"
[round]
n_min = 4
n_max = 5
gamma = 0.05
delta = 0.2
[quantiser]
bits = 16
clip = 4.0
max_weight = 1000.0
"#;

/// A folder with everything that a coordinator needs but the roster.
struct World {
    folder: TempDir,
}

/// What a process took.
struct Cost {
    seconds: f64,
    /// Most memory, in MB.
    peak: u64,
}

/// Most memory that a running process has had, in MB.
fn peak(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1000)
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.run(&["registrar", "init", "registrar"]);
        world.run(&["keys", "coordinator", "coordinator.key"]);
        world.run(&["model", "init", "--features", "4", "--classes", "3", "--out", "initial.safetensors"]);
        fs::write(world.path("coordinator.toml"), CONFIGURATION).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, arguments: &[&str], stderr: Stdio) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
        command.args(arguments).current_dir(self.folder.path()).env("RUST_LOG", "info");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
    }

    /// Runs a command to its end, which has to be a good one.
    fn run(&self, arguments: &[&str]) -> Cost {
        let began = Instant::now();
        let log = File::create(self.path("log")).unwrap();
        let mut child = self.start(arguments, log.into());
        let mut most = 0;
        let status = loop {
            most = peak(&child).unwrap_or(0).max(most);
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        assert!(status.success(), "{arguments:?}: {}", fs::read_to_string(self.path("log")).unwrap());
        Cost { seconds: began.elapsed().as_secs_f64(), peak: most }
    }

    /// Starts a coordinator, waits for its first round, and stops it.
    fn serve(&self) -> Cost {
        let began = Instant::now();
        let mut child = self.start(&["coordinator", "--config", "coordinator.toml"], Stdio::piped());
        let mut log = Vec::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            log.push(line.unwrap());
            if log.last().is_some_and(|line| line.contains("round opened")) {
                break;
            }
        }
        let cost = Cost { seconds: began.elapsed().as_secs_f64(), peak: peak(&child).unwrap() };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(log.last().is_some_and(|line| line.contains("round opened")), "{log:#?}");
        cost
    }

    fn publish(&self) -> Cost {
        self.run(&["registrar", "publish", "registrar", "--coordinator", "coordinator.key.pub", "--out", "roster.bin"])
    }

    /// The roster as the coordinator has it: in files.
    fn roster(&self) -> Roster {
        let text = fs::read_to_string(self.path("registrar/registrar.pub")).unwrap();
        let key = keyfile::verifying_key_from_text(Role::Registrar, &text).unwrap();
        let file = Place(File::open(self.path("roster.bin")).unwrap());
        Roster::open(file, Place(tempfile::tempfile().unwrap()), &key).unwrap()
    }

    fn size(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().len() / 1_000_000
    }
}

/// A file that is read at any place.
struct Place(File);

impl ReadAt for Place {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.0, into, at)
    }
}

impl Write for Place {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes a table with that many devices: each makes its keys and signs, which takes longer than reading the table.
fn write_table(path: &Path, count: u32) {
    let line = |i: u32| {
        let device = DeviceKeys::generate(&mut ChaCha8Rng::seed_from_u64(i.into())).enrolment();
        let (identity, release) = (device.identity_key().as_bytes(), device.release_key().as_bytes());
        [&device.client_id().0[..], identity, release, device.signature()].map(hex::encode).join(",") + "\n"
    };
    let mut file = io::BufWriter::new(File::create(path).unwrap());
    writeln!(file, "client_id,identity_key,release_key,signature").unwrap();
    for first in (0..count).step_by(4096) {
        let lines: Vec<String> = (first..count.min(first + 4096)).into_par_iter().map(line).collect();
        lines.iter().for_each(|line| file.write_all(line.as_bytes()).unwrap());
    }
    file.flush().unwrap();
}

/// Everything from the table to the second start of the coordinator, told; the coordinator's costs are returned.
fn measure(count: u32) -> Vec<Cost> {
    let world = World::new();
    write_table(&world.path("all.csv"), count);
    let tell = |what: &str, cost: Cost| {
        println!("{what}: {:.2} s, {} MB", cost.seconds, cost.peak);
        cost
    };
    let bulk = tell("bulk enrolment", world.run(&["registrar", "enrol", "registrar", "--csv", "all.csv"]));
    println!("{:.0} devices a second", f64::from(count) / bulk.seconds);
    fs::remove_file(world.path("all.csv")).unwrap();
    tell("publishing", world.publish());
    world.run(&["client", "keys", "one.key"]);
    tell("one more enrolment", world.run(&["registrar", "enrol", "registrar", "one.key.pub"]));
    tell("publishing again", world.publish());
    tell("audit", world.run(&["registrar", "audit", "registrar"]));
    println!("database {} MB, roster {} MB", world.size("registrar/registrar.sqlite"), world.size("roster.bin"));
    let costs = vec![
        tell("coordinator --check", world.run(&["coordinator", "--config", "coordinator.toml", "--check"])),
        tell("first start, until a round is open", world.serve()),
        tell("second start", world.serve()),
    ];
    let roster = world.roster();
    let (clients, tries) = (roster.clients(), 10_000);
    let mut took: Vec<Duration> = (0..tries)
        .map(|i| {
            let began = Instant::now();
            let (_, proof) = roster.entry(clients[i * 7919 % clients.len()]).unwrap().unwrap();
            assert!(proof.path.len() <= 32);
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    println!("a leaf with its proof: {:?}, one of a hundred {:?} or more", took[tries / 2], took[tries * 99 / 100]);
    costs
}

#[test]
fn a_coordinator_does_not_hold_its_roster_in_memory() {
    // Without devices a coordinator has 19 MB. The roster's file has 28 MB.
    for cost in measure(20_000) {
        assert!(cost.peak < 40, "{} MB", cost.peak);
    }
}

/// `UNISONO_DEVICES=1000000 cargo test --test fleet -- --ignored --nocapture`, with 12 GB of room in TMPDIR.
#[test]
#[ignore = "a measurement"]
fn what_a_million_devices_take() {
    measure(std::env::var("UNISONO_DEVICES").map_or(1_000_000, |count| count.parse().unwrap()));
}
