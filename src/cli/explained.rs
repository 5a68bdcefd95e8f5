//! The explanation of a plan for people: what is decided about a VM, from which numbers, and what would
//! change it.

use crate::policy::{
    BalloonBound, Change, Explanation, FairPart, FreeState, Generation, HostPart, Input,
    Mechanisms, MemoryPart, Stuck, Thresholds, Why,
};
use crate::units::Pages;

/// An explanation: a paragraph for each subject, the answer first.
pub(super) fn text(name: &str, why: &Explanation) -> String {
    let paragraphs = [
        answer(name, why),
        memory(&why.memory),
        fairness(why),
        balloon(why),
        swap(why),
        host(&why.host),
        changes(why),
    ];
    paragraphs.join("\n")
}

fn size(pages: Pages) -> String {
    pages.bytes().to_string()
}

/// A line of a paragraph.
fn row(label: &str, value: &str) -> String {
    format!("  {label:<14} {value}\n")
}

/// A reason in a word, as JSON has it.
pub(super) const fn word(why: Why) -> &'static str {
    match why {
        Why::Fits => "fits",
        Why::OverLimit => "over-limit",
        Why::NoShares => "no-shares",
        Why::OverFairPart => "over-fair-part",
        Why::NoBalloon => "no-balloon",
        Why::HostShort => "host-short",
        Why::Ballooned => "ballooned",
        Why::Deflating => "deflating",
    }
}

/// A reason in a sentence.
pub(super) const fn reason(why: Why) -> &'static str {
    match why {
        Why::Fits => "it holds no more than its target; nothing is taken, nothing given back",
        Why::OverLimit => "it is above its limit, which binds even when memory is free",
        Why::NoShares => "it has no shares, so its reservation is its limit",
        Why::OverFairPart => "it is above its fair part, and its balloon is to bring the rest",
        Why::NoBalloon => {
            "it is above its fair part, and no balloon will bring the rest: pages are evicted"
        }
        Why::HostShort => "the host is too short to wait for balloons: pages are evicted",
        Why::Ballooned => "its balloon stands where it is to stand",
        Why::Deflating => "its balloon shrinks, since there is memory for it",
    }
}

/// Why nothing can be done.
pub(super) const fn stuck(stuck: Stuck) -> &'static str {
    match stuck {
        Stuck::NoRoom => "no page can be evicted: swap files and compression caches take no more",
        Stuck::Reserved => "no VM is above its target: reservations and overhead take all there is",
    }
}

/// What a state does.
pub(super) fn balloons_may(state: FreeState, does: Mechanisms) -> String {
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

/// Where the states begin.
pub(super) fn thresholds(generation: Generation, thresholds: &Thresholds) -> String {
    let clear = thresholds
        .clear
        .map(|clear| format!("clear below {}, ", size(clear)));
    let high = thresholds
        .clear
        .map(|_| format!(", high again at {}", size(thresholds.to_high)));
    format!(
        "ESX {generation}: {}soft below {}, hard below {}, low below {}; soft ends at {}{}",
        clear.unwrap_or_default(),
        size(thresholds.soft),
        size(thresholds.hard),
        size(thresholds.low),
        size(thresholds.aim),
        high.unwrap_or_default(),
    )
}

/// A price in pages a share as a size.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a price is not negative, and the cast saturates"
)]
pub(super) fn price(pages_per_share: f64) -> String {
    const BYTES: f64 = 4096.0;
    crate::units::Bytes((pages_per_share * BYTES) as u64).to_string()
}

fn answer(name: &str, why: &Explanation) -> String {
    let plan = &why.plan;
    let held = why.memory.allocation;
    let than = if held > plan.target {
        format!(
            "{} less than it holds",
            size(held.saturating_sub(plan.target))
        )
    } else {
        format!("it holds {}", size(held))
    };
    let mut text = format!("VM {name}: {}\n", reason(plan.why));
    text += &row("target", &format!("{}, {than}", size(plan.target)));
    text += &row(
        "balloon",
        &format!(
            "{}, target {}",
            size(why.memory.ballooned),
            size(plan.balloon_target)
        ),
    );
    let by = match (plan.means.compress, plan.means.swap) {
        (true, true) => ", by sharing, compression and swap",
        (true, false) => ", by sharing and compression",
        (false, true) => ", by sharing and swap",
        (false, false) => "",
    };
    text += &row("evicted now", &format!("{}{by}", size(plan.evict)));
    let waits = match (plan.blocked, why.host.stuck) {
        (false, _) => "no",
        (true, None) => "yes, until it is at its target or the state is better",
        (true, Some(_)) => "with first touches only, because nothing can be evicted",
    };
    text + &row("waits", waits)
}

