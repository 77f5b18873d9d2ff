//! The virtual network: latency, bandwidth and speed of each device, drawn once by seed or read from a trace.

use std::fmt;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::{SimError, setting};
use crate::trace;

/// A kind of device and its connection. The clock that these feed is virtual: nobody waits, and nothing is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceClass {
    /// Name, for drop-out models and reports.
    pub name: String,
    /// Share of the devices, relative to the other classes.
    pub weight: f64,
    /// One-way latency in milliseconds.
    pub latency_ms: f64,
    /// Uplink in Mbit/s.
    pub up_mbit: f64,
    /// Downlink in Mbit/s.
    pub down_mbit: f64,
    /// How many times slower it computes than the reference of [`Compute`].
    pub slowdown: f64,
    /// Latency and rates of one device are the class's, times a factor drawn from `1 / (1 + spread)` to `1 + spread`.
    pub spread: f64,
}

impl DeviceClass {
    pub(crate) fn check(&self) -> Result<(), SimError> {
        let above =
            [("weight", self.weight), ("up", self.up_mbit), ("down", self.down_mbit), ("slowdown", self.slowdown)];
        if let Some((name, value)) = above.into_iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return Err(setting("network", format!("{name}={value}"), "finite numbers above 0"));
        }
        from_zero([("latency", self.latency_ms), ("spread", self.spread)])
    }
}

fn from_zero<const N: usize>(values: [(&str, f64); N]) -> Result<(), SimError> {
    match values.into_iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)) {
        Some((name, value)) => Err(setting("network", format!("{name}={value}"), "finite numbers from 0")),
        None => Ok(()),
    }
}

/// How long a device of slowdown 1 is taken to compute. A model, so that virtual times repeat; measured times stand beside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    /// Milliseconds for each neighbour in each of phases 1 and 2: key agreement, signatures, shares.
    pub neighbour_ms: f64,
    /// Nanoseconds for each mask and element in phase 2.
    pub mask_ns: f64,
    /// Milliseconds for anything else in a phase.
    pub fixed_ms: f64,
}

impl Default for Compute {
    /// About what one core of a server does: 0.4 ms a neighbour, 1 ns an element, 1 ms for the rest.
    fn default() -> Self {
        Self { neighbour_ms: 0.4, mask_ns: 1.0, fixed_ms: 1.0 }
    }
}

/// Where devices and their connections come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The classes; at least one.
    pub classes: Vec<DeviceClass>,
    /// The compute model.
    pub compute: Compute,
    /// The file of devices from a trace: device `i` is entry `i mod len`, and `classes` has one for each.
    traced: Option<PathBuf>,
}

fn class(name: &str, weight: f64, latency_ms: f64, up_mbit: f64, down_mbit: f64, slowdown: f64) -> DeviceClass {
    DeviceClass { name: name.into(), weight, latency_ms, up_mbit, down_mbit, slowdown, spread: 1.0 }
}

