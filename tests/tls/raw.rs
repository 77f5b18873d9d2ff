//! A TLS client made of rustls alone, with settings that the SDK never has; and one of TLS 1.2.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use unisono_tls::rustls::pki_types::ServerName;
use unisono_tls::rustls::{ClientConfig, NamedGroup};
use unisono_tls::{VERSIONS, authorities, provider};

/// Connects by TLS with these key exchanges only; all where none are given.
pub async fn connect(address: &str, authority: &str, groups: &[NamedGroup]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut provider = (*provider().unwrap()).clone();
    provider.kx_groups.retain(|group| groups.is_empty() || groups.contains(&group.name()));
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_root_certificates(authorities(authority.as_bytes()).unwrap())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub fn group(stream: &TlsStream<TcpStream>) -> NamedGroup {
    stream.get_ref().1.negotiated_key_exchange_group().unwrap().name()
}

/// The server's own certificate.
pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: u8 = 6;

/// Begins HTTP/2.
pub async fn begin(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(PREFACE).await.unwrap();
}

/// Whether the server answers a ping of HTTP/2.
pub async fn answers(stream: &mut TlsStream<TcpStream>) -> bool {
    let ping = async {
        stream.write_all(&[0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await?;
            if head[3] == PING && payload == [1, 2, 3, 4, 5, 6, 7, 8] {
                return std::io::Result::Ok(());
            }
        }
    };
    matches!(tokio::time::timeout(Duration::from_secs(5), ping).await, Ok(Ok(())))
}

/// A good client is served.
pub async fn is_served(address: &str, authority: &str) -> bool {
    let Ok(mut stream) = connect(address, authority, &[]).await else { return false };
    begin(&mut stream).await;
    answers(&mut stream).await
}

/// What a TLS 1.2 client says first (RFC 5246, 7.4.1.2): it does not name other versions.
pub fn hello_of_1_2() -> Vec<u8> {
    let extension =
        |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat();
    let extensions = [
        extension(10, &[0, 4, 0, 29, 0, 23]),     // X25519, P-256
        extension(11, &[1, 0]),                   // uncompressed points
        extension(13, &[0, 6, 4, 3, 8, 4, 4, 1]), // ECDSA with P-256, RSA
        extension(16, &[0, 3, 2, b'h', b'2']),    // HTTP/2
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // ECDHE-ECDSA and ECDHE-RSA with AES-128-GCM; no compression.
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}
