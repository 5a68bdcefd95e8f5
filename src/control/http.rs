//! What is served by HTTP on an address, for programs and people that may look and nothing else: metrics, and a page
//! that shows the host as it is (`events.rs`).
//!
//! The control socket is open to its user alone, and so it may change things. An address has no such owner: any user of
//! the machine reaches a port of its loopback interface, and so does any page in a browser there. So nothing here changes
//! anything, or tells more than the numbers of the status.
//!
//! A page from elsewhere may send requests, but the browser lets it read answers only from the name that it came from
//! itself. Whoever owns that name can have it lead to 127.0.0.1 afterwards, and so a loopback address answers to names
//! of its own only. The page that is served here may run and load what comes from here, and nothing that stands in its text.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use super::Daemon;
use super::events::Events;
use crate::telemetry::metrics;
use crate::view;

/// From here on a policy that has made no plan hangs. It makes four in a second; systemd is as patient with it
/// (`WatchdogSec=` in packaging/debian/memvisor.service).
const PATIENCE: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What a browser must not do with any answer.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    // Another version may answer at the same address tomorrow.
    ("cache-control", "no-store"),
];

/// The pages over `daemon` at `address`. Streams end when `stopping` has a value, or its sender is gone.
pub(super) fn router(
    daemon: Arc<dyn Daemon>,
    address: SocketAddr,
    stopping: watch::Receiver<()>,
) -> Router {
    let events = Arc::new(Events::new(Arc::clone(&daemon), stopping));
    let is_private = address.ip().to_canonical().is_loopback();
    let guard = from_fn(move |request, next| guarded(is_private, request, next));
    Router::new()
        .route("/metrics", get(openmetrics))
        .route("/healthz", get(health))
        .with_state(daemon)
        .route("/", get(|| page(HTML, view::live_page())))
        .route("/page.css", get(|| page(CSS, view::STYLE.to_owned())))
        .route("/page.js", get(|| page(SCRIPT, view::SCRIPT.to_owned())))
        .route("/events", get(stream))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(events)
        .layer(guard)
}

/// Refuses what was sent to a name that is not ours, and says in each answer what a browser must not do with it.
async fn guarded(is_private: bool, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).cloned();
    let mut response = match host.filter(|host| is_private && !is_own_name(host)) {
        Some(host) => {
            let host = String::from_utf8_lossy(host.as_bytes()).into_owned();
            let host = host.escape_debug();
            let text = format!(
                "this is not {host}; allowed: localhost, or an address such as 127.0.0.1\n"
            );
            answer(StatusCode::MISDIRECTED_REQUEST, TEXT, text)
        }
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        let (name, value) = (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether a header `Host` has a name that nobody else can have: an address, or `localhost`.
fn is_own_name(host: &HeaderValue) -> bool {
    let authority = Authority::try_from(host.as_bytes());
    authority.is_ok_and(|authority| {
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
    })
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

async fn page(content_type: &'static str, body: String) -> Response {
    answer(StatusCode::OK, content_type, body)
}

async fn openmetrics(State(daemon): State<Arc<dyn Daemon>>) -> Response {
    let text = metrics::openmetrics(&daemon.status().for_anybody());
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

async fn stream(State(events): State<Arc<Events>>) -> Response {
    let Some(stream) = events.stream() else {
        let text = "as many pages as there may be watch this host already; try again later\n";
        return answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.to_owned());
    };
    let close = [(header::CONNECTION, "close")];
    (close, stream).into_response()
}

async fn unknown(uri: Uri) -> Response {
    let text = format!(
        "there is no {}; allowed: GET /, /metrics, /healthz\n",
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
