//! The page on which fields are chosen and ordered.

use ratatui::style::{Modifier, Style};
use ratatui::text::Line;

use super::config::{Config, HOMES};
use super::fields::VM;
use super::screen::Screen;
use super::view::heading;
use super::words::fit;

/// A row of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Row {
    /// A field, as a place in [`VM`].
    Field(usize),
    /// The bar of homes, which is always the last column.
    Homes,
}

/// The shown fields in their order, then the bar, then the fields that are not shown.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let shown = config.fields.iter().copied();
    let hidden = (0..VM.len()).filter(|field| !config.fields.contains(field));
    let shown = shown.map(Row::Field).chain([Row::Homes]);
    shown.chain(hidden.map(Row::Field)).collect()
}

pub(super) fn lines(config: &Config, picked: usize, screen: Screen) -> Vec<Line<'static>> {
    let rows = rows(config);
    // Besides the rows: two lines above, one below.
    let room = screen
        .height
        .map_or(rows.len(), |height| height.saturating_sub(3));
    let first = (picked + 1).saturating_sub(room);
    let title = format!(
        "Fields of VMs: {} of {} shown, in this order; * is the one that sorts",
        config.fields.len(),
        VM.len()
    );
    let mut lines = vec![Line::styled(title, Modifier::BOLD), Line::default()];
    for (at, row) in rows.iter().enumerate().skip(first).take(room) {
        let line = match *row {
            Row::Field(field) => {
                let shown = if config.fields.contains(&field) {
                    'x'
                } else {
                    ' '
                };
                let sorts = if config.sort == Some(field) { '*' } else { ' ' };
                format!("[{shown}]{sorts}{:<16} {}", heading(field), VM[field].about)
            }
            Row::Homes => {
                let shown = if config.homes { 'x' } else { ' ' };
                format!("[{shown}] {HOMES:<16} a bar of where its pages are, always last")
            }
        };
        let style = if at == picked {
            Modifier::REVERSED
        } else {
            Modifier::empty()
        };
        lines.push(Line::styled(
            fit(&line, screen.width),
            Style::new().add_modifier(style),
        ));
    }
    lines
}
