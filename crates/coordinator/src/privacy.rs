//! What the task's sums have spent of differential privacy.

use unisono_protocol::params::RoundParams;
use unisono_protocol::privacy::Accountant;

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

/// The task's account. It is kept also without privacy in the configuration: a later configuration may have some.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Account {
    /// Of the sums with noise.
    pub spent: Accountant,
    /// Whether a sum without noise is among the task's.
    pub exact: bool,
}

impl Account {
    /// Counts a sum; its epsilon at `delta`.
    pub fn add(&mut self, params: &RoundParams, survivors: u32, cohort: u32, delta: f64) -> f64 {
        match params.guarantee_of(survivors, cohort) {
            Some(guarantee) => {
                self.spent.add(&guarantee, 1);
                guarantee.epsilon(delta)
            }
            None => {
                self.exact = true;
                f64::INFINITY
            }
        }
    }

    /// Epsilon of all that is counted, at `delta`.
    pub fn epsilon(&self, delta: f64) -> f64 {
        if self.exact { f64::INFINITY } else { self.spent.epsilon(delta) }
    }
}
