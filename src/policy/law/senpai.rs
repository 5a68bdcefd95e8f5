//! A law like senpai's: takes a little, and looks whether the guest minds.
//!
//! senpai (Meta, part of what they call TMO) sets the limit of a control group in this way, by the time that its threads
//! stand still for memory. Here it is the balloon. The stall of a guest is known exactly: the daemon counts for how long
//! threads wait for pages that it evicted, and the guest tells for how long they waited for its own swap device, which is
//! where a balloon that took too much shows.
//!
//! ```text
//! held    = size - target
//! allowed = Memvisor.SenpaiStall * Memvisor.SenpaiInterval
//! stall   = the stall since the target moved last
//!
//! stall <= allowed for an interval:  target += held * probe * min(1, (allowed / (10 stall))^2)
//! stall >  allowed, in any second:   target -= held * min(1, (stall / (20 allowed))^2)
//! ```
//!
//! The formulas and the numbers 10, 20, 1 % (`Memvisor.SenpaiProbe`) and 6 s are those of `senpai.py`, which has a stall
//! of 10 ms in six seconds as its target. Both grow with the square of how far the stall is from its target: far below
//! it whole probes are taken, near it the law hardly moves, and a guest that stalls for a fifth of a second gets all of
//! its balloon back within one.
//!
//! It asks nobody whether the host is short: it finds out what guests can spare while there is time. Once the host is
//! short, what division takes is taken as by ESX's law, because then somebody has to wait, and the guest chooses better
//! than the host who that is.
//!
//! It takes no further step while the balloon has not brought the previous one. Otherwise a slow agent, whose guest feels
//! nothing, would be asked for ever more.

use super::{Esx, Law, Memory, Seen, Step};
use crate::units::Pages;

/// At this part of the allowed stall, one in so many, a probe is as large as it can be.
const PROBES_AT: u128 = 10;
/// At so many times the allowed stall, all is given back.
const GIVES_BACK_AT: u128 = 20;
/// The time for which stalls are summed before the law gives back, in milliseconds.
const TICK_MS: u64 = 1000;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Senpai;

/// `held * part`, where the part is `(over / under)^2`, at most 1.
fn squared(held: u64, over: u128, under: u128) -> u64 {
    if over >= under {
        return held;
    }
    // Both are below 2^64, so their squares fit; the quotient is in millionths.
    let part = over.saturating_mul(1_000_000) / under.max(1);
    let part = part * part / 1_000_000;
    u64::try_from(u128::from(held) * part / 1_000_000).unwrap_or(held)
}

/// By how much the target is to move, if at all: pages to take, or pages to give back.
enum Move {
    Take(u64),
    Give(u64),
    Stay,
}

fn moves(seen: &Seen<'_>, memory: &Memory, before: Pages) -> Move {
    let config = seen.config;
    let interval = u64::try_from(config.senpai_interval.as_millis()).unwrap_or(u64::MAX);
    let allowed = u128::from(config.senpai_stall_us) * u128::from(interval) / 1000;
    let stall = u128::from(memory.sum.unsigned_abs());
    let held = seen.vm.size.saturating_sub(before).0;
    if memory.waited_ms >= TICK_MS && stall > allowed {
        // At least a page, or a stall just above what is allowed would be forgotten.
        return Move::Give(squared(held, stall, GIVES_BACK_AT * allowed.max(1)).max(1));
    }
    let brought = before.saturating_sub(seen.vm.ballooned) == Pages(0);
    if memory.waited_ms >= interval && stall <= allowed && brought {
        let most = u128::from(held) * u128::from(config.senpai_probe_percent) / 100;
        let most = u64::try_from(most).unwrap_or(held);
        return Move::Take(squared(most, allowed, PROBES_AT * stall.max(1)));
    }
    Move::Stay
}

impl Law for Senpai {
    fn name(&self) -> &'static str {
        "senpai"
    }

    fn about(&self) -> &'static str {
        "takes a little of every guest until its threads wait, as senpai does"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        let vm = seen.vm;
        let before = seen.before(memory);
        let stall = vm.stall_us_per_s.saturating_add(vm.guest_stall_us_per_s);
        let stall = u128::from(stall) * u128::from(seen.elapsed_ms) / 1000;
        let stall = i64::try_from(stall).unwrap_or(i64::MAX);
        memory.sum = memory.sum.max(0).saturating_add(stall);
        memory.waited_ms = memory.waited_ms.saturating_add(seen.elapsed_ms);
        let own = match moves(seen, memory, before) {
            Move::Stay => before,
            moved => {
                (memory.sum, memory.waited_ms) = (0, 0);
                match moved {
                    Move::Take(pages) => Pages(before.0.saturating_add(pages)),
                    Move::Give(pages) => Pages(before.0.saturating_sub(pages)),
                    Move::Stay => before,
                }
            }
        };
        if seen.state.is_short() {
            return Step::at_once(own.max(Esx.step(seen, memory).target));
        }
        Step::at_once(own)
    }
}
