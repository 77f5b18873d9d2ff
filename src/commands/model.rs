//! `unisono model`: an initial model, and what a released one says about itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use unisono::files;
use unisono::protocol::keyfile::{self, Role};
use unisono::release::Release;
use unisono::release::proto::{ProvenanceMode, SealedKind};
use unisono::softmax::Softmax;

use super::read_key;

/// Models.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Makes the zero softmax regression that `unisono client run` trains. Any safetensors file can be a task's initial model:
    /// F32, F16 and BF16 tensors are trained, those of integers and booleans stay as they are.
    Init {
        /// Features of an example.
        #[arg(long)]
        features: usize,
        /// Classes.
        #[arg(long)]
        classes: usize,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Shows what a released model says about itself; needs no key. With --publisher, verifies its signature.
    Inspect {
        /// The release, a .usr file.
        file: PathBuf,
        /// The publisher's public key.
        #[arg(long)]
        publisher: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { features, classes, out } => {
            let model = Softmax::zeros(features, classes).to_model()?;
            files::replace(&out, &model.to_safetensors()?).with_context(|| format!("can't write {}", out.display()))?;
            println!("{} elements: {}", model.values().len(), out.display());
            Ok(())
        }
        Command::Inspect { file, publisher, json } => {
            let bytes = std::fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
            let release = Release::parse(&bytes)?;
            let verified = match publisher {
                Some(path) => {
                    let key = read_key(&path, |text| keyfile::verifying_key_from_text(Role::Publisher, text))?;
                    release.verify(&[key])?;
                    "verified"
                }
                None => "not verified: give --publisher",
            };
            let f = &release.header.fields;
            let round = f.provenance.as_ref();
            let mode = round.map(|p| if p.mode() == ProvenanceMode::Malicious { "malicious" } else { "semi-honest" });
            let rows = [
                ("kind", if f.kind() == SealedKind::Release { "release" } else { "base model" }.into()),
                ("model_id", f.model_id.clone().into()),
                ("version", f.version.into()),
                ("created_at", f.created_at.into()),
                ("not_after", f.not_after.into()),
                ("payload_length", f.payload_length.into()),
                ("roster_epoch", f.roster_epoch.into()),
                ("key_id", f.key_id.clone().into()),
                ("key_version", f.key_version.into()),
                ("publisher_id", hex::encode(&f.publisher_id).into()),
                ("previous", hex::encode(&f.previous).into()),
                ("task", round.map(|p| p.task.clone()).into()),
                ("round_id", round.map(|p| hex::encode(&p.round_id)).into()),
                ("clients", round.map(|p| p.clients).into()),
                ("drop_outs", round.map(|p| p.drop_outs).into()),
                ("mode", mode.into()),
                ("header_hash", hex::encode(release.header.hash).into()),
                ("signature", serde_json::Value::from(verified)),
            ];
            if json {
                let object: serde_json::Map<String, serde_json::Value> =
                    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                println!("{}", serde_json::Value::Object(object));
            } else {
                rows.iter().for_each(|(name, value)| println!("{name:<15} {}", value.to_string().trim_matches('"')));
            }
            Ok(())
        }
    }
}
