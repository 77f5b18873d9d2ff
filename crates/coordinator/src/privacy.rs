//! What the task's sums have spent of differential privacy. It is counted from the recorded rounds, so a restart forgets nothing.

use unisono_protocol::params::RoundParams;
use unisono_protocol::privacy::Accountant;

use crate::{CoordinatorError, Shared, StoreError};

/// What sums have spent, counted with those who were in them; zero-out adjacency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrivacySpent {
    /// The delta of the configuration.
    pub delta: f64,
    /// Epsilon of this round.
    pub epsilon: f64,
    /// Epsilon of all the task's sums so far, for a device that took part in all; infinite when one of them had no noise.
    pub total_epsilon: f64,
}

/// The task's account.
pub(crate) struct Account {
    delta: f64,
    spent: Accountant,
    /// Whether a sum without noise is among the task's.
    exact: bool,
}

impl Account {
    /// The account of the recorded rounds; `None` without privacy in the configuration.
    pub async fn open(shared: &Shared) -> Result<Option<Self>, CoordinatorError> {
        let Some(privacy) = &shared.config.privacy else { return Ok(None) };
        let mut account = Self { delta: privacy.delta, spent: Accountant::new(), exact: false };
        for (payload, cohort, survivors) in shared.store.finished_params(&shared.config.task.name).await? {
            let damaged = |error| StoreError::Damaged(format!("the parameters of a finished round: {error}"));
            account.add(&RoundParams::from_payload(&payload).map_err(damaged)?, survivors, cohort);
        }
        Ok(Some(account))
    }

    /// Counts a sum.
    pub fn add(&mut self, params: &RoundParams, survivors: u32, cohort: u32) -> PrivacySpent {
        let delta = self.delta;
        let epsilon = match params.guarantee_of(survivors, cohort) {
            Some(guarantee) => {
                self.spent.add(&guarantee, 1);
                guarantee.epsilon(delta)
            }
            None => {
                self.exact = true;
                f64::INFINITY
            }
        };
        let total_epsilon = if self.exact { f64::INFINITY } else { self.spent.epsilon(delta) };
        PrivacySpent { delta, epsilon, total_epsilon }
    }
}
