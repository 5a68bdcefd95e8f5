//! The lines about the host: those of esxtop's memory screen first.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::fields::{HOST, place};
use super::sample::Sample;
use super::screen::Screen;
use super::words::fit;

/// The least height with lines that esxtop does not have.
const ALL_LINES_FROM: usize = 30;

const HEALTH: usize = place(HOST, "health");
const STATE: usize = place(HOST, "state");
const UP: usize = place(HOST, "up");

/// Widths of the names of the first to the fifth number of a line. The longest line takes 80 characters.
const NAME_WIDTHS: [usize; 5] = [7, 7, 6, 5, 0];

/// A line of numbers; each is a place in [`HOST`].
struct NumberLine {
    label: &'static str,
    places: &'static [usize],
}

const fn line(label: &'static str, places: &'static [usize]) -> NumberLine {
    NumberLine { label, places }
}

const ESXTOP: &[NumberLine] = &[
    line(
        "PMEM  /MiB",
        &[
            place(HOST, "total"),
            place(HOST, "vmk"),
            place(HOST, "other"),
            place(HOST, "free"),
        ],
    ),
    line(
        "VMKMEM/MiB",
        &[
            place(HOST, "managed"),
            place(HOST, "minfree"),
            place(HOST, "rsvd"),
            place(HOST, "ursvd"),
            STATE,
        ],
    ),
    line(
        "PSHARE/MiB",
        &[
            place(HOST, "shared"),
            place(HOST, "common"),
            place(HOST, "saving"),
            place(HOST, "zero"),
        ],
    ),
    line(
        "SWAP  /MiB",
        &[
            place(HOST, "curr"),
            place(HOST, "rclmtgt"),
            place(HOST, "r/s"),
            place(HOST, "w/s"),
        ],
    ),
    line(
        "ZIP   /MiB",
        &[
            place(HOST, "zipped"),
            place(HOST, "saved"),
            place(HOST, "zip/s"),
            place(HOST, "unzip/s"),
        ],
    ),
    line(
        "MEMCTL/MiB",
        &[
            place(HOST, "ballooned"),
            place(HOST, "target"),
            place(HOST, "max"),
            place(HOST, "law"),
        ],
    ),
];

const MORE: &[NumberLine] = &[
    line(
        "STATES/MiB",
        &[
            place(HOST, "high"),
            place(HOST, "soft"),
            place(HOST, "hard"),
            place(HOST, "low"),
        ],
    ),
    line(
        "PAGES   /s",
        &[
            place(HOST, "faults"),
            place(HOST, "scanned"),
            place(HOST, "merged"),
            place(HOST, "broken"),
        ],
    ),
    line(
        "STALL ms/s",
        &[
            place(HOST, "touch"),
            place(HOST, "zip"),
            place(HOST, "swap"),
            place(HOST, "copy"),
        ],
    ),
    line(
        "WAIT  ms/s",
        &[
            place(HOST, "blocked"),
            place(HOST, "memory"),
            place(HOST, "moved"),
            place(HOST, "own swap"),
        ],
    ),
];

/// Shown where the kernel measures it.
const PRESSURE: NumberLine = line(
    "PSI      %",
    &[
        place(HOST, "some"),
        place(HOST, "some 1m"),
        place(HOST, "full"),
        place(HOST, "full 1m"),
    ],
);

/// The lines, as many as the screen has room for.
pub(super) fn lines(sample: &Sample, screen: Screen) -> Vec<Line<'static>> {
    let more = if screen.height.is_none_or(|height| height >= ALL_LINES_FROM) {
        MORE
    } else {
        &[]
    };
    let pressure = sample.host(PRESSURE.places[0]).filter(|_| !more.is_empty());
    let more = more.iter().chain(pressure.map(|_| &PRESSURE));
    let numbers = ESXTOP.iter().chain(more).map(|line| line.draw(sample));
    let first = [title(sample, screen.width), health(sample)];
    first.into_iter().chain(numbers).collect()
}

fn title(sample: &Sample, width: usize) -> Line<'static> {
    let average = |name: usize| HOST[name].unit.write(sample.host(name));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the daemon's age; a float becomes the nearest integer that there is"
    )]
    let up = sample.host(UP).unwrap_or(0.0) as u64;
    let rest = format!(
        ", up {}:{:02}:{:02}, {} VM{}; MEM overcommit avg: {}, {}, {}",
        up / 3600,
        up / 60 % 60,
        up % 60,
        sample.vms.len(),
        if sample.vms.len() == 1 { "" } else { "s" },
        average(place(HOST, "1 min")),
        average(place(HOST, "5 min")),
        average(place(HOST, "15 min")),
    );
    let room = width.saturating_sub(rest.chars().count());
    Line::raw(fit(&sample.source, room) + &rest)
}

/// How the host is, and why: as much of it as fits.
fn health(sample: &Sample) -> Line<'static> {
    let number = sample.host(HEALTH);
    let word = Span::styled(HOST[HEALTH].unit.write(number), badness(number, 1.0));
    let why = if sample.why.is_empty() {
        String::new()
    } else {
        format!(": {}", sample.why)
    };
    Line::from(vec![Span::raw("HEALTH    :  "), word, Span::raw(why)])
}

impl NumberLine {
    fn draw(&self, sample: &Sample) -> Line<'static> {
        let mut spans = vec![Span::raw(format!("{}:", self.label))];
        for (&place, width) in self.places.iter().zip(NAME_WIDTHS) {
            let (field, number) = (&HOST[place], sample.host(place));
            let value = field.unit.write(number);
            if place == STATE {
                spans.push(Span::raw(" "));
                spans.push(Span::styled(value, badness(number, 1.0)));
                spans.push(Span::raw(format!(" {}", field.name)));
            } else {
                let name = if field.name == "ballooned" {
                    "curr"
                } else {
                    field.name
                };
                spans.push(Span::raw(format!("{value:>7} {name:<width$}")));
            }
        }
        Line::from(spans)
    }
}

/// How a word is shown that is the worse the greater its number; up to `fine` it is fine.
pub(super) fn badness(number: Option<f64>, fine: f64) -> Style {
    match number {
        Some(number) if number <= fine => Style::new().fg(Color::Green),
        Some(number) if number <= fine + 1.0 => Style::new().fg(Color::Yellow),
        Some(_) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        None => Style::new(),
    }
}
