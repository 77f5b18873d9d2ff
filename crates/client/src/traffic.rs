//! Bytes on the socket, counted where they are read and written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use unisono_protocol::server::Phase;

/// Bytes of TCP payload, with those of TLS, that a client sent and received in each phase of one round. A phase begins when the step of the one
/// before is acknowledged; the base model is fetched in the share phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent, by phase in order.
    pub up: [u64; 5],
    /// Received, by phase in order.
    pub down: [u64; 5],
}

impl Traffic {
    /// Bytes sent in all phases.
    pub fn total_up(&self) -> u64 {
        self.up.iter().sum()
    }

    /// Bytes received in all phases.
    pub fn total_down(&self) -> u64 {
        self.down.iter().sum()
    }
}

/// Counts over all connections of a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters(Arc<(AtomicU64, AtomicU64)>);

impl Counters {
    fn totals(&self) -> (u64, u64) {
        (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed))
    }
}

/// Assigns what was counted to phases.
pub(crate) struct Meter {
    counters: Counters,
    since: (u64, u64),
    traffic: Traffic,
}

impl Meter {
    pub fn new(counters: Counters) -> Self {
        Self { since: counters.totals(), counters, traffic: Traffic::default() }
    }

    /// What was counted since the last call belongs to `phase`.
    pub fn assign(&mut self, phase: Phase) {
        let now = self.counters.totals();
        self.traffic.up[phase as usize] += now.0 - self.since.0;
        self.traffic.down[phase as usize] += now.1 - self.since.1;
        self.since = now;
    }

    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

/// A stream that counts.
pub(crate) struct Counted<S> {
    inner: S,
    counters: Counters,
}

impl<S> Counted<S> {
    pub fn new(inner: S, counters: Counters) -> Self {
        Self { inner, counters }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.counters.0.1.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = result {
            self.counters.0.0.fetch_add(written as u64, Ordering::Relaxed);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
