//! The rules for agents.

use super::super::Rule;
use super::{Trial, hints, maps, moves, protocols, sessions};

rules! { Trial:
    "start" sessions::start: "First on a connection, and again after `RESET`. The balloon is empty.";
    "token" sessions::token: "the secret that the guest's virtual hardware handed to its agent";
    "polls" sessions::polls: "Ask once per `poll_interval_ms`, doorbell or not.";
    "inflates" moves::inflates: "The size the balloon shall have.";
    "locks-pinned-pages" moves::locks_pinned_pages: "Puts pages into the balloon, which the guest has pinned and will not touch; their content is lost.";
    "max-ranges" moves::max_ranges: "A batch has at most `max_ranges` ranges, as `STARTED` said.";
    "one-range" moves::one_range: "| BATCHED | 0x1 | up to `max_ranges` ranges in a `LOCK` or `UNLOCK` | one range |";
    "believes-what-it-holds" moves::believes_what_it_holds: "pages the agent believes to be in the balloon; the host counts a difference and uses its own number";
    "unlocks-first" moves::unlocks_first: "`UNLOCK` first, and let the guest use only pages with status OK or NOT_LOCKED. Others stay in the balloon.";
    "deflates-to-nothing" moves::deflates_to_nothing: "When the maximum falls to 0 the target does, and the session stays; only a new session is refused then.";
    "follows-past-the-maximum" moves::follows_past_the_maximum: "The host keeps every target within the maximum of the moment, so an agent follows targets and compares nothing.";
    "refused-pages-go-back" moves::refused_pages_go_back: "A page refused by `LOCK` goes back to the guest,";
    "already-locked-pages-stay" moves::already_locked_pages_stay: "but for one that is ALREADY_LOCKED: that is in the balloon, however full it is.";
    "busy-pages-stay" moves::busy_pages_stay: "| 4 | BUSY | the host is using it; offer it again later | still in the balloon; ask again later |";
    "runs-cut-anyhow" moves::runs_cut_anyhow: "They need not be cut as its ranges are: a run can end inside a range, or join two ranges that touch.";
    "doorbell" sessions::doorbell: "With seq 0 it is the doorbell: the target has changed.";
    "doorbell-is-no-reply" sessions::doorbell_is_no_reply: "of a request: any number but 0; of a reply: that of its request; of what the host says unasked: 0";
    "reset" sessions::reset: "The agent frees all its pages **without** `UNLOCK` and sends `START` again on this connection.";
    "reset-in-place-of-a-reply" sessions::reset_in_place_of_a_reply: "Seq is 0, or that of the request whose reply it takes the place of.";
    "no-stats" sessions::no_stats: "| STATS | 0x4 | the agent may send `STATS` | it must not |";
    "no-relief" sessions::no_relief: "| RELIEF | 0x8 | the agent may send `RELIEF` | it must not |";
    "relief" sessions::relief: "The agent should deflate to it at once.";
    "comes-back" sessions::comes_back: "**Reset**, and a lost connection: free everything without `UNLOCK`, start anew.";
    "pauses" sessions::pauses: "After a lost connection pause first: 100 ms, doubled up to 10 s, or up to 30 s when the host refuses.";
    "never-gives-up" sessions::never_gives_up: "Never give up: ballooning may be switched on later.";
    "stop" sessions::stop: "The agent leaves. The host empties the balloon and replies;";
    "lists-inflate" protocols::lists_inflate: "up to 512 entries of 64 bits, a page of them. The order is any.";
    "lists-lock-pinned-pages" protocols::lists_lock_pinned_pages: "As `LOCK`, of single pages in any order";
    "lists-ask-without-status" protocols::lists_ask_without_status: "0 in a request; in an answer one more than the [status](#statuses): 1 OK to 6 NOT_NEEDED";
    "lists-unlock-first" protocols::lists_unlock_first: "| `page-lists` | `LOCK_PAGES`, `UNLOCK_PAGES` | guest | after `PAGES_UNLOCKED` | a status a page |";
    "lists-status-of-each-page" protocols::lists_status_of_each_page: "The pages of a `LOCK_PAGES`, in its order, each with its status.";
    "arrays-inflate" protocols::arrays_inflate: "up to 256 page numbers of 32 bits, in any order, answered by `USED`, which has no status.";
    "arrays-name-pinned-pages" protocols::arrays_name_pinned_pages: "Pages that the guest has put into the balloon, in any order";
    "arrays-must-tell" protocols::arrays_must_tell: "With MUST_TELL_HOST the guest uses a page only after the answer to its `DEFLATE`, and touching one before is a `RESET`.";
    "arrays-stay-pinned" protocols::arrays_stay_pinned: "So a guest does not learn that a page was refused: it stays pinned in the guest,";
    "arrays-deflate-on-oom" protocols::arrays_deflate_on_oom: "With DEFLATE_ON_OOM a guest that is out of memory deflates 256 pages without `RELIEF`, and does not inflate again until the target changes.";
    "reports-whatever-the-target" protocols::reports_whatever_the_target: "the guest reports ranges of pages that it does not use, whatever the target.";
    "reports-isolated-pages" protocols::reports_isolated_pages: "It isolates them until `REPORTED` has come;";
    "reported-pages-go-back" protocols::reported_pages_go_back: "then they are free in the guest as before, and it uses them without asking.";
    "reports-beside-a-balloon" protocols::reports_beside_a_balloon: "The balloon works by ranges. Besides,";
    "no-report" protocols::no_report: "| REPORTING | 0x100 | the agent may send [`REPORT`](#free-page-reporting) | it must not |";
    "hints-inflate" hints::inflate: "Those of the wanted pages that the guest still did not use, and will not until the reply has come.";
    "hints-give-wanted-pages" hints::give_wanted_pages: "A `GIVE` names pages of the epoch's `WANTED`, once.";
    "hints-pin-what-they-give" hints::pin_what_they_give: "From before `GIVE` until `GIVEN` the guest uses none of its pages.";
    "hints-get-pages-back" hints::get_pages_back: "Afterwards it uses them without asking.";
    "hints-deflate-in-silence" hints::deflate_in_silence: "When the target falls the host takes pages off its books; nothing is said, as they are the guest's already.";
    "map-shows-pages-that-nobody-uses" maps::shows_pages_that_nobody_uses: "the guest, to FREE, when it frees the page";
    "map-inflates" maps::inflates: "where the target is out of reach it has its kernel make pages free.";
    "map-leaves-taken-pages" maps::leaves_taken_pages: "The guest, to USED, when it leaves";
    "map-gets-pages-back" maps::gets_pages_back: "the host, to FREE, when it gives the page back;";
    "map-is-left" maps::is_left: "Before a guest stops using the map, it makes all its FREE pages USED, and then those that are TAKEN;";
    "map-is-new" maps::is_new: "Every `START` gets a new map.";
}
