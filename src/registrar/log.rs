//! The registrar's log: each enrolment, revocation and publication is an event, and each event's hash covers the one before.
//! The tables beside it follow from it. Whoever can write the folder can write another log; a hash that was noted elsewhere
//! shows that.

use std::collections::{BTreeSet, HashMap};

use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::merkle::Tree;
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::ClientId;
use unisono_protocol::proto::{RosterLeaf, Signed};
use unisono_protocol::roster::Head;

use super::error::RegistrarError;

pub(super) const SCHEMA: &str = "
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
CREATE TRIGGER events_are_final BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
-- What follows from the events: each device with the event that holds its leaf, each key with its device, each epoch.
CREATE TABLE devices (
    client_id BLOB PRIMARY KEY, event INTEGER NOT NULL, not_after INTEGER NOT NULL, revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (hash BLOB PRIMARY KEY, client_id BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, event INTEGER NOT NULL, delivered_at INTEGER) STRICT;
PRAGMA user_version = 1;
";

const IMPORTED: i64 = 0;
const ENROLLED: i64 = 1;
const REVOKED: i64 = 2;
const PUBLISHED: i64 = 3;

/// One event.
pub(super) enum Event {
    /// What follows was enrolled by a version without a log, whose last epoch this is.
    Imported(u64),
    /// An encoded `RosterLeaf`, new or in place of an older one.
    Enrolled(Vec<u8>),
    /// The device is out, for ever.
    Revoked(ClientId),
    /// A `Signed` roster head.
    Published(Signed),
}

impl Event {
    fn encode(&self) -> (i64, Vec<u8>) {
        match self {
            Self::Imported(epoch) => (IMPORTED, epoch.to_le_bytes().to_vec()),
            Self::Enrolled(leaf) => (ENROLLED, leaf.clone()),
            Self::Revoked(client) => (REVOKED, client.to_vec()),
            Self::Published(head) => (PUBLISHED, head.encode_to_vec()),
        }
    }
}

/// The last event and its hash. Note it elsewhere: a log that does not have it any more was rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    /// Number of the event; 0 before the first.
    pub event: u64,
    /// Its hash, which covers all before.
    pub hash: [u8; 32],
}

impl std::fmt::Display for LogHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.event, hex::encode(self.hash))
    }
}

impl std::str::FromStr for LogHead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "a log's head is the number of an event, a colon and 64 hexadecimal digits".to_owned();
        let (event, hash) = text.split_once(':').ok_or_else(error)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(hash, &mut bytes).map_err(|_| error())?;
        Ok(Self { event: event.parse().map_err(|_| error())?, hash: bytes })
    }
}

impl LogHead {
    /// Before the first event: bound to the registrar's key.
    fn start(registrar: &VerifyingKey) -> Self {
        Self { event: 0, hash: hash(label::REGISTRAR_LOG, &[registrar.as_bytes()]) }
    }

    fn next(self, at: i64, kind: i64, body: &[u8]) -> Self {
        let event = self.event + 1;
        let parts: [&[u8]; 5] = [&self.hash, &event.to_le_bytes(), &at.to_le_bytes(), &kind.to_le_bytes(), body];
        Self { event, hash: hash(label::REGISTRAR_LOG, &parts) }
    }

    /// The last one stored, without verifying those before.
    pub(super) fn last(db: &Connection, registrar: &VerifyingKey) -> rusqlite::Result<Self> {
        let last = db
            .query_row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1", [], |row| {
                Ok(Self { event: row.get::<_, i64>(0)? as u64, hash: row.get(1)? })
            })
            .optional()?;
        Ok(last.unwrap_or_else(|| Self::start(registrar)))
    }

    /// Appends an event.
    pub(super) fn append(&mut self, db: &Connection, at: u64, event: &Event) -> rusqlite::Result<()> {
        let (kind, body) = event.encode();
        let next = self.next(at as i64, kind, &body);
        db.prepare_cached("INSERT INTO events (seq, at, kind, body, hash) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![next.event as i64, at as i64, kind, body, next.hash])?;
        *self = next;
        Ok(())
    }
}

pub(super) fn identity_hash(key: &[u8]) -> [u8; 32] {
    hash(label::IDENTITY_KEY_HASH, &[key])
}

/// A device as the log leaves it.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub event: u64,
    pub not_after: u64,
    pub revoked_at: Option<u64>,
}

impl Entry {
    fn valid(&self, now: u64) -> bool {
        self.revoked_at.is_none() && self.not_after >= now
    }
}

/// The last publication, with the devices in it in order of client id, each with the event that holds its leaf.
pub(super) struct Publication {
    pub event: u64,
    pub issued_at: u64,
    pub head: Head,
    pub signed: Signed,
    pub devices: Vec<(ClientId, u64)>,
}

