//! Deletes what is over. Each function can be killed at any point and called again: what is deleted is named by nothing that goes
//! on, and rows go only when the tally counts them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object_store::path::Path as BlobPath;
use unisono_protocol::RoundId;

use super::{Store, StoreError, make_file};

/// Locked by whoever deletes, and by whoever copies (shared).
const DELETING: &str = "retention.lock";
/// Rows that one statement deletes: it must not keep a round from storing its steps for long.
const ROWS: i64 = 1000;

/// No backup is made, and nothing is deleted by others, as long as this lives.
pub struct Deleting(#[expect(dead_code, reason = "held for its lock")] File);

/// Keeps a coordinator from deleting in `folder` as long as the file is held; waits while it does. `None` where nobody can delete.
pub(super) fn hold(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(DELETING);
    let file = match make_file(&path).or_else(|_| File::open(&path)) {
        Ok(file) => file,
        // It can't be made, and no coordinator of this version has been here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.lock_shared()?;
    Ok(Some(file))
}

/// Files of a version of a model that can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outdated {
    /// All of them.
    Version,
    /// The optimiser's moments alone.
    Moments,
}

/// How many rows were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeletedRounds {
    /// Of rounds whose sums were learned.
    pub finished: u64,
    /// Of rounds that were aborted.
    pub aborted: u64,
}

