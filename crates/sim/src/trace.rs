//! Trace files: devices and drop-outs as CSV with a header line.

use std::collections::BTreeMap;
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

fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, SimError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(|e| error(path, e))?;
    let rows: Vec<T> = reader.deserialize().collect::<Result<_, _>>().map_err(|e| error(path, e))?;
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
    Ok(rows(path)?.into_iter().map(device).collect())
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
    for (line, row) in rows::<DropoutRow>(path)?.into_iter().enumerate() {
        let phase = phase_of(&row.phase);
        let why =
            || format!("line {}: {:?} is no phase (advertise, share, mask, confirm, unmask)", line + 2, row.phase);
        fates.insert((row.round, row.client), phase.ok_or_else(|| error(path, why()))?);
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
        assert!(dropouts(file("round,client\n1,4\n").path()).is_err());
        assert!(dropouts(file("round,client,phase\n").path()).is_err());

        let good = file("latency_ms,up_mbit,down_mbit,slowdown,class\n10,5,20,2,phone\n1,100,100,1,server\n");
        let classes = devices(good.path()).unwrap();
        assert_eq!((classes.len(), classes[1].name.as_str(), classes[0].up_mbit), (2, "server", 5.0));
        assert!(devices(file("latency_ms,up_mbit,down_mbit,slowdown\nfast,5,20,2\n").path()).is_err());
    }
}
