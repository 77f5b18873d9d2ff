//! Devices to enrol, out of files and tables. Both are read piece by piece: a table may be larger than memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use unisono_crypto::kem::EncapsulationKey;
use unisono_crypto::sign::{Level, VerifyingKey};
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::{self, Enrolment};

use super::error::{Place, RegistrarError};

/// Longest line of a table, in bytes.
pub const MAX_LINE: usize = 64 << 10;
const MAX_ATTRIBUTES: usize = 16;
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 256;

/// A device to enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its public keys.
    pub enrolment: Enrolment,
    /// Free words about it.
    pub attributes: BTreeMap<String, String>,
    /// Where it stands, for errors; `None` when it comes from no file.
    pub at: Option<Place>,
}

pub(super) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), RegistrarError> {
    let fail = |name: &str, why: String| {
        Err(RegistrarError::Attribute { name: name.chars().take(MAX_NAME).collect(), why })
    };
    for (count, (name, value)) in (1..).zip(attributes) {
        if count > MAX_ATTRIBUTES {
            return fail(name, format!("a device has at most {MAX_ATTRIBUTES} attributes"));
        }
        if name.is_empty() || name.len() > MAX_NAME || value.len() > MAX_VALUE {
            return fail(name, format!("a name has 1 to {MAX_NAME} bytes, a value at most {MAX_VALUE}"));
        }
        if name.contains('=') || name.chars().chain(value.chars()).any(char::is_control) {
            return fail(name, "control characters, and `=` in a name, are not allowed".into());
        }
    }
    Ok(())
}

fn enrolment_of(path: &Path) -> Result<Enrolment, RegistrarError> {
    let text = keyfile::read_public(path).map_err(|source| RegistrarError::Io { path: path.into(), source })?;
    Enrolment::from_text(&text).map_err(|source| RegistrarError::Foreign { source })
}

fn at(at: Place) -> impl FnOnce(RegistrarError) -> RegistrarError {
    |source| RegistrarError::At { at, source: Box::new(source) }
}

/// Reads the public file of a device, which `unisono client keys` made.
///
/// # Errors
/// [`RegistrarError::At`] a file that can't be read or is another one.
pub fn read_file(path: &Path, attributes: BTreeMap<String, String>) -> Result<Candidate, RegistrarError> {
    let place = Place { path: path.into(), line: None };
    let enrolment = enrolment_of(path).map_err(|error| match error {
        // It names the file itself.
        RegistrarError::Io { .. } => error,
        _ => at(place.clone())(error),
    })?;
    Ok(Candidate { enrolment, attributes, at: Some(place) })
}

