//! Devices to enrol, out of files and tables. Both are read piece by piece: a table may be larger than memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use unisono_crypto::kem::EncapsulationKey;
use unisono_crypto::sign::{Level, VerifyingKey};
use unisono_protocol::ClientId;
use unisono_protocol::keyfile::{self, Enrolment};

use super::error::{Place, RegistrarError};

/// Longest line of a table, in bytes.
pub const MAX_LINE: usize = 64 << 10;
/// Rows of a table that are read before their signatures are checked, on all cores.
const AT_ONCE: usize = 1024;
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
    let fail =
        |name: &str, why: String| Err(RegistrarError::Attribute { name: name.chars().take(MAX_NAME).collect(), why });
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

/// The fields of one line of a table: separated by commas, trimmed; in quotes where they hold commas or quotes, which are doubled
/// then. A field does not go over the end of a line.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line.trim();
    loop {
        let after = match rest.strip_prefix('"') {
            None => {
                let (field, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                if field.contains('"') {
                    return Err(format!("field {} has a quote within, and none at its start", fields.len() + 1));
                }
                fields.push(field.trim_end().to_owned());
                after
            }
            Some(mut quoted) => {
                let mut field = String::new();
                loop {
                    let end = quoted
                        .find('"')
                        .ok_or_else(|| format!("the quote of field {} does not end", fields.len() + 1))?;
                    field += &quoted[..end];
                    quoted = &quoted[end + 1..];
                    match quoted.strip_prefix('"') {
                        Some(more) => (field, quoted) = (field + "\"", more),
                        None => break,
                    }
                }
                fields.push(field);
                quoted.trim_start()
            }
        };
        match after.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if after.is_empty() => return Ok(fields),
            None => return Err(format!("field {} goes on after its quote", fields.len())),
        }
    }
}

/// Lines of a file with their numbers; too long ones are refused, so that a file that is no table does not fill the memory.
struct Lines {
    file: BufReader<File>,
    number: u64,
    line: Vec<u8>,
    broken: bool,
}

impl Lines {
    /// The fields of the next line that is not empty; `None` at the end and after a fault.
    fn next(&mut self) -> Option<Result<Vec<String>, String>> {
        while !self.broken {
            self.number += 1;
            self.line.clear();
            let read = self.file.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut self.line);
            let fields = match read {
                Ok(0) => return None,
                Ok(_) if self.line.len() > MAX_LINE => {
                    Err(format!("longer than {MAX_LINE} bytes: is this a table of devices?"))
                }
                Ok(_) => match std::str::from_utf8(&self.line) {
                    Ok(line) if line.trim_matches('\u{feff}').trim().is_empty() => continue,
                    // Some programs write a mark at the start of a file.
                    Ok(line) => split(line.strip_prefix('\u{feff}').unwrap_or(line)),
                    Err(_) => Err("no UTF-8 text".into()),
                },
                Err(error) => Err(error.to_string()),
            };
            self.broken = fields.is_err();
            return Some(fields);
        }
        None
    }
}

enum Keys {
    /// Column of the file's name.
    File(usize),
    /// Columns of client id, identity key, release key and signature.
    Inline([usize; 4]),
}

/// A CSV table of devices, read row by row. Its first line names the columns: either `file` (a device's public file, relative to
/// the table's folder) or `client_id`, `identity_key`, `release_key` and `signature` (hexadecimal, as in such a file); and any number
/// of `attribute.NAME`.
pub struct Table {
    path: Arc<Path>,
    lines: Lines,
    columns: Columns,
    /// Rows that were read and checked, which takes a while for each: many at a time.
    checked: VecDeque<Result<Candidate, RegistrarError>>,
}

/// What the columns of a table hold.
struct Columns {
    count: usize,
    keys: Keys,
    attributes: Vec<(usize, String)>,
    common: BTreeMap<String, String>,
}

