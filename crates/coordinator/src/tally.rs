//! What a task's rounds add up to: the privacy that they have spent, how many sums were not used, how far the watched metric has
//! come. It is kept as a running account, so that old rounds can be deleted.
//!
//! A round counts once its end is recorded, which is one statement. The stored tally says up to which round it counts, and what
//! comes after is added from the rounds' rows when it is read; `storage` deletes a row only when the stored tally counts it. So a
//! kill at any point neither loses a round nor counts one twice.

use std::sync::Arc;

use unisono_protocol::params::RoundParams;
use unisono_protocol::privacy::Accountant;

use crate::learning::Watch;
use crate::privacy::{Account, PrivacySpent};
use crate::storage::{EndedRound, FinishedRound, Store, StoredTally};
use crate::{Config, CoordinatorError, StoreError};

/// The tally of the configuration's task.
pub(crate) struct Tally {
    /// Number of the last round that is counted.
    through: u64,
    discarded: u64,
    account: Account,
    /// `None` without early stop in the configuration.
    watch: Option<Watch>,
    /// Place of the watched metric.
    watched: usize,
    last: Option<FinishedRound>,
    /// Delta of the configuration; `None` without privacy.
    delta: Option<f64>,
}

impl Tally {
    /// Reads what is stored, and adds the rounds since.
    ///
    /// # Errors
    /// [`CoordinatorError::Store`]; also when something is not what was stored, so that nothing spent is left out.
    pub async fn open(store: &Store, config: &Config) -> Result<Self, CoordinatorError> {
        let task = &config.task.name;
        let stored = store.tally(task).await?;
        let since = crate::settings::metrics_since(store, task).await? as u64;
        let fresh = config.early_stop.as_ref().map(|stop| Watch::new(stop, since));
        let counted = stored.as_ref().map_or(0, |stored| stored.through);
        let kept = stored.as_ref().and_then(|stored| stored.watch.as_deref()).and_then(Watch::from_text);
        // What was watched with other settings is of no use: then it is watched anew over the rounds that have rows.
        let kept = kept.filter(|kept| fresh.as_ref().is_some_and(|fresh| fresh.is_like(kept)));
        let anew = fresh.is_some() && kept.is_none() && counted > 0;
        let mut tally = Self {
            through: counted,
            discarded: stored.as_ref().map_or(0, |stored| stored.discarded),
            account: stored.as_ref().map_or_else(|| Ok(Account::default()), read_account)?,
            watch: kept.or(fresh),
            watched: config.early_stop.as_ref().and_then(|stop| config.metric_index(&stop.metric)).unwrap_or(0),
            last: store.last_finished(task).await?,
            delta: config.privacy.map(|privacy| privacy.delta),
        };
        let mut at = if anew { 0 } else { counted };
        loop {
            let rounds = store.ended_rounds(task, at).await?;
            let Some(last) = rounds.last() else { return Ok(tally) };
            at = last.number;
            for round in &rounds {
                tally.count_row(round, round.number > counted)?;
            }
        }
    }

    /// Counts a round that has a row; one that is not `new` only for what is watched.
    fn count_row(&mut self, round: &EndedRound, new: bool) -> Result<(), CoordinatorError> {
        if let Some((version, metrics)) = &round.used {
            self.watch_metrics(*version, metrics);
        }
        if !new {
            return Ok(());
        }
        match RoundParams::from_payload(&round.params) {
            Ok(params) => {
                self.count(&params, round.survivors, round.cohort);
            }
            // It has spent something: without privacy in the configuration it counts as everything.
            Err(error) if self.delta.is_none() => {
                tracing::warn!(round = round.number, %error, "parameters can't be read; for privacy the sum counts as exact");
                self.account.exact = true;
            }
            Err(error) => {
                let number = round.number;
                return Err(StoreError::Damaged(format!("the parameters of round {number}: {error}")).into());
            }
        }
        self.through = round.number;
        self.discarded += u64::from(round.used.is_none());
        Ok(())
    }

    fn count(&mut self, params: &RoundParams, survivors: u32, cohort: u32) -> Option<PrivacySpent> {
        // Any other delta would do where there is none: only the account counts then.
        let epsilon = self.account.add(params, survivors, cohort, self.delta.unwrap_or(0.5));
        let delta = self.delta?;
        Some(PrivacySpent { delta, epsilon, total_epsilon: self.account.epsilon(delta) })
    }

