//! The loop over rounds: opens them, closes their phases, applies their sums, and releases the model at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use unisono_protocol::ClientId;
use unisono_protocol::server::{Authority, Outcome, Phase, Progress, Report, Server};
use unisono_wire::model::{Model, model_hash};

use crate::active::{Active, RecoverError};
use crate::learning::{self, Moments};
use crate::privacy::Account;
use crate::storage::FinishedRound;
use crate::{CoordinatorError, End, Event, RoundResult, Shared, Stage, now, releases};

/// Pause before a failed write is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Runs rounds until the task is finished.
pub(crate) async fn run(shared: Arc<Shared>) -> Result<(), CoordinatorError> {
    let result = loop {
        match train(&shared).await {
            // As after a restart: everything is read from the storage again once it works, the round at hand too.
            Err(CoordinatorError::Store(error)) if error.may_pass() => {
                tracing::error!(%error, "storage failed; trying again");
                *shared.stage.lock().await = Stage::Starting;
                shared.changed();
                tokio::time::sleep(STORE_PAUSE).await;
            }
            result => break result,
        }
    };
    if let Err(error) = &result {
        tracing::error!(%error, "training stopped");
    }
    *shared.stage.lock().await = Stage::Finished;
    shared.changed();
    result
}

async fn train(shared: &Shared) -> Result<(), CoordinatorError> {
    let task = &shared.config.task;
    let mut account = Account::open(shared).await?;
    loop {
        let finished = shared.store.finished_rounds(&task.name).await?;
        if let Some(last) = finished.last() {
            // After a restart: devices may not know yet that it is.
            shared.last_end.lock().await.get_or_insert_with(|| End::with_sum(last.round_id));
        }
        if let Some(early) = over(shared, &finished) {
            releases::release(shared, finished.last()).await?;
            shared.emit(Event::TrainingFinished { rounds: finished.len() as u64, early });
            tracing::info!(rounds = finished.len(), early, "training is finished");
            return Ok(());
        }
        let mut active = match recover(shared).await? {
            Some(active) => active,
            None => open(shared, finished.last()).await?,
        };
        suspend(shared, &mut active).await?;
        let (round, round_id, phase) = (active.number, active.round_id, active.server().phase());
        tracing::info!(round, %round_id, %phase, "round opened");
        shared.emit(Event::RoundOpened { round, round_id, phase });
        *shared.stage.lock().await = Stage::Running(Box::new(active));
        shared.changed();
        if !play(shared, &mut account).await? {
            tokio::time::sleep(Duration::from_millis(task.pause_after_abort_ms)).await;
        }
    }
}

/// Whether training is over, and if so whether before the last round.
fn over(shared: &Shared, finished: &[FinishedRound]) -> Option<bool> {
    if finished.len() as u64 >= shared.config.task.rounds {
        return Some(false);
    }
    let stop = shared.config.early_stop.as_ref()?;
    let index = shared.config.metric_index(&stop.metric)?;
    let values: Vec<f32> = finished.iter().filter_map(|round| round.metrics.get(index).copied()).collect();
    stop.should_stop(&values).then_some(true)
}

/// The round that a restart interrupted, if it can go on; otherwise it is aborted.
async fn recover(shared: &Shared) -> Result<Option<Active>, CoordinatorError> {
    let Some(stored) = shared.store.open_round(&shared.config.task.name).await? else { return Ok(None) };
    match Active::recover(&shared.store, &stored, shared.round_keys.as_ref()).await {
        Ok(active) => {
            tracing::info!(round = active.number, events = stored.events.len(), "going on after a restart");
            Ok(Some(active))
        }
        Err(RecoverError::Store(error)) => Err(error.into()),
        Err(error) => {
            let reason = format!("it can't go on after a restart: {error}");
            tracing::warn!(round_id = %stored.round_id, %reason, "round aborted");
            shared.store.abort_round(stored.round_id, &reason).await?;
            *shared.last_end.lock().await = Some(End { round_id: stored.round_id, gave_sum: false, reason });
            Ok(None)
        }
    }
}

async fn open(shared: &Shared, last: Option<&FinishedRound>) -> Result<Active, CoordinatorError> {
    let task = &shared.config.task.name;
    let version = last.map_or(0, |round| round.model_version);
    let (model, bytes) = stored_model(shared, version).await?;
    let authority = match &shared.round_keys {
        Some(keys) => {
            let roster = Arc::new(keys.read_roster()?);
            Some(Authority { signing_key: keys.signing_key.clone(), roster })
        }
        None => None,
    };
    let roster = authority.as_ref().map(|authority| authority.roster.head());
    let roster = roster.map_or((0, Vec::new()), |head| (head.epoch, head.root.to_vec()));
    let number = shared.store.last_round_number(task).await? + 1;
    let dimension = model.values().len() as u64;
    let mut params = shared.config.params(number, version, model_hash(&bytes), dimension, roster)?;
    params.opened_at = now();
    Active::open(&shared.store, &params, authority).await.map_err(|error| match error {
        RecoverError::Store(error) => error.into(),
        other => CoordinatorError::Open(other.to_string()),
    })
}

