//! Connections as they come in: so many at a time, of one address and of strangers, and only those that begin to speak TLS and HTTP/2
//! within seconds (`stream`). Whoever opens connections and says nothing holds none of them for long, nor does who reads nothing of what it asked for, and
//! running out of file descriptors is waited out.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::gate::{Gate, limited, network};
use crate::sampled::REFUSALS;
use crate::stream::{Refused, Stream};
use crate::tls::ServerTls;

/// Pause after an accept that failed, for instance for want of a file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Large answers at a time on one connection.
const ANSWERS: usize = 4;
/// A proxy, whose connections are many devices', may read nothing for so many times as long.
const PROXY_PATIENCE: u32 = 4;

/// The other side of a connection, for its calls.
#[derive(Clone)]
pub(crate) struct Peer(Arc<PeerState>);

struct PeerState {
    number: u64,
    address: SocketAddr,
    is_proxy: bool,
    gate: Arc<Gate>,
    /// Bytes that it may have in flight.
    room: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    known: AtomicBool,
    use_of: Mutex<Use>,
}

impl PeerState {
    fn stranger(number: u64, address: SocketAddr, gate: Arc<Gate>, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            number,
            address,
            is_proxy: false,
            room: Arc::new(Semaphore::new(gate.limits.connection_bytes)),
            answers: Arc::new(Semaphore::new(ANSWERS)),
            gate,
            known: AtomicBool::new(false),
            use_of: Mutex::new(Use { calls: 0, since: Instant::now(), sending: BTreeMap::new(), sent: 0, place }),
        }
    }
}

/// What the connection is used for now.
struct Use {
    calls: usize,
    /// When the last call ended, or the connection began.
    since: Instant,
    /// When what is sent and not read yet was given to be sent.
    sending: BTreeMap<u64, Instant>,
    sent: u64,
    /// A stranger's place.
    place: Option<OwnedSemaphorePermit>,
}

/// A call at hand; ended when dropped.
pub(crate) struct CallMark(Peer);

/// Something that is sent; read when dropped.
pub(crate) struct SendMark(Peer, u64);

impl Peer {
    /// A stranger of no connection.
    pub fn stranger(address: SocketAddr, gate: Arc<Gate>) -> Self {
        Self(Arc::new(PeerState::stranger(0, address, gate, None)))
    }

    fn use_of(&self) -> MutexGuard<'_, Use> {
        self.0.use_of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn number(&self) -> u64 {
        self.0.number
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn is_proxy(&self) -> bool {
        self.0.is_proxy
    }

    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Bytes that it may have in flight.
    pub fn room(&self) -> Arc<Semaphore> {
        self.0.room.clone()
    }

    /// Places for large answers.
    pub fn answers(&self) -> Arc<Semaphore> {
        self.0.answers.clone()
    }

    pub fn is_known(&self) -> bool {
        self.0.known.load(Ordering::Relaxed)
    }

    /// It is a known device's: strangers have its place again.
    pub fn authenticated(&self) {
        if !self.0.known.swap(true, Ordering::Relaxed) {
            self.use_of().place = None;
        }
    }

    /// A call begins.
    pub fn call(&self) -> CallMark {
        self.use_of().calls += 1;
        CallMark(self.clone())
    }

    /// Something is given to be sent.
    pub fn send(&self) -> SendMark {
        let mut used = self.use_of();
        used.sent += 1;
        let number = used.sent;
        used.sending.insert(number, Instant::now());
        SendMark(self.clone(), number)
    }

    /// When there may be a reason to close it, and the reason if there is one now.
    fn over(&self) -> (Instant, Option<&'static str>) {
        let limits = &self.0.gate.limits;
        let (now, used) = (Instant::now(), self.use_of());
        let idle = Duration::from_millis(if self.is_known() { limits.idle_ms } else { limits.stranger_idle_ms });
        let stall = Duration::from_millis(limits.stall_ms) * if self.0.is_proxy { PROXY_PATIENCE } else { 1 };
        let stalled = used.sending.first_key_value().map(|(_, since)| *since + stall);
        let idle_at = if used.calls == 0 { used.since + idle } else { now + idle };
        let reason = match stalled {
            Some(at) if at <= now => Some("stalled"),
            _ if idle_at <= now => Some("idle"),
            _ => None,
        };
        (idle_at.min(now + stall), reason)
    }
}

impl Drop for CallMark {
    fn drop(&mut self) {
        let mut used = self.0.use_of();
        (used.calls, used.since) = (used.calls - 1, Instant::now());
    }
}

impl Drop for SendMark {
    fn drop(&mut self) {
        self.0.use_of().sending.remove(&self.1);
    }
}

/// A connection, counted as long as it lives.
pub(crate) struct Connection {
    stream: Stream,
    peer: Peer,
    look: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
    _of_address: Option<OfAddress>,
    _counted: Counted,
}

impl Connection {
    /// Whether it is to be closed, for which it is looked at from time to time.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(context).is_ready() {
            let (at, reason) = self.peer.over();
            if let Some(reason) = reason {
                limited(reason);
                if REFUSALS.admits(Some(network(self.peer.address().ip())), reason) {
                    tracing::info!(peer = %self.peer.address(), reason, "connection closed");
                }
                return true;
            }
            self.look.as_mut().reset(at);
        }
        false
    }

    /// A pending poll, unless the connection is to be closed.
    fn pending<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.is_over(context) { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }
}

