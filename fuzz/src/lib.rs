//! What must hold for every decoder, whatever its input: it does not panic, and what it accepts is decoded to the
//! same again after it was encoded.
//!
//! Random bytes seldom get past the first field. So a check begins with something valid, made from the bytes of
//! the fuzzer, and then changes it a little. `fuzz_targets` runs the checks under libFuzzer, which looks for
//! bytes that reach new code. `tests/fuzz.rs` of memvisor runs them for a fixed number of random inputs.

mod claims;
mod control;
mod laboratory;
mod messages;
mod pages;
mod runs;
mod screens;
mod texts;
mod traces;

use arbitrary::{Result, Unstructured};

/// A check on what can be made from some bytes. An error says that there were not enough bytes.
pub type Check = fn(&mut Unstructured<'_>) -> Result<()>;

/// All checks, by the names of their targets.
pub const CHECKS: [(&str, Check); 13] = [
    ("memory", messages::memory),
    ("channels", messages::channels),
    ("balloon", messages::balloon),
    ("claims", claims::hostile_guest),
    ("payloads", pages::payloads),
    ("config", texts::files),
    ("words", texts::words),
    ("control", control::bodies),
    ("recordings", laboratory::recordings),
    ("scenarios", runs::scenarios),
    ("results", runs::results),
    ("screens", screens::files),
    ("traces", traces::files),
];

/// Runs one check.
///
/// # Panics
/// When the check fails, or there is none of that name.
pub fn run(name: &str, data: &[u8]) {
    let check = CHECKS.iter().find(|(known, _)| *known == name);
    let (_, check) = check.expect("a check of that name");
    // Too few bytes for a check are no failure.
    let _ = check(&mut Unstructured::new(data));
}

/// Numbers at the edges of ranges.
const EDGES: [u32; 8] = [0, 1, 2, 255, 1024, 4096, u32::MAX - 1, u32::MAX];

/// Changes up to four places: a bit, a byte, a word, the length.
fn mutate(u: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    for _ in 0..u.int_in_range(0..=4)? {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = u.choose_index(bytes.len())?;
        match u.int_in_range(0..=5)? {
            0 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
            1 => bytes[at] = u.arbitrary()?,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, u.arbitrary()?),
            4 => drop(bytes.remove(at)),
            _ => {
                let word = u.choose(&EDGES)?.to_le_bytes();
                let at = at & !1;
                for (byte, new) in bytes[at..].iter_mut().zip(word) {
                    *byte = new;
                }
            }
        }
    }
    Ok(())
}

/// A text of at most `max` bytes.
fn text(u: &mut Unstructured<'_>, max: usize) -> Result<String> {
    let text: &str = u.arbitrary()?;
    Ok(text[..text.floor_char_boundary(max)].to_owned())
}
