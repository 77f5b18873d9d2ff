//! Long-term keys and the roster: the registrar's, the coordinator's and the devices' provisioning.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_crypto::kdf::{Label, label};
use unisono_crypto::sign;
use unisono_protocol::keyfile::{self, Enrolment, Role};
use unisono_protocol::{client, roster};

use crate::arguments::{KeyBytes, named};
use crate::rng::{rng, unix_time};
use crate::{errors, threads};

fn role_of(name: &str) -> PyResult<Role> {
    match name {
        "registrar" => Ok(Role::Registrar),
        "coordinator" => Ok(Role::Coordinator),
        "publisher" => Ok(Role::Publisher),
        other => Err(errors::class::KeyFileError::new_err(format!(
            "the role is {other:?}; allowed is \"registrar\", \"coordinator\" or \"publisher\""
        ))),
    }
}

/// The protocol's signatures, by purpose. A signature for one purpose verifies for no other.
fn purpose_of(name: &str) -> PyResult<Label> {
    Ok(match name {
        "roster" => label::SIG_ROSTER,
        "round-params" => label::SIG_ROUND_PARAMS,
        "cohort" => label::SIG_COHORT,
        "release" => label::SIG_RELEASE,
        "grant" => label::SIG_GRANT,
        "client-request" => label::SIG_CLIENT_REQUEST,
        other => {
            return Err(errors::class::CryptoError::new_err(format!(
                "the purpose is {other:?}; allowed is \"roster\", \"round-params\", \"cohort\", \"release\", \"grant\" or \
                 \"client-request\""
            )));
        }
    })
}

pub fn verifying_key(bytes: &[u8]) -> PyResult<sign::VerifyingKey> {
    sign::VerifyingKey::from_bytes(bytes).map_err(errors::crypto)
}

/// Verifies a hybrid signature (Ed25519 and ML-DSA, both) for one purpose; raises CryptoError otherwise.
#[pyfunction]
pub fn verify(py: Python<'_>, verifying_key: &[u8], purpose: &str, message: &[u8], signature: &[u8]) -> PyResult<()> {
    let (key, purpose) = (self::verifying_key(verifying_key)?, purpose_of(purpose)?);
    threads::detach(py, || key.verify(purpose, message, signature))?.map_err(errors::crypto)
}

/// Reads a public key file of the given role: the verifying key's bytes.
#[pyfunction]
pub fn read_public_key<'py>(py: Python<'py>, role: &str, text: &str) -> PyResult<Bound<'py, PyBytes>> {
    let key = keyfile::verifying_key_from_text(role_of(role)?, text).map_err(errors::key_file)?;
    Ok(PyBytes::new(py, key.as_bytes()))
}

/// A long-term signing key (Ed25519 + ML-DSA-65) of a registrar, coordinator or publisher.
#[pyclass(frozen, module = "unisono")]
pub struct SigningKey {
    key: sign::SigningKey,
    role: Role,
}

impl SigningKey {
    /// The key, if it is of the role that `what` asks for.
    pub fn of_role(&self, wanted: Role, what: &str) -> PyResult<&sign::SigningKey> {
        if self.role == wanted {
            return Ok(&self.key);
        }
        Err(errors::class::KeyFileError::new_err(format!(
            "the {what} is a {} key; a {wanted} key is needed: SigningKey.generate(\"{wanted}\") or from_text(\"{wanted}\", ..)",
            self.role
        )))
    }
}

#[pymethods]
impl SigningKey {
    /// A fresh key for a role.
    #[staticmethod]
    #[pyo3(signature = (role, *, seed=None))]
    fn generate(
        py: Python<'_>,
        role: &str,
        #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>,
    ) -> PyResult<Self> {
        let role = role_of(role)?;
        Ok(Self { key: threads::detach(py, || sign::SigningKey::generate(sign::Level::L65, &mut *rng(seed)))?, role })
    }

    /// Reads a key file of the given role.
    #[staticmethod]
    fn from_text(role: &str, text: &str) -> PyResult<Self> {
        let role = role_of(role)?;
        Ok(Self { key: keyfile::signing_key_from_text(role, text).map_err(errors::key_file)?, role })
    }

    /// The key file. It is secret.
    fn to_text(&self) -> String {
        keyfile::signing_key_to_text(self.role, &self.key).to_string()
    }

    /// The public half, 1984 bytes.
    #[getter]
    fn verifying_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.key.verifying_key().as_bytes())
    }

    /// The public half as a key file, for `unisono registrar` and `read_public_key`.
    fn public_text(&self) -> String {
        keyfile::verifying_key_to_text(self.role, &self.key.verifying_key())
    }

    /// "registrar", "coordinator" or "publisher".
    #[getter]
    fn role(&self) -> String {
        self.role.to_string()
    }

    /// Signs a message for one purpose; the same message gives the same bytes.
    fn sign<'py>(&self, py: Python<'py>, purpose: &str, message: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let purpose = purpose_of(purpose)?;
        let signature = threads::detach(py, || self.key.sign(purpose, message))?;
        Ok(PyBytes::new(py, &signature))
    }

    fn __repr__(&self) -> String {
        format!("SigningKey(role=\"{}\", ..)", self.role)
    }
}