    fn watch_metrics(&mut self, version: u64, metrics: &[f32]) {
        if let (Some(watch), Some(value)) = (&mut self.watch, metrics.get(self.watched)) {
            watch.see(version, *value);
        }
    }

    /// Counts a round whose sum was used; its row is stored.
    pub fn add_finished(&mut self, params: &Arc<RoundParams>, finished: FinishedRound) -> Option<PrivacySpent> {
        let (survivors, cohort) = (finished.survivors, finished.cohort);
        self.watch_metrics(finished.model_version, &finished.metrics);
        self.last = Some(finished);
        self.through = params.wire.round;
        self.count(params, survivors, cohort)
    }

    /// Counts a round whose sum was learned and not used; its row is stored.
    pub fn add_discarded(&mut self, params: &Arc<RoundParams>, survivors: u32, cohort: u32) -> Option<PrivacySpent> {
        self.discarded += 1;
        self.through = params.wire.round;
        self.count(params, survivors, cohort)
    }

    /// Number of the last round whose sum was learned, used or not; 0: none.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// The newest successful round.
    pub fn last(&self) -> Option<&FinishedRound> {
        self.last.as_ref()
    }

    /// Successful rounds: each makes a version of the model.
    pub fn learned(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.model_version)
    }

    /// Epsilon of all sums so far; `None` without privacy.
    pub fn epsilon(&self) -> Option<f64> {
        self.delta.map(|delta| self.account.epsilon(delta))
    }

    /// Whether training is over, and if so whether before the last round. With an epsilon for the whole task, a sum that was
    /// learned and not used counts as a round.
    pub fn over(&self, config: &Config) -> Option<bool> {
        let for_all = config.privacy.is_some_and(|privacy| privacy.epsilon.is_some());
        let unused = if for_all { self.discarded } else { 0 };
        if self.learned() + unused >= config.task.rounds {
            return Some(false);
        }
        let (watch, stop) = (self.watch.as_ref()?, config.early_stop.as_ref()?);
        watch.is_stuck(stop.patience).then_some(true)
    }

    /// As it is stored.
    pub fn to_stored(&self) -> StoredTally {
        StoredTally {
            through: self.through,
            discarded: self.discarded,
            exact: self.account.exact,
            spent: self.account.spent.to_bytes(),
            watch: self.watch.as_ref().map(Watch::to_text),
        }
    }
}

fn read_account(stored: &StoredTally) -> Result<Account, StoreError> {
    let damaged = || StoreError::Damaged("the account of privacy in the task's tally; restore a backup".into());
    let spent = Accountant::from_bytes(&stored.spent).ok_or_else(damaged)?;
    Ok(Account { spent, exact: stored.exact })
}

#[cfg(test)]
mod tests {
    use unisono_protocol::RoundId;

    use super::*;
    use crate::config::example;
    use crate::storage::{DeletedRounds, Event};

    const TASK: &str = "t";

    const PRIVATE: &str = "[privacy]\nnoise_multiplier = 2.0\ndelta = 1e-5";

    fn params(config: &Config, number: u64) -> (Vec<u8>, Arc<RoundParams>) {
        let params = config.params(number, 0, [0; 32], 8, (0, Vec::new())).unwrap();
        let payload = prost::Message::encode_to_vec(&params);
        (payload.clone(), Arc::new(RoundParams::from_payload(&payload).unwrap()))
    }

    /// Rounds as the training loop records them: by number, each used, unless its number divides by 5, or aborted by 3.
    struct World {
        folder: tempfile::TempDir,
        config: Config,
        learned: u64,
    }

    impl World {
        fn new(more: &str) -> Self {
            Self { folder: tempfile::tempdir().unwrap(), config: example(more), learned: 0 }
        }

        async fn open(&self) -> (Store, Tally) {
            let store = Store::open(self.folder.path()).await.unwrap();
            let tally = Tally::open(&store, &self.config).await.unwrap();
            (store, tally)
        }

