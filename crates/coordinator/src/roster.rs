//! The roster in force. A file that is truncated, another registrar's, older than the newest that was in force, or does not name this
//! coordinator is refused, and the last good one, which the storage keeps, stays.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use metrics::{counter, gauge};
use tokio::sync::Mutex;
use unisono_protocol::roster::{Roster, RosterError};

use crate::config::RoundKeys;
use crate::storage::{Store, StoreError};

/// Why a roster is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RosterRefused {
    /// The file can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Truncated, or not signed by the registrar.
    #[error("{}: {source}", .path.display())]
    Roster {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: RosterError,
    },
    /// An older one: who was revoked since would be back.
    #[error("{} is of epoch {epoch}, a roster of epoch {newest} was in force: publish a newer one", .path.display())]
    Older {
        /// Which file.
        path: PathBuf,
        /// Its epoch.
        epoch: u64,
        /// Highest epoch that was in force.
        newest: u64,
    },
    /// Another one of the same epoch.
    #[error(
        "{} is another roster of epoch {epoch} than the one in force: epochs name one roster each; publish again",
        .path.display()
    )]
    SameEpoch {
        /// Which file.
        path: PathBuf,
        /// Epoch of both.
        epoch: u64,
    },
    /// It does not name this coordinator: devices would refuse every round.
    #[error(
        "{} (epoch {epoch}) does not name this coordinator's key: publish one that does (`registrar publish --coordinator`)",
        .path.display()
    )]
    NotNamed {
        /// Which file.
        path: PathBuf,
        /// Its epoch.
        epoch: u64,
    },
    /// The storage.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RosterRefused {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "unreadable",
            Self::Roster { .. } => "damaged",
            Self::Older { .. } => "older",
            Self::SameEpoch { .. } => "same_epoch",
            Self::NotNamed { .. } => "not_named",
            Self::Store(_) => "storage",
        }
    }
}

/// What tells whether a file was changed: inode, length, seconds and nanoseconds of the last change. `None`: it can't be asked.
type Stamp = Option<(u64, u64, i64, i64)>;

struct Kept {
    roster: Option<Arc<Roster>>,
    newest: u64,
    /// Of the file that was read last, whether it was taken or not.
    stamp: Option<Stamp>,
}

/// The roster in force, and how it changes.
pub(crate) struct Rosters(Mutex<Kept>);

impl Rosters {
    /// What the storage keeps.
    ///
    /// # Errors
    /// The storage. A kept roster that is damaged counts as none.
    pub async fn open(store: &Store, keys: Option<&RoundKeys>) -> Result<Self, StoreError> {
        let mut kept = Kept { roster: None, newest: 0, stamp: None };
        if let Some(keys) = keys {
            kept.newest = store.roster_epoch(&keys.registrar).await?;
            let stored = store.get_roster(&keys.registrar, kept.newest).await?;
            let parsed = stored.and_then(|bytes| Roster::from_bytes(&bytes, &keys.registrar).ok());
            kept.roster =
                parsed.filter(|roster| names(roster, keys) && roster.head().epoch >= kept.newest).map(Arc::new);
        }
        Ok(Self(Mutex::new(kept)))
    }

    /// The roster in force. The file is read again when it has changed.
    ///
    /// # Errors
    /// Why the file is refused, if no roster was in force before.
    pub async fn current(&self, store: &Store, keys: &RoundKeys) -> Result<Arc<Roster>, RosterRefused> {
        let mut kept = self.0.lock().await;
        let stamp = stamp(keys);
        if let (Some(roster), true) = (&kept.roster, kept.stamp == Some(stamp)) {
            return Ok(roster.clone());
        }
        match read(&kept, store, keys).await {
            Ok(roster) => {
                gauge!("unisono_roster_epoch").set(roster.head().epoch as f64);
                gauge!("unisono_roster_refused").set(0.0);
                kept.newest = roster.head().epoch;
                kept.roster = Some(roster.clone());
                kept.stamp = Some(stamp);
                Ok(roster)
            }
            Err(refused) => {
                counter!("unisono_roster_refusals_total", "reason" => refused.code()).increment(1);
                gauge!("unisono_roster_refused").set(1.0);
                // What the storage refused may be taken the next time.
                kept.stamp = (!matches!(refused, RosterRefused::Store(_))).then_some(stamp);
                let Some(roster) = &kept.roster else { return Err(refused) };
                let epoch = roster.head().epoch;
                tracing::error!(error = %refused, epoch, "roster file refused; the last good one stays in force");
                Ok(roster.clone())
            }
        }
    }
}

fn stamp(keys: &RoundKeys) -> Stamp {
    let data = std::fs::metadata(&keys.roster).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

fn names(roster: &Roster, keys: &RoundKeys) -> bool {
    roster.head().coordinator_keys.contains(&keys.signing_key.verifying_key())
}

async fn read(kept: &Kept, store: &Store, keys: &RoundKeys) -> Result<Arc<Roster>, RosterRefused> {
    let path = keys.roster.clone();
    let bytes = std::fs::read(&path).map_err(|source| RosterRefused::Read { path: path.clone(), source })?;
    let parsed = Roster::from_bytes(&bytes, &keys.registrar);
    let roster = parsed.map_err(|source| RosterRefused::Roster { path: path.clone(), source })?;
    let epoch = roster.head().epoch;
    if epoch < kept.newest {
        return Err(RosterRefused::Older { path, epoch, newest: kept.newest });
    }
    if !names(&roster, keys) {
        return Err(RosterRefused::NotNamed { path, epoch });
    }
    if let Some(last) = kept.roster.as_ref().filter(|last| last.head().epoch == epoch) {
        if last.signed_head().payload != roster.signed_head().payload {
            return Err(RosterRefused::SameEpoch { path, epoch });
        }
        return Ok(last.clone());
    }
    store.put_roster(&keys.registrar, epoch, bytes).await?;
    Ok(Arc::new(roster))
}
