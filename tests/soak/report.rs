//! What the soak came to, as a table and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::log::Told;
use crate::office::Done;
use crate::process::Held;

pub struct Report {
    pub seed: u64,
    pub took: Duration,
    pub faults: BTreeMap<&'static str, u64>,
    pub disk: bool,
    pub office: Done,
    pub flood: BTreeMap<String, u64>,
    pub sums: usize,
    pub stored_rounds: u64,
    pub devices: usize,
    pub starts: u64,
    pub gave_up: u64,
    pub most: Held,
    pub coordinator_log: u64,
    pub device_logs: u64,
    pub longest_recovery: Duration,
}

impl Report {
    fn minutes(&self) -> f64 {
        self.took.as_secs_f64() / 60.0
    }

    pub fn json(&self, told: &Told) -> Value {
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "faults": self.faults,
            "small_disk": self.disk,
            "registrar": {
                "confirmed": self.office.confirmed, "killed": self.office.killed, "audits": self.office.audits,
                "rosters": self.office.delivered, "half_rosters": self.office.halves, "epoch": self.office.epoch,
            },
            "flood": self.flood,
            "sums": self.sums,
            "stored_rounds": self.stored_rounds,
            "sums_per_minute": self.sums as f64 / self.minutes(),
            "rounds_opened": told.rounds.len(),
            "aborted": told.aborted,
            "counted": told.counted,
            "devices_finished": self.devices,
            "coordinator_starts": self.starts,
            "starts_refused_by_the_disk": self.gave_up,
            "peak_rss_mib": self.most.rss_kib / 1024,
            "peak_open_files": self.most.files,
            "coordinator_log_bytes": self.coordinator_log,
            "log_bytes_by_message": told.bytes,
            "device_log_bytes": self.device_logs,
            "longest_recovery_seconds": self.longest_recovery.as_secs_f64(),
        })
    }

    pub fn table(&self, told: &Told) -> String {
        let mut lines = vec![format!("soak, seed {}: {:.0} s", self.seed, self.took.as_secs_f64())];
        let mut line = |what: &str, value: String| lines.push(format!("  {what:<58} {value:>12}"));
        for (what, times) in &self.faults {
            line(what, times.to_string());
        }
        for (kind, times) in &self.office.killed {
            let confirmed = self.office.confirmed.get(kind).copied().unwrap_or(0);
            line(&format!("registrar {kind}: killed (confirmed)"), format!("{times} ({confirmed})"));
        }
        line("audits of the registrar, all good", self.office.audits.to_string());
        line("rosters delivered (half before)", format!("{} ({})", self.office.delivered, self.office.halves));
        let calls: u64 =
            self.flood.iter().filter(|(what, _)| !what.starts_with("answer")).map(|(_, count)| count).sum();
        line("junk calls and connections", calls.to_string());
        line("rounds opened", told.rounds.len().to_string());
        line("sums, all exact", self.sums.to_string());
        line("sums a minute", format!("{:.1}", self.sums as f64 / self.minutes()));
        for (reason, times) in &told.aborted {
            line(&format!("aborted: {}", reason.chars().take(48).collect::<String>()), times.to_string());
        }
        for (what, times) in &told.counted {
            line(what, times.to_string());
        }
        line("starts of the coordinator (refused by the disk)", format!("{} ({})", self.starts, self.gave_up));
        line("longest time to a sum when faults pause", format!("{:.1} s", self.longest_recovery.as_secs_f64()));
        line("devices that ended as finished", self.devices.to_string());
        line("most memory of the coordinator", format!("{} MiB", self.most.rss_kib / 1024));
        line("most open files of the coordinator", self.most.files.to_string());
        line(
            "log of the coordinator, a minute",
            format!("{:.0} KiB", self.coordinator_log as f64 / 1024.0 / self.minutes()),
        );
        lines.join("\n")
    }
}