impl Table {
    /// Opens a table. Its devices get the `common` attributes beside their own.
    ///
    /// # Errors
    /// [`RegistrarError`]: a file that can't be read, or columns that are unknown, missing or there twice.
    pub fn open(path: &Path, common: BTreeMap<String, String>) -> Result<Self, RegistrarError> {
        let file = File::open(path).map_err(|source| RegistrarError::Io { path: path.into(), source })?;
        let mut lines =
            Lines { file: BufReader::with_capacity(1 << 16, file), number: 0, line: Vec::new(), broken: false };
        let header = lines.next();
        let place = Place { path: path.into(), line: Some(lines.number) };
        let wrong = |why: String| at(place.clone())(RegistrarError::Row(why));
        let header = header
            .unwrap_or_else(|| Err("the table is empty; its first line names the columns".into()))
            .map_err(wrong)?;
        let known =
            "known are `file`, or `client_id`, `identity_key`, `release_key` and `signature`; and `attribute.NAME`";
        let (mut file, mut inline, mut attributes) = (None, [None; 4], Vec::new());
        for (column, name) in header.iter().enumerate() {
            let before = match name.as_str() {
                "file" => file.replace(column),
                "client_id" => inline[0].replace(column),
                "identity_key" => inline[1].replace(column),
                "release_key" => inline[2].replace(column),
                "signature" => inline[3].replace(column),
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
            (Some(file), [None, None, None, None]) => Keys::File(file),
            (None, [Some(client), Some(identity), Some(release), Some(signature)]) => {
                Keys::Inline([client, identity, release, signature])
            }
            _ => return Err(wrong(format!("the columns don't say what a device's keys are: {known}"))),
        };
        let columns = Columns { count: header.len(), keys, attributes, common };
        Ok(Self { path: path.into(), lines, columns, checked: VecDeque::new() })
    }
}

impl Columns {
    /// The device of a row; `folder` is that of the table.
    fn candidate(&self, row: &[String], folder: &Path) -> Result<Candidate, RegistrarError> {
        if row.len() != self.count {
            let why = format!("{} fields instead of the {} of the first line", row.len(), self.count);
            return Err(RegistrarError::Row(why));
        }
        let field = |column: usize| row.get(column).map_or("", String::as_str);
        let enrolment = match self.keys {
            Keys::File(column) => enrolment_of(&folder.join(field(column)))?,
            Keys::Inline([client, identity, release, signature]) => {
                let bytes = |column: usize| hex::decode(field(column)).ok();
                let wrong =
                    |name: &str, wanted: &str| RegistrarError::Row(format!("{name} is not {wanted}, hexadecimal"));
                let key = bytes(identity).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
                let release = bytes(release).and_then(|bytes| EncapsulationKey::from_bytes(&bytes).ok());
                let client = bytes(client).and_then(|bytes| ClientId::from_slice(&bytes));
                Enrolment::verify(
                    client.ok_or_else(|| wrong("client_id", "16 bytes"))?,
                    key.filter(|key| key.level() == Level::L44)
                        .ok_or_else(|| wrong("identity_key", "an Ed25519 + ML-DSA-44 key (1344 bytes)"))?,
                    release.ok_or_else(|| wrong("release_key", "an X-Wing key (1216 bytes)"))?,
                    bytes(signature).ok_or_else(|| wrong("signature", "a signature (2484 bytes)"))?,
                )
                .map_err(|source| RegistrarError::Foreign { source })?
            }
        };
        let mut attributes = self.common.clone();
        for (column, name) in self.attributes.iter().filter(|(column, _)| !field(*column).is_empty()) {
            attributes.insert(name.clone(), field(*column).to_owned());
        }
        Ok(Candidate { enrolment, attributes, at: None })
    }
}

impl Table {
    /// Reads and checks some rows more.
    fn read_on(&mut self) {
        let mut rows = Vec::new();
        while rows.len() < AT_ONCE
            && let Some(row) = self.lines.next()
        {
            rows.push((Place { path: self.path.clone(), line: Some(self.lines.number) }, row));
        }
        let (columns, folder) = (&self.columns, self.path.parent().unwrap_or(Path::new("")));
        let check = |(place, row): (Place, Result<Vec<String>, String>)| {
            let row = row.map_err(RegistrarError::Row);
            let candidate = row.and_then(|row| columns.candidate(&row, folder));
            candidate.map(|it| Candidate { at: Some(place.clone()), ..it }).map_err(at(place))
        };
        let checked: Vec<_> = rows.into_par_iter().map(check).collect();
        self.checked.extend(checked);
    }
}

impl Iterator for Table {
    type Item = Result<Candidate, RegistrarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.checked.is_empty() {
            self.read_on();
        }
        self.checked.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_its_commas() {
        let fields = |line: &str| split(line).unwrap();
        assert_eq!(fields("a, b ,,c\r\n"), ["a", "b", "", "c"]);
        assert_eq!(fields("\"a,b\" , \"say \"\"x\"\"\",\"\""), ["a,b", "say \"x\"", ""]);
        assert_eq!(fields("a,"), ["a", ""]);
        assert_eq!(fields("x"), ["x"]);
        assert!(split("a,\"b").unwrap_err().contains("quote of field 2 does not end"));
        assert!(split("\"a\"b,c").unwrap_err().contains("field 1 goes on after its quote"));
        assert!(split("a,b\"c\"").unwrap_err().contains("field 2 has a quote within"));
    }
}
