//! What a device must not forget: its rounds and what it said in them, the newest roster, the newest models. One small JSON file, replaced atomically
//! and on stable storage before a method returns; a lock file keeps a second process from using it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use unisono_protocol::CohortId;
use unisono_protocol::policy::{ParticipationRecord, RecordError, Spent, TaskEntry};
use unisono_protocol::privacy::Accountant;
use unisono_release::{ReleaseError, Seen, VersionRecord};

/// The record's file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    /// Reading or writing failed.
    #[error("the record in {}: {source}", .path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process holds it.
    #[error("the record in {} is in use by another process: a device runs one client at a time", .path.display())]
    InUse {
        /// Which folder.
        path: PathBuf,
    },
    /// Not what this library wrote. It is never taken for empty, and a copy must not take its place: both would allow a round to
    /// be answered twice.
    #[error(
        "the record {} is damaged ({why}): enrol the device anew under another id; a restored copy would let an input be read",
        .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A [`TaskEntry`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEntry {
    round: u64,
    cohort: [u8; 32],
    masked_for: Option<[u8; 32]>,
    survivors: Option<[u8; 32]>,
    /// Rounds for which an input was masked.
    rounds: u64,
    /// When the last one was, Unix time in seconds.
    last_at: u64,
    /// Those without noise.
    unprotected: u64,
    /// The account of those with noise, as [`Accountant::to_bytes`] gives it; empty before the first.
    account: Vec<u8>,
}

impl From<TaskEntry> for StoredEntry {
    fn from(entry: TaskEntry) -> Self {
        let TaskEntry { round, cohort, masked_for, survivors, spent } = entry;
        let Spent { rounds, last_at, unprotected, account } = spent;
        let account = if account == Accountant::new() { Vec::new() } else { account.to_bytes() };
        Self { round, cohort: cohort.0, masked_for, survivors, rounds, last_at, unprotected, account }
    }
}

impl StoredEntry {
    /// `None` when the account was not written by this library.
    fn entry(&self) -> Option<TaskEntry> {
        let Self { round, cohort, masked_for, survivors, rounds, last_at, unprotected, .. } = *self;
        let account =
            if self.account.is_empty() { Some(Accountant::new()) } else { Accountant::from_bytes(&self.account) };
        let spent = Spent { rounds, last_at, unprotected, account: account? };
        Some(TaskEntry { round, cohort: CohortId(cohort), masked_for, survivors, spent })
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// What the device is bound to, and has spent, by task.
    tasks: BTreeMap<String, StoredEntry>,
    roster_epoch: u64,
    /// The newest release opened, by model id.
    models: BTreeMap<String, StoredRelease>,
    /// The latest time at which a release was opened, Unix time in seconds.
    #[serde(default)]
    latest_time: u64,
}

/// The newest release that was opened of a model.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum StoredRelease {
    /// As an earlier version of this library wrote it.
    Version(u64),
    Release {
        version: u64,
        header_hash: [u8; 32],
    },
}

impl From<StoredRelease> for Seen {
    fn from(stored: StoredRelease) -> Self {
        match stored {
            StoredRelease::Version(version) => Self { version, header_hash: None },
            StoredRelease::Release { version, header_hash } => Self { version, header_hash: Some(header_hash) },
        }
    }
}

impl From<Seen> for StoredRelease {
    fn from(Seen { version, header_hash }: Seen) -> Self {
        header_hash.map_or(Self::Version(version), |header_hash| Self::Release { version, header_hash })
    }
}

struct Inner {
    content: Content,
    /// File and lock; `None` in memory.
    file: Option<(PathBuf, File)>,
}

/// A device's durable record. Clones are handles to one record.
#[derive(Clone)]
pub struct Record(Arc<Mutex<Inner>>);

const NAME: &str = "record.json";
/// Begin of the names of files that are not whole yet; those of earlier versions began so, too.
const UNFINISHED: &str = ".tmp";

impl Record {
    /// A record that is forgotten with the process.
    pub fn in_memory() -> Self {
        Self(Arc::new(Mutex::new(Inner { content: Content::default(), file: None })))
    }

    /// Opens the record in `folder`, which is made if missing.
    ///
    /// # Errors
    /// [`RecordFileError`].
    pub fn open(folder: &Path) -> Result<Self, RecordFileError> {
        let error = |source| RecordFileError::Io { path: folder.into(), source };
        make_folder(folder).map_err(error)?;
        let lock = File::create(folder.join("lock")).map_err(error)?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => RecordFileError::InUse { path: folder.into() },
            std::fs::TryLockError::Error(source) => error(source),
        })?;
        sweep(folder);
        let path = folder.join(NAME);
        let content = match std::fs::read(&path) {
            Ok(bytes) => read_content(&bytes).map_err(|why| RecordFileError::Damaged { path: path.clone(), why })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(source) => return Err(RecordFileError::Io { path, source }),
        };
        Ok(Self(Arc::new(Mutex::new(Inner { content, file: Some((path, lock)) }))))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        Ok(Self(Arc::new(Mutex::new(Inner { content: read_content(bytes)?, file: None }))))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.read(|content| serde_json::to_vec(content).unwrap_or_default())
    }

    /// Where it is; `None` in memory.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.file.as_ref().and_then(|(path, _)| path.parent().map(Path::to_owned))
    }

    fn read<T>(&self, get: impl FnOnce(&Content) -> T) -> T {
        get(&self.0.lock().unwrap_or_else(PoisonError::into_inner).content)
    }

    /// Changes the content; the change counts only when it is on stable storage.
    fn change(&self, change: impl FnOnce(&mut Content)) -> std::io::Result<()> {
        self.change_if(|content| {
            change(content);
            true
        })
        .map(|_| ())
    }

    /// The same, unless `change` says no; whether it did not. The record is locked in between.
    fn change_if(&self, change: impl FnOnce(&mut Content) -> bool) -> std::io::Result<bool> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = inner.content.clone();
        if !change(&mut content) {
            return Ok(false);
        }
        if let Some((path, _)) = &inner.file {
            replace(&mut Os, path, &serde_json::to_vec(&content)?)?;
        }
        inner.content = content;
        Ok(true)
    }
}

