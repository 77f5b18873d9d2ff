//! The loop over rounds: opens them, closes their phases, applies their sums, and releases the model at the end.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use unisono_protocol::degree::drop_outs;
use unisono_protocol::params::RoundParams;
use unisono_protocol::server::{Authority, Outcome, Phase, Report, Server};
use unisono_protocol::{ClientId, RoundId};
use unisono_wire::model::{Model, model_hash};

use crate::active::{Active, RecoverError};
use crate::admin::What;
use crate::storage::FinishedRound;
use crate::sums::{Applied, apply};
use crate::tally::Tally;
use crate::waiting::{Next, wait};
use crate::{CoordinatorError, End, Event, Failed, PrivacySpent, RoundResult, Shared, Stage, StoreError, models, now};

/// First pause before what failed is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause where waiting may help by itself, as with a full disk.
const LONGEST_PASSING: Duration = Duration::from_secs(10);
/// Longest pause where somebody has to do something.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A round that fails so often in the same way when it is replayed is aborted.
const MOST_REPLAYS: u64 = 2;

/// Runs rounds until the task is finished. What fails is told, counted and tried again: devices are asked to wait meanwhile, and never
/// told that the task is finished.
pub(crate) async fn run(shared: Arc<Shared>) -> Result<(), CoordinatorError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let replayed = Mutex::new(None);
        let error = match catch_panic(train(&shared, &replayed)).await {
            Ok(Ok(())) => {
                gauge!("unisono_task_failed").set(0.0);
                shared.enter(Stage::Finished).await;
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(panic) => CoordinatorError::Panicked(panic),
        };
        let longest = if error.may_pass() { LONGEST_PASSING } else { LONGEST_PAUSE };
        if began.elapsed() > 2 * LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        counter!("unisono_task_failures_total", "reason" => error.code()).increment(1);
        gauge!("unisono_task_failed").set(1.0);
        tracing::error!(%error, code = error.code(), retry_in = ?pause, "training can't go on; trying again");
        shared.enter(Stage::Failed(Failed { code: error.code(), reason: error.to_string() })).await;
        let round = *replayed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round_id) = round.filter(|_| !error.may_pass())
            && let Err(error) = failed_again(&shared, round_id, &error.to_string()).await
        {
            tracing::error!(%error, "a round that fails again and again could not be aborted");
        }
        rest(&shared, pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// The future's result, or what it panicked with.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = std::pin::pin!(future);
    let poll = |context: &mut std::task::Context<'_>| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
            Ok(std::task::Poll::Ready(value)) => std::task::Poll::Ready(Ok(value)),
            Err(panic) => std::task::Poll::Ready(Err(panic_text(&*panic))),
        }
    };
    std::future::poll_fn(poll).await
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}

/// Counts that a replayed round failed, and aborts it when that was so often enough.
async fn failed_again(shared: &Shared, round_id: RoundId, reason: &str) -> Result<(), StoreError> {
    let times = shared.store.count_replay_failure(round_id, reason).await?;
    if times < MOST_REPLAYS {
        return Ok(());
    }
    let reason = format!("it failed in the same way when it was replayed {times} times: {reason}");
    tracing::error!(%round_id, %reason, "round aborted");
    counter!("unisono_rounds_total", "result" => "replay_failed").increment(1);
    let stored = shared.store.open_round(&shared.config.task.name).await?;
    let Some(stored) = stored.filter(|stored| stored.round_id == round_id) else { return Ok(()) };
    shared.store.give_up_round(&stored, &reason).await?;
    shared.emit(Event::RoundAborted { round: shared.asked.reached(), reason: reason.clone(), suspects: Vec::new() });
    *shared.last_end.lock().await = Some(End { round_id, gave_sum: false, reason });
    Ok(())
}

/// A pause while training can't go on; an operator's order ends it.
async fn rest(shared: &Shared, pause: Duration) {
    let until = tokio::time::Instant::now() + pause;
    loop {
        let given = shared.orders.given.notified();
        if let Some(order) = shared.orders.take() {
            let result = order_at_rest(shared, &order.what).await;
            order.done(result.unwrap_or_else(|error| Err(error.to_string())));
            return;
        }
        if tokio::time::timeout_at(until, given).await.is_err() {
            return;
        }
    }
}

