//! A guest that jumps about in its memory, as programs with large data do, so that most of its time goes by in finding
//! pages.

use std::time::Instant;

use memvisor_guest_agent::shim::{Memory, Ram};

use super::driven::nanoseconds;
use crate::units::Gfn;

/// Where jumps begin.
const JUMPS: u64 = 0x9e37_79b9_7f4a_7c15;

/// Reads or writes words of random pages; how long all of it took.
pub(super) fn jump(ram: &Ram, words: u32, write: bool) -> u64 {
    let pages = u64::from(ram.pages());
    let (mut state, mut last, mut word) = (JUMPS, 0, [0; 8]);
    let start = Instant::now();
    for _ in 0..words {
        // A step of a linear congruential generator; the upper bits of its state are random enough.
        state = u64::wrapping_add(state.wrapping_mul(6_364_136_223_846_793_005), JUMPS | 1);
        let at = (state >> 33).wrapping_add(last);
        let (gfn, offset) = (Gfn((at % pages) as u32), (state >> 58) as usize * 64);
        ram.read(gfn, offset, &mut word);
        if write {
            ram.write(gfn, offset, &word);
        } else {
            // Where the next one is depends on this one.
            last = u64::from(word[0] & 1);
        }
    }
    nanoseconds(start)
}