fn read_content(bytes: &[u8]) -> Result<Content, String> {
    let content: Content = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match content.tasks.iter().find(|(_, stored)| stored.entry().is_none()) {
        Some((task, _)) => Err(format!("the privacy account of task {task:?} is not one")),
        None => Ok(content),
    }
}

/// What a replacement asks of the system, one at a time; the tests put a system that fails or dies in its place.
trait System {
    fn write(&mut self, folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile>;
    fn sync(&mut self, file: &File) -> io::Result<()>;
    fn rename(&mut self, file: NamedTempFile, path: &Path) -> io::Result<()>;
}

struct Os;

impl System for Os {
    fn write(&mut self, folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        file.write_all(bytes)?;
        Ok(file)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, file: NamedTempFile, path: &Path) -> io::Result<()> {
        file.persist(path)?;
        Ok(())
    }
}

/// Replaces a file as a whole. When it returns, the new content survives a power cut; before, the old or the new one does.
fn replace(system: &mut impl System, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = system.write(folder, bytes)?;
    system.sync(file.as_file())?;
    system.rename(file, path)?;
    system.sync(&File::open(folder)?)
}

/// Deletes what writes that were killed have left behind. It only takes room: what can't be deleted stays.
fn sweep(folder: &Path) {
    for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if file.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// Makes a folder that survives a power cut and that nobody else may read, with those above it that are missing.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(above)?;
    #[cfg_attr(not(unix), expect(unused_mut, reason = "other systems have no such permissions"))]
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => File::open(above)?.sync_all(),
    }
}

impl ParticipationRecord for Record {
    fn entry(&self, task: &str) -> Result<Option<TaskEntry>, RecordError> {
        Ok(self.read(|content| content.tasks.get(task).and_then(StoredEntry::entry)))
    }

