//! What is on the screen, and what keys do to it. Knows neither terminal nor daemon: a key in, an [`Action`] out.

use std::time::Duration;

use memvisor_wire::units::parse_duration;
use ratatui::buffer::Buffer;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::config::{Config, SORT_KEYS};
use super::fields::VM;
use super::keys::Key;
use super::sample::Sample;
use super::screen::{MIN_SIZE, Screen};
use super::table::{self, Look};
use super::words::fit;
use super::{bar, header, help, picker, vm_page};
use crate::units::DURATIONS;

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// The host and its VMs.
    Table,
    /// All fields, to choose and order them.
    Picker,
    /// What keys do and what fields mean.
    Help,
    /// One VM, by its number.
    Vm(u32),
}

/// What a key asks for that the view cannot do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Nothing but to draw again.
    Draw,
    Quit,
    /// Take a sample now; with a recording, go on or pause.
    Refresh,
    /// Write the configuration.
    Save,
    /// Go this many samples on; with a recording only.
    Step(isize),
    /// Replay twice as fast, or half.
    Faster(bool),
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct View {
    pub(super) config: Config,
    pub(super) page: Page,
    look: Look,
    /// The field that the cursor of the chooser is on, as a row of its list.
    picked: usize,
    /// The first line that is shown of a text that may be longer than the screen.
    scrolled: usize,
    /// What is typed as the new interval.
    prompt: Option<String>,
    /// What the last key has led to; shown until the next.
    pub(super) note: Option<String>,
    /// What is replayed and how, at the right of the last line.
    pub(super) progress: Option<String>,
    /// Why the VM of the page has the memory it has: its name and a text.
    pub(super) why: Option<(String, String)>,
}

