//! The round at hand: the protocol's state machine with what makes it durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::Mutex;
use unisono_crypto::sign::SigningKey;
use unisono_protocol::proto::{self, ClientMessage};
use unisono_protocol::roster::Roster;
use unisono_protocol::server::{Abort, Accepted, Authority, Closed, OpenError, Outcome, Phase, Refusal, Server};
use unisono_protocol::{ClientId, RoundId};

use crate::config::RoundKeys;
use crate::now_ms;
use crate::storage::{Event, OpenRound, Store, StoreError};

/// Why a stored round can't go on.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The storage.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The parameters, the roster or the key.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The roster's copy.
    #[error("{0}")]
    Roster(#[from] unisono_protocol::roster::RosterError),
    /// An accepted message is refused now, or a phase can't be closed any more.
    #[error("replaying what it had accepted gives something else: {0}")]
    Diverged(String),
}

/// Takes one thing that a round had accepted; `upload` is what the client of an [`Event::Upload`] had sent.
///
/// # Errors
/// [`RecoverError::Diverged`].
pub fn replay(mut server: Server, event: &Event, upload: &[u8]) -> Result<Server, RecoverError> {
    let diverged = |why: &dyn ToString| RecoverError::Diverged(why.to_string());
    match event {
        Event::Message(bytes, at) => {
            let message = ClientMessage::decode(bytes.as_slice()).map_err(|e| diverged(&e))?;
            server.absorb(&message, *at).map_err(|e| diverged(&e))?;
        }
        Event::Upload(client) => {
            server.absorb_upload(*client, upload).map_err(|e| diverged(&e))?;
        }
        Event::Close(_) => match server.close().map_err(|e| diverged(&e))? {
            Closed::Next(next) => return Ok(*next),
            Closed::Finished(_) => return Err(diverged(&"it was finished")),
        },
    }
    Ok(server)
}

/// Chunks of one upload that have arrived. Locked while a stream appends.
pub type UploadState = Arc<Mutex<u64>>;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The protocol refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be stored; the same step may come again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A round in progress.
pub struct Active {
    /// The state machine; taken out only while a phase is being closed.
    server: Option<Server>,
    /// Id of the round.
    pub round_id: RoundId,
    /// Number of the round.
    pub number: u64,
    stored: u64,
    /// Accepted, yet not on stable storage. Nothing is acknowledged before it is empty.
    pending: Vec<Event>,
    /// Uploads that have begun.
    pub uploads: BTreeMap<ClientId, UploadState>,
    /// When the phase at hand began: Unix time in milliseconds.
    began_ms: u64,
    /// Whether the phase at hand is one that a restart interrupted.
    pub interrupted: bool,
}

impl Active {
    fn new(server: Server, stored: u64, began_ms: u64, interrupted: bool) -> Self {
        let (round_id, number) = (server.params().round_id, server.params().wire.round);
        let (server, uploads) = (Some(server), BTreeMap::new());
        Self { server, round_id, number, stored, pending: Vec::new(), uploads, began_ms, interrupted }
    }

    /// What is left of a phase's longest duration. The time of day may have been set meanwhile: it is never more than that.
    pub fn remaining(&self, phase: Phase) -> Duration {
        let deadlines = self.server().params().wire.deadlines.unwrap_or_default();
        let limit = phase.deadline_ms(&deadlines);
        Duration::from_millis(self.began_ms.saturating_add(limit).saturating_sub(now_ms()).min(limit))
    }

    /// Opens a round and records it.
    ///
    /// # Errors
    /// [`RecoverError::Open`] or [`RecoverError::Store`].
    pub async fn open(
        store: &Store,
        params: &proto::RoundParams,
        authority: Option<Authority>,
    ) -> Result<Self, RecoverError> {
        let server = Server::open(params, authority)?;
        let round_id = server.params().round_id;
        store.insert_round(round_id, &params.task, params.round, &params.encode_to_vec()).await?;
        Ok(Self::new(server, 0, now_ms(), false))
    }

    /// Brings a stored round to where it was. `in_force` is the roster in force, which may be the round's.
    ///
    /// # Errors
    /// [`RecoverError`]: the round has to be aborted then.
    pub async fn recover(
        store: &Store,
        stored: &OpenRound,
        keys: Option<&RoundKeys>,
        in_force: Option<Arc<Roster>>,
    ) -> Result<Self, RecoverError> {
        let diverged = |why: &dyn ToString| RecoverError::Diverged(why.to_string());
        let params = proto::RoundParams::decode(stored.params.as_slice()).map_err(|e| diverged(&e))?;
        let authority = match keys {
            Some(keys) => {
                let its = |roster: &Arc<Roster>| {
                    let head = roster.head();
                    head.epoch == params.roster_epoch && head.root[..] == params.roster_root
                };
                let roster = match (in_force.filter(its), &stored.roster) {
                    (Some(roster), _) => roster,
                    (None, Some(copy)) => Arc::new(Roster::from_bytes(copy, &keys.registrar)?),
                    (None, None) => {
                        let kept = store.open_roster(&keys.registrar, params.roster_epoch).await?;
                        let missing = || diverged(&format!("its roster, of epoch {}, is missing", params.roster_epoch));
                        Arc::new(kept.ok_or_else(missing)?)
                    }
                };
                Some(Authority { signing_key: keys.signing_key.clone(), roster })
            }
            None => None,
        };
        let mut server = Server::open(&params, authority)?;
        if server.params().round_id != stored.round_id {
            return Err(diverged(&"the parameters have another hash"));
        }
        let chunks = server.params().chunks();
        let mut began_ms = params.opened_at.saturating_mul(1000);
        for event in &stored.events {
            let upload = match event {
                Event::Upload(client) => store.read_upload(stored.round_id, *client, chunks).await?,
                Event::Message(..) | Event::Close(_) => Vec::new(),
            };
            server = replay(server, event, &upload)?;
            if let Event::Close(at) = event {
                // Earlier versions did not say when.
                began_ms = if *at == 0 { now_ms() } else { *at };
            }
        }
        Ok(Self::new(server, stored.events.len() as u64, began_ms, true))
    }

