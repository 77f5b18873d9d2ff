//! Addresses from which known devices came, for a day: room is kept for them. They are kept in a file, so that after a restart under a
//! flood devices don't compete with strangers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::now;

/// An address from which a known device came counts as known for so long, in seconds.
const KNOWN_FOR: u64 = 86_400;
/// Most addresses that are remembered.
const MOST: usize = 100_000;
/// In the state folder: a line for each address, with the Unix time at which it was known last.
const NAME: &str = "known-addresses";

/// See the module.
#[derive(Default)]
pub(crate) struct Known {
    since: Mutex<HashMap<IpAddr, u64>>,
    changed: AtomicBool,
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
}

/// Whether `since` is within the day before `now`. A time in the future is of another clock.
fn is_recent(since: u64, now: u64) -> bool {
    since <= now && now - since < KNOWN_FOR
}

impl Known {
    /// What the file in `folder` names; one that can't be read is none, and told.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(NAME);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "known addresses are forgotten");
            }
            String::new()
        });
        let now = now();
        let lines = text.lines().filter_map(|line| {
            let (since, address) = line.split_once(' ')?;
            Some((address.parse().ok()?, since.parse().ok()?))
        });
        let since = lines.filter(|(_, since)| is_recent(*since, now)).take(MOST).collect();
        Self { since: Mutex::new(since), changed: AtomicBool::new(false), path: Some(path) }
    }

    fn since(&self) -> MutexGuard<'_, HashMap<IpAddr, u64>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a known device came from there within a day.
    pub fn has(&self, address: IpAddr) -> bool {
        self.since().get(&address).is_some_and(|since| is_recent(*since, now()))
    }

    /// A known device came from there now.
    pub fn add(&self, address: IpAddr) {
        let mut since = self.since();
        if since.len() < MOST || since.contains_key(&address) {
            let now = now();
            // A minute more or less is not worth writing the file.
            if since.insert(address, now).is_none_or(|before| before.abs_diff(now) > KNOWN_FOR / 24) {
                self.changed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Forgets who has not come for a day, and writes the file if something new is known. What fails is told and tried again.
    pub fn keep(&self) {
        let now = now();
        self.since().retain(|_, since| is_recent(*since, now));
        let Some(path) = self.path.as_ref().filter(|_| self.changed.swap(false, Ordering::Relaxed)) else { return };
        let text: String = self.since().iter().map(|(address, since)| format!("{since} {address}\n")).collect();
        if let Err(error) = replace(path, text.as_bytes()) {
            self.changed.store(true, Ordering::Relaxed);
            tracing::warn!(%error, path = %path.display(), "known addresses can't be kept");
        }
    }
}

/// Nothing depends on it, so a power cut may take the last version.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file: File = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    std::fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_after_a_restart_for_a_day_and_a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known::open(folder.path());
        let (v4, v6): (IpAddr, IpAddr) = ("203.0.113.7".parse().unwrap(), "2001:db8::".parse().unwrap());
        assert!(!known.has(v4));
        known.add(v4);
        known.add(v6);
        known.keep();
        let again = Known::open(folder.path());
        assert!(again.has(v4) && again.has(v6));
        let path = folder.path().join(NAME);
        let (day_ago, tomorrow) = (now() - KNOWN_FOR, now() + KNOWN_FOR);
        std::fs::write(&path, format!("{day_ago} {v4}\n{tomorrow} {v6}\njunk\n{} 192.0.2.1\n", now())).unwrap();
        let again = Known::open(folder.path());
        assert!(!again.has(v4) && !again.has(v6) && again.has("192.0.2.1".parse().unwrap()));
        std::fs::write(&path, [0xff; 100]).unwrap();
        assert!(!Known::open(folder.path()).has(v4));
    }
}