/// Refuses for this round the clients because of which one of the last rounds ended. Not in semi-honest mode, where anybody can
/// take another's name.
async fn suspend(shared: &Shared, active: &mut Active) -> Result<(), CoordinatorError> {
    let rounds = if shared.config.malicious() { shared.config.round.suspend_rounds } else { 0 };
    let last = active.number.saturating_sub(rounds)..active.number;
    for (client, since) in shared.store.suspended(&shared.config.task.name, last).await? {
        let until = since.saturating_add(rounds);
        tracing::warn!(round = active.number, %client, since, until, "client is suspended");
        active.suspend(client, since, until);
    }
    Ok(())
}

async fn stored_model(shared: &Shared, version: u64) -> Result<(Model, Vec<u8>), CoordinatorError> {
    let bytes = shared.store.get_model(&shared.config.task.name, version).await?;
    let damaged = || crate::StoreError::Damaged(format!("version {version} of the model is missing"));
    let bytes = bytes.ok_or_else(damaged)?;
    Ok((Model::from_safetensors(&bytes)?, bytes))
}

/// Plays the round at hand to its end; whether it gave a sum.
async fn play(shared: &Shared, account: &mut Option<Account>) -> Result<bool, CoordinatorError> {
    let mut seconds = Vec::new();
    loop {
        let began = Instant::now();
        wait(shared).await;
        let mut stage = shared.stage.lock().await;
        let Stage::Running(active) = &mut *stage else { return Ok(false) };
        let (round, round_id, phase) = (active.number, active.round_id, active.server().phase());
        let (missing, params) = (active.server().missing(), active.server().params().clone());
        let closed = active.close(&shared.store).await?;
        let took = began.elapsed().as_secs_f64();
        seconds.push((phase, took));
        histogram!("unisono_phase_seconds", "phase" => phase.name()).record(took);
        counter!("unisono_missing_total", "phase" => phase.name()).increment(missing.len() as u64);
        tracing::info!(round, %phase, missing = missing.len(), seconds = took, "phase closed");
        shared.emit(Event::PhaseClosed { round, phase, missing, seconds: took });
        let result = match closed {
            Ok(None) => {
                drop(stage);
                shared.changed();
                continue;
            }
            Ok(Some(outcome)) => Ok(outcome),
            Err(abort) => Err(abort),
        };
        *stage = Stage::Idle;
        drop(stage);
        let sum = match result {
            Ok(outcome) => {
                *shared.last_end.lock().await = Some(End::with_sum(round_id));
                finish(shared, account, round, params, outcome, seconds).await?;
                true
            }
            Err(abort) => {
                tracing::warn!(round, reason = %abort, "round aborted");
                log_reports(round, abort.reports());
                let suspects = abort.suspects();
                record_suspects(shared, round, &suspects, abort.code()).await?;
                shared.store.abort_round(round_id, &abort.to_string()).await?;
                counter!("unisono_rounds_total", "result" => abort.code()).increment(1);
                *shared.last_end.lock().await =
                    Some(End { round_id, gave_sum: false, reason: format!("the round was aborted: {abort}") });
                shared.emit(Event::RoundAborted { round, reason: abort.to_string(), suspects });
                false
            }
        };
        shared.changed();
        return Ok(sum);
    }
}

fn log_reports(round: u64, reports: &[Report]) {
    for report in reports {
        counter!("unisono_reports_total", "what" => report.what.code()).increment(1);
        tracing::warn!(round, about = %report.about, by = %report.by, what = report.what.code(), "reported");
    }
}

/// Keeps the clients that dealt wrong shares out of the rounds to come, in malicious mode. `result` is how the round ended, as in
/// the metric.
async fn record_suspects(
    shared: &Shared,
    round: u64,
    suspects: &[ClientId],
    result: &'static str,
) -> Result<(), CoordinatorError> {
    for &client in suspects {
        tracing::warn!(round, %client, "suspected of having dealt wrong shares");
        if shared.config.malicious() {
            shared.store.suspend(&shared.config.task.name, client, round).await?;
        }
        counter!("unisono_suspects_total", "result" => result).increment(1);
    }
    Ok(())
}

