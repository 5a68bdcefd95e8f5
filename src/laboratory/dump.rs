//! A recording as text, as JSON, and as a file for Wireshark.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use memvisor_wire::balloon::ToAgent;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};
use serde_json::{Value, json};

use super::map::{Moved, Seen, by_states};
use super::said::{Said, range};
use super::tape::{Entry, Heard, Side, Stop, Tape};
use crate::units::RunsExt;

/// Which of a packet's flags says where it went: the host is what captures.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A moment of a session as people read it, in seconds.
#[must_use]
pub fn moment(at: Duration) -> String {
    format!("{:>4}.{:06}", at.as_secs(), at.subsec_micros())
}

/// One datagram as a line: `>` to the host, `<` to the agent.
#[must_use]
pub fn line(heard: &Heard) -> String {
    let way = match heard.by {
        Side::Agent => '>',
        Side::Host => '<',
    };
    let text = match Said::decode(heard.by, &heard.bytes) {
        Ok(said) => said.line(),
        Err(error) => format!("(no message: {error})  bytes {}", hex(&heard.bytes)),
    };
    format!("{} {way} {text}", moment(heard.at))
}

/// Moves of pages in the map of free pages as a line; of many runs the first few.
fn map_line(at: Duration, moves: &[Moved]) -> String {
    const SHOWN: usize = 8;
    let kinds = by_states(moves).into_iter().map(|((from, to), runs)| {
        let shown: Vec<_> = runs.iter().take(SHOWN).map(range).collect();
        let more = match runs.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (from, to, pages) = (from.name(), to.name(), runs.pages());
        format!("{from}>{to} {pages} [{}{more}]", shown.join(" "))
    });
    let kinds: Vec<_> = kinds.collect();
    format!("{} = MAP           {}", moment(at), kinds.join("  "))
}

/// The same as JSON, with all runs.
fn map_json(at: Duration, moves: &[Moved]) -> Value {
    let kinds = by_states(moves).into_iter().map(|((from, to), runs)| {
        let ranges: Vec<_> = runs
            .iter()
            .map(|run| json!([run.start.0, run.count]))
            .collect();
        json!({ "from": from.name(), "to": to.name(), "ranges": ranges })
    });
    json!({ "at_us": at.as_micros() as u64, "map": kinds.collect::<Vec<_>>() })
}

/// All entries of a recording, each as `said` or `mapped` shows it.
fn each<T>(
    tape: &Tape,
    said: impl Fn(&Heard) -> T,
    mapped: impl Fn(Duration, &[Moved]) -> T,
) -> Vec<T> {
    let mut map = Seen::default();
    let entries = tape.entries.iter().map(|entry| match entry {
        Entry::Said(heard) => {
            if let Ok((_, ToAgent::Started(_))) = ToAgent::decode(&heard.bytes)
                && heard.by == Side::Host
            {
                map.begin();
            }
            said(heard)
        }
        Entry::Mapped { at, runs } => mapped(*at, &map.take(runs)),
    });
    entries.collect()
}