fn memory(memory: &MemoryPart) -> String {
    let mut text = format!("Where its {} are\n", size(memory.size));
    for (label, pages) in [
        ("resident", memory.resident),
        ("shared", memory.shared),
        ("zero", memory.zero),
        ("compressed", memory.compressed),
        ("swapped", memory.swapped),
        ("ballooned", memory.ballooned),
        ("untouched", memory.untouched),
    ] {
        if pages > Pages(0) {
            text += &row(label, &size(pages));
        }
    }
    let cache = if memory.zip_pages > Pages(0) {
        format!(", {} of it its compression cache", size(memory.zip_pages))
    } else {
        String::new()
    };
    let cost = if memory.backing == memory.allocation {
        String::new()
    } else {
        format!("; {} of host memory, since it shares", size(memory.backing))
    };
    text += &row(
        "holds",
        &format!("{}{cache}{cost}", size(memory.allocation)),
    );
    text + &row(
        "may hold",
        &format!("{} (reserved) to {}", size(memory.min), size(memory.max)),
    )
}

fn fairness(why: &Explanation) -> String {
    let part = &why.fairness;
    let mut text = "What it is worth\n".to_owned();
    text += &row("shares", &part.shares.to_string());
    let active = if part.active_known {
        format!("{}, idle {}", size(part.active), size(part.idle))
    } else {
        "not known yet, so all it holds counts as active".to_owned()
    };
    text += &row("active", &active);
    text += &row("idle tax", &tax(part));
    let ratio = part.shares_per_page.map_or_else(
        || "none, it holds nothing".to_owned(),
        |ratio| {
            format!(
                "{:.2} a MiB, idle memory taxed; who has the fewest loses first",
                ratio * 256.0
            )
        },
    );
    text += &row("its shares buy", &ratio);
    let price = why.host.price.map_or_else(
        || "none, there is enough for what all VMs want".to_owned(),
        |level| format!("a share buys {} of memory in use", price(level)),
    );
    text += &row("price", &price);
    let headroom = if part.headroom > Pages(0) {
        format!(
            ", {} of it headroom for what its balloon took",
            size(part.headroom)
        )
    } else {
        String::new()
    };
    text += &row("demand", &format!("{}{headroom}", size(part.demand)));
    text += &row(
        "entitled to",
        &format!("{}, if it wanted that much", size(part.entitled)),
    );
    text + &row("target", &target(why))
}

fn tax(part: &FairPart) -> String {
    if part.tax_percent == 0 {
        return "none: only shares count".to_owned();
    }
    let cost = 100.0 / f64::from(100_u32.saturating_sub(part.tax_percent).max(1));
    format!(
        "{} % ({}): a page that is idle costs as much as {cost:.4} in use",
        part.tax_percent, part.tax_type
    )
    .replace(".0000 ", " ")
}

/// Which of its bounds the target is at.
fn target(why: &Explanation) -> String {
    let (target, memory) = (why.plan.target, &why.memory);
    let because = if target == memory.max {
        "the most it may hold"
    } else if target == memory.min {
        "its reservation, the least it may have"
    } else if why.host.price.is_some() && target < why.fairness.demand {
        "what its shares buy at this price"
    } else if why.host.price.is_some() {
        "its demand: its shares would buy more"
    } else {
        "its demand, and its part of what is left"
    };
    format!("{}: {because}", size(target))
}

