//! The terminal, if there is one: a screen that is redrawn in place and a keyboard without Enter.
//!
//! However the program ends, the terminal must be as it was. Dropping [`Terminal`] restores it, after an error, a signal
//! that was waited for, and while a panic unwinds. The message of a panic is written before that, so a hook leaves the
//! screen first: what is written there would vanish with it.

use std::env;
use std::io::{self, IsTerminal, Stdin, Stdout, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::{Hide, Show};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::{TerminalOptions, Viewport};
use rustix::termios::tcgetwinsize;

use super::keys::{Key, keys};
use super::screen::{MIN_SIZE, Screen, text};

/// The widest text that `COLUMNS` can ask for.
const WIDTH_MAX: usize = 1000;

/// Whether the screen is ours, for the hook of panics.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Standard output, redrawn in place if it is a terminal and appended to if not.
#[derive(Debug)]
pub struct Terminal {
    live: Option<Live>,
    colour: bool,
    stdin: Stdin,
    /// How the keyboard was before.
    keyboard: Option<Termios>,
}

/// A screen of our own.
#[derive(Debug)]
struct Live {
    screen: ratatui::Terminal<CrosstermBackend<Stdout>>,
    area: Rect,
}

impl Terminal {
    /// Why a full screen cannot be drawn here; `None` if it can.
    #[must_use]
    pub(super) fn trouble() -> Option<String> {
        if !io::stdout().is_terminal() {
            return Some("standard output is no terminal".to_owned());
        }
        match env::var("TERM") {
            Ok(term) if term != "dumb" && !term.is_empty() => None,
            Ok(term) => Some(format!(
                "the terminal `{term}` (TERM) has no cursor that can be moved"
            )),
            Err(_) => Some("TERM does not say which terminal this is".to_owned()),
        }
    }

    /// Takes standard output and, if `live` and it is a terminal, switches to a screen of its own.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn open(live: bool) -> io::Result<Self> {
        let is_terminal = io::stdout().is_terminal();
        let variable = |name| env::var(name).unwrap_or_default();
        let mut terminal = Self {
            live: None,
            colour: is_terminal && has_colours(&variable("TERM"), &variable("NO_COLOR")),
            stdin: io::stdin(),
            keyboard: None,
        };
        if live && is_terminal {
            terminal.enter()?;
        }
        Ok(terminal)
    }

    /// Whether drawing replaces what was drawn before.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// What can be drawn now; the user may have changed the size of the window.
    #[must_use]
    pub fn screen(&self) -> Screen {
        let size = tcgetwinsize(io::stdout()).ok();
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let known = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        if self.is_live() {
            // A terminal that does not tell its size is taken for the usual one.
            let (width, height) = known.unwrap_or((80, 24));
            return Screen {
                width,
                height: Some(height),
                colour: self.colour,
            };
        }
        let width = known.map(|(width, _)| width).or_else(columns_wanted);
        Screen {
            width: width.unwrap_or(MIN_SIZE.0).clamp(MIN_SIZE.0, WIDTH_MAX),
            height: None,
            colour: self.colour,
        }
    }

    /// Shows what was drawn, in place of the last if the terminal is live.
    ///
    /// # Errors
    /// What write(2) says; a reader that went away is [`io::ErrorKind::BrokenPipe`].
    pub fn draw(&mut self, drawn: &Buffer) -> io::Result<()> {
        let Some(live) = &mut self.live else {
            return write_out(&text(drawn, self.colour));
        };
        if live.area != drawn.area {
            live.area = drawn.area;
            live.screen.resize(drawn.area)?;
        }
        live.screen
            .draw(|frame| frame.buffer_mut().clone_from(drawn))?;
        Ok(())
    }

    /// What to wait on for a key; `None` if there is no keyboard.
    #[must_use]
    pub fn keyboard(&self) -> Option<BorrowedFd<'_>> {
        self.keyboard.as_ref().map(|_| self.stdin.as_fd())
    }

    /// Reads what was typed. After an end of input there is no keyboard any more.
    ///
    /// # Errors
    /// What read(2) says.
    pub(super) fn keys(&mut self) -> io::Result<Vec<Key>> {
        let mut typed = [0; 256];
        // Unbuffered, so that what is left still wakes the next wait.
        let length = nix::unistd::read(&self.stdin, &mut typed)?;
        if length == 0 {
            self.silence();
        }
        Ok(keys(typed.get(..length).unwrap_or_default()))
    }

    /// Reads what was typed, and says whether there was a `q`.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn quit_typed(&mut self) -> io::Result<bool> {
        let keys = self.keys()?;
        Ok(keys.iter().any(|key| matches!(key, Key::Char('q' | 'Q'))))
    }

    /// Gives the terminal back and stops the process, as Ctrl-Z does by itself; takes it again when somebody goes on
    /// with the process.
    ///
    /// # Errors
    /// What the terminal says.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        self.leave();
        raise(Signal::SIGSTOP)?;
        self.enter()
    }

    fn enter(&mut self) -> io::Result<()> {
        self.listen()?;
        leave_before_panics();
        ENTERED.store(true, Ordering::Relaxed);
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        let area = Rect::default();
        let viewport = Viewport::Fixed(area);
        let backend = CrosstermBackend::new(io::stdout());
        let screen = ratatui::Terminal::with_options(backend, TerminalOptions { viewport })?;
        self.live = Some(Live { screen, area });
        Ok(())
    }

    fn leave(&mut self) {
        self.silence();
        self.live = None;
        leave_screen();
    }

    /// Makes keys arrive at once and unseen; Ctrl-C still sends its signal.
    fn listen(&mut self) -> io::Result<()> {
        if !self.stdin.is_terminal() {
            return Ok(());
        }
        let before = tcgetattr(&self.stdin)?;
        let mut raw = before.clone();
        raw.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO;
        tcsetattr(&self.stdin, SetArg::TCSANOW, &raw)?;
        self.keyboard = Some(before);
        Ok(())
    }

    fn silence(&mut self) {
        if let Some(before) = self.keyboard.take() {
            // Errors are ignored: nothing can be done about a terminal that is gone.
            let _ = tcsetattr(&self.stdin, SetArg::TCSAFLUSH, &before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Gives the screen back, if it is ours.
fn leave_screen() {
    if ENTERED.swap(false, Ordering::Relaxed) {
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
    }
}

fn leave_before_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            leave_screen();
            earlier(panic);
        }));
    });
}

/// Whether a terminal shows colours that the user wants to see (<https://no-color.org>).
fn has_colours(term: &str, no_color: &str) -> bool {
    let without = ["dumb", "vt52", "vt100", "vt102", "vt220", "vt320"];
    no_color.is_empty()
        && !term.is_empty()
        && !without.contains(&term)
        && !term.ends_with("-m")
        && !term.ends_with("-mono")
}

fn columns_wanted() -> Option<usize> {
    env::var("COLUMNS").ok()?.parse().ok()
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_have_them_and_users_who_want_them() {
        for (term, no_color, expected) in [
            ("xterm-256color", "", true),
            ("linux", "", true),
            ("xterm-256color", "1", false),
            ("vt100", "", false),
            ("xterm-mono", "", false),
            ("dumb", "", false),
            ("", "", false),
        ] {
            assert_eq!(has_colours(term, no_color), expected, "{term} {no_color}");
        }
    }
}
