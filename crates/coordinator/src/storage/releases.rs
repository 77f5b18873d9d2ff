//! Releases: the file is a blob, what is needed to grant it a row.

use object_store::path::Path as BlobPath;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, StoredFile, bytes32};

/// A release as stored.
#[derive(Debug, Clone)]
pub struct StoredRelease {
    /// Which model.
    pub model_id: String,
    /// Its version.
    pub version: u64,
    /// Hash of its header.
    pub header_hash: [u8; 32],
    /// Its content key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// Version of the task's model that is inside.
    pub model_version: u64,
}

fn release_path(model_id: &str, version: u64) -> BlobPath {
    BlobPath::from_iter(["releases", model_id, &format!("{version}.usr")])
}

fn missing(release: &StoredRelease) -> StoreError {
    StoreError::Damaged(format!("release {} of {} is missing", release.version, release.model_id))
}

impl Store {
    /// Stores a release.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_release(&self, release: &StoredRelease, file: Vec<u8>) -> Result<(), StoreError> {
        self.put(&release_path(&release.model_id, release.version), file).await?;
        sqlx::query(
            "INSERT INTO releases (model_id, version, header_hash, wrapped_key, model_version) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&release.model_id)
        .bind(release.version as i64)
        .bind(release.header_hash.to_vec())
        .bind(&release.wrapped_key)
        .bind(release.model_version as i64)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// The latest release of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn latest_release(&self, model_id: &str) -> Result<Option<StoredRelease>, StoreError> {
        let row = sqlx::query(
            "SELECT model_id, version, header_hash, wrapped_key, model_version FROM releases
             WHERE model_id = ? ORDER BY version DESC LIMIT 1",
        );
        row.bind(model_id).fetch_optional(&self.db).await?.as_ref().map(read_release).transpose()
    }

    /// The release with the given header.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_by_header(&self, header_hash: &[u8]) -> Result<Option<StoredRelease>, StoreError> {
        let row = sqlx::query(
            "SELECT model_id, version, header_hash, wrapped_key, model_version FROM releases WHERE header_hash = ?",
        );
        row.bind(header_hash.to_vec()).fetch_optional(&self.db).await?.as_ref().map(read_release).transpose()
    }

    /// A release's file, to be read in pieces.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is missing.
    pub async fn stored_release(&self, release: &StoredRelease) -> Result<StoredFile, StoreError> {
        let file = self.stored_file(release_path(&release.model_id, release.version)).await?;
        file.ok_or_else(|| missing(release))
    }

    /// A release's file.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is missing.
    pub async fn release_file(&self, release: &StoredRelease) -> Result<Vec<u8>, StoreError> {
        let file = self.get(&release_path(&release.model_id, release.version)).await?;
        file.ok_or_else(|| missing(release))
    }
}

fn read_release(row: &SqliteRow) -> Result<StoredRelease, StoreError> {
    Ok(StoredRelease {
        model_id: row.try_get(0)?,
        version: row.try_get::<i64, _>(1)? as u64,
        header_hash: bytes32(row.try_get(2)?, "header hash")?,
        wrapped_key: row.try_get(3)?,
        model_version: row.try_get::<i64, _>(4)? as u64,
    })
}
