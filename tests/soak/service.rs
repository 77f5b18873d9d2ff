//! The coordinator under its supervisor: started again whenever it is gone, as an init system does.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::Log;
use crate::process::{Held, Process, length, tail};
use crate::world::World;

/// After SIGTERM it has so long to end.
const STOPS_WITHIN: Duration = Duration::from_secs(20);
/// A supervisor's pause after a process that ended by itself.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    Kill,
    Terminate,
}

pub struct Service {
    world: Arc<World>,
    log_path: PathBuf,
    pub log: Log,
    process: Option<Process>,
    started: Instant,
    starts: u64,
    /// When to start it; `None`: it runs, or is not to.
    due: Option<Instant>,
    /// Blows to come, in order.
    planned: VecDeque<(Instant, Blow)>,
    /// Blows to come at times after the next start.
    at_start: VecDeque<(Duration, Blow)>,
    /// Pause before the start that follows the blows.
    pause: Duration,
    stops_until: Option<Instant>,
    /// Whether to start it again after SIGTERM.
    keep: bool,
    /// Until when a disk without room is an excuse for ending.
    pub excused_until: Instant,
    /// How often it ended by itself for want of room.
    pub gave_up: u64,
    pub most: Held,
}

impl Service {
    pub fn new(world: &Arc<World>) -> Self {
        let log_path = world.path("coordinator.log");
        let now = Instant::now();
        Self {
            world: world.clone(),
            log: Log::new(&log_path),
            log_path,
            process: None,
            started: now,
            starts: 0,
            due: Some(now),
            planned: VecDeque::new(),
            at_start: VecDeque::new(),
            pause: Duration::ZERO,
            stops_until: None,
            keep: true,
            excused_until: now,
            gave_up: 0,
            most: Held::default(),
        }
    }

    /// Blows from now on, with pauses between them; then a pause, and the next start with its own blows.
    pub fn strike(&mut self, blows: &[(Duration, Blow)], pause: Duration, at_start: &[(Duration, Blow)]) {
        let mut at = Instant::now();
        for &(after, blow) in blows {
            at += after;
            self.planned.push_back((at, blow));
        }
        self.pause = pause;
        self.at_start = at_start.iter().copied().collect();
    }

    /// Whether it is up and nothing is planned for it.
    pub fn is_calm(&self) -> bool {
        self.process.is_some() && self.planned.is_empty() && self.at_start.is_empty() && self.stops_until.is_none()
    }

    /// SIGTERM, and no start after it.
    pub fn stop(&mut self) {
        self.keep = false;
        self.strike(&[(Duration::ZERO, Blow::Terminate)], Duration::ZERO, &[]);
    }

    pub fn is_stopped(&self) -> bool {
        self.process.is_none() && !self.keep
    }

    pub fn start_again(&mut self) {
        (self.keep, self.due) = (true, Some(Instant::now()));
    }

    /// What is due.
    ///
    /// # Errors
    /// An end that nobody asked for, or none where one was asked for.
    pub fn tick(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.log.look().map_err(|error| self.with_log(&error))?;
        if self.due.is_some_and(|due| due <= now) {
            self.start(now);
        }
        self.look_at_end(now)?;
        if let Some((_, blow)) = self.planned.front().copied().filter(|(at, _)| *at <= now) {
            self.planned.pop_front();
            match (blow, self.process.take()) {
                (Blow::Kill, Some(process)) => {
                    process.kill();
                    self.gone(now + self.pause);
                }
                (Blow::Terminate, Some(process)) => {
                    process.terminate();
                    self.stops_until = Some(now + STOPS_WITHIN);
                    self.process = Some(process);
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    fn start(&mut self, now: Instant) {
        (self.due, self.started) = (None, now);
        self.starts += 1;
        self.process = Some(Process::start(&mut self.world.coordinator(), &self.log_path));
        let mut at = now;
        for (after, blow) in self.at_start.drain(..) {
            at += after;
            self.planned.push_back((at, blow));
        }
    }

    fn gone(&mut self, start_at: Instant) {
        (self.process, self.stops_until) = (None, None);
        self.planned.clear();
        self.due = self.keep.then_some(start_at);
    }

    fn look_at_end(&mut self, now: Instant) -> Result<(), String> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(status) = process.ended() else {
            if self.stops_until.is_some_and(|until| until <= now) {
                return Err(self.with_log(&format!("the coordinator runs {STOPS_WITHIN:?} after SIGTERM")));
            }
            return Ok(());
        };
        // Before it has set up anything, the system's own way to end a process holds.
        let too_early = status.signal() == Some(15) && process.printed() == 0;
        if self.stops_until.is_some() && (status.success() || too_early) {
            self.gone(now + self.pause);
        } else if status.code() == Some(1) && self.excused_until >= self.started {
            self.gave_up += 1;
            self.gone(now + RESTART_PAUSE);
        } else {
            return Err(
                self.with_log(&format!("the coordinator ended by itself, after its start {}: {status}", self.starts))
            );
        }
        Ok(())
    }

    /// Looks at what it holds.
    pub fn sample(&mut self) {
        if let Some(held) = self.process.as_ref().and_then(Process::held) {
            self.most.rss_kib = self.most.rss_kib.max(held.rss_kib);
            self.most.files = self.most.files.max(held.files);
        }
    }

    pub fn starts(&self) -> u64 {
        self.starts
    }

    pub fn log_bytes(&self) -> u64 {
        length(&self.log_path)
    }

    pub fn with_log(&self, error: &str) -> String {
        format!("{error}\n{}", tail(&self.log_path))
    }
}
