//! What outlives rounds: from which number on they are counted, and which of them fail again and again.

use sqlx::Row;
use unisono_protocol::RoundId;

use super::{Store, StoreError};

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
}