        /// Ends round `number` with that value of the metric; what is killed before the tally knows of it has `None`.
        async fn play(&mut self, store: &Store, tally: Option<&mut Tally>, number: u64, metric: f32) {
            let round_id = RoundId([number as u8; 32]);
            let (payload, params) = params(&self.config, number);
            let survivors = 4 + (number % 2) as u32;
            store.insert_round(round_id, TASK, number, &payload).await.unwrap();
            if number.is_multiple_of(3) {
                store.abort_round(round_id, "enough").await.unwrap();
            } else if number.is_multiple_of(5) {
                store.discard_round(round_id, "implausible", 5, survivors).await.unwrap();
                tally.map(|tally| tally.add_discarded(&params, survivors, 5));
            } else {
                self.learned += 1;
                let (model_version, metrics) = (self.learned, vec![metric]);
                let finished = FinishedRound { round_id, model_version, cohort: 5, survivors, metrics };
                store.finish_round(&finished).await.unwrap();
                tally.map(|tally| tally.add_finished(&params, finished));
            }
        }
    }

    /// What all rounds up to `last` have spent, from the rounds themselves.
    fn from_all_rounds(config: &Config, last: u64) -> Account {
        let mut account = Account::default();
        for number in (1..=last).filter(|number| !number.is_multiple_of(3)) {
            account.add(&params(config, number).1, 4 + (number % 2) as u32, 5, 0.5);
        }
        account
    }

    #[tokio::test]
    async fn a_round_that_is_given_up_in_its_last_phase_may_have_given_its_sum_and_counts() {
        let world = World::new(PRIVATE);
        let (store, _) = world.open().await;
        for (number, closed) in [(1, 2), (2, 3)] {
            let round_id = RoundId([number as u8; 32]);
            store.insert_round(round_id, TASK, number, &params(&world.config, number).0).await.unwrap();
            store.append_events(round_id, 0, &vec![Event::Close(1); closed]).await.unwrap();
            let stored = store.open_round(TASK).await.unwrap().unwrap();
            store.give_up_round(&stored, "its model can't be stored").await.unwrap();
        }
        let counted = store.ended_rounds(TASK, 0).await.unwrap();
        assert_eq!(counted.len(), 1);
        let round = &counted[0];
        // As few clients as it can have had, of as many: with the least noise.
        assert_eq!((round.number, round.survivors, round.cohort, &round.used), (2, 3, 5, &None));
        let tally = Tally::open(&store, &world.config).await.unwrap();
        assert!(tally.discarded == 1 && tally.epsilon().unwrap() > 0.0);
    }

    #[tokio::test]
    async fn the_account_is_that_of_all_rounds_whatever_was_killed_and_deleted() {
        let mut world = World::new(PRIVATE);
        for number in 1..=40u64 {
            let (store, mut tally) = world.open().await;
            // By turns: the end of the round is recorded and then comes a kill; the tally is stored as well; and rows are deleted.
            match number % 4 {
                0 => world.play(&store, None, number, 1.0).await,
                turn => {
                    world.play(&store, Some(&mut tally), number, 1.0).await;
                    if turn > 1 {
                        store.put_tally(TASK, &tally.to_stored()).await.unwrap();
                    }
                    // Also when the stored tally does not count the last rounds.
                    if turn != 2 {
                        store.delete_rounds(TASK, Some(turn - 1), Some(turn - 1)).await.unwrap();
                    }
                }
            }
            store.close().await;
            drop(store);
            let (store, tally) = world.open().await;
            assert_eq!(tally.account, from_all_rounds(&world.config, number), "round {number}");
            assert!(!tally.account.exact && tally.epsilon().unwrap() > 0.0);
            let discarded = (1..=number).filter(|n| n.is_multiple_of(5) && !n.is_multiple_of(3)).count() as u64;
            assert_eq!((tally.discarded, tally.learned()), (discarded, world.learned));
            assert_eq!(store.last_round_number(TASK).await.unwrap(), number, "numbers never come again");
            store.close().await;
        }
        let store = Store::open(world.folder.path()).await.unwrap();
        let rows = store.ended_rounds(TASK, 0).await.unwrap().len();
        assert!(rows <= 2 + 3, "{rows} rows are left");
    }