/// What a log that verifies says.
pub(super) struct Replay {
    pub head: LogHead,
    pub epoch: u64,
    pub devices: HashMap<ClientId, Entry>,
    pub last: Option<Publication>,
    published: Vec<(u64, u64)>,
    keys: Option<BTreeSet<[u8; 32]>>,
}

impl Replay {
    /// The devices of a roster issued at `now`, in order of client id.
    pub fn valid(&self, now: u64) -> Vec<(ClientId, u64)> {
        let valid = self.devices.iter().filter(|(_, entry)| entry.valid(now));
        let mut valid: Vec<_> = valid.map(|(&client, entry)| (client, entry.event)).collect();
        valid.sort_unstable();
        valid
    }

    /// Reads the whole log: every hash, every signed head, and that each event may follow those before. `keys` checks the table of
    /// keys too; `noted` is a head that the log must still have.
    pub fn of(
        db: &Connection,
        registrar: &VerifyingKey,
        keys: bool,
        noted: Option<LogHead>,
    ) -> Result<Self, ReplayError> {
        let mut replay = Self {
            head: LogHead::start(registrar),
            epoch: 0,
            devices: HashMap::new(),
            last: None,
            published: Vec::new(),
            keys: keys.then(BTreeSet::new),
        };
        let last: i64 = db.query_row("SELECT COALESCE(MAX(event), 0) FROM epochs", [], |row| row.get(0))?;
        let mut statement = db.prepare("SELECT seq, at, kind, body, hash FROM events ORDER BY seq")?;
        let mut rows = statement.query([])?;
        let mut found = noted.is_none_or(|noted| noted == replay.head);
        while let Some(row) = rows.next()? {
            let (seq, at, kind): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (body, stored) = (row.get_ref(3)?.as_blob()?, row.get_ref(4)?.as_blob()?);
            let next = replay.head.next(at, kind, body);
            let fail = |why: &str| ReplayError::Log(next.event, why.to_owned());
            if seq as u64 != next.event {
                return Err(fail(&format!("it is missing, the next one there is number {seq}")));
            }
            if stored != next.hash {
                return Err(fail("its hash is not that of its content and the event before"));
            }
            replay.head = next;
            found |= noted == Some(next);
            replay.apply(db, registrar, last as u64, at as u64, kind, body).map_err(|why| match why {
                ReplayError::Log(_, why) => fail(&why),
                other => other,
            })?;
        }
        if let Some(noted) = noted.filter(|_| !found) {
            let why = format!("the log does not have the noted head {noted}: it was rewritten, or is an older copy");
            return Err(ReplayError::Log(noted.event, why));
        }
        replay.check_tables(db)?;
        Ok(replay)
    }

    fn apply(
        &mut self,
        db: &Connection,
        registrar: &VerifyingKey,
        last: u64,
        at: u64,
        kind: i64,
        body: &[u8],
    ) -> Result<(), ReplayError> {
        let event = self.head.event;
        let fail = |why: String| ReplayError::Log(event, why);
        match kind {
            IMPORTED if event == 1 => {
                let epoch = body.try_into().map_err(|_| fail("it holds no epoch".into()))?;
                self.epoch = u64::from_le_bytes(epoch);
            }
            ENROLLED => {
                let leaf = RosterLeaf::decode(body).map_err(|e| fail(format!("it holds no leaf: {e}")))?;
                let client =
                    ClientId::from_slice(&leaf.client_id).ok_or_else(|| fail("it holds no client id".into()))?;
                let entry = Entry { event, not_after: leaf.not_after, revoked_at: None };
                if self.devices.insert(client, entry).is_some_and(|before| before.revoked_at.is_some()) {
                    return Err(fail(format!("client {client} is enrolled after it was revoked")));
                }
                if let Some(keys) = &mut self.keys {
                    let release: [u8; 32] = leaf
                        .release_key_hash
                        .try_into()
                        .map_err(|_| fail("a hash in its leaf does not have 32 bytes".into()))?;
                    for key in [identity_hash(&leaf.identity_key), release] {
                        let owner = key_owner(db, &key)?;
                        if owner != Some(client) {
                            return Err(fail(format!("a key of client {client} is not its own in the table of keys")));
                        }
                        keys.insert(key);
                    }
                }
            }
            REVOKED => {
                let client = ClientId::from_slice(body).ok_or_else(|| fail("it holds no client id".into()))?;
                match self.devices.get_mut(&client) {
                    Some(entry) if entry.revoked_at.is_none() => entry.revoked_at = Some(at),
                    _ => return Err(fail(format!("client {client} is revoked twice, or never was enrolled"))),
                }
            }
            PUBLISHED => {
                let signed = Signed::decode(body).map_err(|e| fail(format!("it holds no roster head: {e}")))?;
                let head = Head::verify(&signed, registrar).map_err(|e| fail(e.to_string()))?;
                if head.epoch <= self.epoch {
                    return Err(fail(format!("epoch {} comes after epoch {}", head.epoch, self.epoch)));
                }
                let enrolled = self.devices.values().filter(|entry| entry.valid(at)).count();
                if head.size != enrolled as u64 {
                    return Err(fail(format!("its roster has {} devices, and {enrolled} were enrolled", head.size)));
                }
                self.epoch = head.epoch;
                self.published.push((head.epoch, event));
                // Only the last one's devices are asked for.
                let devices = if event == last { self.valid(at) } else { Vec::new() };
                self.last = Some(Publication { event, issued_at: at, head, signed, devices });
            }
            _ => return Err(fail(format!("its kind is {kind}: made by a newer version?"))),
        }
        Ok(())
    }

