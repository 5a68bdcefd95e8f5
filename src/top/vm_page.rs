//! The page of one VM: its history as far as it was seen, and why it has the memory that it has.

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::bar::{self, MARKS, Mark};
use super::fields::{VM, place};
use super::header::badness;
use super::sample::{Sample, VmSample};
use super::screen::Screen;
use super::words::{fit, wrap};

/// The least width with graphs and reasons side by side.
const BESIDE_FROM: usize = 140;

/// Columns before what is said of a number, in the reasons.
const LABEL: usize = 17;

/// Columns before a graph, for its scale.
const SCALE: usize = 9;

/// Lines of the graph of homes, and of each of the two others, on a screen of 24 lines.
const HEIGHTS: (usize, usize) = (5, 2);

/// Blocks of growing height.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

const HEALTH: usize = place(VM, "HEALTH");
const LATENCY: usize = place(VM, "%LAT");
const FAULTS: usize = place(VM, "FLT/s");
const SIZE: usize = place(VM, "MEMSZ");

/// Fields that are written above the graphs.
const SUMMARY: [usize; 6] = [
    SIZE,
    place(VM, "GRANT"),
    place(VM, "CNSM"),
    place(VM, "SZTGT"),
    place(VM, "MCTLTGT"),
    place(VM, "SWTGT"),
];

/// The lines of the page; the last of the screen stays free.
pub(super) fn lines(
    history: &[Sample],
    id: u32,
    why: Option<&str>,
    scrolled: usize,
    screen: Screen,
) -> Vec<Line<'static>> {
    let now = history.last().and_then(|sample| sample.vm(id));
    let name = history.iter().rev().find_map(|sample| sample.vm(id));
    let title = name.map_or_else(
        || format!("VM {id}"),
        |vm| format!("VM {} (number {id})", vm.name),
    );
    let Some(now) = now else {
        let ended = format!("{title} does not run");
        return vec![Line::styled(ended, Modifier::BOLD)];
    };
    let mut lines = heading(&title, now, screen.width);
    let room = screen.height.unwrap_or(40).saturating_sub(lines.len() + 1);
    if screen.width >= BESIDE_FROM {
        let half = screen.width / 2;
        let reasons = reasons(why, scrolled, screen.width - half);
        // Three captions and a legend.
        let each = room.saturating_sub(4);
        let graphs = graphs(history, id, half - 2, (each / 2, each / 4));
        lines.extend(beside(graphs, reasons, half, room));
        return lines;
    }
    // A taller screen gives half of what it has more to the graphs.
    let more = room.saturating_sub(22) / 2;
    let heights = (HEIGHTS.0 + more / 2, HEIGHTS.1 + more / 4);
    lines.extend(graphs(history, id, screen.width, heights));
    lines.extend(reasons(why, scrolled, screen.width));
    lines
}

fn heading(title: &str, now: &VmSample, width: usize) -> Vec<Line<'static>> {
    let number = now.number(HEALTH);
    let health = Span::styled(VM[HEALTH].unit.write(number), badness(number, 1.0));
    let title = fit(title, width.saturating_sub(12));
    let first = vec![
        Span::styled(title, Modifier::BOLD),
        Span::raw(", health "),
        health,
    ];
    let number = |&at: &usize| format!("{} {}", VM[at].name, VM[at].unit.write(now.number(at)));
    let numbers: Vec<_> = SUMMARY.iter().map(number).collect();
    vec![
        Line::from(first),
        Line::raw(fit(&numbers.join("  "), width)),
    ]
}

/// The three graphs with their captions, `width` wide; `heights` are those of the first and of each other one.
fn graphs(
    history: &[Sample],
    id: u32,
    width: usize,
    heights: (usize, usize),
) -> Vec<Line<'static>> {
    let columns = width.saturating_sub(SCALE);
    let seen = &history[history.len().saturating_sub(columns)..];
    let vms: Vec<_> = seen.iter().map(|sample| sample.vm(id)).collect();
    let mut lines = homes(&vms, heights.0.max(1));
    lines.push(Line::from(bar::legend()));
    let faults = |number: f64| format!("{number:.0}");
    let latency = |number: f64| format!("{number:.1}");
    lines.extend(curve(
        "stalled %, at most",
        &vms,
        LATENCY,
        heights.1.max(1),
        latency,
    ));
    lines.extend(curve(
        "faults/s, at most",
        &vms,
        FAULTS,
        heights.1.max(1),
        faults,
    ));
    lines
}

