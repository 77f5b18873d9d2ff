//! `unisono keys`: the long-term keys of a service.

use std::path::PathBuf;

use anyhow::Result;
use getrandom::SysRng;
use rand_core::UnwrapErr;
use unisono::crypto::secret::Secret32;
use unisono::crypto::sign::{Level, SigningKey};
use unisono::protocol::keyfile::{self, Role};
use unisono::release::Token;

use super::write_key;

/// Makes a service's keys. Existing files are never overwritten.
#[derive(clap::Subcommand)]
pub enum Command {
    /// The coordinator's key, which signs rounds: FILE (secret) and FILE.pub, which the registrar names in the roster.
    Coordinator {
        /// File of the secret key.
        file: PathBuf,
    },
    /// The publisher's key, which signs releases and grants: FILE (secret) and FILE.pub, which the registrar names too.
    Publisher {
        /// File of the secret key.
        file: PathBuf,
    },
    /// The token of semi-honest mode, which the coordinator and all its devices share (secret).
    Token {
        /// File of the token.
        file: PathBuf,
    },
    /// The key-encryption key that wraps the content keys of releases (secret).
    KeyEncryptionKey {
        /// File of the key.
        file: PathBuf,
    },
}

pub fn run(command: Command) -> Result<()> {
    let (role, file) = match command {
        Command::Coordinator { file } => (Role::Coordinator, file),
        Command::Publisher { file } => (Role::Publisher, file),
        Command::Token { file } => {
            let bytes = Secret32::random(&mut UnwrapErr(SysRng));
            return write_key(&file, &Token::text(&bytes), "token (secret)");
        }
        Command::KeyEncryptionKey { file } => {
            let key = Secret32::random(&mut UnwrapErr(SysRng));
            return write_key(&file, &keyfile::key_encryption_key_to_text(&key), "key-encryption key (secret)");
        }
    };
    let key = SigningKey::generate(Level::L65, &mut UnwrapErr(SysRng));
    write_key(&file, &keyfile::signing_key_to_text(role, &key), &format!("{role} key (secret)"))?;
    let mut public = file.into_os_string();
    public.push(".pub");
    let text = keyfile::verifying_key_to_text(role, &key.verifying_key());
    write_key(public.as_ref(), &text, &format!("{role} public key"))
}
