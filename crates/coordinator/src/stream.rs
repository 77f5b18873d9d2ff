//! How a connection begins, and what it is read from and written to then: TCP, or TLS over it. Whoever does not begin within seconds
//! has nothing done for it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::tls::ServerTls;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection on which handshake and preface are not over after so long is closed.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a handshake that failed, so much is still read, for so long at most.
const DRAINED: u64 = 16 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// What a TLS client says first: a handshake's record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// A connection that has begun.
pub(crate) enum Stream {
    /// In clear. The preface is still in the socket.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<Encrypted>),
}

/// A stream whose preface was read.
pub(crate) struct Encrypted {
    stream: TlsStream<TcpStream>,
    /// What the server has not read of the preface.
    preface: &'static [u8],
}

/// Why a connection has not begun.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It was closed before anything was said, as by a port scan or a load balancer's check; or it said nothing that is HTTP/2.
    Preface,
    /// The TLS handshake failed.
    Handshake(String),
}

impl Stream {
    /// Waits for the handshake, where there is `tls`, and for the preface. It tells whether the peer has shown a certificate, which was
    /// verified.
    pub async fn begin(stream: TcpStream, tls: Option<&ServerTls>) -> Result<(Self, bool), Refused> {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            let begun = tokio::time::timeout(BEGIN_TIMEOUT, begins_well(&stream)).await;
            return if matches!(begun, Ok(Ok(true))) {
                Ok((Self::Plain(stream), false))
            } else {
                Err(Refused::Preface)
            };
        };
        let late = |_| Refused::Handshake(format!("it was not over within {} s", BEGIN_TIMEOUT.as_secs()));
        tokio::time::timeout(BEGIN_TIMEOUT, shake_hands(stream, tls)).await.map_err(late)?
    }
}

async fn shake_hands(stream: TcpStream, tls: &ServerTls) -> Result<(Stream, bool), Refused> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE => {}
        // The handshake fails by an alert, by which the SDK knows what it has dialled.
        Ok(1) if PREFACE.starts_with(&first) => {
            accept(stream, tls).await.err();
            return Err(Refused::Handshake("the client speaks plain HTTP: it has to use https://".into()));
        }
        Ok(1) => return Err(Refused::Handshake("the client does not speak TLS".into())),
        _ => return Err(Refused::Preface),
    }
    let mut stream = accept(stream, tls).await.map_err(|error| Refused::Handshake(error.to_string()))?;
    let mut preface = [0; PREFACE.len()];
    let mut len = 0;
    while len < preface.len() {
        match stream.read(&mut preface[len..]).await {
            Ok(more) if more > 0 && preface[..len + more] == PREFACE[..len + more] => len += more,
            Ok(_) => return Err(Refused::Preface),
            Err(error) => return Err(Refused::Handshake(error.to_string())),
        }
    }
    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
    Ok((Stream::Tls(Box::new(Encrypted { stream, preface: PREFACE })), has_certificate))
}

/// Takes a handshake. When it fails, the client is told by an alert.
async fn accept(stream: TcpStream, tls: &ServerTls) -> io::Result<TlsStream<TcpStream>> {
    let (error, mut stream) = match tls.acceptor().accept(stream).into_fallible().await {
        Ok(stream) => return Ok(stream),
        Err(failed) => failed,
    };
    // A socket that is closed with something unread takes the alert back.
    let drain = async {
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut (&mut stream).take(DRAINED), &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
    Err(error)
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

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(encrypted) if !encrypted.preface.is_empty() => {
                let (now, later) = encrypted.preface.split_at(encrypted.preface.len().min(buf.remaining()));
                buf.put_slice(now);
                encrypted.preface = later;
                Poll::Ready(Ok(()))
            }
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(encrypted) => encrypted.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_shutdown(cx),
        }
    }
}
