//! Text that must fit.

/// Text cut to `room` characters, with a mark where it was cut.
pub(super) fn fit(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let cut: String = text.chars().take(room.saturating_sub(1)).collect();
    cut + "…"
}

/// Text in lines of at most `width` characters, as far as its words allow; all but the first begin with `indent` blanks.
pub(super) fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    // What the text begins with is part of its first word.
    let begin = text.len() - text.trim_start().len();
    let mut line = text[..begin].to_owned();
    let mut is_begun = false;
    for word in text[begin..].split_inclusive(' ') {
        if is_begun && line.chars().count() + word.trim_end().chars().count() > width {
            lines.push(line.trim_end().to_owned());
            line = " ".repeat(indent);
        }
        line += word;
        is_begun = true;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_text_keeps_its_words_and_its_width() {
        let text = "  target         45.3 MiB: what its shares buy";
        let lines = wrap(text, 31, 4);
        assert_eq!(
            lines,
            ["  target         45.3 MiB: what", "    its shares buy"]
        );
        assert_eq!(wrap("", 10, 2), [""]);
        assert_eq!(wrap("unbreakable word", 5, 0), ["unbreakable", "word"]);
    }

    #[test]
    fn text_that_does_not_fit_is_marked() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
    }
}
