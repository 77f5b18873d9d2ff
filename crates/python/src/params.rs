//! A round's parameters, the quantiser, a device's policy and what the degree search finds.

use numpy::PyArray1;
use prost::Message;
use pyo3::PyTypeInfo;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyTuple};
use unisono_protocol::degree::{self, Assumptions, SecurityMode};
use unisono_protocol::encoding::{self, Rounding};
use unisono_protocol::params::{self, SUITE_V1};
use unisono_protocol::rotation::Rotation;
use unisono_protocol::{policy, proto};

use crate::arrays::whole;
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

/// Smallest b so that `clients` values of `bits` bits sum to less than 2^b.
#[pyfunction]
pub fn modulus_bits(bits: &Bound<'_, PyAny>, clients: &Bound<'_, PyAny>) -> PyResult<u32> {
    let (bits, clients) = (whole(bits, "bits", u32::MAX)?, whole(clients, "clients", u32::MAX)?);
    encoding::modulus_bits(bits, clients).map_err(errors::encoding)
}

/// Neighbours, shares and survivors that a cohort needs (section 9 of the protocol).
#[pyclass(frozen, get_all, module = "unisono")]
pub struct Topology {
    /// Neighbours of each client, k.
    degree: u32,
    /// Shares that rebuild a secret, t.
    threshold: u32,
    /// Survivors that each window of k/2 places must exceed; None where no window is checked.
    window_bound: Option<u32>,
}

#[pymethods]
impl Topology {
    fn __repr__(&self) -> String {
        let window = self.window_bound.map_or_else(|| "None".into(), |bound| bound.to_string());
        format!("Topology(degree={}, threshold={}, window_bound={window})", self.degree, self.threshold)
    }
}

impl From<degree::Topology> for Topology {
    fn from(found: degree::Topology) -> Self {
        Self { degree: found.degree, threshold: found.threshold, window_bound: found.window_bound }
    }
}

/// Degree and threshold for `clients` of which fractions may collude and drop out.
#[pyfunction]
#[pyo3(signature = (clients, *, gamma=0.05, delta=0.1, mode="malicious"))]
pub fn find_degree(
    py: Python<'_>,
    clients: &Bound<'_, PyAny>,
    gamma: f64,
    delta: f64,
    mode: &str,
) -> PyResult<Topology> {
    let clients = whole(clients, "clients", u32::MAX)?;
    let assumptions = Assumptions { gamma, delta, mode: mode_of(mode)? };
    let found = threads::detach(py, || degree::find(clients, &assumptions))?;
    found.map(Topology::from).map_err(|error| errors::class::ParamsError::new_err(error.to_string()))
}

/// How updates become integers: clip, weigh, scale to `bits` bits, round. With `rotate` large elements are spread over others first, so that a
/// smaller `clip` serves.
#[pyclass(frozen, module = "unisono")]
pub struct Quantiser {
    pub inner: encoding::Quantiser,
}

#[pymethods]
impl Quantiser {
    #[new]
    #[pyo3(signature = (*, bits=16, clip=1.0, max_weight=1.0, l2_clip=None, rounding="stochastic", metrics=Vec::new(), rotate=false))]
    fn new(
        bits: u32,
        clip: f32,
        max_weight: f32,
        l2_clip: Option<f32>,
        rounding: &str,
        metrics: Vec<(f32, f32)>,
        rotate: bool,
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
        let inner = encoding::Quantiser {
            bits,
            clip,
            l2_clip,
            max_weight,
            rounding,
            metric_bounds: metrics,
            privacy: None,
            rotation: rotate.then(Rotation::default),
        };
        inner.validate().map_err(errors::encoding)?;
        Ok(Self { inner })
    }

    #[getter]
    fn bits(&self) -> u32 {
        self.inner.bits
    }

    #[getter]
    fn clip(&self) -> f32 {
        self.inner.clip
    }

    #[getter]
    fn l2_clip(&self) -> Option<f32> {
        self.inner.l2_clip
    }

    #[getter]
    fn max_weight(&self) -> f32 {
        self.inner.max_weight
    }

    #[getter]
    fn rounding(&self) -> &'static str {
        if self.inner.rounding == Rounding::Stochastic { "stochastic" } else { "deterministic" }
    }

    #[getter]
    fn metrics(&self) -> Vec<(f32, f32)> {
        self.inner.metric_bounds.clone()
    }

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
        reduce::<Self>(py, settings)
    }

    fn __repr__(&self) -> String {
        let (q, rounding) = (&self.inner, self.rounding());
        format!("Quantiser(bits={}, clip={}, max_weight={}, rounding={rounding:?})", q.bits, q.clip, q.max_weight)
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
}

impl Aggregate {
    pub fn new(py: Python<'_>, decoded: encoding::Aggregate) -> Self {
        Self {
            mean: PyArray1::from_vec(py, decoded.mean).unbind(),
            metrics: decoded.metrics,
            total_weight: decoded.total_weight,
            error_bound: decoded.error_bound,
        }
    }
}

#[pymethods]
impl Aggregate {
    fn __repr__(&self) -> String {
        format!("Aggregate(total_weight={}, error_bound={})", self.total_weight, self.error_bound)
    }
}

