//! For tests: what readers of files say of mistakes.

use std::fmt::{Debug, Display};

/// What of a good text is replaced by what, and the place and a part of what is then said. Nothing is replaced at the
/// end of the text.
pub(crate) type Mistake<'a> = (&'a str, &'a str, &'a str, &'a str);

/// Makes each mistake in `good`, and looks at what `read` says of it.
///
/// # Panics
/// The text is not good, a mistake changes nothing, or is told otherwise.
pub(crate) fn make<T: Debug, E: Display>(
    good: &str,
    mistakes: &[Mistake<'_>],
    read: impl Fn(&str) -> Result<T, E>,
) {
    if let Err(error) = read(good) {
        panic!("{error}\n{good}");
    }
    for (from, to, at, part) in mistakes {
        let text = match *from {
            "" => format!("{good}{to}"),
            from => good.replacen(from, to, 1),
        };
        assert_ne!(text, good, "{from}");
        let Err(error) = read(&text) else {
            panic!("not found: {at} {part}\n{text}");
        };
        let error = error.to_string();
        assert!(
            error.contains(at) && error.contains(part),
            "wanted `{at}` and `{part}`:\n{error}\n{text}"
        );
    }
}
