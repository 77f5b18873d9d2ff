//! A seeded scheduler between devices and coordinator: it loses, delays, duplicates, reorders and corrupts messages, and
//! makes devices vanish before or after any step.

use prost::Message;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use unisono_crypto::ring::RingVector;
use unisono_protocol::proto::{ClientMessage, ServerMessage, client_message::Step};
use unisono_protocol::server::{Abort, Closed, Outcome, Phase, Server};

use crate::world::{Device, open, plain_sum};

/// How bad the network is; probabilities.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Of a device to vanish in the round.
    pub vanish: f64,
    /// Of a message to be lost.
    pub loss: f64,
    /// Of a message to come twice.
    pub duplicate: f64,
    /// Of a message to come later, perhaps in a later phase.
    pub late: f64,
    /// Of a message or upload to have a bit flipped.
    pub corrupt: f64,
    /// Ticks after which a phase is closed.
    pub patience: usize,
}

/// What came of a round.
pub struct Played {
    pub result: Result<Outcome, Abort>,
    /// The sum of the survivors' inputs, when there is an outcome.
    pub exact: bool,
    /// Whether the faults were within what the parameters promise to withstand.
    pub tolerable: bool,
}

struct Network {
    rng: ChaCha8Rng,
    faults: Faults,
    flight: Vec<(ClientMessage, Option<Vec<u8>>)>,
}

impl Network {
    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }

    fn corrupted<M: Message + Default>(&mut self, message: M) -> Option<M> {
        if !self.chance(self.faults.corrupt) {
            return Some(message);
        }
        let mut bytes = message.encode_to_vec();
        let at = self.rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << self.rng.random_range(0..8);
        M::decode(bytes.as_slice()).ok()
    }

    fn send(&mut self, device: &Device) {
        let Some(message) = device.message() else { return };
        let copies = if self.chance(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            self.flight.push((message.clone(), device.upload()));
        }
    }

    fn show(&mut self, server: &Server, device: &mut Device) {
        let Some(view) = server.view(device.id()) else { return };
        if self.chance(self.faults.loss) {
            return;
        }
        if let Some(view) = self.corrupted::<ServerMessage>(view)
            && view.view.is_some()
        {
            // A refused view is no news: the device asks again.
            let _ = device.receive(&view);
        }
    }

    fn deliver(&mut self, server: &mut Server) {
        let mut flight = std::mem::take(&mut self.flight);
        flight.shuffle(&mut self.rng);
        for (message, upload) in flight {
            if self.chance(self.faults.loss) {
                continue;
            }
            if self.chance(self.faults.late) {
                self.flight.push((message, upload));
                continue;
            }
            let Some(message) = self.corrupted(message) else { continue };
            let accepted = server.absorb(&message, crate::world::NOW).is_ok();
            if let (true, Some(Step::Upload(_)), Some(mut bytes)) = (accepted, &message.step, upload) {
                if self.chance(self.faults.corrupt) {
                    bytes.pop();
                }
                if self.chance(self.faults.corrupt) {
                    bytes[0] ^= 1;
                }
                let client = unisono_protocol::ClientId::from_slice(&message.client_id).unwrap();
                let _ = server.absorb_upload(client, &bytes);
            }
        }
    }
}

/// Plays one round with `count` devices.
pub fn play(params: &unisono_protocol::proto::RoundParams, count: usize, faults: Faults, seed: u64) -> Played {
    play_with(params, count, faults, seed, None)
}

/// As [`play`], with the devices' inputs; by default they are random.
pub fn play_with(
    params: &unisono_protocol::proto::RoundParams,
    count: usize,
    faults: Faults,
    seed: u64,
    input: Option<&dyn Fn(usize) -> RingVector>,
) -> Played {
    let mut network = Network { rng: ChaCha8Rng::seed_from_u64(seed), faults, flight: Vec::new() };
    let mut server = open(params);
    let round = server.params().clone();
    let mut devices: Vec<Device> = (0..count).map(|i| Device::new(i, &server, seed)).collect();
    if let Some(input) = input {
        devices.iter_mut().enumerate().for_each(|(i, device)| device.input = input(i));
    }
    // Where a device vanishes: in that phase, before or after it has sent its step.
    let phases: &[Phase] = &Phase::ALL;
    let fates: Vec<Option<(Phase, bool)>> = devices
        .iter()
        .map(|_| {
            let gone = network.chance(faults.vanish);
            let phase = phases[network.rng.random_range(0..phases.len())];
            gone.then_some((phase, network.rng.random_bool(0.5)))
        })
        .collect();

    let mut cohort = 0;
    let result = loop {
        let phase = server.phase();
        if phase == Phase::Share {
            cohort = server.progress().expected;
        }
        let mut order: Vec<usize> = (0..count).collect();
        for _ in 0..faults.patience {
            order.shuffle(&mut network.rng);
            for &i in &order {
                let (device, fate) = (&mut devices[i], fates[i]);
                if fate.is_some_and(|(at, sends)| at < phase || (at == phase && !sends)) {
                    continue;
                }
                match (phase, &device.session) {
                    (Phase::Advertise, None) => device.join(server.offer()).unwrap(),
                    _ => network.show(&server, device),
                }
                network.send(device);
            }
            network.deliver(&mut server);
            let vanished = |id| {
                devices
                    .iter()
                    .zip(&fates)
                    .any(|(device, fate)| device.id() == id && fate.is_some_and(|(at, _)| at <= phase))
            };
            let all_came = phase != Phase::Advertise || server.progress().answered == count;
            if server.ready() || (all_came && server.missing().into_iter().all(vanished)) {
                break;
            }
        }
        match server.close() {
            Ok(Closed::Next(next)) => server = *next,
            Ok(Closed::Finished(outcome)) => break Ok(outcome),
            Err(abort) => break Err(abort),
        }
    };

    let exact = result.as_ref().is_ok_and(|outcome| outcome.sum == plain_sum(&devices, &outcome.survivors, &round));
    let vanished = fates.iter().flatten().count();
    let topology = (cohort > 0).then(|| round.topology(cohort as u32).unwrap());
    let complete = topology.is_some_and(|topology| topology.degree as usize == cohort - 1);
    // Those that share and certify may all vanish but the threshold, and the quorum.
    let allowed = topology.map_or(0, |topology| {
        let quorum = topology.committee.map_or(0, |committee| committee.quorum as usize);
        (cohort - 1 - topology.threshold as usize).min(cohort - quorum)
    });
    let tolerable = faults.corrupt == 0.0
        && faults.patience >= 40
        && (vanished == 0 || complete && vanished <= allowed)
        && cohort - vanished.min(cohort) >= params.n_min as usize;
    Played { result, exact, tolerable }
}
