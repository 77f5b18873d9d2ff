//! What the coordinator's log says, read as it grows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What was told so far.
#[derive(Default)]
pub struct Told {
    /// Ids of the rounds, by number.
    pub rounds: BTreeMap<u64, String>,
    /// Number and survivors of the rounds that gave a version of the model.
    pub finished: BTreeMap<u64, (u64, usize)>,
    /// Rounds that ended without a sum, by reason.
    pub aborted: BTreeMap<String, u64>,
    /// Other lines that are counted.
    pub counted: BTreeMap<String, u64>,
    /// Bytes of the log, by message.
    pub bytes: BTreeMap<String, u64>,
}

pub struct Log {
    path: PathBuf,
    read: u64,
    rest: Vec<u8>,
    pub told: Told,
}

impl Log {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), read: 0, rest: Vec::new(), told: Told::default() }
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// What must not be told.
    pub fn look(&mut self) -> Result<(), String> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.read)).map_err(|error| error.to_string())?;
        self.read += file.read_to_end(&mut self.rest).map_err(|error| error.to_string())? as u64;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            // A kill may cut a line off; what follows is behind it on the same line.
            if let Ok(told) = serde_json::from_slice::<Value>(&line) {
                let message = told["fields"]["message"].as_str().unwrap_or_default().to_owned();
                *self.told.bytes.entry(message).or_default() += line.len() as u64;
                self.told.take(&told)?;
            } else if String::from_utf8_lossy(&line).contains("panicked") {
                return Err(format!("a panic: {}", String::from_utf8_lossy(&line)));
            }
        }
        Ok(())
    }
}

impl Told {
    fn take(&mut self, line: &Value) -> Result<(), String> {
        let fields = &line["fields"];
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| fields[name].as_u64();
        match fields["message"].as_str().unwrap_or_default() {
            "round opened" => {
                let (round, id) = (number("round").ok_or("a round without a number")?, text("round_id"));
                match self.rounds.get(&round) {
                    Some(known) if *known != id => {
                        return Err(format!("round {round} is opened as {id}, and was {known}"));
                    }
                    Some(_) => {}
                    None => {
                        if let Some((last, _)) = self.rounds.last_key_value().filter(|(last, _)| **last > round) {
                            return Err(format!("round {round} is opened after round {last}"));
                        }
                        self.rounds.insert(round, id);
                    }
                }
            }
            "round finished" => {
                let all = (number("round"), number("model_version"), number("survivors"));
                let (Some(round), Some(version), Some(survivors)) = all else { return Err(line.to_string()) };
                if let Some((before, _)) = self.finished.insert(version, (round, survivors as usize)) {
                    return Err(format!("version {version} comes from round {before} and from round {round}"));
                }
            }
            "round aborted" | "round ended" => *self.aborted.entry(without_numbers(&text("reason"))).or_default() += 1,
            message @ ("going on after a restart" | "roster file refused; the last good one stays in force") => {
                *self.counted.entry(message.into()).or_default() += 1;
            }
            "training can't go on; trying again" => {
                *self.counted.entry(format!("training can't go on: {}", text("code"))).or_default() += 1;
                if !["storage"].contains(&text("code").as_str()) {
                    return Err(line.to_string());
                }
            }
            // All devices are honest.
            message if message.contains("dealt wrong shares") || message == "reported" => return Err(line.to_string()),
            _ => {}
        }
        Ok(())
    }
}

/// A reason as a kind: what differs from case to case is left out.
fn without_numbers(reason: &str) -> String {
    let word = |word: &str| match word {
        word if word.len() >= 16 && word.chars().all(|c| c.is_ascii_hexdigit()) => "#".to_owned(),
        word if word.chars().next().is_some_and(|c| c.is_ascii_digit()) => "#".to_owned(),
        word => word.to_owned(),
    };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ").chars().take(160).collect()
}