/// Carries out an order while no round is at hand, though one may be stored.
async fn order_at_rest(shared: &Shared, what: &What) -> Result<Result<String, String>, StoreError> {
    let task = &shared.config.task.name;
    let open = shared.store.open_round(task).await?;
    let reason = match what {
        What::Abort if open.is_none() => return Ok(Err("no round is open".into())),
        What::Abort => "an operator aborted it".to_owned(),
        What::SkipTo(number) => {
            let last = shared.store.last_round_number(task).await?;
            if *number <= last {
                return Ok(Err(format!("round {number} is not above round {last}, the last one")));
            }
            shared.store.raise_round_floor(task, number - 1).await?;
            format!("an operator skipped to round {number}")
        }
    };
    if let Some(open) = open {
        shared.store.give_up_round(&open, &reason).await?;
        *shared.last_end.lock().await = Some(End { round_id: open.round_id, gave_sum: false, reason: reason.clone() });
    }
    Ok(Ok(reason))
}

async fn train(shared: &Shared, replayed: &Mutex<Option<RoundId>>) -> Result<(), CoordinatorError> {
    let task = &shared.config.task;
    let mut tally = Tally::open(&shared.store, &shared.config).await?;
    if let Some(epsilon) = tally.epsilon() {
        gauge!("unisono_privacy_epsilon").set(epsilon);
    }
    loop {
        // What is over can be deleted meanwhile.
        shared.tallies.send_replace(Some(tally.to_stored()));
        if let Some(last) = tally.last() {
            // After a restart: devices may not know yet that it is.
            shared.last_end.lock().await.get_or_insert_with(|| End::with_sum(last.round_id));
        }
        shared.asked.reach(shared.store.last_round_number(&task.name).await?);
        shared.asked.summed(tally.through());
        if let Some(early) = tally.over(&shared.config) {
            if let Some(roster) = shared.roster().await? {
                crate::check_publisher(&roster, shared.release_keys.as_ref())?;
            }
            models::release(shared, tally.last()).await?;
            models::close(shared).await?;
            shared.emit(Event::TrainingFinished { rounds: tally.learned(), early });
            tracing::info!(rounds = tally.learned(), early, "training is finished");
            return Ok(());
        }
        let mut active = match recover(shared, replayed).await? {
            Some(active) => active,
            None => open(shared, tally.learned()).await?,
        };
        models::seal_base(shared, active.server().params()).await?;
        suspend(shared, &mut active).await?;
        if let (Some(keys), true) = (&shared.release_keys, shared.config.malicious()) {
            active.sign_base_model(&keys.publisher);
        }
        let (round, round_id, phase) = (active.number, active.round_id, active.server().phase());
        shared.asked.reach(round);
        gauge!("unisono_round").set(round as f64);
        gauge!("unisono_task_failed").set(0.0);
        tracing::info!(round, %round_id, %phase, "round opened");
        shared.emit(Event::RoundOpened { round, round_id, phase });
        shared.enter(Stage::Running(Box::new(active))).await;
        let sum = play(shared, &mut tally).await?;
        *replayed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !sum {
            tokio::time::sleep(Duration::from_millis(task.pause_after_abort_ms)).await;
        }
    }
}

/// Says how many drop-outs the cohort that has just been closed withstands, louder where that is fewer than `delta` says.
fn say_tolerance(server: &Server) {
    let (params, clients) = (server.params(), server.progress().expected as u32);
    let tolerated = params.topology(clients).ok().and_then(|topology| topology.tolerated_drop_outs(clients));
    // A sparse graph is made for delta.
    let Some(tolerated) = tolerated else { return };
    let (round, delta) = (params.wire.round, params.wire.delta);
    // Of fewer than five none can be spared, whatever delta says.
    if tolerated < drop_outs(clients.max(5), &params.assumptions) {
        tracing::warn!(round, clients, tolerated, delta, "the cohort withstands fewer drop-outs than delta says");
    } else {
        tracing::info!(round, clients, tolerated, "drop-outs that the cohort withstands");
    }
}

