//! A round's parameters, the quantiser, a device's policy and what the degree search finds.

use numpy::PyArray1;
use prost::Message;
use pyo3::PyTypeInfo;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyTuple};
use unisono_protocol::degree::{self, Assumptions, DegreeError, SecurityMode};
use unisono_protocol::encoding::{self, ClipRun, Rounding};
use unisono_protocol::params::{self, SUITE_V1, honest};
use unisono_protocol::policy::PrivacyDemand;
use unisono_protocol::privacy::{Privacy, Sensitivity};
use unisono_protocol::rotation::Rotation;
use unisono_protocol::{policy, proto};

use crate::arguments::named;
use crate::keys::Roster;
use crate::rng::unix_time;
use crate::{errors, threads};

/// What pickle calls to make a frozen object again: its class with the same keyword arguments.
fn reduce<'py, T: PyTypeInfo>(py: Python<'py>, settings: Bound<'py, PyDict>) -> PyResult<Bound<'py, PyTuple>> {
    let new = py.import("copyreg")?.getattr("__newobj_ex__")?;
    (new, (py.get_type::<T>(), PyTuple::empty(py), settings)).into_pyobject(py)
}

pub fn mode_of(name: &str) -> PyResult<SecurityMode> {
    match name {
        "malicious" => Ok(SecurityMode::Malicious),
        "semi-honest" => Ok(SecurityMode::SemiHonest),
        other => Err(errors::class::ParamsError::new_err(format!(
            "the mode is {other:?}; allowed is \"malicious\" or \"semi-honest\""
        ))),
    }
}

fn out_of_range(name: &str, value: f64, needed: &str) -> PyErr {
    errors::class::ParamsError::new_err(format!("{name} is {value}; {needed}"))
}

/// Refuses a delta of differential privacy that is none.
pub fn check_delta(delta: f64) -> PyResult<()> {
    if delta > 0.0 && delta < 1.0 {
        return Ok(());
    }
    Err(out_of_range("privacy_delta", delta, "a number above 0 and below 1 is needed"))
}

/// Noise for sums in which so many contributions count.
fn noise(multiplier: f64, quantiser: &encoding::Quantiser, dimension: u64, contributions: u32) -> PyResult<Privacy> {
    if !(multiplier > 0.0 && multiplier.is_finite()) {
        return Err(out_of_range("noise_multiplier", multiplier, "a finite number above 0 is needed"));
    }
    let sensitivity = Sensitivity::of(quantiser, dimension).ok_or_else(|| {
        errors::class::EncodingError::new_err(
            "noise_multiplier=.. needs a quantiser with l2_clip=..: the bound on what one device can change",
        )
    })?;
    Ok(Privacy::of_multiplier(multiplier, sensitivity, contributions))
}

/// The same longest duration for every phase.
fn deadlines(seconds: f64) -> proto::PhaseDeadlines {
    let ms = (seconds * 1000.0).ceil() as u64;
    proto::PhaseDeadlines { advertise_ms: ms, share_ms: ms, mask_ms: ms, confirm_ms: ms, unmask_ms: ms }
}

/// Smallest b so that `clients` values of `bits` bits sum to less than 2^b.
#[pyfunction]
pub fn modulus_bits(
    #[pyo3(from_py_with = named::bits)] bits: u32,
    #[pyo3(from_py_with = named::clients)] clients: u32,
) -> PyResult<u32> {
    encoding::modulus_bits(bits, clients).map_err(errors::encoding)
}

/// Sizes that a cohort needs (section 9 of the protocol).
#[pyclass(frozen, get_all, module = "unisono")]
pub struct Topology {
    /// Neighbours of each client, k.
    degree: u32,
    /// Shares that rebuild a secret, t.
    threshold: u32,
    /// Survivors that each window of k/2 places must exceed, a_w; None where no window is checked: in a complete graph, and in
    /// semi-honest mode.
    window_bound: Option<u32>,
    /// Clients that may sign the certificate of survivors, s; None in semi-honest mode.
    committee: Option<u32>,
    /// Signatures that make a certificate, tau; None in semi-honest mode.
    quorum: Option<u32>,
    /// Most clients that may drop out, whichever they are, before the round ends without a sum. None for a sparse graph (above 32
    /// clients), which withstands the fraction `delta` except with probability 2^-20.
    tolerated_drop_outs: Option<u32>,
}

