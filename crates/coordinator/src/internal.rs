//! No part of the API: what the fuzz targets in `fuzz/` need of this crate's inside.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::{Code, Status};
use tower::{Layer, Service as _};
use unisono_wire::REASON_KEY;
use unisono_wire::proto::coordinator_server::CoordinatorServer;

pub use crate::active::{RecoverError, replay};
use crate::calls::{Calls, Gated};
use crate::config::{Config, Fault};
use crate::connections::Peer;
use crate::service::Service;
use crate::{Coordinator, calls_of};

/// Reads a configuration as `--check` does, without any of the files that it names.
pub fn parse_config(text: &str) -> (Option<Config>, Vec<Fault>) {
    let mut faults = Vec::new();
    (crate::config::parse(text, &mut faults), faults)
}

/// Calls of one peer, handled without a network.
pub struct Direct {
    service: Gated<CoordinatorServer<Service>>,
    peer: Peer,
}

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    /// The status; `None`: there was none, which must not be.
    pub code: Option<Code>,
    /// The short name of an error.
    pub reason: String,
    /// The messages of the answer, each with its five bytes in front.
    pub body: Vec<u8>,
}

impl Direct {
    /// A stranger at `address`.
    pub fn new(coordinator: &Coordinator, address: SocketAddr) -> Self {
        let shared = &coordinator.shared;
        let service = Calls(shared.gate.clone()).layer(calls_of(shared.clone()));
        Self { service, peer: Peer::stranger(address, shared.gate.clone()) }
    }

    /// Whether something was accepted that only a known device can have sent.
    pub fn is_known(&self) -> bool {
        self.peer.is_known()
    }

    /// Makes a call whose body comes in these pieces.
    pub async fn call(&mut self, method: &str, pieces: Vec<Vec<u8>>) -> Ended {
        let pieces = Pieces(pieces.into_iter().map(Bytes::from).collect());
        let request = Request::post(format!("/unisono.v1.Coordinator/{method}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let mut ended = Ended { code: None, reason: String::new(), body: Vec::new() };
        let Ok(mut request) = request.body(Body::new(pieces)) else { return ended };
        request.extensions_mut().insert(self.peer.clone());
        let Ok(()) = poll_fn(|context| self.service.poll_ready(context)).await;
        let Ok(response) = self.service.call(request).await;
        let (parts, mut body) = response.into_parts();
        let mut status = Status::from_header_map(&parts.headers);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => ended.body.extend_from_slice(&data),
                Ok(Err(frame)) => {
                    status = frame.into_trailers().ok().and_then(|trailers| Status::from_header_map(&trailers));
                }
                Err(error) => status = Some(error),
            }
        }
        if let Some(status) = status {
            let reason = status.metadata().get(REASON_KEY).and_then(|reason| reason.to_str().ok());
            ended.reason = reason.unwrap_or_default().to_owned();
            ended.code = Some(status.code());
        }
        ended
    }
}

/// A body that is there already.
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}
