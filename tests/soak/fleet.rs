//! The devices, each a process: started again when it was killed, and never gone by itself before the task is finished.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::network::Path;
use crate::process::{Process, length, tail};
use crate::world::World;

/// What a device's record must never have to say: that it is asked to take a step a second time.
const REPLAYS: [&str; 6] = [
    "never goes back",
    "has masked an input before",
    "the record does not say",
    "answered for another set",
    "participation record failed",
    "participation record was changed",
];

struct Device {
    process: Option<Process>,
    /// When to start it again.
    due: Option<Instant>,
    log: PathBuf,
}

pub struct Fleet {
    world: Arc<World>,
    pub paths: Vec<Path>,
    devices: Vec<Device>,
}

impl Fleet {
    pub fn start(world: &Arc<World>, paths: Vec<Path>) -> Self {
        let start = |(i, path): (usize, &Path)| {
            let log = world.path(&format!("device-{i}.log"));
            Device { process: Some(Process::start(&mut world.device(i as u32, path.port), &log)), due: None, log }
        };
        let devices = paths.iter().enumerate().map(start).collect();
        Self { world: world.clone(), paths, devices }
    }

    /// Kills a device, if it runs.
    pub fn kill(&mut self, i: usize, start_at: Instant) -> bool {
        let device = &mut self.devices[i];
        let Some(process) = device.process.take() else { return false };
        process.kill();
        device.due = Some(start_at);
        true
    }

    /// Starts who is due.
    pub fn start_due(&mut self) {
        let now = Instant::now();
        for (i, device) in
            self.devices.iter_mut().enumerate().filter(|(_, device)| device.due.is_some_and(|due| due <= now))
        {
            device.due = None;
            let mut command = self.world.device(i as u32, self.paths[i].port);
            device.process = Some(Process::start(&mut command, &device.log));
        }
    }

    /// Starts who is due.
    ///
    /// # Errors
    /// A device that ended by itself.
    pub fn tick(&mut self) -> Result<(), String> {
        self.start_due();
        for (i, device) in self.devices.iter_mut().enumerate() {
            if let Some(status) = device.process.as_mut().and_then(Process::ended) {
                return Err(format!("device {i} ended by itself: {status}\n{}", tail(&device.log)));
            }
        }
        Ok(())
    }

    /// How many have ended, which must have been well.
    ///
    /// # Errors
    /// A device that has not ended with "finished".
    pub fn finished(&mut self) -> Result<usize, String> {
        let mut count = 0;
        for (i, device) in self.devices.iter_mut().enumerate() {
            let Some(status) = device.process.as_mut().and_then(Process::ended) else { continue };
            let last = tail(&device.log);
            if !status.success() || !last.contains("the task is finished") {
                return Err(format!("device {i} ended with {status}\n{last}"));
            }
            count += 1;
        }
        Ok(count)
    }

    /// The logs of those that still run.
    pub fn unfinished(&mut self) -> String {
        let running = self.devices.iter_mut().filter_map(|device| match device.process.as_mut()?.ended() {
            None => Some(tail(&device.log)),
            Some(_) => None,
        });
        running.collect()
    }

    pub fn log_bytes(&self) -> u64 {
        self.devices.iter().map(|device| length(&device.log)).sum()
    }

    /// Reads what the devices have told.
    ///
    /// # Errors
    /// A record that was asked twice, or a panic.
    pub fn check_logs(&self) -> Result<(), String> {
        for device in &self.devices {
            let text = String::from_utf8_lossy(&std::fs::read(&device.log).unwrap_or_default()).into_owned();
            let bad = |line: &&str| {
                // A full disk is no replay.
                let full = line.contains("participation record failed") && line.contains("No space left on device");
                line.contains("panicked") || (!full && REPLAYS.iter().any(|words| line.contains(words)))
            };
            if let Some(line) = text.lines().find(bad) {
                return Err(format!("{}: {line}", device.log.display()));
            }
        }
        Ok(())
    }
}
