//! What strangers and devices may take of the service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use unisono_wire::MAX_MESSAGE_LEN;

use super::{Config, ConfigError};

/// Limits of the service; `docs/operations.md` has a table of them with metrics and errors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most calls at a time on one connection (HTTP/2 streams).
    pub streams_per_connection: u32,
    /// Most connections at a time from one address; an IPv6 address counts with its /64.
    pub connections_per_address: usize,
    /// Part of connections, calls and bytes, in percent, that only known devices get: those of which a signed step or request was
    /// accepted over the same connection, or within a day from the same address.
    pub reserved_percent: u8,
    /// Longest time until the message of a unary call is there, in milliseconds.
    pub body_ms: u64,
    /// Most bytes of large messages that one connection has in flight, received and not handled, or sent and not read.
    pub connection_bytes: usize,
    /// The same, of all connections together.
    pub total_bytes: usize,
    /// Calls a second from one address; ten times as many at once after a pause.
    pub calls_per_address: u32,
    /// Calls a second that name one device, for each address; ten times as many at once after a pause.
    pub calls_per_device: u32,
    /// A connection without a call is closed after so long, in milliseconds.
    pub idle_ms: u64,
    /// The same, as long as it is nobody's that is known.
    pub stranger_idle_ms: u64,
    /// A peer that reads nothing of what it asked for is cut off after so long, in milliseconds.
    pub stall_ms: u64,
    /// Addresses of proxies: their connections are many devices', so that limits of an address hold for the last one that they name in
    /// `x-forwarded-for`, and for none if they name none.
    pub proxies: Vec<IpAddr>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_per_connection: 64,
            connections_per_address: 256,
            reserved_percent: 50,
            body_ms: 60_000,
            connection_bytes: 16 << 20,
            total_bytes: 512 << 20,
            calls_per_address: 100,
            calls_per_device: 50,
            idle_ms: 600_000,
            stranger_idle_ms: 60_000,
            stall_ms: 60_000,
            proxies: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        }
    }
}

/// File descriptors beyond those of connections: storage, log, metrics.
const OTHER_FILES: u64 = 256;

/// Most connections for which the system allows enough open files; `None`: it sets no limit.
pub(super) fn most_connections() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.map(|most| usize::try_from(most.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX))
}

impl Limits {
    /// The first setting that is out of range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let in_range = |setting, got: u64, least: u64, most: u64| match (least..=most).contains(&got) {
            true => Ok(()),
            false => Err(ConfigError::Setting { setting, got: got.to_string(), allowed: format!("{least} to {most}") }),
        };
        let message = 2 * MAX_MESSAGE_LEN as u64;
        // What a semaphore's permits are counted in.
        let most = u64::from(u32::MAX);
        in_range("limits.streams_per_connection", self.streams_per_connection.into(), 1, 10_000)?;
        in_range("limits.connections_per_address", self.connections_per_address as u64, 1, most)?;
        in_range("limits.reserved_percent", self.reserved_percent.into(), 0, 90)?;
        in_range("limits.body_ms", self.body_ms, 100, 3_600_000)?;
        in_range("limits.connection_bytes", self.connection_bytes as u64, message, most)?;
        // So that strangers' part has room for the largest message, too.
        in_range("limits.total_bytes", self.total_bytes as u64, 10 * message, 1 << 40)?;
        in_range("limits.calls_per_address", self.calls_per_address.into(), 1, 1_000_000)?;
        in_range("limits.calls_per_device", self.calls_per_device.into(), 1, 1_000_000)?;
        in_range("limits.idle_ms", self.idle_ms, 1_000, 86_400_000)?;
        in_range("limits.stranger_idle_ms", self.stranger_idle_ms, 1_000, 86_400_000)?;
        in_range("limits.stall_ms", self.stall_ms, 1_000, 3_600_000)
    }
}

impl Config {
    /// Sees that the process may have as many open files as `max_connections` needs, and raises its limit if it may.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] when the system does not allow so many.
    pub fn raise_open_files(&self) -> Result<(), ConfigError> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let need = self.max_connections as u64 + OTHER_FILES;
        let limit = getrlimit(Resource::Nofile);
        // `None`: no limit.
        if limit.current.is_none_or(|current| current >= need) {
            return Ok(());
        }
        let raised = Rlimit { current: Some(need), maximum: limit.maximum };
        if limit.maximum.is_none_or(|maximum| maximum >= need) && setrlimit(Resource::Nofile, raised).is_ok() {
            return Ok(());
        }
        let may = limit.maximum.or(limit.current).unwrap_or(0);
        let allowed = format!(
            "at most {} here: the system allows this process {may} open files (`ulimit -Hn`, LimitNOFILE in systemd), of which \
             {OTHER_FILES} are for other things",
            may.saturating_sub(OTHER_FILES)
        );
        Err(ConfigError::Setting { setting: "max_connections", got: self.max_connections.to_string(), allowed })
    }
}
