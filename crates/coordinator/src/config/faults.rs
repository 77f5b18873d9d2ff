//! `--check`: everything that is wrong with a configuration and what it names, at once, each with its line.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::roster::{Head, Scanned, scan};

use super::{Config, ConfigError};
use crate::storage::Positional;

/// Something that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting with its section; empty for the file as a whole.
    pub setting: String,
    /// Line of the file, from 1; absent where the setting has none.
    pub line: Option<usize>,
    /// Its value, as far as it is no secret; empty where there is none.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub suggestion: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.setting.is_empty() {
            let separator = if self.value.is_empty() { "" } else { " = " };
            write!(f, "{}{separator}{}: ", self.setting, self.value)?;
        }
        write!(f, "{}", self.problem)?;
        if self.suggestion.is_empty() { Ok(()) } else { write!(f, "; {}", self.suggestion) }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Where settings are in the file.
struct Places<'a> {
    text: &'a str,
    table: Option<DeTable<'a>>,
}

impl<'a> Places<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, table: DeTable::parse(text).ok().map(toml::Spanned::into_inner) }
    }

    /// Line of a setting, or of the section that it would be in; and its value as it is written.
    fn find(&self, setting: &str) -> (Option<usize>, String) {
        let (mut table, mut line) = (self.table.as_ref(), None);
        let mut parts = setting.split('.').peekable();
        while let (Some(part), Some(here)) = (parts.next(), table) {
            let Some((key, value)) = here.iter().find(|(key, _)| key.get_ref().as_ref() == part) else { break };
            line = Some(line_of(self.text, key.span().start));
            table = match value.get_ref() {
                DeValue::Table(inner) => Some(inner),
                other => {
                    let written = self.text.get(value.span()).filter(|_| !matches!(other, DeValue::Array(_)));
                    return (line, written.unwrap_or_default().to_owned());
                }
            };
        }
        (line, String::new())
    }
}

/// `text` without the setting at `offset`; a section goes as a whole.
fn without(text: &str, offset: usize) -> String {
    let from = text[..offset].rfind('\n').map_or(0, |at| at + 1);
    let section = text[from..].trim_start().starts_with('[');
    let lines = text[from..].split_inclusive('\n').enumerate();
    let goes = |(i, line): &(usize, &str)| *i == 0 || (section && !line.trim_start().starts_with('['));
    let end = from + lines.take_while(goes).map(|(_, line)| line.len()).sum::<usize>();
    let blank: String = text[from..end].chars().filter(|c| *c == '\n').collect();
    format!("{}{blank}{}", &text[..from], &text[end..])
}

/// Reads the settings; what can't be read is left out, and told.
pub(crate) fn parse(text: &str, faults: &mut Vec<Fault>) -> Option<Config> {
    let mut rest = text.to_owned();
    loop {
        let error = match toml::from_str::<Config>(&rest) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let offset = error.span().map(|span| span.start).filter(|&start| rest.is_char_boundary(start));
        let missing = error.message().starts_with("missing field");
        // A setting that is needed, and was left out for its value.
        let told = faults.iter().any(|fault| missing && error.message().contains(&format!("`{}`", fault.setting)));
        let line = offset.map(|at| line_of(&rest, at));
        let written = offset.and_then(|at| rest[rest[..at].rfind('\n').map_or(0, |at| at + 1)..].lines().next());
        let (setting, value) = written.filter(|_| !missing).unwrap_or_default().split_once('=').unwrap_or_default();
        if !told {
            faults.push(Fault {
                setting: setting.trim().into(),
                line,
                value: value.split('#').next().unwrap_or_default().trim().into(),
                problem: error.message().trim().replace('\n', " "),
                suggestion: "docs/operations.md lists every setting".into(),
            });
        }
        match offset.filter(|_| !missing).map(|at| without(&rest, at)) {
            Some(shorter) if faults.len() < 100 && DeTable::parse(&shorter).is_ok() && shorter != rest => {
                rest = shorter
            }
            _ => return None,
        }
    }
}

