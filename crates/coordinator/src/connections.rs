//! Connections as they come in: so many at a time, and only those that begin to speak HTTP/2 within seconds. Whoever opens
//! connections and says nothing holds none of them for long, and running out of file descriptors is waited out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection on which the preface has not come after so long is closed.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, for instance for want of a file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, counted as long as it lives.
pub(crate) struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    _counted: Counted,
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

/// The connections of `listener` that began with the preface, at most `limit` at a time.
pub(crate) fn incoming(listener: TcpListener, limit: usize) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(limit));
    tokio::spawn(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "can't accept a connection; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                if matches!(tokio::time::timeout(PREFACE_TIMEOUT, begins_well(&stream)).await, Ok(Ok(true))) {
                    let _ = stream.set_nodelay(true);
                    let _ = sender.send(Ok(Connection { stream, _place: place, _counted: Counted::new() })).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// Whether the peer sends the preface. It stays in the socket for the server to read.
async fn begins_well(stream: &TcpStream) -> io::Result<bool> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let len = stream.peek(&mut bytes).await?;
        if len == 0 || bytes[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        // Some of it is there, so that waiting for readiness would not wait.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Connected for Connection {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
