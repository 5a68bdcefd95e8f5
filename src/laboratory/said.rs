//! A message with its fields by name: what people and programs are shown of a datagram.

use std::fmt::Write as _;

use memvisor_wire::balloon::{
    BatchResult, Capabilities, ErrorCode, Listed, ListedPage, PageStatus, RangeBatch, Stat,
    StatTag, StatusRun, ToAgent, ToHost,
};
use memvisor_wire::{DecodeError, Gfn, GfnRun};
use serde_json::{Value, json};

use super::tape::Side;

/// How many elements of a list are shown to people. A batch has up to 512 ranges.
const SHOWN: usize = 8;

/// A datagram that is a message.
#[derive(Clone, PartialEq, Debug)]
pub struct Said {
    /// Its sequence number.
    pub seq: u32,
    /// The name of the message.
    pub name: &'static str,
    /// Its fields, by the names that the protocol's document has for them.
    pub fields: Vec<(&'static str, Field)>,
}

/// The content of a field.
#[derive(Clone, PartialEq, Debug)]
pub enum Field {
    /// A number.
    Number(u64),
    /// A word, or several, that the protocol has a name for.
    Words(Vec<&'static str>),
    /// A text.
    Text(String),
    /// Pages.
    Ranges(Vec<GfnRun>),
    /// Single pages.
    Pages(Vec<Gfn>),
    /// Single pages, in an answer with what became of them.
    Listed(Vec<ListedPage>),
    /// What became of pages.
    Runs(Vec<StatusRun>),
    /// Statistics.
    Stats(Vec<Stat>),
}

impl Said {
    /// Decodes what one side said.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no message of that side.
    pub fn decode(by: Side, datagram: &[u8]) -> Result<Self, DecodeError> {
        match by {
            Side::Agent => {
                let (seq, message) = ToHost::decode(datagram)?;
                let (name, fields) = (message.name(), asked(message));
                Ok(Self { seq, name, fields })
            }
            Side::Host => {
                let (seq, message) = ToAgent::decode(datagram)?;
                let (name, fields) = (message.name(), answered(message));
                Ok(Self { seq, name, fields })
            }
        }
    }

    /// The fields as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let fields = self.fields.iter();
        let pairs = fields.map(|(name, field)| ((*name).to_owned(), field.json()));
        Value::Object(pairs.collect())
    }

    /// The message as part of a line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{:<13} seq {}", self.name, self.seq);
        for (name, field) in &self.fields {
            let _ = write!(line, "  {name} {}", field.text());
        }
        line
    }
}

fn asked(message: ToHost) -> Vec<(&'static str, Field)> {
    use Field::Number;
    match message {
        ToHost::Start(start) => vec![
            ("min_version", Number(start.min_version.into())),
            ("max_version", Number(start.max_version.into())),
            ("capabilities", capabilities(start.capabilities)),
            // Never the token, which is a secret.
            ("total_pages", Number(start.total_pages)),
            ("name", Field::Text(start.name)),
        ],
        ToHost::GetTarget {
            total_pages,
            balloon_pages,
        } => vec![
            ("total_pages", Number(total_pages)),
            ("balloon_pages", Number(balloon_pages)),
        ],
        ToHost::Lock(batch)
        | ToHost::Unlock(batch)
        | ToHost::Report(batch)
        | ToHost::Offer(batch) => vec![("ranges", ranges(&batch))],
        ToHost::LockPages(pages) | ToHost::UnlockPages(pages) => {
            vec![("pages", Field::Listed(pages))]
        }
        ToHost::Inflate(pfns) | ToHost::Deflate(pfns) => vec![("pfns", Field::Pages(pfns))],
        ToHost::Give {
            epoch,
            ranges: given,
        } => {
            vec![("epoch", Number(epoch.into())), ("ranges", ranges(&given))]
        }
        ToHost::Stats(stats) => vec![("stats", Field::Stats(stats))],
        ToHost::Relief { pages } => vec![("pages", Number(pages))],
        ToHost::Stop => vec![],
    }
}

fn answered(message: ToAgent) -> Vec<(&'static str, Field)> {
    use Field::Number;
    match message {
        ToAgent::Started(started) => vec![
            ("capabilities", capabilities(started.capabilities)),
            ("vm", Number(started.vm.into())),
            ("poll_interval_ms", Number(started.poll_interval_ms.into())),
            ("max_ranges", Number(started.max_ranges.into())),
            ("balloon_max", Number(started.balloon_max)),
        ],
        ToAgent::Target { pages } => vec![("pages", Number(pages))],
        ToAgent::LockResult(result) | ToAgent::UnlockResult(result) | ToAgent::Given(result) => {
            batch_result(result)
        }
        ToAgent::PagesLocked(listed) | ToAgent::PagesUnlocked(listed) => listed_result(listed),
        ToAgent::Wanted(wanted) => vec![
            ("epoch", Number(wanted.epoch.into())),
            ("missing", Number(wanted.missing)),
            ("ranges", Field::Ranges(wanted.ranges)),
        ],
        ToAgent::Stopped | ToAgent::Reset | ToAgent::Used | ToAgent::Reported => vec![],
        ToAgent::Error { code, text } => vec![
            ("code", Field::Words(vec![code_name(code)])),
            ("text", Field::Text(text)),
        ],
    }
}

fn batch_result(result: BatchResult) -> Vec<(&'static str, Field)> {
    vec![
        ("target", Field::Number(result.target)),
        ("runs", Field::Runs(result.runs)),
    ]
}

fn listed_result(listed: Listed) -> Vec<(&'static str, Field)> {
    vec![
        ("target", Field::Number(listed.target)),
        ("pages", Field::Listed(listed.pages)),
    ]
}

