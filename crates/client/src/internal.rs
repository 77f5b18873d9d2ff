//! No part of the API: what the fuzz targets in `fuzz/` need of this crate's inside.

use crate::Record;

/// The record that a file of these bytes holds; it is forgotten with the process.
///
/// # Errors
/// What is wrong with it.
pub fn read_record(bytes: &[u8]) -> Result<Record, String> {
    Record::from_bytes(bytes)
}

/// As the record's file would have it.
pub fn write_record(record: &Record) -> Vec<u8> {
    record.to_bytes()
}
