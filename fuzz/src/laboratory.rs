//! Recordings of balloon sessions, and the scripts and schedules of the balloon laboratory.

use std::time::{Duration, SystemTime};

use arbitrary::{Result, Unstructured};
use memvisor::laboratory::dump;
use memvisor::laboratory::map::WordRun;
use memvisor::laboratory::schedule::Schedule;
use memvisor::laboratory::script::{BEHAVIOURS, Script};
use memvisor::laboratory::tape::{Entry, Side, Stop, Tape, ended, header, mapped, said};

use super::mutate;

/// A file that was damaged: what is read of it is what was written, up to where the reader says that it stopped.
pub(crate) fn recordings(u: &mut Unstructured<'_>) -> Result<()> {
    let began = SystemTime::UNIX_EPOCH + Duration::from_micros(u.arbitrary::<u32>()?.into());
    let mut file = header(began);
    for _ in 0..u.int_in_range(0..=8)? {
        let by = if u.arbitrary()? {
            Side::Agent
        } else {
            Side::Host
        };
        let at = Duration::from_micros(u.arbitrary::<u32>()?.into());
        let bytes: &[u8] = u.arbitrary()?;
        if u.ratio(1, 4)? {
            let (first, count) = (u.int_in_range(0..=300)?, u.int_in_range(1..=300)?);
            let value = u.arbitrary()?;
            let run = WordRun {
                first,
                count,
                value,
            };
            file.extend(mapped(at, &[run]));
            continue;
        }
        file.extend(said(at, by, &bytes[..bytes.len().min(64)]));
    }
    if u.arbitrary()? {
        file.extend(ended(Duration::from_secs(1), "over"));
    }
    mutate(u, &mut file)?;
    let Ok(tape) = Tape::read(&file) else {
        return Ok(());
    };
    let mut again = header(tape.began);
    for entry in &tape.entries {
        again.extend(match entry {
            Entry::Said(heard) => said(heard.at, heard.by, &heard.bytes),
            Entry::Mapped { at, runs } => mapped(*at, runs),
        });
    }
    assert_eq!(file[..again.len()], again);
    if let Stop::Cut { at, .. } | Stop::Damaged { at, .. } = tape.stop {
        assert_eq!(at, again.len());
    }
    let _ = (dump::text(&tape), dump::object(&tape));
    dump::pcapng(&tape, std::io::sink()).expect("a sink takes all");
    scripts(u)
}

/// A script or a schedule with a few wrong bytes: read, or refused with a text.
fn scripts(u: &mut Unstructured<'_>) -> Result<()> {
    let (_, script) = u.choose(BEHAVIOURS)?;
    let mut bytes = script.as_bytes().to_vec();
    mutate(u, &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    if let Err(error) = Script::parse(&text) {
        assert!(!error.to_string().is_empty());
    }
    let schedules = [
        "0s=0,5s=64M",
        "[[at]]\ntime = \"1s\"\ntarget = \"4K\"\nreset = true\n",
    ];
    let mut bytes = u.choose(&schedules)?.as_bytes().to_vec();
    mutate(u, &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let _ = (text.parse::<Schedule>(), Schedule::parse(&text));
    Ok(())
}
