//! The registrar: which devices exist, and which coordinators and publishers count. It keeps a folder and publishes rosters; it is
//! offline otherwise and never sees an update.
//!
//! The folder holds the secret key and an SQLite database: a log of events, to which is only appended and whose hashes are
//! chained, and tables that follow from it. Each change is one transaction under the folder's lock, so any number of processes
//! may work on it. What a function has returned is on stable storage; what it was at when the machine failed has happened
//! wholly or not at all.

mod error;
mod import;
mod input;
mod log;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use getrandom::SysRng;
use prost::Message;
use rand_core::UnwrapErr;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::{self, Enrolment, Role};
use unisono_protocol::proto::{Attribute, RosterLeaf, Signed};
use unisono_protocol::roster::{self, Head, HeadTerms, Roster};

use crate::files;
pub use error::{Place, RegistrarError};
pub use input::{Candidate, MAX_LINE, Table, read_file};
pub use log::LogHead;
use log::{Event, Replay, each_leaf, identity_hash, key_owner};

/// File of the secret key.
pub const SECRET_KEY: &str = "registrar.key";
/// File of the verifying key, which every client and coordinator is given.
pub const PUBLIC_KEY: &str = "registrar.pub";
/// File of the log and the tables.
pub const DATABASE: &str = "registrar.sqlite";
/// How long before now an enrolment begins, in seconds: a device's clock may be behind the registrar's.
pub const BACKDATED: u64 = 300;
/// For how many days a roster counts unless something else is said: as long as an enrolment does.
pub const ROSTER_DAYS: u64 = 365;
const LOCK: &str = "lock";
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const DAY: u64 = 86_400;

/// An enrolled or revoked device, for listings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Its id, hexadecimal.
    pub client_id: String,
    /// Valid from, Unix time in seconds.
    pub not_before: u64,
    /// Valid until and including.
    pub not_after: u64,
    /// Free words about it.
    pub attributes: BTreeMap<String, String>,
    /// When it was revoked.
    pub revoked_at: Option<u64>,
}

/// How devices are enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Validity in days, 1 to 36500.
    pub days: u64,
    /// Renew enrolments that have not ended yet, too.
    pub renew: bool,
    /// Take other keys for a device that is enrolled.
    pub replace_keys: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { days: 365, renew: false, replace_keys: false }
    }
}

/// What an enrolment did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The device is new.
    Enrolled,
    /// It was there; its validity, attributes or keys are new.
    Renewed,
    /// It was there; nothing was changed.
    Skipped,
}

/// What a batch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Enrolled {
    /// New devices.
    pub enrolled: u64,
    /// Renewed ones.
    pub renewed: u64,
    /// Devices that were there already.
    pub skipped: u64,
}

/// What the next roster says beside its devices.
#[derive(Debug, Clone, Copy)]
pub struct Issue<'a> {
    /// Keys of the coordinators that may open rounds; at least one.
    pub coordinators: &'a [VerifyingKey],
    /// Keys of the publishers that may sign releases.
    pub publishers: &'a [VerifyingKey],
    /// Unix time in seconds.
    pub now: u64,
    /// How many days from `now` on it counts, 1 to 36500: devices act on none that is over.
    pub days: u64,
    /// The epoch is larger than this.
    pub after_epoch: u64,
}

/// A roster that was written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its epoch.
    pub epoch: u64,
    /// Last second in which it counts, Unix time.
    pub valid_until: u64,
    /// Its devices.
    pub devices: u64,
    /// An earlier call was interrupted after it had signed this roster; this one has written it.
    pub resumed: bool,
    /// The log's head.
    pub log: LogHead,
}

/// A log that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The log's head.
    pub log: LogHead,
    /// Epoch of the last roster; 0 before the first.
    pub epoch: u64,
    /// Devices that are not revoked, expired ones too.
    pub devices: u64,
    /// Revoked devices.
    pub revoked: u64,
    /// Epoch of a roster that was signed, and whose file may not have been written: publish again.
    pub undelivered: Option<u64>,
}

