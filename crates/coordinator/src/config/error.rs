//! Why a configuration can't be used: which file or setting, and what would be accepted.

use std::net::SocketAddr;
use std::path::PathBuf;

use unisono_protocol::keyfile::KeyFileError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::roster::RosterError;
use unisono_wire::model::ModelError;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration is no TOML, or has an unknown or ill-typed field.
    #[error("{}: {source}", .path.display())]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Place and cause.
        source: Box<toml::de::Error>,
    },
    /// A key file is none.
    #[error("{}: {source}", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: KeyFileError,
    },
    /// A token is none.
    #[error("{}: {source}", .path.display())]
    Token {
        /// Which file, or environment variable.
        path: PathBuf,
        /// The cause.
        source: unisono_release::TokenError,
    },
    /// A secret key's file that others than its owner may use.
    #[error("{} holds a secret key, and others than its owner may use it (mode {mode:o}): run `chmod 600 {}`, and make a new \
             key if somebody may have read it", .path.display(), .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A certificate or its key can't be used.
    #[error("{}: {source}", .path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: unisono_tls::TlsError,
    },
    /// A listener without TLS that others than this machine can reach.
    #[error(
        "`{setting}` is {address}, which other machines can reach, and there is no TLS: set `certificate` and `key` in [tls]; or listen \
             on 127.0.0.1; or set `insecure = true` where something else encrypts, such as a TLS proxy in a network of its own"
    )]
    NoTls {
        /// `listen` or `metrics_listen`.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// The roster is none, or another registrar's.
    #[error("{}: {source}", .path.display())]
    Roster {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: RosterError,
    },
    /// The initial model is none.
    #[error("{}: {source}", .path.display())]
    Model {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: ModelError,
    },
    /// No round can run with these settings.
    #[error("these settings can't give a round: {0}")]
    Params(#[from] ParamsError),
    /// A setting is out of range.
    #[error("setting `{setting}` is {got}; allowed is {allowed}")]
    Setting {
        /// Its name with the section.
        setting: &'static str,
        /// Value found.
        got: String,
        /// What would be accepted.
        allowed: String,
    },
    /// A setting that the mode needs is missing.
    #[error("setting `{setting}` is missing: {why}")]
    Missing {
        /// Its name.
        setting: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
}

impl ConfigError {
    /// The setting at fault, with its section, where it is a single one.
    pub fn setting(&self) -> Option<&'static str> {
        match self {
            Self::Setting { setting, .. } | Self::Missing { setting, .. } | Self::NoTls { setting, .. } => {
                Some(setting)
            }
            _ => None,
        }
    }
}
