//! Downloads of sealed files: in pieces, from where the last try stopped, from a peer that keeps up.

use std::time::{Duration, Instant};

use tonic::{Response, Status, Streaming};
use unisono_release::Header;
use unisono_wire::proto::FileChunk;

use crate::Error;
use crate::connection::{CALL_TIMEOUT, Connection, Stub};

/// Slowest rate at which a file may come, in bytes a second; the file is asked for again where it is slower.
const SLOWEST: u64 = 1024;
/// Over so long is the rate measured.
const MEASURED_OVER: Duration = Duration::from_secs(60);

/// Which part of a file is asked for.
pub(crate) struct Part {
    /// First byte.
    pub offset: u64,
    /// Hash of the header of the file that the bytes before are of; empty for any file.
    pub header_hash: Vec<u8>,
}

/// What has come of a file.
#[derive(Default)]
struct Download {
    bytes: Vec<u8>,
    header: Option<Header>,
}

impl Download {
    /// What is asked for next. Of a file whose header is not there, everything: it may be another one the next time.
    fn next_part(&mut self) -> Part {
        match &self.header {
            Some(header) => Part { offset: self.bytes.len() as u64, header_hash: header.hash.to_vec() },
            None => {
                self.bytes.clear();
                Part { offset: 0, header_hash: Vec::new() }
            }
        }
    }

    /// Takes a chunk.
    fn take(&mut self, chunk: &[u8], what: &'static str, limit: usize) -> Result<(), Error> {
        if chunk.is_empty() {
            return Err(Error::Answer(format!("an empty piece of the {what}")));
        }
        if self.bytes.len().saturating_add(chunk.len()) > limit {
            return Err(Error::TooLong { what, limit });
        }
        self.bytes.extend_from_slice(chunk);
        if self.header.is_none() {
            self.header = Header::of_file(&self.bytes)?;
            let length = self.header.as_ref().map_or(0, Header::file_len);
            if length > limit as u64 {
                return Err(Error::TooLong { what, limit });
            }
        }
        let more = self.header.as_ref().is_some_and(|header| self.bytes.len() as u64 > header.file_len());
        if more { Err(Error::Answer(format!("the {what} is longer than its header says"))) } else { Ok(()) }
    }

    fn is_whole(&self) -> bool {
        self.header.as_ref().is_some_and(|header| self.bytes.len() as u64 == header.file_len())
    }
}

/// How fast bytes come.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// Counts bytes; whether the peer keeps up.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes as u64;
        if now.duration_since(self.since) < MEASURED_OVER {
            return true;
        }
        let enough = self.bytes >= SLOWEST * now.duration_since(self.since).as_secs();
        *self = Self::new(now);
        enough
    }
}

impl Connection {
    /// Fetches a sealed file of at most `limit` bytes. After a break it goes on where it stopped, however long it has run:
    /// [`Retry::give_up_after`](crate::Retry) counts from the last byte.
    pub async fn fetch<F>(
        &self,
        what: &'static str,
        limit: usize,
        call: impl Fn(Stub, Part) -> F,
    ) -> Result<Vec<u8>, Error>
    where
        F: Future<Output = Result<Response<Streaming<FileChunk>>, Status>>,
    {
        let mut download = Download::default();
        let mut patience = self.patience();
        loop {
            let part = download.next_part();
            let had = download.bytes.len();
            let result = fetch_part(&mut download, call(self.stub(), part), what, limit).await;
            let Err((error, kept_up)) = result else { return Ok(download.bytes) };
            if error.is_other_file() {
                download = Download::default();
            } else if !error.is_passing() {
                return Err(error);
            } else if kept_up && download.bytes.len() > had {
                patience = self.patience();
            }
            patience.retry(error).await?;
        }
    }
}

/// Takes what comes of one call. An error says whether the peer had kept up.
async fn fetch_part(
    download: &mut Download,
    call: impl Future<Output = Result<Response<Streaming<FileChunk>>, Status>>,
    what: &'static str,
    limit: usize,
) -> Result<(), (Error, bool)> {
    let kept_up = |error| (error, true);
    let late = |_| Status::deadline_exceeded(format!("the {what} does not come"));
    let answer = tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(late).flatten();
    let mut stream = answer.map_err(Error::of_status).map_err(kept_up)?.into_inner();
    let mut pace = Pace::new(Instant::now());
    loop {
        let next = tokio::time::timeout(CALL_TIMEOUT, stream.message()).await.map_err(late).flatten();
        match next.map_err(Error::of_status).map_err(kept_up)? {
            Some(chunk) => {
                download.take(&chunk.data, what, limit).map_err(kept_up)?;
                if !pace.take(chunk.data.len(), Instant::now()) {
                    let why = format!("the {what} comes at less than {SLOWEST} bytes a second");
                    return Err((Error::of_status(Status::deadline_exceeded(why)), false));
                }
            }
            None if download.is_whole() => return Ok(()),
            None => return Err(kept_up(Error::of_status(Status::unavailable(format!("the {what} ended early"))))),
        }
    }
}

#[cfg(test)]
mod tests {
    use getrandom::SysRng;
    use rand_core::UnwrapErr;
    use unisono_release::proto::{PayloadType, ReleaseHeader, SealedKind};
    use unisono_release::{ContentKey, seal};

    use super::*;

    fn file() -> Vec<u8> {
        let fields = ReleaseHeader {
            kind: SealedKind::BaseModel as i32,
            model_id: "t".into(),
            not_after: u64::MAX,
            payload_type: PayloadType::Safetensors as i32,
            key_id: "default".into(),
            ..ReleaseHeader::default()
        };
        let rng = &mut UnwrapErr(SysRng);
        seal(fields, &[7; 100_000], &ContentKey::random(rng), None, rng).unwrap().0
    }

    #[test]
    fn a_download_goes_on_where_it_stopped_once_it_knows_of_which_file() {
        let file = file();
        let mut download = Download::default();
        download.take(&file[..20], "model", 1 << 20).unwrap();
        assert_eq!(download.next_part().offset, 0, "the header was not there");
        for piece in file[..70_000].chunks(9_999) {
            download.take(piece, "model", 1 << 20).unwrap();
        }
        let part = download.next_part();
        assert_eq!((part.offset, part.header_hash.len()), (70_000, 32));
        assert!(!download.is_whole());
        download.take(&file[70_000..], "model", 1 << 20).unwrap();
        assert!(download.is_whole() && download.bytes == file);
        assert!(matches!(download.take(b"x", "model", 1 << 20), Err(Error::Answer(_))), "longer than its header says");
    }

    #[test]
    fn an_empty_piece_and_a_file_above_the_limit_are_refused_at_once() {
        let file = file();
        assert!(matches!(Download::default().take(b"", "model", 1 << 20), Err(Error::Answer(_))));
        // By its header, long before so many bytes have come.
        let refused = Download::default().take(&file[..1000], "model", 90_000);
        assert!(matches!(refused, Err(Error::TooLong { limit: 90_000, .. })));
        assert!(matches!(Download::default().take(b"PK\x03\x04", "model", 1 << 20), Err(Error::Release(_))));
    }

    #[test]
    fn a_peer_that_crawls_is_told_from_one_that_pauses() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pace = Pace::new(began);
        assert!((1..60).all(|second| pace.take(1, at(second))), "not before the time is over");
        assert!(!pace.take(1, at(60)));
        let mut pace = Pace::new(began);
        assert!(pace.take(100_000, at(1)) && pace.take(1, at(61)));
        assert!(!pace.take(1, at(122)));
    }
}
