//! The way to the coordinator: one channel that dials again by itself, one policy for repeating calls.

use std::sync::OnceLock;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rand::RngExt;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status, Streaming};
use unisono_wire::proto::FileChunk;
use unisono_wire::proto::coordinator_client::CoordinatorClient;
use unisono_wire::{MAX_MESSAGE_LEN, MAX_WAIT_MS};

use crate::traffic::{Counted, Counters};
use crate::{Error, Event, Observer};

/// The generated client.
pub(crate) type Stub = CoordinatorClient<Channel>;

/// Longest that a poll waits for news, in milliseconds.
pub(crate) const WAIT_MS: u64 = MAX_WAIT_MS;
/// A call without an answer for so long is given up, and repeated.
const CALL_TIMEOUT: Duration = Duration::from_millis(MAX_WAIT_MS + 20_000);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How calls that failed for the network's sake are repeated: after pauses that double, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// First pause; 200 ms unless set.
    pub first_pause: Duration,
    /// Longest pause; 10 s unless set.
    pub max_pause: Duration,
    /// Time without any answer after which a call fails; 10 minutes unless set.
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(200),
            max_pause: Duration::from_secs(10),
            give_up_after: Duration::from_secs(600),
        }
    }
}

pub(crate) struct Connection {
    endpoint: Endpoint,
    /// Made by the first call: only then there has to be a runtime.
    stub: OnceLock<Stub>,
    retry: Retry,
    observer: Observer,
    counters: Counters,
}

impl Connection {
    pub fn new(endpoint: &str, retry: Retry, observer: Observer) -> Result<Self, Error> {
        let bad = |why: String| Error::Endpoint { endpoint: endpoint.into(), why };
        let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(|e| bad(e.to_string()))?;
        match parsed.uri().scheme_str() {
            Some("http") if parsed.uri().host().is_some() => {}
            Some("https") => {
                return Err(bad("this version speaks plain HTTP/2: put a TLS tunnel or proxy before it".into()));
            }
            _ => return Err(bad("scheme or host is missing".into())),
        }
        let endpoint = parsed
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { endpoint, stub: OnceLock::new(), retry, observer, counters: Counters::default() })
    }

    /// The generated client; for calls that are not repeated as they are, too.
    pub fn stub(&self) -> Stub {
        self.stub.get_or_init(|| self.dial()).clone()
    }

    /// A channel that dials when it is used, and again when the connection is lost.
    fn dial(&self) -> Stub {
        let counted = self.counters.clone();
        let connector = tower::service_fn(move |uri: Uri| {
            let counters = counted.clone();
            async move {
                let address = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(80));
                let host = address.0.trim_matches(['[', ']']);
                let stream = TcpStream::connect((host, address.1)).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(Counted::new(stream, counters)))
            }
        });
        CoordinatorClient::new(self.endpoint.connect_with_connector_lazy(connector))
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    pub fn retry(&self) -> Retry {
        self.retry
    }

    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Makes a call, and repeats it as long as it fails for a passing reason.
    pub async fn call<T, F>(&self, call: impl Fn(Stub) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.repeat(|| {
            let answer = tokio::time::timeout(CALL_TIMEOUT, call(self.stub()));
            async move {
                let late = |_| Status::deadline_exceeded(format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
                answer.await.map_err(late).flatten().map(Response::into_inner).map_err(Error::of_status)
            }
        })
        .await
    }

    /// Fetches a streamed file of at most `limit` bytes.
    pub async fn fetch<F>(&self, what: &'static str, limit: usize, call: impl Fn(Stub) -> F) -> Result<Vec<u8>, Error>
    where
        F: Future<Output = Result<Response<Streaming<FileChunk>>, Status>>,
    {
        self.repeat(|| {
            let answer = call(self.stub());
            async move {
                let mut stream = answer.await.map_err(Error::of_status)?.into_inner();
                let mut file = Vec::new();
                loop {
                    let next = tokio::time::timeout(CALL_TIMEOUT, stream.message()).await;
                    let late = |_| Status::deadline_exceeded("the stream stalled");
                    let Some(chunk) = next.map_err(late).flatten().map_err(Error::of_status)? else {
                        return Ok(file);
                    };
                    if file.len() + chunk.data.len() > limit {
                        return Err(Error::TooLong { what, limit });
                    }
                    file.extend_from_slice(&chunk.data);
                }
            }
        })
        .await
    }

    /// The one retry policy.
    pub async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let began = tokio::time::Instant::now();
        let mut pause = self.retry.first_pause;
        loop {
            match attempt().await {
                Err(error) if error.is_passing() && began.elapsed() < self.retry.give_up_after => {
                    let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                    (self.observer)(&Event::Retrying { error: &error, pause: jittered });
                    tracing::info!(%error, pause = ?jittered, "repeating a call");
                    tokio::time::sleep(jittered).await;
                    pause = (pause * 2).min(self.retry.max_pause);
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_connection_is_made_without_a_runtime_and_an_address_that_is_none_is_refused() {
        let new = |endpoint| Connection::new(endpoint, Retry::default(), Arc::new(|_: &Event<'_>| {}));
        assert!(new("http://127.0.0.1:7700").is_ok());
        for bad in ["", "coordinator", "ftp://coordinator:1", "http://", "https://coordinator:7700"] {
            assert!(matches!(new(bad), Err(Error::Endpoint { .. })), "{bad:?}");
        }
    }
}
