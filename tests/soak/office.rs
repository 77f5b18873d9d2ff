//! The registrar's office: enrols, renews, revokes and publishes with the command itself, which is killed now and then, and carries
//! rosters to the coordinator, not always whole. What was confirmed has happened, whatever was killed since.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use unisono::files;
use unisono::protocol::keyfile::DeviceKeys;
use unisono::protocol::roster::Roster;

use crate::world::{DEVICES, ENROLLED, World};

/// A command is killed so often.
const KILLED: f64 = 0.4;
/// A roster arrives first as its first half so often.
const HALF: f64 = 0.25;

/// What the office has done.
#[derive(Debug, Default)]
pub struct Done {
    /// Commands that ended well, and those that were killed before their end, by kind.
    pub confirmed: BTreeMap<&'static str, u64>,
    pub killed: BTreeMap<&'static str, u64>,
    pub audits: u64,
    /// Rosters delivered whole, and halves.
    pub delivered: u64,
    pub halves: u64,
    pub epoch: u64,
}

pub struct Office {
    world: Arc<World>,
    rng: ChaCha8Rng,
    /// Devices that take part in nothing, to be enrolled and revoked.
    spares: u64,
    enrolled: BTreeSet<String>,
    revoked: BTreeSet<String>,
    /// Head of the log that the last audit has told.
    head: Option<String>,
    /// How long each kind of command takes.
    takes: BTreeMap<&'static str, Duration>,
    done: Done,
}

