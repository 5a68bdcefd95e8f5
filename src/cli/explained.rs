//! The explanation of a plan for people: what was decided about a VM, from which numbers, and what would
//! change the decision.

mod pools;

use super::phrases::{actions, price, reason, size, stuck, thresholds};
use crate::policy::{
    BalloonBound, BalloonPart, Change, Explanation, FairPart, HostPart, Input, MemoryPart,
};
use crate::units::Pages;

/// The text of an explanation: a paragraph for each subject, the answer first.
pub(super) fn text(name: &str, why: &Explanation) -> String {
    let mut paragraphs = vec![
        answer(name, why),
        memory(&why.memory),
        fairness(why),
        pools::text(why),
        balloon(why),
        swap(why),
        host(&why.host),
        changes(why),
    ];
    // Of a VM in no pool there is nothing to tell.
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs.join("\n")
}

/// A paragraph about why pages are not shared.
pub(super) fn sharing(reasons: &[(&str, String)]) -> String {
    let rows = reasons.iter().map(|(reason, text)| row(reason, text));
    "How its pages stand with sharing\n".to_owned() + &rows.collect::<String>()
}

/// A line of a paragraph.
fn row(label: &str, value: &str) -> String {
    format!("  {label:<14} {value}\n")
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
    text += &row(
        "in use",
        &format!(
            "{}, idle {}: {}",
            size(part.in_use),
            size(part.idle),
            part.because
        ),
    );
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
    let cost = format!("{cost:.2}");
    let cost = cost.trim_end_matches('0').trim_end_matches('.');
    format!(
        "{} % ({}): a page that is idle costs as much as {cost} in use",
        part.tax_percent, part.tax_type
    )
}

/// The target, and the bound that it is at.
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
    let agent = match (balloon.agent, balloon.agent_alive, balloon.brings) {
        (false, _, _) => "none, so nothing can be had from a balloon".to_owned(),
        (true, false, _) => "does not move, so the balloon is not waited for".to_owned(),
        (true, true, None) => "alive".to_owned(),
        (true, true, Some(brings)) => format!("alive; brings {} in 10 s at its pace", size(brings)),
    };
    text += &row("agent", &agent);
    if balloon.by_hand.is_none() {
        text += &row("led by", &led_by(balloon));
    }
    if let Some(by_hand) = balloon.by_hand {
        text += &row("set by hand", &size(by_hand));
    }
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

/// The control law, and the numbers that it alone goes by.
fn led_by(balloon: &BalloonPart) -> String {
    let [host, guest] = balloon.stall_us_per_s;
    match balloon.law.as_str() {
        "senpai" => format!(
            "senpai; its threads wait {host} us/s for evicted pages, {guest} us/s for its own swap device"
        ),
        "pid" => "pid; moves from its previous target by what is missing".to_owned(),
        law => law.to_owned(),
    }
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
    text += &row("policy", &host.policy);
    text += &row(
        "state",
        &format!("{}: {}", host.state, actions(host.state, host.mechanisms)),
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

/// One change and its effect, as a sentence.
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
        Input::NoPool => "In no resource pool".to_owned(),
        Input::ScalableShares => "With scalable shares in all resource pools".to_owned(),
        Input::NoPoolLimit => "Without a limit of a resource pool around it".to_owned(),
        Input::AgentAlive => "With a balloon agent that moves".to_owned(),
        Input::NotByHand => "With its balloon left to the policy".to_owned(),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::calculator::{Format, Scenario};

    fn explained(text: &str, name: &str) -> String {
        let format = Format::of(Path::new("-"), text);
        let scenario = Scenario::parse("-", format, text).expect("valid");
        let explained = scenario.explain(name).expect("it is there");
        // As a host sends it: a JSON object that has the name too.
        let mut value = serde_json::to_value(explained).expect("plain data");
        value["name"] = name.into();
        let again = serde_json::from_value(value).expect("what was written");
        super::text(name, &again)
    }

    #[test]
    fn explanation_survives_the_api_and_names_what_binds() {
        let text = "[host]\nmemory = \"1G\"\n[settings]\nMem.IdleTax = 0\n[vm.a]\nsize = \"1G\"\n\
                    limit = \"512M\"\nagent = false\nactive = \"1M\"\n[vm.b]\nsize = \"256M\"\n\
                    shares = 0\nreservation = \"64M\"\nconsumed = 0\nballoon = \"32M\"\n\
                    compressed = 0\n";
        let a = explained(text, "a");
        for part in [
            "VM a: it is above its limit",
            "evicted now    16.0 MiB, by sharing, compression and swap",
            "idle tax       none: only shares count",
            "may hold       0 B (reserved) to 512.0 MiB",
            "agent          none, so nothing can be had",
            "Without its limit: target ",
        ] {
            assert!(a.contains(part), "no `{part}` in:\n{a}");
        }
        let b = explained(text, "b");
        assert!(!b.contains("resource pools"), "it is in none");
        for part in [
            "its shares buy none, it holds nothing",
            "ballooned      32.0 MiB",
            "64.0 MiB: the most it may hold",
            "With 2560 shares, the normal ones: target ",
        ] {
            assert!(b.contains(part), "no `{part}` in:\n{b}");
        }
    }

    /// Four VMs in a pool of high shares beside one in a normal pool.
    #[test]
    fn trap_of_pool_shares_is_told_with_its_numbers_and_the_way_out() {
        let mut text =
            "[host]\nmemory = \"1G\"\n[pool.high]\nshares = \"high\"\n[pool.normal]\n".to_owned();
        for (name, pool) in [
            ("a", "high"),
            ("b", "high"),
            ("c", "high"),
            ("d", "high"),
            ("e", "normal"),
        ] {
            text +=
                &format!("[vm.{name}]\nsize = \"512M\"\npool = \"{pool}\"\nconsumed = \"256M\"\n");
        }
        let a = explained(&text, "a");
        for part in [
            "Its resource pools, from its own to the root",
            "high           4 VMs want 1.00 GiB and may hold ",
            "root           5 VMs want 1.25 GiB",
            "short          root, by ",
            "worth outside  81920 shares",
            "25.0 % of the 20480 shares in high, which counts 327680",
            "With scalable shares in all resource pools: target ",
            "In no resource pool: target ",
        ] {
            assert!(a.contains(part), "no `{part}` in:\n{a}");
        }
    }
}