/// Where its pages were: a column for each sample.
fn homes(vms: &[Option<&VmSample>], height: usize) -> Vec<Line<'static>> {
    let column = |vm: &Option<&VmSample>| -> Vec<&'static Mark> {
        vm.map_or_else(Vec::new, |vm| bar::marks(&vm.homes(), height).collect())
    };
    let columns: Vec<_> = vms.iter().map(column).collect();
    let size = vms.last().copied().flatten().and_then(|vm| vm.number(SIZE));
    let size = VM[SIZE].unit.write(size);
    // What costs memory is at the bottom.
    let rows = (0..height).rev().map(|row| {
        let scale = if row + 1 == height { size.as_str() } else { "" };
        let mut spans = vec![scale_of(scale)];
        spans.extend(columns.iter().map(|column| match column.get(row) {
            Some(mark) => bar::painted(mark.block.to_string(), mark.colour),
            None => Span::raw(" "),
        }));
        Line::from(spans)
    });
    let caption = format!("where its pages were, MiB: {} samples", vms.len());
    [Line::raw(caption)].into_iter().chain(rows).collect()
}

/// A number over time: the greatest fills the height.
fn curve(
    caption: &str,
    vms: &[Option<&VmSample>],
    field: usize,
    height: usize,
    write: fn(f64) -> String,
) -> Vec<Line<'static>> {
    let numbers = vms
        .iter()
        .map(|vm| vm.and_then(|vm| vm.number(field)).unwrap_or(0.0));
    let numbers: Vec<f64> = numbers.collect();
    let most = numbers.iter().copied().fold(0.0, f64::max);
    let now = numbers.last().copied().unwrap_or(0.0);
    let steps = (LEVELS.len() - 1) * height;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of the height"
    )]
    let level = |number: f64| {
        let part = if most > 0.0 { number / most } else { 0.0 };
        // What is not nothing is seen.
        (part * steps as f64).ceil() as usize
    };
    let levels: Vec<usize> = numbers.iter().map(|number| level(*number)).collect();
    let rows = (0..height).rev().map(|row| {
        let block = |level: &usize| LEVELS[level.saturating_sub(row * 8).min(8)];
        let text: String = levels.iter().map(block).collect();
        let scale = if row + 1 == height {
            write(most)
        } else {
            String::new()
        };
        Line::from(vec![scale_of(&scale), bar::painted(text, MARKS[1].colour)])
    });
    let caption = format!("{caption} {}, now {}", write(most), write(now));
    [Line::raw(caption)].into_iter().chain(rows).collect()
}

fn scale_of(text: &str) -> Span<'static> {
    Span::raw(format!("{text:>0$} ", SCALE - 1))
}

fn reasons(why: Option<&str>, scrolled: usize, width: usize) -> Vec<Line<'static>> {
    let why = why.unwrap_or("Why it has the memory that it has is not known.");
    let lines = why.lines().flat_map(|line| {
        let line = line.replace(char::is_control, "?");
        // Headings begin at the left.
        let is_heading = !line.starts_with(' ') && !line.is_empty();
        let style = if is_heading {
            Modifier::BOLD
        } else {
            Modifier::empty()
        };
        let lines = wrap(&line, width, LABEL).into_iter();
        lines.map(move |line| Line::styled(line, Style::new().add_modifier(style)))
    });
    lines.skip(scrolled).collect()
}

/// Puts two texts side by side, the second from column `half` on.
fn beside(
    left: Vec<Line<'static>>,
    right: Vec<Line<'static>>,
    half: usize,
    room: usize,
) -> Vec<Line<'static>> {
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    let rows = (0..room).map(|_| {
        let mut line = left.next().unwrap_or_default();
        let gap = half.saturating_sub(line.width());
        line.spans.push(Span::raw(" ".repeat(gap)));
        if let Some(right) = right.next() {
            let style = right.style;
            let spans = right.spans.into_iter().map(|span| span.patch_style(style));
            line.spans.extend(spans);
        }
        line
    });
    rows.collect()
}
