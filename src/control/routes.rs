//! What each request does, what the document says of it, and how an error becomes an answer.
//!
//! A request stands in one place, its line of [`routes`]: the server's router and docs/openapi.json follow from it
//! and from the types of its handler.

mod json;
mod pools;
mod sharing;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, NoContent, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
#[cfg(test)]
use schemars::{JsonSchema as Described, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::json::Json;
use super::{
    AgentToken, BalloonRequest, ControlError, Daemon, ErrorBody, REQUEST_BODY_MAX, ReloadReport,
    SettingRequest, UnswapRequest,
};
use crate::settings::{DEFAULT, Key, PoolPatch, SettingError, SettingView, VmPatch};
use crate::telemetry::{HostStatus, VmStatus};
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The description of the API for programs; a test writes it and compares it with the code.
pub(super) const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Types that the document describes. Only the tests make it, so only they need the descriptions.
#[cfg(not(test))]
trait Described {}
#[cfg(not(test))]
impl<T> Described for T {}

/// What a request carries.
trait Body: DeserializeOwned + Described + Send + 'static {
    /// What is allowed, for whoever sent something else.
    const ALLOWED: &'static str;
}

impl Body for BalloonRequest {
    const ALLOWED: &'static str = "{\"target_bytes\": N} or {\"target_bytes\": null}";
}

impl Body for UnswapRequest {
    const ALLOWED: &'static str = "{\"pages_per_s\": N}, N from 1, or {\"pages_per_s\": null}";
}

impl Body for VmPatch {
    const ALLOWED: &'static str =
        "an object of VM settings such as {\"shares\": \"high\", \"limit\": \"128M\"}";
}

impl Body for PoolPatch {
    const ALLOWED: &'static str = "an object of settings of a resource pool such as {\"shares\": \"high\", \"limit\": \"128M\"}";
}

impl Body for SettingRequest {
    const ALLOWED: &'static str = "{\"value\": 50} or {\"value\": \"30s\"}";
}

/// What a request is answered with.
trait Answer: IntoResponse {
    /// The status and the schema for the document.
    #[cfg(test)]
    fn documented(schemas: &mut SchemaGenerator) -> (StatusCode, Option<Schema>);
}

impl<T: Serialize + Described> Answer for Json<T> {
    #[cfg(test)]
    fn documented(schemas: &mut SchemaGenerator) -> (StatusCode, Option<Schema>) {
        (StatusCode::OK, Some(schemas.subschema_for::<T>()))
    }
}

impl Answer for NoContent {
    #[cfg(test)]
    fn documented(_: &mut SchemaGenerator) -> (StatusCode, Option<Schema>) {
        (StatusCode::NO_CONTENT, None)
    }
}

/// An object of JSON that is not described any further.
struct Object(Response);

impl IntoResponse for Object {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Answer for Object {
    #[cfg(test)]
    fn documented(_: &mut SchemaGenerator) -> (StatusCode, Option<Schema>) {
        (StatusCode::OK, Some(json_schema!({"type": "object"})))
    }
}

/// A request that the server understands.
pub(super) struct Route {
    /// Method and path.
    pub(super) request: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests make the document"))]
    pub(super) summary: &'static str,
    /// Status codes of its own refusals, and when they come. Those of any request with a name or a body are not here.
    pub(super) refusals: &'static [(u16, &'static str)],
    serve: MethodRouter<Arc<dyn Daemon>>,
    #[cfg(test)]
    pub(super) body: fn(&mut SchemaGenerator) -> Option<Schema>,
    #[cfg(test)]
    pub(super) answer: fn(&mut SchemaGenerator) -> (StatusCode, Option<Schema>),
}

impl Route {
    fn new<A, H, T>(request: &'static str, summary: &'static str, handler: H) -> Self
    where
        A: Answer,
        H: Handler<T, Arc<dyn Daemon>>,
        T: 'static,
    {
        let (method, _) = Self::parts(request);
        let method = MethodFilter::try_from(method).expect("of HTTP itself");
        Self {
            request,
            summary,
            refusals: &[],
            serve: on(method, handler),
            #[cfg(test)]
            body: |_| None,
            #[cfg(test)]
            answer: A::documented,
        }
    }

    /// Method and path.
    pub(super) fn parts(request: &'static str) -> (Method, &'static str) {
        let parts = request.split_once(' ');
        let (method, path) = parts.expect("written below: method, space, path");
        (method.parse().expect("a method"), path)
    }

    const fn refused(mut self, refusals: &'static [(u16, &'static str)]) -> Self {
        self.refusals = refusals;
        self
    }
}

type Shared = State<Arc<dyn Daemon>>;
/// The name in the path, if the path has one. Handlers get an empty one otherwise.
type Name = Option<Path<String>>;

