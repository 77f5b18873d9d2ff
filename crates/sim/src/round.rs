//! One round: every client takes each phase's step, the coordinator absorbs it, the virtual clock says who was in time.

use std::sync::Arc;
use std::time::Instant;

use unisono_crypto::ring::RingVector;
use unisono_protocol::ClientId;
use unisono_protocol::client::KeyPool;
use unisono_protocol::encoding::Aggregate;
use unisono_protocol::params::RoundParams;
use unisono_protocol::server::{Closed, Outcome, Phase, Server};

use crate::client::{Scene, State, Step};
use crate::cpu::{Of, measure};
use crate::network::Compute;
use crate::observer::Observer;
use crate::population::{NOW, Population};
use crate::report::{PhaseReport, PhaseTiming, RoundReport, Tally, Timing};
use crate::update::UpdateSource;
use crate::workers::Workers;

/// Memory that steps in flight may take, in bytes: together they decide how many clients compute at a time.
const IN_FLIGHT: usize = 512 << 20;

/// What a client and the coordinator keep for one neighbour, in bytes, seen from below.
const NEIGHBOUR: u64 = 2048;

/// How many clients compute before the coordinator absorbs their steps: at least one a thread.
fn batch(phase: Phase, vector_len: usize, threads: usize) -> usize {
    let per_step = if phase == Phase::Mask { vector_len.saturating_mul(32) } else { 1 << 20 };
    (IN_FLIGHT / per_step.max(1)).min(512).max(threads)
}

/// Bytes that the vectors of a round take at most, and what clients know of their neighbours: an estimate.
pub(crate) fn working_set(params: &RoundParams, degree: u32, threads: usize) -> u64 {
    let len = params.vector_len() as u64;
    let width = u64::from(params.modulus.bits()).next_power_of_two().max(16) / 8;
    let clients = u64::from(params.wire.n_max);
    let steps = (batch(Phase::Mask, params.vector_len(), threads) as u64).min(clients);
    let vector = len * width;
    // The coordinator's sum and the plain one; a packed and a plain vector for each step; one more on each busy thread.
    let masking = 2 * vector + steps * (vector + params.packed_len()) + steps.min(threads as u64) * vector;
    // Both sums, an f64 and an f32 for each element.
    let decoding = 2 * vector + 12 * len;
    masking.max(decoding).saturating_add(clients * u64::from(degree) * NEIGHBOUR)
}

/// What one round needs beside the devices.
pub(crate) struct Plan<'a> {
    pub round: u64,
    pub seed: u64,
    pub server: Server,
    pub fates: Vec<Option<Phase>>,
    pub compute: Compute,
    /// Virtual seconds after which a phase is closed.
    pub deadline: f64,
    /// Whether a signature is verified once for all clients.
    pub share_checks: bool,
    pub update: &'a UpdateSource,
    pub workers: &'a Workers,
}

/// A client's turn in a phase.
enum Turn {
    /// It has no part in the phase, or has vanished.
    Silent,
    Refused(String),
    Took(Box<Step>),
}

/// Numbers of a phase while it runs.
#[derive(Default)]
struct Meter {
    client: Tally,
    sent: Tally,
    received: Tally,
    server: f64,
    /// Virtual seconds at which accepted steps arrived.
    arrivals: Vec<f64>,
    answered: usize,
    late: usize,
}

impl Meter {
    /// Virtual seconds of a phase in which `expected` clients have answered: until the last came, or until the quorum was there.
    fn length(&mut self, phase: Phase, expected: usize) -> f64 {
        self.arrivals.sort_unstable_by(f64::total_cmp);
        let last = if phase == Phase::Confirm { expected.checked_sub(1) } else { self.arrivals.len().checked_sub(1) };
        last.and_then(|last| self.arrivals.get(last)).copied().unwrap_or(0.0)
    }
}

