//! Trace files: devices and drop-outs as CSV with a header line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use unisono_protocol::server::Phase;

use crate::dropout::phase_of;
use crate::error::SimError;
use crate::network::DeviceClass;

pub(crate) fn error(path: &Path, why: impl ToString) -> SimError {
    SimError::Trace { path: path.to_owned(), why: why.to_string() }
}

/// Bytes of the largest trace that is read.
const LARGEST: u64 = 256 << 20;

/// The file's text. A folder, or what is no text, is told as such.
fn text(path: &Path) -> Result<String, SimError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| error(path, e))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| error(path, e))?;
    if bytes.len() as u64 > LARGEST {
        return Err(error(path, format!("it is longer than {LARGEST} bytes")));
    }
    let no_text = || error(path, "it is no text; a trace is a CSV file");
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(no_text)
}

/// The lines after the header, which must have these columns, each with its number in the file.
fn rows<T: DeserializeOwned>(path: &Path, columns: &[&str]) -> Result<Vec<(u64, T)>, SimError> {
    let text = text(path)?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| error(path, e))?.clone();
    if let Some(missing) = columns.iter().find(|column| header.iter().all(|name| name != **column)) {
        return Err(error(
            path,
            format!("its first line has no {missing:?}; it names the columns {}", columns.join(",")),
        ));
    }
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        Ok((line, record.deserialize(Some(&header))?))
    };
    let rows: Vec<(u64, T)> =
        reader.records().map(row).collect::<Result<_, csv::Error>>().map_err(|e| error(path, e))?;
    if rows.is_empty() { Err(error(path, "it has no line but the header")) } else { Ok(rows) }
}

#[derive(Deserialize)]
struct DeviceRow {
    latency_ms: f64,
    up_mbit: f64,
    down_mbit: f64,
    slowdown: f64,
    class: Option<String>,
}

/// Devices of a network trace, each as a class without spread.
pub(crate) fn devices(path: &Path) -> Result<Vec<DeviceClass>, SimError> {
    let device = |row: DeviceRow| DeviceClass {
        name: row.class.unwrap_or_else(|| "traced".into()),
        weight: 1.0,
        latency_ms: row.latency_ms,
        up_mbit: row.up_mbit,
        down_mbit: row.down_mbit,
        slowdown: row.slowdown,
        spread: 0.0,
    };
    let rows = rows(path, &["latency_ms", "up_mbit", "down_mbit", "slowdown"])?;
    let checked = |(line, row)| {
        let device = device(row);
        device.check().map_err(|why| error(path, format!("line {line}: {why}")))?;
        Ok(device)
    };
    rows.into_iter().map(checked).collect()
}

#[derive(Deserialize)]
struct DropoutRow {
    round: u64,
    client: u64,
    phase: String,
}

/// Phase of each drop-out by round and device.
pub(crate) fn dropouts(path: &Path) -> Result<BTreeMap<(u64, u64), Phase>, SimError> {
    let mut fates = BTreeMap::new();
    for (line, DropoutRow { round, client, phase }) in rows(path, &["round", "client", "phase"])? {
        let at_line = |why: String| error(path, format!("line {line}: {why}"));
        let no_phase = || at_line(format!("{phase:?} is no phase (advertise, share, mask, confirm, unmask)"));
        let phase = phase_of(&phase).ok_or_else(no_phase)?;
        if round == 0 {
            return Err(at_line("round 0: rounds count from 1".into()));
        }
        if fates.insert((round, client), phase).is_some() {
            return Err(at_line(format!("client {client} vanishes in round {round} already")));
        }
    }
    Ok(fates)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn traces_are_read_and_their_faults_are_named_with_the_line() {
        let good = file("round,client,phase\n1,4,mask\n2, 0, unmask\n");
        assert_eq!(dropouts(good.path()).unwrap(), [((1, 4), Phase::Mask), ((2, 0), Phase::Unmask)].into());
        let bad = dropouts(file("round,client,phase\n1,4,lunch\n").path()).unwrap_err().to_string();
        assert!(bad.contains("line 2") && bad.contains("lunch"), "{bad}");
        for (text, word) in [
            ("round,client\n1,4\n", "no \"phase\""),
            ("1,4,mask\n", "no \"round\""),
            ("", "no \"round\""),
            ("round,client,phase\n", "no line but the header"),
            ("round,client,phase\n1,4\n", "line: 2"),
            ("round,client,phase\n1,4,mask\n0,4,mask\n", "line 3: round 0"),
            ("round,client,phase\n1,4,mask\n1,4,share\n", "line 3: client 4"),
            ("round,client,phase\n1,4,mask\0\n", "no text"),
        ] {
            let error = dropouts(file(text).path()).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }

        let good = file("latency_ms,up_mbit,down_mbit,slowdown,class\n10,5,20,2,phone\n1,100,100,1,server\n");
        let classes = devices(good.path()).unwrap();
        assert_eq!((classes.len(), classes[1].name.as_str(), classes[0].up_mbit), (2, "server", 5.0));
        assert!(devices(file("latency_ms,up_mbit,down_mbit,slowdown\nfast,5,20,2\n").path()).is_err());
        let slow = devices(file("latency_ms,up_mbit,down_mbit,slowdown\n1,5,20,2\nNaN,5,20,2\n").path());
        let slow = slow.unwrap_err().to_string();
        assert!(slow.contains("line 3") && slow.contains("latency=NaN"), "{slow}");
    }

    #[test]
    fn what_is_no_text_is_no_trace() {
        let mut binary = tempfile::NamedTempFile::new().unwrap();
        binary.write_all(&[0x89, b'P', b'N', b'G', 0xff, b'\n']).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, word) in [(binary.path(), "no text"), (folder.path(), "directory")] {
            let error = devices(path).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("header"), "{error}");
        }
    }
}
