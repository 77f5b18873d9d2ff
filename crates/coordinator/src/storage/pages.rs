//! Pages of the database that hold nothing any more go back to the file system.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::{Store, StoreError};

/// Free pages that the database keeps for the next round.
const SPARE_PAGES: i64 = 1024;
/// Pages that one statement gives back.
const PAGES: i64 = 1024;
/// A write-ahead log that is longer than so many bytes is cut.
const LONG_LOG: u64 = 4 << 20;

/// Opens the database alone, before others do, and makes it one that can give pages back. One that can't be made so, as on a full
/// disk, only keeps its pages.
pub(super) async fn open_first(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    if let Err(error) = prepare(&mut connection).await {
        tracing::warn!(%error, "the database can't be made one that gives pages back; its free pages are only used again");
    }
    connection.close().await
}

/// Makes the database one that can give single pages back. One of an earlier version is written anew once.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    const INCREMENTAL: i64 = 2;
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(&mut *connection).await?;
    if mode == INCREMENTAL {
        return Ok(());
    }
    sqlx::raw_sql("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;").execute(connection).await?;
    Ok(())
}

impl Store {
    /// Gives free pages of the database back to the file system, and cuts a long write-ahead log.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn give_pages_back(&self) -> Result<(), StoreError> {
        let free = || async {
            let row = sqlx::query("PRAGMA freelist_count").fetch_one(&self.db).await?;
            row.try_get::<i64, _>(0)
        };
        let (mut before, mut given_back) = (free().await?, false);
        while before > SPARE_PAGES {
            let pages = (before - SPARE_PAGES).min(PAGES);
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA incremental_vacuum({pages})"))).execute(&self.db).await?;
            let after = free().await?;
            // A database that could not be prepared gives none.
            if after >= before {
                break;
            }
            (before, given_back) = (after, true);
        }
        let log = self.state_folder().join("coordinator.sqlite-wal");
        if given_back || std::fs::metadata(log).is_ok_and(|data| data.len() > LONG_LOG) {
            // What reads at this moment keeps it from being cut, until the next time.
            sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.db).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use unisono_protocol::RoundId;

    use super::super::Event;
    use super::*;

    const TASK: &str = "a task";

    fn length(folder: &Path, name: &str) -> u64 {
        std::fs::metadata(folder.join(name)).map_or(0, |data| data.len())
    }

    /// A round of which the disk sees a lot.
    async fn large_round(store: &Store, number: u64) {
        let round = RoundId([number as u8; 32]);
        store.insert_round(round, TASK, number, b"parameters").await.unwrap();
        let events = vec![Event::Message(vec![7; 4000], 5); 4000];
        store.append_events(round, 0, &events).await.unwrap();
        store.abort_round(round, "enough").await.unwrap();
    }

    #[tokio::test]
    async fn pages_of_deleted_rows_are_given_back_by_new_databases_and_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        // As an earlier version made it, full of free pages.
        let old = SqliteConnectOptions::new()
            .filename(folder.path().join("coordinator.sqlite"))
            .create_if_missing(true)
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
        let mut connection = old.connect().await.unwrap();
        let fill = "CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(30000000)); DELETE FROM filler;";
        sqlx::raw_sql(fill).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        assert!(length(folder.path(), "coordinator.sqlite") > 25_000_000);
        for _ in 0..2 {
            let store = Store::open(folder.path()).await.unwrap();
            let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(&store.db).await.unwrap();
            assert_eq!(mode, 2);
            store.close().await;
        }
        assert!(length(folder.path(), "coordinator.sqlite") < 1_000_000);

        let store = Store::open(folder.path()).await.unwrap();
        for number in 1..=3 {
            large_round(&store, number).await;
            store.give_pages_back().await.unwrap();
            let size = store.sizes().await.unwrap().database;
            assert!(size < 2 * SPARE_PAGES as u64 * 4096 + LONG_LOG, "round {number}: {size}");
        }
        let log = length(folder.path(), "coordinator.sqlite-wal");
        assert!(log < 100_000, "{log}");
        // Nothing is given back for nothing: what one round takes is there for the next.
        let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&store.db).await.unwrap();
        assert_eq!(free, SPARE_PAGES);
    }
}
