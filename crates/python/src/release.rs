//! The released model: sealed and signed by a publisher, granted to devices, opened by them.

use prost::Message;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use unisono_crypto::kem::EncapsulationKey;
use unisono_protocol::keyfile::Role;
use unisono_release::proto::{PayloadType, ReleaseHeader, SignedGrant};
use unisono_release::{
    self as release, Header, Issuer, Issuers, OpenPolicy, Recipient, ReleaseError, Seen, VersionRecord,
};

use crate::arguments::named;
use crate::keys::{DeviceKeys, SigningKey, verifying_key};
use crate::rng::{rng, unix_time};
use crate::{errors, threads};

/// The key of one release, from `seal` or out of a grant. It is secret and is not shown.
#[pyclass(frozen, module = "unisono")]
pub struct ContentKey(release::ContentKey);

#[pymethods]
impl ContentKey {
    fn __repr__(&self) -> &'static str {
        "ContentKey(..)"
    }
}

/// A sealed release: one file for all devices.
#[pyclass(frozen, module = "unisono")]
pub struct Release {
    file: Vec<u8>,
    header: Header,
}

#[pymethods]
impl Release {
    /// Reads a file. Nothing about it is verified yet.
    #[staticmethod]
    fn from_bytes(file: Vec<u8>) -> PyResult<Self> {
        let header = release::Release::parse(&file).map_err(errors::release)?.header;
        Ok(Self { file, header })
    }

    /// The release as a file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.file)
    }

    /// Name of the model.
    #[getter]
    fn model_id(&self) -> String {
        self.header.fields.model_id.clone()
    }

    /// Version of the model; a device that has opened it opens no lower one.
    #[getter]
    fn version(&self) -> u64 {
        self.header.fields.version
    }

    /// The release's identity: hash of its header, 32 bytes.
    #[getter]
    fn header_hash<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.header.hash)
    }

    /// Verifies the signatures under one of the publishers' keys; needs no decryption key.
    fn verify(&self, py: Python<'_>, publishers: Vec<Vec<u8>>) -> PyResult<()> {
        let keys = publishers.iter().map(|key| verifying_key(key)).collect::<PyResult<Vec<_>>>()?;
        threads::detach(py, || release::Release::parse(&self.file)?.verify(&keys).map(drop))?.map_err(errors::release)
    }

    /// Verifies, checks and decrypts. `seen` is the highest version of this model that the device has opened before, and
    /// `seen_hash` its `header_hash`: a lower version is refused, and so is another release of the same one, or a next one that
    /// does not follow it.
    #[pyo3(signature = (
        key, publishers, *, model_id=None, seen=0, seen_hash=None, min_roster_epoch=0, max_payload=1 << 32, now=None
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python method
    fn open<'py>(
        &self,
        py: Python<'py>,
        key: &ContentKey,
        publishers: Vec<Vec<u8>>,
        model_id: Option<String>,
        #[pyo3(from_py_with = named::seen)] seen: u64,
        #[pyo3(from_py_with = named::seen_hash)] seen_hash: Option<[u8; 32]>,
        #[pyo3(from_py_with = named::min_roster_epoch)] min_roster_epoch: u64,
        #[pyo3(from_py_with = named::max_payload)] max_payload: u64,
        #[pyo3(from_py_with = named::now)] now: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let publishers = publishers.iter().map(|key| verifying_key(key)).collect::<PyResult<Vec<_>>>()?;
        let policy = OpenPolicy { model_id, min_roster_epoch, ..OpenPolicy::release(publishers, max_payload) };
        let seen = (seen > 0).then_some(Seen { version: seen, header_hash: seen_hash });
        let plaintext = threads::detach(py, || {
            let release = release::Release::parse(&self.file)?;
            release::open(&release, &key.0, &policy, &mut Told(seen), unix_time(now))
        })?
        .map_err(errors::release)?;
        Ok(PyBytes::new(py, &plaintext))
    }

    fn __repr__(&self) -> String {
        let fields = &self.header.fields;
        format!("Release(model_id={:?}, version={}, bytes={})", fields.model_id, fields.version, self.file.len())
    }
}

/// The version that the caller names; it keeps the record itself.
struct Told(Option<Seen>);

impl VersionRecord for Told {
    fn newest(&self, _: &str) -> Result<Option<Seen>, ReleaseError> {
        Ok(self.0)
    }

    fn latest_time(&self) -> Result<u64, ReleaseError> {
        Ok(0)
    }

    fn see(&mut self, _: &str, _: Seen, _: u64) -> Result<(), ReleaseError> {
        Ok(())
    }
}