/// Plays the round; `None` when the observer stopped it. The decoded mean comes with it, when there is one.
pub(crate) fn play(
    plan: Plan<'_>,
    population: &mut Population,
    observer: &mut dyn Observer,
) -> Option<(RoundReport, Option<Aggregate>)> {
    let began = Instant::now();
    let Plan { round, seed, mut server, fates, compute, deadline, share_checks, update, workers } = plan;
    let params = server.params().clone();
    let offer = server.offer().clone();
    let count = population.devices.len();
    let pool = KeyPool::new(count);
    let checks = share_checks.then(Arc::default);
    let Population { devices, trust, .. } = population;
    let scene = Scene {
        seed,
        round,
        trust,
        params: &params,
        offer: &offer,
        pool: &pool,
        checks,
        compute,
        update: update.as_ref(),
    };
    let mut states: Vec<State> = (0..count).map(|_| State::Idle).collect();
    let mut plain = RingVector::zeros(params.modulus, params.vector_len());
    let mut report = RoundReport {
        round,
        cohort: 0,
        survivors: 0,
        exact_sum: None,
        sum_hash: None,
        abort: None,
        reports: Vec::new(),
        refusals: 0,
        first_refusal: None,
        virtual_seconds: 0.0,
        error_bound: None,
        privacy: None,
        learned: None,
        phases: Vec::new(),
        timing: None,
    };
    let mut timings = Vec::new();

    let result = loop {
        let phase = server.phase();
        let expected = if phase == Phase::Advertise { count } else { server.progress().expected };
        if phase == Phase::Share {
            report.cohort = expected;
        }
        let batch = batch(phase, params.vector_len(), workers.count());
        let mut meter = Meter::default();
        for start in (0..count).step_by(batch) {
            if observer.cancelled() {
                return None;
            }
            observer.progress(round, phase, start, count);
            let end = (start + batch).min(count);
            let clients = (start..end).zip(devices[start..end].iter_mut().zip(&mut states[start..end]));
            let turns: Vec<(Turn, f64)> = workers.map(clients, |(number, (device, state))| {
                take_turn(&scene, &server, phase, number, fates[number], device, state)
            });
            for (number, (turn, view_seconds)) in (start..end).zip(turns) {
                meter.server += view_seconds;
                match turn {
                    Turn::Silent => {}
                    Turn::Refused(why) => {
                        report.refusals += 1;
                        report.first_refusal.get_or_insert(why);
                    }
                    Turn::Took(step) => {
                        let link = devices[number].link;
                        let arrival = link.turnaround(step.received, step.computing, step.sent());
                        let in_time = absorb(&mut server, &mut meter, *step, arrival, deadline, &mut plain);
                        if let Err(why) = in_time {
                            states[number] = State::Gone;
                            if let Some(why) = why {
                                report.refusals += 1;
                                report.first_refusal.get_or_insert(why);
                            }
                        }
                    }
                }
            }
        }
        observer.progress(round, phase, count, count);

        // With everybody's answer, or enough for the sum, the phase ends at once; otherwise at its deadline.
        let everybody = meter.answered >= expected;
        let mut ready = || measure(Of::Process, &mut meter.server, || server.ready());
        let early = everybody || (phase == Phase::Unmask && ready());
        let length = if early { meter.length(phase, expected) } else { deadline };
        report.virtual_seconds += length;
        report.phases.push(PhaseReport {
            phase: phase.name(),
            expected,
            answered: meter.answered,
            late: meter.late,
            virtual_seconds: length,
            sent: meter.sent.spread(),
            received: meter.received.spread(),
        });
        let closed = measure(Of::Process, &mut meter.server, || server.close());
        timings.push(PhaseTiming {
            phase: phase.name(),
            client_seconds: meter.client.spread(),
            server_seconds: meter.server,
        });
        match closed {
            Ok(Closed::Next(next)) => server = *next,
            Ok(Closed::Finished(outcome)) => break Ok(outcome),
            Err(abort) => break Err(abort),
        }
    };
    drop(states);

    let mut aggregate = None;
    match result {
        Ok(outcome) => {
            let survivors = outcome.survivors.len();
            report.survivors = survivors;
            report.exact_sum = Some(outcome.sum == plain);
            report.sum_hash = Some(format!("{:016x}", fnv1a(&outcome.sum)));
            report.reports = faults(&outcome);
            match params.quantiser.decode(&outcome.sum, params.wire.dimension as usize, survivors as u32) {
                Ok(decoded) => {
                    report.error_bound = Some(decoded.error_bound);
                    aggregate = Some(decoded);
                }
                Err(error) => report.abort = Some(error.to_string()),
            }
        }
        Err(abort) => report.abort = Some(abort.to_string()),
    }
    report.timing = Some(Timing { wall_seconds: began.elapsed().as_secs_f64(), phases: timings });
    Some((report, aggregate))
}