/// Refuses lines that are too long, so that a file that is no table does not fill the memory.
struct Lines<R> {
    inner: R,
    line: u64,
    length: usize,
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        for byte in &buffer[..count] {
            self.length += 1;
            if *byte == b'\n' {
                (self.line, self.length) = (self.line + 1, 0);
            } else if self.length > MAX_LINE {
                let why = format!("line {} is longer than {MAX_LINE} bytes: is this a table of devices?", self.line);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(count)
    }
}

enum Keys {
    /// Column of the file's name.
    File(usize),
    /// Columns of client id, identity key and release key.
    Inline([usize; 3]),
}

/// A CSV table of devices, read row by row. Its first line names the columns: either `file` (a device's public file, relative to
/// the table's folder) or `client_id`, `identity_key` and `release_key` (hexadecimal, as in such a file); and any number of
/// `attribute.NAME`.
pub struct Table {
    path: PathBuf,
    reader: csv::Reader<Lines<File>>,
    keys: Keys,
    attributes: Vec<(usize, String)>,
    common: BTreeMap<String, String>,
    row: csv::StringRecord,
    broken: bool,
}

impl Table {
    /// Opens a table. Its devices get the `common` attributes beside their own.
    ///
    /// # Errors
    /// [`RegistrarError`]: a file that can't be read, or columns that are unknown, missing or there twice.
    pub fn open(path: &Path, common: BTreeMap<String, String>) -> Result<Self, RegistrarError> {
        let file = File::open(path).map_err(|source| RegistrarError::Io { path: path.into(), source })?;
        let lines = Lines { inner: file, line: 1, length: 0 };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(lines);
        let place = Place { path: path.into(), line: Some(1) };
        let wrong = |why: String| at(place.clone())(RegistrarError::Row(why));
        let header = reader.headers().map_err(|error| wrong(tell(&error)))?.clone();
        let known = "known are `file`, or `client_id`, `identity_key` and `release_key`; and `attribute.NAME`";
        let (mut file, mut inline, mut attributes) = (None, [None; 3], Vec::new());
        for (column, name) in header.iter().enumerate() {
            let before = match name {
                "file" => file.replace(column),
                "client_id" => inline[0].replace(column),
                "identity_key" => inline[1].replace(column),
                "release_key" => inline[2].replace(column),
                _ => {
                    let Some(attribute) = name.strip_prefix("attribute.") else {
                        let name: String = name.chars().take(MAX_NAME).collect();
                        return Err(wrong(format!("unknown column {name:?}: {known}")));
                    };
                    let before = attributes.iter().find(|(_, other)| other == attribute).map(|(column, _)| *column);
                    attributes.push((column, attribute.to_owned()));
                    before
                }
            };
            if before.is_some() {
                return Err(wrong(format!("the column {name:?} is there twice")));
            }
        }
        let keys = match (file, inline) {
            (Some(file), [None, None, None]) => Keys::File(file),
            (None, [Some(client), Some(identity), Some(release)]) => Keys::Inline([client, identity, release]),
            _ => return Err(wrong(format!("the columns don't say what a device's keys are: {known}"))),
        };
        let row = csv::StringRecord::new();
        Ok(Self { path: path.into(), reader, keys, attributes, common, row, broken: false })
    }

    fn candidate(&self) -> Result<Candidate, RegistrarError> {
        let field = |column: usize| self.row.get(column).unwrap_or_default();
        let enrolment = match self.keys {
            Keys::File(column) => enrolment_of(&self.path.parent().unwrap_or(Path::new("")).join(field(column)))?,
            Keys::Inline([client, identity, release]) => {
                let bytes = |column: usize| hex::decode(field(column)).ok();
                let wrong = |name: &str, wanted: &str| RegistrarError::Row(format!("{name} is not {wanted}, hexadecimal"));
                let key = bytes(identity).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
                let release = bytes(release).and_then(|bytes| EncapsulationKey::from_bytes(&bytes).ok());
                let client = bytes(client).and_then(|bytes| ClientId::from_slice(&bytes));
                Enrolment {
                    client_id: client.ok_or_else(|| wrong("client_id", "16 bytes"))?,
                    identity_key: key
                        .filter(|key| key.level() == Level::L44)
                        .ok_or_else(|| wrong("identity_key", "an Ed25519 + ML-DSA-44 key (1344 bytes)"))?,
                    release_key: release.ok_or_else(|| wrong("release_key", "an X-Wing key (1216 bytes)"))?,
                }
            }
        };
        let mut attributes = self.common.clone();
        for (column, name) in self.attributes.iter().filter(|(column, _)| !field(*column).is_empty()) {
            attributes.insert(name.clone(), field(*column).to_owned());
        }
        Ok(Candidate { enrolment, attributes, at: None })
    }
}

/// What is wrong with a table, without its place, which is told before.
fn tell(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields instead of the {expected_len} of the first line")
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("no UTF-8 text: {err}"),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

impl Iterator for Table {
    type Item = Result<Candidate, RegistrarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let read = self.reader.read_record(&mut self.row);
        let line = match &read {
            Err(error) => error.position().map_or(self.reader.position().line(), |position| position.line()),
            Ok(_) => self.row.position().map_or(0, |position| position.line()),
        };
        let place = Place { path: self.path.clone(), line: Some(line) };
        match read {
            Ok(false) => None,
            Ok(true) => {
                let candidate = self.candidate().map(|it| Candidate { at: Some(place.clone()), ..it });
                Some(candidate.map_err(at(place)))
            }
            Err(error) => {
                self.broken = true;
                Some(Err(at(place)(RegistrarError::Row(tell(&error)))))
            }
        }
    }
}
