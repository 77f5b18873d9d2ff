//! Folders of earlier versions keep their devices in one JSON file: it is read once, into the log.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use serde::Deserialize;
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::Enrolment;

use super::error::RegistrarError;
use super::log::{Event, LogHead};
use super::{store_leaf, store_revocation, wire_attributes};

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
        let no_enrolment = || damaged(format!("what it says of client {id} is no enrolment of it"));
        let attributes = wire_attributes(&device.attributes);
        let leaf = Enrolment::leaf_of_unsigned(&device.enrolment, device.not_before, device.not_after, attributes);
        let leaf = leaf.map_err(|_| no_enrolment())?;
        let client = ClientId::from_slice(&leaf.client_id).filter(|client| client.to_string() == id);
        let client = client.ok_or_else(no_enrolment)?;
        store_leaf(db, head, now, client, &leaf).map_err(|e| e.at(path))?;
        if let Some(revoked_at) = device.revoked_at {
            store_revocation(db, head, revoked_at, client).map_err(database)?;
        }
    }
    Ok(())
}
