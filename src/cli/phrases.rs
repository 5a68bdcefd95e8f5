//! The words for parts of a plan: states, thresholds, prices and reasons.

use crate::policy::{FreeState, Generation, Mechanisms, Stuck, Thresholds, Why};
use crate::units::{Bytes, Pages};

/// A size for people.
pub(super) fn size(pages: Pages) -> String {
    pages.bytes().to_string()
}

/// A reason in one word, the same as in JSON.
pub(super) const fn word(why: Why) -> &'static str {
    match why {
        Why::Fits => "fits",
        Why::OverLimit => "over-limit",
        Why::AtLimit => "at-limit",
        Why::OverPoolLimit => "over-pool-limit",
        Why::AtPoolLimit => "at-pool-limit",
        Why::NoShares => "no-shares",
        Why::OverFairPart => "over-fair-part",
        Why::NoBalloon => "no-balloon",
        Why::HostShort => "host-short",
        Why::ByHand => "by-hand",
        Why::Ballooned => "ballooned",
        Why::Deflating => "deflating",
    }
}

/// A reason in a sentence.
pub(super) const fn reason(why: Why) -> &'static str {
    match why {
        Why::Fits => "it holds no more than its target; nothing is taken, nothing given back",
        Why::OverLimit => "it is above its limit, which binds even when memory is free",
        Why::AtLimit => {
            "it holds all that its limit allows; what it touches next waits until it loses something"
        }
        Why::OverPoolLimit => {
            "it is above its part of its resource pool's limit, which binds even when memory is free"
        }
        Why::AtPoolLimit => {
            "it holds all its part of its resource pool's limit; what it touches next waits for a larger part"
        }
        Why::NoShares => "it has no shares, so its reservation is its limit",
        Why::OverFairPart => "it is above its fair part, and its balloon is to bring the rest",
        Why::NoBalloon => {
            "it is above its fair part, and no balloon will bring the rest: pages are evicted"
        }
        Why::HostShort => "the host is too short to wait for balloons: pages are evicted",
        Why::ByHand => "its balloon is set by hand, and not by the policy",
        Why::Ballooned => "its balloon stands where it is to stand",
        Why::Deflating => "its balloon shrinks, since there is memory for it",
    }
}

/// Why the host is stuck.
pub(super) const fn stuck(stuck: Stuck) -> &'static str {
    match stuck {
        Stuck::NoRoom => "no page can be evicted: swap files and compression caches take no more",
        Stuck::Reserved => "no VM is above its target: reservations and overhead take all there is",
    }
}

/// What the host does in a state.
pub(super) fn actions(state: FreeState, does: Mechanisms) -> String {
    let balloons = match (does.inflate, state <= FreeState::Soft) {
        (true, true) => "balloons follow their targets",
        (true, false) => "balloons grow and do not shrink",
        (false, _) => "balloons stand",
    };
    let mut parts = vec![balloons.to_owned()];
    let evicts = match (does.compress, does.swap) {
        (true, true) => "compressed and swapped",
        (true, false) => "compressed",
        (false, true) => "swapped",
        (false, false) => "",
    };
    if !evicts.is_empty() {
        parts.push(format!("pages above targets are {evicts}"));
    }
    if does.block {
        parts.push("VMs above their targets wait".to_owned());
    }
    parts.join(", ")
}

/// The thresholds at which states begin and end.
pub(super) fn thresholds(generation: Generation, thresholds: &Thresholds) -> String {
    let clear = thresholds
        .clear
        .map(|clear| format!("clear below {}, ", size(clear)));
    let high = thresholds
        .clear
        .map(|_| format!(", high again at {}", size(thresholds.to_high)));
    let reserve = (thresholds.share_reserve > Pages(0)).then(|| {
        format!(
            "; {} of it for writes to shared pages",
            size(thresholds.share_reserve)
        )
    });
    format!(
        "ESX {generation}: {}soft below {}, hard below {}, low below {}; soft ends at {}{}{}",
        clear.unwrap_or_default(),
        size(thresholds.soft),
        size(thresholds.hard),
        size(thresholds.low),
        size(thresholds.aim),
        high.unwrap_or_default(),
        reserve.unwrap_or_default(),
    )
}

/// A price in pages per share, as a size.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a price is not negative, and the cast saturates"
)]
pub(super) fn price(pages_per_share: f64) -> String {
    const BYTES: f64 = 4096.0;
    Bytes((pages_per_share * BYTES) as u64).to_string()
}