/// The round that a restart interrupted, if it can go on; otherwise it is aborted.
async fn recover(shared: &Shared, replayed: &Mutex<Option<RoundId>>) -> Result<Option<Active>, CoordinatorError> {
    let Some(stored) = shared.store.open_round(&shared.config.task.name).await? else { return Ok(None) };
    *replayed.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored.round_id);
    let in_force = shared.roster().await.ok().flatten();
    match Active::recover(&shared.store, &stored, shared.round_keys.as_ref(), in_force).await {
        Ok(active) => {
            tracing::info!(round = active.number, events = stored.events.len(), "going on after a restart");
            Ok(Some(active))
        }
        Err(RecoverError::Store(error)) if error.may_pass() => Err(error.into()),
        // What it needs is missing or damaged, or it is another round by now.
        Err(error) => {
            let reason = format!("it can't go on after a restart: {error}");
            tracing::warn!(round_id = %stored.round_id, %reason, "round aborted");
            counter!("unisono_rounds_total", "result" => "not_recovered").increment(1);
            shared.store.give_up_round(&stored, &reason).await?;
            *shared.last_end.lock().await = Some(End { round_id: stored.round_id, gave_sum: false, reason });
            *replayed.lock().unwrap_or_else(PoisonError::into_inner) = None;
            Ok(None)
        }
    }
}

