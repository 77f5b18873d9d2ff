//! Whether devices can be served: for the operator's page and probes, and as the standard gRPC service `grpc.health.v1.Health` on the
//! devices' listener.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthCalls, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use unisono_wire::MAX_WAIT_MS;
use unisono_wire::proto::coordinator_server::CoordinatorServer;

use crate::Shared;
use crate::service::Service;

/// Tells whether devices can be served.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

impl Health {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Whether devices can be served now.
    ///
    /// # Errors
    /// Why not, for the operator.
    pub fn ready(&self) -> Result<(), String> {
        self.0.unready.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// The gRPC service. It tells whether, not why not: anybody may ask.
    pub(crate) fn service(self) -> HealthServer<impl HealthCalls> {
        HealthServer::new(self)
    }

    fn status(&self) -> HealthCheckResponse {
        let status = if self.ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        HealthCheckResponse { status: status.into() }
    }
}

/// Whether it is the process or the service of devices that is asked for.
fn is_known(service: &str) -> bool {
    service.is_empty() || service == <CoordinatorServer<Service> as NamedService>::NAME
}

#[tonic::async_trait]
impl HealthCalls for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if is_known(&request.get_ref().service) {
            return Ok(Response::new(self.status()));
        }
        Err(Status::not_found("there is no such service here"))
    }

    /// Tells changes for as long as other calls may wait, then ends, and its caller asks again: nobody holds a place for ever.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = is_known(&request.get_ref().service);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (health, mut changes) = (self.clone(), self.0.changes.subscribe());
        tokio::spawn(async move {
            let until = Instant::now() + Duration::from_millis(MAX_WAIT_MS);
            let mut told = None;
            loop {
                let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
                let status = if known { health.status() } else { unknown };
                if told != Some(status.status) {
                    told = Some(status.status);
                    if sender.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
                let gone = tokio::select! {
                    change = tokio::time::timeout_at(until, changes.changed()) => !matches!(change, Ok(Ok(()))),
                    () = sender.closed() => return,
                };
                if gone {
                    let _ = sender.send(Err(Status::unavailable("watched for long enough; ask again"))).await;
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}
