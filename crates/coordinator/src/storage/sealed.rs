//! Sealed models, released ones and base models of rounds: the file is a blob, what is needed to grant it a row.

use object_store::ObjectStoreExt;
use object_store::path::Path as BlobPath;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use unisono_release::proto::SealedKind;
use unisono_release::{Header, MAX_HEADER_LEN};

use super::{Store, StoreError, StoredFile, bytes32};
use crate::content_keys::WrappedKey;

/// Bytes of a file that hold its header for sure.
const START_LEN: usize = 12 + MAX_HEADER_LEN as usize;

/// A sealed model as stored.
#[derive(Debug, Clone)]
pub struct StoredSeal {
    /// What it is for.
    pub kind: SealedKind,
    /// Which model; of a base model, the task.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Hash of its header.
    pub header_hash: [u8; 32],
    /// Version of the task's model that is inside.
    pub model_version: u64,
    /// Hash of that model, as round parameters have it; empty where an earlier version of this program stored the row.
    pub model_hash: Vec<u8>,
    /// Its content key.
    pub wrapped_key: WrappedKey,
}

impl StoredSeal {
    fn path(&self) -> BlobPath {
        match self.kind {
            SealedKind::Release => BlobPath::from_iter(["releases", &self.name, &format!("{}.usr", self.version)]),
            SealedKind::BaseModel => {
                BlobPath::from_iter(["models", &self.name, &self.version.to_string(), "model.usr"])
            }
        }
    }

    fn missing(&self) -> StoreError {
        StoreError::Damaged(format!("the sealed file of version {} of {} is missing", self.version, self.name))
    }
}

/// The columns, as [`read`] takes them.
const SELECT: &str =
    "SELECT kind, name, version, header_hash, model_version, model_hash, key_id, key_version, wrapped_key
     FROM sealed_models WHERE ";

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS sealed_models (
    header_hash BLOB PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    model_version INTEGER NOT NULL, model_hash BLOB NOT NULL, key_id TEXT NOT NULL, key_version INTEGER NOT NULL,
    wrapped_key BLOB NOT NULL, UNIQUE (kind, name, version)
);
";

fn read(row: &SqliteRow) -> Result<StoredSeal, StoreError> {
    let kind = row.try_get::<i64, _>(0)? as i32;
    Ok(StoredSeal {
        kind: SealedKind::try_from(kind).map_err(|_| StoreError::Damaged(format!("a sealed model of kind {kind}")))?,
        name: row.try_get(1)?,
        version: row.try_get::<i64, _>(2)? as u64,
        header_hash: bytes32(row.try_get(3)?, "header hash")?,
        model_version: row.try_get::<i64, _>(4)? as u64,
        model_hash: row.try_get(5)?,
        wrapped_key: WrappedKey {
            key_id: row.try_get(6)?,
            key_version: row.try_get::<i64, _>(7)? as u64,
            bytes: row.try_get(8)?,
        },
    })
}

impl Store {
    /// Takes over what an earlier version of this program stored in a table of its own.
    pub(super) async fn take_over_releases(&self) -> Result<(), StoreError> {
        let old = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'releases'");
        if old.fetch_optional(&self.db).await?.is_some() {
            sqlx::query(
                "INSERT OR IGNORE INTO sealed_models
                 SELECT header_hash, 0, model_id, version, model_version, x'', 'default', 1, wrapped_key FROM releases",
            )
            .execute(&self.db)
            .await?;
        }
        Ok(())
    }

    /// Stores a sealed model; one of the same kind, name and version is replaced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_sealed(&self, sealed: &StoredSeal, file: Vec<u8>) -> Result<(), StoreError> {
        self.put(&sealed.path(), file).await?;
        sqlx::query(
            "INSERT OR REPLACE INTO sealed_models
             (kind, name, version, header_hash, model_version, model_hash, key_id, key_version, wrapped_key)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(sealed.kind as i32)
        .bind(&sealed.name)
        .bind(sealed.version as i64)
        .bind(sealed.header_hash.to_vec())
        .bind(sealed.model_version as i64)
        .bind(&sealed.model_hash)
        .bind(&sealed.wrapped_key.key_id)
        .bind(sealed.wrapped_key.key_version as i64)
        .bind(&sealed.wrapped_key.bytes)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// Whether the database has a table of sealed models: an earlier version's has none before it is opened to write.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn keeps_sealed_models(&self) -> Result<bool, StoreError> {
        let table = "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = 'sealed_models'";
        Ok(sqlx::query_scalar::<_, i64>(table).fetch_one(&self.db).await? > 0)
    }

    /// The latest release of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn latest_release(&self, model_id: &str) -> Result<Option<StoredSeal>, StoreError> {
        let which = format!("{SELECT} kind = ? AND name = ? ORDER BY version DESC LIMIT 1");
        let row = sqlx::query(sqlx::AssertSqlSafe(which)).bind(SealedKind::Release as i32).bind(model_id);
        row.fetch_optional(&self.db).await?.as_ref().map(read).transpose()
    }

    /// The sealed base model of a task in a version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed_base(&self, task: &str, version: u64) -> Result<Option<StoredSeal>, StoreError> {
        let which = format!("{SELECT} kind = ? AND name = ? AND version = ?");
        let row = sqlx::query(sqlx::AssertSqlSafe(which)).bind(SealedKind::BaseModel as i32).bind(task);
        row.bind(version as i64).fetch_optional(&self.db).await?.as_ref().map(read).transpose()
    }

    /// The sealed model with the given header.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed_by_header(&self, header_hash: &[u8]) -> Result<Option<StoredSeal>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} header_hash = ?"))).bind(header_hash.to_vec());
        row.fetch_optional(&self.db).await?.as_ref().map(read).transpose()
    }

    /// A sealed model's file, to be read in pieces.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is missing.
    pub async fn sealed_file(&self, sealed: &StoredSeal) -> Result<StoredFile, StoreError> {
        self.stored_file(sealed.path()).await?.ok_or_else(|| sealed.missing())
    }

    /// A sealed model's header, from the first bytes of its file.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the file is missing, or another than the row says.
    pub async fn sealed_header(&self, sealed: &StoredSeal) -> Result<Header, StoreError> {
        let file = self.sealed_file(sealed).await?;
        let header = Header::of_file(&self.read_file(&file, 0, START_LEN).await?);
        let header = header.ok().flatten().filter(|header| header.hash == sealed.header_hash);
        let (name, version) = (&sealed.name, sealed.version);
        let damaged = || format!("the sealed file of version {version} of {name} is not the one that was stored");
        header.ok_or_else(|| StoreError::Damaged(damaged()))
    }

    /// Forgets the sealed base models of versions before `version`: nobody gets them any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_sealed_bases_before(&self, task: &str, version: u64) -> Result<(), StoreError> {
        let which = format!("{SELECT} kind = ? AND name = ? AND version < ?");
        let rows = sqlx::query(sqlx::AssertSqlSafe(which)).bind(SealedKind::BaseModel as i32).bind(task);
        for row in rows.bind(version as i64).fetch_all(&self.db).await? {
            let sealed = read(&row)?;
            match self.blobs.delete(&sealed.path()).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let row = sqlx::query("DELETE FROM sealed_models WHERE header_hash = ?");
            row.bind(sealed.header_hash.to_vec()).execute(&self.db).await?;
        }
        Ok(())
    }
}