fn shown(number: Option<u32>) -> String {
    number.map_or_else(|| "None".into(), |number| number.to_string())
}

#[pymethods]
impl Topology {
    fn __repr__(&self) -> String {
        let Self { degree, threshold, window_bound, committee, quorum, tolerated_drop_outs } = *self;
        format!(
            "Topology(degree={degree}, threshold={threshold}, window_bound={}, committee={}, quorum={}, tolerated_drop_outs={})",
            shown(window_bound),
            shown(committee),
            shown(quorum),
            shown(tolerated_drop_outs)
        )
    }
}

impl Topology {
    /// What was found for a cohort of `n`.
    fn new(found: degree::Topology, n: u32) -> Self {
        Self {
            degree: found.degree,
            threshold: found.threshold,
            window_bound: found.window_bound,
            committee: found.committee.map(|committee| committee.size),
            quorum: found.committee.map(|committee| committee.quorum),
            tolerated_drop_outs: found.tolerated_drop_outs(n),
        }
    }
}

/// Runs a search of sizes, and says what would be feasible where there are none.
fn search<T: Send>(
    py: Python<'_>,
    clients: u32,
    assumptions: &Assumptions,
    find: fn(u32, &Assumptions) -> Result<T, DegreeError>,
) -> PyResult<T> {
    let found = threads::detach(py, || find(clients, assumptions).map_err(|error| error.advised(assumptions)))?;
    found.map_err(|error| errors::class::ParamsError::new_err(error.to_string()))
}

/// Sizes for a cohort of `clients` (from 3), of which a fraction `gamma` and at least `min_colluders` (at least 1) may collude, and
/// a fraction `delta` drop out; fractions are from 0 to below 1. ParamsError where there are none: it says how many drop-outs would
/// be tolerated, and what would be feasible.
#[pyfunction]
#[pyo3(signature = (clients, *, gamma=0.05, delta=0.1, mode="malicious", min_colluders=1))]
pub fn find_degree(
    py: Python<'_>,
    #[pyo3(from_py_with = named::clients)] clients: u32,
    #[pyo3(from_py_with = named::gamma)] gamma: f64,
    #[pyo3(from_py_with = named::delta)] delta: f64,
    mode: &str,
    #[pyo3(from_py_with = named::min_colluders)] min_colluders: u32,
) -> PyResult<Topology> {
    let assumptions = Assumptions { gamma, delta, min_colluders, mode: mode_of(mode)? };
    Ok(Topology::new(search(py, clients, &assumptions, degree::find)?, clients))
}

/// The smallest sum that fits a cohort of `clients`, and the default of `n_min` in `RoundParams` and `unisono.flower`: nine tenths of
/// those who are expected to survive, fewer where a complete graph withstands more drop-outs, and enough for two honest
/// inputs. Arguments and ParamsError are those of `find_degree`.
#[pyfunction]
#[pyo3(signature = (clients, *, gamma=0.05, delta=0.1, mode="malicious", min_colluders=1))]
pub fn default_n_min(
    py: Python<'_>,
    #[pyo3(from_py_with = named::clients)] clients: u32,
    #[pyo3(from_py_with = named::gamma)] gamma: f64,
    #[pyo3(from_py_with = named::delta)] delta: f64,
    mode: &str,
    #[pyo3(from_py_with = named::min_colluders)] min_colluders: u32,
) -> PyResult<u32> {
    let assumptions = Assumptions { gamma, delta, min_colluders, mode: mode_of(mode)? };
    search(py, clients, &assumptions, degree::default_n_min)
}

/// How updates become integers: clip, weigh, scale to `bits` bits (1 to 32), round. With `rotate` large elements are spread
/// over others first, so that a smaller `clip` serves.
///
/// `clip` has no default: elements beyond it are cut off without a word, so it belongs above those that the updates have, or is
/// a choice. `clips` gives runs of elements bounds of their own, `[(elements, clip), ...]` in order, with as many elements together as the
/// update; not with `rotate` or noise. EncodingError for a setting outside its range.
#[pyclass(frozen, module = "unisono")]
pub struct Quantiser {
    pub inner: encoding::Quantiser,
}