/// Waits until the phase may be closed: everybody has answered, its time is over, or the grace for stragglers is. Phase 0 also
/// waits for `n_min` clients, unless some are suspended: then the round ends, so that their time passes.
async fn wait(shared: &Shared) {
    let (phase, limit) = match &*shared.stage.lock().await {
        Stage::Running(active) => {
            let deadlines = active.server().params().wire.deadlines.unwrap_or_default();
            let phase = active.server().phase();
            (phase, Duration::from_millis(phase.deadline_ms(&deadlines)))
        }
        _ => return,
    };
    gauge!("unisono_phase").set(f64::from(phase as u32));
    let grace = shared.config.round.straggler_grace_ms.map(Duration::from_millis);
    let mut deadline = tokio::time::Instant::now() + limit;
    let mut graced = false;
    loop {
        let late = tokio::time::Instant::now() >= deadline;
        let accepted = shared.accepted.notified();
        match &*shared.stage.lock().await {
            Stage::Running(active) => {
                let server = active.server();
                let enough =
                    phase != Phase::Advertise || server.progress().answered >= server.params().wire.n_min as usize;
                if (late && (enough || server.suspends())) || tokio::task::block_in_place(|| server.ready()) {
                    return;
                }
                if let Some(grace) = grace.filter(|_| !graced && as_promised(server)) {
                    graced = true;
                    deadline = deadline.min(tokio::time::Instant::now() + grace);
                    continue;
                }
            }
            _ => return,
        }
        if late {
            accepted.await;
        } else {
            let _ = tokio::time::timeout_at(deadline, accepted).await;
        }
    }
}

/// Whether as many clients have answered as the assumed drop-out fraction leaves of those who may.
fn as_promised(server: &Server) -> bool {
    let Progress { answered, expected } = server.progress();
    let promised = (1.0 - server.params().wire.delta) * expected as f64;
    answered as f64 + 1e-9 >= promised && answered >= server.params().wire.n_min as usize
}

/// Applies a sum to the model, and records both.
async fn finish(
    shared: &Shared,
    account: &mut Option<Account>,
    round: u64,
    params: Arc<unisono_protocol::params::RoundParams>,
    outcome: Outcome,
    seconds: Vec<(Phase, f64)>,
) -> Result<(), CoordinatorError> {
    let task = &shared.config.task.name;
    log_reports(round, &outcome.reports);
    for misdealt in &outcome.misdealt {
        tracing::warn!(round, what = misdealt.code(), "{misdealt}; there is a sum all the same");
    }
    record_suspects(shared, round, &outcome.suspects(), "sum").await?;
    let survivors = outcome.survivors.len() as u32;
    let dimension = params.wire.dimension as usize;
    let aggregate = params.quantiser.decode(&outcome.sum, dimension, survivors);
    let aggregate = aggregate.map_err(|source| CoordinatorError::Decode { round, source })?;

    let base = params.wire.model_version;
    let (model, _) = stored_model(shared, base).await?;
    let mut moments = read_moments(shared.store.get_moments(task, base).await?)?;
    let values = learning::step(&shared.config.optimizer, &mut moments, model.values(), &aggregate.mean);
    let model = model.with_values(values)?.to_safetensors()?;
    let model_version = base + 1;
    shared.store.put_model(task, model_version, model.clone(), write_moments(&moments)?).await?;
    let finished = FinishedRound {
        round_id: params.round_id,
        model_version,
        cohort: outcome.cohort.len() as u32,
        survivors,
        metrics: aggregate.metrics.clone(),
    };
    shared.store.finish_round(&finished).await?;
    counter!("unisono_rounds_total", "result" => "sum").increment(1);
    let metrics: Vec<String> = shared.config.metrics.iter().zip(&aggregate.metrics).map(named).collect();
    tracing::info!(round, survivors, cohort = finished.cohort, model_version, ?metrics, "round finished");
    let privacy = account.as_mut().map(|account| account.add(&params, survivors, finished.cohort));
    if let Some(spent) = privacy {
        gauge!("unisono_privacy_epsilon").set(spent.total_epsilon);
        let noise_deviation = aggregate.noise_deviation;
        let (epsilon, total_epsilon, delta) = (spent.epsilon, spent.total_epsilon, spent.delta);
        tracing::info!(round, epsilon, total_epsilon, delta, noise_deviation, "privacy spent");
    }
    let result = RoundResult { round, params, outcome, aggregate, model_version, model, seconds, privacy };
    shared.emit(Event::RoundFinished(Arc::new(result)));
    Ok(())
}

fn named((metric, value): (&crate::config::Metric, &f32)) -> String {
    format!("{}={value:.4}", metric.name)
}

fn read_moments(bytes: Option<Vec<u8>>) -> Result<Moments, CoordinatorError> {
    let Some(bytes) = bytes else { return Ok(Moments::default()) };
    let stored = Model::from_safetensors(&bytes)?;
    let part = |name| stored.tensor(name).map(|(_, values)| values.to_vec()).unwrap_or_default();
    Ok(Moments { first: part("first"), second: part("second") })
}

fn write_moments(moments: &Moments) -> Result<Option<Vec<u8>>, CoordinatorError> {
    if moments.first.is_empty() {
        return Ok(None);
    }
    let tensor = |name, values: &Vec<f32>| (name, vec![values.len()], values.clone());
    let model = Model::new([tensor("first", &moments.first), tensor("second", &moments.second)])?;
    Ok(Some(model.to_safetensors()?))
}
