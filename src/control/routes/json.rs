//! Answers in JSON.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The bytes of the latest answer. Who asks again and again gets answers of about one length, and a buffer that grew to
/// it would be copied, and its memory mapped, each time.
static LATEST: AtomicUsize = AtomicUsize::new(0);

/// An answer. axum's own writes to a buffer that is no `Vec`, call by call: of a status of many VMs that would take a
/// tenth of the time.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let length = LATEST.load(Ordering::Relaxed);
        let mut text = Vec::with_capacity(length + length / 8);
        match serde_json::to_writer(&mut text, &self.0) {
            Ok(()) => {
                LATEST.store(text.len(), Ordering::Relaxed);
                ([(header::CONTENT_TYPE, "application/json")], text).into_response()
            }
            // Only a map whose keys are no texts could not be written.
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}
