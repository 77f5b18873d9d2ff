//! The device SDK with a trainer in Python.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use unisono_client as sdk;
use unisono_protocol::{keyfile, params};
use unisono_release::Token;
use unisono_wire::model::Model;

use crate::arguments::named;
use crate::keys::{DeviceKeys, verifying_key};
use crate::params::{Policy, RoundParams};
use crate::{arrays, errors};

/// How often a waiting call looks for Ctrl-C.
const SIGNAL_PERIOD: Duration = Duration::from_millis(100);

/// The process in which a client first ran; 0 before.
static FIRST: AtomicU32 = AtomicU32::new(0);

/// Refuses to run clients on both sides of a fork: the SDK computes on rayon's global pool, whose threads are in one process only.
fn first_process() -> PyResult<()> {
    let here = std::process::id();
    match FIRST.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != here => Err(errors::state(
            "a client ran before this process was forked, and its threads are in the parent only: start this process with \
             multiprocessing's \"spawn\" or \"forkserver\", or run the first client after the fork",
        )),
        _ => Ok(()),
    }
}

/// One round, as a trainer sees it.
#[pyclass(frozen, module = "unisono")]
pub struct TrainingRound(sdk::TrainingRound);

#[pymethods]
impl TrainingRound {
    /// Number of the round.
    #[getter]
    fn number(&self) -> u64 {
        self.0.params.wire.round
    }

    /// Name of the task.
    #[getter]
    fn task(&self) -> String {
        self.0.params.wire.task.clone()
    }

    /// Bound to which an element of the update is clipped, where `clips` is empty.
    #[getter]
    fn clip(&self) -> f32 {
        self.0.params.quantiser.clip
    }

    /// Bounds of runs of elements of `parameters` in the place of `clip`: (elements, clip) in order; empty where `clip` is the bound of all.
    #[getter]
    fn clips(&self) -> Vec<(u64, f32)> {
        self.0.params.quantiser.clips.iter().map(|run| (run.elements, run.clip)).collect()
    }

    /// Largest weight.
    #[getter]
    fn max_weight(&self) -> f32 {
        self.0.params.quantiser.max_weight
    }

    /// All weights of the base model, float32: tensors in order of name, row-major. A copy.
    #[getter]
    fn parameters<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, self.0.model.values())
    }

    /// One tensor of the base model in its shape. A copy; raises KeyError for a name that the model lacks.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let found = self.0.model.tensor(name);
        let (shape, values) = found.ok_or_else(|| pyo3::exceptions::PyKeyError::new_err(name.to_owned()))?;
        Ok(PyArray1::from_slice(py, values).reshape(shape.to_vec())?.into_any())
    }

    /// All tensors of the base model by name, each in its shape: copies.
    #[getter]
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tensors = PyDict::new(py);
        for (name, shape, values) in self.0.model.tensors() {
            tensors.set_item(name, PyArray1::from_slice(py, values).reshape(shape.to_vec())?)?;
        }
        Ok(tensors)
    }

    /// Tensors of integers and booleans by name, each in its shape: they are the same in every version, and have no update. Copies.
    #[getter]
    fn buffers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (buffers, numpy) = (PyDict::new(py), py.import("numpy")?);
        for (name, kept) in self.0.model.kept() {
            // As NumPy calls them: I64 is "<i8", U16 "<u2".
            let dtype = match kept.dtype().as_str() {
                "BOOL" => "?".to_owned(),
                other => {
                    let bytes = other.trim_start_matches(char::is_alphabetic).parse::<u32>().unwrap_or(8) / 8;
                    format!("<{}{bytes}", other[..1].to_lowercase())
                }
            };
            let flat = numpy.call_method1("frombuffer", (PyBytes::new(py, kept.data()), dtype))?;
            let shaped = flat.call_method1("reshape", (kept.shape().to_vec(),))?;
            buffers.set_item(name, shaped.call_method0("copy")?)?;
        }
        Ok(buffers)
    }

    /// Puts named arrays, in any order, into the order of `parameters`, float32. Names within names are joined by dots. Arrays are what
    /// `numpy.asarray` takes, of real numbers. ArrayError for other names, shapes or types.
    fn flatten<'py>(&self, py: Python<'py>, tensors: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(PyArray1::from_vec(py, named_tensors(&self.0.model, tensors)?))
    }

    fn __repr__(&self) -> String {
        let wire = &self.0.params.wire;
        format!("TrainingRound(task={:?}, number={}, dimension={})", wire.task, wire.round, wire.dimension)
    }
}

