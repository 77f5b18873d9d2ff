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
use unisono_protocol::policy::{Commitment, Participation, ParticipationRecord, RecordError};
use unisono_release::{ReleaseError, VersionRecord};

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
    /// Not what this library wrote. It is never taken for empty: that would allow a round to be answered twice.
    #[error("the record {} is damaged ({why}); restore it, or enrol the device anew under another id", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A [`Commitment`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCommitment {
    round: u64,
    cohort: [u8; 32],
    survivors: Option<[u8; 32]>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Last participation by task: round number and Unix time.
    tasks: BTreeMap<String, (u64, u64)>,
    /// What the device is bound to, by task. Records of earlier versions have none.
    #[serde(default)]
    commitments: BTreeMap<String, StoredCommitment>,
    roster_epoch: u64,
    /// Highest version opened by model id.
    models: BTreeMap<String, u64>,
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
        let path = folder.join(NAME);
        let content = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| RecordFileError::Damaged { path: path.clone(), why: e.to_string() })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(source) => return Err(RecordFileError::Io { path, source }),
        };
        Ok(Self(Arc::new(Mutex::new(Inner { content, file: Some((path, lock)) }))))
    }

    fn read<T>(&self, get: impl FnOnce(&Content) -> T) -> T {
        get(&self.0.lock().unwrap_or_else(PoisonError::into_inner).content)
    }

    /// Changes the content; the change counts only when it is on stable storage.
    fn change(&self, change: impl FnOnce(&mut Content)) -> std::io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = inner.content.clone();
        change(&mut content);
        if let Some((path, _)) = &inner.file {
            replace(&mut Os, path, &serde_json::to_vec(&content)?)?;
        }
        inner.content = content;
        Ok(())
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
        let mut file = NamedTempFile::new_in(folder)?;
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

/// Makes a folder that survives a power cut, with those above it that are missing.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(above)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => File::open(above)?.sync_all(),
    }
}

impl ParticipationRecord for Record {
    fn last(&self, task: &str) -> Result<Option<Participation>, RecordError> {
        Ok(self.read(|content| content.tasks.get(task).map(|&(round, at)| Participation { round, at })))
    }

    fn spend(&mut self, task: &str, participation: Participation) -> Result<(), RecordError> {
        self.change(|content| {
            content.tasks.insert(task.to_owned(), (participation.round, participation.at));
        })
        .map_err(|e| RecordError(e.to_string()))
    }

    fn commitment(&self, task: &str) -> Result<Option<Commitment>, RecordError> {
        let stored = self.read(|content| content.commitments.get(task).copied());
        Ok(stored.map(|StoredCommitment { round, cohort, survivors }| Commitment {
            round,
            cohort: CohortId(cohort),
            survivors,
        }))
    }

    fn commit(&mut self, task: &str, commitment: Commitment) -> Result<(), RecordError> {
        let Commitment { round, cohort, survivors } = commitment;
        let stored = StoredCommitment { round, cohort: cohort.0, survivors };
        self.change(|content| {
            content.commitments.insert(task.to_owned(), stored);
        })
        .map_err(|e| RecordError(e.to_string()))
    }

    fn roster_epoch(&self) -> Result<u64, RecordError> {
        Ok(self.read(|content| content.roster_epoch))
    }

    fn see_roster_epoch(&mut self, epoch: u64) -> Result<(), RecordError> {
        if epoch <= self.read(|content| content.roster_epoch) {
            return Ok(());
        }
        self.change(|content| content.roster_epoch = epoch).map_err(|e| RecordError(e.to_string()))
    }
}

impl VersionRecord for Record {
    fn highest(&self, model_id: &str) -> Result<u64, ReleaseError> {
        Ok(self.read(|content| content.models.get(model_id).copied().unwrap_or(0)))
    }

    fn see(&mut self, model_id: &str, version: u64) -> Result<(), ReleaseError> {
        self.change(|content| {
            let seen = content.models.entry(model_id.to_owned()).or_default();
            *seen = version.max(*seen);
        })
        .map_err(|e| ReleaseError::Record(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_there_after_a_restart_and_one_process_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::open(folder.path()).unwrap();
        assert!(matches!(Record::open(folder.path()), Err(RecordFileError::InUse { .. })));
        assert_eq!(record.last("t").unwrap(), None);
        record.spend("t", Participation { round: 4, at: 9 }).unwrap();
        let commitment = Commitment { round: 4, cohort: CohortId([7; 32]), survivors: Some([8; 32]) };
        record.commit("t", commitment).unwrap();
        record.see_roster_epoch(3).unwrap();
        record.see_roster_epoch(2).unwrap();
        record.see("m", 5).unwrap();
        record.see("m", 4).unwrap();
        drop(record);
        let record = Record::open(folder.path()).unwrap();
        assert_eq!(record.last("t").unwrap(), Some(Participation { round: 4, at: 9 }));
        assert_eq!((record.commitment("t").unwrap(), record.commitment("u").unwrap()), (Some(commitment), None));
        assert_eq!((record.roster_epoch().unwrap(), record.highest("m").unwrap()), (3, 5));
    }

    #[test]
    fn a_record_of_the_version_without_commitments_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), br#"{"tasks":{"t":[3,5]},"roster_epoch":2,"models":{}}"#).unwrap();
        let record = Record::open(folder.path()).unwrap();
        assert_eq!(record.last("t").unwrap(), Some(Participation { round: 3, at: 5 }));
        assert_eq!(record.commitment("t").unwrap(), None);
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), b"{\"tasks\":").unwrap();
        assert!(matches!(Record::open(folder.path()), Err(RecordFileError::Damaged { .. })));
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
        assert!(record.spend("t", Participation { round: 1, at: 0 }).is_err());
        assert!(record.commit("t", Commitment { round: 1, cohort: CohortId([0; 32]), survivors: None }).is_err());
        assert_eq!((record.last("t").unwrap(), record.commitment("t").unwrap()), (None, None));
    }
}