fn name(path: Name) -> String {
    path.map(|Path(name)| name).unwrap_or_default()
}

/// A request without a body.
fn route<A: Answer + 'static>(
    request: &'static str,
    summary: &'static str,
    handler: fn(&dyn Daemon, &str) -> Result<A, Refusal>,
) -> Route {
    let answer = async move |State(daemon): Shared, path: Name| handler(&*daemon, &name(path));
    Route::new::<A, _, _>(request, summary, answer)
}

/// A request with a body.
fn route_with<B: Body, A: Answer + 'static>(
    request: &'static str,
    summary: &'static str,
    handler: fn(&dyn Daemon, &str, &B) -> Result<A, Refusal>,
) -> Route {
    type Read<B> = Result<axum::Json<B>, JsonRejection>;
    let answer = async move |State(daemon): Shared, path: Name, body: Read<B>| {
        let axum::Json(body) = body.map_err(|rejection| unreadable(&rejection, B::ALLOWED))?;
        handler(&*daemon, &name(path), &body)
    };
    Route {
        #[cfg(test)]
        body: |schemas| Some(schemas.subschema_for::<B>()),
        ..Route::new::<A, _, _>(request, summary, answer)
    }
}

/// All requests of the API.
#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    vec![
        route("GET /v1/status", "The host and its VMs.", status),
        route("GET /v1/vms", "The VMs.", vms),
        route("GET /v1/vms/{name}", "One VM.", vm),
        route_with("PATCH /v1/vms/{name}", "Changes settings of a VM, all of them or none.", set_vm)
            .refused(&[(409, "The host has not got what it takes.")]),
        route("DELETE /v1/vms/{name}", "Ends a VM.", kill),
        route_with("PUT /v1/vms/{name}/balloon", "Sets the size of a balloon by hand, or gives it back to the policy.", set_balloon)
            .refused(&[(409, "No balloon agent is connected.")]),
        route_with("PUT /v1/vms/{name}/unswap", "Has the swapped pages of a VM brought back while memory is free, or no longer.", set_unswap),
        route("GET /v1/vms/{name}/why", "What the policy decided about a VM, and why.", why),
        route("GET /v1/vms/{name}/token", "What a balloon agent of a VM says in its START.", token),
        sharing::estimate(),
        route("GET /v1/pools", "The resource pools, the root first and each after its parent.", pools::all),
        route("GET /v1/pools/{name}", "One resource pool.", pools::one)
            .refused(&[(404, "There is no resource pool of that name.")]),
        route_with("PUT /v1/pools/{name}", "Adds a resource pool.", pools::add)
            .refused(&[(409, "There is one of that name, or the host has not got what it reserves.")]),
        route_with("PATCH /v1/pools/{name}", "Changes settings of a resource pool, all of them or none.", pools::set)
            .refused(&[
                (404, "There is no resource pool of that name."),
                (409, "The host has not got what it reserves, or it has promised more."),
            ]),
        route("DELETE /v1/pools/{name}", "Removes a resource pool in which nothing is.", pools::remove)
            .refused(&[
                (404, "There is no resource pool of that name."),
                (409, "Something is in it, or the configuration file has it."),
            ]),
        route("GET /v1/settings", "All host settings.", settings),
        route("GET /v1/settings/{name}", "One host setting.", setting),
        route_with("PUT /v1/settings/{name}", "Sets a host setting until the host ends.", set_setting),
        route("DELETE /v1/settings/{name}", "Takes away what was set at run time.", reset_setting),
        route("POST /v1/reload", "Reads the configuration file again.", reload).refused(&[
            (409, "The host was started without a configuration file."),
            (422, "The file has a fault; nothing of it is applied."),
        ]),
        route("GET /v1/openapi.json", "This document.", openapi),
    ]
}

/// The requests that are understood, for the answer to any other.
fn understood() -> String {
    let each = routes().into_iter().map(|route| route.request);
    each.collect::<Vec<_>>().join(", ")
}

/// The routes of the API over `daemon`.
pub(super) fn router(daemon: Arc<dyn Daemon>) -> Router {
    let add =
        |router: Router<_>, route: Route| router.route(Route::parts(route.request).1, route.serve);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        // Far below the default of axum: no client decides how much the daemon reads.
        .layer(DefaultBodyLimit::max(REQUEST_BODY_MAX))
        .with_state(daemon)
}

fn status(daemon: &dyn Daemon, _: &str) -> Result<Json<HostStatus>, Refusal> {
    Ok(Json(daemon.status()))
}

fn vms(daemon: &dyn Daemon, _: &str) -> Result<Json<Vec<VmStatus>>, Refusal> {
    Ok(Json(daemon.status().vms))
}

