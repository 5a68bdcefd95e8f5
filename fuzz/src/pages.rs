//! Compressed pages. A guest reads them from memory that its host could change at any time.

use arbitrary::{Result, Unstructured};
use memvisor::compress::Compressor;
use memvisor::units::PageBuf;
use memvisor_wire::PAGE_SIZE;
use memvisor_wire::payload::{checksum, decompress};

use super::mutate;

pub(crate) fn payloads(u: &mut Unstructured<'_>) -> Result<()> {
    let page = page(u)?;
    let mut compressor = Compressor::new();
    let mut back = [0; PAGE_SIZE];
    let mut payload = match compressor.compress(&page) {
        Some(payload) => {
            assert!(decompress(payload, &mut back), "our own payload");
            assert_eq!(checksum(&back), checksum(&page.0));
            payload.to_vec()
        }
        None => u.arbitrary()?,
    };
    mutate(u, &mut payload)?;
    // Decompression may give any bytes, but only inside the page. The checksum shows that they are wrong.
    let _ = decompress(&payload, &mut back);
    Ok(())
}

/// A page made of runs, each of which repeats a piece of a few bytes.
fn page(u: &mut Unstructured<'_>) -> Result<PageBuf> {
    let mut page = PageBuf::zeroed();
    let mut rest = &mut page.0[..];
    while !rest.is_empty() {
        let piece: [u8; 8] = u.arbitrary()?;
        let piece = &piece[..u.int_in_range(1..=8)?];
        let len = u.int_in_range(1..=1024)?.min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        now.iter_mut()
            .zip(piece.iter().cycle())
            .for_each(|(byte, new)| *byte = *new);
        rest = later;
    }
    Ok(page)
}
