//! Downloads of sealed files: in pieces, from where the last try stopped, from a peer that keeps up.

use std::fs::File;
use std::io::{self, Seek, Write};
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
/// Bytes that a try must bring for the device's patience to begin anew: a peer that gives one byte a try is left in the end.
const PROGRESS: u64 = 16 << 10;

/// Which part of a file is asked for.
pub(crate) struct Part {
    /// First byte.
    pub offset: u64,
    /// Hash of the header of the file that the bytes before are of; empty for any file.
    pub header_hash: Vec<u8>,
}

/// Where a file goes.
pub(crate) trait Sink {
    /// Appends bytes.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Begins anew.
    fn clear(&mut self) -> io::Result<()>;
}

impl Sink for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        Vec::clear(self);
        Ok(())
    }
}

/// A chunk is small enough to be written to the system's cache where it comes.
impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.set_len(0)?;
        self.rewind()
    }
}

/// What has come of a file.
struct Download<'a, S> {
    sink: &'a mut S,
    what: &'static str,
    /// Most bytes.
    limit: u64,
    length: u64,
    /// The first bytes, until the header is among them.
    start: Vec<u8>,
    header: Option<Header>,
}

impl<'a, S: Sink> Download<'a, S> {
    fn new(sink: &'a mut S, what: &'static str, limit: u64) -> Self {
        Self { sink, what, limit, length: 0, start: Vec::new(), header: None }
    }

    fn clear(&mut self) -> Result<(), Error> {
        (self.length, self.header) = (0, None);
        self.start.clear();
        self.sink.clear().map_err(Error::Download)
    }

    /// What is asked for next. Of a file whose header is not there, everything: it may be another one the next time.
    fn next_part(&mut self) -> Result<Part, Error> {
        if let Some(header) = &self.header {
            return Ok(Part { offset: self.length, header_hash: header.hash.to_vec() });
        }
        self.clear()?;
        Ok(Part { offset: 0, header_hash: Vec::new() })
    }

    /// Takes a chunk.
    fn take(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let (what, limit) = (self.what, self.limit);
        if chunk.is_empty() {
            return Err(Error::Answer(format!("an empty piece of the {what}")));
        }
        self.length = self.length.saturating_add(chunk.len() as u64);
        if self.length > limit {
            return Err(Error::TooLong { what, limit });
        }
        let end = |header: &Option<Header>| header.as_ref().map_or(u64::MAX, Header::file_len);
        if self.length > end(&self.header) {
            return Err(Error::Answer(format!("the {what} is longer than its header says")));
        }
        self.sink.append(chunk).map_err(Error::Download)?;
        if self.header.is_none() {
            self.start.extend_from_slice(chunk);
            self.header = Header::of_file(&self.start)?;
            let length = self.header.as_ref().map_or(0, Header::file_len);
            if length > limit {
                return Err(Error::TooLong { what, limit });
            }
        }
        if self.length > end(&self.header) {
            return Err(Error::Answer(format!("the {what} is longer than its header says")));
        }
        Ok(())
    }

    /// Whether so much has come since there were `had` bytes that it is worth going on.
    fn has_gone_on_from(&self, had: u64) -> bool {
        self.length >= had.saturating_add(PROGRESS)
    }