async fn open(shared: &Shared, version: u64) -> Result<Active, CoordinatorError> {
    let task = &shared.config.task.name;
    let (model, bytes) = stored_model(shared, version).await?;
    let authority = match (&shared.round_keys, shared.roster().await?) {
        (Some(keys), Some(roster)) => Some(Authority { signing_key: keys.signing_key.clone(), roster }),
        _ => None,
    };
    let roster = authority.as_ref().map(|authority| authority.roster.head());
    let roster = roster.map_or((0, Vec::new()), |head| (head.epoch, head.root.to_vec()));
    if let Some(keys) = &shared.round_keys {
        // No round is open that has an older one.
        shared.store.forget_rosters_before(&keys.registrar, roster.0).await?;
    }
    let number = shared.store.last_round_number(task).await? + 1;
    let dimension = model.values().len() as u64;
    let mut params = shared.config.params(number, version, model_hash(&bytes), dimension, roster)?;
    shared.config.set_clips(&mut params, &model)?;
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

pub async fn stored_model(shared: &Shared, version: u64) -> Result<(Model, Vec<u8>), CoordinatorError> {
    let bytes = shared.store.get_model(&shared.config.task.name, version).await?;
    let damaged = || crate::StoreError::Damaged(format!("version {version} of the model is missing"));
    let bytes = bytes.ok_or_else(damaged)?;
    Ok((Model::from_safetensors(&bytes)?, bytes))
}

/// Plays the round at hand to its end; whether it gave a sum that was used.
async fn play(shared: &Shared, tally: &mut Tally) -> Result<bool, CoordinatorError> {
    let mut seconds = Vec::new();
    loop {
        let began = Instant::now();
        let next = wait(shared).await;
        let mut stage = shared.stage.lock().await;
        let Stage::Running(active) = &mut *stage else { return Ok(false) };
        let (round, round_id, phase) = (active.number, active.round_id, active.server().phase());
        if let Next::End { reason, code, skip_to, order } = next {
            *stage = Stage::Idle;
            drop(stage);
            let ended = end_early(shared, round, round_id, &reason, code, skip_to).await;
            if let Some(order) = order {
                order.done(ended.as_ref().map(|()| format!("round {round}: {reason}")).map_err(ToString::to_string));
            }
            ended?;
            return Ok(false);
        }
        let (missing, params) = (active.server().missing(), active.server().params().clone());
        let closed = active.close(&shared.store).await?;
        let took = began.elapsed().as_secs_f64();
        seconds.push((phase, took));
        histogram!("unisono_phase_seconds", "phase" => phase.name()).record(took);
        counter!("unisono_missing_total", "phase" => phase.name()).increment(missing.len() as u64);
        tracing::info!(round, %phase, missing = missing.len(), seconds = took, "phase closed");
        if phase == Phase::Advertise && matches!(closed, Ok(None)) {
            say_tolerance(active.server());
        }
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
        // Told before the round is gone: a device that asks in between would take it for a missed one.
        *shared.last_end.lock().await = Some(match &result {
            Ok(_) => End::with_sum(round_id),
            Err(abort) => End { round_id, gave_sum: false, reason: format!("the round was aborted: {abort}") },
        });
        *stage = Stage::Idle;
        drop(stage);
        reset_gauges();
        let sum = match result {
            Ok(outcome) => {
                let after_advertise: f64 = seconds.iter().skip(1).map(|(_, seconds)| seconds).sum();
                *shared.pace.lock().unwrap_or_else(PoisonError::into_inner) =
                    Duration::try_from_secs_f64(after_advertise).ok();
                finish(shared, tally, round, params, outcome, seconds).await?
            }
            Err(abort) => {
                tracing::warn!(round, reason = %abort, "round aborted");
                log_reports(round, abort.reports());
                let suspects = abort.suspects();
                record_suspects(shared, round, &suspects, abort.code()).await?;
                shared.store.abort_round(round_id, &abort.to_string()).await?;
                counter!("unisono_rounds_total", "result" => abort.code()).increment(1);
                shared.emit(Event::RoundAborted { round, reason: abort.to_string(), suspects });
                false
            }
        };
        shared.changed();
        return Ok(sum);
    }
}

/// Ends the round at hand without a sum, for another reason than the protocol's.
async fn end_early(
    shared: &Shared,
    round: u64,
    round_id: RoundId,
    reason: &str,
    code: &'static str,
    skip_to: Option<u64>,
) -> Result<(), StoreError> {
    tracing::warn!(round, reason, "round aborted");
    reset_gauges();
    if let Some(number) = skip_to {
        shared.store.raise_round_floor(&shared.config.task.name, number - 1).await?;
    }
    shared.store.abort_round(round_id, reason).await?;
    counter!("unisono_rounds_total", "result" => code).increment(1);
    *shared.last_end.lock().await = Some(End { round_id, gave_sum: false, reason: reason.to_owned() });
    shared.emit(Event::RoundAborted { round, reason: reason.to_owned(), suspects: Vec::new() });
    shared.changed();
    Ok(())
}

/// Between rounds no phase is at hand.
fn reset_gauges() {
    for name in ["unisono_phase_answered", "unisono_phase_expected", "unisono_phase_late"] {
        gauge!(name).set(0.0);
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

/// Applies a sum to the model, and records both; whether it was used. One that is not ends its round, and training goes on.
async fn finish(
    shared: &Shared,
    tally: &mut Tally,
    round: u64,
    params: Arc<RoundParams>,
    outcome: Outcome,
    seconds: Vec<(Phase, f64)>,
) -> Result<bool, CoordinatorError> {
    let task = &shared.config.task.name;
    log_reports(round, &outcome.reports);
    for misdealt in &outcome.misdealt {
        tracing::warn!(round, what = misdealt.code(), "{misdealt}; there is a sum all the same");
    }
    record_suspects(shared, round, &outcome.suspects(), "sum").await?;
    let (cohort, survivors) = (outcome.cohort.len() as u32, outcome.survivors.len() as u32);
    let applied = apply(shared, &params, &outcome).await?;
    // Learned is learned, whether it is used or not.
    let tell = |spent: &PrivacySpent| {
        gauge!("unisono_privacy_epsilon").set(spent.total_epsilon);
        let (epsilon, total_epsilon, delta) = (spent.epsilon, spent.total_epsilon, spent.delta);
        tracing::info!(round, epsilon, total_epsilon, delta, "privacy spent");
    };
    let Applied { aggregate, model, moments } = match applied {
        Ok(applied) => applied,
        Err(unused) => {
            let reason = format!("the sum is not used: {unused}");
            tracing::error!(round, survivors, cohort, code = unused.code(), %reason, "round ended");
            shared.store.discard_round(params.round_id, &reason, cohort, survivors).await?;
            counter!("unisono_rounds_total", "result" => unused.code()).increment(1);
            tally.add_discarded(&params, survivors, cohort).inspect(tell);
            shared.emit(Event::RoundAborted { round, reason, suspects: Vec::new() });
            return Ok(false);
        }
    };
    let model_version = params.wire.model_version + 1;
    shared.store.put_model(task, model_version, model.clone(), moments).await?;
    let metrics = aggregate.metrics.clone();
    let finished = FinishedRound { round_id: params.round_id, model_version, cohort, survivors, metrics };
    shared.store.finish_round(&finished).await?;
    counter!("unisono_rounds_total", "result" => "sum").increment(1);
    let metrics: Vec<String> = shared.config.metrics.iter().zip(&aggregate.metrics).map(named).collect();
    tracing::info!(
        round,
        survivors,
        cohort,
        model_version,
        noise_deviation = aggregate.noise_deviation,
        ?metrics,
        "round finished"
    );
    let privacy = tally.add_finished(&params, finished).inspect(tell);
    let result = RoundResult { round, params, outcome, aggregate, model_version, model, seconds, privacy };
    shared.emit(Event::RoundFinished(Arc::new(result)));
    Ok(true)
}

fn named((metric, value): (&crate::config::Metric, &f32)) -> String {
    format!("{}={value:.4}", metric.name)
}
