//! What an application implements: from a model to an update.

use std::sync::Arc;

use unisono_protocol::params::RoundParams;
use unisono_wire::model::Model;

/// What a trainer reports when it can't give an update. The round is missed, later ones are tried; the coordinator is told not to wait.
pub type TrainError = Box<dyn std::error::Error + Send + Sync>;

/// One round, as a trainer sees it.
#[derive(Debug, Clone)]
pub struct TrainingRound {
    /// The round's parameters: number, quantiser with its bounds, assumptions.
    pub params: Arc<RoundParams>,
    /// The base model; its hash was checked against the parameters.
    pub model: Arc<Model>,
}

/// What a device contributes. It leaves the device masked only.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// New weights minus the base model's, in the order of [`Model::values`]; finite, clipped to the quantiser's bound. That order is by
    /// name: [`Model::flatten`] puts named tensors into it, and refuses others.
    pub update: Vec<f32>,
    /// Weight in the mean, for instance the number of examples; above 0 up to the quantiser's `max_weight`.
    pub weight: f32,
    /// The task's metrics in their configured order, for instance the loss; their weighted means are learned.
    pub metrics: Vec<f32>,
}

/// Why a device leaves a round without an update, when nothing is wrong: no new data, an empty battery. As a [`TrainError`] it is no
/// failure, and the coordinator is told not to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Declined(pub String);

/// Computes updates on data that stays with the device.
pub trait Trainer: Send {
    /// Whether this device takes part in a round, asked before it sends keys. `false` leaves the round to the others, and tells the
    /// coordinator so; the next one is asked for again. Runs on a thread that may block.
    ///
    /// # Errors
    /// Any reason not to go on with this round, as in [`Self::train`].
    fn accepts(&mut self, params: &RoundParams) -> Result<bool, TrainError> {
        let _ = params;
        Ok(true)
    }

    /// Trains on the round's base model. Runs on a thread that may block.
    ///
    /// # Errors
    /// Any reason not to go on with this round; [`Declined`] for one that is no failure.
    fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError>;
}

impl<F: FnMut(&TrainingRound) -> Result<Update, TrainError> + Send> Trainer for F {
    fn train(&mut self, round: &TrainingRound) -> Result<Update, TrainError> {
        self(round)
    }
}
