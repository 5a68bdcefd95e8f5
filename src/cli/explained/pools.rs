//! The resource pools around a VM, for people: which of them is short, and what its shares come to outside.

use std::cmp::Ordering;

use super::row;
use crate::cli::phrases::{price, size};
use crate::policy::{Explanation, LevelPart};
use crate::units::Pages;

/// The resource pools around it: what each may hold, which of them is short, and what its shares are worth outside.
pub(super) fn text(why: &Explanation) -> String {
    if why.levels.len() < 2 {
        return String::new();
    }
    let mut text = "Its resource pools, from its own to the root\n".to_owned();
    for level in &why.levels {
        text += &row(&level.pool, &pool(level));
    }
    // From the root down: what is short further down is short of what it was given there.
    let short = why.levels.iter().rev().find(|level| is_short(level));
    let short = short.map_or_else(
        || "none: all of them have what those in them want".to_owned(),
        |level| {
            let missing = level.plan.demand.saturating_sub(level.plan.target);
            let by = match (level.plan.limited, missing) {
                (true, _) => ", by its limit".to_owned(),
                (false, Pages(0)) => String::new(),
                (false, missing) => format!(", by {}", size(missing)),
            };
            format!("{}{by}", level.pool)
        },
    );
    text += &row("short", &short);
    text + &row("worth outside", &worth_outside(why))
}

const fn is_short(level: &LevelPart) -> bool {
    level.plan.price.is_some() || level.plan.limited
}

fn pool(level: &LevelPart) -> String {
    let plan = &level.plan;
    let bounds = match (level.reservation, level.limit) {
        (Pages(0), None) => String::new(),
        (reserved, None) => format!(", {} reserved", size(reserved)),
        (reserved, Some(limit)) => {
            format!(", {} reserved, limit {}", size(reserved), size(limit))
        }
    };
    let buys = plan.price.map_or_else(
        || "enough for what they want".to_owned(),
        |level| format!("a share buys {} of memory in use", price(level)),
    );
    let wants = match level.vms {
        1 => format!("1 VM wants {}", size(plan.demand)),
        vms => format!("{vms} VMs want {}", size(plan.demand)),
    };
    format!("{wants} and may hold {}{bounds}; {buys}", size(plan.target),)
}

/// What the shares of a VM come to at the root, after each pool around it has divided its own among all in it. That the
/// shares of a pool do not grow with what is in it is a trap: many VMs in a pool of high shares may be worth less than
/// one beside it.
fn worth_outside(why: &Explanation) -> String {
    let own = f64::from(why.fairness.shares);
    let (mut worth, mut text) = (own, String::new());
    for level in why.levels.iter().filter(|level| level.plan.shares > 0) {
        let (of, all) = (f64::from(level.plan.shares), level.plan.inner_shares.max(1));
        #[expect(clippy::cast_precision_loss, reason = "shares are read by people")]
        let part = worth / all as f64;
        worth = part * of;
        text += &format!(
            "{:.1} % of the {} shares in {}, which counts {}; ",
            part * 100.0,
            all,
            level.pool,
            level.plan.shares
        );
    }
    let than = match worth.total_cmp(&own) {
        Ordering::Less => format!("less than the {own} of the same VM in no pool"),
        Ordering::Greater => format!("more than the {own} of the same VM in no pool"),
        Ordering::Equal => "as in no pool".to_owned(),
    };
    let why_so = if why.levels.iter().skip(1).any(|level| level.scalable) {
        "; shares of pools grow with what is in them there (scalable-shares)"
    } else {
        "; a pool's shares do not grow with its VMs, unless scalable-shares is on in its parent"
    };
    format!(
        "{worth:.0} shares, {than}: {text}{}",
        why_so.trim_start_matches("; ")
    )
}