#[pymethods]
impl Quantiser {
    #[new]
    #[pyo3(signature = (
        *, clip, bits=16, max_weight=1.0, l2_clip=None, rounding="stochastic", metrics=Vec::new(), rotate=false, clips=Vec::new()
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python constructor
    fn new(
        #[pyo3(from_py_with = named::clip)] clip: f32,
        #[pyo3(from_py_with = named::bits)] bits: u32,
        #[pyo3(from_py_with = named::max_weight)] max_weight: f32,
        #[pyo3(from_py_with = named::l2_clip)] l2_clip: Option<f32>,
        rounding: &str,
        #[pyo3(from_py_with = named::metrics)] metrics: Vec<(f32, f32)>,
        rotate: bool,
        #[pyo3(from_py_with = named::clips)] clips: Vec<(u64, f32)>,
    ) -> PyResult<Self> {
        let rounding = match rounding {
            "stochastic" => Rounding::Stochastic,
            "deterministic" => Rounding::Deterministic,
            other => {
                return Err(errors::class::EncodingError::new_err(format!(
                    "quantiser setting `rounding` is {other:?}; allowed is \"stochastic\" or \"deterministic\""
                )));
            }
        };
        let mut inner = encoding::Quantiser {
            bits,
            clip,
            clips: Vec::new(),
            l2_clip,
            max_weight,
            rounding,
            metric_bounds: metrics,
            privacy: None,
            rotation: rotate.then(Rotation::default),
        };
        inner.set_clips(clips.into_iter().map(|(elements, clip)| ClipRun { elements, clip }));
        inner.validate().map_err(errors::encoding)?;
        Ok(Self { inner })
    }

    /// Bits of a quantised element, 1 to 32.
    #[getter]
    fn bits(&self) -> u32 {
        self.inner.bits
    }

    /// Bound to which each element of an update is clipped, from either side of 0, where `clips` is empty.
    #[getter]
    fn clip(&self) -> f32 {
        self.inner.clip
    }

    /// Bounds of runs of elements in the place of `clip`: (elements, clip) in order; empty where `clip` is the bound of all.
    #[getter]
    fn clips(&self) -> Vec<(u64, f32)> {
        self.inner.clips.iter().map(|run| (run.elements, run.clip)).collect()
    }

    /// Bound to which an update's L2 norm is scaled down before anything else; None for no such bound.
    #[getter]
    fn l2_clip(&self) -> Option<f32> {
        self.inner.l2_clip
    }

    /// Largest weight of one update; a larger one is refused.
    #[getter]
    fn max_weight(&self) -> f32 {
        self.inner.max_weight
    }

    /// "stochastic" (unbiased) or "deterministic" (to the nearest).
    #[getter]
    fn rounding(&self) -> &'static str {
        if self.inner.rounding == Rounding::Stochastic { "stochastic" } else { "deterministic" }
    }

    /// Interval (lower, upper) to which each metric is clamped, in the order of the metrics.
    #[getter]
    fn metrics(&self) -> Vec<(f32, f32)> {
        self.inner.metric_bounds.clone()
    }

    /// Whether an update is rotated before it is clipped, and the mean rotated back.
    #[getter]
    fn rotate(&self) -> bool {
        self.inner.rotation.is_some()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let q = &self.inner;
        let settings = [("bits", q.bits)].into_py_dict(py)?;
        settings.set_item("clip", q.clip)?;
        settings.set_item("max_weight", q.max_weight)?;
        settings.set_item("l2_clip", q.l2_clip)?;
        settings.set_item("rounding", self.rounding())?;
        settings.set_item("metrics", self.metrics())?;
        settings.set_item("rotate", self.rotate())?;
        settings.set_item("clips", self.clips())?;
        reduce::<Self>(py, settings)
    }

    fn __repr__(&self) -> String {
        let (q, rounding) = (&self.inner, self.rounding());
        let clips = if q.clips.is_empty() { String::new() } else { format!(", clips={:?}", self.clips()) };
        format!(
            "Quantiser(bits={}, clip={}, max_weight={}, rounding={rounding:?}{clips})",
            q.bits, q.clip, q.max_weight
        )
    }
}

