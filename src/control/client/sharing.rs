//! What a client asks about sharing.

use hyper::Method;

use super::{Client, ClientError};
use crate::telemetry::ShareEstimate;

impl Client {
    /// What sharing would save. It takes up to some seconds.
    ///
    /// # Errors
    /// [`ClientError::Refused`] while the host estimates for somebody else, else as any.
    pub fn estimate_sharing(&self) -> Result<ShareEstimate, ClientError> {
        self.request(Method::GET, "/v1/share/estimate", None::<&()>)
            .and_then(|answer| answer.decode())
    }
}
