//! What a sum gives: it is decoded, checked, and applied to the model.

use unisono_protocol::encoding::{Aggregate, EncodingError};
use unisono_protocol::params::RoundParams;
use unisono_protocol::server::Outcome;
use unisono_wire::model::{Model, ModelError};

use crate::learning::{self, Moments};
use crate::plausible::{self, Implausible};
use crate::training::stored_model;
use crate::{CoordinatorError, Shared, StoreError};

/// Why a sum is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unused {
    #[error("it can't be decoded: {0}")]
    Decode(#[from] EncodingError),
    #[error("it is none of honest updates: {0}")]
    Implausible(#[from] Implausible),
    #[error("the model that it gives is none: {0}")]
    Model(#[from] ModelError),
    #[error("the model that it gives has elements that are no finite numbers")]
    NotFinite,
    #[error("what it is applied to is lost: {0}")]
    Base(String),
}

impl Unused {
    /// A short name for metrics, stable over versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Decode(EncodingError::ZeroWeight { .. }) => "zero_weight",
            Self::Decode(_) => "undecodable_sum",
            Self::Implausible(implausible) => implausible.code(),
            Self::Model(_) | Self::NotFinite => "model",
            Self::Base(_) => "base_model",
        }
    }
}

/// What a sum gives.
pub struct Applied {
    pub aggregate: Aggregate,
    pub model: Vec<u8>,
    pub moments: Option<Vec<u8>>,
}

/// Decodes a sum and applies it to the model. Nothing that devices can send is an error of the coordinator.
pub async fn apply(
    shared: &Shared,
    params: &RoundParams,
    outcome: &Outcome,
) -> Result<Result<Applied, Unused>, StoreError> {
    let survivors = outcome.survivors.len() as u32;
    let aggregate = crate::in_place(|| {
        let aggregate = params.quantiser.decode(&outcome.sum, params.wire.dimension as usize, survivors)?;
        plausible::check(&params.quantiser, shared.config.quantiser.min_weight, &aggregate, survivors)?;
        Ok::<_, Unused>(aggregate)
    });
    let aggregate = match aggregate {
        Ok(aggregate) => aggregate,
        Err(unused) => return Ok(Err(unused)),
    };
    let (task, base) = (&shared.config.task.name, params.wire.model_version);
    let model = match stored_model(shared, base).await {
        Ok((model, _)) => model,
        Err(CoordinatorError::Store(error)) if error.may_pass() => return Err(error),
        Err(error) => return Ok(Err(Unused::Base(error.to_string()))),
    };
    let moments = shared.store.get_moments(task, base).await?;
    let step = || {
        let mut moments = read_moments(moments).map_err(|error| Unused::Base(error.to_string()))?;
        let values = learning::step(&shared.config.optimizer, &mut moments, model.values(), &aggregate.mean);
        if !values.iter().chain(&moments.first).chain(&moments.second).all(|x| x.is_finite()) {
            return Err(Unused::NotFinite);
        }
        let model = model.with_values(values)?.to_safetensors()?;
        Ok((model, write_moments(&moments)?))
    };
    let stepped = crate::in_place(step);
    Ok(stepped.map(|(model, moments)| Applied { aggregate, model, moments }))
}

fn read_moments(bytes: Option<Vec<u8>>) -> Result<Moments, ModelError> {
    let Some(bytes) = bytes else { return Ok(Moments::default()) };
    let stored = Model::from_safetensors(&bytes)?;
    let part = |name| stored.tensor(name).map(|(_, values)| values.to_vec()).unwrap_or_default();
    Ok(Moments { first: part("first"), second: part("second") })
}

fn write_moments(moments: &Moments) -> Result<Option<Vec<u8>>, ModelError> {
    if moments.first.is_empty() {
        return Ok(None);
    }
    let tensor = |name, values: &Vec<f32>| (name, vec![values.len()], values.clone());
    let model = Model::new([tensor("first", &moments.first), tensor("second", &moments.second)])?;
    Ok(Some(model.to_safetensors()?))
}
