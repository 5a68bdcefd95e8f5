//! One row for each VM; the wider the screen, the more of the chosen fields.

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::bar;
use super::config::{Config, HOMES};
use super::fields::{Numbers, Unit, VM, place};
use super::header::badness;
use super::pools::{self, Row};
use super::sample::{Sample, VmSample, homes};
use super::words::fit;

/// Width of the column of names.
const NAME_WIDTH: usize = 12;

/// The deepest indentation below resource pools, in steps of two.
const DEEPEST: usize = 2;

/// Width of the column of resource pools.
const POOL_WIDTH: usize = 10;

/// The bar takes what the fields leave, but at least the first and at most the second, so that bars stay comparable.
const BAR: (usize, usize) = (10, 40);

const HEALTH: usize = place(VM, "HEALTH");
const BLOCKED: usize = place(VM, "BLK?");

/// How the table is looked at.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Look {
    /// The VM that the cursor is on.
    pub(super) selected: Option<u32>,
    /// How many of the chosen fields are left out at the left.
    pub(super) skipped: usize,
}

/// The VMs in the order in which they are shown.
pub(super) fn sorted<'a>(sample: &'a Sample, config: &Config) -> Vec<&'a VmSample> {
    let vms = pools::rows(sample, config).into_iter();
    let vms = vms.filter_map(|row| match row {
        Row::Pool(..) => None,
        Row::Vm(_, vm) => Some(vm),
    });
    vms.collect()
}

/// The heading and the rows, of which at most `room` are shown, the selected one among them. None is wider than
/// `width`.
pub(super) fn lines(
    sample: &Sample,
    config: &Config,
    look: Look,
    (width, room): (usize, usize),
) -> Vec<Line<'static>> {
    let columns = Columns::of(config, sample, look.skipped, width);
    let rows = pools::rows(sample, config);
    let is_selected = |row: &Row<'_>| matches!(row, Row::Vm(_, vm) if Some(vm.id) == look.selected);
    let at = rows.iter().position(is_selected);
    let first = at.map_or(0, |at| (at + 1).saturating_sub(room));
    let rows = rows.iter().skip(first).take(room).map(|row| {
        let line = match *row {
            Row::Pool(depth, pool) => {
                let name = indented(depth, &pool.name, "/");
                let line = columns.row(&name, "", &pool.numbers, "");
                line.style(Style::new().add_modifier(Modifier::BOLD))
            }
            Row::Vm(depth, vm) => columns.row(
                &indented(depth, &vm.name, mark(vm)),
                &vm.pool,
                &vm.numbers,
                "-",
            ),
        };
        if is_selected(row) {
            line.style(Style::new().add_modifier(Modifier::REVERSED))
        } else {
            line
        }
    });
    [columns.heading(config)].into_iter().chain(rows).collect()
}

/// What fits.
struct Columns<'a> {
    /// Width of the column of resource pools, which is there if any VM shown is in one.
    pool: usize,
    fields: &'a [usize],
    bar: usize,
}

impl<'a> Columns<'a> {
    fn of(config: &'a Config, sample: &Sample, skipped: usize, width: usize) -> Self {
        // Below its pool, the name of a VM says where it is.
        let pooled = !config.pools && sample.vms.iter().any(|vm| !vm.pool.is_empty());
        let pool = if pooled { POOL_WIDTH } else { 0 };
        let chosen = config.fields.get(skipped..).unwrap_or_default();
        let least = if config.homes { BAR.0 + 1 } else { 0 };
        let mut left = width.saturating_sub(NAME_WIDTH + pool + least);
        let fits = |field: &&usize| {
            let rest = left.checked_sub(VM[**field].width);
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let shown = chosen.iter().take_while(fits).count();
        Self {
            pool,
            fields: &chosen[..shown],
            bar: if config.homes {
                (left + BAR.0).min(BAR.1)
            } else {
                0
            },
        }
    }

    fn heading(&self, config: &Config) -> Line<'static> {
        let style = Style::new().add_modifier(Modifier::BOLD);
        let mut spans = vec![Span::styled(format!("{:NAME_WIDTH$}", "NAME"), style)];
        if self.pool > 0 {
            spans.push(Span::styled(format!("{:1$}", "POOL", self.pool), style));
        }
        for &at in self.fields {
            let field = &VM[at];
            let gap = field.width - field.name.len();
            spans.push(Span::raw(" ".repeat(gap)));
            let sorted = config.sort == Some(at);
            let style = if sorted {
                style.add_modifier(Modifier::UNDERLINED)
            } else {
                style
            };
            spans.push(Span::styled(field.name, style));
        }
        if self.bar > 0 {
            spans.push(Span::styled(format!(" {HOMES}"), style));
        }
        Line::from(spans)
    }

    /// A row of these numbers; `none` stands where there is no number.
    fn row(&self, name: &str, pool: &str, numbers: &Numbers, none: &str) -> Line<'static> {
        let mut spans = vec![Span::raw(format!("{name:NAME_WIDTH$}"))];
        if self.pool > 0 {
            let pool = fit(pool, self.pool - 1);
            spans.push(Span::raw(format!("{pool:0$}", self.pool)));
        }
        for &at in self.fields {
            let (field, number) = (&VM[at], numbers.get(at).copied().flatten());
            let style = if at == HEALTH {
                badness(number, 1.0)
            } else {
                Style::new()
            };
            let text = match number {
                None => none.to_owned(),
                number => field.unit.write(number),
            };
            // A number that is too wide would push the others out of their columns.
            let text = format!("{:>1$}", fit(&text, field.width - 1), field.width);
            spans.push(Span::styled(text, style));
        }
        if self.bar > 0 {
            spans.push(Span::raw(" "));
            spans.extend(bar::bar(&homes(numbers), self.bar));
        }
        Line::from(spans)
    }
}

/// A name below so many pools, cut to its column, with a mark behind it.
fn indented(depth: usize, name: &str, mark: &str) -> String {
    // Deeper down there would be no room for names.
    let indent = "  ".repeat(depth.min(DEEPEST));
    indent.clone() + &fit(name, NAME_WIDTH - indent.len() - mark.len()) + mark
}

/// A `!` if the VM is blocked.
fn mark(vm: &VmSample) -> &'static str {
    let blocked = vm.number(BLOCKED).is_some_and(|blocked| blocked > 0.0);
    if blocked { "!" } else { "" }
}

/// How a field is sorted, in words.
pub(super) fn order(config: &Config) -> String {
    let reversed = if config.reverse { ", reversed" } else { "" };
    let pools = if config.pools { "pool, " } else { "" };
    match config.sort {
        None => format!("{pools}VM number{reversed}"),
        Some(field) => format!("{pools}{}{reversed}", VM[field].name),
    }
}

/// The unit of a field, in brackets, if it has one.
pub(super) fn unit(unit: Unit) -> String {
    match unit.name() {
        "" => String::new(),
        name => format!(" [{name}]"),
    }
}