fn ranges(batch: &RangeBatch) -> Field {
    Field::Ranges(batch.runs().to_vec())
}

fn capabilities(of: Capabilities) -> Field {
    Field::Words(of.iter_names().map(|(name, _)| name).collect())
}

/// A range of pages as text.
pub(super) fn range(run: &GfnRun) -> String {
    format!("{:#x}+{}", run.start.0, run.count)
}

/// The name of a status in the protocol.
#[must_use]
pub const fn status_name(status: PageStatus) -> &'static str {
    match status {
        PageStatus::Ok => "OK",
        PageStatus::Invalid => "INVALID",
        PageStatus::AlreadyLocked => "ALREADY_LOCKED",
        PageStatus::NotLocked => "NOT_LOCKED",
        PageStatus::Busy => "BUSY",
        PageStatus::NotNeeded => "NOT_NEEDED",
    }
}

/// The name of an error code in the protocol.
#[must_use]
pub const fn code_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Version => "VERSION",
        ErrorCode::Malformed => "MALFORMED",
        ErrorCode::Order => "ORDER",
        ErrorCode::Refused => "REFUSED",
        ErrorCode::Closing => "CLOSING",
    }
}

fn tag_name(tag: StatTag) -> String {
    match tag {
        StatTag::SWAP_IN => "swap_in".to_owned(),
        StatTag::SWAP_OUT => "swap_out".to_owned(),
        StatTag::MAJOR_FAULTS => "major_faults".to_owned(),
        StatTag::MINOR_FAULTS => "minor_faults".to_owned(),
        StatTag::FREE_MEMORY => "free_memory".to_owned(),
        StatTag::TOTAL_MEMORY => "total_memory".to_owned(),
        StatTag::AVAILABLE_MEMORY => "available_memory".to_owned(),
        StatTag::DISK_CACHES => "disk_caches".to_owned(),
        StatTag::OOM_KILLS => "oom_kills".to_owned(),
        StatTag::SWAP_WAIT => "swap_wait_us".to_owned(),
        StatTag(other) => format!("{other:#x}"),
    }
}

impl Field {
    fn json(&self) -> Value {
        let run = |run: &GfnRun| json!({ "start": run.start.0, "count": run.count });
        match self {
            Self::Number(number) => json!(number),
            Self::Words(words) => json!(words),
            Self::Text(text) => json!(text),
            Self::Ranges(ranges) => ranges.iter().map(run).collect(),
            Self::Pages(pages) => pages.iter().map(|gfn| json!(gfn.0)).collect(),
            Self::Listed(pages) => pages
                .iter()
                .map(|page| json!({ "page": page.page, "status": page.status.map(status_name) }))
                .collect(),
            Self::Runs(runs) => runs
                .iter()
                .map(|part| {
                    let (start, count) = (part.run.start.0, part.run.count);
                    json!({ "start": start, "count": count, "status": status_name(part.status) })
                })
                .collect(),
            Self::Stats(stats) => stats
                .iter()
                .map(|stat| {
                    json!({ "tag": stat.tag.0, "name": tag_name(stat.tag), "value": stat.value })
                })
                .collect(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Words(words) if words.is_empty() => "none".to_owned(),
            Self::Words(words) => words.join("|"),
            Self::Text(text) => format!("{text:?}"),
            Self::Ranges(ranges) => listed(ranges, range),
            Self::Pages(pages) => listed(pages, |gfn| format!("{:#x}", gfn.0)),
            Self::Listed(pages) => listed(pages, |page| match page.status {
                Some(status) => format!("{:#x} {}", page.page, status_name(status)),
                None => format!("{:#x}", page.page),
            }),
            Self::Runs(runs) => listed(runs, |part| {
                format!("{} {}", range(&part.run), status_name(part.status))
            }),
            Self::Stats(stats) => listed(stats, |stat| {
                format!("{} {}", tag_name(stat.tag), stat.value)
            }),
        }
    }
}

/// The first elements of a list, and how many there are beside them.
fn listed<T>(list: &[T], show: impl Fn(&T) -> String) -> String {
    let mut shown: Vec<String> = list.iter().take(SHOWN).map(show).collect();
    if list.len() > SHOWN {
        shown.push(format!("{} more", list.len() - SHOWN));
    }
    format!("[{}]", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_and_words_of_the_protocol() {
        // An example of docs/balloon-protocol.md.
        let bytes = [
            &[
                1, 0, 3, 0x80, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0,
            ][..],
            &[0, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
            &[4, 1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0],
        ]
        .concat();
        let said = Said::decode(Side::Host, &bytes).expect("an example");
        let line = "LOCK_RESULT   seq 3  target 7  runs [0x100+4 OK, 0x104+2 ALREADY_LOCKED]";
        assert_eq!(said.line(), line);
        let runs = json!([
            { "start": 256, "count": 4, "status": "OK" },
            { "start": 260, "count": 2, "status": "ALREADY_LOCKED" },
        ]);
        assert_eq!(said.json(), json!({ "target": 7, "runs": runs }));
        assert!(Said::decode(Side::Agent, &bytes).is_err());
    }

    #[test]
    fn long_lists_are_cut_for_people_alone() {
        let stats: Vec<_> = (0..32).map(|tag| Stat::new(StatTag(tag), 1)).collect();
        let said = Said::decode(Side::Agent, &ToHost::Stats(stats).encode(1)).expect("valid");
        let line = said.line();
        assert!(line.contains("[swap_in 1, swap_out 1"), "{line}");
        assert!(line.ends_with(", 24 more]"), "{line}");
        assert_eq!(said.json()["stats"].as_array().map(Vec::len), Some(32));
    }
}
