//! A budget that changes, and the promises that are made of it.

use super::super::reserve::reserve;
use super::Admission;
use crate::policy::{Config, HostSnapshot, Promises};
use crate::units::Pages;

impl Admission {
    /// Sets the budget to `want`, or to the least above it that keeps what is promised, at most to `most`. Returns what it
    /// is now, and what is promised of it.
    pub(in crate::host) fn set_budget(&self, want: Pages, most: Pages) -> (Pages, Promises) {
        // Nobody may promise what is about to be gone.
        let _alone = self.promising();
        let config = Config {
            // Kept for guests that write shared pages as long as there is memory for it, which is what is taken here.
            share_reserve_percent: 0,
            ..self.configuration.settings().policy()
        };
        let host = self.with_promises(&self.configuration.resource_pools.list());
        let of = |budget: Pages| {
            let host = HostSnapshot {
                budget,
                ..host.clone()
            };
            Promises::of(&host, &config)
        };
        let keeps = |budget: Pages| of(budget).needs() <= budget;
        let (mut short, mut total) = (want.0.saturating_sub(1), most.0.max(want.0));
        if keeps(want) {
            total = want.0;
        }
        // Of a larger budget more is kept free, but less than it is larger.
        while short + 1 < total {
            let middle = u64::midpoint(short, total);
            match keeps(Pages(middle)) {
                true => total = middle,
                false => short = middle,
            }
        }
        let total = Pages(total);
        if total != self.budget.total() {
            self.budget.set_total(total, reserve(total));
        }
        (total, of(total))
    }
}
