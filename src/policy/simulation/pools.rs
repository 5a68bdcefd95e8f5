//! Resource pools in the loop: they come to rest at what their shares, limits and reservations say.

use super::*;

fn pool(shares: u32, limit: Option<u64>, reservation: u64) -> ResourcePool {
    ResourcePool {
        shares,
        limit: limit.map(Pages),
        reservation: Pages(reservation),
        ..ResourcePool::default()
    }
}

/// Guests of 10 000 pages that want all of them, each in one of the pools beside each other.
fn host(budget: u64, pools: Vec<ResourcePool>, places: &[usize]) -> Host {
    let guest = |place: &usize| {
        let mut guest = Guest::new(10_000, 1000, 10_000);
        guest.vm.resource_pool = *place;
        guest
    };
    let mut host = Host::new(budget, places.iter().map(guest).collect());
    host.pools = std::iter::once(ResourcePool::default())
        .chain(pools)
        .collect();
    host
}

fn held(host: &Host) -> Vec<u64> {
    host.guests
        .iter()
        .map(|guest| guest.vm.allocation().0)
        .collect()
}

#[test]
fn guests_in_pools_come_to_rest_at_the_shares_of_their_pools() {
    let pools = vec![pool(2000, None, 0), pool(1000, None, 0)];
    let mut host = host(14_000, pools, &[1, 1, 1, 1, 2]);
    host.steps(600);
    host.assert_rests();
    // Two thirds of 12 904 for four, a third for one.
    let held = held(&host);
    assert!(
        held[..4].iter().all(|held| held.abs_diff(2150) <= 2),
        "{held:?}"
    );
    assert!(held[4].abs_diff(4301) <= 2, "{held:?}");
}

#[test]
fn reservation_of_a_pool_is_kept_for_its_guests_together() {
    let pools = vec![pool(1, None, 6000), pool(1000, None, 0)];
    let mut host = host(14_000, pools, &[1, 1, 2]);
    host.steps(600);
    host.assert_rests();
    let held = held(&host);
    assert!(held[0] + held[1] >= 5998, "{held:?}");
}

/// A limit holds at every moment, with memory to spare, and each guest gets what the other leaves.
#[test]
fn guests_within_a_limit_never_hold_more_together_and_share_it_by_what_they_want() {
    for wants in [[10_000, 10_000], [10_000, 1000], [2000, 2000]] {
        let mut host = host(40_000, vec![pool(1000, Some(6000), 0)], &[1, 1, 0]);
        for (guest, wants) in host.guests.iter_mut().zip(wants) {
            guest.wants = wants;
        }
        for round in 0..1500 {
            host.step();
            let held = held(&host);
            assert!(held[0] + held[1] <= 6000, "round {round}: {held:?}");
        }
        let held = held(&host);
        assert_eq!(held[2], 10_000, "nobody else is limited");
        let [first, second] = wants;
        if first + second <= 6000 {
            assert_eq!(held[..2], wants);
        } else {
            assert!(held[0] + held[1] > 5700, "{held:?} of {wants:?}");
            assert!(held[1] >= second.min(2900), "{held:?} of {wants:?}");
        }
    }
}

/// A VM that moves into a full pool takes its part from those there, and gives it back when it leaves.
#[test]
fn guest_that_moves_gets_its_part_where_it_comes_to() {
    let pools = vec![pool(1000, None, 0), pool(1000, None, 0)];
    let mut host = host(14_000, pools, &[1, 1, 2]);
    host.steps(600);
    assert!(held(&host)[2].abs_diff(6452) <= 2, "{:?}", held(&host));
    host.guests[1].vm.resource_pool = 2;
    host.steps(600);
    host.assert_rests();
    let held = held(&host);
    assert!(held[0].abs_diff(6452) <= 2, "{held:?}");
    assert!(
        held[1..].iter().all(|held| held.abs_diff(3226) <= 2),
        "{held:?}"
    );
}