    fn replace(&mut self, task: &str, expected: Option<&TaskEntry>, next: TaskEntry) -> Result<(), RecordError> {
        let replaced = self.change_if(|content| {
            if content.tasks.get(task).and_then(StoredEntry::entry).as_ref() != expected {
                return false;
            }
            content.tasks.insert(task.to_owned(), next.into());
            true
        });
        match replaced {
            Ok(true) => Ok(()),
            Ok(false) => Err(RecordError::Changed),
            Err(error) => Err(RecordError::Failed(error.to_string())),
        }
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        Ok(self.read(|content| content.roster_epoch))
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        if epoch <= self.read(|content| content.roster_epoch) {
            return Ok(());
        }
        self.change(|content| content.roster_epoch = content.roster_epoch.max(epoch))
            .map_err(|e| RecordError::Failed(e.to_string()))
    }
}

impl VersionRecord for Record {
    fn newest(&self, model_id: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(self.read(|content| content.models.get(model_id).copied().map(Seen::from)))
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(self.read(|content| content.latest_time))
    }

    fn see(&mut self, model_id: &str, release: Seen, now: u64) -> Result<(), ReleaseError> {
        let mut other = false;
        let changed = self.change_if(|content| {
            content.latest_time = content.latest_time.max(now);
            let seen = content.models.get(model_id).copied().map(Seen::from);
            // Another handle may have opened one since it was checked.
            other = seen.is_some_and(|seen| {
                seen.version == release.version && seen.header_hash.is_some() && seen.header_hash != release.header_hash
            });
            if seen.is_none_or(|seen| seen.version <= release.version) {
                content.models.insert(model_id.to_owned(), release.into());
            }
            !other
        });
        changed.map_err(|e| ReleaseError::Record(e.to_string()))?;
        if other {
            return Err(ReleaseError::AnotherOfThisVersion { model_id: model_id.into(), version: release.version });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use unisono_protocol::privacy::{Guarantee, Sensitivity};

    use super::*;

    fn entry(round: u64) -> TaskEntry {
        let cohort = CohortId([7; 32]);
        TaskEntry { round, cohort, masked_for: None, survivors: None, spent: Spent::default() }
    }

    #[test]
    fn what_was_recorded_is_there_after_a_restart_and_one_process_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::open(folder.path()).unwrap();
        assert!(matches!(Record::open(folder.path()), Err(RecordFileError::InUse { .. })));
        assert_eq!(record.entry("t").unwrap(), None);
        let first = entry(4);
        record.replace("t", None, first.clone()).unwrap();
        assert_eq!(record.replace("t", None, entry(5)), Err(RecordError::Changed));
        let guarantee = Guarantee { sensitivity: Sensitivity { l1: 9.0, l2: 3.0 }, contributions: 1, variance: 100.0 };
        let account = Accountant::new().and(&guarantee, 1);
        let spent = Spent { rounds: 1, last_at: 9, unprotected: 0, account };
        let second = TaskEntry { masked_for: Some([8; 32]), survivors: Some([9; 32]), spent, ..first.clone() };
        record.replace("t", Some(&first), second.clone()).unwrap();
        // A handle that read before can't replace what another one wrote since.
        assert_eq!(record.clone().replace("t", Some(&first), entry(6)), Err(RecordError::Changed));
        record.see_roster_epoch(3).unwrap();
        record.see_roster_epoch(2).unwrap();
        let release = |version| Seen { version, header_hash: Some([version as u8; 32]) };
        record.see("m", release(5), 70).unwrap();
        record.see("m", release(4), 60).unwrap();
        let other = Seen { version: 5, header_hash: Some([6; 32]) };
        assert!(matches!(record.see("m", other, 80), Err(ReleaseError::AnotherOfThisVersion { version: 5, .. })));
        drop(record);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let made = folder.path().join("a/b");
            Record::open(&made).unwrap();
            for path in [folder.path().join("a"), made] {
                assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o077, 0);
            }
        }
        let record = Record::open(folder.path()).unwrap();
        assert_eq!((record.entry("t").unwrap(), record.entry("u").unwrap()), (Some(second), None));
        assert_eq!((record.roster_epoch().unwrap(), record.newest("m").unwrap()), (3, Some(release(5))));
        assert_eq!(record.latest_time().unwrap(), 70);
    }

    #[test]
    fn a_record_of_an_earlier_version_knows_versions_without_their_headers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), r#"{"tasks":{},"roster_epoch":3,"models":{"m":5}}"#).unwrap();
        let mut record = Record::open(folder.path()).unwrap();
        assert_eq!(record.newest("m").unwrap(), Some(Seen { version: 5, header_hash: None }));
        let opened = Seen { version: 5, header_hash: Some([1; 32]) };
        record.see("m", opened, 9).unwrap();
        drop(record);
        assert_eq!(Record::open(folder.path()).unwrap().newest("m").unwrap(), Some(opened));
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let account = format!("{:?}", vec![255; Accountant::BYTES]);
        let entry = format!(
            r#"{{"round":1,"cohort":{:?},"masked_for":null,"survivors":null,"rounds":1,"last_at":9,"unprotected":0,"account":{account}}}"#,
            [7; 32]
        );
        let spoilt = format!(r#"{{"tasks":{{"t":{entry}}},"roster_epoch":1,"models":{{}}}}"#);
        for bytes in
            [b"{\"tasks\":".as_slice(), spoilt.as_bytes(), br#"{"tasks":{"t":[3,5]},"roster_epoch":2,"models":{}}"#]
        {
            std::fs::write(folder.path().join(NAME), bytes).unwrap();
            let error = Record::open(folder.path()).err().unwrap();
            assert!(matches!(error, RecordFileError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("enrol the device anew"), "{error}");
        }
    }

    /// Counts what is asked of the system, and dies or fails at one of them.
    struct Watched {
        asked: Vec<String>,
        fails_at: usize,
        folder: PathBuf,
    }

    impl Watched {
        fn ask(&mut self, what: String) -> io::Result<()> {
            self.asked.push(what);
            if self.asked.len() == self.fails_at { Err(io::Error::other("killed")) } else { Ok(()) }
        }
    }

    impl System for Watched {
        fn write(&mut self, folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
            self.ask("write".into())?;
            Os.write(folder, bytes)
        }

        fn sync(&mut self, file: &File) -> io::Result<()> {
            // The record's name says which file it is by now.
            let what = if file.metadata()?.is_dir() { "sync folder" } else { "sync file" };
            let there = if self.folder.join(NAME).exists() { "new" } else { "old" };
            self.ask(format!("{what}, {there}"))?;
            Os.sync(file)
        }

        fn rename(&mut self, file: NamedTempFile, path: &Path) -> io::Result<()> {
            self.ask("rename".into())?;
            Os.rename(file, path)
        }
    }

    #[test]
    fn content_is_on_the_disk_before_it_has_the_name_and_the_name_before_the_method_returns() {
        let order = ["write", "sync file, old", "rename", "sync folder, new"];
        for fails_at in 0..=4 {
            let folder = tempfile::tempdir().unwrap();
            let mut system = Watched { asked: Vec::new(), fails_at, folder: folder.path().into() };
            let replaced = replace(&mut system, &folder.path().join(NAME), b"{\"roster_epoch\":1}");
            assert_eq!(replaced.is_ok(), fails_at == 0, "whoever goes on by it must not");
            let asked = if fails_at == 0 { 4 } else { fails_at };
            assert_eq!(system.asked, order[..asked]);
            // No half of it under any name.
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
            let renamed = fails_at == 0 || fails_at == 4;
            assert_eq!(left, if renamed { vec![std::ffi::OsString::from(NAME)] } else { vec![] });
        }
    }

    #[test]
    fn folders_are_made_and_a_file_in_their_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        drop(Record::open(&deep).unwrap());
        assert!(deep.join("lock").exists());
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert!(matches!(Record::open(&folder.path().join("file/x")), Err(RecordFileError::Io { .. })));
    }

    #[test]
    fn a_record_that_can_not_be_written_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("state");
        let mut record = Record::open(&inside).unwrap();
        std::fs::remove_dir_all(&inside).unwrap();
        assert!(matches!(record.replace("t", None, entry(1)), Err(RecordError::Failed(_))));
        assert_eq!(record.entry("t").unwrap(), None);
    }
}
