//! Rounds: their parameters, what they accepted in order, and how they ended.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row};
use unisono_protocol::params::RoundParams;
use unisono_protocol::server::Phase;
use unisono_protocol::{ClientId, RoundId};

use super::{Store, StoreError, bytes32};

/// One accepted input of a round.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An encoded `ClientMessage`, accepted at that Unix time.
    Message(Vec<u8>, u64),
    /// A complete upload, whose chunks are among the blobs.
    Upload(ClientId),
    /// The phase was closed, at that Unix time in milliseconds: the next one began.
    Close(u64),
}

impl Event {
    /// What a row of the table says: kind, body and time.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn from_row(kind: i64, body: Vec<u8>, at: i64) -> Result<Self, StoreError> {
        match kind {
            0 => Ok(Self::Message(body, at as u64)),
            1 => {
                let client = ClientId::from_slice(&body);
                Ok(Self::Upload(client.ok_or_else(|| StoreError::Damaged("an upload names no client".into()))?))
            }
            2 => Ok(Self::Close(at as u64)),
            _ => Err(StoreError::Damaged(format!("an event is of kind {kind}: made by a newer version?"))),
        }
    }

    /// What [`Self::from_row`] reads.
    pub fn to_row(&self) -> (i64, Vec<u8>, i64) {
        match self {
            Self::Message(bytes, at) => (0, bytes.clone(), *at as i64),
            Self::Upload(client) => (1, client.to_vec(), 0),
            Self::Close(at) => (2, Vec::new(), *at as i64),
        }
    }
}

/// A round whose end is not recorded.
pub struct OpenRound {
    /// Its id.
    pub round_id: RoundId,
    /// Encoded `RoundParams`.
    pub params: Vec<u8>,
    /// The roster under which an earlier version opened it, as a file; others are kept once an epoch.
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

impl Store {
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
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO rounds (round_id, task, number, params) VALUES (?, ?, ?, ?)")
            .bind(round_id.to_vec())
            .bind(task)
            .bind(number as i64)
            .bind(params)
            .execute(&self.db)
            .await?;
        Ok(())
    }

    /// Highest number of a round of `task`, or the number to which [`Self::raise_round_floor`] has set it, whichever is larger; 0
    /// before the first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn last_round_number(&self, task: &str) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT MAX(COALESCE((SELECT MAX(number) FROM rounds WHERE task = ?1), 0),
                        COALESCE((SELECT round_floor FROM tasks WHERE task = ?1), 0))",
        );
        Ok(row.bind(task).fetch_one(&self.db).await?.try_get::<i64, _>(0)? as u64)
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

    /// Appends what a round accepted, in order. `seq` is the number of events before. After an error some of them may be stored; the
    /// same call may come again, with more events behind.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn append_events(&self, round_id: RoundId, seq: u64, events: &[Event]) -> Result<(), StoreError> {
        // A statement binds 32,766 values at most.
        for (seq, events) in (seq..).step_by(1000).zip(events.chunks(1000)) {
            let mut insert = QueryBuilder::new("INSERT OR REPLACE INTO events (round_id, seq, kind, body, at) ");
            insert.push_values((seq..).zip(events), |mut row, (seq, event)| {
                let (kind, body, at) = event.to_row();
                let row = row.push_bind(round_id.to_vec()).push_bind(seq as i64);
                row.push_bind(kind).push_bind(body).push_bind(at);
            });
            insert.build().execute(&self.db).await?;
        }
        Ok(())
    }

    /// Records that `client` dealt wrong shares in round `number` of `task`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn suspend(&self, task: &str, client: ClientId, number: u64) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO suspended (task, client_id, round) VALUES (?, ?, ?)")
            .bind(task)
            .bind(client.to_vec())
            .bind(number as i64)
            .execute(&self.db)
            .await?;
        Ok(())
    }

    /// The clients that dealt wrong shares in `rounds` of `task`, each with the last such round.
    ///
    /// # Errors
    /// [`StoreError::Database`] or [`StoreError::Damaged`].
    pub async fn suspended(
        &self,
        task: &str,
        rounds: std::ops::Range<u64>,
    ) -> Result<Vec<(ClientId, u64)>, StoreError> {
        let rows = sqlx::query("SELECT client_id, round FROM suspended WHERE task = ? AND round >= ? AND round < ?")
            .bind(task)
            .bind(rounds.start as i64)
            .bind(rounds.end as i64)
            .fetch_all(&self.db)
            .await?;
        let read = |row: &SqliteRow| {
            let damaged = || StoreError::Damaged("a client id does not have 16 bytes".into());
            let client = ClientId::from_slice(row.try_get(0)?).ok_or_else(damaged)?;
            Ok((client, row.try_get::<i64, _>(1)? as u64))
        };
        rows.iter().map(read).collect()
    }

    /// Records the end of a round without a sum, and forgets what it accepted. Its uploads go later, with
    /// [`Self::delete_ended_uploads`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort_round(&self, round_id: RoundId, reason: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE rounds SET state = 'aborted', reason = ?, roster = NULL WHERE round_id = ?")
            .bind(reason)
            .bind(round_id.to_vec())
            .execute(&self.db)
            .await?;
        Ok(())
    }

    /// Records the end of a round whose sum was learned and not used, and forgets what it accepted, as
    /// [`Self::abort_round`] does. For privacy it counts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn discard_round(
        &self,
        round_id: RoundId,
        reason: &str,
        cohort: u32,
        survivors: u32,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE rounds SET state = 'discarded', reason = ?, roster = NULL, cohort = ?, survivors = ? WHERE round_id = ?",
        )
        .bind(reason)
        .bind(cohort)
        .bind(survivors)
        .bind(round_id.to_vec())
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// Records the end of a stored round that can't go on. If its last phase had begun it may have given its sum, of which nothing
    /// else was recorded: for privacy it counts as one with the fewest clients that it can have had.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn give_up_round(&self, stored: &OpenRound, reason: &str) -> Result<(), StoreError> {
        let closed = stored.events.iter().filter(|event| matches!(event, Event::Close(_))).count();
        match RoundParams::from_payload(&stored.params) {
            Ok(params) if closed + 1 >= Phase::ALL.len() - usize::from(!params.malicious()) => {
                let (n_min, n_max) = (params.wire.n_min, params.wire.n_max);
                self.discard_round(stored.round_id, reason, n_max, n_min).await
            }
            _ => self.abort_round(stored.round_id, reason).await,
        }
    }

    /// Records a successful round, whose model was put before, and forgets what it accepted, as [`Self::abort_round`] does.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finish_round(&self, finished: &FinishedRound) -> Result<(), StoreError> {
        let metrics = serde_json::to_string(&finished.metrics).map_err(|e| StoreError::Damaged(e.to_string()))?;
        sqlx::query(
            "UPDATE rounds SET state = 'finished', roster = NULL, model_version = ?, cohort = ?, survivors = ?, metrics = ?
             WHERE round_id = ?",
        )
        .bind(finished.model_version as i64)
        .bind(finished.cohort)
        .bind(finished.survivors)
        .bind(metrics)
        .bind(finished.round_id.to_vec())
        .execute(&self.db)
        .await?;
        Ok(())
    }
}

fn read_event(row: &SqliteRow) -> Result<Event, StoreError> {
    Event::from_row(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)
}
