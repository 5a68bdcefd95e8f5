//! Tests of whole screens: what keys lead to, as text.

use super::config::Config;
use super::fields::{VM, place};
use super::keys::Key;
use super::sample::tests::{sample, snapshots};
use super::screen::{Screen, text};
use super::view::{Action, Page, View};
use super::*;
use crate::telemetry::fixture;

fn screen(width: usize, height: usize) -> Screen {
    Screen {
        width,
        height: Some(height),
        colour: false,
    }
}

/// A view, the samples that it has seen, and the size of its screen.
struct Shown {
    view: View,
    history: Vec<Sample>,
    screen: Screen,
}

impl Shown {
    fn new(width: usize, height: usize) -> Self {
        Self {
            view: View::new(Config::default()),
            history: vec![sample(0)],
            screen: screen(width, height),
        }
    }

    /// The screen after some keys.
    fn after(&mut self, keys: &[Key]) -> String {
        for key in keys {
            let now = self.history.last().expect("one");
            self.view.key(*key, now);
        }
        self.text()
    }

    fn typed(&mut self, keys: &str) -> String {
        let keys: Vec<_> = keys.chars().map(Key::Char).collect();
        self.after(&keys)
    }

    fn text(&self) -> String {
        let text = text(&self.view.draw(&self.history, self.screen), false);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(self.screen.width), "{widest:?}:\n{text}");
        assert_eq!(Some(text.lines().count()), self.screen.height, "{text}");
        text
    }
}

/// The names of the VMs in their order on the screen.
fn order(text: &str) -> Vec<&str> {
    let rows = text.lines().skip_while(|line| !line.starts_with("NAME"));
    let names = rows
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| ["web", "database-p…!"].contains(name))
        .collect()
}

fn check(shown: &str, expected: &str, name: &str) {
    if std::env::var_os("MEMVISOR_WRITE_DOCS").is_some() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/top/snapshots/");
        std::fs::write(format!("{dir}{name}.txt"), shown).expect("write a snapshot");
        return;
    }
    assert!(shown == expected, "{name} is now\n{shown}");
}

#[test]
fn screen_of_80_columns_and_24_lines_is_as_recorded() {
    check(
        &Shown::new(80, 24).text(),
        include_str!("snapshots/80x24.txt"),
        "80x24",
    );
}

#[test]
fn screen_of_160_columns_and_50_lines_is_as_recorded() {
    check(
        &Shown::new(160, 50).text(),
        include_str!("snapshots/160x50.txt"),
        "160x50",
    );
}

#[test]
fn vms_below_their_pools_are_as_recorded() {
    let mut shown = Shown::new(100, 24);
    let text = shown.typed("G");
    check(&text, include_str!("snapshots/pools.txt"), "pools");
    assert_eq!(order(&text), ["database-p…!", "web"]);
    let text = shown.typed("jGM");
    assert_eq!(order(&text), ["web", "database-p…!"]);
    shown.history[0].pools.clear();
    assert!(shown.typed("G").contains("no resource pools are known"));
}

#[test]
fn page_of_a_vm_is_as_recorded() {
    let mut shown = Shown::new(80, 24);
    shown.history = history();
    shown.view.why = Some((
        "web".to_owned(),
        "VM web: because\n  target         7 MiB\n".to_owned(),
    ));
    let text = shown.after(&[Key::Enter]);
    check(&text, include_str!("snapshots/vm.txt"), "vm");
}

/// A minute in which a VM is given memory, then loses it, and in which the other one ends.
fn history() -> Vec<Sample> {
    let samples = (0..60).map(|second| {
        let mut sample = sample(second);
        let vm = &mut sample.vms[0];
        let resident = (second as f64 * 2.0).min(86.0);
        vm.numbers[place(VM, "RSDNT")] = Some(resident);
        vm.numbers[place(VM, "UNTCH")] = Some(86.0 - resident);
        vm.numbers[place(VM, "FLT/s")] = Some(second as f64 * 30.0);
        vm.numbers[place(VM, "%LAT")] = Some(if second % 10 == 0 { 40.0 } else { 0.0 });
        if second == 59 {
            sample.vms.truncate(1);
        }
        sample
    });
    samples.collect()
}

