//! Deletes what is over, beside the training: models, moments and rounds beyond what `[retention]` keeps, and uploads. What fails
//! is told and tried again; no round waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::watch;
use unisono_protocol::params::RoundParams;

use crate::storage::{Outdated, Store, StoredTally};
use crate::{Shared, StoreError};

/// After a failure, or while a backup is made, it is tried again after so long, or after the next round.
const AGAIN: Duration = Duration::from_secs(60);

/// What was deleted in vain, or could not be.
struct Failures(u32);

impl Failures {
    /// Tells an error, and goes on.
    fn tell<T>(&mut self, what: &'static str, result: Result<T, StoreError>) -> Option<T> {
        result
            .map_err(|error| {
                self.0 += 1;
                counter!("unisono_retention_failures_total", "what" => what).increment(1);
                tracing::warn!(what, %error, "what is over can't be deleted; trying again");
            })
            .ok()
    }
}

fn deleted(what: &'static str, count: u64) {
    if count > 0 {
        counter!("unisono_deleted_total", "what" => what).increment(count);
        tracing::info!(what, count, "deleted what is over");
    }
}

/// Waits for tallies, and deletes what is over by then.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut tallies = shared.tallies.subscribe();
    loop {
        let newest = tallies.borrow_and_update().clone();
        let whole = match newest {
            Some(tally) => sweep(&shared, &tally).await,
            None => true,
        };
        if !wait(&mut tallies, whole).await {
            return;
        }
    }
}

/// Until there is another tally, or until it is time to try again; `false` when there will be none.
async fn wait(tallies: &mut watch::Receiver<Option<StoredTally>>, whole: bool) -> bool {
    let changed = tallies.changed();
    if whole {
        return changed.await.is_ok();
    }
    tokio::time::timeout(AGAIN, changed).await.is_ok_and(|changed| changed.is_ok()) || tallies.has_changed().is_ok()
}

/// Deletes what is over; whether nothing is left to be tried again. Files go first: they need no room in the database.
async fn sweep(shared: &Shared, tally: &StoredTally) -> bool {
    let (store, config, task) = (&shared.store, &shared.config.retention, &shared.config.task.name);
    let mut failures = Failures(0);
    if let Some(rounds) = failures.tell("uploads", store.delete_ended_uploads().await) {
        deleted("uploads", rounds);
    }
    let models = failures.tell("models", sweep_models(shared).await);
    // The tally before the rows that it counts.
    let rows = async {
        store.put_tally(task, tally).await?;
        store.delete_rounds(task, config.finished_rounds.newest(), config.aborted_rounds.newest()).await
    };
    if let Some(rows) = failures.tell("rounds", rows.await) {
        deleted("finished_rounds", rows.finished);
        deleted("aborted_rounds", rows.aborted);
    }
    failures.tell("pages", store.give_pages_back().await);
    if let Some(sizes) = failures.tell("sizes", store.sizes().await) {
        let parts = [
            ("database", sizes.database),
            ("models", sizes.models),
            ("releases", sizes.releases),
            ("rosters", sizes.rosters),
        ];
        for (part, bytes) in parts {
            gauge!("unisono_state_bytes", "part" => part).set(bytes as f64);
        }
    }
    failures.0 == 0 && models == Some(true)
}

/// Deletes versions of the model and moments; `false` while a backup is made.
async fn sweep_models(shared: &Shared) -> Result<bool, StoreError> {
    let (store, config, task) = (&shared.store, &shared.config.retention, &shared.config.task.name);
    let current = store.current_version(task).await?;
    let (needed, stored) = (needed(store, task).await?, store.versions(task).await?);
    gauge!("unisono_model_versions").set(stored.len() as f64);
    // A later version than the current one is about to become it. What is older never becomes current again.
    let over: Vec<u64> = stored.range(..current).copied().filter(|version| !needed.contains(version)).collect();
    let outdated = over.into_iter().filter_map(|version| match (config.models, config.moments) {
        (models, _) if !models.keeps(version, current) => Some((version, Outdated::Version)),
        (_, moments) if !moments.keeps(version, current) => Some((version, Outdated::Moments)),
        _ => None,
    });
    let outdated: Vec<_> = outdated.collect();
    if outdated.is_empty() {
        return Ok(true);
    }
    let Some(_held) = store.try_to_delete()? else { return Ok(false) };
    let (mut models, mut moments) = (0, 0);
    for (version, what) in outdated {
        let was_there = u64::from(store.delete_version(task, version, what).await?);
        *(if what == Outdated::Version { &mut models } else { &mut moments }) += was_there;
    }
    gauge!("unisono_model_versions").set(stored.len() as f64 - models as f64);
    deleted("models", models);
    deleted("moments", moments);
    Ok(true)
}

/// Older versions that something still needs: the base of the open round, and what was released.
async fn needed(store: &Store, task: &str) -> Result<BTreeSet<u64>, StoreError> {
    let mut needed = store.released_versions().await?;
    if let Some(payload) = store.open_params(task).await? {
        let unreadable = |error| StoreError::Damaged(format!("the parameters of the open round: {error}"));
        needed.insert(RoundParams::from_payload(&payload).map_err(unreadable)?.wire.model_version);
    }
    Ok(needed)
}
