//! A screen as a picture, for documents.

use std::fs;
use std::io;
use std::path::Path;

use anstyle_svg::Term;
use ratatui::buffer::Buffer;

use super::screen::{Screen, text};

/// The screen that is drawn: a page of the README shows so many characters in a line at a size that can be read.
pub const SCREEN: Screen = Screen {
    width: 110,
    height: None,
    colour: true,
};

/// Writes what was drawn as an SVG picture.
///
/// # Errors
/// What the kernel says about the file.
pub fn write(drawn: &Buffer, path: &Path) -> io::Result<()> {
    let svg = Term::new()
        .palette(anstyle_svg::WIN10_CONSOLE)
        .render_svg(&text(drawn, true));
    fs::write(path, svg)
}
