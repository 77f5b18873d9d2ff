//! What every call passes before anything is done for it: rates for each address and device, and room in memory, a part of which is kept
//! for known devices when strangers fill the rest.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use metrics::{counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use unisono_protocol::ClientId;
use unisono_protocol::params::RoundParams;
use unisono_wire::{MAX_MESSAGE_LEN, RETRY_AFTER_KEY};

use crate::config::Limits;
use crate::connections::Peer;
use crate::known::Known;
use crate::service::refuse;

/// After a pause, so many seconds' calls may come at once.
const BURST: u32 = 10;
/// Calls that wait for room in memory; further ones are refused at once.
const MOST_WAITING: usize = 1024;
/// Bytes around an upload's chunk in its message.
const CHUNK_OVERHEAD: usize = 256;
/// Bytes of a step that has no part for each neighbour, and of one such part.
const STEP_LEN: (usize, usize) = (64 << 10, 4 << 10);

/// The calls, as far as they differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// One that asks in few bytes and is answered in one message.
    Small,
    /// A client's step.
    Submit,
    /// A stream of chunks.
    Upload,
    /// A file is sent.
    Download,
    /// A grant.
    Grant,
}

impl Call {
    /// By the path of its request.
    pub fn of(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("Submit") => Self::Submit,
            Some("Upload") => Self::Upload,
            Some("GetModel" | "GetRelease") => Self::Download,
            Some("RequestGrant") => Self::Grant,
            _ => Self::Small,
        }
    }
}

/// Who makes a call, as far as it shows before anything is verified.
#[derive(Clone)]
pub(crate) struct Caller {
    pub peer: Peer,
    /// Whose limits hold: the peer's address, or the one that a proxy names; `None` for a proxy that names none.
    pub address: Option<IpAddr>,
}

/// Whose calls are counted together for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    Address(IpAddr),
    Connection(u64),
}

impl Caller {
    /// Of a request over `peer`'s connection that says `forwarded` in `x-forwarded-for`. That is believed from proxies only, and only
    /// its last address, which the proxy itself has added.
    pub fn new(peer: Peer, forwarded: Option<&str>) -> Self {
        let named = || forwarded?.rsplit(',').next()?.trim().parse().ok().map(network);
        let address = if peer.is_proxy() { named() } else { Some(network(peer.address().ip())) };
        Self { peer, address }
    }

    /// Something that only a known device can have sent was accepted.
    pub fn authenticated(&self) {
        self.peer.authenticated();
        if let Some(address) = self.address {
            self.peer.gate().known.add(address);
        }
    }

    pub fn is_known(&self) -> bool {
        match self.address {
            Some(address) if self.peer.is_proxy() => self.peer.gate().knows(address),
            _ => self.peer.is_known(),
        }
    }
}

/// What counts as one address: of IPv6, the /64 that one subscriber has at least.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        canonical => canonical,
    }
}

/// A rate for each key.
struct Rates<K: Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    clock: DefaultClock,
}

impl<K: Hash + Eq + Clone> Rates<K> {
    fn new(a_second: u32) -> Self {
        let a_second = NonZeroU32::new(a_second).unwrap_or(NonZeroU32::MIN);
        let quota =
            Quota::per_second(a_second).allow_burst(a_second.saturating_mul(const { NonZeroU32::new(BURST).unwrap() }));
        Self { limiter: DefaultKeyedRateLimiter::hashmap(quota), clock: DefaultClock::default() }
    }

