//! One simulated client in one round: the protocol's own states, and what its steps cost.

use std::sync::Arc;

use prost::Message;
use unisono_crypto::ring::RingVector;
use unisono_protocol::client::{
    Advertised, ClientError, Confirmed, Joining, KeyPool, Masked, Rejected, Shared, SharedChecks, Trust,
};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{ClientMessage, RoundOffer, ServerMessage, server_message::View};

use crate::cpu::{Of, measure};
use crate::network::Compute;
use crate::population::{Device, NOW, Purpose, crypto_rng};
use crate::update::Update;

/// Where a client is in the round. Boxed: thousands lie in one vector, most of them idle at any moment.
#[derive(Default)]
pub(crate) enum State {
    #[default]
    Idle,
    Advertised(Box<Advertised>),
    Shared(Box<Shared>),
    Masked(Box<Masked>),
    Confirmed(Box<Confirmed>),
    /// Finished, vanished, or refused to go on.
    Gone,
}

/// What a client sends in one phase.
pub(crate) struct Step {
    pub message: ClientMessage,
    /// The packed masked vector, and the encoded update that it hides.
    pub upload: Option<(Vec<u8>, RingVector)>,
    pub received: u64,
    pub cpu: f64,
    /// What the virtual clock is told, for slowdown 1.
    pub computing: f64,
}

impl Step {
    pub fn sent(&self) -> u64 {
        let upload = self.upload.as_ref().map_or(0, |(packed, _)| packed.len());
        (self.message.encoded_len() + upload) as u64
    }
}

/// What all clients of a round have in common.
pub(crate) struct Scene<'a> {
    pub seed: u64,
    pub round: u64,
    pub trust: &'a Trust,
    pub params: &'a RoundParams,
    pub offer: &'a RoundOffer,
    pub pool: &'a KeyPool,
    /// What clients verify once for all; `None`: each verifies on its own.
    pub checks: Option<Arc<SharedChecks>>,
    pub compute: Compute,
    pub update: &'a (dyn Fn(u32, u64) -> Update + Send + Sync),
}

fn error<S>(rejected: Rejected<S>) -> ClientError {
    rejected.error
}

impl Scene<'_> {
    /// Phase 0.
    pub fn advertise(&self, number: usize, device: &mut Device) -> Result<(State, Step), ClientError> {
        let mut cpu = 0.0;
        let mut rng = crypto_rng(self.seed, Purpose::Round, number as u64, self.round);
        let state = measure(Of::Thread, &mut cpu, || {
            let joining =
                Joining::new(self.offer, device.identity.clone(), self.trust, &mut device.record, NOW + self.round)?;
            let joining = match &self.checks {
                Some(checks) => joining.share_checks(checks),
                None => joining,
            };
            Ok::<_, ClientError>(joining.advertise(&mut rng))
        })?;
        let message = state.message().clone();
        let received = self.offer.encoded_len() as u64;
        let step = Step { message, upload: None, received, cpu, computing: self.compute.fixed_ms * 1e-3 };
        Ok((State::Advertised(Box::new(state)), step))
    }

    /// Any later phase. The state is given back advanced; a client that refuses is gone.
    pub fn answer(
        &self,
        number: usize,
        device: &mut Device,
        state: State,
        view: &ServerMessage,
    ) -> Result<(State, Step), ClientError> {
        let mut cpu = 0.0;
        let received = view.encoded_len() as u64;
        let fixed = self.compute.fixed_ms * 1e-3;
        let step = |message: &ClientMessage, cpu, computing| Step {
            message: message.clone(),
            upload: None,
            received,
            cpu,
            computing: computing + fixed,
        };
        match (state, view.view.as_ref()) {
            (State::Advertised(state), Some(View::Cohort(view))) => {
                let mut rng = crypto_rng(self.seed, Purpose::Round, number as u64, !self.round);
                let shared =
                    measure(Of::Thread, &mut cpu, || state.share(view, &mut device.record, NOW + self.round, &mut rng))
                        .map_err(error)?;
                let mut shared = Box::new(shared);
                shared.share_memory(self.pool);
                let step = step(shared.message(), cpu, self.compute.neighbour_ms * 1e-3 * view.neighbours.len() as f64);
                Ok((State::Shared(shared), step))
            }
            (State::Shared(state), Some(View::Masking(view))) => {
                let update = (self.update)(number as u32, self.round);
                let input = measure(Of::Thread, &mut cpu, || self.encode(number, &update))?;
                drop(update);
                let plain = input.clone();
                let mut masked = measure(Of::Thread, &mut cpu, || {
                    let masked = state.mask(view, input, &mut device.record, NOW + self.round)?;
                    Ok::<_, Rejected<Shared>>(Box::new(masked))
                })
                .map_err(error)?;
                let mut packed = Vec::with_capacity(self.params.packed_len() as usize);
                measure(Of::Thread, &mut cpu, || {
                    (0..masked.chunks()).filter_map(|i| masked.chunk(i)).for_each(|c| packed.extend(c))
                });
                // The simulated connection does not break: what is packed counts as acknowledged.
                masked.uploaded();
                let peers = view.deliveries.len() as f64;
                let masks = (peers + 1.0) * plain.len() as f64 * self.compute.mask_ns * 1e-9;
                let step = Step {
                    upload: Some((packed, plain)),
                    ..step(masked.message(), cpu, self.compute.neighbour_ms * 1e-3 * peers + masks)
                };
                Ok((State::Masked(masked), step))
            }
            (State::Masked(state), Some(View::Survivors(view))) if self.params.malicious() => {
                let confirmed =
                    measure(Of::Thread, &mut cpu, || state.confirm(view, &mut device.record)).map_err(error)?;
                let step = step(confirmed.message(), cpu, 0.0);
                Ok((State::Confirmed(Box::new(confirmed)), step))
            }
            (State::Masked(state), Some(View::Survivors(view))) => {
                let done = measure(Of::Thread, &mut cpu, || state.release(view, &mut device.record)).map_err(error)?;
                Ok((State::Gone, step(done.message(), cpu, 0.0)))
            }
            (State::Confirmed(state), Some(View::Tags(view))) => {
                let done = measure(Of::Thread, &mut cpu, || state.release(view, &mut device.record)).map_err(error)?;
                Ok((State::Gone, step(done.message(), cpu, 0.0)))
            }
            _ => Err(ClientError::Missing("view for this client's phase")),
        }
    }

    fn encode(&self, number: usize, update: &Update) -> Result<RingVector, ClientError> {
        let mut rng = crypto_rng(self.seed, Purpose::Update, number as u64, !self.round);
        let Update { values, metrics, weight } = update;
        let contribution = Contribution { update: values, metrics, weight: *weight };
        let dimension = self.params.wire.dimension as usize;
        Ok(self.params.quantiser.encode(contribution, dimension, self.params.modulus, &mut rng)?)
    }
}
