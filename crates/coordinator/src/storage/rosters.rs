//! Rosters: one file for each epoch, copied when the roster is taken and never written to again. What lies where in it, and the
//! nodes of its tree, are in an index that is made whenever the file is opened: it has no name, and its room is free when the last
//! round that needs it is over.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object_store::ObjectStoreExt;
use object_store::path::Path as BlobPath;
use sqlx::Row;
use tokio_stream::StreamExt;
use unisono_crypto::sign::VerifyingKey;
use unisono_protocol::roster::{MAX_HEAD, ReadAt, Roster, RosterError};

use super::{Store, StoreError, make_file, make_folder};

/// A roster that is being copied has this name: one that the object store takes for a file that it has not finished.
const UNFINISHED: &str = "roster.bin#1";

/// A file that is read at any place, by any number of threads.
pub(crate) struct Positional(File);

impl Positional {
    /// Opens a file to read it.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// A new file without a name, on the disk of `folder`.
    fn unnamed(folder: &Path) -> io::Result<Self> {
        tempfile::tempfile_in(folder).map(Self)
    }

    /// The bytes with which a roster's head begins, and those behind it as far as they were read.
    pub fn start(&self) -> io::Result<Vec<u8>> {
        let mut start = Vec::new();
        let mut file = &self.0;
        file.rewind()?;
        file.take(MAX_HEAD as u64 + 16).read_to_end(&mut start)?;
        Ok(start)
    }
}

impl ReadAt for Positional {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.0, into, at)
    }
}

impl Write for Positional {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Why a roster could not be copied and opened.
pub(crate) enum TakeError {
    /// The roster.
    Roster(RosterError),
    /// The storage.
    Store(StoreError),
}

/// The registrar as a key of the database: what its rosters' epochs are counted by.
fn registrar_id(registrar: &VerifyingKey) -> [u8; 32] {
    unisono_crypto::kdf::hash(unisono_crypto::kdf::label::PUBLISHER_ID, &[registrar.as_bytes()])
}

fn registrar_name(registrar: &VerifyingKey) -> String {
    registrar_id(registrar)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::File { path: path.clone(), source }
}

/// Runs what reads a whole roster beside the calls that are served.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process stops.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Verifies the roster in `path`. An error of reading is the storage's.
fn open(path: &Path, registrar: &VerifyingKey) -> Result<Roster, TakeError> {
    let store = |error| TakeError::Store(failed(path)(error));
    let folder = path.parent().unwrap_or(Path::new("."));
    let (file, index) = (Positional::open(path).map_err(store)?, Positional::unnamed(folder).map_err(store)?);
    Roster::open(file, index, registrar).map_err(|error| match error {
        RosterError::Unreadable(why) => store(io::Error::other(why)),
        other => TakeError::Roster(other),
    })
}

/// Copies `source` to `target`, and verifies the copy before it has its name.
fn take(source: &Positional, target: &Path, registrar: &VerifyingKey) -> Result<Roster, TakeError> {
    let unfinished = target.with_file_name(UNFINISHED);
    let store = |error| TakeError::Store(failed(&unfinished)(error));
    if let Some(folder) = target.parent() {
        make_folder(folder).map_err(store)?;
    }
    let mut copy = make_file(&unfinished).map_err(store)?;
    copy.set_len(0).map_err(store)?;
    let mut from = &source.0;
    from.rewind().map_err(store)?;
    let taken = io::copy(&mut from, &mut copy).map_err(store).and_then(|_| open(&unfinished, registrar));
    if taken.is_err() {
        // It only takes room.
        let _ = std::fs::remove_file(&unfinished);
    }
    let roster = taken?;
    copy.sync_all().map_err(store)?;
    std::fs::rename(&unfinished, target).map_err(store)?;
    let folder = target.parent().map(File::open);
    folder.map_or(Ok(()), |folder| folder?.sync_all()).map_err(store)?;
    Ok(roster)
}

impl Store {
    /// One file for each epoch. Rounds name theirs by epoch and root, which their parameters have.
    fn roster_path(&self, registrar: &VerifyingKey, epoch: u64) -> PathBuf {
        self.folder.join("rosters").join(registrar_name(registrar)).join(format!("{epoch}.bin"))
    }

    /// Highest epoch of a roster of this registrar that was in force; 0 before the first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn roster_epoch(&self, registrar: &VerifyingKey) -> Result<u64, StoreError> {
        let row =
            sqlx::query("SELECT epoch FROM roster_epochs WHERE registrar = ?").bind(registrar_id(registrar).to_vec());
        let row = row.fetch_optional(&self.db).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get::<i64, _>(0)? as u64))
    }

    /// Copies a roster, whose head says that it is of `epoch`, and verifies the copy. It is not in force yet, see
    /// [`Self::set_roster_epoch`].
    ///
    /// # Errors
    /// [`TakeError`]; what was there before is still there then.
    pub(crate) async fn take_roster(
        &self,
        registrar: &VerifyingKey,
        epoch: u64,
        source: Positional,
    ) -> Result<Roster, TakeError> {
        let (target, registrar) = (self.roster_path(registrar, epoch), registrar.clone());
        beside(move || take(&source, &target, &registrar)).await
    }

    /// Says that the roster of `epoch`, which is stored, is in force from now on. It never goes back.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn set_roster_epoch(&self, registrar: &VerifyingKey, epoch: u64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO roster_epochs (registrar, epoch) VALUES (?, ?)
             ON CONFLICT (registrar) DO UPDATE SET epoch = MAX(epoch, excluded.epoch)",
        )
        .bind(registrar_id(registrar).to_vec())
        .bind(epoch as i64)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// The roster of an epoch, verified from its start to its end; `None` when it is not kept.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not what it was; other [`StoreError`]s of reading it.
    pub async fn open_roster(&self, registrar: &VerifyingKey, epoch: u64) -> Result<Option<Roster>, StoreError> {
        let (path, registrar) = (self.roster_path(registrar, epoch), registrar.clone());
        let opened = beside(move || path.exists().then(|| open(&path, &registrar))).await;
        opened.transpose().map_err(|error| match error {
            TakeError::Store(error) => error,
            TakeError::Roster(error) => StoreError::Damaged(format!("the kept roster of epoch {epoch}: {error}")),
        })
    }

    /// Forgets the rosters of epochs before `epoch`; no round that is open may have one of these.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn forget_rosters_before(&self, registrar: &VerifyingKey, epoch: u64) -> Result<(), StoreError> {
        let mut found = self.blobs.list(Some(&BlobPath::from_iter(["rosters", &registrar_name(registrar)])));
        while let Some(item) = found.next().await {
            let path = item?.location;
            let of = path.filename().and_then(|name| name.strip_suffix(".bin")?.parse::<u64>().ok());
            if of.is_some_and(|of| of < epoch) {
                self.blobs.delete(&path).await?;
            }
        }
        Ok(())
    }
}
