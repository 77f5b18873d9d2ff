//! What outlives rounds: from which number on they are counted, which of them fail again and again, and the newest roster seen.

use object_store::ObjectStoreExt;
use object_store::path::Path as BlobPath;
use sqlx::Row;
use tokio_stream::StreamExt;
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::RoundId;

use super::{Store, StoreError};

/// The registrar as a key of the database: what its rosters' epochs are counted by.
fn registrar_id(registrar: &VerifyingKey) -> [u8; 32] {
    unisono_crypto::kdf::hash(unisono_crypto::kdf::label::PUBLISHER_ID, &[registrar.as_bytes()])
}

fn registrar_name(registrar: &VerifyingKey) -> String {
    registrar_id(registrar)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One file for each epoch. Rounds name theirs by epoch and root, which their parameters have.
fn roster_path(registrar: &VerifyingKey, epoch: u64) -> BlobPath {
    BlobPath::from_iter(["rosters", &registrar_name(registrar), &format!("{epoch}.bin")])
}

/// Where earlier versions kept the newest one.
fn only_roster_path(registrar: &VerifyingKey) -> BlobPath {
    BlobPath::from_iter(["rosters", &format!("{}.bin", registrar_name(registrar))])
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
        self.put(&roster_path(registrar, epoch), roster).await?;
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

    /// The roster of an epoch, if it is kept.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_roster(&self, registrar: &VerifyingKey, epoch: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.get(&roster_path(registrar, epoch)).await? {
            Some(roster) => Ok(Some(roster)),
            None => self.get(&only_roster_path(registrar)).await,
        }
    }

    /// Forgets the rosters of epochs before `epoch`; no round that is open may have one of these.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn forget_rosters_before(&self, registrar: &VerifyingKey, epoch: u64) -> Result<(), StoreError> {
        let mut found = self.blobs.list(Some(&BlobPath::from_iter(["rosters", &registrar_name(registrar)])));
        while let Some(item) = found.next().await {
            let path = item?.location;
            let of = path.filename().and_then(|name| name.strip_suffix(".bin")?.parse::<u64>().ok());
            if of.is_some_and(|of| of < epoch) {
                self.blobs.delete(&path).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use unisono_crypto::sign::{Level, SigningKey};
    use unisono_protocol::RoundId;

    use super::*;

    #[tokio::test]
    async fn a_roster_is_stored_once_an_epoch_and_no_round_copies_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let rng = &mut <rand_chacha::ChaCha8Rng as rand_chacha::rand_core::SeedableRng>::seed_from_u64(1);
        let registrar = SigningKey::generate(Level::L65, rng).verifying_key();
        let bytes = |path: &std::path::Path| -> u64 { std::fs::metadata(path).map_or(0, |data| data.len()) };
        for epoch in 1..=3u64 {
            store.put_roster(&registrar, epoch, vec![epoch as u8; 5 << 20]).await.unwrap();
            for i in 0..10 {
                let number = epoch * 10 + i;
                store.insert_round(RoundId([number as u8; 32]), "task", number, b"parameters").await.unwrap();
                store.abort_round(RoundId([number as u8; 32]), "enough").await.unwrap();
            }
        }
        let database = ["coordinator.sqlite", "coordinator.sqlite-wal"].map(|name| bytes(&folder.path().join(name)));
        assert!(database.iter().sum::<u64>() < 2 << 20, "{database:?}");
        assert_eq!(store.roster_epoch(&registrar).await.unwrap(), 3);
        assert_eq!(store.get_roster(&registrar, 2).await.unwrap().unwrap()[0], 2);
        store.forget_rosters_before(&registrar, 3).await.unwrap();
        assert!(store.get_roster(&registrar, 2).await.unwrap().is_none());
        assert_eq!(store.get_roster(&registrar, 3).await.unwrap().unwrap()[0], 3);
    }
}