    /// The state machine.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("only `close` takes it, and puts it back or ends the round")
    }

    /// See [`Server::sign_base_model`].
    pub fn sign_base_model(&mut self, publisher: &SigningKey) {
        self.server.as_mut().expect("as in `server`").sign_base_model(publisher);
    }

    /// See [`Server::suspend`].
    pub fn suspend(&mut self, client: ClientId, since: u64, until: u64) {
        let server = self.server.as_mut().expect("as in `server`");
        server.suspend(client, since, until);
    }

    /// Takes a client's step; it is on stable storage when this returns. Also, how many steps were stored by this call: others
    /// may have waited for room.
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn absorb(
        &mut self,
        store: &Store,
        message: &ClientMessage,
        now: u64,
    ) -> Result<(Accepted, u64), StepError> {
        let server = self.server.as_mut().expect("as in `server`");
        let accepted = crate::in_place(|| server.absorb(message, now))?;
        if accepted == Accepted::New {
            self.pending.push(Event::Message(message.encode_to_vec(), now));
        }
        Ok((accepted, self.flush(store).await?))
    }

    /// See [`Server::leave`]. It is not stored: after a restart the client is waited for again, no longer than others.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn leave(&mut self, client: ClientId, signature: &[u8], now: u64) -> Result<Accepted, Refusal> {
        let server = self.server.as_mut().expect("as in `server`");
        crate::in_place(|| server.leave(client, signature, now))
    }

    /// Takes a whole upload; it counts, and is on stable storage, when this returns. How many steps were stored, as in [`Self::absorb`].
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn absorb_upload(&mut self, store: &Store, client: ClientId, packed: &[u8]) -> Result<u64, StepError> {
        let server = self.server.as_mut().expect("as in `server`");
        let accepted = crate::in_place(|| server.absorb_upload(client, packed))?;
        if accepted == Accepted::New {
            self.pending.push(Event::Upload(client));
        }
        Ok(self.flush(store).await?)
    }

    /// Writes what is pending, and tells how much that was. After an error it stays pending.
    async fn flush(&mut self, store: &Store) -> Result<u64, StoreError> {
        let count = self.pending.len() as u64;
        if count > 0 {
            store.append_events(self.round_id, self.stored, &self.pending).await?;
            self.stored += count;
            self.pending.clear();
        }
        Ok(count)
    }

    /// Closes the phase; `Some` when that was the last one.
    ///
    /// # Errors
    /// The storage (the phase is still open then), or the abort that ended the round.
    pub async fn close(&mut self, store: &Store) -> Result<Result<Option<Outcome>, Abort>, StoreError> {
        self.flush(store).await?;
        let last = self.server().phase() == Phase::Unmask;
        let at = now_ms();
        // The last phase is closed again after a restart: its end is recorded with the new model.
        if !last {
            store.append_events(self.round_id, self.stored, &[Event::Close(at)]).await?;
            self.stored += 1;
        }
        let server = self.server.take().expect("as in `server`");
        Ok(match crate::in_place(|| server.close()) {
            Ok(Closed::Next(next)) => {
                self.server = Some(*next);
                self.uploads.clear();
                (self.began_ms, self.interrupted) = (at, false);
                Ok(None)
            }
            Ok(Closed::Finished(outcome)) => Ok(Some(outcome)),
            Err(abort) => Err(abort),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example;

    #[tokio::test]
    async fn after_a_restart_a_phase_has_its_remaining_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let left = async |number: u64, ago_s: u64| {
            let mut params = example("").params(number, 0, [0; 32], 8, (0, Vec::new())).unwrap();
            params.opened_at = crate::now() - ago_s;
            let opened = Active::open(&store, &params, None).await.unwrap();
            let stored = store.open_round("t").await.unwrap().unwrap();
            let active = Active::recover(&store, &stored, None, None).await.unwrap();
            assert!(active.interrupted && !opened.interrupted);
            store.abort_round(active.round_id, "enough").await.unwrap();
            active.remaining(Phase::Advertise).as_secs_f64()
        };
        let some = left(1, 50).await;
        assert!((8.0..=10.0).contains(&some), "{some}");
        assert_eq!(left(2, 500).await, 0.0);
        // A clock that was set back does not lengthen it.
        let mut params = example("").params(3, 0, [0; 32], 8, (0, Vec::new())).unwrap();
        params.opened_at = crate::now() + 5_000;
        Active::open(&store, &params, None).await.unwrap();
        let stored = store.open_round("t").await.unwrap().unwrap();
        let active = Active::recover(&store, &stored, None, None).await.unwrap();
        assert_eq!(active.remaining(Phase::Advertise), Duration::from_secs(60));
    }
}
