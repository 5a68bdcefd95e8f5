//! Keys as a terminal sends them (xterm, ECMA-48).
//!
//! crossterm reads keys too, but waits for them in a way of its own, in which neither our signals nor the next interval
//! can end the wait, and it never comes back from a terminal that has hung up.

/// What was pressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
}

/// The keys in what was read at once. An escape sequence arrives in one piece; what is unknown is left out.
pub(super) fn keys(typed: &[u8]) -> Vec<Key> {
    let text = String::from_utf8_lossy(typed);
    let mut rest = text.chars().peekable();
    let mut keys = Vec::new();
    while let Some(first) = rest.next() {
        let key = match first {
            '\x1b' if matches!(rest.peek(), Some('[' | 'O')) => {
                rest.next();
                let mut sequence = String::new();
                // Parameters, then the final byte.
                for part in rest.by_ref() {
                    sequence.push(part);
                    if matches!(part, '@'..='~') {
                        break;
                    }
                }
                special(&sequence)
            }
            '\x1b' => Some(Key::Escape),
            '\r' | '\n' => Some(Key::Enter),
            '\x7f' | '\x08' => Some(Key::Backspace),
            key if !key.is_control() => Some(Key::Char(key)),
            _ => None,
        };
        keys.extend(key);
    }
    keys
}

fn special(sequence: &str) -> Option<Key> {
    Some(match sequence {
        "A" => Key::Up,
        "B" => Key::Down,
        "C" => Key::Right,
        "D" => Key::Left,
        "H" | "1~" | "7~" => Key::Home,
        "F" | "4~" | "8~" => Key::End,
        "5~" => Key::PageUp,
        "6~" => Key::PageDown,
        "M" => Key::Enter,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_keys_or_nothing(typed in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(keys(&typed).len() <= typed.len());
        }
    }

    #[test]
    fn keys_of_several_terminals_are_told_apart() {
        use Key::{
            Backspace, Char, Down, End, Enter, Escape, Home, Left, PageDown, PageUp, Right, Up,
        };
        let typed =
            b"q\x1b[A\x1bOB\x1b[C\x1b[D\x1b[5~\x1b[6~\x1b[1~\x1b[F\r\x7f\x1b\xc3\xa4\x1b[99;5u";
        let expected = [
            Char('q'),
            Up,
            Down,
            Right,
            Left,
            PageUp,
            PageDown,
            Home,
            End,
            Enter,
            Backspace,
            Escape,
            Char('ä'),
        ];
        assert_eq!(keys(typed), expected);
    }

    #[test]
    fn sequences_that_are_cut_off_or_unknown_are_no_keys() {
        for typed in [&b"\x1b["[..], b"\x1b[1;5", b"\x01", b"\x1b[200~", b""] {
            assert_eq!(keys(typed), [], "{typed:?}");
        }
    }
}
