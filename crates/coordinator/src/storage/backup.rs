//! A consistent copy of a state folder, of a running service too.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no state in the folder.
    #[error("{} holds no coordinator's state: name the `state_dir` of its configuration", .folder.display())]
    NoState {
        /// Which folder.
        folder: PathBuf,
    },
    /// The target exists.
    #[error("{} exists: a backup is made in a new folder", .folder.display())]
    Exists {
        /// Which folder.
        folder: PathBuf,
    },
    /// A file or folder.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The database.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
}

/// Copies the state in `from` to the new folder `to`: the database as it is at one moment, then the models, releases and roster that
/// it names. Uploads are left out, and a round that is open is aborted in the copy: its clients go on with the original. Whoever
/// restores the copy goes on with the next round. The service may run meanwhile.
///
/// # Errors
/// [`BackupError`]; `to` is not there then.
pub async fn backup(from: &Path, to: &Path) -> Result<(), BackupError> {
    let database = from.join("coordinator.sqlite");
    if !database.is_file() {
        return Err(BackupError::NoState { folder: from.into() });
    }
    if to.exists() {
        return Err(BackupError::Exists { folder: to.into() });
    }
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io { path, source }
    };
    let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(above).map_err(error(above))?;
    // Under another name until it is whole.
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = to.with_file_name(name);
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(error(&partial))?;
    }
    let made = make(&database, from, &partial).await;
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    made?;
    std::fs::rename(&partial, to).map_err(error(to))?;
    File::open(above).and_then(|folder| folder.sync_all()).map_err(error(above))
}

async fn make(database: &Path, from: &Path, to: &Path) -> Result<(), BackupError> {
    let error = |source| BackupError::Io { path: to.into(), source };
    make_folder(to).map_err(error)?;
    let copy = to.join("coordinator.sqlite");
    // A coordinator deletes no model until all are copied.
    let held = super::retention::hold(from).map_err(|source| BackupError::Io { path: from.into(), source })?;
    let open = |path: &Path| {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(std::time::Duration::from_secs(60));
        SqlitePoolOptions::new().max_connections(1).connect_with(options)
    };
    let db = open(database).await?;
    let copied = sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy().into_owned()).execute(&db).await;
    db.close().await;
    copied?;
    let db = open(&copy).await?;
    let reason = "the round was open when the backup was made";
    let aborted = sqlx::query("UPDATE rounds SET state = 'aborted', reason = ?, roster = NULL WHERE state = 'open'");
    let aborted = aborted.bind(reason).execute(&db).await;
    db.close().await;
    aborted?;
    std::fs::set_permissions(&copy, Permissions::from_mode(0o600)).map_err(error)?;
    File::open(&copy).and_then(|file| file.sync_all()).map_err(error)?;
    // After the database: what it names was stored before.
    for part in ["models", "releases", "rosters"] {
        let source = from.join("blobs").join(part);
        if source.is_dir() {
            copy_folder(&source, &to.join("blobs").join(part))
                .map_err(|source_error| BackupError::Io { path: source.clone(), source: source_error })?;
        }
    }
    drop(held);
    File::open(to).and_then(|folder| folder.sync_all()).map_err(error)
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    make_folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&source, &target)?;
        } else if !entry.file_name().to_string_lossy().contains('#') {
            // `object_store` writes to a name with `#`, and renames.
            match std::fs::copy(&source, &target) {
                // A sealed base model or an older roster, which the next round deletes. They are made anew where they are needed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                copied => copied?,
            };
            std::fs::set_permissions(&target, Permissions::from_mode(0o600))?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}
