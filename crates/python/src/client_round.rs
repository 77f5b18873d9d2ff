//! A device's side of one round: bytes in, bytes out.

use std::sync::Arc;

use prost::Message;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_protocol::client::{ClientError, Session, Trust};
use unisono_protocol::encoding::Contribution;
use unisono_protocol::params::RoundParams;
use unisono_protocol::proto::{self, server_message::View};

use crate::arguments::named;
use crate::keys::{DeviceKeys, verifying_key};
use crate::params::Policy;
use crate::record::PyRecord;
use crate::rng::{rng, unix_time};
use crate::state::Exclusive;
use crate::{arrays, errors, threads};

/// A device's side of one round. See `unisono.ClientRound` for the order of calls.
#[pyclass(frozen, module = "unisono")]
pub struct ClientRound {
    session: Exclusive<Session>,
    params: Arc<RoundParams>,
    record: Py<PyAny>,
}

fn offer_of(bytes: &[u8]) -> PyResult<proto::RoundOffer> {
    proto::RoundOffer::decode(bytes).map_err(|error| errors::malformed("offer", error))
}

fn trust(registrar_key: Option<&[u8]>, policy: Option<&Policy>, offer: &proto::RoundOffer) -> PyResult<Trust> {
    let policy = policy.map_or_else(|| Policy::default().for_offer(offer), |policy| policy.for_offer(offer));
    Ok(Trust { registrar: registrar_key.map(verifying_key).transpose()?, policy })
}