/// A tensor by name: its shape and elements.
type Named = (String, Vec<usize>, Vec<f32>);

/// Named arrays in the order of the model's values.
fn named_tensors(model: &Model, tensors: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    let mut named = Vec::new();
    collect("", tensors.cast::<PyMapping>()?, &mut named)?;
    let views = named.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice()));
    model.flatten(views).map_err(|error| errors::array(error.to_string()))
}

fn collect(above: &str, tensors: &Bound<'_, PyMapping>, named: &mut Vec<Named>) -> PyResult<()> {
    let numpy = tensors.py().import("numpy")?;
    for item in tensors.items()?.iter() {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let key: String = key
            .extract()
            .map_err(|_| errors::array(format!("the tensors under {above:?} have a name that is no text")))?;
        let name = if above.is_empty() { key } else { format!("{above}.{key}") };
        if let Ok(below) = value.cast::<PyMapping>() {
            collect(&name, below, named)?;
            continue;
        }
        if value.hasattr("mask")? {
            return Err(errors::array(format!(
                "tensor {name:?} is a masked array: x.filled(0) puts a value where it is masked"
            )));
        }
        let array = numpy.call_method1("asarray", (value,))?;
        let kind: String = array.getattr("dtype")?.getattr("kind")?.extract()?;
        if !["f", "i", "u"].contains(&kind.as_str()) {
            let dtype = array.getattr("dtype")?;
            return Err(errors::array(format!("tensor {name:?} has dtype {dtype}; real numbers are needed")));
        }
        let shape: Vec<usize> = array.getattr("shape")?.extract()?;
        let flat = array.call_method1("astype", ("float32",))?.call_method0("ravel")?;
        named.push((name.clone(), shape, arrays::copied::<f32>(&flat, &format!("tensor {name:?}"))?));
    }
    Ok(())
}

/// Calls Python callables. What `trainer` raises is the reason why the round is missed; `None` declines it.
struct PyTrainer {
    trainer: Py<PyAny>,
    accepts: Option<Py<PyAny>>,
}

impl sdk::Trainer for PyTrainer {
    fn accepts(&mut self, params: &params::RoundParams) -> Result<bool, sdk::TrainError> {
        let Some(accepts) = &self.accepts else { return Ok(true) };
        Python::attach(|py| {
            let offered = Bound::new(py, RoundParams { checked: params.clone() })?;
            accepts.bind(py).call1((offered,))?.is_truthy()
        })
        .map_err(|error: PyErr| sdk::TrainError::from(error.to_string()))
    }

    fn train(&mut self, round: &sdk::TrainingRound) -> Result<sdk::Update, sdk::TrainError> {
        Python::attach(|py| {
            let model = round.model.clone();
            let round = Bound::new(py, TrainingRound(round.clone()))?;
            let result = self.trainer.bind(py).call1((round,))?;
            if result.is_none() {
                return Ok(None);
            }
            type Three<'py> = (Bound<'py, PyAny>, f32, Vec<f32>);
            let (update, weight, metrics) = match (result.extract::<Three<'_>>(), result.extract()) {
                (Ok(three), _) => three,
                (_, Ok((update, weight))) => (update, weight, Vec::new()),
                _ => {
                    return Err(errors::returned(
                        "the trainer",
                        &result,
                        "(update, weight) or (update, weight, metrics)",
                    ));
                }
            };
            let update = match update.cast::<PyMapping>() {
                Ok(_) => named_tensors(&model, &update)?,
                Err(_) => arrays::copied::<f32>(&update, "update")?,
            };
            Ok(Some(sdk::Update { update, weight, metrics }))
        })
        .map_err(|error: PyErr| sdk::TrainError::from(error.to_string()))?
        .ok_or_else(|| sdk::Declined("the trainer returned None".into()).into())
    }
}