fn vm(daemon: &dyn Daemon, name: &str) -> Result<Json<VmStatus>, Refusal> {
    let found = daemon.vm(name);
    found.map(Json).ok_or_else(|| unknown_vm(daemon, name))
}

fn kill(daemon: &dyn Daemon, name: &str) -> Result<NoContent, Refusal> {
    daemon.kill(name)?;
    Ok(NoContent)
}

fn set_balloon(
    daemon: &dyn Daemon,
    name: &str,
    request: &BalloonRequest,
) -> Result<Json<VmStatus>, Refusal> {
    let target = request.target_bytes.map(whole_pages).transpose()?;
    Ok(Json(daemon.set_balloon(name, target)?))
}

fn set_unswap(
    daemon: &dyn Daemon,
    name: &str,
    request: &UnswapRequest,
) -> Result<Json<VmStatus>, Refusal> {
    Ok(Json(daemon.set_unswap(name, request.pages_per_s)?))
}

fn whole_pages(target: Bytes) -> Result<Pages, Refusal> {
    if target.0.is_multiple_of(PAGE_SIZE as u64) {
        return Ok(target.pages());
    }
    // Not rounded: the status would then tell another size than was asked for.
    Err(Refusal::new(
        StatusCode::BAD_REQUEST,
        format!("target_bytes {} is not a whole number of pages", target.0),
        format!("a multiple of {PAGE_SIZE}, or null"),
    ))
}

fn set_vm(daemon: &dyn Daemon, name: &str, patch: &VmPatch) -> Result<Json<VmStatus>, Refusal> {
    Ok(Json(daemon.set_vm(name, patch)?))
}

fn why(daemon: &dyn Daemon, name: &str) -> Result<Object, Refusal> {
    Ok(Object(Json(daemon.why(name)?).into_response()))
}

fn token(daemon: &dyn Daemon, name: &str) -> Result<Json<AgentToken>, Refusal> {
    Ok(Json(daemon.token(name)?))
}

fn settings(daemon: &dyn Daemon, _: &str) -> Result<Json<Vec<SettingView>>, Refusal> {
    Ok(Json(daemon.settings()))
}

fn setting(daemon: &dyn Daemon, name: &str) -> Result<Json<SettingView>, Refusal> {
    let wanted = Key::find(name).map_err(ControlError::from)?.spec().name;
    let found = daemon.settings().into_iter().find(|s| s.name == wanted);
    Ok(Json(found.expect("the daemon has all settings there are")))
}

fn set_setting(
    daemon: &dyn Daemon,
    name: &str,
    request: &SettingRequest,
) -> Result<Json<SettingView>, Refusal> {
    // As text, so that a value is read in one way wherever it comes from.
    Ok(Json(daemon.set_setting(name, &request.value.to_string())?))
}

fn reset_setting(daemon: &dyn Daemon, name: &str) -> Result<Json<SettingView>, Refusal> {
    Ok(Json(daemon.set_setting(name, DEFAULT)?))
}

fn reload(daemon: &dyn Daemon, _: &str) -> Result<Json<ReloadReport>, Refusal> {
    Ok(Json(daemon.reload()?))
}

fn openapi(_: &dyn Daemon, _: &str) -> Result<Object, Refusal> {
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok(Object((json, OPENAPI).into_response()))
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

fn unknown_vm(daemon: &dyn Daemon, name: &str) -> Refusal {
    let name = name.to_owned();
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
            ControlError::UnknownVm { .. } | ControlError::NoPool(_) => StatusCode::NOT_FOUND,
            ControlError::Setting(SettingError::Unknown { .. }) => StatusCode::NOT_FOUND,
            ControlError::BalloonTooLarge { .. }
            | ControlError::Setting(SettingError::Value { .. })
            | ControlError::VmSettings(_)
            | ControlError::PoolSettings(_)
            | ControlError::Config(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ControlError::NoAgent { .. }
            | ControlError::Surveying
            | ControlError::NoConfig
            | ControlError::PoolExists { .. }
            | ControlError::PoolOccupied { .. }
            | ControlError::PoolInFile { .. } => StatusCode::CONFLICT,
            ControlError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            // The request is right, and the same may succeed later.
            ControlError::NotYet(_) | ControlError::Refused(_) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string(), error.allowed())
    }
}

/// The answer to a body that is not what the request needs.
fn unreadable(rejection: &JsonRejection, allowed: &str) -> Refusal {
    Refusal::new(
        rejection.status(),
        rejection.body_text(),
        format!("Content-Type: application/json and {allowed}, at most {REQUEST_BODY_MAX} bytes"),
    )
}