impl Office {
    pub fn new(world: &Arc<World>, rng: ChaCha8Rng) -> Self {
        Self {
            world: world.clone(),
            rng,
            spares: 0,
            enrolled: BTreeSet::new(),
            revoked: BTreeSet::new(),
            head: None,
            takes: BTreeMap::new(),
            done: Done::default(),
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// What is wrong with the registrar.
    pub fn work(mut self, stop: &AtomicBool) -> Result<Done, String> {
        let mut late_at = Some(Instant::now() + Duration::from_secs(8));
        while !stop.load(Ordering::Relaxed) {
            if late_at.is_some_and(|at| at <= Instant::now()) {
                // Those that have run since the beginning, and have waited.
                let keys: Vec<String> = (ENROLLED..DEVICES).map(public).collect();
                late_at = if self.enrol("enrol", &keys)? { None } else { late_at };
                self.publish()?;
            } else {
                self.one()?;
            }
            let pause = self.rng.random_range(200..1500);
            std::thread::sleep(Duration::from_millis(pause));
        }
        while late_at.is_some() {
            let keys: Vec<String> = (ENROLLED..DEVICES).map(public).collect();
            late_at = if self.enrol("enrol", &keys)? { None } else { late_at };
        }
        // The end: everything is delivered.
        while !self.publish()? {}
        self.deliver(false)?;
        self.audit()?;
        Ok(self.done)
    }

    fn one(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..10) {
            0..3 => {
                let name = format!("spare-{}.pub", self.spares);
                self.spares += 1;
                let keys = DeviceKeys::generate(&mut rand_core::UnwrapErr(getrandom::SysRng));
                std::fs::write(self.world.path(&name), keys.enrolment().to_text()).map_err(|e| e.to_string())?;
                if self.enrol("enrol", std::slice::from_ref(&name))? {
                    self.enrolled.insert(keys.client_id.to_string());
                }
            }
            3..5 => {
                let Some(client) = self.enrolled.difference(&self.revoked).next().cloned() else { return Ok(()) };
                if self.command("revoke", &["revoke", "registrar", &client, "--json"])?.is_some() {
                    self.revoked.insert(client);
                }
            }
            5..6 => {
                let keys: Vec<String> = (0..ENROLLED).map(public).collect();
                self.enrol("renew", &keys)?;
            }
            _ => {
                if self.publish()? {
                    let half = self.rng.random_bool(HALF);
                    self.deliver(half)?;
                }
            }
        }
        Ok(())
    }

    fn enrol(&mut self, kind: &'static str, names: &[String]) -> Result<bool, String> {
        let mut arguments = vec!["enrol", "registrar", "--json"];
        if kind == "renew" {
            arguments.push("--renew");
        }
        arguments.extend(names.iter().map(String::as_str));
        Ok(self.command(kind, &arguments)?.is_some())
    }

    fn publish(&mut self) -> Result<bool, String> {
        let keys = ["--coordinator", "coordinator.key.pub", "--publisher", "publisher.key.pub"];
        let arguments = [&["publish", "registrar"][..], &keys, &["--out", "published.bin", "--json"]].concat();
        let Some(answer) = self.command("publish", &arguments)? else { return Ok(false) };
        let epoch = answer["epoch"].as_u64().ok_or("a publication without an epoch")?;
        if epoch <= self.done.epoch {
            return Err(format!("epoch {epoch} is published after epoch {}", self.done.epoch));
        }
        self.done.epoch = epoch;
        Ok(true)
    }

    /// Carries the roster to the coordinator.
    fn deliver(&mut self, half: bool) -> Result<(), String> {
        let bytes = std::fs::read(self.world.path("published.bin")).map_err(|error| error.to_string())?;
        let roster =
            Roster::from_bytes(&bytes, self.world.registrar()).map_err(|error| format!("published.bin: {error}"))?;
        if roster.head().epoch < self.done.epoch {
            return Err(format!("published.bin is of epoch {}, not {}", roster.head().epoch, self.done.epoch));
        }
        let target = self.world.path("roster.bin");
        if half {
            self.done.halves += 1;
            std::fs::write(&target, &bytes[..bytes.len() / 2]).map_err(|error| error.to_string())?;
            let pause = self.rng.random_range(100..3000);
            std::thread::sleep(Duration::from_millis(pause));
        }
        self.done.delivered += 1;
        files::replace(&target, &bytes).map_err(|error| error.to_string())
    }

    /// Runs a command, which may be killed: its answer, if it was not. After a kill the log is audited, and the list looked at.
    fn command(&mut self, kind: &'static str, arguments: &[&str]) -> Result<Option<Value>, String> {
        let mut command = self.world.command(&[&["registrar"], arguments].concat());
        let began = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if self.rng.random_bool(KILLED) {
            let takes = self.takes.get(kind).copied().unwrap_or(Duration::from_millis(200));
            std::thread::sleep(takes.mul_f64(self.rng.random_range(0.0..1.1)));
            let _ = child.kill();
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.code().is_none() {
            *self.done.killed.entry(kind).or_default() += 1;
            self.audit()?;
            return Ok(None);
        }
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("registrar {arguments:?}: {} {why}", output.status));
        }
        self.takes.insert(kind, began.elapsed());
        *self.done.confirmed.entry(kind).or_default() += 1;
        if self.rng.random_bool(0.2) {
            self.audit()?;
        }
        serde_json::from_slice(&output.stdout).map(Some).map_err(|error| format!("registrar {arguments:?}: {error}"))
    }

    /// The log verifies and still has the head that was noted before; what was confirmed is listed.
    fn audit(&mut self) -> Result<(), String> {
        let head = self.head.clone();
        let mut arguments = vec!["registrar", "audit", "registrar", "--json"];
        arguments.extend(head.iter().flat_map(|head| ["--head", head.as_str()]));
        let told = self.run(&arguments)?;
        self.head = Some(told["log"].as_str().ok_or("an audit without a head")?.to_owned());
        self.done.audits += 1;
        let list = self.run(&["registrar", "list", "registrar", "--json"])?;
        let devices = list["devices"].as_array().ok_or("a list without devices")?;
        let revoked: BTreeMap<&str, bool> = devices
            .iter()
            .filter_map(|device| Some((device["client_id"].as_str()?, !device["revoked_at"].is_null())))
            .collect();
        if let Some(lost) = self.enrolled.iter().find(|id| !revoked.contains_key(id.as_str())) {
            return Err(format!("device {lost} was enrolled and is not listed"));
        }
        if let Some(lost) = self.revoked.iter().find(|id| revoked.get(id.as_str()) != Some(&true)) {
            return Err(format!("device {lost} was revoked and is not any more"));
        }
        Ok(())
    }

    fn run(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = self.world.command(arguments).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }
}

fn public(i: u32) -> String {
    format!("device-{i}.key.pub")
}
