//! A device's side of one round: bytes in, bytes out.

use std::sync::Arc;

use prost::Message;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_protocol::client::{
    Advertised, ClientError, Confirmed, Done, Joining, Masked, Rejected, Resumed, Shared, Trust,
};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{self, ClientMessage, server_message::View};
use zeroize::Zeroizing;

use crate::arguments::named;
use crate::keys::{DeviceKeys, verifying_key};
use crate::params::Policy;
use crate::record::PyRecord;
use crate::rng::{rng, unix_time};
use crate::state::Exclusive;
use crate::{arrays, errors, threads};

#[allow(clippy::large_enum_variant)] // one of them lives at a time
enum State {
    Advertised(Advertised),
    Shared(Shared),
    Masked(Masked),
    Confirmed(Confirmed),
    Done(Done),
}

impl State {
    fn message(&self) -> &ClientMessage {
        match self {
            Self::Advertised(state) => state.message(),
            Self::Shared(state) => state.message(),
            Self::Masked(state) => state.message(),
            Self::Confirmed(state) => state.message(),
            Self::Done(state) => state.message(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Advertised(_) => "advertised",
            Self::Shared(_) => "shared",
            Self::Masked(_) => "masked",
            Self::Confirmed(_) => "confirmed",
            Self::Done(_) => "done",
        }
    }

    fn save(&self) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Advertised(state) => state.save(),
            Self::Shared(state) => state.save(),
            Self::Masked(state) => state.save(),
            Self::Confirmed(state) => state.save(),
            Self::Done(state) => state.save(),
        }
    }
}

/// What a step gave: the state to keep, and the message or the error.
fn stepped<S, T>(
    result: Result<T, Rejected<S>>,
    before: impl FnOnce(S) -> State,
    after: impl FnOnce(T) -> State,
) -> (Option<State>, PyResult<Vec<u8>>) {
    match result {
        Ok(next) => {
            let state = after(next);
            let message = state.message().encode_to_vec();
            (Some(state), Ok(message))
        }
        Err(rejected) => (Some(before(*rejected.state)), Err(errors::client(rejected.error))),
    }
}

/// An update that was checked to be an array, and is still NumPy's memory.
struct Input<'a> {
    update: &'a [f32],
    weight: f32,
    metrics: Vec<f32>,
}

fn advance(
    params: &RoundParams,
    state: State,
    view: View,
    input: Option<Input<'_>>,
    record: &mut PyRecord,
    now: u64,
) -> (Option<State>, PyResult<Vec<u8>>) {
    let needs_input = matches!((&state, &view), (State::Shared(_), View::Masking(_)));
    if needs_input != input.is_some() {
        let text = if needs_input {
            "this step masks the update: pass receive(view, update=.., weight=..)"
        } else {
            "this step takes no update: it is masked when the device has shared its keys"
        };
        return (Some(state), Err(errors::state(text)));
    }
    match (state, view) {
        (State::Advertised(state), View::Cohort(view)) => {
            stepped(state.share(&view, record, now, &mut *rng(None)), State::Advertised, State::Shared)
        }
        (State::Shared(state), View::Masking(view)) => {
            let Input { update, weight, metrics } =
                input.unwrap_or(Input { update: &[], weight: 0.0, metrics: Vec::new() });
            let contribution = Contribution { update, metrics: &metrics, weight };
            let dimension = params.wire.dimension as usize;
            match params.quantiser.encode(contribution, dimension, params.modulus, &mut *rng(None)) {
                Ok(vector) => stepped(state.mask(&view, vector, record, now), State::Shared, State::Masked),
                Err(error) => (Some(State::Shared(state)), Err(errors::encoding(error))),
            }
        }
        (State::Masked(state), View::Survivors(view)) if params.malicious() => {
            stepped(state.confirm(&view, record), State::Masked, State::Confirmed)
        }
        (State::Masked(state), View::Survivors(view)) => {
            stepped(state.release(&view, record), State::Masked, State::Done)
        }
        (State::Confirmed(state), View::Tags(view)) => {
            stepped(state.release(&view, record), State::Confirmed, State::Done)
        }
        (state, view) => {
            let got = match view {
                View::Cohort(_) => "the cohort",
                View::Masking(_) => "the shares",
                View::Survivors(_) => "the survivors",
                View::Tags(_) => "the tags",
            };
            let text = format!("a device that has {} can't take {got} now", state.name());
            (Some(state), Err(errors::state(text)))
        }
    }
}

/// A device's side of one round. See `unisono.ClientRound` for the order of calls.
#[pyclass(frozen, module = "unisono")]
pub struct ClientRound {
    state: Exclusive<State>,
    params: Arc<RoundParams>,
    record: Py<PyAny>,
}

fn offer_of(bytes: &[u8]) -> PyResult<proto::RoundOffer> {
    proto::RoundOffer::decode(bytes).map_err(|error| errors::malformed("offer", error))
}