/// The decoded sum of a round.
#[pyclass(frozen, get_all, module = "unisono")]
pub struct Aggregate {
    /// Weighted mean of the updates, float32.
    mean: Py<PyArray1<f32>>,
    /// Weighted means of the metrics.
    metrics: Vec<f32>,
    /// Sum of the weights.
    total_weight: f64,
    /// Bound on the error that quantisation adds to an element of `mean`.
    error_bound: f64,
    /// Standard deviation of the noise for differential privacy on an element of `mean`; 0 in a round without.
    noise_deviation: f64,
}

impl Aggregate {
    pub fn new(py: Python<'_>, decoded: encoding::Aggregate) -> Self {
        Self {
            mean: PyArray1::from_vec(py, decoded.mean).unbind(),
            metrics: decoded.metrics,
            total_weight: decoded.total_weight,
            error_bound: decoded.error_bound,
            noise_deviation: decoded.noise_deviation,
        }
    }
}

#[pymethods]
impl Aggregate {
    fn __repr__(&self) -> String {
        format!("Aggregate(total_weight={}, error_bound={})", self.total_weight, self.error_bound)
    }
}

/// What the coordinator proposes for one round. Checked when made: ParamsError, EncodingError or RosterError say what no
/// round can run with, and what would be feasible.
///
/// `noise_multiplier` (above 0) makes the round differentially private: the noise of the smallest sum, less that of the
/// colluders assumed, has so many times the L2 sensitivity as standard deviation. The quantiser needs an `l2_clip`, and each
/// weight must be its `max_weight`. `epsilon()` says what that promises.
#[pyclass(frozen, module = "unisono")]
pub struct RoundParams {
    pub checked: params::RoundParams,
}

