//! What each request does, and how an error becomes an answer.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::{
    AgentToken, BalloonRequest, ControlError, Daemon, ErrorBody, REQUEST_BODY_MAX, ReloadReport,
    SettingRequest,
};
use crate::settings::{DEFAULT, Key, SettingError, SettingView, VmPatch};
use crate::telemetry::{HostStatus, VmStatus};
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The description of the API for programs; a test writes it and compares it with the code.
pub(super) const OPENAPI: &str = include_str!("../../docs/openapi.json");

type Shared = State<Arc<dyn Daemon>>;

/// A request that the server understands.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    serve: MethodRouter<Arc<dyn Daemon>>,
}

fn route<H, T>(method: Method, path: &'static str, handler: H) -> Route
where
    H: Handler<T, Arc<dyn Daemon>>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).expect("one of the methods of HTTP itself");
    let serve = on(filter, handler);
    Route {
        method,
        path,
        serve,
    }
}

/// All requests of the API.
pub(super) fn routes() -> Vec<Route> {
    const SETTING: &str = "/v1/settings/{name}";
    const VM: &str = "/v1/vms/{name}";
    vec![
        route(Method::GET, "/v1/status", status),
        route(Method::GET, "/v1/vms", vms),
        route(Method::GET, VM, vm),
        route(Method::PATCH, VM, set_vm),
        route(Method::DELETE, VM, kill),
        route(Method::PUT, "/v1/vms/{name}/balloon", set_balloon),
        route(Method::GET, "/v1/vms/{name}/why", why),
        route(Method::GET, "/v1/vms/{name}/token", token),
        route(Method::GET, "/v1/settings", settings),
        route(Method::GET, SETTING, setting),
        route(Method::PUT, SETTING, set_setting),
        route(Method::DELETE, SETTING, reset_setting),
        route(Method::POST, "/v1/reload", reload),
        route(Method::GET, "/v1/openapi.json", openapi),
    ]
}

/// The requests that are understood, for the answer to any other.
fn understood() -> String {
    let each = routes()
        .into_iter()
        .map(|r| format!("{} {}", r.method, r.path));
    each.collect::<Vec<_>>().join(", ")
}

/// The routes of the API over `daemon`.
pub(super) fn router(daemon: Arc<dyn Daemon>) -> Router {
    let add = |router: Router<_>, route: Route| router.route(route.path, route.serve);
    routes()
        .into_iter()
        .fold(Router::new(), add)
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
    let Json(request) = body.map_err(unreadable(
        "{\"target_bytes\": N} or {\"target_bytes\": null}",
    ))?;
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

async fn set_vm(
    State(daemon): Shared,
    Path(name): Path<String>,
    body: Result<Json<VmPatch>, JsonRejection>,
) -> Result<Json<VmStatus>, Refusal> {
    let Json(patch) = body.map_err(unreadable(
        "an object of VM settings such as {\"shares\": \"high\", \"limit\": \"128M\"}",
    ))?;
    Ok(Json(daemon.set_vm(&name, &patch)?))
}

async fn why(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(daemon.why(&name)?))
}

async fn token(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Result<Json<AgentToken>, Refusal> {
    Ok(Json(daemon.token(&name)?))
}

async fn settings(State(daemon): Shared) -> Json<Vec<SettingView>> {
    Json(daemon.settings())
}

async fn setting(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Result<Json<SettingView>, Refusal> {
    let wanted = Key::find(&name).map_err(ControlError::from)?.spec().name;
    let found = daemon.settings().into_iter().find(|s| s.name == wanted);
    Ok(Json(found.expect("the daemon has all settings there are")))
}

async fn set_setting(
    State(daemon): Shared,
    Path(name): Path<String>,
    body: Result<Json<SettingRequest>, JsonRejection>,
) -> Result<Json<SettingView>, Refusal> {
    let Json(request) = body.map_err(unreadable("{\"value\": 50} or {\"value\": \"30s\"}"))?;
    Ok(Json(daemon.set_setting(&name, &request.value.to_string())?))
}

async fn reset_setting(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Result<Json<SettingView>, Refusal> {
    Ok(Json(daemon.set_setting(&name, DEFAULT)?))
}

async fn reload(State(daemon): Shared) -> Result<Json<ReloadReport>, Refusal> {
    Ok(Json(daemon.reload()?))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn unknown_route(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is no {method} {}", uri.path()),
        understood(),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
        understood(),
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
            ControlError::Setting(SettingError::Unknown { .. }) => StatusCode::NOT_FOUND,
            ControlError::BalloonTooLarge { .. }
            | ControlError::Setting(SettingError::Value { .. })
            | ControlError::VmSettings(_)
            | ControlError::Config(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ControlError::NoAgent { .. } | ControlError::NoConfig => StatusCode::CONFLICT,
            ControlError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            ControlError::NotYet(_) | ControlError::Refused(_) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string(), error.allowed())
    }
}

/// The answer to a body that is not what the request needs.
fn unreadable(allowed: &'static str) -> impl Fn(JsonRejection) -> Refusal {
    move |rejection| {
        Refusal::new(
            rejection.status(),
            rejection.body_text(),
            format!(
                "Content-Type: application/json and {allowed}, at most {REQUEST_BODY_MAX} bytes"
            ),
        )
    }
}
