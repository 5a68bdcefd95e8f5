//! What is served by HTTP on an address, for programs and people that may look and nothing else.
//!
//! The control socket is open to its user alone, and so it may change things. An address has no such owner: any user of
//! the machine reaches a port of its loopback interface, and so does any page in a browser there. So nothing here changes
//! anything, or tells more than the numbers of the status.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Daemon;
use crate::telemetry::metrics;

/// From here on a policy that has made no plan hangs. It makes four in a second; systemd is as patient with it
/// (`WatchdogSec=` in packaging/debian/memvisor.service).
const PATIENCE: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";

/// The pages over `daemon`.
pub(super) fn router(daemon: Arc<dyn Daemon>) -> Router {
    Router::new()
        .route("/metrics", get(openmetrics))
        .route("/healthz", get(health))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(daemon)
}

/// An answer, after which the connection closes: whoever looks every ten seconds would else find it closed for its idleness
/// just when the next request is under way.
fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONNECTION, "close"),
    ];
    (status, headers, body).into_response()
}

async fn openmetrics(State(daemon): State<Arc<dyn Daemon>>) -> Response {
    let text = metrics::openmetrics(&daemon.status());
    answer(StatusCode::OK, metrics::CONTENT_TYPE, text)
}

/// For a cluster's or a container's look whether the host still does its work. That the page is served shows little: it
/// is the thread of the policy that looks after the VMs, and a host whose policy hangs reclaims nothing.
async fn health(State(daemon): State<Arc<dyn Daemon>>) -> Response {
    let since = daemon.planned().elapsed();
    if since < PATIENCE {
        return answer(StatusCode::OK, TEXT, "ok\n".to_owned());
    }
    let text = format!("the policy has not planned for {} s\n", since.as_secs());
    answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

async fn unknown(uri: Uri) -> Response {
    let text = format!(
        "there is no {}; allowed: GET /metrics, /healthz\n",
        uri.path()
    );
    answer(StatusCode::NOT_FOUND, TEXT, text)
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let text = format!(
        "{} does not take {method}; allowed: GET, HEAD\n",
        uri.path()
    );
    answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text)
}

#[cfg(test)]
mod tests;
