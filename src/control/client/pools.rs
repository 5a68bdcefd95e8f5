//! What a client asks about resource pools.

use hyper::Method;

use super::{Client, ClientError};
use crate::settings::{PoolPatch, PoolSettingsError, check_pool_name};
use crate::telemetry::PoolStatus;

impl Client {
    /// All resource pools, the root first and each after its parent.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pools(&self) -> Result<Vec<PoolStatus>, ClientError> {
        self.request(Method::GET, "/v1/pools", None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// Adds a resource pool.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is one of that name or it does not fit, else as any.
    pub fn add_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ClientError> {
        self.request(Method::PUT, &pool_path(name)?, Some(patch))
            .and_then(|answer| answer.decode())
    }

    /// Changes settings of a resource pool, all of them or none.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such pool or it cannot be so, else as any.
    pub fn set_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ClientError> {
        self.request(Method::PATCH, &pool_path(name)?, Some(patch))
            .and_then(|answer| answer.decode())
    }

    /// Removes a resource pool.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such pool or something is in it, else as any.
    pub fn remove_pool(&self, name: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, &pool_path(name)?, None::<&()>)
            .map(drop)
    }
}

fn pool_path(name: &str) -> Result<String, PoolSettingsError> {
    check_pool_name(name)?;
    Ok(format!("/v1/pools/{name}"))
}
