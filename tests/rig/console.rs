//! Commands in a document, and what they print.
//!
//! Each `$ command` of a block ```` ```console NAME ```` must print the lines below it, in this order, among others;
//! `...` in a line stands for any text.

/// The blocks of a kind in a document: their names and texts.
pub(crate) fn blocks(document: &'static str, kind: &str) -> Vec<(&'static str, String)> {
    let parts = document.split("\n```").skip(1).step_by(2);
    let blocks = parts.filter_map(|block| block.split_once('\n'));
    let named = blocks.filter_map(|(head, text)| Some((head.split_once(' ')?, text)));
    named
        .filter(|((found, _), _)| *found == kind)
        .map(|((_, name), text)| (name, format!("{text}\n")))
        .collect()
}

/// The commands of a block, each with the lines that it must print.
pub(crate) fn commands(block: &str) -> Vec<(String, Vec<String>)> {
    let block = format!("\n{block}");
    let command = |text: &str| {
        let (line, wanted) = text.split_once('\n').unwrap_or((text, ""));
        (line.to_owned(), wanted.lines().map(str::to_owned).collect())
    };
    block.split("\n$ ").skip(1).map(command).collect()
}

/// Whether these lines are among those of the output, in this order.
pub(crate) fn prints(output: &str, wanted: &[&str]) -> Result<(), String> {
    let mut lines = output.lines();
    for line in wanted {
        if !lines.any(|found| matches(found, line)) {
            return Err(format!("no line `{line}` in\n{output}"));
        }
    }
    Ok(())
}

fn matches(found: &str, wanted: &str) -> bool {
    let Some((start, rest)) = wanted.split_once("...") else {
        return found == wanted;
    };
    let (middle, end) = rest.rsplit_once("...").unwrap_or(("", rest));
    let Some(mut found) = found.strip_prefix(start) else {
        return false;
    };
    for part in middle.split("...") {
        match found.split_once(part) {
            Some((_, rest)) => found = rest,
            None => return false,
        }
    }
    found.ends_with(end)
}
