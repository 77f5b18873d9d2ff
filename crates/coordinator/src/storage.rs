//! What survives a `kill -9`: SQLite for the state of rounds, an object store for models, uploads and releases.
//!
//! A round is its parameters and the list of what was accepted, in order; replaying the list gives the same state. Every
//! query is a function here. A function returns when its change is on stable storage.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as BlobPath;
use object_store::{ObjectStore, ObjectStoreExt};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, SqlitePool};
use tokio_stream::StreamExt;
use unisono_protocol::{ClientId, RoundId};

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
    /// Something that must be there is not, or is not what was written.
    #[error("the state is damaged: {0}")]
    Damaged(String),
}

impl StoreError {
    /// Whether waiting may help: the disk has room again, a lock is gone.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Database(_) | Self::Blob(_))
    }
}

/// One accepted input of a round.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An encoded `ClientMessage`, accepted at that Unix time.
    Message(Vec<u8>, u64),
    /// A complete upload, whose chunks are among the blobs.
    Upload(ClientId),
    /// The phase was closed.
    Close,
}

/// A round whose end is not recorded.
pub struct OpenRound {
    /// Its id.
    pub round_id: RoundId,
    /// Encoded `RoundParams`.
    pub params: Vec<u8>,
    /// The roster under which it was opened, as a file.
    pub roster: Option<Vec<u8>>,
    /// What was accepted, in order.
    pub events: Vec<Event>,
}

/// A successful round.
#[derive(Debug, Clone)]
pub struct FinishedRound {
    /// Its id.
    pub round_id: RoundId,
    /// Version of the model that came out.
    pub model_version: u64,
    /// Clients in the cohort.
    pub cohort: u32,
    /// Clients in the sum.
    pub survivors: u32,
    /// Weighted means of the metrics.
    pub metrics: Vec<f32>,
}

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
CREATE TABLE IF NOT EXISTS releases (
    model_id TEXT NOT NULL, version INTEGER NOT NULL, header_hash BLOB NOT NULL UNIQUE, wrapped_key BLOB NOT NULL,
    model_version INTEGER NOT NULL, PRIMARY KEY (model_id, version)
);
";

/// Database and blobs of one coordinator.
pub struct Store {
    db: SqlitePool,
    blobs: Arc<dyn ObjectStore>,
    /// Locked as long as the store lives.
    lock: File,
}

fn model_path(task: &str, version: u64, what: &str) -> BlobPath {
    BlobPath::from_iter(["models", task, &version.to_string(), what])
}

fn upload_folder(round: RoundId, client: ClientId) -> BlobPath {
    BlobPath::from_iter(["uploads", &round.to_string(), &client.to_string()])
}

fn chunk_path(round: RoundId, client: ClientId, index: u64) -> BlobPath {
    upload_folder(round, client).join(index.to_string())
}

fn release_path(model_id: &str, version: u64) -> BlobPath {
    BlobPath::from_iter(["releases", model_id, &format!("{version}.usr")])
}

fn bytes32(bytes: Vec<u8>, what: &str) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Damaged(format!("a {what} does not have 32 bytes")))
}

