//! The metrics listener: Prometheus metrics, and whether the process lives and can serve devices.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use unisono::coordinator::Health;
use unisono::coordinator::tls::ServerTls;

/// Upper ends of the buckets of durations, in seconds.
const SECONDS: [f64; 16] =
    [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A request that is not whole, or an answer that is not read, after so long closes its connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The coordinator's health, once it has started.
pub type Started = Arc<OnceLock<Health>>;

/// Serves at `address`: `/metrics`, `/livez` and `/readyz`; by TLS where it is given. Until `started` is set, the process lives and is
/// not ready.
///
/// # Errors
/// The address, or a second recorder in this process.
pub async fn serve(address: SocketAddr, started: Started, tls: Option<ServerTls>) -> Result<()> {
    let what = || format!("can't serve metrics on {address}");
    let recorder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?;
    let listener = TcpListener::bind(address).await.with_context(what)?;
    let metrics = recorder.install_recorder().with_context(what)?;
    tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "serving metrics");
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    let tls = tls.map(Arc::new);
    if let Some(tls) = tls.clone() {
        tokio::spawn(async move { tls.watch().await });
    }
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (metrics, started) = (metrics.clone(), started.clone());
            let acceptor = tls.as_ref().map(|tls| tls.acceptor());
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let response = answer(&request, &metrics, &started);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(TIMEOUT).keep_alive(false);
                let serve = async {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(Ok(stream)) = tokio::time::timeout(TIMEOUT, acceptor.accept(stream)).await {
                                let _ = http.serve_connection(TokioIo::new(stream), service).await;
                            }
                        }
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                    }
                };
                let _ = tokio::time::timeout(2 * TIMEOUT, serve).await;
            });
        }
    });
    Ok(())
}

fn answer(request: &Request<Incoming>, metrics: &PrometheusHandle, started: &Started) -> Response<String> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics" | "/") => (StatusCode::OK, metrics.render()),
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "alive\n".into()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            match started.get().map_or_else(|| Err("starting".into()), Health::ready) {
                Ok(()) => (StatusCode::OK, "ready\n".into()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }
        }
        _ => (StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n".into()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
