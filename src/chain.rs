//! An error with all its causes, in one line: what a peer or a log is told.

use std::error::Error;

/// `error: cause: cause of the cause`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] io::Error);

    #[test]
    fn chain_names_every_cause() {
        let error = Outer(io::Error::other("no key"));
        assert_eq!(super::chain(&error), "cannot open the door: no key");
    }
}
