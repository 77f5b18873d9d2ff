//! The soak itself: a seeded schedule of faults with pauses, in each of which a sum must come.

mod ending;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::disk::Filler;
use crate::fleet::Fleet;
use crate::flood;
use crate::network::{Path, Way};
use crate::office::{Done, Office};
use crate::process::Process;
use crate::report::Report;
use crate::service::{Blow, Service};
use crate::sums::Sums;
use crate::world::{DEVICES, MAX_CONNECTIONS, World, address_of};

const TICK: Duration = Duration::from_millis(30);
/// When nothing goes wrong any more, a sum comes within this time: devices dial again after 10 s at the most, and every phase has its
/// time.
const RECOVERS_WITHIN: Duration = Duration::from_secs(120);
/// Most memory of the coordinator, in KiB.
const MOST_RSS_KIB: u64 = 400 << 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Run {
    pub seed: u64,
    pub seconds: u64,
    /// A small file system for the coordinator's state.
    pub disk: Option<PathBuf>,
}

struct Soak {
    run: Run,
    world: Arc<World>,
    rng: ChaCha8Rng,
    service: Service,
    fleet: Fleet,
    sums: Sums,
    flood: Process,
    flood_counts: PathBuf,
    office: Option<JoinHandle<Result<Done, String>>>,
    office_stops: Arc<AtomicBool>,
    /// Until when each device's way is not open.
    cut_until: Vec<Option<Instant>>,
    filler: Option<(Filler, Instant)>,
    faults: BTreeMap<&'static str, u64>,
    /// The last faults, for whoever looks for the cause.
    last: VecDeque<String>,
    began: Instant,
    sampled: Instant,
    longest_recovery: Duration,
}

impl Run {
    /// Plays it to its end.
    ///
    /// # Panics
    /// When anything is wrong, with what went before.
    pub fn play(self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = Arc::new(World::make(self.disk.as_deref()));
        let open = open_paths(&world);
        let paths = runtime.block_on(open);
        let (mut flood, flood_counts) = flood::command(&world, self.seed);
        let flood = Process::start(&mut flood, &world.path("flood.log"));
        let office_stops = Arc::new(AtomicBool::new(false));
        let office = Office::new(&world, ChaCha8Rng::seed_from_u64(self.seed ^ 0x0ff1ce));
        let stops = office_stops.clone();
        let now = Instant::now();
        let mut soak = Soak {
            rng: ChaCha8Rng::seed_from_u64(self.seed),
            run: self,
            service: Service::new(&world),
            fleet: Fleet::start(&world, paths),
            sums: Sums::new(&world.state),
            world,
            flood,
            flood_counts,
            office: Some(std::thread::spawn(move || office.work(&stops))),
            office_stops,
            cut_until: vec![None; DEVICES as usize],
            filler: None,
            faults: BTreeMap::new(),
            last: VecDeque::new(),
            began: now,
            sampled: now,
            longest_recovery: Duration::ZERO,
        };
        match soak.play() {
            Ok(report) => {
                let json = report.json(&soak.service.log.told);
                println!("{}", report.table(&soak.service.log.told));
                if let Some(path) = std::env::var_os("UNISONO_SOAK_JSON") {
                    std::fs::write(path, format!("{json:#}\n")).unwrap();
                }
            }
            Err(error) => {
                soak.office_stops.store(true, Ordering::Relaxed);
                let last = soak.last.make_contiguous().join("\n  ");
                panic!(
                    "after {:.1} s, UNISONO_SOAK_SEED={} UNISONO_SOAK_SECONDS={}\nthe last faults:\n  {last}\n{error}",
                    soak.began.elapsed().as_secs_f64(),
                    soak.run.seed,
                    soak.run.seconds,
                );
            }
        }
    }
}

async fn open_paths(world: &World) -> Vec<Path> {
    let mut paths = Vec::new();
    for i in 0..DEVICES {
        paths.push(Path::open(world.address, address_of(i)).await);
    }
    paths
}

impl Soak {
    fn play(&mut self) -> Result<Report, String> {
        let end = self.began + Duration::from_secs(self.run.seconds);
        self.pause()?;
        while Instant::now() < end {
            let until = Instant::now() + Duration::from_millis(self.rng.random_range(8_000..30_000));
            self.trouble(until.min(end))?;
            self.pause()?;
        }
        self.finish()
    }

    fn tick(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.service.tick()?;
        self.look(now)?;
        self.fleet.tick()
    }