#[test]
fn every_page_fits_every_screen() {
    for (width, height) in [
        (80, 16),
        (80, 24),
        (81, 17),
        (99, 30),
        (139, 40),
        (140, 41),
        (250, 90),
    ] {
        let mut shown = Shown::new(width, height);
        shown.history = history();
        for keys in [
            &[][..],
            &[Key::Char('f')],
            &[Key::Char('h')],
            &[Key::Escape, Key::Enter],
        ] {
            shown.after(keys);
        }
        shown.view.page = Page::Vm(2);
        assert!(shown.text().contains("does not run"));
    }
}

#[test]
fn keys_sort_and_turn_the_order_round() {
    let mut shown = Shown::new(80, 24);
    assert_eq!(order(&shown.text()), ["web", "database-p…!"]);
    assert_eq!(order(&shown.typed("M")), ["web", "database-p…!"]);
    assert_eq!(order(&shown.typed("M")), ["database-p…!", "web"]);
    let text = shown.typed("L");
    assert_eq!(order(&text), ["database-p…!", "web"], "75 % and 0 %");
    assert!(text.contains("by %LAT"), "{text}");
    assert_eq!(order(&shown.typed("R")), ["web", "database-p…!"]);
    assert_eq!(order(&shown.typed("N")), ["web", "database-p…!"]);
    let text = shown.typed("x");
    assert!(text.contains("no key `x`"), "{text}");
}

#[test]
fn fields_are_chosen_moved_and_sorted_by_in_the_chooser() {
    let mut shown = Shown::new(80, 24);
    let text = shown.typed("f");
    assert!(text.contains("[x] HEALTH"), "{text}");
    // HEALTH away, MEMSZ behind GRANT, then sorted by MEMSZ.
    let text = shown.after(&[
        Key::Char(' '),
        Key::Home,
        Key::Char('>'),
        Key::Enter,
        Key::Enter,
    ]);
    assert!(text.contains("[x]*MEMSZ"), "{text}");
    let text = shown.after(&[Key::Escape]);
    let heading = text
        .lines()
        .find(|line| line.starts_with("NAME"))
        .expect("one");
    let names: Vec<_> = heading.split_whitespace().collect();
    assert_eq!(names[..5], ["NAME", "POOL", "GRANT", "MEMSZ", "CNSM"]);
    assert_eq!(
        order(&text),
        ["database-p…!", "web"],
        "the smallest first:\n{text}"
    );
    // The last one of the list: shown, behind all others.
    let text = shown.after(&[Key::Char('o'), Key::End, Key::Char(' '), Key::Char('o')]);
    assert!(!text.contains("NOMEM"), "{text}");
    let keys = vec![Key::Right; 30];
    let text = shown.after(&keys);
    assert!(text.contains("NOMEM"), "{text}");
    let text = shown.after(&[Key::Char('f'), Key::Home]);
    let rows = super::picker::rows(&shown.view.config);
    let at = rows
        .iter()
        .position(|row| *row == super::picker::Row::Homes)
        .expect("there");
    let keys = vec![Key::Down; at];
    shown.after(&keys);
    let text = [text, shown.after(&[Key::Char(' '), Key::Escape])];
    assert!(!text[1].contains("HOMES"), "{}", text[1]);
}

#[test]
fn interval_is_typed_and_a_wrong_one_refused() {
    let mut shown = Shown::new(80, 24);
    assert!(shown.typed("s2x").contains("Interval"));
    let text = shown.after(&[Key::Enter]);
    assert!(
        text.contains("`2x` is not a time of 100ms or more"),
        "{text}"
    );
    assert_eq!(shown.view.config.interval, None);
    shown.typed("s5");
    shown.after(&[Key::Char('x'), Key::Backspace, Key::Enter]);
    assert_eq!(shown.view.config.interval, Some(Duration::from_secs(5)));
    shown.typed("s7q");
    assert!(shown.after(&[Key::Escape]).contains("h help"));
    assert_eq!(shown.view.config.interval, Some(Duration::from_secs(5)));
}

#[test]
fn cursor_stays_on_its_vm_and_opens_its_page() {
    let mut shown = Shown::new(80, 24);
    shown.after(&[Key::Down, Key::Down, Key::Char('L')]);
    let text = shown.after(&[Key::Enter]);
    assert!(
        text.starts_with("VM database-primary-01 (number 2), health oops"),
        "{text}"
    );
    let text = shown.after(&[Key::Right]);
    assert!(text.starts_with("VM web"), "the next by %LAT:\n{text}");
    let now = sample(0);
    assert_eq!(shown.view.key(Key::Char('q'), &now), Action::Draw);
    assert_eq!(shown.view.page, Page::Table);
    assert_eq!(shown.view.key(Key::Char('q'), &now), Action::Quit);
}