/// One datagram as JSON.
#[must_use]
pub fn json(heard: &Heard) -> Value {
    let (at, by) = (heard.at.as_micros() as u64, heard.by.as_str());
    let mut object = json!({ "at_us": at, "from": by, "bytes": hex(&heard.bytes) });
    match Said::decode(heard.by, &heard.bytes) {
        Ok(said) => {
            object["message"] = json!(said.name);
            object["seq"] = json!(said.seq);
            object["fields"] = said.json();
        }
        Err(error) => object["error"] = json!(error.to_string()),
    }
    object
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// When a session began, in UTC.
fn date(began: SystemTime) -> String {
    jiff::Timestamp::try_from(began).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

/// A recording as text, a line a message.
#[must_use]
pub fn text(tape: &Tape) -> String {
    let mut text = format!("# a session that began at {}\n", date(tape.began));
    for line in each(tape, line, map_line) {
        text += &line;
        text.push('\n');
    }
    match &tape.stop {
        Stop::Ended { at, why } => text += &format!("{} # ended: {why}\n", moment(*at)),
        stop => text += &format!("# {stop}\n"),
    }
    text
}

/// A recording as one JSON object.
#[must_use]
pub fn object(tape: &Tape) -> Value {
    let messages = each(tape, json, map_json);
    json!({
        "began": date(tape.began),
        "messages": messages,
        "whole": tape.stop.is_whole(),
        "stop": tape.stop.to_string(),
    })
}

/// Writes a recording as pcapng: a packet a datagram, link type USER0 (147), nanoseconds, and the direction as the host
/// sees it. Changes of the map of free pages are not in it.
///
/// # Errors
/// What `to` says.
pub fn pcapng(tape: &Tape, to: impl Write) -> io::Result<()> {
    let write = || -> Result<(), PcapError> {
        let mut writer = PcapNgWriter::new(to)?;
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::USER0,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName("memvisor-balloon".into()),
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        })?;
        let began = tape.began.duration_since(SystemTime::UNIX_EPOCH);
        let began = began.unwrap_or_default();
        for heard in tape.heard() {
            let flag = match heard.by {
                Side::Agent => INBOUND,
                Side::Host => OUTBOUND,
            };
            writer.write_pcapng_block(EnhancedPacketBlock {
                interface_id: 0,
                timestamp: began + heard.at,
                original_len: heard.bytes.len() as u32,
                data: heard.bytes.as_slice().into(),
                options: vec![EnhancedPacketOption::Flags(flag)],
            })?;
        }
        Ok(())
    };
    write().map_err(|error| match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use memvisor_wire::balloon::{ToAgent, ToHost};
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::super::map::WordRun;
    use super::*;

    fn tape() -> Tape {
        let heard = |us, by, bytes| {
            Entry::Said(Heard {
                at: Duration::from_micros(us),
                by,
                bytes,
            })
        };
        Tape {
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            entries: vec![
                heard(12, Side::Agent, ToHost::Relief { pages: 5 }.encode(2)),
                heard(
                    1_000_034,
                    Side::Host,
                    ToAgent::Target { pages: 9 }.encode(2),
                ),
                heard(1_000_035, Side::Agent, vec![1, 0]),
            ],
            stop: Stop::Cut { at: 99, missing: 3 },
        }
    }

    #[test]
    fn text_has_a_line_a_message_and_where_it_stopped() {
        let text = text(&tape());
        let expected = "# a session that began at 2023-11-14T22:13:20Z\n   \
             0.000012 > RELIEF        seq 2  pages 5\n   \
             1.000034 < TARGET        seq 2  pages 9\n   1.000035 > (no message: ";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.contains("bytes 0100\n# cut off: the record at byte 99"),
            "{text}"
        );
    }

    #[test]
    fn changes_of_the_map_are_shown_as_moves_of_pages() {
        let mapped = |us, runs: &[(u32, u32, u32)]| Entry::Mapped {
            at: Duration::from_micros(us),
            runs: runs
                .iter()
                .map(|&(first, count, value)| WordRun {
                    first,
                    count,
                    value,
                })
                .collect(),
        };
        let tape = Tape {
            entries: vec![
                mapped(12, &[(0, 2, 0x5555_5555), (4, 1, 1)]),
                mapped(34, &[(0, 1, 0xAAAA_AAAA), (4, 1, 0)]),
            ],
            ..tape()
        };
        let text = text(&tape);
        for line in [
            "   0.000012 = MAP           USED>FREE 33 [0x0+32 0x40+1]\n",
            "   0.000034 = MAP           FREE>TAKEN 16 [0x0+16]  FREE>USED 1 [0x40+1]\n",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        let second = &object(&tape)["messages"][1];
        let expected = json!({"at_us": 34, "map": [
            {"from": "FREE", "to": "TAKEN", "ranges": [[0, 16]]},
            {"from": "FREE", "to": "USED", "ranges": [[64, 1]]},
        ]});
        assert_eq!(*second, expected);
    }

    #[test]
    fn json_has_fields_and_bytes() {
        let json = object(&tape());
        let first = &json["messages"][0];
        assert_eq!(
            (&first["message"], &first["fields"]),
            (&json!("RELIEF"), &json!({ "pages": 5 }))
        );
        assert_eq!(first["bytes"], "01000600020000000500000000000000");
        assert_eq!(
            (&json["whole"], &json["messages"][2]["bytes"]),
            (&json!(false), &json!("0100"))
        );
    }

    #[test]
    fn pcapng_has_each_datagram_with_its_time_and_direction() {
        let mut file = Vec::new();
        pcapng(&tape(), &mut file).expect("a Vec takes all");
        let mut reader = PcapNgReader::new(&file[..]).expect("a header");
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.expect("a block") {
                let [EnhancedPacketOption::Flags(way)] = packet.options[..] else {
                    panic!("{:?}", packet.options);
                };
                packets.push((packet.timestamp, packet.data.to_vec(), way));
            }
        }
        assert_eq!(packets.len(), 3);
        let (time, data, way) = &packets[1];
        assert_eq!(time.as_nanos(), 1_700_000_001_000_034_000);
        let tape = tape();
        let second = tape.heard().nth(1).expect("three");
        assert_eq!(data, &second.bytes);
        assert_eq!(*way, OUTBOUND);
    }
}
