//! The registrar: which devices exist, and which coordinators and publishers count. It keeps a folder (its secret key and one
//! JSON file) and publishes rosters; it is offline otherwise and never sees an update.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use getrandom::SysRng;
use rand_core::UnwrapErr;
use serde::{Deserialize, Serialize};
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::{self, Enrolment, KeyFileError, Role};
use unisono_protocol::proto::{Attribute, RosterLeaf};
use unisono_protocol::roster::{Roster, RosterError, release_key_hash};
use zeroize::Zeroizing;

use crate::files;

/// File of the secret key.
pub const SECRET_KEY: &str = "registrar.key";
/// File of the verifying key, which every client and coordinator is given.
pub const PUBLIC_KEY: &str = "registrar.pub";
const STATE: &str = "registrar.json";

/// Why the registrar refuses.
#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    /// A file.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The folder is a registrar's already.
    #[error("{} exists: a registrar's key is never overwritten; choose another folder", .0.display())]
    Exists(PathBuf),
    /// A key file.
    #[error("{}: {source}", .path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: KeyFileError,
    },
    /// The state is not what this program wrote.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The device is enrolled.
    #[error("client {0} is enrolled already: revoke it first")]
    Enrolled(ClientId),
    /// The device was revoked.
    #[error("client {0} was revoked; a revoked id is never used again: make new keys on the device")]
    Revoked(ClientId),
    /// No such device.
    #[error("there is no client {0}")]
    Unknown(ClientId),
    /// The validity is empty.
    #[error("a validity of {0} days is none: at least 1, at most 36500")]
    Validity(u64),
    /// A roster without a coordinator's key.
    #[error("a roster names the coordinators that may open rounds: give at least one public key of a coordinator")]
    NoCoordinator,
    /// The roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    enrolment: String,
    not_before: u64,
    not_after: u64,
    attributes: BTreeMap<String, String>,
    revoked_at: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Last published epoch.
    epoch: u64,
    devices: BTreeMap<String, Device>,
}

/// An enrolled or revoked device, for listings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Its id, hexadecimal.
    pub client_id: String,
    /// Valid from, Unix time in seconds.
    pub not_before: u64,
    /// Valid until and including.
    pub not_after: u64,
    /// Free words about it.
    pub attributes: BTreeMap<String, String>,
    /// When it was revoked.
    pub revoked_at: Option<u64>,
}

/// A registrar's folder.
pub struct Registrar {
    folder: PathBuf,
    key: SigningKey,
    state: State,
}

const DAY: u64 = 86_400;

impl Registrar {
    /// Makes a registrar with a fresh key in `folder`.
    ///
    /// # Errors
    /// [`RegistrarError::Exists`] when there is one.
    pub fn init(folder: &Path) -> Result<Self, RegistrarError> {
        let key = SigningKey::generate(Level::L65, &mut UnwrapErr(SysRng));
        let create = |name: &str, text: &str| {
            let path = folder.join(name);
            files::create(&path, text.as_bytes()).map_err(|source| match source.kind() {
                std::io::ErrorKind::AlreadyExists => RegistrarError::Exists(path),
                _ => RegistrarError::Io { path, source },
            })
        };
        create(SECRET_KEY, &keyfile::signing_key_to_text(Role::Registrar, &key))?;
        create(PUBLIC_KEY, &keyfile::verifying_key_to_text(Role::Registrar, &key.verifying_key()))?;
        let registrar = Self { folder: folder.into(), key, state: State::default() };
        registrar.save()?;
        Ok(registrar)
    }

    /// Opens the registrar in `folder`.
    ///
    /// # Errors
    /// [`RegistrarError`]: a missing or damaged file.
    pub fn open(folder: &Path) -> Result<Self, RegistrarError> {
        let path = folder.join(SECRET_KEY);
        let text =
            std::fs::read_to_string(&path).map_err(|source| RegistrarError::Io { path: path.clone(), source })?;
        let key = keyfile::signing_key_from_text(Role::Registrar, &Zeroizing::new(text))
            .map_err(|source| RegistrarError::Key { path, source })?;
        let path = folder.join(STATE);
        let bytes = std::fs::read(&path).map_err(|source| RegistrarError::Io { path: path.clone(), source })?;
        let state = serde_json::from_slice(&bytes).map_err(|e| RegistrarError::Damaged { path, why: e.to_string() })?;
        Ok(Self { folder: folder.into(), key, state })
    }

    fn save(&self) -> Result<(), RegistrarError> {
        let path = self.folder.join(STATE);
        let damaged = |e: serde_json::Error| RegistrarError::Damaged { path: path.clone(), why: e.to_string() };
        let bytes = serde_json::to_vec_pretty(&self.state).map_err(damaged)?;
        files::replace(&path, &bytes).map_err(|source| RegistrarError::Io { path: path.clone(), source })
    }

    /// The verifying key.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// Enrols a device from `now` (Unix time in seconds) for `days`.
    ///
    /// # Errors
    /// [`RegistrarError::Enrolled`], [`RegistrarError::Revoked`] or [`RegistrarError::Validity`].
    pub fn enrol(
        &mut self,
        enrolment: &Enrolment,
        now: u64,
        days: u64,
        attributes: BTreeMap<String, String>,
    ) -> Result<(), RegistrarError> {
        if !(1..=36_500).contains(&days) {
            return Err(RegistrarError::Validity(days));
        }
        match self.state.devices.get(&enrolment.client_id.to_string()) {
            Some(Device { revoked_at: Some(_), .. }) => return Err(RegistrarError::Revoked(enrolment.client_id)),
            // An enrolment that has ended may be renewed.
            Some(device) if device.not_after >= now => return Err(RegistrarError::Enrolled(enrolment.client_id)),
            _ => {}
        }
        let (text, not_after) = (enrolment.to_text(), now + days * DAY);
        let device = Device { enrolment: text, not_before: now, not_after, attributes, revoked_at: None };
        self.state.devices.insert(enrolment.client_id.to_string(), device);
        self.save()
    }