impl View {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            page: Page::Table,
            look: Look::default(),
            picked: 0,
            scrolled: 0,
            prompt: None,
            note: None,
            progress: None,
            why: None,
        }
    }

    /// The VM that is shown alone.
    pub(super) const fn vm(&self) -> Option<u32> {
        match self.page {
            Page::Vm(id) => Some(id),
            _ => None,
        }
    }

    /// Draws the latest of `history`.
    pub(super) fn draw(&self, history: &[Sample], screen: Screen) -> Buffer {
        let Some(sample) = history.last() else {
            return screen.draw(&[]);
        };
        if screen.is_too_small() {
            return screen.draw(&too_small(screen));
        }
        let mut lines = match self.page {
            Page::Table => self.table(sample, screen),
            Page::Picker => picker::lines(&self.config, self.picked, screen),
            Page::Help => help::lines(self.scrolled, screen),
            Page::Vm(id) => {
                let why = self
                    .why
                    .as_ref()
                    .filter(|(name, _)| sample.vm(id).is_some_and(|vm| vm.name == *name));
                let why = why.map(|(_, text)| text.as_str());
                vm_page::lines(history, id, why, self.scrolled, screen)
            }
        };
        if let Some(height) = screen.height {
            lines.resize(height.saturating_sub(1), Line::default());
            lines.push(self.footer(screen.width));
        }
        screen.draw(&lines)
    }

    fn table(&self, sample: &Sample, screen: Screen) -> Vec<Line<'static>> {
        let mut lines = header::lines(sample, screen);
        lines.push(Line::default());
        // Besides the rows: the heading, the legend and the footer.
        let taken = lines.len() + 3;
        let room = screen
            .height
            .map_or(usize::MAX, |height| height.saturating_sub(taken));
        lines.extend(table::lines(
            sample,
            &self.config,
            self.look,
            (screen.width, room),
        ));
        if let Some(height) = screen.height {
            lines.resize(height.saturating_sub(2), Line::default());
        }
        lines.push(Line::from(bar::legend()));
        lines
    }

    fn footer(&self, width: usize) -> Line<'static> {
        let keys = match self.page {
            Page::Table if self.progress.is_some() => {
                "h help  Space pause  n p step  + - speed  q quit"
            }
            Page::Table => "h help  f fields  o order  Enter VM  s interval  W save  q quit",
            Page::Picker => "Up/Down field  Space show  </> move  Enter sort by  q back",
            Page::Help => "Up/Down, PgUp/PgDn  q back",
            Page::Vm(_) => "Up/Down, PgUp/PgDn: why  Left/Right other VM  q back",
        };
        let left = match (&self.prompt, &self.note) {
            (Some(typed), _) => format!("Interval ({DURATIONS}): {typed}_"),
            (None, Some(note)) => note.clone(),
            (None, None) => keys.to_owned(),
        };
        let right = match (&self.progress, self.page) {
            (Some(progress), _) => progress.clone(),
            (None, Page::Table) => format!("by {}", table::order(&self.config)),
            _ => String::new(),
        };
        let room = width.saturating_sub(right.chars().count() + 1);
        let left = fit(&left, room);
        let style = if self.note.is_some() {
            Modifier::BOLD
        } else {
            Modifier::empty()
        };
        Line::from(vec![
            Span::styled(format!("{left:room$} "), Style::new().add_modifier(style)),
            Span::raw(right),
        ])
    }

    /// Does what a key says; `sample` is what is on the screen.
    pub(super) fn key(&mut self, key: Key, sample: &Sample) -> Action {
        self.note = None;
        if let Some(typed) = self.prompt.take() {
            self.type_interval(typed, key);
            return Action::Draw;
        }
        match (self.page, key) {
            (Page::Table, Key::Char('q' | 'Q')) => return Action::Quit,
            (_, Key::Char('q' | 'Q') | Key::Escape) => self.open(Page::Table),
            (_, Key::Char('h' | '?')) => self.open(Page::Help),
            (_, Key::Char('W')) => return Action::Save,
            (_, Key::Char(' ')) if self.page != Page::Picker => return Action::Refresh,
            (_, Key::Char('n')) => return Action::Step(1),
            (_, Key::Char('p')) => return Action::Step(-1),
            (_, Key::Char('+')) => return Action::Faster(true),
            (_, Key::Char('-')) => return Action::Faster(false),
            (_, Key::Char('s')) => self.prompt = Some(String::new()),
            (Page::Table, key) => self.key_in_table(key, sample),
            (Page::Picker, key) => self.key_in_picker(key),
            (Page::Vm(id), Key::Left | Key::Right) => self.other_vm(id, key == Key::Right, sample),
            (Page::Help | Page::Vm(_), key) => self.scroll(key),
        }
        Action::Draw
    }

    fn open(&mut self, page: Page) {
        (self.page, self.scrolled) = (page, 0);
    }

    fn key_in_table(&mut self, key: Key, sample: &Sample) {
        match key {
            Key::Char('f' | 'o') => self.open(Page::Picker),
            Key::Char('j') | Key::Down => self.select(sample, 1),
            Key::Char('k') | Key::Up => self.select(sample, -1),
            Key::PageDown => self.select(sample, 10),
            Key::PageUp => self.select(sample, -10),
            Key::Home => self.select(sample, isize::MIN),
            Key::End => self.select(sample, isize::MAX),
            Key::Right => {
                let last = self.config.fields.len().saturating_sub(1);
                self.look.skipped = (self.look.skipped + 1).min(last);
            }
            Key::Left => self.look.skipped = self.look.skipped.saturating_sub(1),
            Key::Char('R') => self.config.reverse = !self.config.reverse,
            // Besides the root, which is the host.
            Key::Char('G') if sample.pools.len() < 2 => {
                self.note = Some("no resource pools are known".to_owned());
            }
            Key::Char('G') => self.config.pools = !self.config.pools,
            Key::Enter => {
                let vms = table::sorted(sample, &self.config);
                let there = vms.iter().find(|vm| Some(vm.id) == self.look.selected);
                match there.or(vms.first()) {
                    Some(vm) => self.open(Page::Vm(vm.id)),
                    None => self.note = Some("no VM runs".to_owned()),
                }
            }
            Key::Char(key) => match SORT_KEYS.iter().find(|(sorts, _)| *sorts == key) {
                Some((_, field)) => self.config.sort_by(*field),
                None => self.note = Some(format!("no key `{key}`: h lists the keys")),
            },
            _ => {}
        }
    }

    fn key_in_picker(&mut self, key: Key) {
        let rows = picker::rows(&self.config);
        let last = rows.len() - 1;
        let row = rows.get(self.picked).copied();
        match (key, row) {
            (Key::Char('j') | Key::Down, _) => self.picked = (self.picked + 1).min(last),
            (Key::Char('k') | Key::Up, _) => self.picked = self.picked.saturating_sub(1),
            (Key::PageDown, _) => self.picked = (self.picked + 10).min(last),
            (Key::PageUp, _) => self.picked = self.picked.saturating_sub(10),
            (Key::Home, _) => self.picked = 0,
            (Key::End, _) => self.picked = last,
            (Key::Char(' '), Some(picker::Row::Field(field))) => {
                self.config.toggle(field);
                self.look.skipped = 0;
                self.follow(field);
            }
            (Key::Char(' '), _) => self.config.homes = !self.config.homes,
            (Key::Char(key @ ('<' | '>')), Some(picker::Row::Field(field))) => {
                self.config.shift(field, key == '<');
                self.follow(field);
            }
            (Key::Enter, Some(picker::Row::Field(field))) => {
                self.config.sort_by(Some(field));
                self.note = Some(format!("sorted by {}", table::order(&self.config)));
            }
            (Key::Char('f' | 'o'), _) => self.open(Page::Table),
            _ => {}
        }
    }

    /// Keeps the cursor of the chooser on a field that has moved in the list.
    fn follow(&mut self, field: usize) {
        let rows = picker::rows(&self.config);
        let at = rows
            .iter()
            .position(|row| *row == picker::Row::Field(field));
        self.picked = at.unwrap_or(self.picked);
    }

    fn scroll(&mut self, key: Key) {
        self.scrolled = match key {
            Key::Char('j') | Key::Down => self.scrolled + 1,
            Key::Char('k') | Key::Up => self.scrolled.saturating_sub(1),
            Key::PageDown => self.scrolled + 10,
            Key::PageUp => self.scrolled.saturating_sub(10),
            Key::Home => 0,
            _ => self.scrolled,
        };
        let most = match self.page {
            Page::Help => help::length(),
            // On the narrowest screen a line may take two.
            _ => (self.why.as_ref()).map_or(0, |(_, text)| 2 * text.lines().count()),
        };
        self.scrolled = self.scrolled.min(most.saturating_sub(1));
    }

    /// Moves the cursor among the VMs as they are sorted; at first it is on the first.
    fn select(&mut self, sample: &Sample, by: isize) {
        let vms = table::sorted(sample, &self.config);
        let at = vms.iter().position(|vm| Some(vm.id) == self.look.selected);
        let to = at.map_or(0, |at| at.saturating_add_signed(by));
        let vm = vms.get(to.min(vms.len().saturating_sub(1)));
        self.look.selected = vm.map(|vm| vm.id);
    }

    /// Shows the VM behind this one, or the one before it.
    fn other_vm(&mut self, id: u32, next: bool, sample: &Sample) {
        self.look.selected = Some(id);
        self.select(sample, if next { 1 } else { -1 });
        if let Some(id) = self.look.selected {
            self.open(Page::Vm(id));
        }
    }

    fn type_interval(&mut self, mut typed: String, key: Key) {
        match key {
            Key::Char(key) => typed.push(key),
            Key::Backspace => drop(typed.pop()),
            Key::Escape => return,
            Key::Enter => {
                let time = parse_duration(&typed).filter(|time| *time >= INTERVAL_MIN);
                match time {
                    Some(time) => {
                        self.config.interval = Some(time);
                        self.note = Some(format!("a screen every {time:?}"));
                    }
                    None => {
                        let wrong = format!("`{typed}` is not a time of {INTERVAL_MIN:?} or more");
                        self.note = Some(format!("{wrong}: write {DURATIONS}"));
                    }
                }
                return;
            }
            _ => {}
        }
        self.prompt = Some(typed);
    }
}