/// One client's turn, and the CPU seconds that the coordinator needed for its view.
fn take_turn(
    scene: &Scene<'_>,
    server: &Server,
    phase: Phase,
    number: usize,
    fate: Option<Phase>,
    device: &mut crate::population::Device,
    state: &mut State,
) -> (Turn, f64) {
    let mut view_seconds = 0.0;
    if fate.is_some_and(|at| at <= phase) {
        *state = State::Gone;
    }
    let taken = match std::mem::take(state) {
        State::Gone => {
            *state = State::Gone;
            return (Turn::Silent, 0.0);
        }
        State::Idle if phase == Phase::Advertise => scene.advertise(number, device),
        State::Idle => {
            *state = State::Gone;
            return (Turn::Silent, 0.0);
        }
        // Who is not on the committee makes one round trip less.
        State::Playing(session) if session.awaits().is_some_and(|awaited| awaited > phase) => {
            *state = State::Playing(session);
            return (Turn::Silent, 0.0);
        }
        State::Playing(session) => {
            match measure(Of::Thread, &mut view_seconds, || server.view(device.identity.client_id)) {
                Some(view) => scene.answer(number, device, session, &view),
                None => {
                    *state = State::Gone;
                    return (Turn::Silent, view_seconds);
                }
            }
        }
    };
    match taken {
        Ok((after, step)) => {
            *state = after;
            (Turn::Took(Box::new(step)), view_seconds)
        }
        Err(error) => {
            *state = State::Gone;
            (Turn::Refused(format!("client {number}, phase {phase}: {error}")), view_seconds)
        }
    }
}

/// Gives a step to the coordinator, unless it is late. `Err` when it does not count, with the reason if it was refused.
fn absorb(
    server: &mut Server,
    meter: &mut Meter,
    step: Step,
    arrival: f64,
    deadline: f64,
    plain: &mut RingVector,
) -> Result<(), Option<String>> {
    meter.client.add(step.cpu);
    meter.sent.add(step.sent() as f64);
    meter.received.add(step.received as f64);
    if arrival > deadline {
        meter.late += 1;
        return Err(None);
    }
    let Step { message, upload, .. } = step;
    // Clients rest meanwhile, so the process's time is the coordinator's.
    let accepted = measure(Of::Process, &mut meter.server, || {
        let absorbed = server.absorb(&message, NOW)?;
        match (&upload, ClientId::from_slice(&message.client_id)) {
            (Some((packed, _)), Some(client)) => server.absorb_upload(client, packed),
            _ => Ok(absorbed),
        }
    });
    accepted.map_err(|refusal| Some(refusal.to_string()))?;
    meter.answered += 1;
    meter.arrivals.push(arrival);
    if let Some((_, input)) = upload {
        plain.add_assign(&input).map_err(|error| Some(error.to_string()))?;
    }
    Ok(())
}

fn faults(outcome: &Outcome) -> Vec<(String, usize)> {
    let mut faults = std::collections::BTreeMap::new();
    outcome.reports.iter().for_each(|report| *faults.entry(report.what.code().to_owned()).or_default() += 1);
    faults.into_iter().collect()
}

fn fnv1a(vector: &RingVector) -> u64 {
    let bytes = vector.to_u64().into_iter().flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_client_for_every_thread_however_many_there_are() {
        assert_eq!(batch(Phase::Share, 100, 1000), 1000);
        assert_eq!(batch(Phase::Share, 100, 2), 512);
        assert_eq!(batch(Phase::Mask, 100, 2), 512);
        assert_eq!(batch(Phase::Mask, 1 << 28, 3), 3);
        assert_eq!(batch(Phase::Mask, 0, 3), 512);
    }
}
