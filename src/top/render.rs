//! The whole screen as text.

use std::fmt::Write;

use super::{bar, table};
use crate::telemetry::{FreeState, HostStatus, Rates, Reading, Savings, VmRates};
use crate::units::Pages;

/// What a screen can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Characters in a line.
    pub width: usize,
    /// Lines of the screen; `None` without a limit.
    pub height: Option<usize>,
    /// Whether to use colours.
    pub colour: bool,
}

/// Draws `status`. Without `rates`, as with only one snapshot so far, rates are shown as `-`.
#[must_use]
pub fn render(status: &HostStatus, rates: Option<&Rates>, screen: Screen) -> String {
    let mut lines = header(status, rates, screen);
    lines.push(String::new());
    lines.extend(table::rows(status, rates, screen));
    lines.push(bar::legend(screen.colour));
    if let Some(height) = screen.height {
        cut(&mut lines, height);
    }
    lines.push(String::new());
    lines.join("\n")
}

/// One line that says how the host is, for logs and pipes.
#[must_use]
pub fn summary(status: &HostStatus) -> String {
    let savings = Savings::of(status);
    let homes = &status.totals.homes;
    format!(
        "{} VMs, {} of {} MiB used, state {}; saved MiB: {} sharing, {} zero, {} compression, \
         {} swap, {} balloon; {} MiB resident",
        status.vms.len(),
        mib(status.used_pages),
        mib(status.budget_pages),
        status.free_state,
        mib(savings.sharing_pages),
        mib(savings.zero_pages),
        mib(savings.compression_pages),
        mib(savings.swap_pages),
        mib(savings.balloon_pages),
        mib(homes.resident_pages),
    )
}

fn header(status: &HostStatus, rates: Option<&Rates>, screen: Screen) -> Vec<String> {
    let total = rates.map(|rates| &rates.total);
    let mut lines = vec![title(status, screen), health(status, screen)];
    lines.extend(memory(status));
    lines.extend(mechanisms(status, total));
    lines.extend(stalls(total));
    lines
}

fn memory(status: &HostStatus) -> [String; 3] {
    let thresholds = &status.thresholds;
    let over = &status.overcommit;
    let average = |percent: u64| format!("{}.{:02}", percent / 100, percent % 100);
    [
        line(
            "OVERCOM avg",
            &[
                (average(over.one_minute_percent), "1 min"),
                (average(over.five_minutes_percent), "5 min"),
                (average(over.fifteen_minutes_percent), "15 min"),
            ],
        ),
        line(
            "MEM    /MiB",
            &[
                (mib(status.budget_pages), "budget"),
                (mib(status.used_pages), "used"),
                (mib(status.free_pages), "free"),
                (mib(status.metadata_pages), "metadata"),
            ],
        ),
        line(
            "STATES /MiB",
            &[
                (mib(thresholds.high_pages), "high"),
                (mib(thresholds.soft_pages), "soft"),
                (mib(thresholds.hard_pages), "hard"),
                (mib(thresholds.low_pages), "low"),
            ],
        ),
    ]
}

/// What the guests' threads spend a second waiting for.
fn stalls(total: Option<&VmRates>) -> [String; 2] {
    [
        line(
            "STALL  ms/s",
            &[
                (
                    count(total, |total| total.stalls.first_touch_ms_per_s),
                    "touch",
                ),
                (
                    count(total, |total| total.stalls.refill_zip_ms_per_s),
                    "zip",
                ),
                (
                    count(total, |total| total.stalls.refill_swap_ms_per_s),
                    "swap",
                ),
                (
                    count(total, |total| total.stalls.cow_break_ms_per_s),
                    "broken",
                ),
            ],
        ),
        line(
            "WAIT   ms/s",
            &[
                (
                    count(total, |total| total.stalls.blocked_ms_per_s),
                    "blocked",
                ),
                (count(total, |total| total.stalls.memory_ms_per_s), "memory"),
                (count(total, |total| total.stalls.moved_ms_per_s), "moved"),
                (
                    count(total, |total| total.stalls.guest_swap_ms_per_s),
                    "own swap",
                ),
            ],
        ),
    ]
}

