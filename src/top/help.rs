//! The page that says what keys do and what the numbers mean.

use ratatui::style::Modifier;
use ratatui::text::Line;

use super::fields::{Field, HOST, VM};
use super::screen::Screen;
use super::table::unit;
use super::view::KEYS;
use super::words::wrap;

/// Columns before an explanation.
const INDENT: usize = 20;

pub(super) fn lines(scrolled: usize, screen: Screen) -> Vec<Line<'static>> {
    all(screen.width).into_iter().skip(scrolled).collect()
}

/// How many lines there are at most.
pub(super) fn length() -> usize {
    all(super::screen::MIN_SIZE.0).len()
}

fn all(width: usize) -> Vec<Line<'static>> {
    let bold = |text: &'static str| Line::styled(text, Modifier::BOLD);
    let mut lines = vec![bold("memvisor top: keys")];
    for (keys, what) in KEYS {
        lines.extend(entry(keys, what, width));
    }
    for (title, table) in [("Fields of a VM", VM), ("Numbers of the host", HOST)] {
        lines.extend([Line::default(), bold(title)]);
        for field in table {
            lines.extend(entry(&label(field), field.about, width));
        }
    }
    lines
}

fn label(field: &Field) -> String {
    format!("{}{}", field.name, unit(field.unit))
}

/// A name and its explanation, which goes on in further lines if it is too long for one.
fn entry(name: &str, about: &str, width: usize) -> Vec<Line<'static>> {
    let text = format!("  {name:<INDENT$}{about}");
    let lines = wrap(&text, width, INDENT + 2);
    lines.into_iter().map(Line::raw).collect()
}
