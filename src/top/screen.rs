//! What is drawn on: a grid of characters of the size of the screen, and the same as text.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use ratatui::text::Line;

/// The smallest screen on which everything that matters is seen.
pub(super) const MIN_SIZE: (usize, usize) = (80, 16);

/// The most lines of a screen without a limit: what a grid can hold.
const LINES_MAX: usize = 4000;

/// What a screen can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Characters in a line.
    pub width: usize,
    /// Lines of the screen; `None` for as many as are needed.
    pub height: Option<usize>,
    /// Whether to use colours.
    pub colour: bool,
}

impl Screen {
    /// Whether it is too small to be of use.
    pub(super) fn is_too_small(self) -> bool {
        self.width < MIN_SIZE.0 || self.height.is_some_and(|height| height < MIN_SIZE.1)
    }

    /// Draws lines from the top. What is below the screen is left out.
    pub(super) fn draw(self, lines: &[Line<'_>]) -> Buffer {
        let height = self.height.unwrap_or(lines.len()).min(LINES_MAX);
        let side = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let area = Rect::new(0, 0, side(self.width), side(height));
        let mut buffer = Buffer::empty(area);
        for (line, y) in lines.iter().zip(0..area.height) {
            buffer.set_line(0, y, line, area.width);
        }
        if !self.colour {
            bleach(&mut buffer);
        }
        buffer
    }
}

/// Takes the colours away; emphasis stays.
fn bleach(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        cell.fg = Color::Reset;
        cell.bg = Color::Reset;
    }
}

/// What is drawn, as text; with escape sequences (ECMA-48) for emphasis and colours if `styled`.
pub(super) fn text(buffer: &Buffer, styled: bool) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut style = String::new();
        for x in 0..buffer.area.width {
            let cell = &buffer[(x, y)];
            let now = if styled {
                codes(cell.fg, cell.modifier)
            } else {
                String::new()
            };
            if now != style {
                let reset = if style.is_empty() { "" } else { "\x1b[0m" };
                line += reset;
                if !now.is_empty() {
                    // A String takes any text, so the write cannot fail.
                    let _ = write!(line, "\x1b[{now}m");
                }
                style = now;
            }
            line += cell.symbol();
        }
        if !style.is_empty() {
            line += "\x1b[0m";
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The SGR codes of a style.
fn codes(colour: Color, modifier: Modifier) -> String {
    let modifiers = [
        (Modifier::BOLD, "1"),
        (Modifier::UNDERLINED, "4"),
        (Modifier::REVERSED, "7"),
    ];
    let modifiers = modifiers
        .into_iter()
        .filter(|(one, _)| modifier.contains(*one));
    let colour = match colour {
        Color::Red => Some("31"),
        Color::Green => Some("32"),
        Color::Yellow => Some("33"),
        Color::Blue => Some("34"),
        Color::Magenta => Some("35"),
        Color::Cyan => Some("36"),
        Color::DarkGray => Some("90"),
        _ => None,
    };
    let codes = modifiers.map(|(_, code)| code).chain(colour);
    codes.collect::<Vec<_>>().join(";")
}
