//! The settings with which a task learns, and what becomes of a change over a used state folder: what was learned would be ignored or
//! mislabelled, so it is refused unless it is accepted by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use unisono_wire::model::model_hash;

use crate::config::{Config, Metric, Mode, Rounding, TensorClip};
use crate::storage::Store;
use crate::{CoordinatorError, StoreError};

/// The stored name of how many rounds were learned before the metrics were changed.
const METRICS_SINCE: &str = "metric.since";
const INITIAL_MODEL: &str = "task.initial_model";
const METRIC: &str = "metric";

/// A setting that differs from the one that is stored with the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name, as `--accept-changes` takes it.
    pub setting: String,
    /// With what the task has learned.
    pub stored: String,
    /// What the configuration says.
    pub new: String,
    /// Successful rounds that rule it out altogether; 0: it can be accepted.
    pub ruled_out_by: u64,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: stored {}, new {}", self.setting, self.stored, self.new)?;
        match self.ruled_out_by {
            0 => Ok(()),
            rounds => write!(
                f,
                " (no longer possible, {rounds} rounds have been learned: give the task another name, or another state_dir)"
            ),
        }
    }
}

/// Lists changes, one a line, and what to do.
pub(crate) fn list(changes: &[Change]) -> String {
    let lines: String = changes.iter().map(|change| format!("  {change}\n")).collect();
    let names: Vec<&str> = changes.iter().filter(|c| c.ruled_out_by == 0).map(|c| c.setting.as_str()).collect();
    let accept = match names.as_slice() {
        [] => String::new(),
        names => format!(", or accept by name: --accept-changes {}", names.join(",")),
    };
    format!("\n{lines}put the stored values back{accept}")
}

