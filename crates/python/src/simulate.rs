//! The simulator for Python: updates may come from a callable, and Ctrl-C stops it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::PyArray1;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use unisono_protocol::encoding::{self, EncodingError};
use unisono_protocol::server::Phase;
use unisono_sim::{Dropout, Estimate, Measure, Observer, Report, RoundReport, Simulation, Update, updates};

use crate::arguments::named;
use crate::params::{Quantiser, mode_of};
use crate::{arrays, errors, threads};

/// What the thread of the simulation and the thread of the caller share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Whether something stood in for an update: the round at hand says nothing.
    spoilt: AtomicBool,
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
    progress: Option<Py<PyAny>>,
    means: Vec<Option<Vec<f32>>>,
    metrics: Vec<Option<Vec<f32>>>,
}

impl Observer for Watcher {
    fn progress(&mut self, round: u64, phase: Phase, done: usize, clients: usize) {
        let Some(callable) = &self.progress else { return };
        // Once something was raised, nothing is called any more.
        if self.cancelled() {
            return;
        }
        let called = Python::attach(|py| callable.call1(py, (round, phase.name(), done, clients)).map(drop));
        if let Err(error) = called {
            self.shared.fail(error);
        }
    }

    fn round_finished(&mut self, report: &RoundReport, aggregate: Option<&encoding::Aggregate>) {
        if self.shared.spoilt.load(Ordering::Relaxed) {
            return;
        }
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
        self.metrics.push(aggregate.map(|aggregate| aggregate.metrics.clone()));
    }

    fn cancelled(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}

/// Asks the callable for a client's update: a float32 array, a weight and, where the quantiser has some, metrics.
///
/// A device with an update that can't be encoded drops out of its round; here it is a mistake that the caller should hear of.
fn ask(
    callable: &Py<PyAny>,
    client: u32,
    round: u64,
    dimension: usize,
    quantiser: &encoding::Quantiser,
    private: bool,
) -> PyResult<Update> {
    Python::attach(|py| {
        let result = callable.bind(py).call1((client, round))?;
        type Three<'py> = (Bound<'py, PyAny>, f32, Vec<f32>);
        let (update, weight, metrics) = match (result.extract::<Three<'_>>(), result.extract()) {
            (Ok(three), _) => three,
            (_, Ok((update, weight))) => (update, weight, Vec::new()),
            _ => {
                let wanted = "(update, weight) or (update, weight, metrics)";
                return Err(errors::returned("updates(client, round)", &result, wanted));
            }
        };
        let values = arrays::copied::<f32>(&update, "update")?;
        if values.len() != dimension {
            let got = values.len();
            return Err(errors::array(format!("the update has {got} elements; the simulation has {dimension}")));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(errors::encoding(EncodingError::NonFinite { what: "update", index, value }));
        }
        let bounds = quantiser.metric_bounds.len();
        if metrics.len() != bounds {
            return Err(errors::class::ParamsError::new_err(format!(
                "updates(client, round) returned {} metrics, the quantiser has intervals for {bounds}: return (update, weight, metrics)",
                metrics.len()
            )));
        }
        if let Some(index) = metrics.iter().position(|value| !value.is_finite()) {
            let value = metrics[index];
            return Err(errors::encoding(EncodingError::NonFinite { what: "list of metrics", index, value }));
        }
        if !(weight > 0.0 && weight <= quantiser.max_weight) {
            return Err(errors::encoding(EncodingError::Weight { got: weight, max: quantiser.max_weight }));
        }
        if private && weight != quantiser.max_weight {
            return Err(errors::encoding(EncodingError::UnequalWeight { got: weight, required: quantiser.max_weight }));
        }
        Ok(Update { values, metrics, weight })
    })
}

/// What a simulation gives to Python: its report as JSON, the mean and the metrics of each round that has some, and what was
/// raised meanwhile, after which no round follows.
type Played<'py> = (String, Vec<Option<Bound<'py, PyArray1<f32>>>>, Vec<Option<Vec<f32>>>, Option<Py<PyBaseException>>);

#[derive(serde::Serialize)]
struct Measured<'a> {
    #[serde(flatten)]
    report: &'a Report,
    measures: Vec<Measure>,
}

/// Mean, standard deviation, lower and upper end.
type Estimated = (f64, Option<f64>, Option<f64>, Option<f64>);

