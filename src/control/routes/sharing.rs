//! The request for what sharing would save, which takes a while.

use axum::extract::State;
use axum::http::StatusCode;
use tokio::task::spawn_blocking;

use super::json::Json;
use super::{Refusal, Route, Shared};
use crate::telemetry::ShareEstimate;

/// The route of the estimate. Its answer is waited for beside the thread of the server, which goes on with other
/// requests.
pub(super) fn estimate() -> Route {
    let answer = async |State(daemon): Shared| {
        let estimate = spawn_blocking(move || daemon.estimate_sharing()).await;
        match estimate {
            Ok(Ok(estimate)) => Ok(Json(estimate)),
            Ok(Err(error)) => Err(Refusal::from(error)),
            // A panic has ended the daemon, so the server is being stopped.
            Err(error) => Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                error.to_string(),
                "another daemon".to_owned(),
            )),
        }
    };
    let request = "GET /v1/share/estimate";
    Route::new::<Json<ShareEstimate>, _, _>(
        request,
        "What sharing would save, estimated from a sample of contents.",
        answer,
    )
    .refused(&[(409, "Somebody else's estimate is being made.")])
}