/// What the coordinator proposes for one round. Checked when made.
#[pyclass(frozen, module = "unisono")]
pub struct RoundParams {
    pub checked: params::RoundParams,
}

#[pymethods]
impl RoundParams {
    #[new]
    #[pyo3(signature = (
        *, dimension, n_min, n_max, quantiser, task="python", round=1, gamma=0.05, delta=0.1, mode="malicious",
        roster=None, model_version=0, model_hash=None, modulus_bits=None, chunk_elements=65536, now=None
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python constructor
    fn new(
        py: Python<'_>,
        dimension: &Bound<'_, PyAny>,
        n_min: &Bound<'_, PyAny>,
        n_max: &Bound<'_, PyAny>,
        quantiser: &Quantiser,
        task: &str,
        round: u64,
        gamma: f64,
        delta: f64,
        mode: &str,
        roster: Option<&Roster>,
        model_version: u64,
        model_hash: Option<[u8; 32]>,
        modulus_bits: Option<u32>,
        chunk_elements: u32,
        now: Option<u64>,
    ) -> PyResult<Self> {
        let (n_min, n_max) = (whole(n_min, "n_min", u32::MAX)?, whole(n_max, "n_max", u32::MAX)?);
        let dimension = whole(dimension, "dimension", u64::MAX)?;
        let mode = mode_of(mode)?;
        let malicious = mode == SecurityMode::Malicious;
        if malicious != roster.is_some() {
            let text =
                "malicious mode needs a roster, semi-honest mode has none: pass roster=.. or mode=\"semi-honest\"";
            return Err(errors::class::RosterError::new_err(text));
        }
        let needed = encoding::modulus_bits(quantiser.inner.bits, n_max.max(1)).map_err(errors::encoding)?;
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
            quantiser: Some(params::quantiser_to_wire(&quantiser.inner)),
            n_min,
            n_max,
            gamma,
            delta,
            mode: mode as i32,
            deadlines: Some(proto::PhaseDeadlines::default()),
            model_version,
            model_hash: model_hash.unwrap_or_default().to_vec(),
            chunk_elements,
            opened_at: unix_time(now),
        };
        let payload = wire.encode_to_vec();
        let checked = threads::detach(py, || params::RoundParams::from_payload(&payload))?.map_err(errors::params)?;
        Ok(Self { checked })
    }

    /// Hash of the parameters, to which everything in the round is bound; 32 bytes.
    #[getter]
    fn round_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.checked.round_id.0)
    }

    #[getter]
    fn dimension(&self) -> u64 {
        self.checked.wire.dimension
    }

    #[getter]
    fn modulus_bits(&self) -> u32 {
        self.checked.wire.modulus_bits
    }

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

    /// Degree, threshold and window bound for a cohort of `n`.
    fn topology(&self, py: Python<'_>, n: u32) -> PyResult<Topology> {
        threads::detach(py, || self.checked.topology(n))?.map(Topology::from).map_err(errors::params)
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

/// What a device accepts, whatever the coordinator proposes. Every limit is inclusive.
#[pyclass(frozen, module = "unisono")]
pub struct Policy {
    pub inner: policy::Policy,
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (
        *, n_min=10, min_gamma=0.01, max_delta=0.4, max_dimension=1 << 28, allow_semi_honest=false, min_roster_epoch=0,
        min_model_version=0, min_interval_s=0, tasks=Vec::new()
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python constructor
    fn new(
        n_min: u32,
        min_gamma: f64,
        max_delta: f64,
        max_dimension: u64,
        allow_semi_honest: bool,
        min_roster_epoch: u64,
        min_model_version: u64,
        min_interval_s: u64,
        tasks: Vec<String>,
    ) -> Self {
        let inner = policy::Policy {
            n_min,
            min_gamma,
            max_delta,
            max_dimension,
            suites: vec![SUITE_V1],
            tasks,
            privacy: None,
            allow_semi_honest,
            min_roster_epoch,
            min_model_version,
            min_interval_s,
        };
        Self { inner }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let p = &self.inner;
        let settings = [
            ("max_dimension", p.max_dimension),
            ("min_roster_epoch", p.min_roster_epoch),
            ("min_model_version", p.min_model_version),
            ("min_interval_s", p.min_interval_s),
        ]
        .into_py_dict(py)?;
        settings.set_item("tasks", &p.tasks)?;
        settings.set_item("n_min", p.n_min)?;
        settings.set_item("min_gamma", p.min_gamma)?;
        settings.set_item("max_delta", p.max_delta)?;
        settings.set_item("allow_semi_honest", p.allow_semi_honest)?;
        reduce::<Self>(py, settings)
    }

    fn __repr__(&self) -> String {
        let p = &self.inner;
        let semi_honest = if p.allow_semi_honest { "True" } else { "False" };
        format!(
            "Policy(n_min={}, min_gamma={}, max_delta={}, max_dimension={}, allow_semi_honest={semi_honest})",
            p.n_min, p.min_gamma, p.max_delta, p.max_dimension
        )
    }
}