/// Mean of the values, their standard deviation, and the ends of the 95 % confidence interval of the mean; `None` without a value.
#[pyfunction]
pub fn estimate(values: Vec<f64>) -> Option<Estimated> {
    let Estimate { mean, deviation, low, high, .. } = Estimate::of(&values)?;
    Some((mean, deviation, low, high))
}

/// Runs a simulation. See `unisono.simulate`.
#[pyfunction]
#[pyo3(signature = (
    clients, dim, *, dropout, mode, rounds, seed, quantiser, gamma, delta, n_min, deadline, noise_multiplier, privacy_delta,
    threads, share_checks, updates=None, round_finished=None, progress=None
))]
#[allow(clippy::too_many_arguments)] // keyword arguments of a Python function
pub fn simulate<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::clients)] clients: u32,
    #[pyo3(from_py_with = named::dim)] dim: u64,
    dropout: &str,
    mode: &str,
    #[pyo3(from_py_with = named::rounds)] rounds: u64,
    #[pyo3(from_py_with = named::seed)] seed: u64,
    quantiser: &Quantiser,
    #[pyo3(from_py_with = named::gamma)] gamma: f64,
    #[pyo3(from_py_with = named::delta)] delta: Option<f64>,
    #[pyo3(from_py_with = named::n_min)] n_min: Option<u32>,
    #[pyo3(from_py_with = named::deadline)] deadline: f64,
    #[pyo3(from_py_with = named::noise_multiplier)] noise_multiplier: Option<f64>,
    #[pyo3(from_py_with = named::privacy_delta)] privacy_delta: f64,
    #[pyo3(from_py_with = named::threads)] threads: usize,
    share_checks: bool,
    updates: Option<Py<PyAny>>,
    round_finished: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Played<'py>> {
    let dropout = Dropout::parse(dropout).map_err(errors::simulation)?;
    let builder = Simulation::builder().clients(clients).dimension(dim).dropout(dropout).mode(mode_of(mode)?);
    let builder = builder.rounds(rounds).seed(seed).gamma(gamma).threads(threads).quantiser(quantiser.inner.clone());
    let builder = builder.share_checks(share_checks).deadline(deadline);
    let builder = delta.into_iter().fold(builder, |builder, delta| builder.delta(delta));
    let builder = n_min.into_iter().fold(builder, |builder, n_min| builder.n_min(n_min));
    let noise = noise_multiplier.into_iter();
    let mut builder = noise.fold(builder, |builder, noise| builder.privacy(noise, privacy_delta));
    let shared = Arc::new(Shared::default());
    if let Some(callable) = updates {
        let (shared, quantiser) = (shared.clone(), quantiser.inner.clone());
        builder = builder.updates(self::updates(move |client, round| {
            // The simulation is cancelled then, and the round left out.
            let none = || {
                shared.spoilt.store(true, Ordering::Relaxed);
                Update { values: Vec::new(), metrics: Vec::new(), weight: quantiser.max_weight }
            };
            if shared.stop.load(Ordering::Relaxed) {
                return none();
            }
            ask(&callable, client, round, dim as usize, &quantiser, noise_multiplier.is_some()).unwrap_or_else(
                |error| {
                    shared.fail(error);
                    none()
                },
            )
        }));
    }
    let simulation = threads::detach(py, || builder.build())?.map_err(errors::simulation)?;
    let mut watcher =
        Watcher { shared: shared.clone(), round_finished, progress, means: Vec::new(), metrics: Vec::new() };
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
    let raised = shared.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (mut report, raised) = match (report, raised) {
        (Ok(report), raised) => (report, raised),
        (Err(_), Some(raised)) => return Err(raised),
        (Err(error), None) => return Err(errors::simulation(error)),
    };
    // A round without all updates can have ended, for want of them, before it was cancelled.
    if report.rounds.len() > watcher.means.len() {
        report.rounds.truncate(watcher.means.len());
        report.interrupted = true;
    }
    let measured = Measured { measures: report.measures(), report: &report };
    let json = serde_json::to_string(&measured).map_err(|error| errors::state(error.to_string()))?;
    let means = watcher.means.into_iter().map(|mean| mean.map(|mean| PyArray1::from_vec(py, mean))).collect();
    Ok((json, means, watcher.metrics, raised.map(|error| error.into_value(py))))
}
