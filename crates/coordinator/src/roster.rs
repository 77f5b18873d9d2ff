//! The roster in force. A file that is truncated, another registrar's, older than the newest that was in force, or does not name this
//! coordinator is refused, and the last good one, which the storage keeps, stays.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{Mutex, Notify, watch};
use unisono_protocol::proto::Signed;
use unisono_protocol::roster::{Head, ReadAt, Roster, RosterError, head_of_file, scan};
use unisono_protocol::signed::SignedError;

use crate::config::RoundKeys;
use crate::storage::{Positional, Store, StoreError, TakeError};

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

/// How often the roster's file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First pause after the storage failed to take a roster; it doubles, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The kept copy is verified again at most so often when something read of it is not what was verified.
const VERIFY_EVERY: Duration = Duration::from_secs(60);
/// Seconds before its end from which on it is told that a roster is over soon, at most; and how often.
const OVER_SOON: u64 = 14 * 86_400;
const REMIND_EVERY: Duration = Duration::from_secs(86_400);
/// So long a call waits for a roster that is being read, if the newest is needed.
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// What only who loads a roster has.
struct Loader {
    newest: u64,
    /// Of the file that was read last, whether it was taken or not.
    stamp: Option<Stamp>,
    /// After the storage failed: when it is tried again, and after which pause.
    again: Option<(Instant, Duration)>,
    /// When the kept copy was verified last because of a doubt.
    verified: Option<Instant>,
}

/// The roster in force, and how it changes. A roster is read beside the calls that are served: none of them waits for that.
pub(crate) struct Rosters {
    in_force: RwLock<Option<Arc<Roster>>>,
    loader: Mutex<Loader>,
    /// As [`Loader::stamp`], for who waits for a file to be read.
    read: watch::Sender<Option<Stamp>>,
    /// Somebody needs the newest.
    wanted: Notify,
    /// Something read of the roster in force is not what was verified.
    doubted: AtomicBool,
}

impl Rosters {
    /// What the storage keeps. It is read from the start to the end.
    ///
    /// # Errors
    /// The storage. A kept roster that is damaged counts as none.
    pub async fn open(store: &Store, keys: Option<&RoundKeys>) -> Result<Self, StoreError> {
        let mut loader = Loader { newest: 0, stamp: None, again: None, verified: None };
        let mut in_force = None;
        if let Some(keys) = keys {
            loader.newest = store.roster_epoch(&keys.registrar).await?;
            tracing::info!(epoch = loader.newest, "reading the kept roster");
            let kept = kept(store, keys, loader.newest).await?;
            in_force = kept.filter(|roster| names(roster.head(), keys) && roster.head().epoch >= loader.newest);
        }
        let rosters = Self {
            in_force: RwLock::new(None),
            loader: Mutex::new(loader),
            read: watch::Sender::new(None),
            wanted: Notify::new(),
            doubted: AtomicBool::new(false),
        };
        in_force.into_iter().for_each(|roster| rosters.put_in_force(Arc::new(roster)));
        Ok(rosters)
    }

    /// The roster in force. Nothing is read.
    pub fn in_force(&self) -> Option<Arc<Roster>> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put_in_force(&self, roster: Arc<Roster>) {
        let valid_until = roster.head().valid_until;
        gauge!("unisono_roster_valid_until").set(if valid_until == u64::MAX {
            f64::INFINITY
        } else {
            valid_until as f64
        });
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Some(roster);
    }

    /// The roster in force, after its file was read if it has changed: that takes seconds for a million devices.
    ///
    /// # Errors
    /// Why the file is refused, if no roster was in force before.
    pub async fn newest(&self, store: &Store, keys: &RoundKeys) -> Result<Arc<Roster>, RosterRefused> {
        let mut loader = self.loader.lock().await;
        if self.doubted.swap(false, Ordering::Relaxed) {
            self.verify_kept(&mut loader, store, keys).await;
        }
        let stamp = stamp(keys);
        let waits = loader.again.is_some_and(|(at, _)| Instant::now() < at);
        if let (Some(roster), true) = (self.in_force(), loader.stamp == Some(stamp) || waits) {
            return Ok(roster);
        }
        let result = read(&loader, self.in_force(), store, keys).await;
        let result = match result {
            Ok(roster) => {
                gauge!("unisono_roster_epoch").set(roster.head().epoch as f64);
                gauge!("unisono_roster_refused").set(0.0);
                (loader.newest, loader.stamp, loader.again) = (roster.head().epoch, Some(stamp), None);
                self.put_in_force(roster.clone());
                Ok(roster)
            }
            Err(refused) => self.refuse(&mut loader, refused, stamp),
        };
        self.read.send_replace(Some(stamp));
        result
    }