/// One of the connections in the metrics.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("unisono_connections").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("unisono_connections").decrement(1.0);
    }
}

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One of an address's connections.
struct OfAddress(Counts, IpAddr);

impl OfAddress {
    fn new(counts: &Counts, address: IpAddr, most: usize) -> Option<Self> {
        let mut table = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self(counts.clone(), address))
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.1);
            }
        }
    }
}

/// Who may connect.
struct Door {
    gate: Arc<Gate>,
    of_address: Counts,
    strangers: Arc<Semaphore>,
    numbers: AtomicU64,
}

impl Door {
    /// The peer of a new connection with its place among its address's, or the limit that is met.
    fn enter(&self, address: SocketAddr) -> Result<(Peer, Option<OfAddress>), &'static str> {
        let (limits, ip) = (&self.gate.limits, network(address.ip()));
        let is_proxy = limits.proxies.iter().any(|proxy| proxy.to_canonical() == address.ip().to_canonical());
        let of_address = if is_proxy {
            None
        } else {
            let of_address = OfAddress::new(&self.of_address, ip, limits.connections_per_address);
            Some(of_address.ok_or("connections_address")?)
        };
        let known = is_proxy || self.gate.knows(ip);
        let place =
            if known { None } else { Some(self.strangers.clone().try_acquire_owned().map_err(|_| "strangers")?) };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let peer = Peer(Arc::new(PeerState {
            is_proxy,
            known: AtomicBool::new(known),
            ..PeerState::stranger(number, address, self.gate.clone(), place)
        }));
        Ok((peer, of_address))
    }
}

/// The connections of `listener` that began with the preface, by TLS where it is given, at most `limit` at a time, a part of them
/// strangers'. A handshake begins only for whom there is a place, and none waits for another's.
pub(crate) fn incoming(
    listener: TcpListener,
    limit: usize,
    gate: Arc<Gate>,
    tls: Option<Arc<ServerTls>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(limit));
    let strangers = limit.saturating_mul(usize::from(100 - gate.limits.reserved_percent)).div_ceil(100).max(1);
    let strangers = Arc::new(Semaphore::new(strangers));
    let door = Door { gate, of_address: Counts::default(), strangers, numbers: AtomicU64::new(0) };
    tokio::spawn(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        if REFUSALS.admits(None, "accept") {
                            tracing::warn!(%error, "can't accept a connection; trying again");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let entered = door.enter(address).and_then(|(peer, of_address)| {
                let admitted = tls.is_none() || door.gate.takes_handshake(&peer);
                if admitted { Ok((peer, of_address)) } else { Err("calls_address") }
            });
            let (peer, of_address) = match entered {
                Ok(entered) => entered,
                Err(limit) => {
                    limited(limit);
                    if REFUSALS.admits(Some(network(address.ip())), limit) {
                        tracing::info!(peer = %address, reason = limit, "connection refused");
                    }
                    continue;
                }
            };
            let (sender, tls) = (sender.clone(), tls.clone());
            tokio::spawn(async move {
                let (stream, has_certificate) = match Stream::begin(stream, tls.as_deref()).await {
                    Ok(begun) => begun,
                    Err(Refused::Preface) => return,
                    Err(Refused::Handshake(why)) => {
                        limited("handshake");
                        if REFUSALS.admits(Some(network(address.ip())), "handshake") {
                            tracing::info!(peer = %address, reason = "handshake", why, "connection refused");
                        }
                        return;
                    }
                };
                if has_certificate {
                    peer.authenticated();
                }
                let look = Box::pin(tokio::time::sleep_until(peer.over().0));
                let (_place, _of_address, _counted) = (place, of_address, Counted::new());
                let _ = sender.send(Ok(Connection { stream, peer, look, _place, _of_address, _counted })).await;
            });
        }
    });
    ReceiverStream::new(receiver)
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.pending(cx),
            ready => ready,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Pending => self.pending(cx),
            ready => ready,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(cx, bufs) {
            Poll::Pending => self.pending(cx),
            ready => ready,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.pending(cx),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.pending(cx),
            ready => ready,
        }
    }
}