    /// Counts a call, or says how long to wait.
    fn check(&self, key: &K) -> Result<(), Duration> {
        self.limiter.check_key(key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    fn forget_old(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

/// Room for so many of something, of which strangers get a part only.
struct Room {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Room {
    fn new(size: usize, reserved_percent: u8) -> Self {
        let strangers = (size / 100 * usize::from(100 - reserved_percent)).max(1);
        Self { all: Arc::new(Semaphore::new(size)), strangers: Arc::new(Semaphore::new(strangers)) }
    }

    fn try_take(&self, count: u32, known: bool) -> Option<Vec<OwnedSemaphorePermit>> {
        let strangers = if known { None } else { Some(self.strangers.clone().try_acquire_many_owned(count).ok()?) };
        let all = self.all.clone().try_acquire_many_owned(count).ok()?;
        Some(strangers.into_iter().chain([all]).collect())
    }
}

/// Bytes in flight; they are free again when it is dropped.
#[derive(Default)]
pub(crate) struct Held {
    permits: Vec<OwnedSemaphorePermit>,
    pub bytes: usize,
}

impl Held {
    fn new(permits: Vec<OwnedSemaphorePermit>, bytes: usize) -> Self {
        gauge!("unisono_bytes_in_flight").increment(bytes as f64);
        Self { permits, bytes }
    }

    /// Holds what `other` holds as well.
    pub fn add(&mut self, mut other: Self) {
        self.permits.append(&mut other.permits);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            gauge!("unisono_bytes_in_flight").decrement(self.bytes as f64);
        }
    }
}

/// One of the calls that wait for room.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A limit that was met: counted by its name.
pub(crate) fn limited(limit: &'static str) {
    counter!("unisono_limited_total", "limit" => limit).increment(1);
}

/// A refusal that passes by waiting for `after`.
pub(crate) fn later(reason: &'static str, after: Duration, why: &str) -> Status {
    limited(reason);
    let after = after.max(Duration::from_millis(1)).as_millis().min(u128::from(u32::MAX)) as u64;
    let mut status = refuse(Code::ResourceExhausted, reason, &format!("{why}; try again in {after} ms"));
    status.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from(after));
    status
}

/// See the module.
pub(crate) struct Gate {
    pub limits: Limits,
    addresses: Rates<IpAddr>,
    devices: Rates<(Origin, ClientId)>,
    known: Known,
    calls: Room,
    bytes: Room,
    waiting: AtomicUsize,
    /// Largest step and largest upload message of the rounds so far.
    step_len: AtomicUsize,
    chunk_len: AtomicUsize,
}

impl Gate {
    pub fn new(limits: Limits, max_connections: usize, known: Known) -> Self {
        let reserved = limits.reserved_percent;
        Self {
            addresses: Rates::new(limits.calls_per_address),
            devices: Rates::new(limits.calls_per_device),
            known,
            // A device makes one call at a time, or two.
            calls: Room::new(max_connections.saturating_mul(2).max(200), reserved),
            bytes: Room::new(limits.total_bytes, reserved),
            waiting: AtomicUsize::new(0),
            step_len: AtomicUsize::new(STEP_LEN.0),
            chunk_len: AtomicUsize::new(CHUNK_OVERHEAD),
            limits,
        }
    }

    /// A round is at hand: its messages are taken. Those of earlier ones still are, for an answer that tells more than their size.
    pub fn open(&self, params: &RoundParams) {
        let step = STEP_LEN.0.saturating_add(STEP_LEN.1.saturating_mul(params.wire.n_max as usize));
        self.step_len.fetch_max(step.min(MAX_MESSAGE_LEN), Ordering::Relaxed);
        let chunk = params.chunk_len().saturating_add(CHUNK_OVERHEAD);
        self.chunk_len.fetch_max(chunk.min(MAX_MESSAGE_LEN), Ordering::Relaxed);
    }

    /// Largest message that a call may bring, in bytes.
    pub fn message_len(&self, call: Call) -> usize {
        match call {
            Call::Small | Call::Download => 4 << 10,
            Call::Grant => 32 << 10,
            Call::Submit => self.step_len.load(Ordering::Relaxed),
            Call::Upload => self.chunk_len.load(Ordering::Relaxed),
        }
    }

    /// A place for a call, or why there is none. Nothing of it was read yet.
    ///
    /// # Errors
    /// `calls_address` or `busy`.
    pub fn admit(&self, caller: &Caller) -> Result<Vec<OwnedSemaphorePermit>, Status> {
        if let Some(address) = caller.address {
            let why = "too many calls from this address";
            self.addresses.check(&address).map_err(|after| later("calls_address", after, why))?;
        }
        let busy = || later("busy", Duration::from_secs(5), "the coordinator has too many calls at a time");
        self.calls.try_take(1, caller.is_known()).ok_or_else(busy)
    }

    /// Counts a TLS handshake as a call of its address, a proxy's excepted; whether there were not too many.
    pub fn takes_handshake(&self, peer: &Peer) -> bool {
        peer.is_proxy() || self.addresses.check(&network(peer.address().ip())).is_ok()
    }

    /// Counts a call that names a device.
    ///
    /// # Errors
    /// `calls_device`.
    pub fn device(&self, caller: &Caller, client: ClientId) -> Result<(), Status> {
        let origin = caller.address.map_or(Origin::Connection(caller.peer.number()), Origin::Address);
        let why = format!("too many calls in the name of client {client}");
        self.devices.check(&(origin, client)).map_err(|after| later("calls_device", after, &why))
    }

    /// Waits for room for `bytes` of the connection and in all.
    ///
    /// # Errors
    /// `busy`: too many wait already.
    pub async fn reserve(&self, caller: &Caller, bytes: usize) -> Result<Held, Status> {
        let count = bytes.min(u32::MAX as usize) as u32;
        let known = caller.is_known();
        let of_connection = caller.peer.room();
        if let Ok(connection) = of_connection.clone().try_acquire_many_owned(count)
            && let Some(mut permits) = self.bytes.try_take(count, known)
        {
            permits.push(connection);
            return Ok(Held::new(permits, bytes));
        }
        let most = if known { MOST_WAITING } else { MOST_WAITING / 2 };
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        limited("bytes");
        let busy = || later("busy", Duration::from_secs(5), "the coordinator has too many bytes in flight");
        if waiting >= most {
            return Err(busy());
        }
        let take = async |room: &Arc<Semaphore>| room.clone().acquire_many_owned(count).await.map_err(|_| busy());
        let mut permits = vec![take(&of_connection).await?];
        if !known {
            permits.push(take(&self.bytes.strangers).await?);
        }
        permits.push(take(&self.bytes.all).await?);
        Ok(Held::new(permits, bytes))
    }

    /// Whether a known device came from there.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.known.has(address)
    }

    /// Forgets who has not come for long, and keeps whom it knows.
    pub fn forget_old(&self) {
        self.addresses.forget_old();
        self.devices.forget_old();
        self.known.keep();
    }
}