impl Config {
    /// Reads a configuration file and everything that it names, and tells all that is wrong: what can't be read, what is out of
    /// range, and what only the start of the service or the end of training would meet. `now` is Unix time in seconds. Nothing is
    /// changed. The configuration is there when it could be read.
    pub fn examine(path: &Path, now: u64) -> (Option<Self>, Vec<Fault>) {
        let mut faults = Vec::new();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let problem = format!("can't read {}: {error}", path.display());
                let suggestion = "give the path of a TOML file".into();
                let (setting, value) = (String::new(), String::new());
                return (None, vec![Fault { setting, line: None, value, problem, suggestion }]);
            }
        };
        let Some(mut config) = parse(&text, &mut faults) else { return (None, faults) };
        config.resolve(path);
        let places = Places::of(&text);
        let mut add = |setting: &str, problem: String, suggestion: &str| {
            let (line, value) = places.find(setting);
            faults.push(Fault { setting: setting.into(), line, value, problem, suggestion: suggestion.into() });
        };
        let of_settings = config.setting_faults();
        let params_checked = of_settings.is_empty();
        for fault in of_settings {
            match fault {
                ConfigError::Setting { setting, got, allowed } => {
                    add(setting, format!("{got} is out of range"), &format!("allowed is {allowed}"));
                }
                ConfigError::Missing { setting, why } => add(setting, "it is missing".into(), why),
                ConfigError::NoTls { setting, .. } => {
                    let problem = "other machines can reach it, and there is no TLS".into();
                    add(
                        setting,
                        problem,
                        "set `certificate` and `key` in [tls], listen on 127.0.0.1, or set `insecure = true`",
                    );
                }
                other => add("round", other.to_string(), ""),
            }
        }
        config.check_files(now, params_checked, &mut add);
        config.check_places(&mut add);
        (Some(config), faults)
    }

    /// Keys, roster and initial model.
    fn check_files(&self, now: u64, params_checked: bool, add: &mut impl FnMut(&str, String, &str)) {
        fn good<T>(result: Result<T, ConfigError>, name: &str, add: &mut impl FnMut(&str, String, &str)) -> Option<T> {
            let error = result.map_err(|error| match error {
                ConfigError::Missing { why, .. } => ("it is missing".to_owned(), why),
                other => (other.to_string(), ""),
            });
            error.map_err(|(problem, suggestion)| add(name, problem, suggestion)).ok()
        }
        let publisher = self.release.as_ref().and_then(|release| {
            good(release.key_encryption_key(), "release.key_encryption_key", add);
            good(release.publisher_key(), "release.publisher", add)
        });
        good(self.token(), "token", add);
        if let Some(tls) = &self.tls {
            tls.check_files(now, add);
        }
        if self.malicious() {
            let registrar = good(self.registrar_key(), "registrar", add);
            let key = good(self.coordinator_key(), "key", add);
            if self.roster.is_none() {
                add("roster", "it is missing".into(), "a round in malicious mode needs it");
            }
            if let (Some(path), Some(registrar)) = (&self.roster, registrar)
                && let Some((head, valid)) = good(examine_roster(path, &registrar, now), "roster", add)
            {
                if let Err(over) = head.check_validity(now) {
                    add("roster", format!("{}: {over}", path.display()), "");
                }
                let publish = "publish a roster that does: `unisono registrar publish";
                if key.is_some_and(|key| !head.coordinator_keys.contains(&key.verifying_key())) {
                    let problem = format!("the roster of epoch {} does not name this coordinator's key", head.epoch);
                    add(
                        "key",
                        format!("{problem}: devices would refuse every round"),
                        &format!("{publish} --coordinator`"),
                    );
                }
                if publisher.is_some_and(|key| !head.publisher_keys.contains(&key.verifying_key())) {
                    let problem = format!("the roster of epoch {} does not name this publisher's key", head.epoch);
                    add(
                        "release.publisher",
                        format!("{problem}: no device could open the model"),
                        &format!("{publish} --publisher`"),
                    );
                }
                if valid < self.round.n_min as usize {
                    let problem = format!(
                        "the roster of epoch {} has {valid} devices that are valid now, fewer than n_min: no round could begin",
                        head.epoch
                    );
                    add("round.n_min", problem, "enrol more devices and publish again, or lower n_min");
                }
            }
        }
        // A task that has begun does not need the file any more.
        let begun = self.state_dir.join("blobs/models").join(&self.task.name).is_dir();
        if (self.task.initial_model.exists() || !begun)
            && let Some(model) = good(self.initial_model(), "task.initial_model", add)
            && params_checked
            && let Err(error) = self.check_params(model.values().len() as u64, Some(&model))
        {
            add(error.setting().unwrap_or("round"), error.to_string(), "");
        }
    }

    /// State folder and addresses.
    fn check_places(&self, add: &mut impl FnMut(&str, String, &str)) {
        if let Err(error) = try_to_write(&self.state_dir) {
            let problem = format!("{} can't be written: {error}", self.state_dir.display());
            add("state_dir", problem, "give a folder of this user's, or one that can be made");
        }
        let clash = |a: SocketAddr, b: SocketAddr| {
            let ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() != 0 && a.port() == b.port() && ip
        };
        if let Some(metrics) = self.metrics_listen.filter(|metrics| clash(*metrics, self.listen)) {
            add("metrics_listen", format!("`listen` has port {} too", metrics.port()), "give each a port of its own");
            return;
        }
        if in_use(&self.state_dir) {
            // It is this coordinator that holds the addresses.
            return;
        }
        for (setting, address) in [("listen", Some(self.listen)), ("metrics_listen", self.metrics_listen)] {
            if let Some(Err(error)) = address.map(std::net::TcpListener::bind) {
                add(setting, format!("can't listen there: {error}"), "give a free port of an address of this machine");
            }
        }
    }
}

/// Reads a roster from the start to the end: its head, and how many of its devices are valid at `now`.
fn examine_roster(path: &Path, registrar: &VerifyingKey, now: u64) -> Result<(Head, usize), ConfigError> {
    let file = Positional::open(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let mut valid = 0;
    let count = |leaf: Scanned<'_>| {
        valid += usize::from((leaf.fields.not_before..=leaf.fields.not_after).contains(&now));
        Ok(())
    };
    match scan(&file, registrar, count, |_| Ok(())) {
        Ok((_, head)) => Ok((head, valid)),
        Err(source) => Err(ConfigError::Roster { path: path.into(), source }),
    }
}

/// Whether a coordinator runs on the state folder.
fn in_use(folder: &Path) -> bool {
    let lock = File::options().read(true).write(true).open(folder.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Writes a file in `folder`, or in the nearest one above it that is there, and deletes it.
fn try_to_write(folder: &Path) -> io::Result<()> {
    let mut at = folder;
    while !at.exists() {
        at = at.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    }
    let name = at.join(format!(".unisono-check-{}", std::process::id()));
    File::create_new(&name)?;
    std::fs::remove_file(&name)
}
