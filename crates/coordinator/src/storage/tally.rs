//! What is known of all of a task's rounds together: it stays when the rows of single rounds go.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{FinishedRound, Store, StoreError, bytes32};

/// The form in which a tally is stored; others are a newer version's.
const FORMAT: i64 = 1;
/// Rounds that are read at once.
const BATCH: i64 = 1000;

/// A task's rounds up to one of them, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredTally {
    /// Number of the last round that is counted; 0: none. Later ones have rows.
    pub through: u64,
    /// Rounds whose sums were learned and not used.
    pub discarded: u64,
    /// Whether a sum without noise for privacy is among them.
    pub exact: bool,
    /// The account of those with noise, as `Accountant::to_bytes` gives it.
    pub spent: Vec<u8>,
    /// How far the watched metric has come, as text of `learning::Watch`; `None` without early stop.
    pub watch: Option<String>,
}

impl StoredTally {
    /// Shows that a stored row is not what was written: the disk's errors, not an adversary's work.
    fn checksum(&self, task: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for part in [
            task.as_bytes(),
            &self.through.to_le_bytes(),
            &self.discarded.to_le_bytes(),
            &[u8::from(self.exact)],
            &self.spent,
            self.watch.as_deref().unwrap_or_default().as_bytes(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// A round whose sum was learned.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedRound {
    /// Its number.
    pub number: u64,
    /// Encoded `RoundParams`.
    pub params: Vec<u8>,
    /// Clients in the cohort.
    pub cohort: u32,
    /// Clients in the sum.
    pub survivors: u32,
    /// Version of the model that came out, and the metrics; `None` when the sum was not used.
    pub used: Option<(u64, Vec<f32>)>,
}

impl Store {
    /// The tally of a task; `None` before the first, as in a state of an earlier version: all its rounds have rows.
    ///
    /// # Errors
    /// [`StoreError::Database`], or [`StoreError::Damaged`] for one that is not what was stored, or of a newer version.
    pub async fn tally(&self, task: &str) -> Result<Option<StoredTally>, StoreError> {
        let row =
            sqlx::query("SELECT format, through, discarded, exact, spent, watch, checksum FROM tallies WHERE task = ?");
        let Some(row) = row.bind(task).fetch_optional(&self.db).await? else { return Ok(None) };
        let damaged = |why: String| {
            let repair = "what its rounds have spent of privacy is not known; restore a backup";
            StoreError::Damaged(format!("the tally of task {task:?} {why}: {repair}"))
        };
        match row.try_get::<i64, _>(0)? {
            FORMAT => {}
            other => return Err(damaged(format!("is of format {other}, this version reads {FORMAT}"))),
        }
        let read = |row: &SqliteRow| {
            let tally = StoredTally {
                through: row.try_get::<i64, _>(1)? as u64,
                discarded: row.try_get::<i64, _>(2)? as u64,
                exact: row.try_get(3)?,
                spent: row.try_get(4)?,
                watch: row.try_get(5)?,
            };
            Ok::<_, sqlx::Error>((tally, row.try_get::<i64, _>(6)?))
        };
        let (tally, checksum) = read(&row).map_err(|error| damaged(format!("can't be read ({error})")))?;
        if i64::from(tally.checksum(task)) != checksum {
            return Err(damaged("has a wrong checksum".into()));
        }
        Ok(Some(tally))
    }

    /// Stores the tally of a task. One that counts fewer rounds never takes the place of one that counts more.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn put_tally(&self, task: &str, tally: &StoredTally) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tallies (task, format, through, discarded, exact, spent, watch, checksum)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (task) DO UPDATE SET format = excluded.format, through = excluded.through,
                 discarded = excluded.discarded, exact = excluded.exact, spent = excluded.spent,
                 watch = excluded.watch, checksum = excluded.checksum
             WHERE excluded.through >= through",
        )
        .bind(task)
        .bind(FORMAT)
        .bind(tally.through as i64)
        .bind(tally.discarded as i64)
        .bind(tally.exact)
        .bind(&tally.spent)
        .bind(&tally.watch)
        .bind(i64::from(tally.checksum(task)))
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// The rounds of `task` with numbers above `after` whose sums were learned, in order, those that were not used among them: as
    /// many as are read at once. None: there are no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ended_rounds(&self, task: &str, after: u64) -> Result<Vec<EndedRound>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, params, cohort, survivors, model_version, metrics FROM rounds
             WHERE task = ? AND number > ? AND state IN ('finished', 'discarded') ORDER BY number LIMIT ?",
        )
        .bind(task)
        .bind(after as i64)
        .bind(BATCH)
        .fetch_all(&self.db)
        .await?;
        let read = |row: &SqliteRow| {
            let version: Option<i64> = row.try_get(4)?;
            let used =
                version.map(|version| Ok::<_, StoreError>((version as u64, read_metrics(row, 5)?))).transpose()?;
            Ok(EndedRound {
                number: row.try_get::<i64, _>(0)? as u64,
                params: row.try_get(1)?,
                cohort: row.try_get(2)?,
                survivors: row.try_get(3)?,
                used,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The newest successful round of `task`. Its model is the current one, and its version the number of successful rounds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last_finished(&self, task: &str) -> Result<Option<FinishedRound>, StoreError> {
        let row = sqlx::query(
            "SELECT round_id, model_version, cohort, survivors, metrics FROM rounds
             WHERE task = ? AND state = 'finished' ORDER BY number DESC LIMIT 1",
        );
        let read = |row: SqliteRow| {
            Ok(FinishedRound {
                round_id: unisono_protocol::RoundId(bytes32(row.try_get(0)?, "round id")?),
                model_version: row.try_get::<i64, _>(1)? as u64,
                cohort: row.try_get(2)?,
                survivors: row.try_get(3)?,
                metrics: read_metrics(&row, 4)?,
            })
        };
        row.bind(task).fetch_optional(&self.db).await?.map(read).transpose()
    }

    /// Version of the newest model of `task`, which is the number of its successful rounds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn current_version(&self, task: &str) -> Result<u64, StoreError> {
        Ok(self.last_finished(task).await?.map_or(0, |last| last.model_version))
    }
}

fn read_metrics(row: &SqliteRow, column: usize) -> Result<Vec<f32>, StoreError> {
    let metrics: String = row.try_get(column)?;
    serde_json::from_str(&metrics).map_err(|e| StoreError::Damaged(format!("the metrics of a round: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(through: u64) -> StoredTally {
        let watch = Some("{}".to_owned());
        StoredTally { through, discarded: 2, exact: true, spent: vec![through as u8; 9], watch }
    }

    #[tokio::test]
    async fn a_tally_never_goes_back_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        assert_eq!(store.tally("task").await.unwrap(), None);
        for (put, stored) in [(3, 3), (5, 5), (4, 5), (5, 5)] {
            store.put_tally("task", &tally(put)).await.unwrap();
            assert_eq!(store.tally("task").await.unwrap(), Some(tally(stored)));
        }
        assert_eq!(store.tally("another").await.unwrap(), None);
        // Each column, and a row of another task.
        for change in [
            "through = 6",
            "discarded = 1",
            "exact = 0",
            "spent = x'050505050505050504'",
            "spent = 'text'",
            "watch = NULL",
            "checksum = checksum + 1",
            "format = 2",
        ] {
            let sql = format!("UPDATE tallies SET {change}");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&store.db).await.unwrap();
            let error = store.tally("task").await.unwrap_err();
            assert!(matches!(&error, StoreError::Damaged(why) if why.contains("\"task\"")), "{change}: {error}");
            assert!(!error.may_pass() && error.to_string().contains("restore a backup"), "{error}");
            sqlx::query("DELETE FROM tallies").execute(&store.db).await.unwrap();
            store.put_tally("task", &tally(5)).await.unwrap();
        }
        sqlx::query("UPDATE tallies SET task = 'another'").execute(&store.db).await.unwrap();
        assert!(store.tally("another").await.unwrap_err().to_string().contains("checksum"));
    }
}