/// A registrar's folder. Any number of processes may have it open.
pub struct Registrar {
    folder: PathBuf,
    key: SigningKey,
    public: VerifyingKey,
    db: Connection,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> RegistrarError {
    |source| RegistrarError::Io { path: path.into(), source }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn check_days(days: u64) -> Result<(), RegistrarError> {
    if (1..=36_500).contains(&days) { Ok(()) } else { Err(RegistrarError::Validity(days)) }
}

/// Waits for the folder's lock; it is free when the file is dropped.
fn lock(folder: &Path) -> Result<File, RegistrarError> {
    let path = folder.join(LOCK);
    let file = files::open_private(&path).map_err(io(&path))?;
    let began = Instant::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(source)) => return Err(io(&path)(source)),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() > LONGEST_WAIT => {
                return Err(RegistrarError::InUse { folder: folder.into(), seconds: LONGEST_WAIT.as_secs() });
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                if !told && began.elapsed() > Duration::from_secs(2) {
                    told = true;
                    tracing::info!(folder = %folder.display(), "another process is changing the registrar's folder; waiting for it");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Duration::from_secs(60))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // KiB, as large as needed: a large batch touches pages all over the tables of devices and keys.
    db.pragma_update(None, "cache_size", -262_144)?;
    db.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?;
    Ok(db)
}

fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

impl Registrar {
    /// Makes a registrar with a fresh key in `folder`, which only its owner may use.
    ///
    /// # Errors
    /// [`RegistrarError::Exists`] when there is one; [`RegistrarError::Shared`] for a folder with files that others can use.
    pub fn init(folder: &Path) -> Result<Self, RegistrarError> {
        files::create_private_folder(folder).map_err(io(folder))?;
        // An empty folder is nobody else's yet.
        if std::fs::read_dir(folder).map_err(io(folder))?.next().is_none() {
            files::make_private(folder).map_err(io(folder))?;
        }
        let metadata = std::fs::metadata(folder).map_err(io(folder))?;
        keyfile::check_private(&metadata).map_err(|_| RegistrarError::Shared(folder.into()))?;
        let lock = lock(folder)?;
        for name in [SECRET_KEY, PUBLIC_KEY, import::OLD_STATE] {
            let path = folder.join(name);
            if path.exists() {
                return Err(RegistrarError::Exists(path));
            }
        }
        let key = SigningKey::generate(Level::L65, &mut UnwrapErr(SysRng));
        // The key comes last: a folder without one is no registrar's, and may be made again.
        let path = folder.join(DATABASE);
        files::open_private(&path).map_err(io(&path))?;
        let database = |source| RegistrarError::Database { path: path.clone(), source };
        let mut db = connect(&path).map_err(database)?;
        match version(&db).map_err(database)? {
            0 => Self::prepare(&mut db, folder, &key.verifying_key())?,
            _ if LogHead::last(&db, &key.verifying_key()).map_err(database)?.event > 0 => {
                return Err(RegistrarError::Exists(path));
            }
            _ => {}
        }
        let path = folder.join(SECRET_KEY);
        files::create(&path, keyfile::signing_key_to_text(Role::Registrar, &key).as_bytes()).map_err(io(&path))?;
        drop(lock);
        Self::open(folder)
    }

    /// Opens the registrar in `folder`.
    ///
    /// # Errors
    /// [`RegistrarError`]: a missing or damaged file, or a secret key that others can read.
    pub fn open(folder: &Path) -> Result<Self, RegistrarError> {
        let path = folder.join(SECRET_KEY);
        let text = keyfile::read_secret(&path).map_err(io(&path))?;
        let key = keyfile::signing_key_from_text(Role::Registrar, &text)
            .map_err(|source| RegistrarError::Key { path, source })?;
        files::make_private(folder).map_err(io(folder))?;
        let public = key.verifying_key();
        let path = folder.join(PUBLIC_KEY);
        if !path.exists() {
            let text = keyfile::verifying_key_to_text(Role::Registrar, &public);
            files::replace(&path, text.as_bytes()).map_err(io(&path))?;
        }
        let path = folder.join(DATABASE);
        let old = folder.join(import::OLD_STATE);
        if old.exists() {
            let _lock = lock(folder)?;
            // Another process may have been faster.
            if old.exists() {
                files::open_private(&path).map_err(io(&path))?;
                let database = |source| RegistrarError::Database { path: path.clone(), source };
                let mut db = connect(&path).map_err(database)?;
                if version(&db).map_err(database)? == 0 {
                    Self::prepare(&mut db, folder, &public)?;
                }
                let kept = folder.join(format!("{}.imported", import::OLD_STATE));
                std::fs::rename(&old, &kept).map_err(io(&old))?;
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
                tracing::info!(from = %kept.display(), to = %path.display(), "the registrar's devices are in its database now");
            }
        }
        if !path.exists() {
            return Err(RegistrarError::Missing(path));
        }
        files::make_private(&path).map_err(io(&path))?;
        let database = |source| RegistrarError::Database { path: path.clone(), source };
        let db = connect(&path).map_err(database)?;
        match version(&db).map_err(database)? {
            1 => Ok(Self { folder: folder.into(), key, public, db }),
            0 => Err(RegistrarError::Missing(path)),
            newer => {
                Err(RegistrarError::Damaged { path, why: format!("its version is {newer}; this program knows 1") })
            }
        }
    }

    /// Makes the tables of a new database, and fills them from the file of an earlier version if there is one.
    fn prepare(db: &mut Connection, folder: &Path, public: &VerifyingKey) -> Result<(), RegistrarError> {
        let path = folder.join(DATABASE);
        let database = |source| RegistrarError::Database { path: path.clone(), source };
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(database)?;
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database)?;
        change.execute_batch(log::SCHEMA).map_err(database)?;
        let old = folder.join(import::OLD_STATE);
        if old.exists() {
            let mut head = LogHead::last(&change, public).map_err(database)?;
            import::import(&change, &mut head, &old, now())?;
        }
        change.commit().map_err(database)
    }

    fn database(&self) -> impl Fn(rusqlite::Error) -> RegistrarError + use<> {
        let path = self.folder.join(DATABASE);
        move |source| RegistrarError::Database { path: path.clone(), source }
    }

    /// One change: under the folder's lock, in one transaction, which is undone unless `work` succeeds.
    fn change<T>(
        &mut self,
        work: impl FnOnce(&Connection, &mut LogHead) -> Result<T, ChangeError>,
    ) -> Result<T, RegistrarError> {
        let _lock = lock(&self.folder)?;
        self.change_locked(work)
    }

    fn change_locked<T>(
        &mut self,
        work: impl FnOnce(&Connection, &mut LogHead) -> Result<T, ChangeError>,
    ) -> Result<T, RegistrarError> {
        let (database, path) = (self.database(), self.folder.join(DATABASE));
        let change = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&database)?;
        let mut head = LogHead::last(&change, &self.public).map_err(&database)?;
        let done = work(&change, &mut head).map_err(|error| error.at(&path))?;
        change.commit().map_err(database)?;
        Ok(done)
    }

