//! The terminal, if there is one: a screen that is redrawn in place and a keyboard without Enter.

use std::env;
use std::io::{self, IsTerminal, Stdin, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;

use super::render::Screen;

/// The width if output is no terminal and `COLUMNS` is not set.
const PLAIN_WIDTH: usize = 80;

/// The smallest screen that is drawn for; a smaller window shows a part of it.
const MIN_SIZE: (usize, usize) = (80, 10);

/// Enters the alternate screen and hides the cursor (xterm control sequences).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";

/// Undoes [`ENTER`].
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Standard output, redrawn in place if it is a terminal and appended to if not.
///
/// Dropping it restores the terminal, even when a panic unwinds.
#[derive(Debug)]
pub struct Terminal {
    live: bool,
    colour: bool,
    stdin: Stdin,
    keyboard: Option<Termios>,
}

impl Terminal {
    /// Takes standard output and, if `live` and it is a terminal, switches to a screen of its own.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn open(live: bool) -> io::Result<Self> {
        let is_terminal = io::stdout().is_terminal();
        let mut terminal = Self {
            live: live && is_terminal,
            colour: is_terminal && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
            stdin: io::stdin(),
            keyboard: None,
        };
        if terminal.live {
            terminal.keyboard = listen()?;
            write_out(ENTER)?;
        }
        Ok(terminal)
    }

    /// Whether drawing replaces what was drawn before.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.live
    }

    /// What can be drawn now; the user may have changed the size of the window.
    #[must_use]
    pub fn screen(&self) -> Screen {
        let size = tcgetwinsize(io::stdout()).ok();
        let columns = size.map(|size| usize::from(size.ws_col));
        let width = columns.filter(|&width| width > 0).or_else(columns_wanted);
        let height = size.filter(|size| self.live && size.ws_row > 0);
        Screen {
            width: width.unwrap_or(PLAIN_WIDTH).max(MIN_SIZE.0),
            height: height.map(|size| usize::from(size.ws_row).max(MIN_SIZE.1)),
            colour: self.colour,
        }
    }

    /// Shows `text`, in place of the last one if the terminal is live.
    ///
    /// # Errors
    /// What write(2) says; a reader that went away is [`io::ErrorKind::BrokenPipe`].
    pub fn draw(&mut self, text: &str) -> io::Result<()> {
        if !self.live {
            return write_out(text);
        }
        // Each line clears its own rest. Clearing the whole screen first would make it flicker.
        let lines: String = text
            .lines()
            .map(|line| format!("{line}\x1b[K\r\n"))
            .collect();
        write_out(&format!("\x1b[H{lines}\x1b[J"))
    }

    /// What to wait on for a key; `None` if there is no keyboard.
    #[must_use]
    pub fn keyboard(&self) -> Option<BorrowedFd<'_>> {
        self.keyboard.as_ref().map(|_| self.stdin.as_fd())
    }

    /// Reads what was typed, and says whether there was a `q`. After an end of input there is no keyboard any
    /// more.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn quit_typed(&mut self) -> io::Result<bool> {
        let mut typed = [0; 64];
        // Unbuffered, so that what is left still wakes the next wait.
        let length = nix::unistd::read(&self.stdin, &mut typed)?;
        if length == 0 {
            self.silence();
        }
        Ok(typed
            .iter()
            .take(length)
            .any(|key| matches!(key, b'q' | b'Q')))
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
        self.silence();
        if self.live {
            let _ = write_out(LEAVE);
        }
    }
}

/// Makes keys arrive at once and unseen; Ctrl-C still sends its signal.
fn listen() -> io::Result<Option<Termios>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let before = tcgetattr(io::stdin())?;
    let mut raw = before.clone();
    raw.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO;
    tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
    Ok(Some(before))
}

fn columns_wanted() -> Option<usize> {
    env::var("COLUMNS").ok()?.parse().ok()
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
