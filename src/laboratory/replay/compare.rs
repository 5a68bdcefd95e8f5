//! Whether two messages of the same kind say the same.

use memvisor_wire::balloon::{BatchResult, PageStatus, StatusRun, ToAgent, ToHost};

/// What an agent says differently from the recording; `None` if nothing that counts.
pub(super) fn asked(recorded: &ToHost, said: &ToHost) -> Option<String> {
    let differ = |what: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
        let name = said.name();
        Some(format!("{name}: {what} is {is:?}, was {was:?}"))
    };
    match (recorded, said) {
        (ToHost::Start(was), ToHost::Start(is)) => {
            let versions = |of: &memvisor_wire::balloon::Start| (of.min_version, of.max_version);
            if versions(was) != versions(is) {
                differ("versions", &versions(was), &versions(is))
            } else if was.capabilities != is.capabilities {
                differ("capabilities", &was.capabilities, &is.capabilities)
            } else if was.total_pages != is.total_pages {
                differ("total_pages", &was.total_pages, &is.total_pages)
            } else {
                None
            }
        }
        (
            ToHost::GetTarget {
                total_pages: total_was,
                balloon_pages: was,
            },
            ToHost::GetTarget {
                total_pages: total_is,
                balloon_pages: is,
            },
        ) => {
            if was != is {
                differ("balloon_pages", was, is)
            } else if total_was != total_is {
                differ("total_pages", total_was, total_is)
            } else {
                None
            }
        }
        (ToHost::Lock(was), ToHost::Lock(is)) | (ToHost::Unlock(was), ToHost::Unlock(is))
            if was.pages() != is.pages() =>
        {
            differ("pages", &was.pages(), &is.pages())
        }
        (ToHost::Relief { pages: was }, ToHost::Relief { pages: is }) if was != is => {
            differ("pages", was, is)
        }
        _ => None,
    }
}

/// What a host says differently from the recording; `None` if nothing that counts.
pub(super) fn answered(recorded: &ToAgent, said: &ToAgent, ignores_target: bool) -> Option<String> {
    let differ = |what: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
        let name = said.name();
        Some(format!("{name}: {what} is {is:?}, was {was:?}"))
    };
    match (recorded, said) {
        (ToAgent::Started(was), ToAgent::Started(is)) => {
            let (was, is) = (started(was), started(is));
            if was == is {
                None
            } else {
                differ("what was agreed on", &was, &is)
            }
        }
        (ToAgent::Target { pages: was }, ToAgent::Target { pages: is }) if was != is => {
            if ignores_target {
                None
            } else {
                differ("pages", was, is)
            }
        }
        (ToAgent::LockResult(was), ToAgent::LockResult(is))
        | (ToAgent::UnlockResult(was), ToAgent::UnlockResult(is)) => {
            let pages = (pages(was), pages(is));
            if let Some((page, was, is)) = first_other(&pages.0, &pages.1) {
                differ(&format!("page {page:#x}"), &was, &is)
            } else if was.target != is.target && !ignores_target {
                differ("target", &was.target, &is.target)
            } else {
                None
            }
        }
        (ToAgent::Error { code: was, .. }, ToAgent::Error { code: is, .. }) if was != is => {
            differ("code", was, is)
        }
        (was, is) if was.name() != is.name() => {
            Some(format!("it answers {}, was {}", is.name(), was.name()))
        }
        _ => None,
    }
}

/// All that counts of a `STARTED`.
fn started(of: &memvisor_wire::balloon::Started) -> memvisor_wire::balloon::Started {
    memvisor_wire::balloon::Started { vm: 0, ..*of }
}

/// Each page with what became of it.
pub(super) fn pages(result: &BatchResult) -> Vec<(u32, PageStatus)> {
    let page = |part: &StatusRun| {
        let status = part.status;
        part.run.iter().map(move |gfn| (gfn.0, status))
    };
    result.runs.iter().flat_map(page).collect()
}

type Page = (u32, PageStatus);

fn first_other(was: &[Page], is: &[Page]) -> Option<(u32, Option<PageStatus>, Option<PageStatus>)> {
    let other = (0..was.len().max(is.len())).find(|at| was.get(*at) != is.get(*at))?;
    let (was, is) = (was.get(other), is.get(other));
    let page = was.or(is).map_or(0, |(page, _)| *page);
    Some((
        page,
        was.map(|(_, status)| *status),
        is.map(|(_, status)| *status),
    ))
}

#[cfg(test)]
mod tests {
    use memvisor_wire::balloon::{RangeBatch, Started};

    use super::*;
    use crate::units::{Gfn, GfnRun};

    fn result(target: u64, runs: &[(u32, u32, PageStatus)]) -> ToAgent {
        let run = |&(start, count, status): &(u32, u32, PageStatus)| StatusRun {
            run: GfnRun::new(Gfn(start), count),
            status,
        };
        ToAgent::LockResult(BatchResult {
            target,
            runs: runs.iter().map(run).collect(),
        })
    }

    #[test]
    fn runs_may_be_cut_otherwise_and_statuses_may_not_differ() {
        let whole = result(5, &[(0, 4, PageStatus::Ok)]);
        let cut = result(5, &[(0, 1, PageStatus::Ok), (1, 3, PageStatus::Ok)]);
        assert_eq!(answered(&whole, &cut, false), None);
        let busy = result(5, &[(0, 3, PageStatus::Ok), (3, 1, PageStatus::Busy)]);
        let text = answered(&whole, &busy, true).expect("another status");
        assert!(text.contains("page 0x3") && text.contains("Busy"), "{text}");
        let other = result(6, &[(0, 4, PageStatus::Ok)]);
        assert_eq!(answered(&whole, &other, true), None);
        assert!(
            answered(&whole, &other, false)
                .expect("a target")
                .contains("is 6, was 5")
        );
    }

    #[test]
    fn what_no_two_runs_have_in_common_is_no_difference() {
        let started = |vm| {
            ToAgent::Started(Started {
                capabilities: memvisor_wire::balloon::Capabilities::COMMON,
                vm,
                poll_interval_ms: 5,
                max_ranges: 1,
                balloon_max: 9,
            })
        };
        assert_eq!(answered(&started(1), &started(7), false), None);
        let lock = |start| {
            let runs = vec![GfnRun::new(Gfn(start), 4)];
            ToHost::Lock(RangeBatch::new(runs).expect("a batch"))
        };
        assert_eq!(asked(&lock(0), &lock(99)), None);
        let poll = |balloon_pages| ToHost::GetTarget {
            total_pages: 9,
            balloon_pages,
        };
        assert!(asked(&poll(1), &poll(2)).is_some());
    }
}