#[test]
fn more_vms_than_lines_are_reached_by_the_cursor() {
    let mut shown = Shown::new(80, 24);
    let vm = shown.history[0].vms[0].clone();
    for id in 3..40 {
        let (mut vm, name) = (vm.clone(), format!("vm{id}"));
        (vm.id, vm.name) = (id, name);
        shown.history[0].vms.push(vm);
    }
    assert!(!shown.text().contains("vm39"));
    let text = shown.after(&[Key::Down, Key::End]);
    assert!(text.contains("vm39") && !text.contains("web"), "{text}");
    shown.screen = screen(80, 60);
    let text = shown.text();
    assert!(text.contains("vm39") && text.contains("web"), "{text}");
}

#[test]
fn screen_that_is_too_small_says_so_and_goes_on_when_enlarged() {
    let mut shown = Shown::new(80, 24);
    shown.screen = screen(60, 24);
    let text = shown.text();
    assert!(
        text.contains("needs 80 x 16") && text.contains("60 x 24"),
        "{text}"
    );
    shown.screen = screen(20, 3);
    assert!(shown.text().contains("needs 80 x 16"));
    shown.screen = screen(80, 16);
    assert!(shown.text().contains("VMKMEM"));
}

#[test]
fn help_names_every_key_and_field() {
    let lines = super::help::lines(0, screen(80, 400));
    let text: Vec<_> = lines.iter().map(ToString::to_string).collect();
    for field in VM {
        assert!(
            text.iter()
                .any(|line| line.starts_with(&format!("  {}", field.name)))
        );
    }
    let mut shown = Shown::new(80, 24);
    shown.typed("h");
    let text = shown.after(&[Key::PageDown; 30]);
    assert!(
        text.lines().next().is_some_and(|line| !line.is_empty()),
        "the last line is left:\n{text}"
    );
}

#[test]
fn text_of_a_screen_has_all_vms_and_no_escape_without_colour() {
    let (mut status, rates) = snapshots();
    for _ in 0..5 {
        status.vms.extend(status.vms.clone());
    }
    let all = Screen {
        height: None,
        ..screen(120, 0)
    };
    let drawn = text(&draw(&status, Some(&rates), all), false);
    assert_eq!(drawn.matches("web").count(), 32, "{drawn}");
    assert!(
        !drawn.contains('\x1b') && !drawn.contains("q quit"),
        "{drawn}"
    );
    assert!(drawn.contains("STALL ms/s"), "{drawn}");
}

#[test]
fn screen_in_colour_reads_the_same_without_the_colours() {
    let (status, rates) = snapshots();
    let coloured = Screen {
        width: 120,
        height: None,
        colour: true,
    };
    let mut drawn = text(&draw(&status, Some(&rates), coloured), true);
    assert!(drawn.contains("\x1b[33msoft\x1b[0m state"), "{drawn}");
    while let Some((before, rest)) = drawn.split_once("\x1b[") {
        let (_, after) = rest.split_once('m').expect("SGR alone");
        drawn = format!("{before}{after}");
    }
    let plain = Screen {
        colour: false,
        ..coloured
    };
    let bare = text(&draw(&status, Some(&rates), plain), false);
    let trimmed: Vec<_> = drawn.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, bare.lines().collect::<Vec<_>>());
}

#[test]
fn text_of_a_guest_cannot_command_the_terminal() {
    let mut status = fixture::host();
    status.vms[0].name = "\x1b[2Jx".to_owned();
    let all = Screen {
        height: None,
        ..screen(80, 0)
    };
    let drawn = text(&draw(&status, None, all), false);
    assert!(
        drawn.contains("?[2Jx") && !drawn.contains('\x1b'),
        "{drawn}"
    );
}

#[test]
fn summary_is_one_line_of_the_savings() {
    assert_eq!(
        summary(&fixture::host()),
        "2 VMs, 211.0 of 256.0 MiB used, state soft; saved MiB: 46.5 sharing, 20.0 zero, \
         5.0 compression, 4.0 swap, 100.0 balloon; 88.0 MiB resident"
    );
}