/// The shortest interval that can be typed.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

fn too_small(screen: Screen) -> Vec<Line<'static>> {
    let (width, height) = MIN_SIZE;
    let has = format!("{} x {}", screen.width, screen.height.unwrap_or(0));
    [
        "memvisor top".to_owned(),
        format!("needs {width} x {height},"),
        format!("the window has {has}:"),
        "enlarge it; q ends".to_owned(),
    ]
    .map(Line::raw)
    .to_vec()
}

/// What keys do: those of every page, of the table, of the chooser, of a VM, of a recording.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("h ?", "show this help"),
    ("q", "leave a page; in the table, end"),
    (
        "Up Down j k",
        "move the cursor; PgUp and PgDn by ten, Home and End to the ends",
    ),
    (
        "Left Right",
        "show fields further left or right; on the page of a VM, the VM before or behind",
    ),
    (
        "Enter",
        "the page of the VM under the cursor: its history and why it has the memory it has",
    ),
    (
        "f o",
        "choose fields and their order: Space shows or hides one, < and > move it, Enter sorts by it",
    ),
    (
        "N M B C",
        "sort by number, MEMSZ, MCTLSZ, CNSM; once more turns the order round",
    ),
    ("A S Z L F", "sort by %ACTV, SWCUR, ZIP, %LAT, FLT/s"),
    ("R", "turn the order round"),
    (
        "G",
        "VMs below their resource pools, with the sums of each pool; once more without them",
    ),
    ("s", "set the time between two screens"),
    (
        "Space",
        "take a screen now; with a recording, pause or go on",
    ),
    ("n p", "with a recording: the next sample, the one before"),
    ("+ -", "with a recording: twice as fast, half as fast"),
    ("W", "save fields, order and interval for the next start"),
];

/// The name of a field with its unit.
pub(super) fn heading(field: usize) -> String {
    format!("{}{}", VM[field].name, table::unit(VM[field].unit))
}