    /// The verifying key.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.public.clone()
    }

    /// Enrols a device for `days` from `now` (Unix time in seconds); its validity begins [`BACKDATED`] seconds before. A device that
    /// is enrolled with the same keys is left as it is, or renewed when its enrolment has ended.
    ///
    /// # Errors
    /// [`RegistrarError`]: a revoked device, other keys, another device's key, or a validity or attributes beyond the limits.
    pub fn enrol(
        &mut self,
        enrolment: &Enrolment,
        now: u64,
        days: u64,
        attributes: BTreeMap<String, String>,
    ) -> Result<Outcome, RegistrarError> {
        let candidate = Candidate { enrolment: enrolment.clone(), attributes, at: None };
        let done = self.enrol_all([Ok(candidate)], now, Terms { days, ..Terms::default() })?;
        Ok(match done {
            Enrolled { enrolled: 1, .. } => Outcome::Enrolled,
            Enrolled { renewed: 1, .. } => Outcome::Renewed,
            _ => Outcome::Skipped,
        })
    }

    /// Enrols many devices: all of them, or none when there is an error. Devices that are there with the same keys and attributes
    /// are skipped, so that a batch may be enrolled again when it is not known whether it was.
    ///
    /// # Errors
    /// As [`Self::enrol`], with the place where the device stands; a device that stands in the batch twice.
    pub fn enrol_all(
        &mut self,
        candidates: impl IntoIterator<Item = Result<Candidate, RegistrarError>>,
        now: u64,
        terms: Terms,
    ) -> Result<Enrolled, RegistrarError> {
        check_days(terms.days)?;
        self.change(|db, head| {
            let mut done = Enrolled::default();
            let mut seen: HashMap<ClientId, Option<Place>> = HashMap::new();
            for candidate in candidates {
                let Candidate { enrolment, attributes, at } = candidate?;
                let outcome = match seen.insert(enrolment.client_id(), at.clone()) {
                    Some(Some(first)) => Err(RegistrarError::Duplicate { client: enrolment.client_id(), first }.into()),
                    _ => enrol_one(db, head, now, terms, &enrolment, &attributes),
                };
                match outcome.map_err(|error| error.in_batch(at))? {
                    Outcome::Enrolled => done.enrolled += 1,
                    Outcome::Renewed => done.renewed += 1,
                    Outcome::Skipped => done.skipped += 1,
                }
                if seen.len().is_multiple_of(50_000) {
                    tracing::info!(devices = seen.len(), "read; nothing is stored before all are");
                }
            }
            Ok(done)
        })
    }

    /// Revokes a device: the next roster is without it.
    ///
    /// # Errors
    /// [`RegistrarError::Unknown`], or [`RegistrarError::Revoked`] when it was done before.
    pub fn revoke(&mut self, client: ClientId, now: u64) -> Result<(), RegistrarError> {
        match self.revoke_all(&[client], now)? {
            0 => Err(RegistrarError::Revoked(client)),
            _ => Ok(()),
        }
    }

    /// Revokes many devices: all of them, or none when there is an error. Returns how many were not revoked before.
    ///
    /// # Errors
    /// [`RegistrarError::Unknown`].
    pub fn revoke_all(&mut self, clients: &[ClientId], now: u64) -> Result<u64, RegistrarError> {
        self.change(|db, head| {
            let mut count = 0;
            for &client in clients {
                match known(db, client)?.ok_or(RegistrarError::Unknown(client))? {
                    Known { revoked_at: Some(_), .. } => {}
                    _ => {
                        store_revocation(db, head, now, client)?;
                        count += 1;
                    }
                }
            }
            Ok(count)
        })
    }

    /// All devices in order of their ids, revoked ones too.
    ///
    /// # Errors
    /// [`RegistrarError::Database`] or [`RegistrarError::Damaged`].
    pub fn devices(&self) -> Result<Vec<DeviceStatus>, RegistrarError> {
        let path = self.folder.join(DATABASE);
        let query = "SELECT body, revoked_at FROM devices JOIN events ON seq = event ORDER BY client_id";
        let read = || -> Result<Vec<DeviceStatus>, ChangeError> {
            let mut statement = self.db.prepare(query)?;
            let mut rows = statement.query([])?;
            let mut devices = Vec::new();
            while let Some(row) = rows.next()? {
                let leaf = decode_leaf(row.get_ref(0)?.as_blob()?, &path)?;
                devices.push(DeviceStatus {
                    client_id: hex::encode(&leaf.client_id),
                    not_before: leaf.not_before,
                    not_after: leaf.not_after,
                    attributes: leaf.attributes.into_iter().map(|it| (it.name, it.value)).collect(),
                    revoked_at: row.get::<_, Option<i64>>(1)?.map(|at| at as u64),
                });
            }
            Ok(devices)
        };
        read().map_err(|error| error.at(&path))
    }

    /// Epoch of the last published roster; 0 before the first.
    ///
    /// # Errors
    /// [`RegistrarError::Database`].
    pub fn epoch(&self) -> Result<u64, RegistrarError> {
        last_epoch(&self.db).map_err(self.database())
    }

    /// Reads the whole log and checks that every hash, signature, table and the last roster's root follow from it. `noted` is a head
    /// of the log that was noted earlier: the log must still have it.
    ///
    /// # Errors
    /// [`RegistrarError::Log`] with the first event that does not verify.
    pub fn audit(&self, noted: Option<LogHead>) -> Result<Audit, RegistrarError> {
        let path = self.folder.join(DATABASE);
        let public = self.public.clone();
        // Readers do not wait for a change, and one transaction sees one state.
        let view = self.db.unchecked_transaction().map_err(self.database())?;
        let replay = Replay::of(&view, &public, true, noted).map_err(|error| error.at(&path))?;
        replay.check_root(&view).map_err(|error| error.at(&path))?;
        let undelivered = undelivered(&view).map_err(|source| RegistrarError::Database { path, source })?;
        let revoked = replay.devices.values().filter(|entry| entry.revoked_at.is_some()).count() as u64;
        let (log, epoch, devices) = (replay.head, replay.epoch, replay.devices.len() as u64 - revoked);
        Ok(Audit { log, epoch, devices, revoked, undelivered })
    }

    /// Signs the next roster: every device that is neither revoked nor expired at `now`. It counts for [`ROSTER_DAYS`].
    ///
    /// # Errors
    /// [`RegistrarError::NoCoordinator`]; [`RegistrarError::Log`] when the log does not verify.
    pub fn publish(
        &mut self,
        coordinators: &[VerifyingKey],
        publishers: &[VerifyingKey],
        now: u64,
    ) -> Result<Roster, RegistrarError> {
        let _lock = lock(&self.folder)?;
        let issue = Issue { coordinators, publishers, now, days: ROSTER_DAYS, after_epoch: 0 };
        let signed = self.sign(&issue, None)?;
        let mut file = Vec::new();
        roster::append_head(&signed.head, &mut file);
        each_leaf(&self.db, &signed.devices, |leaf| {
            roster::append_leaf(leaf, &mut file);
            Ok::<_, rusqlite::Error>(())
        })
        .map_err(self.database())?;
        Ok(Roster::open(file, Vec::new(), &self.public)?)
    }

    /// Signs the next roster and writes it to `out`, which is replaced atomically. The roster may be larger than memory. When an
    /// earlier call with the same keys and days was interrupted after it had signed, and nothing has changed since, that roster is
    /// written.
    ///
    /// # Errors
    /// As [`Self::publish`]; [`RegistrarError::Validity`]; [`RegistrarError::Newer`] when `out` holds a roster of this registrar that is as new or newer; a file
    /// that can't be written: call again then.
    pub fn publish_to(&mut self, out: &Path, issue: &Issue<'_>) -> Result<Published, RegistrarError> {
        check_days(issue.days)?;
        // Until the file is there: of two calls, the one with the newer roster writes last.
        let _lock = lock(&self.folder)?;
        let signed = self.sign(issue, Some(out))?;
        self.write(&signed, out)?;
        let (epoch, valid_until) = (signed.epoch, signed.valid_until);
        let (database, done) = (self.database(), params![issue.now as i64, epoch as i64]);
        self.db.execute("UPDATE epochs SET delivered_at = ? WHERE epoch = ?", done).map_err(database)?;
        let devices = signed.devices.len() as u64;
        Ok(Published { epoch, devices, valid_until, resumed: signed.resumed, log: signed.log })
    }

    /// Signs a roster and records it: its epoch is on stable storage before anybody can have it.
    fn sign(&mut self, issue: &Issue<'_>, out: Option<&Path>) -> Result<SignedRoster, RegistrarError> {
        if issue.coordinators.is_empty() {
            return Err(RegistrarError::NoCoordinator);
        }
        let there = out.and_then(|out| Some((out, files::read_start(out, MAX_HEAD).ok()?)));
        let there = there.and_then(|(out, start)| {
            let signed = roster::head_of_file(&start)?;
            Some((out, Head::verify(&signed, &self.public).ok()?.epoch, signed))
        });
        let (key, public) = (self.key.clone(), self.public.clone());
        let path = self.folder.join(DATABASE);
        self.change_locked(|db, log| {
            // Nothing is signed that is not in a log that verifies.
            let mut replay = Replay::of(db, &public, false, None).map_err(|error| error.at(&path))?;
            let pending = undelivered(db)?;
            let resumable = replay.last.take_if(|last| {
                last.event == log.event
                    && pending == Some(last.head.epoch)
                    && issue.after_epoch < last.head.epoch
                    && last.head.valid_until == last.issued_at.saturating_add(issue.days * DAY)
                    // Not one of which much of the time is over.
                    && issue.now.saturating_sub(last.issued_at) <= issue.days * DAY / 10
                    && last.head.coordinator_keys == issue.coordinators
                    && last.head.publisher_keys == issue.publishers
            });
            let newer = |next: u64, signed: Option<&Signed>| match &there {
                Some((out, there, other)) if *there >= next && Some(other) != signed => {
                    Err(RegistrarError::Newer { path: out.to_path_buf(), there: *there, next })
                }
                _ => Ok(()),
            };
            if let Some(last) = resumable.filter(|_| out.is_some()) {
                newer(last.head.epoch, Some(&last.signed))?;
                if log::tree(db, &last.devices)?.root() != last.head.root {
                    let why = format!("the root of epoch {} is not that of the devices in the log", last.head.epoch);
                    return Err(RegistrarError::Log { event: last.event, why }.into());
                }
                tracing::info!(
                    epoch = last.head.epoch,
                    issued_at = last.issued_at,
                    "publishing was interrupted after the roster was signed; writing it"
                );
                let (epoch, valid_until, head, devices) =
                    (last.head.epoch, last.head.valid_until, last.signed, last.devices);
                return Ok(SignedRoster { epoch, valid_until, head, devices, resumed: true, log: *log });
            }
            let epoch = replay.epoch.max(issue.after_epoch) + 1;
            newer(epoch, None)?;
            let devices = replay.valid(issue.now);
            let tree = log::tree(db, &devices)?;
            let valid_until = issue.now.saturating_add(issue.days * DAY);
            let terms = HeadTerms { epoch, issued_at: issue.now, valid_until };
            let head = roster::sign_head(&tree, terms, issue.coordinators, issue.publishers, &key);
            log.append(db, issue.now, &Event::Published(head.clone()))?;
            // A roster without a file is the caller's from here on.
            let delivered = out.is_none().then_some(issue.now as i64);
            db.execute(
                "INSERT INTO epochs (epoch, event, delivered_at) VALUES (?, ?, ?)",
                params![epoch as i64, log.event as i64, delivered],
            )?;
            Ok(SignedRoster { epoch, valid_until, head, devices, resumed: false, log: *log })
        })
    }

    fn write(&self, signed: &SignedRoster, out: &Path) -> Result<(), RegistrarError> {
        let (database, failed) = (self.database(), |source| io(out)(source));
        files::replace_by(out, |file| {
            let mut file = BufWriter::with_capacity(1 << 20, file);
            let mut bytes = Vec::new();
            roster::append_head(&signed.head, &mut bytes);
            file.write_all(&bytes)?;
            each_leaf(&self.db, &signed.devices, |leaf| -> Result<(), WriteError> {
                bytes.clear();
                roster::append_leaf(leaf, &mut bytes);
                Ok(file.write_all(&bytes)?)
            })?;
            Ok(file.flush()?)
        })
        .map_err(|error| match error {
            WriteError::Io(source) => failed(source),
            WriteError::Database(source) => database(source),
        })
    }
}