    /// What is looked at also when devices end.
    fn look(&mut self, now: Instant) -> Result<(), String> {
        for (i, until) in self.cut_until.iter_mut().enumerate() {
            if until.is_some_and(|until| until <= now) {
                *until = None;
                self.fleet.paths[i].set(Way::Open);
            }
        }
        if self.filler.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.filler = None;
        }
        self.sums.look(false).map_err(|error| self.service.with_log(&error))?;
        if self.sampled + Duration::from_millis(300) < now {
            self.sampled = now;
            self.service.sample();
            let most = self.service.most;
            if most.rss_kib > MOST_RSS_KIB || most.files > MAX_CONNECTIONS + 256 {
                return Err(format!("the coordinator holds {most:?}"));
            }
        }
        if let Some(status) = self.flood.ended() {
            return Err(format!("the flood ended: {status}\n{}", crate::process::tail(&self.world.path("flood.log"))));
        }
        if self.office.as_ref().is_some_and(JoinHandle::is_finished) && !self.office_stops.load(Ordering::Relaxed) {
            self.close_office()?;
        }
        std::thread::sleep(TICK);
        Ok(())
    }

    fn close_office(&mut self) -> Result<Done, String> {
        self.office_stops.store(true, Ordering::Relaxed);
        let office = self.office.take().ok_or("the registrar's office is closed already")?;
        office.join().map_err(|panic| format!("the registrar's office: {:?}", panic.downcast_ref::<String>()))?
    }

    /// Faults until then.
    fn trouble(&mut self, until: Instant) -> Result<(), String> {
        let mut next = Instant::now();
        while Instant::now() < until {
            self.tick()?;
            if next <= Instant::now() {
                self.fault();
                // Many at a time, or room for a round.
                let pause = if self.rng.random_bool(0.6) { 50..900 } else { 1500..6000 };
                next = Instant::now() + Duration::from_millis(self.rng.random_range(pause));
            }
        }
        Ok(())
    }

    fn note(&mut self, kind: &'static str, what: &str) {
        *self.faults.entry(kind).or_default() += 1;
        self.last.push_back(format!("{:.2} s: {kind} {what}", self.began.elapsed().as_secs_f64()));
        if self.last.len() > 40 {
            self.last.pop_front();
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    fn some_devices(&mut self, most: usize) -> Vec<usize> {
        let mut devices: Vec<usize> = (0..DEVICES as usize).collect();
        devices.shuffle(&mut self.rng);
        devices.truncate(self.rng.random_range(1..=most));
        devices
    }

    fn fault(&mut self) {
        match self.rng.random_range(0..100) {
            0..30 => self.kill_devices(),
            30..50 => self.strike_service(),
            50..82 => self.cut_network(),
            _ if self.run.disk.is_some() => self.fill_disk(),
            _ => self.kill_devices(),
        }
    }

    fn kill_devices(&mut self) {
        let most = if self.rng.random_bool(0.1) { DEVICES as usize } else { 2 };
        for i in self.some_devices(most) {
            let back = if self.rng.random_bool(0.5) { self.millis(0, 50) } else { self.millis(50, 5000) };
            if self.fleet.kill(i, Instant::now() + back) {
                self.note("device killed", &format!("{i}, back in {back:?}"));
            }
        }
    }

    fn strike_service(&mut self) {
        if !self.service.is_calm() {
            return;
        }
        let now = Duration::ZERO;
        let pause = if self.rng.random_bool(0.6) { now } else { self.millis(0, 4000) };
        let soon = self.millis(0, 400);
        let words = format!("{soon:?}, back in {pause:?}");
        match self.rng.random_range(0..7) {
            0..3 => {
                self.note("coordinator killed", &words);
                self.service.strike(&[(now, Blow::Kill)], pause, &[]);
            }
            3 => {
                self.note("coordinator killed, and again at its start", &words);
                self.service.strike(&[(now, Blow::Kill)], pause, &[(soon, Blow::Kill)]);
            }
            4 => {
                self.note("coordinator terminated", &words);
                self.service.strike(&[(now, Blow::Terminate)], pause, &[]);
            }
            5 => {
                self.note("coordinator killed while it stops", &words);
                self.service.strike(&[(now, Blow::Terminate), (soon / 8, Blow::Kill)], pause, &[]);
            }
            _ => {
                self.note("coordinator terminated while it starts", &words);
                self.service.strike(&[(now, Blow::Kill)], pause, &[(soon, Blow::Terminate)]);
            }
        }
    }

    fn cut_network(&mut self) {
        let all = self.rng.random_bool(0.1);
        let devices = if all { (0..DEVICES as usize).collect() } else { self.some_devices(3) };
        let (way, kind) = match self.rng.random_range(0..3) {
            0 => (Way::Cut, "network cut"),
            1 => (Way::Reset, "network reset"),
            _ => (Way::Stalled, "network stalled"),
        };
        let lasts = if self.rng.random_bool(0.4) { self.millis(0, 300) } else { self.millis(300, 6000) };
        for &i in &devices {
            self.fleet.paths[i].set(way);
            self.cut_until[i] = Some(Instant::now() + lasts);
        }
        self.note(kind, &format!("for {devices:?}, {lasts:?}"));
    }

    fn fill_disk(&mut self) {
        let Some(disk) = &self.run.disk else { return };
        if self.filler.is_some() {
            return;
        }
        let filler = Filler::new(disk);
        let lasts = self.millis(200, 4000);
        let until = Instant::now() + lasts;
        self.filler = Some((filler, until));
        self.service.excused_until = until + Duration::from_millis(200);
        self.note("disk full", &format!("for {lasts:?}"));
        if self.rng.random_bool(0.3) {
            self.strike_service();
        }
    }

    /// No faults but the flood and the registrar's; a sum must come.
    fn pause(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.filler = None;
        self.cut_until.iter_mut().for_each(|until| *until = Some(now));
        while !self.service.is_calm() {
            self.tick()?;
        }
        let (healed, before) = (Instant::now(), self.sums.newest());
        // The one at hand may have been summed before the pause.
        while self.sums.newest() <= before.map(|before| before + 1).or(Some(0)) {
            self.tick()?;
            if healed.elapsed() > RECOVERS_WITHIN {
                let error = format!("no sum within {RECOVERS_WITHIN:?} after the last fault");
                return Err(format!("{}\n{}", self.service.with_log(&error), self.fleet.unfinished()));
            }
        }
        self.longest_recovery = self.longest_recovery.max(healed.elapsed());
        Ok(())
    }
}