impl Store {
    /// Opens the store in `folder`, which is made if missing.
    ///
    /// # Errors
    /// [`StoreError::Folder`], [`StoreError::InUse`] or [`StoreError::Database`].
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let name = folder.display().to_string();
        let error = |source| StoreError::Folder { folder: name.clone(), source };
        std::fs::create_dir_all(folder.join("blobs")).map_err(error)?;
        let lock = File::create(folder.join("lock")).map_err(error)?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => StoreError::InUse { folder: name.clone() },
            std::fs::TryLockError::Error(source) => error(source),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(folder.join("coordinator.sqlite"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true);
        let db = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&db).await?;
        let blobs = LocalFileSystem::new_with_prefix(folder.join("blobs"))?.with_fsync(true);
        Ok(Self { db, blobs: Arc::new(blobs), lock })
    }

    /// Closes the database; used before the folder is handed to another process.
    pub async fn close(&self) {
        self.db.close().await;
        // Calls that still hang may hold the store; nothing is written any more.
        let _ = self.lock.unlock();
    }

    async fn put(&self, path: &BlobPath, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.blobs.put(path, bytes.into()).await?;
        Ok(())
    }

    async fn get(&self, path: &BlobPath) -> Result<Option<Vec<u8>>, StoreError> {
        match self.blobs.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await?.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
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

    /// Records a new round.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_round(
        &self,
        round_id: RoundId,
        task: &str,
        number: u64,
        params: &[u8],
        roster: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO rounds (round_id, task, number, params, roster) VALUES (?, ?, ?, ?, ?)")
            .bind(round_id.to_vec())
            .bind(task)
            .bind(number as i64)
            .bind(params)
            .bind(roster)
            .execute(&self.db)
            .await?;
        Ok(())
    }

    /// Highest number of a round of `task`; 0 before the first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn last_round_number(&self, task: &str) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT COALESCE(MAX(number), 0) FROM rounds WHERE task = ?").bind(task);
        Ok(row.fetch_one(&self.db).await?.try_get::<i64, _>(0)? as u64)
    }

    /// The round of `task` whose end is not recorded.
    ///
    /// # Errors
    /// [`StoreError::Database`] or [`StoreError::Damaged`].
    pub async fn open_round(&self, task: &str) -> Result<Option<OpenRound>, StoreError> {
        let row = sqlx::query("SELECT round_id, params, roster FROM rounds WHERE task = ? AND state = 'open'")
            .bind(task)
            .fetch_optional(&self.db)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let round_id = RoundId(bytes32(row.try_get(0)?, "round id")?);
        let events = sqlx::query("SELECT kind, body, at FROM events WHERE round_id = ? ORDER BY seq")
            .bind(round_id.to_vec())
            .fetch_all(&self.db)
            .await?;
        let events = events.iter().map(read_event).collect::<Result<_, StoreError>>()?;
        Ok(Some(OpenRound { round_id, params: row.try_get(1)?, roster: row.try_get(2)?, events }))
    }

    /// Appends what a round accepted, in order, all or nothing. `seq` is the number of events before.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn append_events(&self, round_id: RoundId, seq: u64, events: &[Event]) -> Result<(), StoreError> {
        let mut transaction = self.db.begin().await?;
        for (i, event) in events.iter().enumerate() {
            let (kind, body, at) = match event {
                Event::Message(bytes, at) => (0, bytes.clone(), *at),
                Event::Upload(client) => (1, client.to_vec(), 0),
                Event::Close => (2, Vec::new(), 0),
            };
            sqlx::query("INSERT INTO events (round_id, seq, kind, body, at) VALUES (?, ?, ?, ?, ?)")
                .bind(round_id.to_vec())
                .bind((seq + i as u64) as i64)
                .bind(kind)
                .bind(body)
                .bind(at as i64)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Records the end of a round without a sum, and forgets what it accepted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort_round(&self, round_id: RoundId, reason: &str) -> Result<(), StoreError> {
        let mut transaction = self.db.begin().await?;
        sqlx::query("UPDATE rounds SET state = 'aborted', reason = ?, roster = NULL WHERE round_id = ?")
            .bind(reason)
            .bind(round_id.to_vec())
            .execute(&mut *transaction)
            .await?;
        forget_events(&mut transaction, round_id).await?;
        transaction.commit().await?;
        self.delete_folder(&BlobPath::from_iter(["uploads", &round_id.to_string()])).await
    }

    /// Records a successful round, whose model was put before, and forgets what it accepted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finish_round(&self, finished: &FinishedRound) -> Result<(), StoreError> {
        let metrics = serde_json::to_string(&finished.metrics).map_err(|e| StoreError::Damaged(e.to_string()))?;
        let mut transaction = self.db.begin().await?;
        sqlx::query(
            "UPDATE rounds SET state = 'finished', roster = NULL, model_version = ?, cohort = ?, survivors = ?, metrics = ?
             WHERE round_id = ?",
        )
        .bind(finished.model_version as i64)
        .bind(finished.cohort)
        .bind(finished.survivors)
        .bind(metrics)
        .bind(finished.round_id.to_vec())
        .execute(&mut *transaction)
        .await?;
        forget_events(&mut transaction, finished.round_id).await?;
        transaction.commit().await?;
        self.delete_folder(&BlobPath::from_iter(["uploads", &finished.round_id.to_string()])).await
    }

    /// The successful rounds of `task` in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finished_rounds(&self, task: &str) -> Result<Vec<FinishedRound>, StoreError> {
        let rows = sqlx::query(
            "SELECT round_id, model_version, cohort, survivors, metrics FROM rounds
             WHERE task = ? AND state = 'finished' ORDER BY number",
        )
        .bind(task)
        .fetch_all(&self.db)
        .await?;
        let read = |row: &SqliteRow| {
            let metrics: String = row.try_get(4)?;
            Ok(FinishedRound {
                round_id: RoundId(bytes32(row.try_get(0)?, "round id")?),
                model_version: row.try_get::<i64, _>(1)? as u64,
                cohort: row.try_get(2)?,
                survivors: row.try_get(3)?,
                metrics: serde_json::from_str(&metrics).map_err(|e| StoreError::Damaged(e.to_string()))?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Encoded `RoundParams`, cohort and survivors of the successful rounds of `task` in order.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn finished_params(&self, task: &str) -> Result<Vec<(Vec<u8>, u32, u32)>, StoreError> {
        let rows = sqlx::query(
            "SELECT params, cohort, survivors FROM rounds WHERE task = ? AND state = 'finished' ORDER BY number",
        )
        .bind(task)
        .fetch_all(&self.db)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
    }

    /// Stores a chunk of an upload.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn put_chunk(
        &self,
        round: RoundId,
        client: ClientId,
        index: u64,
        data: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.put(&chunk_path(round, client, index), data).await
    }

    /// Number of chunks that are stored, from the first without a gap.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn count_chunks(&self, round: RoundId, client: ClientId) -> Result<u64, StoreError> {
        let mut found = self.blobs.list(Some(&upload_folder(round, client)));
        let mut indices = std::collections::BTreeSet::new();
        while let Some(item) = found.next().await {
            indices.extend(item?.location.filename().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok((0..).take_while(|index| indices.contains(index)).count() as u64)
    }

    /// The first `chunks` chunks of an upload, put together.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when one is missing.
    pub async fn read_upload(&self, round: RoundId, client: ClientId, chunks: u64) -> Result<Vec<u8>, StoreError> {
        let mut upload = Vec::new();
        for index in 0..chunks {
            let chunk = self.get(&chunk_path(round, client, index)).await?;
            let missing = || StoreError::Damaged(format!("chunk {index} of the upload of client {client} is missing"));
            upload.extend(chunk.ok_or_else(missing)?);
        }
        Ok(upload)
    }

    /// Forgets the chunks of an upload that turned out wrong.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn delete_upload(&self, round: RoundId, client: ClientId) -> Result<(), StoreError> {
        self.delete_folder(&upload_folder(round, client)).await
    }

    /// Stores a version of the task's model, with the optimiser's moments (both safetensors).
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn put_model(
        &self,
        task: &str,
        version: u64,
        model: Vec<u8>,
        moments: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        if let Some(moments) = moments {
            self.put(&model_path(task, version, "moments.safetensors"), moments).await?;
        }
        self.put(&model_path(task, version, "model.safetensors"), model).await
    }

    /// A version of the task's model.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_model(&self, task: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&model_path(task, version, "model.safetensors")).await
    }

    /// The optimiser's moments after that version.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_moments(&self, task: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&model_path(task, version, "moments.safetensors")).await
    }

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

    /// A release's file.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is missing.
    pub async fn release_file(&self, release: &StoredRelease) -> Result<Vec<u8>, StoreError> {
        let file = self.get(&release_path(&release.model_id, release.version)).await?;
        file.ok_or_else(|| {
            StoreError::Damaged(format!("release {} of {} is missing", release.version, release.model_id))
        })
    }
}

async fn forget_events(transaction: &mut sqlx::SqliteTransaction<'_>, round_id: RoundId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM events WHERE round_id = ?").bind(round_id.to_vec()).execute(&mut **transaction).await?;
    Ok(())
}

fn read_event(row: &SqliteRow) -> Result<Event, StoreError> {
    let (kind, body, at): (i64, Vec<u8>, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    match kind {
        0 => Ok(Event::Message(body, at as u64)),
        1 => {
            let client = ClientId::from_slice(&body);
            Ok(Event::Upload(client.ok_or_else(|| StoreError::Damaged("an upload names no client".into()))?))
        }
        2 => Ok(Event::Close),
        _ => Err(StoreError::Damaged(format!("an event is of kind {kind}: made by a newer version?"))),
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
