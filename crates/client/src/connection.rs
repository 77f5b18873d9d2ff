//! The way to the coordinator: one channel that dials again by itself, one policy for repeating calls.

use std::sync::OnceLock;
use std::time::Duration;

use http::uri::{InvalidUri, Scheme};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};
use unisono_wire::proto::coordinator_client::CoordinatorClient;
use unisono_wire::{MAX_MESSAGE_LEN, MAX_WAIT_MS};

use crate::tls::{Credentials, Dialler, LastFault, Noted, TlsFault};
use crate::traffic::{Counted, Counters};
use crate::{Error, Event, Observer};

/// The generated client.
pub(crate) type Stub = CoordinatorClient<Channel>;

/// Longest that a poll waits for news, in milliseconds.
pub(crate) const WAIT_MS: u64 = MAX_WAIT_MS;
/// A call without an answer for so long is given up, and repeated.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(MAX_WAIT_MS + 20_000);
/// A device that waits says why at this interval.
const TELL_EVERY: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How calls that failed for the network's sake are repeated: after pauses that double, with jitter. When nothing has come for
/// [`Retry::LONG`], pauses grow further, up to [`Retry::GROWTH`] times the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// First pause; 200 ms unless set.
    pub first_pause: Duration,
    /// Longest pause; 10 s unless set.
    pub max_pause: Duration,
    /// Time without any answer after which a call fails; never unless set.
    pub give_up_after: Option<Duration>,
}

impl Retry {
    /// After so long without an answer, pauses grow beyond the longest.
    pub const LONG: Duration = Duration::from_secs(600);
    /// How many times the longest pause they are then.
    pub const GROWTH: u32 = 6;

    /// Pause before try number `tries` (from 1), jittered down to its half, when `waited` has passed since the first.
    pub(crate) fn pause(&self, tries: u32, waited: Duration) -> Duration {
        let longest = if waited < Self::LONG { self.max_pause } else { self.max_pause * Self::GROWTH };
        let pause = self.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(longest);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// As [`Self::pause`], and not shorter than the coordinator asks for, with jitter beyond that.
    fn pause_after(&self, error: &Error, tries: u32, waited: Duration) -> Duration {
        let asked = error.retry_after().unwrap_or_default().mul_f64(rand::rng().random_range(1.0..1.25));
        self.pause(tries, waited).max(asked)
    }

    /// Whether to give up.
    fn is_over(&self, waited: Duration) -> bool {
        self.give_up_after.is_some_and(|limit| waited >= limit)
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { first_pause: Duration::from_millis(200), max_pause: Duration::from_secs(10), give_up_after: None }
    }
}

/// What is read and written.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

pub(crate) struct Connection {
    /// As configured.
    name: String,
    endpoint: Endpoint,
    /// Where it is: host and port.
    address: (String, u16),
    /// How TLS is spoken; `None`: plain HTTP.
    dialler: Option<Dialler>,
    last_fault: LastFault,
    /// Made by the first call: only then there has to be a runtime.
    stub: OnceLock<Stub>,
    retry: Retry,
    observer: Observer,
    counters: Counters,
}

impl Connection {
    pub fn new(endpoint: &str, credentials: &Credentials, retry: Retry, observer: Observer) -> Result<Self, Error> {
        let name = endpoint.to_owned();
        let bad = |why: String| Error::Endpoint { endpoint: name.clone(), why };
        let uri: Uri = endpoint.parse().map_err(|error: InvalidUri| bad(error.to_string()))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let (dialler, port) = match uri.scheme_str() {
            _ if host.is_empty() => return Err(bad("scheme or host is missing".into())),
            Some("https") => (Some(credentials.dialler(endpoint, &host)?), 443),
            Some("http") if credentials.is_empty() => (None, 80),
            Some("http") => return Err(bad("certificates are for https://".into())),
            _ => return Err(bad("scheme or host is missing".into())),
        };
        let address = (host, uri.port_u16().unwrap_or(port));
        // The connector below speaks TLS; tonic is not to look for TLS of its own, which it does by the scheme.
        let mut parts = uri.clone().into_parts();
        parts.scheme = Some(Scheme::HTTP);
        let plain = Uri::from_parts(parts).map_err(|error| bad(error.to_string()))?;
        let endpoint = Endpoint::from(plain)
            .origin(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true);
        Ok(Self {
            name,
            endpoint,
            address,
            dialler,
            last_fault: LastFault::default(),
            stub: OnceLock::new(),
            retry,
            observer,
            counters: Counters::default(),
        })
    }

    /// The generated client; for calls that are not repeated as they are, too.
    pub fn stub(&self) -> Stub {
        self.stub.get_or_init(|| self.dial()).clone()
    }

