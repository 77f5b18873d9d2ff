//! What survives a `kill -9`: SQLite for the state of rounds, an object store for models, uploads and releases.
//!
//! A round is its parameters and the list of what was accepted, in order; replaying the list gives the same state. Every
//! query is a function here. A function returns when its change is on stable storage.
//!
//! Changes to the database are single statements, which SQLite commits or undoes by itself, and transactions of several are
//! avoided: when SQLite has undone one on its own account, as on a full disk, sqlx 0.9 goes on as if it were open, and later
//! ones become parts of it that are never committed.

mod backup;
mod blobs;
mod pages;
mod retention;
mod rosters;
mod rounds;
mod sealed;
mod settings;
mod tally;
mod tasks;

use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as BlobPath;
use object_store::{ObjectStore, ObjectStoreExt};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio_stream::StreamExt;

pub use backup::{BackupError, backup};
pub use retention::{DeletedRounds, Deleting, Outdated, Sizes};
pub(crate) use rosters::{Positional, TakeError};
pub use rounds::{Event, FinishedRound, OpenRound};
pub use sealed::StoredSeal;
pub use tally::{EndedRound, StoredTally};

/// The storage failed: a full disk, a missing permission, a damaged database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state folder.
    #[error("state folder {folder}: {source}")]
    Folder {
        /// Which.
        folder: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process uses the folder.
    #[error("state folder {folder} is in use by another coordinator: stop it, or set another state_dir")]
    InUse {
        /// Which.
        folder: String,
    },
    /// The database.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A blob.
    #[error("blob store: {0}")]
    Blob(#[from] object_store::Error),
    /// A file of the state folder.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Something that must be there is not, or is not what was written.
    #[error("the state is damaged: {0}")]
    Damaged(String),
}

impl StoreError {
    /// Whether waiting may help: the disk has room again, a lock is gone.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                // The lower byte of SQLite's extended code: busy, locked, an I/O error, full, can't open. All others, such as a
                // value that is too large or a damaged file, are the same at the next try.
                let code = error.code().and_then(|code| code.parse::<u32>().ok());
                code.is_none_or(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
            }
            Self::Database(error) => {
                matches!(
                    error,
                    sqlx::Error::Io(_)
                        | sqlx::Error::PoolTimedOut
                        | sqlx::Error::PoolClosed
                        | sqlx::Error::WorkerCrashed
                )
            }
            Self::Blob(error) => {
                use object_store::Error::{InvalidPath, NotFound, NotSupported};
                !matches!(error, NotFound { .. } | InvalidPath { .. } | NotSupported { .. })
            }
            Self::File { source, .. } => {
                use std::io::ErrorKind::{
                    AlreadyExists, FileTooLarge, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
                    ReadOnlyFilesystem, Unsupported,
                };
                !matches!(
                    source.kind(),
                    AlreadyExists
                        | NotFound
                        | PermissionDenied
                        | ReadOnlyFilesystem
                        | FileTooLarge
                        | NotADirectory
                        | IsADirectory
                        | InvalidInput
                        | Unsupported
                )
            }
            Self::Folder { .. } | Self::InUse { .. } | Self::Damaged(_) => false,
        }
    }

    /// Whether a blob is not there.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Blob(object_store::Error::NotFound { .. }))
    }
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS rounds (
    round_id BLOB PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, params BLOB NOT NULL, roster BLOB,
    state TEXT NOT NULL DEFAULT 'open', reason TEXT, model_version INTEGER, cohort INTEGER, survivors INTEGER,
    metrics TEXT, UNIQUE (task, number)
);
CREATE TABLE IF NOT EXISTS events (
    round_id BLOB NOT NULL REFERENCES rounds (round_id), seq INTEGER NOT NULL, kind INTEGER NOT NULL,
    body BLOB NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (round_id, seq)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS forget_events AFTER UPDATE OF state ON rounds WHEN NEW.state <> 'open'
    BEGIN DELETE FROM events WHERE round_id = NEW.round_id; END;
CREATE TABLE IF NOT EXISTS suspended (
    task TEXT NOT NULL, client_id BLOB NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (task, client_id)
);
CREATE TABLE IF NOT EXISTS tasks (task TEXT PRIMARY KEY, round_floor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS settings (
    task TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (task, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replay_failures (round_id BLOB PRIMARY KEY, reason TEXT NOT NULL, times INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS roster_epochs (registrar BLOB PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tallies (
    task TEXT PRIMARY KEY, format INTEGER NOT NULL, through INTEGER NOT NULL, discarded INTEGER NOT NULL,
    exact INTEGER NOT NULL, spent BLOB NOT NULL, watch TEXT, checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS keep_round_floor BEFORE DELETE ON rounds
    BEGIN INSERT INTO tasks (task, round_floor) VALUES (OLD.task, OLD.number)
    ON CONFLICT (task) DO UPDATE SET round_floor = MAX(round_floor, excluded.round_floor); END;
";

/// A stored file that is read in pieces: many may send it, and none of them holds it.
#[derive(Debug, Clone)]
pub struct StoredFile {
    path: BlobPath,
    length: u64,
}

impl StoredFile {
    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// Database and blobs of one coordinator.
pub struct Store {
    db: SqlitePool,
    blobs: Arc<dyn ObjectStore>,
    /// Where the blobs are.
    folder: PathBuf,
    /// Locked as long as the store lives; `None` for one that only reads.
    lock: Option<File>,
}

fn bytes32(bytes: Vec<u8>, what: &str) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Damaged(format!("a {what} does not have 32 bytes")))
}

/// Makes a folder and those above it, which only its owner may use.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Opens a file that only its owner may use; it is made if missing.
fn make_file(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes from others than the owner every permission on a folder and all that is in it. What goes meanwhile needs none: SQLite deletes
/// its log when the last connection of an earlier store is closed.
fn make_private(path: &Path) -> std::io::Result<()> {
    match make_private_now(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make_private_now(path: &Path) -> std::io::Result<()> {
    let data = std::fs::symlink_metadata(path)?;
    if data.is_symlink() {
        return Ok(());
    }
    let mode = data.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
    }
    if data.is_dir() {
        for entry in std::fs::read_dir(path)? {
            make_private(&entry?.path())?;
        }
    }
    Ok(())
}

impl Store {
    /// Opens the store in `folder` to read only, beside a coordinator that may run on it; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError::Database`] or [`StoreError::Blob`].
    pub(crate) async fn open_to_read(folder: &Path) -> Result<Option<Self>, StoreError> {
        if !crate::settings::is_state(folder) {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new().filename(folder.join("coordinator.sqlite")).read_only(true);
        let db = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let folder = folder.join("blobs");
        let blobs = LocalFileSystem::new_with_prefix(&folder)?;
        Ok(Some(Self { db, blobs: Arc::new(blobs), folder, lock: None }))
    }

    /// Opens the store in `folder`, which is made if missing. Only the owner may use it and what is in it.
    ///
    /// # Errors
    /// [`StoreError::Folder`], [`StoreError::InUse`] or [`StoreError::Database`].
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let name = folder.display().to_string();
        let error = |source| StoreError::Folder { folder: name.clone(), source };
        make_folder(&folder.join("blobs")).map_err(error)?;
        let lock = make_file(&folder.join("lock")).map_err(error)?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => StoreError::InUse { folder: name.clone() },
            std::fs::TryLockError::Error(source) => error(source),
        })?;
        let database = folder.join("coordinator.sqlite");
        // SQLite gives its other files the permissions of this one.
        make_file(&database).map_err(error)?;
        make_private(folder).map_err(error)?;
        let options = SqliteConnectOptions::new()
            .filename(database)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true);
        pages::open_first(&options).await?;
        let db = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&db).await?;
        sqlx::raw_sql(sealed::SCHEMA).execute(&db).await?;
        let folder = folder.join("blobs");
        let blobs = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
        let store = Self { db, blobs: Arc::new(blobs), folder, lock: Some(lock) };
        store.take_over_releases().await?;
        Ok(store)
    }

    /// Closes the database; used before the folder is handed to another process.
    pub async fn close(&self) {
        self.db.close().await;
        // Calls that still hang may hold the store; nothing is written any more.
        let _ = self.lock.as_ref().map(File::unlock);
    }

    async fn put(&self, path: &BlobPath, bytes: Vec<u8>) -> Result<(), StoreError> {
        let file = self.folder.join(path.as_ref());
        // Folders that the object store would make are open to all. Where this fails it fails as well, and tells why.
        let _ = file.parent().map(make_folder);
        self.blobs.put(path, bytes.into()).await?;
        // What deletes an upload may have been faster.
        let _ = std::fs::set_permissions(&file, Permissions::from_mode(0o600));
        Ok(())
    }

    async fn get(&self, path: &BlobPath) -> Result<Option<Vec<u8>>, StoreError> {
        match self.blobs.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await?.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A file to be read in pieces.
    async fn stored_file(&self, path: BlobPath) -> Result<Option<StoredFile>, StoreError> {
        match self.blobs.head(&path).await {
            Ok(found) => Ok(Some(StoredFile { path, length: found.size })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// At most `most` bytes of a file from `start` on.
    ///
    /// # Errors
    /// [`StoreError`]; also when the file is gone meanwhile.
    pub async fn read_file(&self, file: &StoredFile, start: u64, most: usize) -> Result<Vec<u8>, StoreError> {
        let end = file.length.min(start.saturating_add(most as u64));
        Ok(self.blobs.get_range(&file.path, start..end).await?.into())
    }

    async fn delete_folder(&self, folder: &BlobPath) -> Result<(), StoreError> {
        let mut found = self.blobs.list(Some(folder));
        while let Some(item) = found.next().await {
            match self.blobs.delete(&item?.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use unisono_protocol::{ClientId, RoundId};

    use super::*;

    /// Sets how many pages the database may have, on both connections.
    async fn limit(store: &Store, pages: u64) {
        let mut connections = vec![store.db.acquire().await.unwrap(), store.db.acquire().await.unwrap()];
        for connection in &mut connections {
            let pragma = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            sqlx::raw_sql(pragma).execute(&mut **connection).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_stored_after_the_disk_was_full_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let round = RoundId([7; 32]);
        store.insert_round(round, "task", 1, b"parameters").await.unwrap();
        let events = [Event::Message(vec![1; 20_000], 5), Event::Close(9)];
        limit(&store, 1).await;
        for _ in 0..5 {
            let error = store.append_events(round, 0, &events[..1]).await.unwrap_err();
            assert!(error.may_pass() && error.to_string().contains("full"), "{error}");
        }
        limit(&store, 1 << 20).await;
        // The same call again, with more behind; then once more, as if its answer had been lost.
        for _ in 0..2 {
            store.append_events(round, 0, &events).await.unwrap();
        }
        store.close().await;
        drop(store);
        let store = Store::open(folder.path()).await.unwrap();
        assert_eq!(store.open_round("task").await.unwrap().unwrap().events, events);
        // Its end forgets them.
        store.abort_round(round, "enough").await.unwrap();
        assert!(store.open_round("task").await.unwrap().is_none());
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&store.db).await.unwrap();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn an_error_that_is_the_same_at_every_try_is_told_from_one_that_passes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let round = RoundId([7; 32]);
        // Above SQLite's limit of a value.
        let error = store.insert_round(round, "task", 1, &vec![0; 1_100_000_000]).await.unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains("too big"), "{error}");
        store.insert_round(round, "task", 1, b"parameters").await.unwrap();
        let error = store.insert_round(round, "task", 1, b"parameters").await.unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains("UNIQUE"), "{error}");
    }

    #[tokio::test]
    async fn floors_and_failures_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let round = RoundId([7; 32]);
        store.insert_round(round, "task", 3, b"parameters").await.unwrap();
        assert_eq!(store.last_round_number("task").await.unwrap(), 3);
        for (floor, last) in [(2, 3), (9, 9), (5, 9)] {
            store.raise_round_floor("task", floor).await.unwrap();
            assert_eq!(store.last_round_number("task").await.unwrap(), last);
        }
        assert_eq!(store.last_round_number("another").await.unwrap(), 0);
        assert_eq!(store.count_replay_failure(round, "one").await.unwrap(), 1);
        store.close().await;
        drop(store);
        let store = Store::open(folder.path()).await.unwrap();
        assert_eq!(store.last_round_number("task").await.unwrap(), 9);
        assert_eq!(store.count_replay_failure(round, "one").await.unwrap(), 2);
        assert_eq!(store.count_replay_failure(round, "another").await.unwrap(), 1, "in another way");
        // A sum that was learned and not used counts for privacy, and is no successful round.
        store.discard_round(round, "implausible", 5, 4).await.unwrap();
        assert!(store.open_round("task").await.unwrap().is_none());
        let params = b"parameters".to_vec();
        let ended = EndedRound { number: 3, params, cohort: 5, survivors: 4, used: None };
        assert_eq!(store.ended_rounds("task", 2).await.unwrap(), [ended]);
        assert!(store.ended_rounds("task", 3).await.unwrap().is_empty());
        assert!(store.last_finished("task").await.unwrap().is_none());
        assert_eq!(store.current_version("task").await.unwrap(), 0);
    }

    #[test]
    fn a_folder_is_made_private_while_files_in_it_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let (path, over) = (folder.path(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    for i in 0..50 {
                        std::fs::write(path.join(format!("{i}")), "").unwrap();
                    }
                    for i in 0..50 {
                        std::fs::remove_file(path.join(format!("{i}"))).unwrap();
                    }
                }
            });
            let results: Vec<_> = (0..300).map(|_| make_private(path)).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
    }

    #[tokio::test]
    async fn uploads_of_rounds_that_are_over_are_deleted_with_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let (over, open, client) = (RoundId([1; 32]), RoundId([2; 32]), ClientId([3; 16]));
        for (number, round) in [(1, over), (2, open)] {
            store.insert_round(round, "task", number, b"parameters").await.unwrap();
        }
        for round in [over, open] {
            store.put_chunk(round, client, 0, vec![5; 10]).await.unwrap();
        }
        store.abort_round(over, "enough").await.unwrap();
        // As after a kill: what the end of a round leaves behind is found again.
        store.close().await;
        drop(store);
        let store = Store::open(folder.path()).await.unwrap();
        assert_eq!(store.delete_ended_uploads().await.unwrap(), 1);
        assert_eq!(store.delete_ended_uploads().await.unwrap(), 0);
        assert_eq!(store.count_chunks(over, client).await.unwrap(), 0);
        assert_eq!(store.read_upload(open, client, 1).await.unwrap(), [5; 10]);
        let left: Vec<_> = std::fs::read_dir(folder.path().join("blobs/uploads")).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