/// What the device owes, as bytes.
fn message_of(session: &Session) -> PyResult<Vec<u8>> {
    let message = session.message().ok_or_else(|| errors::client(ClientError::Erased))?;
    Ok(message.encode_to_vec())
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
        let trust = trust(registrar_key, policy, &offer)?;
        let mut py_record = PyRecord(record.clone_ref(py));
        let session = threads::detach(py, || {
            Session::join(&offer, keys.identity(), &trust, &mut py_record, unix_time(now), &mut *rng(None))
        })?
        .map_err(errors::client)?;
        Ok(Self { params: session.params().clone(), session: Exclusive::new(session), record })
    }

    /// Goes on with a round whose state `save` gave. The record refuses what a state saved
    /// earlier would answer otherwise than the device did. Of the policy, the limits over rounds and on time are asked again.
    #[staticmethod]
    #[pyo3(signature = (saved, offer, keys, *, record, registrar_key=None, policy=None))]
    fn resume(
        py: Python<'_>,
        saved: &[u8],
        offer: &[u8],
        keys: &DeviceKeys,
        record: Py<PyAny>,
        registrar_key: Option<&[u8]>,
        policy: Option<&Policy>,
    ) -> PyResult<Self> {
        let offer = offer_of(offer)?;
        let trust = trust(registrar_key, policy, &offer)?;
        let session =
            threads::detach(py, || Session::resume(saved, &offer, keys.identity(), &trust))?.map_err(errors::client)?;
        Ok(Self { params: session.params().clone(), session: Exclusive::new(session), record })
    }

    /// The state as bytes, without a masked vector. They are secret. StateError once the secrets were erased.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let saved = self.session.with(py, |session| session.save().map_err(errors::client))?;
        Ok(PyBytes::new(py, &saved))
    }

    /// What this device owes the coordinator; the same bytes until the next step. StateError once the secrets were erased.
    fn message<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let message = self.session.with(py, |session| message_of(session))?;
        Ok(PyBytes::new(py, &message))
    }

    /// The phase whose view this device takes next: "share", "mask" (with the update), "confirm" (on the committee only; a
    /// certificate will do too) or "unmask". None when nothing is left to do: its shares were revealed, or its secrets erased.
    #[getter]
    fn awaits(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        self.session.with(py, |session| Ok(session.awaits().map(|phase| phase.name())))
    }

    /// Whether this device's shares were revealed: nothing is left but to send `message()` until it is acknowledged.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        self.session.with(py, |session| Ok(session.is_done()))
    }

    /// Elements of the update that the round asks for.
    #[getter]
    fn dimension(&self) -> u64 {
        self.params.wire.dimension
    }

    /// Bound of an element of the update: what is beyond it is cut.
    #[getter]
    fn clip(&self) -> f64 {
        self.params.quantiser.clip.into()
    }

    /// Bounds of runs of elements in the place of `clip`: (elements, clip) in order; empty where `clip` is the bound of all.
    #[getter]
    fn clips(&self) -> Vec<(u64, f32)> {
        self.params.quantiser.clips.iter().map(|run| (run.elements, run.clip)).collect()
    }

    /// How many metrics the round asks for.
    #[getter]
    fn metrics(&self) -> usize {
        self.params.quantiser.metric_bounds.len()
    }

    /// Last second (Unix time) at which this device masks, endorses or reveals in the round: then the host calls `erase()`.
    /// None before a cohort was accepted, and when nothing is left to do.
    #[getter]
    fn erase_at(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.session.with(py, |session| Ok(session.erase_at()))
    }

    /// Forgets every secret of the round, for good: when `erase_at` has passed, when the round has ended, and when the device
    /// goes on to another. Delete what `save()` gave, too.
    fn erase(&self, py: Python<'_>) -> PyResult<()> {
        self.session.with(py, |session| {
            session.erase();
            Ok(())
        })
    }

    /// Takes what the coordinator shows and returns the next message. The update (float32, `dimension` elements) is passed when
    /// `awaits` is "mask", and only then; `weight` is above 0 and at most the quantiser's `max_weight`. `now` is Unix time in
    /// seconds, by default the system's.
    ///
    /// A refused view raises and changes nothing, except where the round is over for this device (ClientError for a certificate
    /// without it, or past `erase_at`): then its secrets are erased.
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
        let update = update.map(|update| arrays::copied::<f32>(update, "update")).transpose()?;
        let mut record = PyRecord(self.record.clone_ref(py));
        let params = &self.params;
        let message = self.session.with(py, |session| {
            let input = match (session.wants_input() && matches!(view, View::Masking(_)), update.as_deref()) {
                (false, None) => None,
                (true, Some(update)) => {
                    let contribution = Contribution { update, metrics: &metrics, weight };
                    let dimension = params.wire.dimension as usize;
                    let encoded = params.quantiser.encode(contribution, dimension, params.modulus, &mut *rng(None));
                    Some(encoded.map_err(errors::encoding)?)
                }
                (true, None) => {
                    return Err(errors::state("this step masks the update: pass receive(view, update=.., weight=..)"));
                }
                (false, Some(_)) => {
                    return Err(errors::state(
                        "this step takes no update: it is masked when the device has shared its keys, once",
                    ));
                }
            };
            session.receive(&view, input, &mut record, unix_time(now), &mut *rng(None)).map_err(errors::client)?;
            message_of(session)
        })?;
        Ok(PyBytes::new(py, &message))
    }

    /// The packed masked vector, to be sent with the message that `receive` returned for the update. StateError before the
    /// update was masked, after the next step, and in a resumed round: it is sent before `save()`.
    fn upload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let packed = self.session.with(py, |session| {
            let chunks: Option<Vec<Vec<u8>>> = (0..session.chunks()).map(|i| session.chunk(i)).collect();
            chunks.filter(|chunks| !chunks.is_empty()).map(|chunks| chunks.concat()).ok_or_else(|| {
                errors::state(
                    "this round has no upload: the update was not masked yet, another step came since, or the round was \
                     resumed, which is after the upload was sent",
                )
            })
        })?;
        Ok(PyBytes::new(py, &packed))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let awaits = self.awaits(py).ok().flatten().map_or_else(|| "None".to_owned(), |phase| format!("{phase:?}"));
        format!("ClientRound(awaits={awaits}, dimension={})", self.params.wire.dimension)
    }
}
