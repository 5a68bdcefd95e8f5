//! The rules for hosts.

use super::super::Rule;
use super::{Trial, hints, maps, pages, protocols, sessions};

/// Why a message is out of order, as the table of error codes has it.
const ORDER: &str = "the message is not allowed now: before `START`, a second `START`, without its capability (a second range in a `LOCK` needs BATCHED), no `START` within 5 s; the text names the message";
/// What breaks the form of a message, as the same table has it.
const MALFORMED: &str = "the message breaks the format or a limit: too short, trailing bytes, too long, unknown type, wrong header version, ranges out of order; the text names the field";

rules! { Trial:
    "host-capabilities" sessions::started: "those of the offered ones that are in use";
    "host-unknown-capabilities" sessions::unknown_capabilities: "bits unknown to the host are ignored";
    "host-no-common-version" sessions::no_common_version: "If there is none it says `ERROR` VERSION, naming both.";
    "host-highest-version" sessions::highest_version: "The host picks the highest version inside the agent's `min_version` to `max_version` and uses it as header version from `STARTED` on.";
    "host-wrong-token" sessions::wrong_token: "a wrong token is refused and not echoed.";
    "host-too-many-pages" sessions::too_many_pages: "token unknown, ballooning disabled, VM already has an agent, more pages than the VM has";
    "host-second-agent" sessions::second_agent: "One agent at a time is served; a second one is told REFUSED.";
    "host-before-start" sessions::before_start: ORDER;
    "host-second-start" sessions::second_start: ORDER;
    "host-without-capability" sessions::without_capability: ORDER;
    "host-one-range" sessions::one_range: "| BATCHED | 0x1 | up to `max_ranges` ranges in a `LOCK` or `UNLOCK` | one range |";
    "host-silent-agent" sessions::silent_agent: "| time to `START` | 5 s | an open connection costs the host a thread |";
    "host-malformed" sessions::malformed: MALFORMED;
    "host-trailing-bytes" sessions::trailing_bytes: "A message must end where its last field ends.";
    "host-seq-zero" sessions::seq_zero: "of a request: any number but 0;";
    "host-ranges-in-order" sessions::ranges_in_order: "Ranges ascend and do not overlap, because the host locks pages in that order.";
    "host-past-the-last-gfn" sessions::past_the_last_gfn: "None runs past the last gfn.";
    "host-pages-in-a-batch" sessions::pages_in_a_batch: "All ranges together hold at most 4096 pages.";
    "host-empty-datagram" sessions::empty_datagram: "An empty datagram ends the connection, because the kernel reports it like a closed one.";
    "host-stop" sessions::stop: "The host empties the balloon and replies; then the connection ends and the pages are the guest's again.";
    "host-stats" sessions::stats: "Tags the host does not know are skipped; of a tag given twice the last one counts.";
    "host-own-number" sessions::own_number: "the host counts a difference and uses its own number";
    "host-in-order" sessions::in_order: "The agent asks, the host answers, in order.";
    "host-flood" sessions::flood: "An agent beyond it is not cut off: the host reads nothing more until the debt is paid, and the agent waits in its `send`";
    "host-locks" pages::locks: "in the balloon; do not touch it";
    "host-unlocks" pages::unlocks: "Takes pages out of the balloon; each reads as zeroes afterwards.";
    "host-offered-twice" pages::offered_twice: "A page offered twice is ALREADY_LOCKED,";
    "host-outside" pages::outside: "one outside RAM is INVALID,";
    "host-never-locked" pages::never_locked: "one unlocked but never locked is NOT_LOCKED.";
    "host-exactly-the-pages" pages::exactly_the_pages: "The runs speak of exactly the pages of the request, in its order.";
    "host-start-empties" pages::start_empties: "Every `START` empties the balloon: both sides begin with nothing.";
    "host-not-needed" pages::not_needed: "beyond it `LOCK` says NOT_NEEDED of pages that are not in it;";
    "host-from-the-first-page-on" pages::from_the_first_page_on: "A `LOCK` whose pages do not all have room is served from its first page on.";
    "host-most-ranges" pages::most_ranges: "ranges the host takes in one batch";
    "host-doorbell" sessions::doorbell: "the host sends `TARGET` and `RESET` when it has them";
    "host-no-doorbell" sessions::no_doorbell: "the host speaks only when asked; a `RESET` takes the place of the next reply";
    "host-reset" sessions::reset: "For the host the balloon is empty already.";
    "host-reset-in-place-of-a-reply" sessions::reset_in_place_of_a_reply: "Seq is 0, or that of the request whose reply it takes the place of.";
    "host-other-protocol" protocols::other_protocol: "A message of another protocol than the agreed one is an error ORDER.";
    "host-last-protocol" protocols::last_of_several: "Of several that are offered the host uses the last in this order, and `STARTED` says which.";
    "host-lists-in-any-order" protocols::lists_in_any_order: "up to 512 entries of 64 bits, a page of them. The order is any.";
    "host-lists-name-twice" protocols::lists_name_twice: "A page that a list names again gets ALREADY_LOCKED, or NOT_LOCKED, the second time.";
    "host-lists-of-no-gfns" protocols::lists_of_no_gfns: "the page number; one that is no gfn is INVALID";
    "host-arrays" protocols::arrays: "up to 256 page numbers of 32 bits, in any order, answered by `USED`, which has no status.";
    "host-arrays-must-tell" protocols::arrays_must_tell: "With MUST_TELL_HOST the guest uses a page only after the answer to its `DEFLATE`, and touching one before is a `RESET`.";
    "host-arrays-may-touch" protocols::arrays_may_touch: "Without it the guest may use pages and tell afterwards: the touch takes the page out of the balloon.";
    "host-arrays-keep-the-target" protocols::arrays_keep_the_target: "The target stays as it was: the host learns of it by `DEFLATE` alone.";
    "host-reports" protocols::reports: "It is in no balloon, and its next touch is a first touch.";
    "host-reports-whatever-the-target" protocols::reports_whatever_the_target: "the guest reports ranges of pages that it does not use, whatever the target.";
    "host-hints-wanted" hints::wanted: "as many as the balloon lacks";
    "host-hints-epochs" hints::epochs: "Each `OFFER` begins a new epoch and ends the one before.";
    "host-hints-given-once" hints::given_once: "A `GIVE` names pages of the epoch's `WANTED`, once.";
    "host-hints-not-wanted" hints::not_wanted: "One of another epoch, or with a page that was not wanted, takes nothing: all its pages are NOT_NEEDED.";
    "host-hints-may-touch" hints::may_touch: "The balloon shrinks when the guest touches pages.";
    "host-map" maps::comes_with_started: "With `STARTED` comes a descriptor (SCM_RIGHTS) of a file to be mapped for reading and writing.";
    "host-map-is-taken-from" maps::is_taken_from: "The host takes FREE pages while the balloon is smaller than its target, and looks for some whenever the agent says something or the target changes.";
    "host-map-keeps-used-pages" maps::keeps_used_pages: "A guest keeps from it what it wants to keep by leaving it USED.";
    "host-map-gets-pages-back" maps::gets_pages_back: "the host, to FREE, when it gives the page back; it reads as zeroes.";
    "host-map-is-new" maps::is_new: "Every `START` gets a new map.";
    // Last, because a host may hold its target down for a while.
    "host-relief" sessions::relief: "**RELIEF** (type 6, needs the capability RELIEF). Reply: `TARGET`.";
}