impl Network {
    /// Names that [`Self::parse`] knows.
    pub const PROFILES: [&'static str; 4] = ["lan", "broadband", "mobile", "mixed"];

    /// A network of the given classes.
    ///
    /// # Errors
    /// [`SimError::Setting`] for no class, or one that is out of range.
    pub fn new(classes: Vec<DeviceClass>) -> Result<Self, SimError> {
        let network = Self { classes, compute: Compute::default(), traced: None };
        network.check()?;
        Ok(network)
    }

    /// Checks every class, and that devices can be drawn from them.
    pub(crate) fn check(&self) -> Result<(), SimError> {
        if self.classes.is_empty() {
            return Err(setting("network", "no class", "at least one"));
        }
        self.classes.iter().try_for_each(DeviceClass::check)?;
        let Compute { neighbour_ms, mask_ns, fixed_ms } = self.compute;
        from_zero([("neighbour_ms", neighbour_ms), ("mask_ns", mask_ns), ("fixed_ms", fixed_ms)])?;
        from_zero([("the sum of weights", self.total_weight())])
    }

    pub(crate) fn total_weight(&self) -> f64 {
        self.classes.iter().map(|class| class.weight).sum()
    }

    /// Servers in one hall: 0.5 ms, 1 Gbit/s.
    pub fn lan() -> Self {
        Self {
            classes: vec![class("server", 1.0, 0.5, 1000.0, 1000.0, 1.0)],
            compute: Compute::default(),
            traced: None,
        }
    }

    /// A file `latency_ms,up_mbit,down_mbit,slowdown` with a header line, one line a device; used again from the start when
    /// there are more devices than lines. A further column `class` names classes for drop-out models.
    ///
    /// # Errors
    /// [`SimError::Trace`] with the line.
    pub fn from_trace(path: &Path) -> Result<Self, SimError> {
        let classes = trace::devices(path)?;
        Ok(Self { classes, compute: Compute::default(), traced: Some(path.to_owned()) })
    }

    /// Reads a model: one of [`Self::PROFILES`], or `latency=50ms,up=10,down=40,slowdown=4` (rates in Mbit/s; what is absent is as in `broadband`),
    /// or `trace:FILE`.
    ///
    /// # Errors
    /// [`SimError::Setting`] says what is not understood, [`SimError::Trace`] what is wrong with the file.
    pub fn parse(text: &str) -> Result<Self, SimError> {
        let broadband = class("broadband", 1.0, 15.0, 20.0, 100.0, 2.0);
        let mobile = class("mobile", 1.0, 40.0, 8.0, 30.0, 8.0);
        match text {
            "lan" => return Ok(Self::lan()),
            "broadband" => return Self::new(vec![broadband]),
            "mobile" => return Self::new(vec![mobile]),
            "mixed" => {
                let weighed = |class: DeviceClass, weight| DeviceClass { weight, ..class };
                let slow = class("slow", 0.1, 150.0, 1.0, 4.0, 20.0);
                return Self::new(vec![weighed(mobile, 0.6), weighed(broadband, 0.3), slow]);
            }
            _ => {}
        }
        if let Some(path) = text.strip_prefix("trace:") {
            return Self::from_trace(Path::new(path));
        }
        const ALLOWED: &str = "lan, broadband, mobile, mixed, trace:FILE, or for instance latency=50ms,up=10,down=40,slowdown=4,spread=0.5";
        let mut class = DeviceClass { name: "device".into(), spread: 0.0, ..broadband };
        for part in text.split(',') {
            let pair = part.split_once('=').and_then(|(name, value)| {
                Some((name.trim(), value.trim().trim_end_matches("ms").parse::<f64>().ok()?))
            });
            match pair {
                Some(("latency", value)) => class.latency_ms = value,
                Some(("up", value)) => class.up_mbit = value,
                Some(("down", value)) => class.down_mbit = value,
                Some(("slowdown", value)) => class.slowdown = value,
                Some(("spread", value)) => class.spread = value,
                _ => return Err(setting("network", part, ALLOWED)),
            }
        }
        Self::new(vec![class])
    }

    /// The device number `i`.
    pub(crate) fn device(&self, i: usize, rng: &mut ChaCha8Rng) -> Link {
        let index = if self.traced.is_some() { i % self.classes.len() } else { self.draw(rng) };
        let class = &self.classes[index];
        let mut factor = || {
            let span = (1.0 + class.spread).ln();
            if span > 0.0 { rng.random_range(-span..span).exp() } else { 1.0 }
        };
        Link {
            class: index,
            latency: class.latency_ms * 1e-3 * factor(),
            up: class.up_mbit * 1e6 / 8.0 * factor(),
            down: class.down_mbit * 1e6 / 8.0 * factor(),
            slowdown: class.slowdown,
        }
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> usize {
        let mut at = rng.random_range(0.0..self.total_weight());
        self.classes
            .iter()
            .position(|class| {
                at -= class.weight;
                at < 0.0
            })
            .unwrap_or(self.classes.len() - 1)
    }
}

/// As [`Network::parse`] reads it; classes of another's making are named.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.traced {
            return write!(f, "trace:{}", path.display());
        }
        let is = |profile: &&&str| Self::parse(profile).is_ok_and(|network| network.classes == self.classes);
        if let Some(profile) = Self::PROFILES.iter().find(is) {
            return f.write_str(profile);
        }
        match self.classes.as_slice() {
            [DeviceClass { latency_ms, up_mbit, down_mbit, slowdown, spread, .. }] => {
                write!(f, "latency={latency_ms}ms,up={up_mbit},down={down_mbit},slowdown={slowdown},spread={spread}")
            }
            classes => {
                let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
                write!(f, "classes {}", names.join(", "))
            }
        }
    }
}

/// One device's connection: seconds and bytes a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub class: usize,
    pub latency: f64,
    pub up: f64,
    pub down: f64,
    pub slowdown: f64,
}

impl Link {
    /// Virtual seconds from the coordinator's message of `received` bytes until the answer of `sent` bytes has arrived.
    pub fn turnaround(&self, received: u64, computing: f64, sent: u64) -> f64 {
        2.0 * self.latency + received as f64 / self.down + computing * self.slowdown + sent as f64 / self.up
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_profile_and_a_model_in_words_is_read_and_nonsense_is_refused() {
        for profile in Network::PROFILES {
            assert!(Network::parse(profile).is_ok(), "{profile}");
        }
        let network = Network::parse("latency=50ms,up=8,down=16,slowdown=2").unwrap();
        let link = network.device(0, &mut ChaCha8Rng::seed_from_u64(1));
        // 100 ms of latency, 1 s up for 1 MB, 0.5 s down, 2 s of computing.
        assert!((link.turnaround(1_000_000, 1.0, 1_000_000) - 3.6).abs() < 1e-9);
        for bad in ["", "latency", "latency=x", "up=0", "latency=-1", "down=inf", "speed=3"] {
            assert!(Network::parse(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(Network::parse("trace:/nonexistent.csv"), Err(SimError::Trace { .. })));
    }

    #[test]
    fn what_is_out_of_range_is_told_with_its_value() {
        for (text, words) in [
            ("latency=nan", "latency=NaN; allowed is finite numbers from 0"),
            ("latency=-1", "latency=-1; allowed is finite numbers from 0"),
            ("up=0", "up=0; allowed is finite numbers above 0"),
            ("spread=inf", "spread=inf; allowed"),
        ] {
            let error = Network::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let heavy = Network::parse("mixed").unwrap().classes.into_iter();
        assert!(Network::new(heavy.map(|class| DeviceClass { weight: f64::MAX, ..class }).collect()).is_err());
    }

    #[test]
    fn a_network_is_told_as_it_is_read() {
        for text in ["lan", "mixed", "latency=50ms,up=8,down=16.5,slowdown=2,spread=0"] {
            assert_eq!(Network::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn classes_occur_by_their_weight() {
        let network = Network::parse("mixed").unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let slow = (0..2000).filter(|&i| network.device(i, &mut rng).class == 2).count();
        assert!((130..270).contains(&slow), "{slow} of 2000");
    }
}
