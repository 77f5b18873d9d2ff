//! `unisono registrar`: devices come and go, rosters are published.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Result, bail};
use unisono::protocol::ClientId;
use unisono::protocol::keyfile::{self, Role};
use unisono::registrar::{self, Issue, LogHead, PUBLIC_KEY, ROSTER_DAYS, Registrar, Table, Terms};

use super::{now, read_key};

/// Says which devices exist. Works on a folder and may be offline; never sees an update.
///
/// Each command is one transaction: it has happened when the command has ended well, and not at all otherwise. Commands may run at
/// the same time; they wait for each other. After an interruption run the same command again.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Makes a registrar: its secret key, its public key (the trust anchor of every device), and an empty database.
    Init {
        /// Folder, made if missing. Only its owner may use it.
        folder: PathBuf,
    },
    /// Enrols devices by their public files, which `unisono client keys` made, or by a table.
    ///
    /// All devices of one call are enrolled, or none when there is a fault, which is told with its file and line. Devices that are
    /// enrolled already are skipped, so that a call may be repeated. A validity begins five minutes in the past, for devices whose
    /// clocks are behind. A renewal keeps a device's keys.
    ///
    /// A table is a CSV file whose first line names the columns: `file` (a device's public file, relative to the table's folder), or
    /// `client_id`, `identity_key`, `release_key` and `signature` (hexadecimal, as in that file); and `attribute.NAME` for attributes:
    ///
    ///     file,attribute.site
    ///     one.key.pub,berlin
    ///     two.key.pub,paris
    #[command(verbatim_doc_comment)]
    Enrol {
        /// The registrar's folder.
        folder: PathBuf,
        /// Public files of devices.
        #[arg(required_unless_present = "tables")]
        devices: Vec<PathBuf>,
        /// A table of devices; may be given several times.
        #[arg(long = "csv", value_name = "FILE")]
        tables: Vec<PathBuf>,
        /// Validity in days.
        #[arg(long, default_value_t = 365)]
        days: u64,
        /// Free words about them, as name=value. A table's own count more.
        #[arg(long = "attribute", value_parser = attribute, value_name = "NAME=VALUE")]
        attributes: Vec<(String, String)>,
        /// Renew enrolments that have not ended yet, too; without it they are skipped.
        #[arg(long)]
        renew: bool,
        /// Accept other keys for a device that is enrolled. Ask its owner first: whoever has made them becomes that device.
        #[arg(long)]
        replace_key: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revokes devices: the next roster is without them, and their ids and keys are never used again.
    Revoke {
        /// The registrar's folder.
        folder: PathBuf,
        /// The devices, 32 hexadecimal digits each.
        #[arg(required = true, value_name = "CLIENT")]
        clients: Vec<ClientId>,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Signs the next roster. A running coordinator reads it before its next round.
    ///
    /// The log of events is verified first. If the command was interrupted after it had signed a roster, the next call with the same
    /// keys writes that roster, unless something has changed since.
    Publish {
        /// The registrar's folder.
        folder: PathBuf,
        /// Public keys of the coordinators that may open rounds.
        #[arg(long = "coordinator", required = true)]
        coordinators: Vec<PathBuf>,
        /// Public keys of the publishers that may sign releases.
        #[arg(long = "publisher")]
        publishers: Vec<PathBuf>,
        /// File of the roster; replaced atomically.
        #[arg(long)]
        out: PathBuf,
        /// Days for which the roster counts: devices act on none that is over, so publish again before. A short time bounds for how
        /// long a coordinator can keep a revoked device or key in force for devices that have not heard of it.
        #[arg(long, default_value_t = ROSTER_DAYS)]
        days: u64,
        /// Choose an epoch larger than this: for a registrar whose folder was restored from an old backup.
        #[arg(long, default_value_t = 0)]
        after_epoch: u64,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the devices.
    List {
        /// The registrar's folder.
        folder: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verifies the log of events: who was enrolled and revoked, what was published.
    ///
    /// Every event's hash covers the one before. All hashes, the signatures of all rosters, the tables of devices, keys and epochs,
    /// and the root of the last roster are checked. Note the head that it prints somewhere else: with --head, a later call shows
    /// that nothing before it was changed or cut off since.
    Audit {
        /// The registrar's folder.
        folder: PathBuf,
        /// A head that was noted earlier, EVENT:HASH; the log must still have it.
        #[arg(long)]
        head: Option<LogHead>,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("an attribute is name=value")?;
    Ok((name.into(), value.into()))
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { folder } => {
            Registrar::init(&folder)?;
            println!("registrar made in {}", folder.display());
            println!(
                "give {} to every device and coordinator; keep the rest offline",
                folder.join(PUBLIC_KEY).display()
            );
        }
        Command::Enrol { folder, devices, tables, days, attributes, renew, replace_key, json } => {
            let mut registrar = Registrar::open(&folder)?;
            let attributes: BTreeMap<String, String> = attributes.into_iter().collect();
            let files = devices.iter().map(|path| registrar::read_file(path, attributes.clone()));
            let tables =
                tables.iter().map(|path| Table::open(path, attributes.clone())).collect::<Result<Vec<_>, _>>()?;
            let terms = Terms { days, renew, replace_keys: replace_key };
            let done = registrar.enrol_all(files.chain(tables.into_iter().flatten()), now(), terms)?;
            if json {
                println!("{}", serde_json::to_string(&done)?);
                return Ok(());
            }
            let (enrolled, renewed, skipped) = (done.enrolled, done.renewed, done.skipped);
            println!(
                "enrolled {enrolled} for {days} days, renewed {renewed}, skipped {skipped} that are enrolled already"
            );
            if enrolled + renewed > 0 {
                println!("publish a roster to make it known");
            }
        }
        Command::Revoke { folder, clients, json } => {
            let revoked = Registrar::open(&folder)?.revoke_all(&clients, now())?;
            let skipped = clients.len() as u64 - revoked;
            if json {
                println!("{}", serde_json::json!({ "revoked": revoked, "skipped": skipped }));
                return Ok(());
            }
            println!(
                "revoked {revoked}, skipped {skipped} that are revoked already; publish a roster to make it known"
            );
        }
        Command::Publish { folder, coordinators, publishers, out, days, after_epoch, json } => {
            let mut registrar = Registrar::open(&folder)?;
            let keys = |paths: &[PathBuf], role: Role| -> Result<Vec<_>> {
                paths.iter().map(|path| read_key(path, |text| keyfile::verifying_key_from_text(role, text))).collect()
            };
            let (coordinators, publishers) =
                (keys(&coordinators, Role::Coordinator)?, keys(&publishers, Role::Publisher)?);
            let issue = Issue { coordinators: &coordinators, publishers: &publishers, now: now(), days, after_epoch };
            let done = registrar.publish_to(&out, &issue)?;
            if json {
                let (epoch, devices, valid_until) = (done.epoch, done.devices, done.valid_until);
                let (resumed, log) = (done.resumed, done.log.to_string());
                println!(
                    "{}",
                    serde_json::json!({
                        "epoch": epoch, "devices": devices, "valid_until": valid_until, "resumed": resumed, "roster": out,
                        "log": log,
                    })
                );
                return Ok(());
            }
            println!("roster of epoch {} with {} devices: {}", done.epoch, done.devices, out.display());
            let left = done.valid_until.saturating_sub(issue.now) / 86_400;
            println!("it counts for {left} days, until {} (Unix time): publish again before", done.valid_until);
            println!("head of the log: {}", done.log);
        }
        Command::List { folder, json } => {
            if !folder.exists() {
                bail!("there is no folder {}", folder.display());
            }
            let registrar = Registrar::open(&folder)?;
            let (epoch, devices) = (registrar.epoch()?, registrar.devices()?);
            let mut out = BufWriter::new(io::stdout().lock());
            if json {
                writeln!(out, "{}", serde_json::json!({ "epoch": epoch, "devices": devices }))?;
                return Ok(out.flush()?);
            }
            writeln!(out, "epoch {epoch}, {} devices", devices.len())?;
            for device in devices {
                let state = match device.revoked_at {
                    Some(at) => format!("revoked at {at}"),
                    None if device.not_after < now() => format!("expired at {}", device.not_after),
                    None => format!("valid until {}", device.not_after),
                };
                let words: Vec<String> =
                    device.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
                writeln!(out, "{}  {state}  {}", device.client_id, words.join(" "))?;
            }
            out.flush()?;
        }
        Command::Audit { folder, head, json } => {
            let audit = Registrar::open(&folder)?.audit(head)?;
            let (events, epoch, devices, revoked) = (audit.log.event, audit.epoch, audit.devices, audit.revoked);
            if json {
                let (log, undelivered) = (audit.log.to_string(), audit.undelivered);
                println!(
                    "{}",
                    serde_json::json!({
                        "events": events, "epoch": epoch, "devices": devices, "revoked": revoked, "log": log,
                        "undelivered": undelivered,
                    })
                );
                return Ok(());
            }
            println!("{events} events verify: epoch {epoch}, {devices} devices, {revoked} revoked");
            if let Some(epoch) = audit.undelivered {
                println!("publishing epoch {epoch} was interrupted: publish again");
            }
            println!("head of the log: {}", audit.log);
        }
    }
    Ok(())
}
