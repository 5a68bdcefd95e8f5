//! What hosts and others have recorded of pages.

use std::io;

use arbitrary::{Result, Unstructured};
use memvisor::trace::format::{End, Event, Kind, Place, Stalls, VmFacts, What};
use memvisor::trace::{Accesses, Reader, Record, Writer, csv, damon};
use memvisor::units::VmId;

use super::mutate;

/// Bytes before the first block: the name of the format and its version.
const HEADER: usize = 12;
/// Accesses that a record of DAMON may become here, so that a region of terabytes takes no memory.
const FEW: usize = 10_000;

/// A record as `damo` writes it.
const DAMO: &[u8] = br#"[{"kdamond_idx": 0, "context_idx": 0, "target_id": 0, "snapshots": [
{"start_time": "1 s 5 ms", "end_time": "2000000000", "regions": [
{"start": "4,096", "end": "20,480", "nr_accesses": {"samples": 3, "percent": null}},
{"start": 81920, "end": "86016", "nr_accesses": {"samples": null, "percent": 1.5}}]}]}]"#;

/// A trace that was damaged, and lists of accesses.
pub(crate) fn files(u: &mut Unstructured<'_>) -> Result<()> {
    trace(u)?;
    lists(u)
}

/// Each block that is read can be written again as it is.
fn trace(u: &mut Unstructured<'_>) -> Result<()> {
    let mut file = Vec::new();
    write(u, &mut file)?.expect("a vector takes all");
    mutate(u, &mut file)?;
    let Ok(reader) = Reader::new(&file[..]) else {
        return Ok(());
    };
    let (mut again, mut end) = (Vec::new(), 0);
    let mut writer = Writer::new(&mut again).expect("a vector takes all");
    for block in reader.map_while(std::result::Result::ok) {
        let Record::Events(events) = &block.record else {
            // The order and the names of facts are free.
            return Ok(());
        };
        assert!(events.is_sorted_by_key(|event| event.at_us));
        if events
            .first()
            .is_none_or(|event| event.at_us != block.at_us)
        {
            return Ok(());
        }
        writer.events(block.vm, events).expect("a vector takes all");
        end = (block.offset + block.bytes) as usize;
    }
    // An older version is read too, and the newest is written.
    assert!(
        end == 0 || file[HEADER..end] == again[HEADER..],
        "{again:?}"
    );
    Ok(())
}

fn write(u: &mut Unstructured<'_>, file: &mut Vec<u8>) -> Result<io::Result<()>> {
    let mut events = Vec::new();
    let mut at_us = u64::from(u.arbitrary::<u32>()?);
    for _ in 0..u.int_in_range(0..=20)? {
        at_us += u64::from(u.arbitrary::<u16>()?);
        events.push(Event {
            at_us,
            gfn: u.arbitrary()?,
            what: match u.int_in_range(0..=3)? {
                0 => What::Accessed,
                1 => What::Compressed {
                    bytes: u.int_in_range(0..=4096)?,
                },
                2 => What::Hashed {
                    class: u.arbitrary()?,
                },
                _ => What::Moved {
                    from: *u.choose(&Place::ALL)?,
                    to: *u.choose(&Place::ALL)?,
                },
            },
        });
    }
    let facts = u.arbitrary::<bool>()?;
    let vm = VmId(u.arbitrary()?);
    let all = || {
        let mut writer = Writer::new(file)?;
        if facts {
            writer.facts(Kind::Vm, vm, 0, &VmFacts::default())?;
        }
        writer.events(vm, &events)?;
        if facts {
            writer.facts(Kind::Gone, vm, at_us, &Stalls::default())?;
            writer.facts(Kind::End, VmId(0), at_us, &End::default())?;
        }
        writer.flush()
    };
    Ok(all())
}

/// A list in CSV and a record of DAMON.
fn lists(u: &mut Unstructured<'_>) -> Result<()> {
    let mut bytes = b"time_us,vm,gfn,write\n10,web,0x1f,1\n20,\"db\",7,0\n\n15,web,8,w\n".to_vec();
    mutate(u, &mut bytes)?;
    if let Ok(list) = csv::read("x.csv", &bytes[..]) {
        check(&list);
    }
    let mut bytes = damon::MAGIC.to_vec();
    let version: u32 = u.int_in_range(1..=2)?;
    bytes.extend(version.to_le_bytes());
    let mut second = 0_u64;
    for _ in 0..u.int_in_range(1..=3)? {
        second += u64::from(u.arbitrary::<u8>()?);
        bytes.extend([second.to_le_bytes(), 5_u64.to_le_bytes()].concat());
        bytes.extend(1_u32.to_le_bytes());
        match version {
            1 => bytes.extend(7_u32.to_le_bytes()),
            _ => bytes.extend(7_u64.to_le_bytes()),
        }
        let regions: u32 = u.int_in_range(0..=3)?;
        bytes.extend(regions.to_le_bytes());
        for _ in 0..regions {
            let start = u64::from(u.arbitrary::<u32>()?) << 12;
            let end = start + (u64::from(u.int_in_range::<u8>(1..=200)?) << 12);
            bytes.extend([start.to_le_bytes(), end.to_le_bytes()].concat());
            bytes.extend(u.int_in_range::<u32>(0..=3)?.to_le_bytes());
        }
    }
    mutate(u, &mut bytes)?;
    if let Ok(list) = damon::read_up_to(FEW, "damon.data", &bytes) {
        check(&list);
    }
    let mut json = DAMO.to_vec();
    mutate(u, &mut json)?;
    if let Ok(list) = damon::json::read_up_to(FEW, "damon.json", &json[..]) {
        check(&list);
    }
    Ok(())
}

/// A list that a replay can use.
fn check(list: &Accesses) {
    assert!(list.accesses.is_sorted_by_key(|access| access.at_us));
    let vms = list.vms.len() as u32;
    assert!(list.accesses.iter().all(|access| access.vm < vms));
}