    /// Revokes a device: the next roster is without it.
    ///
    /// # Errors
    /// [`RegistrarError::Unknown`], or [`RegistrarError::Revoked`] when it was done before.
    pub fn revoke(&mut self, client: ClientId, now: u64) -> Result<(), RegistrarError> {
        let device = self.state.devices.get_mut(&client.to_string()).ok_or(RegistrarError::Unknown(client))?;
        if device.revoked_at.is_some() {
            return Err(RegistrarError::Revoked(client));
        }
        device.revoked_at = Some(now);
        self.save()
    }

    /// All devices, revoked ones too.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let status = |(id, device): (&String, &Device)| DeviceStatus {
            client_id: id.clone(),
            not_before: device.not_before,
            not_after: device.not_after,
            attributes: device.attributes.clone(),
            revoked_at: device.revoked_at,
        };
        self.state.devices.iter().map(status).collect()
    }

    /// Epoch of the last published roster; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// Signs the next roster: every device that is neither revoked nor expired at `now`.
    ///
    /// # Errors
    /// [`RegistrarError::NoCoordinator`], or a file that can't be written: the epoch is used up then.
    pub fn publish(
        &mut self,
        coordinators: &[VerifyingKey],
        publishers: &[VerifyingKey],
        now: u64,
    ) -> Result<Roster, RegistrarError> {
        if coordinators.is_empty() {
            return Err(RegistrarError::NoCoordinator);
        }
        // The epoch is on stable storage before a roster with its number exists.
        self.state.epoch += 1;
        self.save()?;
        let path = self.folder.join(STATE);
        let valid = self.state.devices.values().filter(|device| device.revoked_at.is_none() && device.not_after >= now);
        let leaves =
            valid.map(|device| leaf(device).map_err(|source| RegistrarError::Key { path: path.clone(), source }));
        let leaves = leaves.collect::<Result<_, _>>()?;
        Ok(Roster::publish(leaves, self.state.epoch, now, coordinators, publishers, &self.key)?)
    }
}

fn leaf(device: &Device) -> Result<RosterLeaf, KeyFileError> {
    let enrolment = Enrolment::from_text(&device.enrolment)?;
    let attribute = |(name, value): (&String, &String)| Attribute { name: name.clone(), value: value.clone() };
    Ok(RosterLeaf {
        client_id: enrolment.client_id.to_vec(),
        identity_key: enrolment.identity_key.as_bytes().to_vec(),
        release_key_hash: release_key_hash(enrolment.release_key.as_bytes()).to_vec(),
        not_before: device.not_before,
        not_after: device.not_after,
        attributes: device.attributes.iter().map(attribute).collect(),
    })
}

#[cfg(test)]
mod tests {
    use unisono_protocol::keyfile::DeviceKeys;

    use super::*;

    #[test]
    fn a_device_is_enrolled_published_revoked_and_never_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let rng = &mut UnwrapErr(SysRng);
        let coordinator = SigningKey::generate(Level::L65, rng).verifying_key();
        let (one, two) = (DeviceKeys::generate(rng), DeviceKeys::generate(rng));
        let mut registrar = Registrar::init(folder.path()).unwrap();
        assert!(matches!(Registrar::init(folder.path()), Err(RegistrarError::Exists(_))));
        let model = BTreeMap::from([("model".to_owned(), "a".to_owned())]);
        registrar.enrol(&one.enrolment(), 1000, 1, model).unwrap();
        registrar.enrol(&two.enrolment(), 1000, 2, BTreeMap::new()).unwrap();
        let again = registrar.enrol(&one.enrolment(), 1001, 1, BTreeMap::new());
        assert!(matches!(again, Err(RegistrarError::Enrolled(_))));
        assert!(matches!(registrar.publish(&[], &[], 1000), Err(RegistrarError::NoCoordinator)));

        let mut registrar = Registrar::open(folder.path()).unwrap();
        let roster = registrar.publish(std::slice::from_ref(&coordinator), &[], 1000).unwrap();
        assert_eq!((roster.head().epoch, roster.head().size), (1, 2));
        registrar.revoke(one.client_id, 2000).unwrap();
        assert!(matches!(registrar.revoke(one.client_id, 2000), Err(RegistrarError::Revoked(_))));
        assert!(matches!(registrar.revoke(ClientId([0; 16]), 2000), Err(RegistrarError::Unknown(_))));
        let again = registrar.enrol(&one.enrolment(), 2000, 1, BTreeMap::new());
        assert!(matches!(again, Err(RegistrarError::Revoked(_))));
        let roster = registrar.publish(std::slice::from_ref(&coordinator), &[], 2000).unwrap();
        assert_eq!(roster.head().epoch, 2);
        assert!(roster.leaf(one.client_id).is_none() && roster.leaf(two.client_id).is_some());
        // Device two's enrolment has ended: it is left out, and may be renewed.
        let later = 1000 + 2 * DAY + 1;
        assert_eq!(registrar.publish(&[coordinator], &[], later).unwrap().head().size, 0);
        registrar.enrol(&two.enrolment(), later, 1, BTreeMap::new()).unwrap();
        assert!(matches!(
            registrar.enrol(&two.enrolment(), later, 0, BTreeMap::new()),
            Err(RegistrarError::Validity(0))
        ));
    }
}