/// The settings that decide what is learned, as text. `model` is the initial model as it is stored; absent: its file is gone.
fn of(config: &Config, model: Option<&[u8]>) -> BTreeMap<String, String> {
    let q = &config.quantiser;
    let metric = |m: &Metric| format!("{} from {:?} to {:?}", m.name, m.lower, m.upper);
    let clip = |c: &TensorClip| format!("{} {:?}", c.tensors, c.clip);
    let metrics: Vec<String> = config.metrics.iter().map(metric).collect();
    let none = || "none".to_owned();
    let privacy = config.privacy.as_ref().map_or_else(none, |p| match (p.noise_multiplier, p.epsilon) {
        (Some(multiplier), _) => format!("noise_multiplier {multiplier:?}, delta {:?}", p.delta),
        (None, epsilon) => {
            let rounds = config.task.rounds;
            format!("epsilon {:?} in {rounds} rounds, delta {:?}", epsilon.unwrap_or_default(), p.delta)
        }
    });
    let mode = match config.round.mode {
        Mode::Malicious => "malicious",
        Mode::SemiHonest => "semi-honest",
    };
    let rounding = match q.rounding {
        Rounding::Stochastic => "stochastic",
        Rounding::Deterministic => "deterministic",
    };
    let mut settings = vec![
        (METRIC, if metrics.is_empty() { none() } else { metrics.join(", ") }),
        ("optimizer", serde_json::to_string(&config.optimizer).unwrap_or_default()),
        ("privacy", privacy),
        ("quantiser.bits", q.bits.to_string()),
        ("quantiser.clip", format!("{:?}", q.clip)),
        (
            "quantiser.clips",
            if q.clips.is_empty() { none() } else { q.clips.iter().map(clip).collect::<Vec<_>>().join(", ") },
        ),
        ("quantiser.l2_clip", q.l2_clip.map_or_else(none, |clip| format!("{clip:?}"))),
        ("quantiser.max_weight", format!("{:?}", q.max_weight)),
        ("quantiser.rotate", q.rotate.to_string()),
        ("quantiser.rounding", rounding.to_owned()),
        ("round.mode", mode.to_owned()),
    ];
    settings.extend(model.map(|model| (INITIAL_MODEL, hex(&model_hash(model)))));
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn hex(hash: &[u8; 32]) -> String {
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a task has learned with, and what it is to go on with.
struct Compared {
    new: BTreeMap<String, String>,
    changes: Vec<Change>,
    /// The initial model, where its file can be read.
    model: Option<Vec<u8>>,
    /// Whether the first version of the model is stored.
    model_stored: bool,
    learned: u64,
}

async fn compare(store: &Store, config: &Config) -> Result<Compared, CoordinatorError> {
    let task = &config.task.name;
    let mut stored = store.settings(task).await?;
    let first = store.get_model(task, 0).await?;
    // Once something is learned, the first version need not be there any more.
    let learned = store.current_version(task).await?;
    let model = match config.initial_model() {
        Ok(model) => Some(model.to_safetensors()?),
        // The state has it.
        Err(error) if first.is_some() || learned > 0 => {
            tracing::warn!(%error, "the initial model can't be read; the stored one counts");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut new = of(config, model.as_deref());
    // A state of an earlier version has no settings, but the model. It is noted now: the model may be deleted.
    if let (false, Some(first)) = (stored.contains_key(INITIAL_MODEL), &first) {
        let hash = hex(&model_hash(first));
        new.entry(INITIAL_MODEL.into()).or_insert_with(|| hash.clone());
        stored.insert(INITIAL_MODEL.into(), hash);
    }
    let change = |(name, new): (&String, &String)| {
        let stored = stored.get(name).filter(|stored| *stored != new)?;
        let ruled_out_by = if name == INITIAL_MODEL { learned } else { 0 };
        Some(Change { setting: name.clone(), stored: stored.clone(), new: new.clone(), ruled_out_by })
    };
    let changes = new.iter().filter_map(change).collect();
    Ok(Compared { new, changes, model, model_stored: first.is_some(), learned })
}

/// Compares the configuration with what is stored with its task. Changes that are not in `accept` are refused. What is accepted is
/// stored, and a round that was opened with the settings before is aborted.
///
/// # Errors
/// [`CoordinatorError::Changed`], [`CoordinatorError::NoSuchSetting`], the storage, or the initial model of a task that has not begun.
pub(crate) async fn settle(store: &Store, config: &Config, accept: &[String]) -> Result<(), CoordinatorError> {
    let task = &config.task.name;
    let Compared { mut new, changes, model, model_stored, learned } = compare(store, config).await?;
    let known = |name: &String| name == INITIAL_MODEL || new.contains_key(name);
    if let Some(name) = accept.iter().find(|name| !known(name)) {
        let known = new.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(CoordinatorError::NoSuchSetting { name: name.clone(), known });
    }
    let refused = |change: &&Change| change.ruled_out_by > 0 || !accept.contains(&change.setting);
    let refused: Vec<Change> = changes.iter().filter(refused).cloned().collect();
    if !refused.is_empty() {
        return Err(CoordinatorError::Changed { task: task.clone(), changes: refused });
    }
    for Change { setting, stored, new, .. } in &changes {
        tracing::warn!(setting, stored, new, "changed setting accepted");
    }
    if !changes.is_empty()
        && let Some(open) = store.open_round(task).await?
    {
        store.abort_round(open.round_id, "the task's settings were changed").await?;
    }
    let changed = |name| changes.iter().any(|change| change.setting == name);
    if changed(METRIC) {
        new.insert(METRICS_SINCE.into(), learned.to_string());
    }
    if let Some(model) = model.filter(|_| (!model_stored && learned == 0) || changed(INITIAL_MODEL)) {
        store.put_model(task, 0, model, None).await?;
    }
    Ok(store.put_settings(task, &new).await?)
}

/// The changes that a start with this configuration would refuse. The state folder is not changed; one that is not there has none.
///
/// # Errors
/// The storage, or the initial model.
pub async fn changes(config: &Config) -> Result<Vec<Change>, CoordinatorError> {
    let Some(store) = Store::open_to_read(&config.state_dir).await? else { return Ok(Vec::new()) };
    let compared = compare(&store, config).await;
    store.close().await;
    Ok(compared?.changes)
}

/// How many of the task's successful rounds have other metrics than it has now: these count for no early stop.
pub(crate) async fn metrics_since(store: &Store, task: &str) -> Result<usize, StoreError> {
    Ok(store.settings(task).await?.get(METRICS_SINCE).and_then(|rounds| rounds.parse().ok()).unwrap_or(0))
}

/// Whether there is a state of a coordinator in a folder.
pub(crate) fn is_state(folder: &Path) -> bool {
    folder.join("coordinator.sqlite").is_file()
}

#[cfg(test)]
mod tests {
    use unisono_protocol::RoundId;
    use unisono_wire::model::Model;

    use super::*;
    use crate::storage::{FinishedRound, Outdated};

    #[tokio::test]
    async fn the_first_version_may_go_once_something_is_learned() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).await.unwrap();
        let file = folder.path().join("initial.safetensors");
        let mut config = crate::config::example("");
        config.task.initial_model = file.clone();
        let model = |x: f32| Model::new([("w", vec![2], vec![x, x])]).unwrap().to_safetensors().unwrap();
        // A state of an earlier version: it has the model and no settings, and the file is gone.
        store.put_model("t", 0, model(1.0), None).await.unwrap();
        settle(&store, &config, &[]).await.unwrap();
        store.insert_round(RoundId([1; 32]), "t", 1, b"parameters").await.unwrap();
        let (round_id, metrics) = (RoundId([1; 32]), Vec::new());
        let finished = FinishedRound { round_id, model_version: 1, cohort: 4, survivors: 4, metrics };
        store.put_model("t", 1, model(2.0), None).await.unwrap();
        store.finish_round(&finished).await.unwrap();
        assert!(store.delete_version("t", 0, Outdated::Version).await.unwrap());
        for _ in 0..2 {
            // Without the file, and with the one that it was.
            settle(&store, &config, &[]).await.unwrap();
            std::fs::write(&file, model(1.0)).unwrap();
        }
        assert!(store.get_model("t", 0).await.unwrap().is_none(), "nothing is put back");
        std::fs::write(&file, model(3.0)).unwrap();
        let error = settle(&store, &config, &[INITIAL_MODEL.into()]).await.unwrap_err();
        let CoordinatorError::Changed { changes, .. } = &error else { panic!("{error}") };
        assert_eq!((changes.len(), changes[0].ruled_out_by), (1, 1), "{error}");
    }
}