#[pymethods]
impl ClientRound {
    /// Checks the offer and draws the round's secrets; `message()` is then the advert.
    #[new]
    #[pyo3(signature = (offer, keys, *, record, registrar_key=None, policy=None, now=None))]
    fn new(
        py: Python<'_>,
        offer: &[u8],
        keys: &DeviceKeys,
        record: Py<PyAny>,
        registrar_key: Option<&[u8]>,
        policy: Option<&Policy>,
        #[pyo3(from_py_with = named::now)] now: Option<u64>,
    ) -> PyResult<Self> {
        let offer = offer_of(offer)?;
        let trust = Trust {
            registrar: registrar_key.map(verifying_key).transpose()?,
            policy: policy.map(|policy| policy.inner.clone()).unwrap_or_default(),
        };
        let mut py_record = PyRecord(record.clone_ref(py));
        let (params, state) = threads::detach(py, || {
            let joining = Joining::new(&offer, keys.identity(), &trust, &mut py_record, unix_time(now))?;
            let params = Arc::new(joining.params().clone());
            Ok::<_, ClientError>((params, joining.advertise(&mut *rng(None))))
        })?
        .map_err(errors::client)?;
        Ok(Self { state: Exclusive::new(State::Advertised(state)), params, record })
    }

    /// Goes on with a round whose state `save` gave. The record refuses what a state saved
    /// earlier would answer otherwise than the device did.
    #[staticmethod]
    #[pyo3(signature = (saved, offer, keys, *, record, registrar_key=None))]
    fn resume(
        py: Python<'_>,
        saved: &[u8],
        offer: &[u8],
        keys: &DeviceKeys,
        record: Py<PyAny>,
        registrar_key: Option<&[u8]>,
    ) -> PyResult<Self> {
        let offer = offer_of(offer)?;
        let registrar = registrar_key.map(verifying_key).transpose()?;
        let (params, resumed) = threads::detach(py, || {
            let resumed = Resumed::from_bytes(saved, &offer, keys.identity(), registrar.as_ref())?;
            let payload = offer.params.as_ref().map(|signed| signed.payload.as_slice()).unwrap_or_default();
            Ok::<_, ClientError>((RoundParams::from_payload(payload)?, resumed))
        })?
        .map_err(errors::client)?;
        let state = match resumed {
            Resumed::Advertised(state) => State::Advertised(state),
            Resumed::Shared(state) => State::Shared(state),
            Resumed::Masked(state) => State::Masked(state),
            Resumed::Confirmed(state) => State::Confirmed(state),
            Resumed::Done(state) => State::Done(state),
        };
        Ok(Self { state: Exclusive::new(state), params: Arc::new(params), record })
    }

    /// The state as bytes, without a masked vector. They are secret.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let saved = self.state.with(py, |state| Ok(state.save()))?;
        Ok(PyBytes::new(py, &saved))
    }

    /// What this device owes the coordinator; the same bytes until the next step.
    fn message<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let message = self.state.with(py, |state| Ok(state.message().encode_to_vec()))?;
        Ok(PyBytes::new(py, &message))
    }

    /// "advertised", "shared", "masked", "confirmed" or "done".
    #[getter]
    fn phase(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.state.with(py, |state| Ok(state.name()))
    }

    /// Elements of the update that the round asks for.
    #[getter]
    fn dimension(&self) -> u64 {
        self.params.wire.dimension
    }

    /// Takes what the coordinator shows and returns the next message. The update is passed when the shares arrive, and only then.
    #[pyo3(signature = (view, *, update=None, weight=1.0, metrics=Vec::new(), now=None))]
    fn receive<'py>(
        &self,
        py: Python<'py>,
        view: &[u8],
        update: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = named::weight)] weight: f32,
        #[pyo3(from_py_with = named::metrics)] metrics: Vec<f32>,
        #[pyo3(from_py_with = named::now)] now: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let view = proto::ServerMessage::decode(view).map_err(|error| errors::malformed("view", error))?;
        let view = view.view.ok_or_else(|| errors::class::ClientError::new_err("the view is empty"))?;
        let array = update.map(|update| arrays::readable::<f32>(update, "update")).transpose()?;
        let update = array.as_ref().map(|array| array.as_slice()).transpose().map_err(arrays::gaps)?;
        let mut record = PyRecord(self.record.clone_ref(py));
        let message = self.state.replace(py, |state| {
            let input = update.map(|update| Input { update, weight, metrics });
            advance(&self.params, state, view, input, &mut record, unix_time(now))
        })?;
        Ok(PyBytes::new(py, &message))
    }

    /// The packed masked vector, to be sent with the message that `receive` returned for the shares.
    fn upload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let packed = self.state.with(py, |state| {
            let State::Masked(masked) = state else {
                return Err(errors::state(format!("a device that has {} has no upload", state.name())));
            };
            let chunks: Option<Vec<Vec<u8>>> = (0..masked.chunks()).map(|i| masked.chunk(i)).collect();
            let chunks =
                chunks.ok_or_else(|| errors::state("a resumed round has no upload: it was sent before save()"))?;
            Ok(chunks.concat())
        })?;
        Ok(PyBytes::new(py, &packed))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let phase = self.phase(py).unwrap_or("refused");
        format!("ClientRound(phase={phase:?}, dimension={})", self.params.wire.dimension)
    }
}