fn mechanisms(status: &HostStatus, total: Option<&VmRates>) -> [String; 5] {
    let (totals, homes) = (&status.totals, &status.totals.homes);
    [
        line(
            "PSHARE /MiB",
            &[
                (mib(status.share.shared_pages), "shared"),
                (mib(status.share.frames), "common"),
                (mib(status.share.saved_pages), "saving"),
                (mib(homes.zero_pages), "zero"),
            ],
        ),
        line(
            "SWAP   /MiB",
            &[
                (mib(homes.swapped_pages), "curr"),
                (mib(totals.swap_target_pages), "target"),
                (speed(total, |total| total.swap_in_bytes_per_s), "r/s"),
                (speed(total, |total| total.swap_out_bytes_per_s), "w/s"),
            ],
        ),
        line(
            "ZIP    /MiB",
            &[
                (mib(homes.compressed_pages), "zipped"),
                (mib(Savings::of(status).compression_pages), "saved"),
                (speed(total, |total| total.zip_bytes_per_s), "zip/s"),
                (speed(total, |total| total.unzip_bytes_per_s), "unzip/s"),
            ],
        ),
        line(
            "MEMCTL /MiB",
            &[
                (mib(homes.ballooned_pages), "curr"),
                (mib(totals.balloon_target_pages), "target"),
                (mib(totals.balloon_max_pages), "max"),
            ],
        ),
        line(
            "PAGES    /s",
            &[
                (count(total, |total| total.faults_per_s), "faults"),
                (count(total, |total| total.breaks_per_s), "broken"),
                (count(total, |total| total.scanned_per_s), "scanned"),
                (count(total, |total| total.merged_per_s), "merged"),
            ],
        ),
    ]
}

fn title(status: &HostStatus, screen: Screen) -> String {
    let seconds = status.uptime_ms / 1000;
    let state = bar::paint(
        &status.free_state.to_string(),
        match status.free_state {
            FreeState::High | FreeState::Clear => "32",
            FreeState::Soft => "33",
            FreeState::Hard | FreeState::Low => "1;31",
        },
        screen.colour,
    );
    format!(
        "memvisor {} ({}), up {}:{:02}:{:02}, {} VMs, state {state}",
        plain(&status.version),
        plain(&status.engine),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        status.vms.len(),
    )
}

/// How the host is, and why: as much of it as fits.
fn health(status: &HostStatus, screen: Screen) -> String {
    let (label, health) = ("HEALTH     :", &status.health);
    let word = health.reading.to_string();
    let room = screen.width.saturating_sub(label.len() + word.len() + 3);
    let why: String = plain(&health.why).chars().take(room).collect();
    let colour = match health.reading {
        Reading::Awesome | Reading::Good => "32",
        Reading::Hmm => "33",
        Reading::Oops => "1;31",
    };
    let word = bar::paint(&word, colour, screen.colour);
    format!("{label} {word}: {why}")
}

fn line(label: &str, fields: &[(String, &str)]) -> String {
    let mut text = format!("{label}:");
    for (value, name) in fields {
        // A String takes any text, so the write cannot fail.
        let _ = write!(text, "{value:>8} {name:<8}");
    }
    text.trim_end().to_owned()
}

/// Keeps one line less than `height`, because the cursor needs one, and says how many lines are left out.
fn cut(lines: &mut Vec<String>, height: usize) {
    let room = height.saturating_sub(1).max(1);
    if lines.len() <= room {
        return;
    }
    let left_out = lines.len() - room + 1;
    lines.truncate(room - 1);
    lines.push(format!("... {left_out} more lines: make the window taller"));
}

/// MiB for a table, with one decimal as long as that fits into six characters.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(super) fn mib(pages: Pages) -> String {
    let mib = pages.0 as f64 / 256.0;
    if mib < 9999.95 {
        format!("{mib:.1}")
    } else {
        format!("{mib:.0}")
    }
}

