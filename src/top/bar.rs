//! The picture of where a VM's pages are: one row of block characters.

use crate::telemetry::Homes;

/// How a home is drawn.
struct Mark {
    home: &'static str,
    block: char,
    /// The SGR colour code (ECMA-48).
    colour: &'static str,
}

/// In the order of [`Homes::each`]: the darker the block, the more memory a page costs.
const MARKS: [Mark; 7] = [
    mark("resident", '█', "32"),
    mark("shared", '▓', "34"),
    mark("compressed", '▒', "33"),
    mark("zero", '░', "36"),
    mark("swapped", '▁', "31"),
    mark("ballooned", '○', "35"),
    mark("untouched", '·', "90"),
];

const fn mark(home: &'static str, block: char, colour: &'static str) -> Mark {
    Mark {
        home,
        block,
        colour,
    }
}

/// Draws `homes` on `width` characters.
pub(super) fn bar(homes: &Homes, width: usize, colour: bool) -> String {
    let cells = divide(&homes.each().map(|(_, pages)| pages.0), width);
    let mut text = String::new();
    for (mark, cells) in MARKS.iter().zip(cells) {
        let run = String::from(mark.block).repeat(cells);
        text += &paint(&run, mark.colour, colour && cells > 0);
    }
    text
}

/// Names the blocks.
pub(super) fn legend(colour: bool) -> String {
    let named = |mark: &Mark| {
        let block = paint(&mark.block.to_string(), mark.colour, colour);
        format!("{block} {}", mark.home)
    };
    MARKS.iter().map(named).collect::<Vec<_>>().join("  ")
}

/// Wraps `text` in a colour.
pub(super) fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Divides `width` cells in proportion to `parts`, by the largest-remainder method: the cells add up
/// to `width` and none is off by a whole cell.
fn divide(parts: &[u64; 7], width: usize) -> [usize; 7] {
    let total = u128::from(parts.iter().sum::<u64>().max(1));
    let exact = parts.map(|part| u128::from(part) * width as u128);
    // Each is at most `width`, so the conversions cannot fail.
    let mut cells = exact.map(|cells| usize::try_from(cells / total).unwrap_or(width));
    let mut by_rest: Vec<usize> = (0..parts.len()).collect();
    by_rest.sort_by_key(|&part| std::cmp::Reverse(exact[part] % total));
    let missing = width.saturating_sub(cells.iter().sum());
    for part in by_rest.into_iter().take(missing) {
        cells[part] += 1;
    }
    cells
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Pages;

    #[test]
    fn marks_are_in_the_order_of_the_homes() {
        let homes = Homes::default().each().map(|(home, _)| home);
        assert_eq!(MARKS.each_ref().map(|mark| mark.home), homes);
    }

    #[test]
    fn bar_of_known_parts_is_drawn_to_scale() {
        let homes = Homes {
            resident_pages: Pages(500),
            shared_pages: Pages(260),
            swapped_pages: Pages(140),
            untouched_pages: Pages(100),
            ..Homes::default()
        };
        assert_eq!(bar(&homes, 10, false), "█████▓▓▓▁·");
    }

    #[test]
    fn bar_in_colour_paints_only_what_is_there() {
        let homes = Homes {
            ballooned_pages: Pages(7),
            ..Homes::default()
        };
        assert_eq!(bar(&homes, 3, true), "\x1b[35m○○○\x1b[0m");
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