/// No head of a roster is longer than this, in bytes: 400 keys and more.
const MAX_HEAD: u64 = 1 << 20;

struct SignedRoster {
    epoch: u64,
    valid_until: u64,
    head: Signed,
    devices: Vec<(ClientId, u64)>,
    resumed: bool,
    log: LogHead,
}

enum WriteError {
    Io(std::io::Error),
    Database(rusqlite::Error),
}

impl From<std::io::Error> for WriteError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// Why a change was undone.
enum ChangeError {
    Refused(RegistrarError),
    Database(rusqlite::Error),
}

impl From<RegistrarError> for ChangeError {
    fn from(error: RegistrarError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for ChangeError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<rusqlite::types::FromSqlError> for ChangeError {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Database(error.into())
    }
}

impl ChangeError {
    fn at(self, path: &Path) -> RegistrarError {
        match self {
            Self::Refused(error) => error,
            Self::Database(source) => RegistrarError::Database { path: path.into(), source },
        }
    }

    /// Names the place of the device that was refused.
    fn in_batch(self, at: Option<Place>) -> Self {
        match (self, at) {
            (Self::Refused(error), Some(at)) => RegistrarError::At { at, source: Box::new(error) }.into(),
            (error, _) => error,
        }
    }
}

struct Known {
    event: i64,
    not_after: u64,
    revoked_at: Option<i64>,
}

fn known(db: &Connection, client: ClientId) -> rusqlite::Result<Option<Known>> {
    let mut statement = db.prepare_cached("SELECT event, not_after, revoked_at FROM devices WHERE client_id = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Known { event: row.get(0)?, not_after: row.get::<_, i64>(1)? as u64, revoked_at: row.get(2)? })
    };
    statement.query_row([client.0], read).optional()
}

fn last_epoch(db: &Connection) -> rusqlite::Result<u64> {
    // Before the first publication, the epoch of the folder that was imported.
    let published: Option<i64> = db.query_row("SELECT MAX(epoch) FROM epochs", [], |row| row.get(0))?;
    if let Some(epoch) = published {
        return Ok(epoch as u64);
    }
    let imported =
        db.query_row("SELECT body FROM events WHERE seq = 1 AND kind = 0", [], |row| row.get::<_, [u8; 8]>(0));
    Ok(imported.optional()?.map_or(0, u64::from_le_bytes))
}

fn undelivered(db: &Connection) -> rusqlite::Result<Option<u64>> {
    let last = "SELECT epoch, delivered_at FROM epochs ORDER BY epoch DESC LIMIT 1";
    let last = db.query_row(last, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))).optional()?;
    Ok(last.filter(|(_, delivered_at)| delivered_at.is_none()).map(|(epoch, _)| epoch as u64))
}