    /// The header of the file, if all of it is there.
    fn whole(&self) -> Option<&Header> {
        self.header.as_ref().filter(|header| self.length == header.file_len())
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
    /// Fetches a sealed file of at most `limit` bytes into `sink`, and gives its header. After a break it goes on where it stopped,
    /// however long it has run: [`Retry::give_up_after`](crate::Retry) counts from the last try
    /// that brought 16 KiB.
    pub async fn fetch<S: Sink, F>(
        &self,
        sink: &mut S,
        what: &'static str,
        limit: u64,
        call: impl Fn(Stub, Part) -> F,
    ) -> Result<Header, Error>
    where
        F: Future<Output = Result<Response<Streaming<FileChunk>>, Status>>,
    {
        let mut download = Download::new(sink, what, limit);
        let mut patience = self.patience();
        loop {
            let part = download.next_part()?;
            let had = download.length;
            let result = fetch_part(&mut download, call(self.stub(), part)).await;
            let (error, kept_up) = match result {
                Ok(header) => return Ok(header),
                Err((error, kept_up)) => (self.explain(error), kept_up),
            };
            if error.is_other_file() {
                download.clear()?;
            } else if !error.is_passing() {
                return Err(error);
            } else if kept_up && download.has_gone_on_from(had) {
                patience = self.patience();
            }
            patience.retry(error).await?;
        }
    }
}

/// Takes what comes of one call. An error says whether the peer had kept up.
async fn fetch_part<S: Sink>(
    download: &mut Download<'_, S>,
    call: impl Future<Output = Result<Response<Streaming<FileChunk>>, Status>>,
) -> Result<Header, (Error, bool)> {
    let what = download.what;
    let kept_up = |error| (error, true);
    let late = |_| Status::deadline_exceeded(format!("the {what} does not come"));
    let answer = tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(late).flatten();
    let mut stream = answer.map_err(Error::of_status).map_err(kept_up)?.into_inner();
    let mut pace = Pace::new(Instant::now());
    loop {
        let next = tokio::time::timeout(CALL_TIMEOUT, stream.message()).await.map_err(late).flatten();
        match next.map_err(Error::of_status).map_err(kept_up)? {
            Some(chunk) => {
                download.take(&chunk.data).map_err(kept_up)?;
                if !pace.take(chunk.data.len(), Instant::now()) {
                    let why = format!("the {what} comes at less than {SLOWEST} bytes a second");
                    return Err((Error::of_status(Status::deadline_exceeded(why)), false));
                }
            }
            None => {
                let early = || kept_up(Error::of_status(Status::unavailable(format!("the {what} ended early"))));
                return download.whole().cloned().ok_or_else(early);
            }
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
        fn check(sink: &mut impl Sink) {
            let file = file();
            let mut download = Download::new(sink, "model", 1 << 20);
            download.take(&file[..20]).unwrap();
            assert_eq!(download.next_part().unwrap().offset, 0, "the header was not there");
            for piece in file[..70_000].chunks(9_999) {
                download.take(piece).unwrap();
            }
            let part = download.next_part().unwrap();
            assert_eq!((part.offset, part.header_hash.len()), (70_000, 32));
            assert!(download.has_gone_on_from(20) && !download.has_gone_on_from(69_999), "a byte a try is no progress");
            assert!(download.whole().is_none());
            download.take(&file[70_000..]).unwrap();
            assert!(download.whole().is_some());
            // Another one is there meanwhile.
            download.clear().unwrap();
            for piece in self::file().chunks(9_999) {
                download.take(piece).unwrap();
            }
            assert!(download.whole().is_some());
            assert!(matches!(download.take(b"x"), Err(Error::Answer(_))), "longer than its header says");
        }
        let (mut memory, mut disk) = (Vec::new(), tempfile::tempfile().unwrap());
        check(&mut memory);
        check(&mut disk);
        assert_eq!(memory.len() as u64, Header::of_file(&memory).unwrap().unwrap().file_len());
        assert_eq!(disk.metadata().unwrap().len(), memory.len() as u64);
    }

    #[test]
    fn an_empty_piece_and_a_file_above_the_limit_are_refused_at_once() {
        let file = file();
        let take = |bytes: &[u8], limit| Download::new(&mut Vec::new(), "model", limit).take(bytes);
        assert!(matches!(take(b"", 1 << 20), Err(Error::Answer(_))));
        // By its header, long before so many bytes have come.
        assert!(matches!(take(&file[..1000], 90_000), Err(Error::TooLong { limit: 90_000, .. })));
        assert!(matches!(take(b"PK\x03\x04", 1 << 20), Err(Error::Release(_))));
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