#[pymethods]
impl RoundParams {
    #[new]
    #[pyo3(signature = (
        *, dimension, n_max, quantiser, n_min=None, task="python", round=1, gamma=0.05, delta=0.1, min_colluders=1,
        mode="malicious", roster=None, model_version=0, model_hash=None, modulus_bits=None, chunk_elements=65536,
        noise_multiplier=None, deadline_s=3600.0, now=None
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python constructor
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = named::dimension)] dimension: u64,
        #[pyo3(from_py_with = named::n_max)] n_max: u32,
        quantiser: &Quantiser,
        #[pyo3(from_py_with = named::n_min)] n_min: Option<u32>,
        task: &str,
        #[pyo3(from_py_with = named::round)] round: u64,
        #[pyo3(from_py_with = named::gamma)] gamma: f64,
        #[pyo3(from_py_with = named::delta)] delta: f64,
        #[pyo3(from_py_with = named::min_colluders)] min_colluders: u32,
        mode: &str,
        roster: Option<&Roster>,
        #[pyo3(from_py_with = named::model_version)] model_version: u64,
        #[pyo3(from_py_with = named::model_hash)] model_hash: Option<[u8; 32]>,
        #[pyo3(from_py_with = named::modulus_bits)] modulus_bits: Option<u32>,
        #[pyo3(from_py_with = named::chunk_elements)] chunk_elements: u32,
        #[pyo3(from_py_with = named::noise_multiplier)] noise_multiplier: Option<f64>,
        #[pyo3(from_py_with = named::deadline_s)] deadline_s: f64,
        #[pyo3(from_py_with = named::now)] now: Option<u64>,
    ) -> PyResult<Self> {
        let mode = mode_of(mode)?;
        let malicious = mode == SecurityMode::Malicious;
        if malicious != roster.is_some() {
            let text =
                "malicious mode needs a roster, semi-honest mode has none: pass roster=.. or mode=\"semi-honest\"";
            return Err(errors::class::RosterError::new_err(text));
        }
        if !(deadline_s > 0.0 && deadline_s.is_finite()) {
            return Err(out_of_range("deadline_s", deadline_s, "a finite number of seconds above 0 is needed"));
        }
        let assumptions = Assumptions { gamma, delta, min_colluders, mode };
        let n_min = match n_min {
            Some(n_min) => n_min,
            None => search(py, n_max, &assumptions, degree::default_n_min)?,
        };
        let mut quantiser = quantiser.inner.clone();
        if let Some(multiplier) = noise_multiplier {
            let contributions = honest(n_min, n_max, &assumptions);
            quantiser.privacy = Some(noise(multiplier, &quantiser, dimension, contributions)?);
        }
        let needed = quantiser.modulus_bits(n_max.max(1)).map_err(errors::encoding)?;
        let head = roster.map(|roster| roster.inner.head());
        let mode = if malicious { proto::SecurityMode::Malicious } else { proto::SecurityMode::SemiHonest };
        let wire = proto::RoundParams {
            task: task.to_owned(),
            round,
            suite: SUITE_V1,
            roster_epoch: head.map_or(0, |head| head.epoch),
            roster_root: head.map(|head| head.root.to_vec()).unwrap_or_default(),
            dimension,
            modulus_bits: modulus_bits.unwrap_or(needed),
            quantiser: Some(params::quantiser_to_wire(&quantiser)),
            n_min,
            n_max,
            gamma,
            delta,
            min_colluders,
            mode: mode as i32,
            deadlines: Some(deadlines(deadline_s)),
            model_version,
            model_hash: model_hash.unwrap_or_default().to_vec(),
            chunk_elements,
            opened_at: unix_time(now),
        };
        let payload = wire.encode_to_vec();
        let checked = threads::detach(py, || params::RoundParams::proposed(&payload))?.map_err(errors::params)?;
        Ok(Self { checked })
    }

    /// Hash of the parameters, to which everything in the round is bound; 32 bytes.
    #[getter]
    fn round_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.checked.round_id.0)
    }

    /// Elements of an update.
    #[getter]
    fn dimension(&self) -> u64 {
        self.checked.wire.dimension
    }

    /// Smallest number of updates in a sum.
    #[getter]
    fn n_min(&self) -> u32 {
        self.checked.wire.n_min
    }

    /// Largest cohort.
    #[getter]
    fn n_max(&self) -> u32 {
        self.checked.wire.n_max
    }

    /// Bits of an element of a masked vector.
    #[getter]
    fn modulus_bits(&self) -> u32 {
        self.checked.wire.modulus_bits
    }

    /// Whether the round is in malicious mode: with signatures, roster and consistency check.
    #[getter]
    fn malicious(&self) -> bool {
        self.checked.malicious()
    }

    /// Elements of a masked vector: update, metrics and weight.
    #[getter]
    fn vector_len(&self) -> usize {
        self.checked.vector_len()
    }

    /// Bytes of an upload.
    #[getter]
    fn upload_len(&self) -> u64 {
        self.checked.packed_len()
    }

    /// Epsilon at `privacy_delta` (above 0, below 1) that one round spends at the most for any one device: with the smallest
    /// sum and as many colluders as `gamma` allows, against the sum without what the device contributed (zero-out
    /// adjacency). None without `noise_multiplier`. ParamsError for another delta.
    #[pyo3(signature = (privacy_delta=1e-5))]
    fn epsilon(&self, #[pyo3(from_py_with = named::privacy_delta)] privacy_delta: f64) -> PyResult<Option<f64>> {
        check_delta(privacy_delta)?;
        Ok(self.checked.guarantee().map(|guarantee| guarantee.epsilon(privacy_delta)))
    }

    /// Sizes for a cohort of `n`; ParamsError where there are none: see `find_degree`.
    fn topology(&self, py: Python<'_>, #[pyo3(from_py_with = named::n)] n: u32) -> PyResult<Topology> {
        let find = || self.checked.topology(n).map_err(|error| error.advised(&self.checked.assumptions));
        threads::detach(py, find)?.map(|found| Topology::new(found, n)).map_err(errors::params)
    }

    fn __repr__(&self) -> String {
        let wire = &self.checked.wire;
        let mode = if self.checked.malicious() { "malicious" } else { "semi-honest" };
        format!(
            "RoundParams(task={:?}, round={}, dimension={}, n_min={}, n_max={}, mode={mode:?})",
            wire.task, wire.round, wire.dimension, wire.n_min, wire.n_max
        )
    }
}

