//! The files that the configuration names: keys, roster and initial model.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use unisono_crypto::sign::{SigningKey, VerifyingKey};
use unisono_protocol::keyfile::{self, KeyFileError, Role};
use unisono_protocol::roster::Roster;
use unisono_release::{KeyEncryptionKey, Token};
use unisono_wire::model::Model;
use zeroize::Zeroizing;

use super::{Config, ConfigError, Release, read};

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

/// Environment variable of the token, where no file is set.
pub const TOKEN_VARIABLE: &str = "UNISONO_TOKEN";

/// Reads the file of a secret, which nobody but its owner may use.
pub(super) fn secret_text(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let data = std::fs::metadata(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let mode = data.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::Exposed { path: path.into(), mode });
    }
    keyfile::read_secret(path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

/// Reads the file of a secret key, and parses it.
fn read_secret<K>(path: &Path, parse: impl FnOnce(&str) -> Result<K, KeyFileError>) -> Result<K, ConfigError> {
    parse(&secret_text(path)?).map_err(|source| ConfigError::Key { path: path.into(), source })
}

impl Config {
    /// The keys of malicious mode; `None` in semi-honest mode.
    ///
    /// # Errors
    /// [`ConfigError`] for a missing setting, or a file that is no such key or that others may read.
    pub fn round_keys(&self) -> Result<Option<RoundKeys>, ConfigError> {
        if !self.malicious() {
            return Ok(None);
        }
        Ok(Some(RoundKeys {
            registrar: self.registrar_key()?,
            signing_key: self.coordinator_key()?,
            roster: needed(&self.roster, "roster")?.clone(),
        }))
    }

    pub(super) fn registrar_key(&self) -> Result<VerifyingKey, ConfigError> {
        let path = needed(&self.registrar, "registrar")?;
        read_key(path, |text| keyfile::verifying_key_from_text(Role::Registrar, text))
    }

    pub(super) fn coordinator_key(&self) -> Result<SigningKey, ConfigError> {
        let path = needed(&self.key, "key")?;
        read_secret(path, |text| keyfile::signing_key_from_text(Role::Coordinator, text))
    }

    /// The keys of releases; `None` when the model is not released.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that is no such key or that others may read.
    pub fn release_keys(&self) -> Result<Option<ReleaseKeys>, ConfigError> {
        let Some(release) = &self.release else { return Ok(None) };
        Ok(Some(ReleaseKeys { publisher: release.publisher_key()?, key_encryption_key: release.key_encryption_key()? }))
    }

    /// The token of semi-honest mode, from its file, or from the environment where no file is set; `None` in malicious mode.
    ///
    /// # Errors
    /// [`ConfigError`] when there is none, for a file that others may read, and for a text that is no token.
    pub fn token(&self) -> Result<Option<Token>, ConfigError> {
        if self.malicious() {
            return Ok(None);
        }
        let Some(path) = &self.token else {
            let why =
                "a coordinator in semi-honest mode needs one: `unisono keys token FILE`, for itself and its devices";
            let text = Zeroizing::new(std::env::var(TOKEN_VARIABLE).unwrap_or_default());
            if text.is_empty() {
                return Err(ConfigError::Missing { setting: "token", why });
            }
            let error = |source| ConfigError::Token { path: TOKEN_VARIABLE.into(), source };
            return Token::from_text(&text).map(Some).map_err(error);
        };
        let text = secret_text(path)?;
        Token::from_text(&text).map(Some).map_err(|source| ConfigError::Token { path: path.clone(), source })
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

impl Release {
    pub(super) fn publisher_key(&self) -> Result<SigningKey, ConfigError> {
        read_secret(&self.publisher, |text| keyfile::signing_key_from_text(Role::Publisher, text))
    }

    pub(crate) fn key_encryption_key(&self) -> Result<KeyEncryptionKey, ConfigError> {
        let key = read_secret(&self.key_encryption_key, keyfile::key_encryption_key_from_text)?;
        Ok(KeyEncryptionKey::from_secret(key))
    }
}

/// A setting that malicious mode needs.
fn needed<'a>(path: &'a Option<PathBuf>, setting: &'static str) -> Result<&'a PathBuf, ConfigError> {
    path.as_ref().ok_or(ConfigError::Missing { setting, why: "a round in malicious mode needs it" })
}

impl RoundKeys {
    /// Reads the roster as it is now, into memory.
    ///
    /// # Errors
    /// [`ConfigError::Read`] or [`ConfigError::Roster`].
    pub fn read_roster(&self) -> Result<Roster, ConfigError> {
        let bytes = read(&self.roster)?;
        let error = |source| ConfigError::Roster { path: self.roster.clone(), source };
        Roster::open(bytes, Vec::new(), &self.registrar).map_err(error)
    }
}