/// Seals and signs a model (the bytes of a safetensors file). Returns the release and its content key. `previous` is the
/// 32-byte `header_hash` of the version before; times are Unix seconds. KeyFileError unless `publisher` is a publisher's key.
#[pyfunction]
#[pyo3(signature = (payload, publisher, *, model_id, version, previous=None, not_after=u64::MAX, key_id="python", roster_epoch=0, now=None))]
#[allow(clippy::too_many_arguments)] // keyword arguments of a Python function
pub fn seal(
    py: Python<'_>,
    payload: &[u8],
    publisher: &SigningKey,
    model_id: &str,
    #[pyo3(from_py_with = named::version)] version: u64,
    #[pyo3(from_py_with = named::previous)] previous: Option<[u8; 32]>,
    #[pyo3(from_py_with = named::not_after)] not_after: u64,
    key_id: &str,
    #[pyo3(from_py_with = named::roster_epoch)] roster_epoch: u64,
    #[pyo3(from_py_with = named::now)] now: Option<u64>,
) -> PyResult<(Release, ContentKey)> {
    let publisher = publisher.of_role(Role::Publisher, "publisher's key")?;
    let fields = ReleaseHeader {
        model_id: model_id.to_owned(),
        version,
        previous: previous.map(|hash| hash.to_vec()).unwrap_or_default(),
        created_at: unix_time(now),
        not_after,
        payload_type: PayloadType::Safetensors as i32,
        key_id: key_id.to_owned(),
        key_version: 1,
        roster_epoch,
        ..Default::default()
    };
    threads::detach(py, || {
        let mut rng = rng(None);
        let key = release::ContentKey::random(&mut *rng);
        let (file, header) = release::seal(fields, payload, &key, Some(publisher), &mut *rng)?;
        Ok((Release { file, header }, ContentKey(key)))
    })?
    .map_err(errors::release)
}

/// The content key of one release for one device.
#[pyclass(frozen, module = "unisono")]
pub struct Grant(SignedGrant);

#[pymethods]
impl Grant {
    /// Reads a grant. Nothing about it is verified yet; ReleaseError for bytes that are none.
    #[staticmethod]
    fn from_bytes(bytes: &[u8]) -> PyResult<Self> {
        let grant = SignedGrant::decode(bytes);
        grant
            .map(Self)
            .map_err(|error| errors::class::ReleaseError::new_err(format!("the grant can't be decoded: {error}")))
    }

    /// The grant as bytes, for the device that it is for.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.encode_to_vec())
    }

    /// Takes the content key out, on the device that it is for.
    #[pyo3(signature = (release, keys, issuers, *, min_roster_epoch=0))]
    fn open(
        &self,
        py: Python<'_>,
        release: &Release,
        keys: &DeviceKeys,
        issuers: Vec<Vec<u8>>,
        #[pyo3(from_py_with = named::min_roster_epoch)] min_roster_epoch: u64,
    ) -> PyResult<ContentKey> {
        let issuers = issuers.iter().map(|key| verifying_key(key)).collect::<PyResult<Vec<_>>>()?;
        let (header, device) = (&release.header, &keys.keys);
        let key = threads::detach(py, || {
            let id = device.client_id.0;
            let issuers = Issuers::Keys(&issuers);
            release::open_grant(&self.0, header, id, &device.release_key, issuers, min_roster_epoch)
        })?;
        key.map(ContentKey).map_err(errors::release)
    }

    fn __repr__(&self) -> &'static str {
        "Grant(..)"
    }
}

/// Grants a release to a device: `client_id` (16 bytes) and `release_key` (1216 bytes) are those of its enrolment.
/// KeyFileError unless `issuer` is a publisher's key.
#[pyfunction]
#[pyo3(signature = (release, key, issuer, *, client_id, release_key, roster_epoch=0))]
pub fn grant(
    py: Python<'_>,
    release: &Release,
    key: &ContentKey,
    issuer: &SigningKey,
    #[pyo3(from_py_with = named::client_id)] client_id: [u8; 16],
    release_key: &[u8],
    #[pyo3(from_py_with = named::roster_epoch)] roster_epoch: u64,
) -> PyResult<Grant> {
    let issuer = issuer.of_role(Role::Publisher, "issuer's key")?;
    let recipient_key = EncapsulationKey::from_bytes(release_key).map_err(errors::crypto)?;
    let recipient = Recipient { client_id, key: recipient_key, roster_epoch };
    let granted = threads::detach(py, || {
        release::grant(&release.header, &key.0, &recipient, Issuer::Key(issuer), &mut *rng(None))
    })?;
    granted.map(Grant).map_err(errors::release)
}
