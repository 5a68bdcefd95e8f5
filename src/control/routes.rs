//! What each request does, and how an error becomes an answer.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};

use super::{BalloonRequest, ControlError, Daemon, ErrorBody, REQUEST_BODY_MAX};
use crate::telemetry::{HostStatus, VmStatus};
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// Named in the answer to a request for anything else.
const ROUTES: &str = "GET /v1/status, GET /v1/vms, GET or DELETE /v1/vms/{name}, \
                      PUT /v1/vms/{name}/balloon";

type Shared = State<Arc<dyn Daemon>>;

/// The routes of the API over `daemon`.
pub(super) fn router(daemon: Arc<dyn Daemon>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{name}", get(vm).delete(kill))
        .route("/v1/vms/{name}/balloon", put(set_balloon))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(REQUEST_BODY_MAX))
        .with_state(daemon)
}

async fn status(State(daemon): Shared) -> Json<HostStatus> {
    Json(daemon.status())
}

async fn vms(State(daemon): Shared) -> Json<Vec<VmStatus>> {
    Json(daemon.status().vms)
}

async fn vm(State(daemon): Shared, Path(name): Path<String>) -> Result<Json<VmStatus>, Refusal> {
    let found = daemon.vm(&name);
    found.map(Json).ok_or_else(|| unknown_vm(&*daemon, name))
}

async fn kill(State(daemon): Shared, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    daemon.kill(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_balloon(
    State(daemon): Shared,
    Path(name): Path<String>,
    body: Result<Json<BalloonRequest>, JsonRejection>,
) -> Result<Json<VmStatus>, Refusal> {
    let Json(request) = body?;
    let target = request.target_bytes.map(whole_pages).transpose()?;
    Ok(Json(daemon.set_balloon(&name, target)?))
}

fn whole_pages(target: Bytes) -> Result<Pages, Refusal> {
    if target.0.is_multiple_of(PAGE_SIZE as u64) {
        return Ok(target.pages());
    }
    Err(Refusal::new(
        StatusCode::BAD_REQUEST,
        format!("target_bytes {} is not a whole number of pages", target.0),
        format!("a multiple of {PAGE_SIZE}, or null"),
    ))
}

async fn unknown_route(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is no {method} {}", uri.path()),
        ROUTES.to_owned(),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
        ROUTES.to_owned(),
    )
}

fn unknown_vm(daemon: &dyn Daemon, name: String) -> Refusal {
    let running = daemon.status().vms.into_iter().map(|vm| vm.name).collect();
    ControlError::UnknownVm { name, running }.into()
}

/// An error as it goes over the wire.
struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

impl Refusal {
    fn new(status: StatusCode, error: String, allowed: String) -> Self {
        let body = ErrorBody { error, allowed };
        Self { status, body }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let status = match error {
            ControlError::UnknownVm { .. } => StatusCode::NOT_FOUND,
            ControlError::BalloonTooLarge { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ControlError::NoAgent { .. } => StatusCode::CONFLICT,
            ControlError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string(), error.allowed())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(
            rejection.status(),
            rejection.body_text(),
            format!(
                "Content-Type: application/json and {{\"target_bytes\": N}} or \
                 {{\"target_bytes\": null}}, at most {REQUEST_BODY_MAX} bytes"
            ),
        )
    }
}