    /// Counts and tells a refusal. The last good roster stays in force.
    fn refuse(&self, loader: &mut Loader, refused: RosterRefused, stamp: Stamp) -> Result<Arc<Roster>, RosterRefused> {
        counter!("unisono_roster_refusals_total", "reason" => refused.code()).increment(1);
        gauge!("unisono_roster_refused").set(1.0);
        // What the storage failed to take may be taken later, if that may pass.
        let passing = matches!(&refused, RosterRefused::Store(error) if error.may_pass());
        loader.stamp = (!passing).then_some(stamp);
        let pause = loader.again.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        loader.again = passing.then(|| (Instant::now() + pause, pause));
        let Some(roster) = self.in_force() else { return Err(refused) };
        let epoch = roster.head().epoch;
        tracing::error!(error = %refused, epoch, "roster file refused; the last good one stays in force");
        Ok(roster)
    }

    /// As [`Self::newest`], for a call: it waits for a roster that is being read for 2 s at most, then the one before counts.
    pub async fn newest_soon(&self, keys: &RoundKeys) -> Option<Arc<Roster>> {
        let stamp = Some(stamp(keys));
        let mut read = self.read.subscribe();
        if *read.borrow_and_update() != stamp {
            self.wanted.notify_one();
            let _ = tokio::time::timeout(MOST_PATIENCE, read.wait_for(|read| *read == stamp)).await;
        }
        self.in_force()
    }

    /// Says that something read of the roster in force is not what was verified: the kept copy is verified again.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
        self.wanted.notify_one();
    }

    /// Reads the file when it has changed, for ever, and says when the roster in force is over soon.
    pub async fn watch(&self, store: &Store, keys: &RoundKeys) {
        let mut told: Option<(u64, Instant)> = None;
        loop {
            if let Some(roster) = self.in_force()
                && let &Head { epoch, issued_at, valid_until, .. } = roster.head()
                && told.is_none_or(|(of, at)| of != epoch || at.elapsed() > REMIND_EVERY)
                && crate::now().saturating_add(over_soon(issued_at, valid_until)) > valid_until
            {
                let until = "devices act on this roster no longer than that: publish a newer one";
                tracing::warn!(epoch, valid_until, "{until}");
                told = Some((epoch, Instant::now()));
            }
            let _ = tokio::time::timeout(LOOK_EVERY, self.wanted.notified()).await;
            // It was told and counted.
            let _ = self.newest(store, keys).await;
        }
    }

    /// Opens the kept copy anew. A damaged one is replaced by what the roster's file is now.
    async fn verify_kept(&self, loader: &mut Loader, store: &Store, keys: &RoundKeys) {
        if loader.verified.is_some_and(|last| last.elapsed() < VERIFY_EVERY) {
            return;
        }
        loader.verified = Some(Instant::now());
        counter!("unisono_roster_doubts_total").increment(1);
        match kept(store, keys, loader.newest).await {
            Ok(Some(roster)) if names(roster.head(), keys) && roster.head().epoch == loader.newest => {
                self.put_in_force(Arc::new(roster));
            }
            Ok(_) => match take(loader.newest, store, keys).await {
                Ok(roster) => {
                    tracing::warn!(epoch = roster.head().epoch, "the kept roster was damaged, and was copied again");
                    loader.newest = roster.head().epoch;
                    self.put_in_force(roster);
                }
                Err(error) => {
                    tracing::error!(%error, "the kept roster is damaged and can't be copied again: publish it")
                }
            },
            Err(error) => tracing::error!(%error, "the kept roster can't be read"),
        }
    }
}