    /// The tables say what the log says.
    fn check_tables(&self, db: &Connection) -> Result<(), ReplayError> {
        let fail = |why: String| ReplayError::Log(self.head.event, why);
        let mut statement = db.prepare("SELECT client_id, event, not_after, revoked_at FROM devices")?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let client = ClientId::from_slice(row.get_ref(0)?.as_blob()?);
            let there: (i64, i64, Option<i64>) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let entry = client.and_then(|client| self.devices.get(&client));
            let wanted = entry.map(|it| (it.event as i64, it.not_after as i64, it.revoked_at.map(|at| at as i64)));
            if wanted != Some(there) {
                let name = client.map_or("?".into(), |client| client.to_string());
                return Err(fail(format!("the table of devices says of client {name} what the log does not say")));
            }
            count += 1;
        }
        if count != self.devices.len() {
            return Err(fail(format!("the table has {count} devices, and the log {}", self.devices.len())));
        }
        let mut statement = db.prepare("SELECT epoch, event FROM epochs ORDER BY epoch")?;
        let epochs = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        if epochs.collect::<rusqlite::Result<Vec<_>>>()? != self.published {
            return Err(fail("the table of epochs is not what the log says".into()));
        }
        if let Some(keys) = &self.keys {
            let count: i64 = db.query_row("SELECT COUNT(*) FROM keys", [], |row| row.get(0))?;
            if count as usize != keys.len() {
                return Err(fail(format!("the table has {count} keys, and the log {}", keys.len())));
            }
        }
        Ok(())
    }

    /// The last roster's root follows from the leaves in the log.
    pub fn check_root(&self, db: &Connection) -> Result<(), ReplayError> {
        let Some(last) = &self.last else { return Ok(()) };
        if tree(db, &last.devices)?.root() != last.head.root {
            let why = format!("the root of epoch {} is not that of the devices in the log", last.head.epoch);
            return Err(ReplayError::Log(last.event, why));
        }
        Ok(())
    }
}

/// Why a log was not read.
pub(super) enum ReplayError {
    Log(u64, String),
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for ReplayError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<rusqlite::types::FromSqlError> for ReplayError {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Database(error.into())
    }
}

impl ReplayError {
    pub fn at(self, path: &std::path::Path) -> RegistrarError {
        match self {
            Self::Log(event, why) => RegistrarError::Log { event, why },
            Self::Database(source) => RegistrarError::Database { path: path.into(), source },
        }
    }
}

pub(super) fn key_owner(db: &Connection, key: &[u8]) -> rusqlite::Result<Option<ClientId>> {
    let mut statement = db.prepare_cached("SELECT client_id FROM keys WHERE hash = ?")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?.map(ClientId))
}

/// Hands the leaves of `devices` to `each`, in order.
pub(super) fn each_leaf<E: From<rusqlite::Error>>(
    db: &Connection,
    devices: &[(ClientId, u64)],
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut statement = db.prepare("SELECT body FROM events WHERE seq = ?")?;
    for (_, event) in devices {
        let mut rows = statement.query([*event as i64])?;
        let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        each(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)?;
    }
    Ok(())
}

/// The roster's tree over `devices`.
pub(super) fn tree(db: &Connection, devices: &[(ClientId, u64)]) -> rusqlite::Result<Tree> {
    let mut statement = db.prepare("SELECT body FROM events WHERE seq = ?")?;
    let mut failed = None;
    let leaves = devices.iter().map_while(|(_, event)| {
        let leaf = statement.query_row([*event as i64], |row| row.get::<_, Vec<u8>>(0));
        leaf.map_err(|error| failed = Some(error)).ok()
    });
    let tree = Tree::new(label::TREE_ROSTER, leaves);
    failed.map_or(Ok(tree), Err)
}