fn decode_leaf(bytes: &[u8], path: &Path) -> Result<RosterLeaf, RegistrarError> {
    RosterLeaf::decode(bytes).map_err(|e| RegistrarError::Damaged { path: path.into(), why: e.to_string() })
}

fn wire_attributes(attributes: &BTreeMap<String, String>) -> Vec<Attribute> {
    attributes.iter().map(|(name, value)| Attribute { name: name.clone(), value: value.clone() }).collect()
}

fn enrol_one(
    db: &Connection,
    log: &mut LogHead,
    now: u64,
    terms: Terms,
    enrolment: &Enrolment,
    attributes: &BTreeMap<String, String>,
) -> Result<Outcome, ChangeError> {
    input::check_attributes(attributes)?;
    let client = enrolment.client_id();
    let not_after = now.saturating_add(terms.days * DAY);
    let new = enrolment.leaf(now.saturating_sub(BACKDATED), not_after, wire_attributes(attributes));
    let known = known(db, client)?;
    if let Some(Known { event, not_after, revoked_at }) = known {
        if revoked_at.is_some() {
            return Err(RegistrarError::Revoked(client).into());
        }
        let mut statement = db.prepare_cached("SELECT body FROM events WHERE seq = ?")?;
        let bytes: Vec<u8> = statement.query_row([event], |row| row.get(0))?;
        let old = decode_leaf(&bytes, Path::new(DATABASE))?;
        let same_keys = old.identity_key == new.identity_key && old.release_key_hash == new.release_key_hash;
        if !same_keys && !terms.replace_keys {
            return Err(RegistrarError::KeyChanged(client).into());
        }
        // An enrolment that has ended is renewed.
        if same_keys && not_after >= now && !terms.renew {
            return match old.attributes == new.attributes {
                true => Ok(Outcome::Skipped),
                false => Err(RegistrarError::Differs(client).into()),
            };
        }
    }
    store_leaf(db, log, now, client, &new)?;
    Ok(if known.is_some() { Outcome::Renewed } else { Outcome::Enrolled })
}

