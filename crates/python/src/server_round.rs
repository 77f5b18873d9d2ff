//! The coordinator's side of one round: bytes in, bytes out.

use std::sync::Arc;

use prost::Message;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::Role;
use unisono_protocol::params::RoundParams as Checked;
use unisono_protocol::proto;
use unisono_protocol::server::{self, Accepted, Authority, Closed, Server};

use crate::arguments::named;
use crate::keys::{Roster, SigningKey};
use crate::params::{Aggregate, RoundParams};
use crate::rng::unix_time;
use crate::state::Exclusive;
use crate::{arrays, errors, threads};

/// The end of a successful round.
#[pyclass(frozen, module = "unisono")]
pub struct Outcome {
    outcome: server::Outcome,
    params: Arc<Checked>,
}

fn ids<'py>(py: Python<'py>, ids: &[ClientId]) -> Vec<Bound<'py, PyBytes>> {
    ids.iter().map(|id| PyBytes::new(py, &id.0)).collect()
}

#[pymethods]
impl Outcome {
    /// The exact sum modulo 2^modulus_bits: update, metrics and weight, in the dtype of `ring_dtype`. A new array each time.
    #[getter]
    fn sum<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        arrays::ring_to_array(py, &self.outcome.sum)
    }

    /// The weighted mean and what goes with it.
    fn decode(&self, py: Python<'_>) -> PyResult<Aggregate> {
        let clients = self.outcome.survivors.len() as u32;
        let dimension = self.params.wire.dimension as usize;
        let decoded = threads::detach(py, || self.params.quantiser.decode(&self.outcome.sum, dimension, clients))?;
        Ok(Aggregate::new(py, decoded.map_err(errors::encoding)?))
    }

    /// Members of the cohort in order of index.
    #[getter]
    fn cohort<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        ids(py, &self.outcome.cohort)
    }

    /// Members whose update is in the sum, ascending.
    #[getter]
    fn survivors<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        ids(py, &self.outcome.survivors)
    }

    /// What clients noticed about each other: (about, by, what).
    #[getter]
    fn reports<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>, &'static str)> {
        let report = |r: &server::Report| (PyBytes::new(py, &r.about.0), PyBytes::new(py, &r.by.0), r.what.code());
        self.outcome.reports.iter().map(report).collect()
    }

    /// Clients that dealt shares from which their own secret can't be rebuilt: to be kept out of the next rounds by
    /// `ServerRound.suspend`. This round has its sum, because they gave the secret themselves.
    #[getter]
    fn suspects<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        ids(py, &self.outcome.suspects())
    }

    fn __repr__(&self) -> String {
        format!("Outcome(survivors={}, cohort={})", self.outcome.survivors.len(), self.outcome.cohort.len())
    }
}

/// The coordinator's side of one round. See `unisono.ServerRound` for the order of calls.
#[pyclass(frozen, module = "unisono")]
pub struct ServerRound {
    server: Exclusive<Server>,
    params: Arc<Checked>,
}

fn client_id(bytes: &[u8]) -> PyResult<ClientId> {
    ClientId::from_slice(bytes).ok_or_else(|| {
        errors::class::RefusalError::new_err((
            format!("a client id has 16 bytes, this one {}", bytes.len()),
            None::<Vec<u8>>,
            None::<String>,
            "incomplete",
        ))
    })
}

/// Which client a message names as its sender; true only once the round has absorbed the message.
#[pyfunction]
pub fn sender_of<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let message = proto::ClientMessage::decode(message).map_err(|error| errors::malformed("message", error))?;
    Ok(PyBytes::new(py, &client_id(&message.client_id)?.0))
}

#[pymethods]
impl ServerRound {
    /// Opens a round. In malicious mode the coordinator's key and the roster make its word count. KeyFileError for a key of
    /// another role, RosterError for a roster that is not the round's, or does not name the key.
    #[new]
    #[pyo3(signature = (params, *, coordinator_key=None, roster=None))]
    fn new(
        py: Python<'_>,
        params: &RoundParams,
        coordinator_key: Option<&SigningKey>,
        roster: Option<&Roster>,
    ) -> PyResult<Self> {
        let authority = match (coordinator_key, roster) {
            (Some(key), Some(roster)) => {
                let signing_key = key.of_role(Role::Coordinator, "coordinator's key")?.clone();
                Some(Authority { signing_key, roster: roster.inner.clone() })
            }
            (None, None) => None,
            _ => {
                let text = "a coordinator's key and a roster go together: pass both, or none in semi-honest mode";
                return Err(errors::class::RosterError::new_err(text));
            }
        };
        let server = threads::detach(py, || Server::open(&params.checked.wire, authority))?.map_err(errors::open)?;
        let params = server.params().clone();
        Ok(Self { server: Exclusive::new(server), params })
    }

