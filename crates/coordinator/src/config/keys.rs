//! The files that the configuration names: keys, roster and initial model.

use std::path::{Path, PathBuf};

use unisono_crypto::sign::{SigningKey, VerifyingKey};
use unisono_protocol::keyfile::{self, KeyFileError, Role};
use unisono_protocol::roster::Roster;
use unisono_release::KeyEncryptionKey;
use unisono_wire::model::Model;

use super::{Config, ConfigError, read};

/// Keys that sign and wrap releases.
pub struct ReleaseKeys {
    /// Signs releases and grants.
    pub publisher: SigningKey,
    /// Wraps content keys.
    pub key_encryption_key: KeyEncryptionKey,
}

/// Keys of malicious mode.
pub struct RoundKeys {
    /// Verifies rosters.
    pub registrar: VerifyingKey,
    /// Signs rounds.
    pub signing_key: SigningKey,
    /// Where the roster is.
    pub roster: PathBuf,
}

/// Reads the file of a public key and parses it.
fn read_key<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K, ConfigError> {
    let text = keyfile::read_public(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text).map_err(|source| ConfigError::Key { path: path.into(), source })
}

/// Reads the file of a secret key, which nobody else may read, and parses it.
fn read_secret<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K, ConfigError> {
    let text = keyfile::read_secret(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text).map_err(|source| ConfigError::Key { path: path.into(), source })
}

impl Config {
    /// The keys of malicious mode; `None` in semi-honest mode.
    ///
    /// # Errors
    /// [`ConfigError`] for a missing setting, or a file that is no such key.
    pub fn round_keys(&self) -> Result<Option<RoundKeys>, ConfigError> {
        if !self.malicious() {
            return Ok(None);
        }
        let why = "a round in malicious mode needs it";
        let need = |path: &Option<PathBuf>, setting| path.clone().ok_or(ConfigError::Missing { setting, why });
        let registrar = need(&self.registrar, "registrar")?;
        let key = need(&self.key, "key")?;
        Ok(Some(RoundKeys {
            registrar: read_key(&registrar, |text| keyfile::verifying_key_from_text(Role::Registrar, text))?,
            signing_key: read_secret(&key, |text| keyfile::signing_key_from_text(Role::Coordinator, text))?,
            roster: need(&self.roster, "roster")?,
        }))
    }

    /// The keys of releases; `None` when the model is not released.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that is no such key.
    pub fn release_keys(&self) -> Result<Option<ReleaseKeys>, ConfigError> {
        let Some(release) = &self.release else { return Ok(None) };
        let kek = read_secret(&release.key_encryption_key, keyfile::key_encryption_key_from_text)?;
        Ok(Some(ReleaseKeys {
            publisher: read_secret(&release.publisher, |text| keyfile::signing_key_from_text(Role::Publisher, text))?,
            key_encryption_key: KeyEncryptionKey::from_secret(kek),
        }))
    }

    /// The initial model.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::Model`].
    pub fn initial_model(&self) -> Result<Model, ConfigError> {
        let path = &self.task.initial_model;
        Model::from_safetensors(&read(path)?).map_err(|source| ConfigError::Model { path: path.clone(), source })
    }
}

impl RoundKeys {
    /// Reads the roster as it is now.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::Roster`].
    pub fn read_roster(&self) -> Result<Roster, ConfigError> {
        let bytes = read(&self.roster)?;
        let error = |source| ConfigError::Roster { path: self.roster.clone(), source };
        Roster::from_bytes(&bytes, &self.registrar).map_err(error)
    }
}