    /// A channel that dials when it is used, and again when the connection is lost.
    fn dial(&self) -> Stub {
        let (address, dialler) = (self.address.clone(), self.dialler.clone());
        let (counters, last) = (self.counters.clone(), self.last_fault.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (address, dialler) = (address.clone(), dialler.clone());
            let (counters, last) = (counters.clone(), last.clone());
            async move {
                last.set(None);
                let stream = TcpStream::connect((address.0.as_str(), address.1)).await?;
                stream.set_nodelay(true)?;
                // Below TLS: what is counted is what the network carries.
                let stream = Counted::new(stream, counters);
                let stream: Box<dyn Io> = match dialler {
                    Some(dialler) => {
                        let stream = dialler.connect(stream).await.map_err(|fault| noted(&last, fault))?;
                        Box::new(Noted::encrypted(stream, last))
                    }
                    None => Box::new(Noted::plain(stream, last)),
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        CoordinatorClient::new(self.endpoint.connect_with_connector_lazy(connector))
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Says of a call that got no answer what was wrong with the connection, where TLS knows it.
    pub fn explain(&self, error: Error) -> Error {
        match (error, self.last_fault.get()) {
            (Error::Unreachable(_), Some(fault)) => Error::Tls { endpoint: self.name.clone(), fault },
            (error, _) => error,
        }
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

    /// The one retry policy.
    pub async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut patience = Patience::new(self.retry, &self.observer);
        loop {
            match attempt().await.map_err(|error| self.explain(error)) {
                Err(error) if error.is_passing() => patience.retry(error).await?,
                result => return result,
            }
        }
    }

    /// Pauses that grow, told and logged; for more than one call that fails in a row.
    pub fn patience(&self) -> Patience<'_> {
        Patience::new(self.retry, &self.observer)
    }
}

fn noted(last: &LastFault, fault: TlsFault) -> std::io::Error {
    last.set(Some(fault.clone()));
    std::io::Error::other(fault)
}

/// Failures in a row, and the pauses after them.
pub(crate) struct Patience<'a> {
    retry: Retry,
    observer: &'a Observer,
    began: tokio::time::Instant,
    tries: u32,
    /// When it was logged last.
    logged: Option<tokio::time::Instant>,
}

impl<'a> Patience<'a> {
    fn new(retry: Retry, observer: &'a Observer) -> Self {
        Self { retry, observer, began: tokio::time::Instant::now(), tries: 0, logged: None }
    }

    /// Pauses before the next try; the error again when it is time to give up.
    pub async fn retry(&mut self, error: Error) -> Result<(), Error> {
        let waited = self.began.elapsed();
        if self.retry.is_over(waited) {
            return Err(error);
        }
        self.tries += 1;
        let pause = self.retry.pause_after(&error, self.tries, waited);
        (self.observer)(&Event::Retrying { error: &error, pause });
        // The first one, then once a minute.
        if self.logged.is_none_or(|logged| logged.elapsed() >= TELL_EVERY) {
            self.logged = Some(tokio::time::Instant::now());
            let (tries, waited) = (self.tries, waited.as_secs());
            tracing::warn!(%error, tries, waited, ?pause, "trying again");
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Tells why a device waits, once a minute.
pub(crate) struct Waiting<'a> {
    observer: &'a Observer,
    began: tokio::time::Instant,
    told: tokio::time::Instant,
}

impl<'a> Waiting<'a> {
    pub fn new(observer: &'a Observer) -> Self {
        let now = tokio::time::Instant::now();
        Self { observer, began: now, told: now }
    }

    /// `why` it goes on.
    pub fn still(&mut self, why: &str) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = tokio::time::Instant::now();
        let waited = self.began.elapsed();
        (self.observer)(&Event::StillWaiting { waited, why });
        tracing::info!(why, waited = waited.as_secs(), "waiting");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn pauses_grow_with_jitter_and_have_no_end_unless_one_is_set() {
        let retry = Retry::default();
        for (tries, least, most) in [(1, 100, 200), (3, 400, 800), (9, 5_000, 10_000), (u32::MAX, 5_000, 10_000)] {
            let pause = retry.pause(tries, Duration::ZERO).as_millis();
            assert!((least..=most).contains(&pause), "{tries}: {pause}");
        }
        let after_an_hour = retry.pause(500, Duration::from_secs(3600));
        assert!((Duration::from_secs(10)..=Duration::from_secs(60)).contains(&after_an_hour), "{after_an_hour:?}");
        assert!(!retry.is_over(Duration::from_secs(10 * 365 * 86_400)));
        let asked = Retry { give_up_after: Some(Duration::from_secs(5)), ..retry };
        assert!(!asked.is_over(Duration::from_secs(4)) && asked.is_over(Duration::from_secs(5)));
    }

    #[test]
    fn a_device_calls_again_no_earlier_than_it_is_asked_to() {
        let mut status = Status::resource_exhausted("busy");
        status.metadata_mut().insert(unisono_wire::RETRY_AFTER_KEY, tonic::metadata::MetadataValue::from(4_000u64));
        let pause = Retry::default().pause_after(&Error::of_status(status), 1, Duration::ZERO).as_millis();
        assert!((4_000..=5_000).contains(&pause), "{pause}");
    }

    #[test]
    fn a_connection_is_made_without_a_runtime_and_an_address_that_is_none_is_refused() {
        let with = |endpoint, credentials: &Credentials| {
            Connection::new(endpoint, credentials, Retry::default(), Arc::new(|_: &Event<'_>| {}))
        };
        let new = |endpoint| with(endpoint, &Credentials::default());
        let good = ["http://127.0.0.1:7700", "https://coordinator:7700", "https://[::1]:7700", "https://coordinator"];
        let ports = good.map(|endpoint| new(endpoint).unwrap().address.1);
        assert_eq!(ports, [7700, 7700, 7700, 443]);
        for bad in ["", "coordinator", "ftp://coordinator:1", "http://", "https://", "https://a..b:1"] {
            assert!(matches!(new(bad), Err(Error::Endpoint { .. })), "{bad:?}");
        }
        let authority = Credentials { authority: Some(b"no PEM".to_vec()), ..Credentials::default() };
        assert!(matches!(with("https://a:1", &authority), Err(Error::Certificate { .. })));
        assert!(matches!(with("http://a:1", &authority), Err(Error::Endpoint { .. })), "it would not be used");
    }
}
