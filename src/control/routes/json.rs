//! Answers in JSON.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

/// The buffer of an answer that has been sent, for the next one. Who asks again and again gets answers of about one
/// length. A new buffer for each would be copied as it grew, and its memory mapped and cleared: for a status of 100 VMs
/// a fifth of the time.
static SPARE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
/// The most bytes that are kept: more than the status of 1000 VMs.
const KEPT: usize = 4 << 20;

fn spare() -> MutexGuard<'static, Vec<u8>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer. axum's own writes to a buffer that is no `Vec`, call by call: of a status of many VMs that would take a
/// tenth of the time.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut text = Text(mem::take(&mut *spare()));
        text.0.clear();
        match serde_json::to_writer(&mut text.0, &self.0) {
            Ok(()) => {
                let json = [(header::CONTENT_TYPE, "application/json")];
                (json, Bytes::from_owner(text)).into_response()
            }
            // Only a map whose keys are no texts could not be written.
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// The text of an answer. Once it is sent, its buffer is the spare one.
struct Text(Vec<u8>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let mut spare = spare();
        // Of two answers at once, the larger buffer stays.
        if self.0.capacity() > spare.capacity() && self.0.capacity() <= KEPT {
            mem::swap(&mut *spare, &mut self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[test]
    fn buffer_of_an_answer_is_the_spare_one_afterwards_unless_it_is_too_large() {
        let keeps = |bytes| {
            drop(Text(Vec::with_capacity(bytes)));
            spare().capacity()
        };
        // Whatever other tests have sent meanwhile.
        assert!((1 << 20..=KEPT).contains(&keeps(1 << 20)));
        assert!((1 << 20..=KEPT).contains(&keeps(KEPT + 1)));
        assert!((1 << 20..=KEPT).contains(&keeps(10)));
    }

    #[test]
    fn answer_holds_nothing_of_the_one_before() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a thread of its own");
        let text = |response: Response| {
            let body = to_bytes(response.into_body(), usize::MAX);
            runtime.block_on(body).expect("a text")
        };
        let long = vec!["long"; 100];
        let expected = serde_json::to_vec(&long).expect("texts");
        assert_eq!(text(Json(long).into_response()), expected);
        assert_eq!(text(Json(1).into_response()), b"1"[..]);
    }
}