    #[tokio::test]
    async fn rounds_that_the_stored_tally_does_not_count_are_not_deleted() {
        let mut world = World::new(PRIVATE);
        let (store, mut tally) = world.open().await;
        for number in 1..=8 {
            world.play(&store, Some(&mut tally), number, 1.0).await;
            if number == 4 {
                store.put_tally(TASK, &tally.to_stored()).await.unwrap();
            }
        }
        // 1, 2 and 4 are counted, 5, 7 and 8 are not.
        let deleted = store.delete_rounds(TASK, Some(0), Some(0)).await.unwrap();
        assert_eq!(deleted, DeletedRounds { finished: 3, aborted: 2 });
        let left: Vec<u64> = store.ended_rounds(TASK, 0).await.unwrap().iter().map(|round| round.number).collect();
        assert_eq!(left, [5, 7, 8]);
        store.put_tally(TASK, &tally.to_stored()).await.unwrap();
        store.delete_rounds(TASK, Some(0), None).await.unwrap();
        // The newest successful one stays: it is what training and release go on from.
        let left: Vec<u64> = store.ended_rounds(TASK, 0).await.unwrap().iter().map(|round| round.number).collect();
        assert_eq!(left, [8]);
        assert_eq!(store.last_finished(TASK).await.unwrap().unwrap().model_version, 5);
        // Numbers never come again, also when the row of the highest one is gone.
        world.play(&store, Some(&mut tally), 9, 1.0).await;
        assert_eq!(store.delete_rounds(TASK, Some(0), Some(0)).await.unwrap().aborted, 1);
        assert_eq!(store.last_round_number(TASK).await.unwrap(), 9);
        store.close().await;
        drop(store);
        assert_eq!(world.open().await.1.account, from_all_rounds(&world.config, 8));
    }

    #[tokio::test]
    async fn a_sum_without_noise_is_remembered_when_its_round_is_deleted_and_privacy_comes_later() {
        let mut world = World::new("");
        let (store, mut tally) = world.open().await;
        for number in [1, 2, 4] {
            world.play(&store, Some(&mut tally), number, 1.0).await;
        }
        assert_eq!(tally.epsilon(), None);
        store.put_tally(TASK, &tally.to_stored()).await.unwrap();
        store.delete_rounds(TASK, Some(0), Some(0)).await.unwrap();
        store.close().await;
        drop(store);
        world.config = example(PRIVATE);
        assert_eq!(world.open().await.1.epsilon(), Some(f64::INFINITY));
    }

    #[tokio::test]
    async fn an_account_that_is_none_is_told_and_not_begun_anew() {
        let mut world = World::new(PRIVATE);
        let (store, mut tally) = world.open().await;
        world.play(&store, Some(&mut tally), 1, 1.0).await;
        let spent = vec![255; Accountant::BYTES];
        store.put_tally(TASK, &StoredTally { spent, ..tally.to_stored() }).await.unwrap();
        let error = Tally::open(&store, &world.config).await.err().unwrap();
        assert!(!error.may_pass() && error.to_string().contains("restore a backup"), "{error}");
    }

    #[tokio::test]
    async fn early_stop_is_the_same_with_and_without_the_rows_of_old_rounds() {
        let stop = |metric: &str| {
            let metrics = "[[metric]]\nname = \"loss\"\nlower = 0.0\nupper = 9.0\n";
            let watched = format!("metric = \"{metric}\"\nbetter = \"lower\"\npatience = 4\nmin_improvement = 0.1");
            format!("{metrics}[early_stop]\n{watched}")
        };
        // The best is in a round that is deleted, and what comes after is better than its own predecessors only.
        let values = [1.0, 0.5, 3.0, 2.0, 1.0, 0.6];
        let mut over = Vec::new();
        for keep in [None, Some(1)] {
            let mut world = World::new(&stop("loss"));
            let (store, mut tally) = world.open().await;
            for (number, value) in [1u64, 2, 4, 7, 8, 11].into_iter().zip(values) {
                world.play(&store, Some(&mut tally), number, value).await;
                store.put_tally(TASK, &tally.to_stored()).await.unwrap();
                store.delete_rounds(TASK, keep, keep).await.unwrap();
                let again = Tally::open(&store, &world.config).await.unwrap();
                assert_eq!(again.over(&world.config), tally.over(&world.config));
                assert_eq!(again.watch, tally.watch);
                over.push(again.over(&world.config));
            }
            // Another setting: over what is left.
            world.config.early_stop.as_mut().unwrap().min_improvement = 0.3;
            let other = Tally::open(&store, &world.config).await.unwrap();
            assert_eq!(other.over(&world.config), if keep.is_none() { Some(true) } else { None });
        }
        let (all, few) = over.split_at(values.len());
        assert_eq!(all, few);
        assert_eq!(all, [None, None, None, None, None, Some(true)]);
    }
}
