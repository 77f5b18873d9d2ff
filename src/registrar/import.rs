//! Folders of earlier versions keep their devices in one JSON file: it is read once, into the log.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use serde::Deserialize;
use unisono_protocol::keyfile::Enrolment;

use super::error::RegistrarError;
use super::log::{Event, LogHead};
use super::{leaf, store_leaf, store_revocation};

/// The file's name.
pub(super) const OLD_STATE: &str = "registrar.json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    enrolment: String,
    not_before: u64,
    not_after: u64,
    attributes: BTreeMap<String, String>,
    revoked_at: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    epoch: u64,
    devices: BTreeMap<String, Device>,
}

/// Writes what the file says to an empty log.
pub(super) fn import(db: &Connection, head: &mut LogHead, path: &Path, now: u64) -> Result<(), RegistrarError> {
    let damaged = |why: String| RegistrarError::Damaged { path: path.into(), why };
    let bytes = std::fs::read(path).map_err(|source| RegistrarError::Io { path: path.into(), source })?;
    let state: State = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let database = |source| RegistrarError::Database { path: path.into(), source };
    head.append(db, now, &Event::Imported(state.epoch)).map_err(database)?;
    for (id, device) in state.devices {
        let enrolment = Enrolment::from_unsigned_text(&device.enrolment)
            .ok()
            .filter(|enrolment| enrolment.client_id().to_string() == id)
            .ok_or_else(|| damaged(format!("what it says of client {id} is no enrolment of it")))?;
        let leaf = leaf(&enrolment, device.not_before, device.not_after, &device.attributes);
        store_leaf(db, head, now, enrolment.client_id(), &leaf).map_err(|e| e.at(path))?;
        if let Some(revoked_at) = device.revoked_at {
            store_revocation(db, head, revoked_at, enrolment.client_id()).map_err(database)?;
        }
    }
    Ok(())
}
