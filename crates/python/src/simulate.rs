//! The simulator for Python: updates may come from a callable, and Ctrl-C stops it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::PyArray1;
use pyo3::prelude::*;
use unisono_protocol::encoding::{self, EncodingError};
use unisono_sim::{Dropout, Observer, RoundReport, Simulation, Update, updates};

use crate::arrays::whole;
use crate::params::{Quantiser, mode_of};
use crate::{arrays, errors, threads};

/// What the thread of the simulation and the thread of the caller share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The first exception of a callable.
    error: Mutex<Option<PyErr>>,
}

impl Shared {
    fn fail(&self, error: PyErr) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Watcher {
    shared: Arc<Shared>,
    round_finished: Option<Py<PyAny>>,
    means: Vec<Option<Vec<f32>>>,
}

impl Observer for Watcher {
    fn round_finished(&mut self, report: &RoundReport, aggregate: Option<&encoding::Aggregate>) {
        let mean = aggregate.map(|aggregate| aggregate.mean.clone());
        if let Some(callable) = &self.round_finished {
            let called = Python::attach(|py| {
                let array = mean.as_ref().map(|mean| PyArray1::from_slice(py, mean));
                callable.call1(py, (report.round, array)).map(drop)
            });
            if let Err(error) = called {
                self.shared.fail(error);
            }
        }
        self.means.push(mean);
    }

    fn cancelled(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}

/// Asks the callable for a client's update: a float32 array and a weight.
///
/// A device with an update that can't be encoded drops out of its round; here it is a mistake that the caller should hear of.
fn ask(
    callable: &Py<PyAny>,
    client: u32,
    round: u64,
    dimension: usize,
    quantiser: &encoding::Quantiser,
) -> PyResult<Update> {
    Python::attach(|py| {
        let result = callable.bind(py).call1((client, round))?;
        let Ok((update, weight)) = result.extract::<(Bound<'_, PyAny>, f32)>() else {
            return Err(errors::returned("updates(client, round)", &result, "(update, weight)"));
        };
        let values = arrays::readable::<f32>(&update, "update")?.as_slice().map_err(arrays::gaps)?.to_vec();
        if values.len() != dimension {
            let got = values.len();
            return Err(errors::array(format!("the update has {got} elements; the simulation has {dimension}")));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(errors::encoding(EncodingError::NonFinite { what: "update", index, value }));
        }
        if !(weight > 0.0 && weight <= quantiser.max_weight) {
            return Err(errors::encoding(EncodingError::Weight { got: weight, max: quantiser.max_weight }));
        }
        Ok(Update { values, metrics: Vec::new(), weight })
    })
}

/// The mean of each round that gave one.
type Means<'py> = Vec<Option<Bound<'py, PyArray1<f32>>>>;

/// Runs a simulation; returns its report as JSON and the mean of each round. See `unisono.simulate`.
#[pyfunction]
#[pyo3(signature = (
    clients, dim, *, dropout, mode, rounds, seed, quantiser, gamma, delta, n_min, privacy, threads, share_checks,
    updates=None, round_finished=None
))]
#[allow(clippy::too_many_arguments)] // keyword arguments of a Python function
pub fn simulate<'py>(
    py: Python<'py>,
    clients: &Bound<'py, PyAny>,
    dim: &Bound<'py, PyAny>,
    dropout: &str,
    mode: &str,
    rounds: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    quantiser: &Quantiser,
    gamma: f64,
    delta: Option<f64>,
    n_min: Option<u32>,
    privacy: Option<(f64, f64)>,
    threads: usize,
    share_checks: bool,
    updates: Option<Py<PyAny>>,
    round_finished: Option<Py<PyAny>>,
) -> PyResult<(String, Means<'py>)> {
    let (clients, dim) = (whole(clients, "clients", u32::MAX)?, whole(dim, "dim", u64::MAX)?);
    let (rounds, seed) = (whole(rounds, "rounds", u64::MAX)?, whole(seed, "seed", u64::MAX)?);
    let dropout = Dropout::parse(dropout).map_err(errors::simulation)?;
    let builder = Simulation::builder().clients(clients).dimension(dim).dropout(dropout).mode(mode_of(mode)?);
    let builder = builder.rounds(rounds).seed(seed).gamma(gamma).threads(threads).quantiser(quantiser.inner.clone());
    let builder = builder.share_checks(share_checks);
    let builder = delta.into_iter().fold(builder, |builder, delta| builder.delta(delta));
    let builder = n_min.into_iter().fold(builder, |builder, n_min| builder.n_min(n_min));
    let mut builder = privacy.into_iter().fold(builder, |builder, (noise, delta)| builder.privacy(noise, delta));
    let shared = Arc::new(Shared::default());
    if let Some(callable) = updates {
        let (shared, quantiser) = (shared.clone(), quantiser.inner.clone());
        builder = builder.updates(self::updates(move |client, round| {
            ask(&callable, client, round, dim as usize, &quantiser).unwrap_or_else(|error| {
                // The simulation is cancelled; what stands in is never reported.
                shared.fail(error);
                Update { values: vec![0.0; dim as usize], metrics: Vec::new(), weight: quantiser.max_weight }
            })
        }));
    }
    let simulation = threads::detach(py, || builder.build())?.map_err(errors::simulation)?;
    let mut watcher = Watcher { shared: shared.clone(), round_finished, means: Vec::new() };
    let (report, watcher) = py.detach(|| {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let report = simulation.run(&mut watcher);
                (report, watcher)
            });
            // Only the caller's thread learns of Ctrl-C.
            while !running.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
                if let Err(interrupt) = Python::attach(|py| py.check_signals()) {
                    shared.fail(interrupt);
                }
            }
            running.join().map_err(|_| errors::state("the simulation ended in a panic"))
        })
    })?;
    if let Some(error) = shared.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    let report = report.map_err(errors::simulation)?;
    let json = serde_json::to_string(&report).map_err(|error| errors::state(error.to_string()))?;
    let means = watcher.means.into_iter().map(|mean| mean.map(|mean| PyArray1::from_vec(py, mean))).collect();
    Ok((json, means))
}
