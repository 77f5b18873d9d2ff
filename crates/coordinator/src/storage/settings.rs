//! The settings with which a task learns.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Row};

use super::{Store, StoreError};

impl Store {
    /// The settings that are stored with a task, by their names; none before its first start.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn settings(&self, task: &str) -> Result<BTreeMap<String, String>, StoreError> {
        // A state of an earlier version that is only read does not have the table.
        let table: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'settings'")
                .fetch_one(&self.db)
                .await?;
        if table == 0 {
            return Ok(BTreeMap::new());
        }
        let rows =
            sqlx::query("SELECT name, value FROM settings WHERE task = ?").bind(task).fetch_all(&self.db).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Stores settings with a task, over those of the same names; all or none.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn put_settings(&self, task: &str, settings: &BTreeMap<String, String>) -> Result<(), StoreError> {
        if settings.is_empty() {
            return Ok(());
        }
        let mut insert = QueryBuilder::new("INSERT OR REPLACE INTO settings (task, name, value) ");
        insert.push_values(settings, |mut row, (name, value)| {
            row.push_bind(task.to_owned()).push_bind(name.clone()).push_bind(value.clone());
        });
        insert.build().execute(&self.db).await?;
        Ok(())
    }
}
