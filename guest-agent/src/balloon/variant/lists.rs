//! Single pages, as two kinds of balloon drivers name them.

use memvisor_wire::balloon::{
    ListedPage, MAX_LISTED, MAX_PFNS, PageStatus, StatusRun, ToAgent, ToHost, push_status,
};
use memvisor_wire::{Gfn, GfnRun, runs_of};

use super::super::link::{Link, LinkError, unexpected};
use super::{Answers, Variant};

/// Pages that virtio-balloon gives back at once when its guest is out of memory.
const OOM_PAGES: u32 = 256;

/// Lists of single pages, each with a status, as VMware's driver has them.
#[derive(Debug)]
pub(super) struct PageLists;

impl Variant for PageLists {
    fn lock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        listed(link, &runs, ToHost::LockPages)
    }

    fn unlock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        listed(link, &runs, ToHost::UnlockPages)
    }
}

fn listed(link: &mut Link, runs: &[GfnRun], message: fn(Vec<ListedPage>) -> ToHost) -> Answers {
    each(runs, MAX_LISTED, |pages| {
        let listed: Vec<_> = pages
            .iter()
            .map(|gfn| ListedPage::asked(gfn.0.into()))
            .collect();
        let question = message(listed);
        let answer = link.ask(&question)?;
        let (ToAgent::PagesLocked(answer) | ToAgent::PagesUnlocked(answer)) = answer else {
            return Err(unexpected(question.name(), &answer));
        };
        let same = |(gfn, answer): (&Gfn, &ListedPage)| answer.page == u64::from(gfn.0);
        let statuses: Option<Vec<_>> = answer.pages.iter().map(|page| page.status).collect();
        match statuses {
            Some(statuses)
                if answer.pages.len() == pages.len()
                    && pages.iter().zip(&answer.pages).all(same) =>
            {
                Ok(statuses)
            }
            _ => Err(LinkError::Unexpected {
                question: question.name(),
                answer: "the statuses of other pages".to_owned(),
            }),
        }
    })
}

/// Arrays of page numbers, which are answered without statuses, as virtio-balloon has them: the agent takes each page
/// that it has named to be in the balloon, or out of it. It waits for the answer before it uses a page.
#[derive(Debug)]
pub(super) struct PfnArrays;

impl Variant for PfnArrays {
    fn lock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        arrays(link, &runs, ToHost::Inflate)
    }

    fn unlock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        arrays(link, &runs, ToHost::Deflate)
    }

    fn deflates_on_oom(&self) -> Option<u32> {
        Some(OOM_PAGES)
    }
}

fn arrays(link: &mut Link, runs: &[GfnRun], message: fn(Vec<Gfn>) -> ToHost) -> Answers {
    each(runs, MAX_PFNS, |pages| {
        let question = message(pages.to_vec());
        match link.ask(&question)? {
            ToAgent::Used => Ok(vec![PageStatus::Ok; pages.len()]),
            other => Err(unexpected(question.name(), &other)),
        }
    })
}

/// Sends the pages of some runs, up to `most` at once, and collects their statuses.
fn each(
    runs: &[GfnRun],
    most: usize,
    mut send: impl FnMut(&[Gfn]) -> Result<Vec<PageStatus>, LinkError>,
) -> Answers {
    let pages: Vec<Gfn> = runs.iter().flat_map(|run| run.iter()).collect();
    let mut answers = Answers::default();
    let mut chunks = pages.chunks(most);
    while let Some(chunk) = chunks.next() {
        match send(chunk) {
            Ok(statuses) => {
                for (gfn, status) in chunk.iter().zip(statuses) {
                    let run = GfnRun::single(*gfn);
                    push_status(&mut answers.statuses, StatusRun { run, status });
                }
            }
            Err(error) => {
                answers.error = Some(error);
                let left = std::iter::once(chunk).chain(chunks.by_ref()).flatten();
                answers.unanswered = runs_of(left.copied());
                break;
            }
        }
    }
    answers
}
