//! The end of the soak, in which everything must be there: all devices go home, every round fits its sum, and the release is the last
//! model.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use unisono::local::TASK;

use super::{Soak, TICK};
use crate::flood;
use crate::report::Report;
use crate::sums::check_rounds;
use crate::world::DEVICES;

/// All devices end within this time after the last round.
const ENDS_WITHIN: Duration = Duration::from_secs(120);
/// Most bytes of the coordinator's log: in a minute, and of a start, which begins to count refusals anew.
const MOST_LOG: (f64, u64) = (512.0 * 1024.0, 192 << 10);

impl Soak {
    /// Two more rounds, and everybody goes home.
    pub fn finish(&mut self) -> Result<Report, String> {
        self.office_stops.store(true, Ordering::Relaxed);
        while self.office.as_ref().is_some_and(|office| !office.is_finished()) {
            self.tick()?;
        }
        let office = self.close_office()?;
        self.service.stop();
        while !self.service.is_stopped() {
            self.tick()?;
        }
        let took = self.began.elapsed();
        self.sums.look(true)?;
        check_rounds(&self.world.state, &self.sums)?;
        self.world.configure(self.sums.newest().unwrap_or(0) + 2);
        self.service.start_again();
        let until = Instant::now() + ENDS_WITHIN;
        let mut devices = 0;
        while devices < DEVICES as usize {
            self.service.tick()?;
            self.look(Instant::now())?;
            self.fleet.start_due();
            devices = self.fleet.finished()?;
            if Instant::now() > until {
                let error = format!("{devices} of {DEVICES} devices have ended {ENDS_WITHIN:?} after the last fault");
                return Err(format!("{}\n{}", self.service.with_log(&error), self.fleet.unfinished()));
            }
        }
        let flood = flood::counts(&self.flood_counts);
        self.open_release()?;
        self.service.stop();
        while !self.service.is_stopped() {
            self.service.tick()?;
            std::thread::sleep(TICK);
        }
        self.sums.look(true)?;
        let stored_rounds = check_rounds(&self.world.state, &self.sums)?;
        self.check_told()?;
        self.fleet.check_logs()?;
        let coordinator_log = self.service.log_bytes();
        let allowed = (MOST_LOG.0 * took.as_secs_f64() / 60.0) as u64 + MOST_LOG.1 * self.service.starts();
        if coordinator_log > allowed {
            return Err(self.service.with_log(&format!("the coordinator's log has {coordinator_log} bytes")));
        }
        Ok(Report {
            seed: self.run.seed,
            took,
            faults: std::mem::take(&mut self.faults),
            disk: self.run.disk.is_some(),
            office,
            flood,
            sums: self.sums.verified.len(),
            stored_rounds,
            devices,
            starts: self.service.starts(),
            gave_up: self.service.gave_up,
            most: self.service.most,
            coordinator_log,
            device_logs: self.fleet.log_bytes(),
            longest_recovery: self.longest_recovery,
        })
    }

    /// A device opens the release: it is the last model.
    fn open_release(&mut self) -> Result<(), String> {
        let endpoint = format!("http://{}", self.world.address);
        let arguments = ["client", "open", "--model", TASK, "--coordinator", &endpoint, "--keys", "device-0.key"];
        let state = self.world.device_state(0);
        let more = ["--registrar", "registrar/registrar.pub", "--state-dir", &state, "--out", "opened.safetensors"];
        self.world.succeed(&[&arguments[..], &more].concat());
        let opened = std::fs::read(self.world.path("opened.safetensors")).map_err(|error| error.to_string())?;
        // The last round may have ended since the sums were looked at.
        self.sums.look(true)?;
        let newest = self.sums.newest().unwrap_or(0);
        if self.sums.model(newest) == Some(&opened) {
            return Ok(());
        }
        let same = (0..=newest).rev().find(|&version| self.sums.model(version) == Some(&opened));
        Err(format!("the released model is not version {newest}, the newest one; it is version {same:?}"))
    }

    /// What the coordinator has told about finished rounds fits the sums.
    fn check_told(&self) -> Result<(), String> {
        for (version, (round, survivors)) in &self.service.log.told.finished {
            let sum = self.sums.verified.get(version).map(|sum| sum.survivors.len());
            if sum != Some(*survivors) {
                return Err(format!(
                    "round {round} told {survivors} survivors in version {version}, its sum has {sum:?}"
                ));
            }
        }
        Ok(())
    }
}
