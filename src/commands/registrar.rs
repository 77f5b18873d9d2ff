//! `unisono registrar`: devices come and go, rosters are published.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use unisono::files;
use unisono::protocol::ClientId;
use unisono::protocol::keyfile::{self, Enrolment, Role};
use unisono::registrar::{PUBLIC_KEY, Registrar};

use super::{now, read_key};

/// Says which devices exist. Works on a folder and may be offline; never sees an update.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Makes a registrar: its secret key, its public key (the trust anchor of every device), and an empty list.
    Init {
        /// Folder, made if missing.
        folder: PathBuf,
    },
    /// Enrols devices by their public files, which `unisono client keys` made.
    Enrol {
        /// The registrar's folder.
        folder: PathBuf,
        /// Public files of devices.
        #[arg(required = true)]
        devices: Vec<PathBuf>,
        /// Validity in days.
        #[arg(long, default_value_t = 365)]
        days: u64,
        /// Free words about them, as name=value.
        #[arg(long = "attribute", value_parser = attribute)]
        attributes: Vec<(String, String)>,
    },
    /// Revokes a device: the next roster is without it.
    Revoke {
        /// The registrar's folder.
        folder: PathBuf,
        /// The device, 32 hexadecimal digits.
        client: ClientId,
    },
    /// Signs the next roster. A running coordinator reads it before its next round.
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
    },
    /// Lists the devices.
    List {
        /// The registrar's folder.
        folder: PathBuf,
        /// As JSON.
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
        Command::Enrol { folder, devices, days, attributes } => {
            let mut registrar = Registrar::open(&folder)?;
            let attributes: BTreeMap<String, String> = attributes.into_iter().collect();
            for path in devices {
                let enrolment = read_key(&path, Enrolment::from_text)?;
                registrar.enrol(&enrolment, now(), days, attributes.clone())?;
                println!("enrolled {} for {days} days", enrolment.client_id);
            }
            println!("publish a roster to make it known");
        }
        Command::Revoke { folder, client } => {
            Registrar::open(&folder)?.revoke(client, now())?;
            println!("revoked {client}; publish a roster to make it known");
        }
        Command::Publish { folder, coordinators, publishers, out } => {
            let mut registrar = Registrar::open(&folder)?;
            let keys = |paths: &[PathBuf], role: Role| -> Result<Vec<_>> {
                paths.iter().map(|path| read_key(path, |text| keyfile::verifying_key_from_text(role, text))).collect()
            };
            let (coordinators, publishers) =
                (keys(&coordinators, Role::Coordinator)?, keys(&publishers, Role::Publisher)?);
            let roster = registrar.publish(&coordinators, &publishers, now())?;
            files::replace(&out, &roster.to_bytes()).with_context(|| format!("can't write {}", out.display()))?;
            let head = roster.head();
            println!("roster of epoch {} with {} devices: {}", head.epoch, head.size, out.display());
        }
        Command::List { folder, json } => {
            if !folder.exists() {
                bail!("there is no folder {}", folder.display());
            }
            let registrar = Registrar::open(&folder)?;
            let devices = registrar.devices();
            if json {
                println!("{}", serde_json::json!({ "epoch": registrar.epoch(), "devices": devices }));
                return Ok(());
            }
            println!("epoch {}, {} devices", registrar.epoch(), devices.len());
            for device in devices {
                let state = match device.revoked_at {
                    Some(at) => format!("revoked at {at}"),
                    None if device.not_after < now() => format!("expired at {}", device.not_after),
                    None => format!("valid until {}", device.not_after),
                };
                let words: Vec<String> =
                    device.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
                println!("{}  {state}  {}", device.client_id, words.join(" "));
            }
        }
    }
    Ok(())
}