/// What a device accepts, whatever the coordinator proposes. Every limit is inclusive. PolicyError names the value, the limit and the
/// setting; ParamsError is for a limit outside its range.
///
/// - `n_min`: smallest number of updates in a sum (from 3). By default 10, in malicious mode less where the whole roster is too small
///   for that (see `smallest_sum`), and 3 in semi-honest mode. A `Client` has no roster yet when it is made: there the default is 10.
/// - `min_honest` (at least 2): fewest honest inputs in a sum, `n_min` less the colluders assumed.
/// - `min_gamma` (0 to 1), `min_colluders` (at least 1): smallest fraction and number of colluders that a round must withstand.
/// - `max_delta` (0 to 1): largest fraction of drop-outs that it may be made for.
/// - `max_dimension`: most elements of an update.
/// - `allow_semi_honest`: whether a round without signatures, roster and certificate will do.
/// - `min_roster_epoch`, `min_model_version`: oldest roster and base model.
/// - `min_interval_s`: seconds between two masked inputs of a task. 0 allows rounds that follow each other at once.
/// - `max_rounds`: most rounds of a task in which the device masks an input; None for no limit.
/// - `max_round_s`: seconds for which the device keeps a round's secrets at most after it accepted the cohort.
/// - `tasks`: names of the tasks in which it takes part; empty for any.
/// - `max_epsilon` (above 0): only rounds whose noise promises at most that epsilon at `privacy_delta` (above 0, below 1), each counted
///   alone: see `RoundParams.epsilon`.
/// - `max_total_epsilon` (above 0): largest epsilon of all rounds of a task together, at `privacy_delta`. The account is in the device's
///   record and grows before a masked input leaves. A round without noise before exceeds any limit.
///   Where both are None, rounds without noise are allowed.
/// - `signed_base_model`: whether a publisher that the roster names must have signed the base model (`ServerRound.sign_base_model`).
#[derive(Default)]
#[pyclass(frozen, module = "unisono")]
pub struct Policy {
    /// Its `n_min` is the one for a large roster.
    pub inner: policy::Policy,
    /// None for what fits the roster.
    n_min: Option<u32>,
}

/// Fewest clients of any cohort.
const SMALLEST: u32 = 3;

impl Policy {
    /// The smallest sum that is accepted in a malicious round of a roster with so many devices. What it can give is computed
    /// for the limits, not for what the coordinator proposes.
    fn n_min_of(&self, devices: u64) -> u32 {
        let policy = &self.inner;
        let assumptions = Assumptions {
            gamma: policy.min_gamma,
            delta: policy.max_delta,
            min_colluders: policy.min_colluders,
            mode: SecurityMode::Malicious,
        };
        let fits = || degree::default_n_min(u32::try_from(devices).ok()?, &assumptions).ok();
        // From a hundred devices on, there is nothing to search.
        let fitting = if devices < 100 { fits() } else { None };
        self.n_min.unwrap_or_else(|| fitting.map_or(policy.n_min, |fitting| fitting.min(policy.n_min)))
    }