fn store_leaf(
    db: &Connection,
    log: &mut LogHead,
    now: u64,
    client: ClientId,
    leaf: &RosterLeaf,
) -> Result<(), ChangeError> {
    let identity = identity_hash(&leaf.identity_key);
    for (what, hash) in [("identity", identity.as_slice()), ("release", &leaf.release_key_hash)] {
        match key_owner(db, hash)? {
            Some(owner) if owner != client => {
                return Err(RegistrarError::KeyTaken { client, what, owner }.into());
            }
            Some(_) => {}
            None => {
                db.prepare_cached("INSERT INTO keys (hash, client_id) VALUES (?, ?)")?
                    .execute(params![hash, client.0])?;
            }
        }
    }
    log.append(db, now, &Event::Enrolled(leaf.encode_to_vec()))?;
    db.prepare_cached("INSERT OR REPLACE INTO devices (client_id, event, not_after) VALUES (?, ?, ?)")?
        .execute(params![client.0, log.event as i64, leaf.not_after as i64])?;
    Ok(())
}

fn store_revocation(db: &Connection, log: &mut LogHead, now: u64, client: ClientId) -> rusqlite::Result<()> {
    log.append(db, now, &Event::Revoked(client))?;
    db.prepare_cached("UPDATE devices SET revoked_at = ? WHERE client_id = ?")?
        .execute(params![now as i64, client.0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use unisono_protocol::keyfile::DeviceKeys;

    use super::*;

    #[test]
    fn a_device_is_enrolled_published_revoked_and_never_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let rng = &mut UnwrapErr(SysRng);
        let coordinator = SigningKey::generate(Level::L65, rng).verifying_key();
        let (one, two) = (DeviceKeys::generate(rng), DeviceKeys::generate(rng));
        let mut registrar = Registrar::init(folder.path()).unwrap();
        assert!(matches!(Registrar::init(folder.path()), Err(RegistrarError::Exists(_))));
        let model = BTreeMap::from([("model".to_owned(), "a".to_owned())]);
        registrar.enrol(&one.enrolment(), 1000, 1, model).unwrap();
        registrar.enrol(&two.enrolment(), 1000, 2, BTreeMap::new()).unwrap();
        let model = BTreeMap::from([("model".to_owned(), "a".to_owned())]);
        assert_eq!(registrar.enrol(&one.enrolment(), 1001, 1, model).unwrap(), Outcome::Skipped);
        let other = registrar.enrol(&one.enrolment(), 1001, 1, BTreeMap::new());
        assert!(matches!(other, Err(RegistrarError::Differs(_))));
        assert!(matches!(registrar.publish(&[], &[], 1000), Err(RegistrarError::NoCoordinator)));

        let mut registrar = Registrar::open(folder.path()).unwrap();
        let roster = registrar.publish(std::slice::from_ref(&coordinator), &[], 1000).unwrap();
        assert_eq!((roster.head().epoch, roster.head().size), (1, 2));
        registrar.revoke(one.client_id, 2000).unwrap();
        assert!(matches!(registrar.revoke(one.client_id, 2000), Err(RegistrarError::Revoked(_))));
        assert!(matches!(registrar.revoke(ClientId([0; 16]), 2000), Err(RegistrarError::Unknown(_))));
        let again = registrar.enrol(&one.enrolment(), 2000, 1, BTreeMap::new());
        assert!(matches!(again, Err(RegistrarError::Revoked(_))));
        let roster = registrar.publish(std::slice::from_ref(&coordinator), &[], 2000).unwrap();
        assert_eq!(roster.head().epoch, 2);
        assert_eq!(roster.clients(), [two.client_id]);
        // Device two's enrolment has ended: it is left out, and may be renewed.
        let later = 1000 + 2 * DAY + 1;
        assert_eq!(registrar.publish(&[coordinator], &[], later).unwrap().head().size, 0);
        assert_eq!(registrar.enrol(&two.enrolment(), later, 1, BTreeMap::new()).unwrap(), Outcome::Renewed);
        assert_eq!(registrar.epoch().unwrap(), 3);
        assert!(matches!(
            registrar.enrol(&two.enrolment(), later, 0, BTreeMap::new()),
            Err(RegistrarError::Validity(0))
        ));
    }

    #[test]
    fn an_interrupted_publication_is_resumed_while_most_of_its_time_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut registrar = Registrar::init(&folder.path().join("registrar")).unwrap();
        let coordinators = [SigningKey::generate(Level::L65, &mut UnwrapErr(SysRng)).verifying_key()];
        let mut publish = |name: &str, now| {
            let issue = Issue { coordinators: &coordinators, publishers: &[], now, days: 10, after_epoch: 0 };
            registrar.publish_to(&folder.path().join(name), &issue)
        };
        let outcome = |published: Published| (published.epoch, published.resumed, published.valid_until);
        // Signed, and not written.
        publish("none/roster.bin", 1000).unwrap_err();
        assert_eq!(outcome(publish("roster.bin", 1000 + DAY).unwrap()), (1, true, 1000 + 10 * DAY));
        publish("none/roster.bin", 2000).unwrap_err();
        assert_eq!(outcome(publish("roster.bin", 2001 + DAY).unwrap()), (3, false, 2001 + 11 * DAY));
    }
}