    /// What clients need to decide whether they take part.
    fn offer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let offer = self.server.with(py, |server| Ok(server.offer().encode_to_vec()))?;
        Ok(PyBytes::new(py, &offer))
    }

    /// Adds the publisher's word on the base model (`model_version` and `model_hash` of the parameters) to the offer, for devices
    /// whose policy demands a `signed_base_model`. The roster must name the publisher. KeyFileError for a key of another role.
    fn sign_base_model(&self, py: Python<'_>, publisher: &SigningKey) -> PyResult<()> {
        let key = publisher.of_role(Role::Publisher, "publisher's key")?;
        self.server.with(py, |server| {
            server.sign_base_model(key);
            Ok(())
        })
    }

    /// "advertise", "share", "mask", "confirm" or "unmask".
    #[getter]
    fn phase(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.server.with(py, |server| Ok(server.phase().name()))
    }

    /// Takes a client's message; returns whether it was new. A refused message changes nothing.
    #[pyo3(signature = (message, *, now=None))]
    fn absorb(
        &self,
        py: Python<'_>,
        message: &[u8],
        #[pyo3(from_py_with = named::now)] now: Option<u64>,
    ) -> PyResult<bool> {
        let message = proto::ClientMessage::decode(message).map_err(|error| {
            let text = format!("the message can't be decoded: {error}");
            errors::class::RefusalError::new_err((text, None::<Vec<u8>>, None::<String>, "malformed"))
        })?;
        self.server.with(py, |server| {
            let accepted = server.absorb(&message, unix_time(now)).map_err(errors::refusal)?;
            Ok(accepted == Accepted::New)
        })
    }

    /// Takes the packed vector of a client whose message announced it; returns whether it was new.
    fn absorb_upload(&self, py: Python<'_>, client_id: &[u8], packed: &[u8]) -> PyResult<bool> {
        let client = self::client_id(client_id)?;
        self.server.with(py, |server| {
            let accepted = server.absorb_upload(client, packed).map_err(errors::refusal)?;
            Ok(accepted == Accepted::New)
        })
    }

    /// Refuses the client's adverts, with the code "suspended": in a round before, number `since`, it dealt wrong shares
    /// (`AbortError.suspects`, `Outcome.suspects`). It may come again in rounds above `until`.
    fn suspend(
        &self,
        py: Python<'_>,
        client_id: &[u8],
        #[pyo3(from_py_with = named::since)] since: u64,
        #[pyo3(from_py_with = named::until)] until: u64,
    ) -> PyResult<()> {
        let client = self::client_id(client_id)?;
        self.server.with(py, |server| {
            server.suspend(client, since, until);
            Ok(())
        })
    }

    /// What a client gets to see in this phase; None for one that has no part in it, and in the first phase.
    fn view<'py>(&self, py: Python<'py>, client_id: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let client = self::client_id(client_id)?;
        let view = self.server.with(py, |server| Ok(server.view(client).map(|view| view.encode_to_vec())))?;
        Ok(view.map(|view| PyBytes::new(py, &view)))
    }

    /// Clients that took this phase's step, and clients that may take it.
    #[getter]
    fn progress(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        self.server.with(py, |server| {
            let progress = server.progress();
            Ok((progress.answered, progress.expected))
        })
    }

    /// Whether waiting longer gains nothing.
    #[getter]
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.server.with(py, |server| Ok(server.ready()))
    }

    /// Clients that may take this phase's step and have not.
    #[getter]
    fn missing<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let missing = self.server.with(py, |server| Ok(server.missing()))?;
        Ok(ids(py, &missing))
    }

    /// Closes the phase. Returns None when another phase follows, the outcome at the end; raises AbortError when the round
    /// ends without a sum.
    fn close(&self, py: Python<'_>) -> PyResult<Option<Outcome>> {
        self.server.replace(py, |server| match server.close() {
            Ok(Closed::Next(next)) => (Some(*next), Ok(None)),
            Ok(Closed::Finished(outcome)) => (None, Ok(Some(Outcome { outcome, params: self.params.clone() }))),
            Err(abort) => (None, Err(errors::abort(abort))),
        })
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let phase = self.phase(py).unwrap_or("over");
        format!("ServerRound(phase={phase:?}, dimension={})", self.params.wire.dimension)
    }
}
