//! Why the registrar refuses.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unisono_protocol::ClientId;
use unisono_protocol::keyfile::KeyFileError;
use unisono_protocol::roster::RosterError;

/// Where a device's enrolment stands: a file, or a line of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// Its line, from 1; `None` for the whole file.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

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
    /// A new registrar in a folder that others can use.
    #[error("others than its owner can use {}: choose a folder that does not exist yet, or `chmod 700` this one", .0.display())]
    Shared(PathBuf),
    /// Another process has held the lock for long.
    #[error("{} has been in use by another process for {seconds} s: wait until it has ended, then try again", .folder.display())]
    InUse {
        /// Which folder.
        folder: PathBuf,
        /// How long this one has waited.
        seconds: u64,
    },
    /// A key file.
    #[error("{}: {source}", .path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: KeyFileError,
    },
    /// The database is not there.
    #[error(
        "{} is missing beside the registrar's key: restore the folder from its newest backup (a new database would begin with \
         epoch 1 again, and devices accept no older epoch)", .0.display()
    )]
    Missing(PathBuf),
    /// The database.
    #[error("{}: {source}", .path.display())]
    Database {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The state is not what this program wrote.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The log of events, or a table that follows from it, is not what this program wrote.
    #[error(
        "the log of events does not verify at event {event}: {why}; nothing is published from it: restore the registrar's folder \
         from a backup that `unisono registrar audit` accepts"
    )]
    Log {
        /// Number of the event; that of the last one when a table does not follow from the log.
        event: u64,
        /// What is wrong.
        why: String,
    },
    /// A device of a batch. Nothing of the batch is stored.
    #[error("{at}: {source}; nothing of this batch was enrolled")]
    At {
        /// Where it stands.
        at: Place,
        /// What is wrong with it.
        source: Box<RegistrarError>,
    },
    /// A file that is no device's public file.
    #[error("{source}; wanted is the .pub file that `unisono client keys` made, or makes anew with `--public-only`")]
    Foreign {
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// A line of a CSV file.
    #[error("{0}")]
    Row(String),
    /// A device stands in a batch twice.
    #[error("client {client} stands in {first} already: delete one of the two")]
    Duplicate {
        /// Which device.
        client: ClientId,
        /// Where it stood first.
        first: Place,
    },
    /// Attributes beyond the limits.
    #[error("attribute {name:?}: {why}")]
    Attribute {
        /// Its name, shortened.
        name: String,
        /// Which limit.
        why: String,
    },
    /// The device is enrolled with other attributes.
    #[error("client {0} is enrolled with other attributes: leave them as they are, or renew the enrolment (`--renew`)")]
    Differs(ClientId),
    /// The device is enrolled with other keys.
    #[error(
        "client {0} is enrolled with other keys; a renewal keeps the keys. Ask the device's owner whether it has new ones, then \
         replace them (`--replace-key`)"
    )]
    KeyChanged(ClientId),
    /// A key belongs to another device.
    #[error(
        "client {client} comes with the {what} key of client {owner}: no two devices share a key; make new keys on the device"
    )]
    KeyTaken {
        /// Which device.
        client: ClientId,
        /// Identity or release.
        what: &'static str,
        /// Whose key it is.
        owner: ClientId,
    },
    /// The device was revoked.
    #[error("client {0} was revoked; a revoked id is never used again: make new keys on the device")]
    Revoked(ClientId),
    /// No such device.
    #[error("there is no client {0}: `unisono registrar list` shows all")]
    Unknown(ClientId),
    /// The validity is empty.
    #[error("a validity of {0} days is none: at least 1, at most 36500")]
    Validity(u64),
    /// A roster without a coordinator's key.
    #[error("a roster names the coordinators that may open rounds: give at least one public key of a coordinator")]
    NoCoordinator,
    /// The roster that would be replaced is not older.
    #[error(
        "{} has epoch {there}, and the next one here is {next}: was the registrar's folder restored from an old backup? Enrol and \
         revoke again what came after it, then publish with `--after-epoch {there}`", .path.display()
    )]
    Newer {
        /// The roster's file.
        path: PathBuf,
        /// Its epoch.
        there: u64,
        /// The epoch that would be published.
        next: u64,
    },
    /// The roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
}