/// Bytes of the state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// The database with its write-ahead log.
    pub database: u64,
    /// All tasks' models and moments.
    pub models: u64,
    /// Releases.
    pub releases: u64,
    /// Rosters.
    pub rosters: u64,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let failed = |error: tokio::task::JoinError| StoreError::Damaged(format!("deleting panicked: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn entries(folder: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(folder) {
        Ok(found) => found.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether there was something to delete.
fn gone(deleted: io::Result<()>) -> io::Result<bool> {
    match deleted {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of the files in a folder and those below; one that goes meanwhile has none.
fn bytes_in(folder: &Path) -> u64 {
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_in(&entry.path()),
        data => data.map_or(0, |data| data.len()),
    };
    std::fs::read_dir(folder).map_or(0, |found| found.flatten().map(of).sum())
}

fn error_at(path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
    let folder = path.display().to_string();
    move |source| StoreError::Folder { folder: folder.clone(), source }
}

impl Store {
    /// The right to delete models; `None` while a backup is made.
    ///
    /// # Errors
    /// [`StoreError::Folder`].
    pub fn try_to_delete(&self) -> Result<Option<Deleting>, StoreError> {
        let path = self.state_folder().join(DELETING);
        let file = make_file(&path).map_err(error_at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Deleting(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(error_at(&path)(source)),
        }
    }

    pub(super) fn state_folder(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// Deletes the uploads of rounds that are over, with their folders; of how many rounds.
    ///
    /// # Errors
    /// [`StoreError`]; what could be deleted is.
    pub async fn delete_ended_uploads(&self) -> Result<u64, StoreError> {
        let folder = self.folder.join("uploads");
        let error = error_at(&folder);
        // First what is there, then what is open: a round is recorded before its first upload comes.
        let found = {
            let folder = folder.clone();
            blocking(move || entries(&folder)).await?.map_err(&error)?
        };
        if found.is_empty() {
            return Ok(0);
        }
        let open: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT round_id FROM rounds WHERE state = 'open'").fetch_all(&self.db).await?;
        let open: BTreeSet<String> = open.iter().filter_map(|id| Some(RoundId::from_slice(id)?.to_string())).collect();
        let over: Vec<PathBuf> =
            found.iter().filter(|name| !open.contains(*name)).map(|name| folder.join(name)).collect();
        let (deleted, failed) = blocking(move || {
            let results: Vec<_> = over.iter().map(|path| gone(std::fs::remove_dir_all(path))).collect();
            let deleted = results.iter().filter(|result| matches!(result, Ok(true))).count() as u64;
            (deleted, results.into_iter().find_map(Result::err))
        })
        .await?;
        failed.map_or(Ok(deleted), |source| Err(error(source)))
    }

    fn model_folder(&self, task: &str) -> PathBuf {
        self.folder.join(BlobPath::from_iter(["models", task]).as_ref())
    }

    /// The versions of the task's model that are stored.
    ///
    /// # Errors
    /// [`StoreError::Folder`].
    pub async fn versions(&self, task: &str) -> Result<BTreeSet<u64>, StoreError> {
        let folder = self.model_folder(task);
        let error = error_at(&folder);
        let found = blocking(move || entries(&folder)).await?.map_err(error)?;
        Ok(found.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Deletes a version of the task's model, or its moments; whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Folder`].
    pub async fn delete_version(&self, task: &str, version: u64, what: Outdated) -> Result<bool, StoreError> {
        let folder = self.model_folder(task).join(version.to_string());
        let error = error_at(&folder);
        let delete = move || match what {
            Outdated::Version => gone(std::fs::remove_dir_all(&folder)),
            Outdated::Moments => gone(std::fs::remove_file(folder.join("moments.safetensors"))),
        };
        blocking(delete).await?.map_err(error)
    }

    /// Encoded `RoundParams` of the open round of `task`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn open_params(&self, task: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query_scalar("SELECT params FROM rounds WHERE task = ? AND state = 'open'");
        Ok(row.bind(task).fetch_optional(&self.db).await?)
    }

    /// Versions of models, of whichever task, that are in a release.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn released_versions(&self) -> Result<BTreeSet<u64>, StoreError> {
        let versions: Vec<i64> = sqlx::query_scalar("SELECT DISTINCT model_version FROM sealed_models WHERE kind = 0")
            .fetch_all(&self.db)
            .await?;
        Ok(versions.into_iter().map(|version| version as u64).collect())
    }

    /// Deletes the rows of all but the newest rounds of `task`; `None` keeps all. The newest successful round stays, and so do
    /// rounds whose sums were learned and that the stored tally does not count.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_rounds(
        &self,
        task: &str,
        keep_finished: Option<u64>,
        keep_aborted: Option<u64>,
    ) -> Result<DeletedRounds, StoreError> {
        let finished = "DELETE FROM rounds WHERE round_id IN (
            SELECT round_id FROM rounds WHERE task = ?1 AND state IN ('finished', 'discarded') AND number <=
                (SELECT number FROM rounds WHERE task = ?1 AND state IN ('finished', 'discarded')
                 ORDER BY number DESC LIMIT 1 OFFSET ?2)
            AND number <= (SELECT through FROM tallies WHERE task = ?1)
            AND number < COALESCE((SELECT MAX(number) FROM rounds WHERE task = ?1 AND state = 'finished'), 1 << 62)
            ORDER BY number LIMIT ?3)";
        let aborted = "DELETE FROM rounds WHERE round_id IN (
            SELECT round_id FROM rounds WHERE task = ?1 AND state = 'aborted' AND number <=
                (SELECT number FROM rounds WHERE task = ?1 AND state = 'aborted'
                 ORDER BY number DESC LIMIT 1 OFFSET ?2)
            ORDER BY number LIMIT ?3)";
        let deleted = DeletedRounds {
            finished: self.delete_rows(finished, task, keep_finished).await?,
            aborted: self.delete_rows(aborted, task, keep_aborted).await?,
        };
        sqlx::query(
            "DELETE FROM replay_failures WHERE round_id NOT IN (SELECT round_id FROM rounds WHERE state = 'open')",
        )
        .execute(&self.db)
        .await?;
        Ok(deleted)
    }

    async fn delete_rows(&self, sql: &'static str, task: &str, keep: Option<u64>) -> Result<u64, StoreError> {
        let Some(keep) = keep else { return Ok(0) };
        let (keep, mut deleted) = (i64::try_from(keep).unwrap_or(i64::MAX), 0);
        loop {
            let rows = sqlx::query(sql).bind(task).bind(keep).bind(ROWS).execute(&self.db).await?.rows_affected();
            deleted += rows;
            if rows < ROWS as u64 {
                return Ok(deleted);
            }
        }
    }

    /// How large the parts of the state are, except uploads.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when counting panicked.
    pub async fn sizes(&self) -> Result<Sizes, StoreError> {
        let (state, blobs) = (self.state_folder().to_owned(), self.folder.clone());
        blocking(move || {
            let length = |name: &str| std::fs::metadata(state.join(name)).map_or(0, |data| data.len());
            Sizes {
                database: length("coordinator.sqlite") + length("coordinator.sqlite-wal"),
                models: bytes_in(&blobs.join("models")),
                releases: bytes_in(&blobs.join("releases")),
                rosters: bytes_in(&blobs.join("rosters")),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use unisono_protocol::ClientId;

    use super::super::{StoredTally, backup};
    use super::*;

    const TASK: &str = "a task";

    #[tokio::test]
    async fn versions_go_as_a_whole_and_again_when_a_kill_left_a_part() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        for version in 0..4 {
            store.put_model(TASK, version, vec![1; 10], Some(vec![2; 20])).await.unwrap();
        }
        assert_eq!(store.versions(TASK).await.unwrap(), BTreeSet::from([0, 1, 2, 3]));
        assert!(store.versions("another").await.unwrap().is_empty());
        assert!(store.delete_version(TASK, 1, Outdated::Moments).await.unwrap());
        assert!(!store.delete_version(TASK, 1, Outdated::Moments).await.unwrap(), "it was there");
        assert!(store.get_moments(TASK, 1).await.unwrap().is_none());
        assert!(store.get_model(TASK, 1).await.unwrap().is_some());
        // As a kill leaves it: the folder with one of two files, or none.
        std::fs::remove_file(store.model_folder(TASK).join("2/model.safetensors")).unwrap();
        std::fs::remove_file(store.model_folder(TASK).join("0/model.safetensors")).unwrap();
        std::fs::remove_file(store.model_folder(TASK).join("0/moments.safetensors")).unwrap();
        for version in [0, 1, 2] {
            assert!(store.delete_version(TASK, version, Outdated::Version).await.unwrap());
            assert!(!store.delete_version(TASK, version, Outdated::Version).await.unwrap());
        }
        assert_eq!(store.versions(TASK).await.unwrap(), BTreeSet::from([3]));
        assert_eq!(store.sizes().await.unwrap().models, 30);
        assert_eq!(entries(&store.model_folder(TASK)).unwrap(), ["3"]);
    }

    #[tokio::test]
    async fn what_can_not_be_deleted_is_an_error_and_the_rest_is_deleted() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        for number in 1..=3u8 {
            store.put_chunk(RoundId([number; 32]), ClientId([3; 16]), 0, vec![5; 10]).await.unwrap();
        }
        let uploads = folder.path().join("blobs/uploads");
        let stuck = uploads.join(RoundId([2; 32]).to_string());
        // A folder in which nothing may be changed; whoever is root may all the same.
        std::fs::set_permissions(&stuck, std::fs::Permissions::from_mode(0o500)).unwrap();
        let may_all = std::fs::write(stuck.join("probe"), "").is_ok();
        let deleted = store.delete_ended_uploads().await;
        if may_all {
            assert_eq!(deleted.unwrap(), 3);
        } else {
            assert!(matches!(deleted, Err(StoreError::Folder { .. })));
            assert_eq!(entries(&uploads).unwrap(), [RoundId([2; 32]).to_string()]);
            std::fs::set_permissions(&stuck, std::fs::Permissions::from_mode(0o700)).unwrap();
            assert_eq!(store.delete_ended_uploads().await.unwrap(), 1);
        }
        assert!(entries(&uploads).unwrap().is_empty());
        // A file where a folder should be.
        std::fs::write(folder.path().join("blobs/models"), "").unwrap();
        assert!(matches!(store.versions(TASK).await, Err(StoreError::Folder { .. })));
    }

    #[tokio::test]
    async fn nothing_is_deleted_while_a_backup_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).await.unwrap();
        store.put_model(TASK, 0, vec![1; 10], None).await.unwrap();
        let held = hold(&folder.path().join("state")).unwrap().unwrap();
        assert!(store.try_to_delete().unwrap().is_none());
        drop(held);
        let deleting = store.try_to_delete().unwrap().unwrap();
        // A backup waits for it.
        let (from, to) = (folder.path().join("state"), folder.path().join("copy"));
        let made = tokio::task::spawn_blocking({
            let to = to.clone();
            let handle = tokio::runtime::Handle::current();
            move || handle.block_on(backup(&from, &to))
        });
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(!made.is_finished() && !to.exists());
        drop(deleting);
        made.await.unwrap().unwrap();
        assert!(to.join("blobs/models").is_dir());
        // It takes the account with it, and gives pages back as the original does.
        store.put_tally(TASK, &StoredTally { through: 3, ..StoredTally::default() }).await.unwrap();
        let second = folder.path().join("second");
        backup(&folder.path().join("state"), &second).await.unwrap();
        let copy = Store::open(&second).await.unwrap();
        assert_eq!(copy.tally(TASK).await.unwrap().unwrap().through, 3);
    }
}