fn balloon(why: &Explanation) -> String {
    let balloon = &why.balloon;
    let bound = match balloon.bound {
        BalloonBound::Host => "Mem.CtlMaxPercent",
        BalloonBound::Vm => "its own balloon-max",
        BalloonBound::Reservation => "its reservation, which no balloon touches",
    };
    let mut text = "Its balloon\n".to_owned();
    let agent = if balloon.agent_alive {
        "alive"
    } else {
        "does not move, so the balloon is not waited for"
    };
    text += &row("agent", agent);
    let capped = if why.plan.balloon_target == balloon.cap && balloon.cap > Pages(0) {
        ", and the target is there"
    } else {
        ""
    };
    text += &row(
        "at most",
        &format!("{}, by {bound}{capped}", size(balloon.cap)),
    );
    if let Some(relief) = balloon.relief {
        text += &row(
            "relief",
            &format!("its guest is short itself: at most {}", size(relief)),
        );
    }
    let plan = &why.plan;
    let way = if plan.balloon_target > why.memory.ballooned {
        "it grows"
    } else if plan.balloon_target < why.memory.ballooned {
        "it shrinks"
    } else {
        "it stands"
    };
    text + &row(
        "target",
        &format!(
            "{}, now {}: {way}",
            size(plan.balloon_target),
            size(why.memory.ballooned)
        ),
    )
}

fn swap(why: &Explanation) -> String {
    let now = Pages(why.memory.compressed.0.saturating_add(why.memory.swapped.0));
    let target = why.plan.swap_target;
    let way = if target > now {
        "the state and its balloon decide whether more is evicted"
    } else if target < now {
        "nothing is brought back but what the guest touches"
    } else {
        "nothing is to be evicted or brought back"
    };
    let numbers = format!("{}, now {}: {way}", size(target), size(now));
    format!("Compressed and swapped\n{}", row("target", &numbers))
}

fn host(host: &HostPart) -> String {
    let mut text = "The host\n".to_owned();
    text += &row(
        "state",
        &format!(
            "{}: {}",
            host.state,
            balloons_may(host.state, host.mechanisms)
        ),
    );
    text += &row("thresholds", &thresholds(host.generation, &host.thresholds));
    let numbers = format!("{} of {}", size(host.free), size(host.budget));
    text += &row("free", &numbers);
    let numbers = format!(
        "{} to all VMs; {} is overhead, sharing saves {}",
        size(host.available),
        size(host.overhead),
        size(host.sharing_saved)
    );
    text += &row("available", &numbers);
    if host.shortfall > Pages(0) {
        let numbers = format!(
            "{}, to leave the state {}",
            size(host.shortfall),
            host.state
        );
        text += &row("missing", &numbers);
    }
    if let Some(why) = host.stuck {
        text += &row("stuck", stuck(why));
    }
    text
}

fn changes(why: &Explanation) -> String {
    if why.changes.is_empty() {
        return "Nothing that can be set would change it.\n".to_owned();
    }
    let sentences = why
        .changes
        .iter()
        .map(|change| format!("  {}\n", sentence(change, why)));
    format!("What would change it\n{}", sentences.collect::<String>())
}

/// One thing that would be different, as a sentence.
fn sentence(change: &Change, why: &Explanation) -> String {
    let part = &why.fairness;
    let with = match change.input {
        Input::Shares(shares) if part.shares == 0 => {
            format!("With {shares} shares, the normal ones")
        }
        Input::Shares(shares) => format!("With {shares} shares, twice as many"),
        Input::Reservation(pages) => format!("With a reservation of {}, all it holds", size(pages)),
        Input::NoTax => "Without the idle memory tax (Mem.IdleTax 0)".to_owned(),
        Input::NoLimit => "Without its limit".to_owned(),
        Input::AgentAlive => "With a balloon agent that moves".to_owned(),
        Input::Free { pages, state } => {
            format!("With {} more free, the state would be {state}", size(pages))
        }
    };
    let plan = &why.plan;
    let mut parts = Vec::new();
    for (name, now, then) in [
        ("target", plan.target, change.target),
        ("balloon target", plan.balloon_target, change.balloon_target),
        ("swap target", plan.swap_target, change.swap_target),
        ("evicted now", plan.evict, change.evict),
    ] {
        if let Some(then) = then {
            parts.push(format!("{name} {} instead of {}", size(then), size(now)));
        }
    }
    match change.blocked {
        Some(true) => parts.push("it would wait".to_owned()),
        Some(false) => parts.push("it would not wait".to_owned()),
        None => {}
    }
    if parts.is_empty() {
        return format!("{with}; nothing else would change.");
    }
    format!("{with}: {}.", parts.join(", "))
}
