//! The picture of where a VM's pages are: block characters, in a row for now, in columns for its history.

use ratatui::style::{Color, Style};
use ratatui::text::Span;

/// How a home is drawn.
pub(super) struct Mark {
    home: &'static str,
    pub(super) block: char,
    pub(super) colour: Color,
}

/// In the order of [`Homes::each`](crate::telemetry::Homes::each): the darker the block, the more memory a page costs.
pub(super) const MARKS: [Mark; 7] = [
    mark("resident", '█', Color::Green),
    mark("shared", '▓', Color::Blue),
    mark("compressed", '▒', Color::Yellow),
    mark("zero", '░', Color::Cyan),
    mark("swapped", '▁', Color::Red),
    mark("ballooned", '○', Color::Magenta),
    mark("untouched", '·', Color::DarkGray),
];

const fn mark(home: &'static str, block: char, colour: Color) -> Mark {
    Mark {
        home,
        block,
        colour,
    }
}

/// The marks of `homes` on `cells` cells, the first home first.
pub(super) fn marks(
    homes: &[f64; 7],
    cells: usize,
) -> impl DoubleEndedIterator<Item = &'static Mark> {
    // Pages again: parts of a MiB count.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float becomes the nearest integer that there is"
    )]
    let pages = homes.map(|mib| (mib * 256.0).round() as u64);
    let counts = divide(&pages, cells);
    let runs = MARKS.iter().zip(counts);
    let cells = runs.flat_map(|(mark, count)| std::iter::repeat_n(mark, count));
    cells.collect::<Vec<_>>().into_iter()
}

/// Draws `homes` on `width` characters.
pub(super) fn bar(homes: &[f64; 7], width: usize) -> Vec<Span<'static>> {
    let spans = marks(homes, width).map(|mark| painted(mark.block.to_string(), mark.colour));
    spans.collect()
}

/// Names the blocks.
pub(super) fn legend() -> Vec<Span<'static>> {
    let named = MARKS.iter().enumerate().flat_map(|(at, mark)| {
        let gap = if at == 0 { "" } else { "  " };
        [
            Span::raw(gap),
            painted(mark.block.to_string(), mark.colour),
            Span::raw(format!(" {}", mark.home)),
        ]
    });
    named.collect()
}

/// Text in a colour.
pub(super) fn painted(text: String, colour: Color) -> Span<'static> {
    Span::styled(text, Style::new().fg(colour))
}

/// Divides `cells` in proportion to `parts`, by the largest-remainder method: they add up, and none is off by a whole
/// cell.
fn divide(parts: &[u64; 7], cells: usize) -> [usize; 7] {
    let total = parts
        .iter()
        .map(|part| u128::from(*part))
        .sum::<u128>()
        .max(1);
    let exact = parts.map(|part| u128::from(part) * cells as u128);
    // Each is at most `cells`, so the conversions cannot fail.
    let mut counts = exact.map(|count| usize::try_from(count / total).unwrap_or(cells));
    let mut by_rest: Vec<usize> = (0..parts.len()).collect();
    by_rest.sort_by_key(|&part| std::cmp::Reverse(exact[part] % total));
    let missing = cells.saturating_sub(counts.iter().sum());
    for part in by_rest.into_iter().take(missing) {
        counts[part] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::Homes;

    #[test]
    fn marks_are_in_the_order_of_the_homes() {
        let homes = Homes::default().each().map(|(home, _)| home);
        assert_eq!(MARKS.each_ref().map(|mark| mark.home), homes);
    }

    #[test]
    fn bar_of_known_parts_is_drawn_to_scale() {
        let homes = [5.0, 2.6, 0.0, 0.0, 1.4, 0.0, 1.0];
        let bar = bar(&homes, 10);
        let text: String = bar.iter().map(|span| &*span.content).collect();
        assert_eq!(text, "█████▓▓▓▁·");
        assert_eq!(bar[5].style.fg, Some(Color::Blue));
    }

    proptest! {
        #[test]
        fn divide_fills_the_width_and_is_never_off_by_a_cell(
            parts in prop::array::uniform7(0u64..1 << 40),
            width in 0usize..300,
        ) {
            prop_assume!(parts.iter().sum::<u64>() > 0);
            let cells = divide(&parts, width);
            prop_assert_eq!(cells.iter().sum::<usize>(), width);
            let total = parts.iter().map(|part| u128::from(*part)).sum::<u128>();
            for (part, cells) in parts.iter().zip(cells) {
                let exact = u128::from(*part) * width as u128;
                prop_assert!((cells as u128 * total).abs_diff(exact) < total);
            }
        }
    }
}
