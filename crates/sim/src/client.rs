//! One simulated client in one round: the protocol's own session, and what its steps cost.

use std::sync::Arc;

use prost::Message;
use unisono_crypto::ring::RingVector;
use unisono_protocol::client::{ClientError, KeyPool, Session, SharedChecks, Trust};
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
    Playing(Box<Session>),
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

impl Scene<'_> {
    /// Phase 0.
    pub fn advertise(&self, number: usize, device: &mut Device) -> Result<(State, Step), ClientError> {
        let mut cpu = 0.0;
        let mut rng = crypto_rng(self.seed, Purpose::Round, number as u64, self.round);
        let (identity, now) = (device.identity.clone(), NOW + self.round);
        let mut session = measure(Of::Thread, &mut cpu, || {
            Session::join(self.offer, identity, self.trust, &mut device.record, now, &mut rng)
        })?;
        if let Some(checks) = &self.checks {
            session.share_checks(checks);
        }
        let message = owed(&session)?;
        let received = self.offer.encoded_len() as u64;
        let step = Step { message, upload: None, received, cpu, computing: self.compute.fixed_ms * 1e-3 };
        Ok((State::Playing(Box::new(session)), step))
    }

    /// Any later phase. The session is given back advanced; a client that refuses is gone.
    pub fn answer(
        &self,
        number: usize,
        device: &mut Device,
        mut session: Box<Session>,
        message: &ServerMessage,
    ) -> Result<(State, Step), ClientError> {
        let mut cpu = 0.0;
        let missing = ClientError::Missing("view for this client's phase");
        let view = message.view.as_ref().ok_or(missing)?;
        let mut input = None;
        if session.wants_input() {
            let update = (self.update)(number as u32, self.round);
            input = Some(measure(Of::Thread, &mut cpu, || self.encode(number, &update))?);
        }
        let plain = input.clone();
        // The streams of a client's later phases differ by the phase that it waits for.
        let phase = session.awaits().map_or(0, |phase| phase as u64);
        let mut rng = crypto_rng(self.seed, Purpose::Round, number as u64, !(self.round << 3 | phase));
        measure(Of::Thread, &mut cpu, || session.receive(view, input, &mut device.record, NOW + self.round, &mut rng))?;
        let computing = match view {
            View::Cohort(view) => {
                session.share_memory(self.pool);
                self.compute.neighbour_ms * 1e-3 * view.neighbours.len() as f64
            }
            View::Masking(view) => {
                let peers = view.deliveries.len() as f64;
                let elements = plain.as_ref().map_or(0, RingVector::len) as f64;
                self.compute.neighbour_ms * 1e-3 * peers + (peers + 1.0) * elements * self.compute.mask_ns * 1e-9
            }
            View::Survivors(_) | View::Certificate(_) => 0.0,
        };
        let upload = plain.map(|plain| {
            let mut packed = Vec::with_capacity(self.params.packed_len() as usize);
            measure(Of::Thread, &mut cpu, || {
                (0..session.chunks()).filter_map(|i| session.chunk(i)).for_each(|chunk| packed.extend(chunk));
            });
            // The simulated connection does not break: what is packed counts as acknowledged.
            session.uploaded();
            (packed, plain)
        });
        let step = Step {
            message: owed(&session)?,
            upload,
            received: message.encoded_len() as u64,
            cpu,
            computing: computing + self.compute.fixed_ms * 1e-3,
        };
        Ok((if session.is_done() { State::Gone } else { State::Playing(session) }, step))
    }

    fn encode(&self, number: usize, update: &Update) -> Result<RingVector, ClientError> {
        let mut rng = crypto_rng(self.seed, Purpose::Update, number as u64, !self.round);
        let Update { values, metrics, weight } = update;
        let contribution = Contribution { update: values, metrics, weight: *weight };
        let dimension = self.params.wire.dimension as usize;
        Ok(self.params.quantiser.encode(contribution, dimension, self.params.modulus, &mut rng)?)
    }
}

fn owed(session: &Session) -> Result<ClientMessage, ClientError> {
    session.message().cloned().ok_or(ClientError::Erased)
}
