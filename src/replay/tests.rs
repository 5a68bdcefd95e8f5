//! Stories of which it is known what must come out.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::story::{Story, StoryError};
use super::*;
use crate::policy::policies;
use crate::reclaim::victims;
use crate::settings::Profile;
use crate::trace::Writer;
use crate::trace::format::{
    End, Event, HostFacts, Kind, Place, PoolFacts, Pools, Stalls, VmFacts, What,
};
use crate::units::VmId;

/// The least memory that a host takes.
const LEAST: Pages = Pages(1024);

/// A directory with a list of accesses: milliseconds, VMs and pages.
fn listed(accesses: &[(u64, u32, u32)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("list.csv");
    let lines = accesses
        .iter()
        .map(|(ms, vm, gfn)| format!("{},vm{vm},{gfn}\n", ms * 1000));
    let text = "time_us,vm,gfn\n".to_owned() + &lines.collect::<String>();
    fs::write(&file, text).expect("our own directory");
    (dir, file)
}

fn options(memory: Pages) -> Options {
    Options {
        policies: policies::ALL.to_vec(),
        victims: victims::NAMES.to_vec(),
        memory,
        settings: HostSettings::profile(Profile::Lab),
        costs: Costs::default(),
    }
}

fn replayed(story: &Story, memory: Pages) -> Results {
    replay(story, &options(memory)).expect("it fits")
}

/// Touches `pages` pages one after the other, `rounds` times, a millisecond each.
fn sweep(pages: u32, rounds: u32) -> Vec<(u64, u32, u32)> {
    let all = (0..rounds).flat_map(|_| 0..pages);
    (0..).zip(all).map(|(ms, gfn)| (ms, 1, gfn)).collect()
}

#[test]
fn nothing_is_brought_back_where_all_fits() {
    let (_dir, file) = listed(&sweep(500, 3));
    let story = Story::load(&[file]).expect("right");
    let results = replayed(&story, LEAST);
    assert_eq!(results.accesses, 1500);
    for outcome in &results.outcomes {
        assert_eq!((outcome.refaults, outcome.counts.evicted()), (0, 0));
        assert_eq!(outcome.counts.first_touches, 500);
        // At 8 us a page, and some are opened that were sampled.
        let stalled = outcome.stalled_us.expect("it is counted");
        assert!((4000..8000).contains(&stalled), "{stalled} us");
    }
    assert!(results.bounds.iter().all(|bound| bound.refaults == 0));
}

/// Least recently used is the worst that can be done with a sweep: each page leaves just before it is wanted.
#[test]
fn sweep_of_more_than_memory_is_worst_for_lru_and_random_does_better() {
    let (_dir, file) = listed(&sweep(1200, 5));
    let story = Story::load(&[file]).expect("right");
    let results = replayed(&story, LEAST);
    let bound = |name: &str| {
        let found = results.bounds.iter().find(|bound| bound.name == name);
        found.expect("there is one").refaults
    };
    assert_eq!(bound("fair split, LRU"), 4 * 1200);
    let random = results
        .outcomes
        .iter()
        .find(|it| it.victims == victims::RANDOM);
    let random = random.expect("it is a choice").refaults;
    let optimum = bound("optimum");
    assert!(optimum < random && random < 4 * 1200, "{optimum} {random}");
    // What is out of reach is brought in at least once a round.
    assert!(optimum >= 4 * (1200 - 1024));
}

#[test]
fn story_is_replayed_the_same_each_time() {
    let (_dir, file) = listed(&sweep(1500, 3));
    let story = Story::load(&[file]).expect("right");
    let counts = || -> Vec<Counts> {
        let results = replayed(&story, LEAST);
        results.outcomes.iter().map(|it| it.counts).collect()
    };
    assert_eq!(counts(), counts());
}

#[test]
fn vm_that_has_no_room_for_its_tables_is_named() {
    let (_dir, file) = listed(&[(1, 7, 1 << 20)]);
    let story = Story::load(&[file]).expect("right");
    let error = replay(&story, &options(LEAST)).expect_err("16 bytes a page");
    let said = error.to_string();
    assert!(said.contains("4.0 MiB") && said.contains("`vm7`"), "{said}");
}

/// A trace of a second of a host with one VM, in which these things happen to page 5.
fn recorded(dir: &TempDir, story: &[What]) -> PathBuf {
    let file = dir.path().join("host.trace");
    let mut writer = Writer::new(fs::File::create(&file).expect("our own")).expect("written");
    let host = HostFacts {
        memory: LEAST,
        ..HostFacts::default()
    };
    let facts = VmFacts {
        name: "vm1".to_owned(),
        pages: 100,
        shares: 1000,
        ..VmFacts::default()
    };
    let events = (10..).zip(story).map(|(at_us, what)| Event {
        at_us,
        gfn: 5,
        what: *what,
    });
    let events: Vec<Event> = events.collect();
    let (of_host, vm, end) = (VmId(0), VmId(1), End::default());
    let put = writer
        .facts(Kind::Host, of_host, 0, &host)
        .and_then(|()| writer.facts(Kind::Vm, vm, 0, &facts))
        .and_then(|()| writer.events(vm, &events))
        .and_then(|()| writer.facts(Kind::End, of_host, 1_000_000, &end));
    put.expect("written");
    file
}

#[test]
fn host_and_lists_are_put_together_and_what_does_not_fit_is_named() {
    let (dir, list) = listed(&[(0, 1, 5)]);
    let (from, to) = (Place::Untouched, Place::Resident);
    let story = [What::Moved { from, to }, What::Compressed { bytes: 700 }];
    let host = recorded(&dir, &story);
    let story = Story::load(&[host.clone(), list.clone()]).expect("both are of time 0");
    assert_eq!(story.vms[0].facts.pages, 100);
    let accesses = story
        .steps
        .iter()
        .filter(|it| it.what == story::Doing::Read);
    assert_eq!(accesses.count(), 1, "the list's, and not the host's too");
    let remarks = story.remarks.join("\n");
    assert!(
        !remarks.contains("guessed") && !remarks.contains("not known"),
        "{remarks}"
    );
    let alone = Story::load(std::slice::from_ref(&host)).expect("right");
    assert!(
        alone.remarks.join("\n").contains("vm1"),
        "{:?}",
        alone.remarks
    );

    let twice = Story::load(&[host.clone(), host.clone()]);
    assert!(matches!(twice, Err(StoryError::Second(_))), "{twice:?}");
    for (text, said) in [
        ("time_us,vm,gfn\n1,other,5\n", "no VM `other`"),
        ("time_us,vm,gfn\n0,vm1,100\n", "no gfn 100"),
        ("time_us,vm,gfn\n99999999999,vm1,5\n", "same run?"),
    ] {
        fs::write(&list, text).expect("our own directory");
        let error = Story::load(&[host.clone(), list.clone()]).expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
    }
    fs::write(&list, "time_us,vm,gfn\n").expect("our own directory");
    let empty = Story::load(&[list]);
    assert!(matches!(empty, Err(StoryError::Empty(_))), "{empty:?}");
}

/// A trace of a host with a VM in a resource pool, and a list of what it accesses: a thousand pages in each of four
/// seconds. The pool has this limit until the given second.
fn pooled(limit: Option<Pages>, until_s: u64) -> (TempDir, [PathBuf; 2]) {
    let accesses: Vec<_> = (0..4000).map(|ms| (ms, 1, (ms % 1000) as u32)).collect();
    let (dir, list) = listed(&accesses);
    let file = dir.path().join("pools.trace");
    let mut writer = Writer::new(fs::File::create(&file).expect("our own")).expect("written");
    let host = HostFacts {
        memory: Pages(4096),
        ..HostFacts::default()
    };
    let vm = VmFacts {
        name: "vm1".to_owned(),
        pages: 1000,
        shares: 1000,
        pool: "p".to_owned(),
        ..VmFacts::default()
    };
    let pools = |limit| Pools {
        pools: vec![
            PoolFacts {
                name: "root".to_owned(),
                ..PoolFacts::default()
            },
            PoolFacts {
                name: "p".to_owned(),
                parent: Some("root".to_owned()),
                shares: 1000,
                limit,
                expandable: true,
                ..PoolFacts::default()
            },
        ],
    };
    let root = VmId(0);
    let put = writer
        .facts(Kind::Host, root, 0, &host)
        .and_then(|()| writer.facts(Kind::Pools, root, 0, &pools(limit)))
        .and_then(|()| writer.facts(Kind::Vm, VmId(1), 0, &vm))
        .and_then(|()| writer.facts(Kind::Pools, root, until_s * 1_000_000, &pools(None)))
        .and_then(|()| writer.facts(Kind::End, root, 4_000_000, &End::default()));
    put.expect("written");
    (dir, [file, list])
}

#[test]
fn limits_of_resource_pools_bind_as_long_as_they_are_in_force() {
    let evicted = |limit, until_s| {
        let (_dir, files) = pooled(limit, until_s);
        let story = Story::load(&files).expect("right");
        let results = replayed(&story, Pages(4096));
        let counts = results.outcomes.iter().map(|it| it.counts.evicted());
        counts.collect::<Vec<_>>()
    };
    let (free, short, long) = (
        evicted(None, 4),
        evicted(Some(Pages(500)), 1),
        evicted(Some(Pages(500)), 4),
    );
    assert!(free.iter().all(|pages| *pages == 0), "{free:?}");
    for (short, long) in short.iter().zip(&long) {
        assert!(200 < *short && short * 2 < *long, "{short} {long}");
    }
}

#[test]
fn costs_are_those_of_the_recorded_host() {
    let story = Story {
        recorded: Some(vec![story::Recorded {
            counts: Counts {
                refills_swap: 200,
                refills_zip: 99,
                ..Counts::default()
            },
            stalls: Some(Stalls {
                refill_swap_us: 10_000,
                refill_zip_us: 10_000,
                ..Stalls::default()
            }),
        }]),
        ..Story::default()
    };
    let costs = Costs::default().as_recorded(&story);
    assert_eq!(costs.swap, 50_000);
    assert_eq!(costs.zip, Costs::default().zip, "too few to tell");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever guests do: no policy and no victims bring back fewer pages than the optimum, every page that is brought
    /// back was evicted before, and each page that is accessed is touched.
    #[test]
    fn no_host_beats_the_optimum(
        places in proptest::collection::vec((0_u64..3, 1_u32..4, any::<prop::sample::Index>()), 1..4000),
    ) {
        let mut ms = 0;
        let accesses: Vec<(u64, u32, u32)> = places
            .iter()
            .map(|(step, vm, at)| {
                ms += step;
                // Low pages more often than high ones.
                let at = at.index(1000);
                (ms, *vm, (at * at / 1500) as u32)
            })
            .collect();
        let (_dir, file) = listed(&accesses);
        let story = Story::load(&[file]).expect("right");
        let results = replayed(&story, LEAST);
        let optimum = results.bounds[0].refaults;
        let mut pages: Vec<_> = accesses.iter().map(|(_, vm, gfn)| (vm, gfn)).collect();
        pages.sort_unstable();
        pages.dedup();
        for outcome in &results.outcomes {
            prop_assert!(outcome.refaults >= optimum, "{outcome:?}");
            let left = outcome.counts.evicted();
            prop_assert!(outcome.refaults <= left, "{outcome:?}");
            prop_assert_eq!(outcome.unserved, 0);
            prop_assert!(outcome.counts.first_touches >= pages.len() as u64);
        }
    }
}
