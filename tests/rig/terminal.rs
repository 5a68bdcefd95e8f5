//! A pseudo terminal, whose other end is read as a terminal would show it.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};

use super::{PATIENCE, eventually};

/// A side of a terminal, in characters.
fn side(length: u16) -> NonZeroU16 {
    NonZeroU16::new(length).expect("not 0")
}

/// A terminal with a program in it.
pub(crate) struct Terminal {
    pty: Arc<Pty>,
    shown: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Terminal {
    /// Starts a program in `dir` on a terminal of `size` columns and lines; `run` is the runtime directory of the host
    /// that it asks.
    pub(crate) fn run(
        words: &[&str],
        dir: &Path,
        run: &Path,
        size: (u16, u16),
        colour: bool,
    ) -> Self {
        let (pty, pts) = open().expect("a pseudo terminal");
        pty.resize(Size::new(size.1, size.0)).expect("a size");
        let command = Command::new(words[0])
            .args(&words[1..])
            .current_dir(dir)
            .env("MEMVISOR_RUNTIME_DIR", run)
            .env("XDG_CONFIG_HOME", dir.join("config"))
            .env("TERM", "xterm-256color")
            .env("NO_COLOR", if colour { "" } else { "1" })
            .env_remove("MEMVISOR_LOG");
        let child = command
            .spawn(pts)
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let (pty, parser) = (
            Arc::new(pty),
            vt100::Parser::new(side(size.1), side(size.0), 0),
        );
        let shown = Arc::new(Mutex::new(parser));
        let (reader, screen) = (Arc::clone(&pty), Arc::clone(&shown));
        // Ends when nobody has the terminal open any more.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = (&*reader).read(&mut bytes) {
                screen.lock().expect("no panic").process(&bytes[..length]);
            }
        });
        Self { pty, shown, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn text(&self) -> String {
        self.shown.lock().expect("no panic").screen().contents()
    }

    /// Waits until the screen satisfies `met`; returns it.
    #[track_caller]
    pub(crate) fn shows(&self, what: &str, met: impl Fn(&str) -> bool) -> String {
        eventually(what, PATIENCE, || {
            Some(self.text()).filter(|text| met(text))
        })
    }

    pub(crate) fn types(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).expect("typed");
    }

    pub(crate) fn resize(&self, width: u16, height: u16) {
        self.shown
            .lock()
            .expect("no panic")
            .screen_mut()
            .set_size(side(height), side(width));
        self.pty.resize(Size::new(height, width)).expect("a size");
    }

    pub(crate) fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Whether keys are shown and lines are edited, as a shell has it.
    pub(crate) fn is_cooked(&self) -> bool {
        let flags = tcgetattr(&*self.pty).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Waits for the end, after which the terminal must be as before.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let ended = eventually("the program ends", PATIENCE, || {
            self.child.try_wait().expect("ours")
        });
        eventually("the screen is given back", PATIENCE, || {
            let shown = self.shown.lock().expect("no panic");
            let screen = shown.screen();
            (!screen.alternate_screen() && !screen.hide_cursor()).then_some(())
        });
        assert!(self.is_cooked());
        ended
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the screen is\n{}", self.text());
        }
        // It has ended, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
