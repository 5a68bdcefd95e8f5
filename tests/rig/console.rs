//! What documents show of a terminal: commands, and the lines that they print.
//!
//! In a block whose fence says `console`, each `$ command` must print the lines below it, in this order, among others;
//! `...` in a line stands for any text.

/// A block of a document.
#[derive(Debug)]
pub(crate) struct Fence<'a> {
    /// What stands behind the opening fence.
    pub(crate) info: &'a str,
    /// Its lines, each with its end.
    pub(crate) text: String,
}

/// All blocks of a document, in its order.
pub(crate) fn fences(document: &str) -> Vec<Fence<'_>> {
    let parts = document.split("\n```").skip(1).step_by(2);
    let blocks = parts.filter_map(|block| block.split_once('\n'));
    let fence = |(info, text)| Fence {
        info,
        text: format!("{text}\n"),
    };
    blocks.map(fence).collect()
}

/// The named blocks of a kind, whose fences say `KIND NAME`: their names and texts.
pub(crate) fn blocks<'a>(document: &'a str, kind: &str) -> Vec<(&'a str, String)> {
    let named = fences(document).into_iter();
    let named = named.filter_map(|fence| Some((fence.info.split_once(' ')?, fence.text)));
    named
        .filter(|((found, _), _)| *found == kind)
        .map(|((_, name), text)| (name, text))
        .collect()
}

/// A command of a block.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) line: &'a str,
    /// The lines that it must print.
    pub(crate) wanted: Vec<&'a str>,
}

/// The commands of a block. Lines above the first one are of none: its line is empty.
pub(crate) fn commands(block: &str) -> Vec<Shown<'_>> {
    let mut all = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(line), _) => all.push(Shown {
                line,
                wanted: Vec::new(),
            }),
            (None, Some(Shown { wanted, .. })) => wanted.push(line),
            (None, None) => all.push(Shown {
                line: "",
                wanted: vec![line],
            }),
        }
    }
    all
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
