//! The files that `memvisor top` shows.

use std::path::Path;

use arbitrary::{Result, Unstructured};
use memvisor::top::readers::{recorded, toprc};

use super::mutate;

const TOPRC: &str = "fields = [\"MEMSZ\", \"MCTLSZ\", \"ZIP\", \"HOMES\"]\nsort = \"ZIP\"\nreverse = true\n\
    interval = \"2500ms\"\n";
const RECORDING: &str = concat!(
    r#""(PDH-CSV 4.0) (UTC)(0)","\\host\Memory\Free MBytes","\\host\Memory\Memory Overcommit (1 Minute Avg)","#,
    r#""\\host\Group Memory(1:web)\Memory Granted Size MBytes","\\host\Group Memory(2:db)\Swap Written MBytes/sec""#,
    "\n\"01/01/2026 01:01:01\",\"3727\",\"0.5\",\"12\",\"\"\n\"01/01/2026 01:01:06\",\"3700.25\",\"0.5\",\"\",\"1.5\"\n",
);

/// A `toprc` and a recording: what is read of them is written so that it is read again.
pub(crate) fn files(u: &mut Unstructured<'_>) -> Result<()> {
    let path = Path::new("file");
    let mut bytes = TOPRC.as_bytes().to_vec();
    mutate(u, &mut bytes)?;
    if let Ok(text) = toprc(path, &String::from_utf8_lossy(&bytes)) {
        assert_eq!(toprc(path, &text).ok(), Some(text));
    }
    let mut bytes = RECORDING.as_bytes().to_vec();
    mutate(u, &mut bytes)?;
    if let Ok(text) = recorded(path, &bytes[..]) {
        let again = recorded(path, &text[..]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(String::from_utf8(again), String::from_utf8(text));
    }
    Ok(())
}
