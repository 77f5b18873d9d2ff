//! What outlives rounds: from which number on they are counted, which of them fail again and again, and the newest roster seen.

use object_store::path::Path as BlobPath;
use sqlx::Row;
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::RoundId;

use super::{Store, StoreError};

/// The registrar as a key of the database: what its rosters' epochs are counted by.
fn registrar_id(registrar: &VerifyingKey) -> [u8; 32] {
    unisono_crypto::kdf::hash(unisono_crypto::kdf::label::PUBLISHER_ID, &[registrar.as_bytes()])
}

fn roster_path(registrar: &VerifyingKey) -> BlobPath {
    let name: String = registrar_id(registrar)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    BlobPath::from_iter(["rosters", &format!("{name}.bin")])
}

impl Store {
    /// Sets that no round of `task` has a number up to `number` from now on. It never goes back.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn raise_round_floor(&self, task: &str, number: u64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tasks (task, round_floor) VALUES (?, ?)
             ON CONFLICT (task) DO UPDATE SET round_floor = MAX(round_floor, excluded.round_floor)",
        )
        .bind(task)
        .bind(number as i64)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// Counts that a round failed when it was replayed: how many times in a row for this reason, this one included.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn count_replay_failure(&self, round_id: RoundId, reason: &str) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "INSERT INTO replay_failures (round_id, reason, times) VALUES (?, ?, 1)
             ON CONFLICT (round_id) DO UPDATE SET
                 times = CASE WHEN reason = excluded.reason THEN times + 1 ELSE 1 END, reason = excluded.reason
             RETURNING times",
        );
        let row = row.bind(round_id.to_vec()).bind(reason).fetch_one(&self.db).await?;
        Ok(row.try_get::<i64, _>(0)? as u64)
    }

    /// Highest epoch of a roster of this registrar that was in force; 0 before the first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn roster_epoch(&self, registrar: &VerifyingKey) -> Result<u64, StoreError> {
        let row =
            sqlx::query("SELECT epoch FROM roster_epochs WHERE registrar = ?").bind(registrar_id(registrar).to_vec());
        let row = row.fetch_optional(&self.db).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get::<i64, _>(0)? as u64))
    }

    /// Keeps a roster, which is in force from now on.
    ///
    /// # Errors
    /// [`StoreError`]; the one before is in force then.
    pub async fn put_roster(&self, registrar: &VerifyingKey, epoch: u64, roster: Vec<u8>) -> Result<(), StoreError> {
        // The file first: an epoch without its roster would leave none in force.
        self.put(&roster_path(registrar), roster).await?;
        sqlx::query(
            "INSERT INTO roster_epochs (registrar, epoch) VALUES (?, ?)
             ON CONFLICT (registrar) DO UPDATE SET epoch = MAX(epoch, excluded.epoch)",
        )
        .bind(registrar_id(registrar).to_vec())
        .bind(epoch as i64)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// The roster that was kept last.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_roster(&self, registrar: &VerifyingKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&roster_path(registrar)).await
    }
}