    /// The limits for an offer. What it says of the roster's size was not verified yet: whoever goes on with the offer verifies
    /// the same bytes.
    pub fn for_offer(&self, offer: &proto::RoundOffer) -> policy::Policy {
        let head = offer.roster_head.as_ref().map(|head| proto::RosterHead::decode(head.payload.as_slice()));
        let n_min = match head {
            Some(Ok(head)) => self.n_min_of(head.size),
            Some(Err(_)) => self.inner.n_min,
            None => self.n_min.unwrap_or(SMALLEST),
        };
        policy::Policy { n_min, ..self.inner.clone() }
    }
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (
        *, n_min=None, min_honest=2, min_gamma=0.05, min_colluders=1, max_delta=0.3, max_dimension=1 << 28,
        allow_semi_honest=false, min_roster_epoch=0, min_model_version=0, min_interval_s=10, max_rounds=None,
        max_round_s=86400, tasks=Vec::new(), max_epsilon=None, max_total_epsilon=None, privacy_delta=1e-5,
        signed_base_model=false
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python constructor
    fn new(
        #[pyo3(from_py_with = named::n_min)] n_min: Option<u32>,
        #[pyo3(from_py_with = named::min_honest)] min_honest: u32,
        #[pyo3(from_py_with = named::min_gamma)] min_gamma: f64,
        #[pyo3(from_py_with = named::min_colluders)] min_colluders: u32,
        #[pyo3(from_py_with = named::max_delta)] max_delta: f64,
        #[pyo3(from_py_with = named::max_dimension)] max_dimension: u64,
        allow_semi_honest: bool,
        #[pyo3(from_py_with = named::min_roster_epoch)] min_roster_epoch: u64,
        #[pyo3(from_py_with = named::min_model_version)] min_model_version: u64,
        #[pyo3(from_py_with = named::min_interval_s)] min_interval_s: u64,
        #[pyo3(from_py_with = named::max_rounds)] max_rounds: Option<u64>,
        #[pyo3(from_py_with = named::max_round_s)] max_round_s: u64,
        tasks: Vec<String>,
        #[pyo3(from_py_with = named::max_epsilon)] max_epsilon: Option<f64>,
        #[pyo3(from_py_with = named::max_total_epsilon)] max_total_epsilon: Option<f64>,
        #[pyo3(from_py_with = named::privacy_delta)] privacy_delta: f64,
        signed_base_model: bool,
    ) -> PyResult<Self> {
        for (name, value) in [("min_gamma", min_gamma), ("max_delta", max_delta)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(out_of_range(name, value, "a fraction from 0 to 1 is needed"));
            }
        }
        let counts = [("n_min", n_min.unwrap_or(SMALLEST), SMALLEST), ("min_honest", min_honest, 2)];
        for (name, value, least) in counts.into_iter().chain([("min_colluders", min_colluders, 1)]) {
            if value < least {
                return Err(out_of_range(name, f64::from(value), &format!("a whole number from {least} is needed")));
            }
        }
        check_delta(privacy_delta)?;
        for (name, limit) in [("max_epsilon", max_epsilon), ("max_total_epsilon", max_total_epsilon)] {
            if let Some(value) = limit.filter(|epsilon| epsilon.is_nan() || *epsilon <= 0.0) {
                return Err(out_of_range(name, value, "a number above 0 is needed, or None for no such limit"));
            }
        }
        let inner = policy::Policy {
            n_min: n_min.unwrap_or(policy::Policy::default().n_min),
            min_gamma,
            max_delta,
            max_dimension,
            suites: vec![SUITE_V1],
            tasks,
            allow_semi_honest,
            min_roster_epoch,
            min_model_version,
            min_interval_s,
            max_rounds,
            min_honest,
            min_colluders,
            max_round_s,
            signed_base_model,
            // What bounds all rounds bounds each.
            privacy: max_epsilon.or(max_total_epsilon).map(|max_epsilon| PrivacyDemand {
                max_epsilon,
                delta: privacy_delta,
                max_total_epsilon,
            }),
        };
        Ok(Self { inner, n_min })
    }

    /// The smallest sum that is accepted in malicious mode where the roster has so many `devices`. Without an `n_min` of its own, the
    /// policy asks for 10; where the whole roster with `min_gamma` and `max_delta` can't give as much, for what `default_n_min` says. The
    /// roster's size is the registrar's word, so a coordinator can't lower it.
    fn smallest_sum(&self, #[pyo3(from_py_with = named::devices)] devices: u64) -> u32 {
        self.n_min_of(devices)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let p = &self.inner;
        let settings = [
            ("max_dimension", p.max_dimension),
            ("min_roster_epoch", p.min_roster_epoch),
            ("min_model_version", p.min_model_version),
            ("min_interval_s", p.min_interval_s),
            ("max_round_s", p.max_round_s),
        ]
        .into_py_dict(py)?;
        settings.set_item("tasks", &p.tasks)?;
        settings.set_item("n_min", self.n_min)?;
        settings.set_item("min_honest", p.min_honest)?;
        settings.set_item("min_gamma", p.min_gamma)?;
        settings.set_item("min_colluders", p.min_colluders)?;
        settings.set_item("max_delta", p.max_delta)?;
        settings.set_item("max_rounds", p.max_rounds)?;
        settings.set_item("allow_semi_honest", p.allow_semi_honest)?;
        settings.set_item("signed_base_model", p.signed_base_model)?;
        if let Some(PrivacyDemand { max_epsilon, delta, max_total_epsilon }) = p.privacy {
            settings.set_item("max_epsilon", max_epsilon)?;
            settings.set_item("max_total_epsilon", max_total_epsilon)?;
            settings.set_item("privacy_delta", delta)?;
        }
        reduce::<Self>(py, settings)
    }

    fn __repr__(&self) -> String {
        let p = &self.inner;
        let semi_honest = if p.allow_semi_honest { "True" } else { "False" };
        format!(
            "Policy(n_min={}, min_gamma={}, max_delta={}, max_dimension={}, min_interval_s={}, allow_semi_honest={semi_honest})",
            shown(self.n_min),
            p.min_gamma,
            p.max_delta,
            p.max_dimension,
            p.min_interval_s
        )
    }
}