/// Events a second, or `-` while there is no rate.
pub(super) fn count(rates: Option<&VmRates>, rate: fn(&VmRates) -> f64) -> String {
    rates.map_or_else(|| "-".to_owned(), |rates| format!("{:.0}", rate(rates)))
}

/// Bytes a second as MiB/s, or `-` while there is no rate.
pub(super) fn speed(rates: Option<&VmRates>, rate: fn(&VmRates) -> f64) -> String {
    rates.map_or_else(
        || "-".to_owned(),
        |rates| format!("{:.2}", rate(rates) / 1_048_576.0),
    )
}

/// Text from elsewhere without the characters that would command a terminal.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixture;

    fn screen(width: usize) -> Screen {
        Screen {
            width,
            height: None,
            colour: false,
        }
    }

    /// The fixture two seconds later.
    fn snapshots() -> (HostStatus, Rates) {
        let old = fixture::host();
        let mut new = old.clone();
        new.uptime_ms += 2000;
        new.vms[0].faults.first_touch += 4321;
        new.vms[0].faults.cow_break += 10;
        new.vms[0].scan.pages_scanned += 2048;
        new.vms[1].swap.out_bytes.0 += 3 << 20;
        new.vms[0].stalls.first_touch_us += 246_000;
        new.vms[1].stalls.blocked_us += 1_800_000;
        new.vms[1].stalls.stalled_us += 1_500_000;
        let rates = Rates::between(&old, &new);
        (new, rates)
    }

    fn check(width: usize, expected: &str) {
        let (status, rates) = snapshots();
        let drawn = render(&status, Some(&rates), screen(width));
        assert!(drawn == expected, "{width} columns are now\n{drawn}");
    }

    #[test]
    fn screen_of_80_columns_is_as_recorded() {
        check(80, include_str!("snapshots/80.txt"));
    }

    #[test]
    fn screen_of_120_columns_is_as_recorded() {
        check(120, include_str!("snapshots/120.txt"));
    }

    #[test]
    fn screen_is_never_wider_than_asked() {
        let (status, rates) = snapshots();
        for width in [80, 81, 99, 100, 119, 120, 140, 200, 400] {
            let drawn = render(&status, Some(&rates), screen(width));
            let widest = drawn.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width), "{widest:?} of {width}\n{drawn}");
        }
    }

    #[test]
    fn screen_with_more_vms_than_lines_says_so() {
        let mut status = fixture::host();
        for _ in 0..5 {
            status.vms.extend(status.vms.clone());
        }
        let screen = Screen {
            height: Some(24),
            ..screen(80)
        };
        let drawn = render(&status, None, screen);
        assert_eq!(drawn.lines().count(), 23);
        let last = drawn.lines().last().expect("some");
        assert!(last.starts_with("... 57 more lines"), "{last}");
    }

    #[test]
    fn screen_without_rates_shows_a_dash_and_without_colour_no_escape() {
        let drawn = render(&fixture::host(), None, screen(140));
        assert!(drawn.contains("       - r/s"), "{drawn}");
        assert!(!drawn.contains('\x1b'), "{drawn}");
    }

    #[test]
    fn screen_in_colour_reads_the_same_without_the_colours() {
        let (status, rates) = snapshots();
        let coloured = Screen {
            colour: true,
            ..screen(120)
        };
        let mut drawn = render(&status, Some(&rates), coloured);
        assert!(drawn.contains("state \x1b[33msoft\x1b[0m"), "{drawn}");
        for code in ["0", "1;31", "31", "32", "33", "34", "35", "36", "90"] {
            drawn = drawn.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(drawn, render(&status, Some(&rates), screen(120)));
    }

    #[test]
    fn text_of_a_guest_cannot_command_the_terminal() {
        let mut status = fixture::host();
        status.vms[0].name = "\x1b[2Jx".to_owned();
        let drawn = render(&status, None, screen(80));
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
}
