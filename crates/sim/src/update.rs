//! What simulated clients contribute: generated when it is needed, never stored.

use std::sync::Arc;

use rand::RngExt;

use crate::population::{Purpose, rng};

/// One client's contribution to one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The update, `d` elements.
    pub values: Vec<f32>,
    /// The trainer's metrics, one for each interval of the quantiser.
    pub metrics: Vec<f32>,
    /// Weight, above 0 up to the quantiser's `max_weight`.
    pub weight: f32,
}

/// Gives the contribution of a client (from 0) to a round (from 1). Called on any thread, in any order, at most once for each
/// pair; reproducible simulations need it to depend on nothing else.
pub type UpdateSource = Arc<dyn Fn(u32, u64) -> Update + Send + Sync>;

/// Uniform values within `clip`, weight `max_weight`.
pub(crate) fn generated(seed: u64, dimension: usize, clip: f32, metrics: Vec<f32>, max_weight: f32) -> UpdateSource {
    Arc::new(move |client, round| {
        let mut rng = rng(seed, Purpose::Update, client.into(), round);
        let values = (0..dimension).map(|_| rng.random_range(-clip..=clip)).collect();
        Update { values, metrics: metrics.clone(), weight: max_weight }
    })
}