/// How many seconds before its end a roster is over soon: a tenth of its time, at most [`OVER_SOON`].
fn over_soon(issued_at: u64, valid_until: u64) -> u64 {
    (valid_until.saturating_sub(issued_at) / 10).min(OVER_SOON)
}

fn stamp(keys: &RoundKeys) -> Stamp {
    let data = std::fs::metadata(&keys.roster).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

fn names(head: &Head, keys: &RoundKeys) -> bool {
    head.coordinator_keys.contains(&keys.signing_key.verifying_key())
}

/// The kept roster of this epoch; `None` when it is missing or damaged.
async fn kept(store: &Store, keys: &RoundKeys, epoch: u64) -> Result<Option<Roster>, StoreError> {
    match store.open_roster(&keys.registrar, epoch).await {
        Err(error @ StoreError::Damaged(_)) => {
            tracing::error!(%error, "the kept roster can't be used");
            Ok(None)
        }
        other => other,
    }
}

/// The start of the roster's file, which is all that is needed to refuse most: its head, verified.
fn examine(newest: u64, keys: &RoundKeys) -> Result<(Positional, Signed, Head), RosterRefused> {
    let path = keys.roster.clone();
    let unreadable = |source| RosterRefused::Read { path: path.clone(), source };
    let damaged = |source| RosterRefused::Roster { path: path.clone(), source };
    let file = Positional::open(&path).map_err(unreadable)?;
    let start = file.start().map_err(unreadable)?;
    let why = "it does not begin with a head: it is none, or was copied in part".to_owned();
    let no_head = || damaged(SignedError::Malformed { what: "roster", why }.into());
    let signed = head_of_file(&start).ok_or_else(no_head)?;
    let head = Head::verify(&signed, &keys.registrar).map_err(damaged)?;
    let epoch = head.epoch;
    if epoch < newest {
        return Err(RosterRefused::Older { path, epoch, newest });
    }
    if !names(&head, keys) {
        return Err(RosterRefused::NotNamed { path, epoch });
    }
    Ok((file, signed, head))
}

/// Reads the roster's file: as far as the head, if it is the one in force.
async fn read(
    loader: &Loader,
    in_force: Option<Arc<Roster>>,
    store: &Store,
    keys: &RoundKeys,
) -> Result<Arc<Roster>, RosterRefused> {
    let (file, signed, head) = examine(loader.newest, keys)?;
    let Some(last) = in_force.filter(|last| last.head().epoch == head.epoch) else {
        return take(loader.newest, store, keys).await;
    };
    let path = keys.roster.clone();
    if last.signed_head().payload != signed.payload {
        return Err(RosterRefused::SameEpoch { path, epoch: head.epoch });
    }
    // The same head has the same leaves; of another length, some are missing or there is something else.
    let size = |file: &dyn ReadAt| file.size().ok();
    if size(&file) != last.size().ok() {
        let registrar = keys.registrar.clone();
        let scanned = tokio::task::spawn_blocking(move || scan(&file, &registrar, |_| Ok(()), |_| Ok(()))).await;
        scanned.map_or(Ok(()), |scanned| scanned.map(drop)).map_err(|source| RosterRefused::Roster { path, source })?;
    }
    Ok(last)
}

/// Copies the roster's file, and puts the copy in force.
async fn take(newest: u64, store: &Store, keys: &RoundKeys) -> Result<Arc<Roster>, RosterRefused> {
    let (file, signed, head) = examine(newest, keys)?;
    let (path, began) = (keys.roster.clone(), Instant::now());
    tracing::info!(epoch = head.epoch, devices = head.size, "reading a new roster");
    let roster = store.take_roster(&keys.registrar, head.epoch, file).await.map_err(|error| match error {
        TakeError::Store(error) => RosterRefused::Store(error),
        TakeError::Roster(source) => RosterRefused::Roster { path: path.clone(), source },
    })?;
    if roster.signed_head() != &signed {
        let source = std::io::Error::other("it was changed while it was read");
        return Err(RosterRefused::Read { path, source });
    }
    store.set_roster_epoch(&keys.registrar, head.epoch).await?;
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(epoch = head.epoch, devices = head.size, seconds, "a new roster is in force");
    Ok(Arc::new(roster))
}

#[cfg(test)]
mod tests;
