//! Requests about resource pools.

use axum::response::NoContent;

use super::json::Json;
use super::{Daemon, Refusal};
use crate::settings::PoolPatch;
use crate::telemetry::PoolStatus;

pub(super) fn all(daemon: &dyn Daemon, _: &str) -> Result<Json<Vec<PoolStatus>>, Refusal> {
    Ok(Json(daemon.pools()))
}

pub(super) fn one(daemon: &dyn Daemon, name: &str) -> Result<Json<PoolStatus>, Refusal> {
    Ok(Json(daemon.pool(name)?))
}

pub(super) fn add(
    daemon: &dyn Daemon,
    name: &str,
    pool: &PoolPatch,
) -> Result<Json<PoolStatus>, Refusal> {
    Ok(Json(daemon.add_pool(name, pool)?))
}

pub(super) fn set(
    daemon: &dyn Daemon,
    name: &str,
    pool: &PoolPatch,
) -> Result<Json<PoolStatus>, Refusal> {
    Ok(Json(daemon.set_pool(name, pool)?))
}

pub(super) fn remove(daemon: &dyn Daemon, name: &str) -> Result<NoContent, Refusal> {
    daemon.remove_pool(name)?;
    Ok(NoContent)
}