/// Ends calls from another thread: after the round at hand, or at once.
#[pyclass(frozen, module = "unisono._unisono")]
pub struct Stop(watch::Sender<Asked>);

/// How far a stop has been asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    GoOn,
    AfterRound,
    Now,
}

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        Self(watch::Sender::new(Asked::GoOn))
    }

    /// Asks for it. What was asked for is not taken back.
    #[pyo3(signature = (*, now=false))]
    fn ask(&self, now: bool) {
        let wanted = if now { Asked::Now } else { Asked::AfterRound };
        self.0.send_modify(|asked| *asked = (*asked).max(wanted));
    }
}

impl Stop {
    /// Ready when `wanted`, or more, is asked for.
    fn asked(&self, wanted: Asked) -> impl Future<Output = ()> + Send + use<> {
        let mut asked = self.0.subscribe();
        async move {
            if asked.wait_for(|asked| *asked >= wanted).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

/// One device's part in one task. See `unisono.Client`.
#[pyclass(frozen, module = "unisono", subclass)]
pub struct Client {
    client: Mutex<sdk::Client>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    process: u32,
    endpoint: String,
    stop: Stop,
}

impl Drop for Client {
    fn drop(&mut self) {
        // Waiting for a trainer's thread while holding the GIL, which that thread needs, would never end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn stopped() -> PyErr {
    errors::state("this client was stopped")
}

impl Client {
    /// Runs a call of the SDK without the GIL; Ctrl-C cancels it, and so does who asks `stop`, or the client's own.
    fn block<R: Send>(
        &self,
        py: Python<'_>,
        stop: Option<&Stop>,
        call: impl AsyncFnOnce(&mut sdk::Client) -> Result<R, sdk::Error> + Send,
    ) -> PyResult<R> {
        if self.process != std::process::id() {
            return Err(errors::state("this client was made in another process: make one after the fork"));
        }
        first_process()?;
        let runtime = self.runtime.as_ref().ok_or_else(|| errors::state("this client is gone"))?;
        py.detach(|| {
            let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
            runtime.block_on(async {
                let interrupted = async {
                    loop {
                        tokio::time::sleep(SIGNAL_PERIOD).await;
                        if let Err(interrupt) = Python::attach(|py| py.check_signals()) {
                            return interrupt;
                        }
                    }
                };
                tokio::select! {
                    biased;
                    () = self.asked(stop, Asked::Now) => Err(stopped()),
                    result = call(&mut client) => result.map_err(errors::sdk),
                    interrupt = interrupted => Err(interrupt),
                }
            })
        })
    }

    /// Ready when `wanted`, or more, is asked of this client or of the call at hand.
    fn asked(&self, stop: Option<&Stop>, wanted: Asked) -> impl Future<Output = ()> + Send + use<> {
        let (all, one) = (self.stop.asked(wanted), stop.map(|stop| stop.asked(wanted)));
        async move {
            let one = async move {
                match one {
                    Some(one) => one.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = all => {}
                () = one => {}
            }
        }
    }
}

/// Tells Python's `logging` what happens, under "unisono.client".
struct Log {
    logger: Py<PyAny>,
    /// When a call that fails was told last.
    told: Mutex<Option<Instant>>,
}

/// Levels of `logging`.
const DEBUG: u32 = 10;
const INFO: u32 = 20;
const WARNING: u32 = 30;
/// A call that fails again and again is a warning so often.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Log {
    fn new(py: Python<'_>) -> PyResult<Self> {
        let logger = py.import("logging")?.call_method1("getLogger", ("unisono.client",))?;
        Ok(Self { logger: logger.unbind(), told: Mutex::new(None) })
    }

    fn tell(&self, event: &sdk::Event<'_>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(event, sdk::Event::Retrying { .. }) {
            *told = None;
        }
        let (level, text) = match event {
            sdk::Event::Waiting => (DEBUG, "waiting for a round".into()),
            sdk::Event::StillWaiting { waited, why } => (INFO, format!("waiting for {} s: {why}", waited.as_secs())),
            sdk::Event::Joined { round } => (INFO, format!("round {round}: joined")),
            sdk::Event::Phase { round, phase } => (DEBUG, format!("round {round}: phase {phase}")),
            sdk::Event::Trained { round, .. } => (DEBUG, format!("round {round}: trained")),
            sdk::Event::Completed { round, .. } => (INFO, format!("round {round}: completed")),
            sdk::Event::Missed { round, error } => (WARNING, format!("round {round}: missed: {error}")),
            sdk::Event::Declined { round, why } => (INFO, format!("round {round}: declined: {why}")),
            sdk::Event::LeftOut { round, after } => {
                (INFO, format!("round {round}: there was no room for this device; it comes back in {after:?}"))
            }
            sdk::Event::Retrying { error, pause } => {
                let again = told.is_some_and(|told| told.elapsed() < WARN_EVERY);
                if !again {
                    *told = Some(Instant::now());
                }
                (if again { DEBUG } else { WARNING }, format!("{error}; trying again in {pause:.1?}"))
            }
            // The update is in one of them.
            _ => return,
        };
        drop(told);
        // A handler's exception is the application's to see, and no reason to stop.
        Python::try_attach(|py| {
            let logger = self.logger.bind(py);
            if let Err(error) = logger.call_method1("log", (level, "%s", text)) {
                error.write_unraisable(py, Some(logger));
            }
        });
    }
}

fn callable(object: &Bound<'_, PyAny>, name: &str, takes: &str) -> PyResult<()> {
    if object.is_callable() {
        return Ok(());
    }
    let kind = object.get_type().name()?;
    Err(errors::state(format!("{name} is a {kind}; a callable that takes {takes} is needed")))
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (
        endpoint, task, keys, trainer, *, registrar_key=None, token=None, policy=None, state_dir=None, accepts=None,
        max_failures=None, give_up_after=None, authority=None, certificate=None
    ))]
    #[allow(clippy::too_many_arguments)] // arguments of a Python constructor
    fn new(
        py: Python<'_>,
        endpoint: &str,
        task: &str,
        keys: &DeviceKeys,
        trainer: Py<PyAny>,
        registrar_key: Option<&[u8]>,
        token: Option<&str>,
        policy: Option<&Policy>,
        state_dir: Option<PathBuf>,
        accepts: Option<Py<PyAny>>,
        #[pyo3(from_py_with = named::max_failures)] max_failures: Option<u64>,
        #[pyo3(from_py_with = named::give_up_after)] give_up_after: Option<f64>,
        authority: Option<String>,
        certificate: Option<(String, String)>,
    ) -> PyResult<Self> {
        callable(trainer.bind(py), "trainer", "a TrainingRound")?;
        if let Some(accepts) = &accepts {
            callable(accepts.bind(py), "accepts", "RoundParams")?;
        }
        let keys = keyfile::DeviceKeys::from_text(&keys.keys.to_text()).map_err(errors::key_file)?;
        let mut builder = sdk::Client::builder(endpoint, task, keys);
        if let Some(rounds) = max_failures {
            builder = builder.max_failures(rounds);
        }
        if let Some(seconds) = give_up_after {
            let limit = Duration::try_from_secs_f64(seconds).map_err(|_| {
                errors::class::ParamsError::new_err(format!(
                    "give_up_after is {seconds}; a number of seconds from 0, or None for never, is needed"
                ))
            })?;
            builder = builder.retry(sdk::Retry { give_up_after: Some(limit), ..sdk::Retry::default() });
        }
        if let Some(pem) = authority {
            builder = builder.certificate_authority(pem);
        }
        if let Some((chain, key)) = certificate {
            builder = builder.client_certificate(chain, key);
        }
        let log = Log::new(py)?;
        builder = builder.on_event(move |event| log.tell(event));
        if let Some(key) = registrar_key {
            builder = builder.registrar(verifying_key(key)?);
        }
        if let Some(token) = token {
            builder = builder.token(Token::from_text(token).map_err(errors::token)?);
        }
        if let Some(policy) = policy {
            builder = builder.policy(policy.inner.clone());
        }
        if let Some(folder) = state_dir {
            builder = builder.state_dir(folder);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| errors::state(format!("the client's threads could not be started: {error}")))?;
        let client = py.detach(|| builder.build(PyTrainer { trainer, accepts })).map_err(errors::sdk)?;
        let (client, runtime, process) = (Mutex::new(client), Some(runtime), std::process::id());
        Ok(Self { client, runtime, process, endpoint: endpoint.to_owned(), stop: Stop::new() })
    }

    /// Takes part in rounds until the task is finished, or `stop()` is called: `{"completed": .., "missed": .., "declined": ..}`.
    #[pyo3(signature = (_stop=None))]
    fn run<'py>(&self, py: Python<'py>, _stop: Option<&Stop>) -> PyResult<Bound<'py, PyDict>> {
        let asked = self.asked(_stop, Asked::AfterRound);
        let summary = self.block(py, _stop, async |client| client.run_until(asked).await)?;
        let dict = PyDict::new(py);
        dict.set_item("completed", summary.completed)?;
        dict.set_item("missed", summary.missed)?;
        dict.set_item("declined", summary.declined)?;
        Ok(dict)
    }

    /// Waits for the next round and takes part in it. True when it was completed, False when the trainer declined it, None when the
    /// task is finished; a round that was missed raises, and StateError after `stop()`.
    #[pyo3(signature = (_stop=None))]
    fn run_round(&self, py: Python<'_>, _stop: Option<&Stop>) -> PyResult<Option<bool>> {
        let asked = self.asked(_stop, Asked::AfterRound);
        match self.block(py, _stop, async |client| client.run_round_until(asked).await)? {
            None => Err(stopped()),
            Some(None) => Ok(None),
            Some(Some(Ok(()))) => Ok(Some(true)),
            Some(Some(Err(sdk::Error::Declined(_)))) => Ok(Some(false)),
            Some(Some(Err(error))) => Err(errors::sdk(error)),
        }
    }

    /// Ends the calls at hand, and all later ones, from any thread: a client that waits at once, one in a round when its part in it is
    /// over. `now=True` leaves the round at hand, too: for the others this device drops out, and the call raises StateError.
    #[pyo3(signature = (*, now=false))]
    fn stop(&self, now: bool) {
        self.stop.ask(now);
    }

    /// Fetches the latest release of a model, asks for this device's grant, verifies and decrypts: its bytes and version.
    /// An older version than one that was opened is refused; `max_payload` bytes bound what is fetched.
    #[pyo3(signature = (model_id, *, max_payload=1 << 30))]
    fn open_release<'py>(
        &self,
        py: Python<'py>,
        model_id: &str,
        #[pyo3(from_py_with = named::max_payload)] max_payload: u64,
    ) -> PyResult<(Bound<'py, PyBytes>, u64)> {
        let opened = self.block(py, None, async |client| client.open_release(model_id, max_payload).await)?;
        Ok((PyBytes::new(py, &opened.plaintext), opened.header.version))
    }

    /// Fetches, verifies and decrypts a version of the task's model: its safetensors bytes. It has to be the base model of the
    /// round at hand, and this device in its cohort; other versions are refused. `max_payload` bytes bound what is fetched.
    #[pyo3(signature = (version, *, max_payload=1 << 30))]
    fn model<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::version)] version: u64,
        #[pyo3(from_py_with = named::max_payload)] max_payload: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let opened = self.block(py, None, async |client| client.model(version, max_payload).await)?;
        Ok(PyBytes::new(py, &opened.plaintext))
    }

    fn __repr__(&self) -> String {
        format!("Client({:?}, ..)", self.endpoint)
    }
}