/// A device's long-term secrets: its name, the identity key and the release key.
#[pyclass(frozen, module = "unisono")]
pub struct DeviceKeys {
    pub keys: keyfile::DeviceKeys,
}

impl DeviceKeys {
    pub fn identity(&self) -> Arc<client::Identity> {
        Arc::new(self.keys.identity())
    }
}

#[pymethods]
impl DeviceKeys {
    /// Fresh keys under a fresh id.
    #[staticmethod]
    #[pyo3(signature = (*, seed=None))]
    fn generate(py: Python<'_>, #[pyo3(from_py_with = named::seed)] seed: Option<[u8; 32]>) -> PyResult<Self> {
        Ok(Self { keys: threads::detach(py, || keyfile::DeviceKeys::generate(&mut *rng(seed)))? })
    }

    /// Reads a device's key file.
    #[staticmethod]
    fn from_text(text: &str) -> PyResult<Self> {
        Ok(Self { keys: keyfile::DeviceKeys::from_text(text).map_err(errors::key_file)? })
    }

    /// The key file. It is secret.
    fn to_text(&self) -> String {
        self.keys.to_text().to_string()
    }

    /// The public half as text, for the registrar.
    fn enrolment(&self) -> String {
        self.keys.enrolment().to_text()
    }

    /// The device's name in the roster, 16 bytes.
    #[getter]
    fn client_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.keys.client_id.0)
    }

    /// X-Wing key to which released models are granted, 1216 bytes.
    #[getter]
    fn release_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.keys.release_key.encapsulation_key().as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("DeviceKeys(client_id={}, ..)", self.keys.client_id)
    }
}

/// Which devices exist, in the registrar's words.
#[pyclass(frozen, module = "unisono")]
pub struct Roster {
    pub inner: Arc<roster::Roster>,
}

#[pymethods]
impl Roster {
    /// Signs a roster of a new epoch over the devices' enrolments (texts, signed by the devices), for clients to act on until and including
    /// `valid_until`, or without end. Times are Unix seconds. KeyFileError unless
    /// `registrar` is a registrar's key, RosterError for devices or keys that no roster has.
    #[staticmethod]
    #[pyo3(signature = (enrolments, registrar, *, epoch, coordinators, publishers=Vec::new(), not_before=0, not_after=u64::MAX, issued_at=None, valid_until=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python function
    fn publish(
        py: Python<'_>,
        enrolments: Vec<String>,
        registrar: &SigningKey,
        #[pyo3(from_py_with = named::epoch)] epoch: u64,
        #[pyo3(from_py_with = named::coordinators)] coordinators: Vec<KeyBytes>,
        #[pyo3(from_py_with = named::publishers)] publishers: Vec<KeyBytes>,
        #[pyo3(from_py_with = named::not_before)] not_before: u64,
        #[pyo3(from_py_with = named::not_after)] not_after: u64,
        #[pyo3(from_py_with = named::issued_at)] issued_at: Option<u64>,
        #[pyo3(from_py_with = named::valid_until)] valid_until: Option<u64>,
    ) -> PyResult<Self> {
        let registrar_key = registrar.of_role(Role::Registrar, "registrar's key")?;
        let leaf = |text: &String| {
            let enrolment = Enrolment::from_text(text).map_err(errors::key_file)?;
            Ok(enrolment.leaf(not_before, not_after, Vec::new()))
        };
        let leaves = enrolments.iter().map(leaf).collect::<PyResult<Vec<_>>>()?;
        let keys = |keys: &[KeyBytes]| keys.iter().map(|key| verifying_key(&key.0)).collect::<PyResult<Vec<_>>>();
        let (coordinators, publishers) = (keys(&coordinators)?, keys(&publishers)?);
        if valid_until == Some(0) {
            return Err(errors::roster_text("valid_until is 0; a Unix time in seconds, or None for no end, is needed"));
        }
        let published = threads::detach(py, || {
            let issued_at = unix_time(issued_at);
            let terms = roster::HeadTerms { epoch, issued_at, valid_until: valid_until.unwrap_or(0) };
            roster::Roster::publish(leaves, terms, &coordinators, &publishers, registrar_key)
        })?;
        Ok(Self { inner: Arc::new(published.map_err(errors::roster)?) })
    }

    /// Reads a roster file and verifies it under the registrar's key.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, file: &[u8], registrar_key: &[u8]) -> PyResult<Self> {
        let key = verifying_key(registrar_key)?;
        let read = threads::detach(py, || roster::Roster::from_bytes(file, &key))?.map_err(errors::roster)?;
        Ok(Self { inner: Arc::new(read) })
    }

    /// The roster as a file. It is public.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.inner.to_bytes().map_err(errors::roster)?))
    }

    /// Number of the roster; a device refuses one below the highest that it has seen.
    #[getter]
    fn epoch(&self) -> u64 {
        self.inner.head().epoch
    }

    /// All devices, ascending.
    #[getter]
    fn client_ids<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.inner.clients().iter().map(|client| PyBytes::new(py, &client.0)).collect()
    }

    fn __len__(&self) -> usize {
        self.inner.clients().len()
    }

    fn __repr__(&self) -> String {
        format!("Roster(epoch={}, devices={})", self.inner.head().epoch, self.inner.head().size)
    }
}
