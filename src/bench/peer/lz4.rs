//! LZ4 as its authors wrote it, in C.

use crate::units::PageBuf;

/// What it is called in reports.
pub(crate) const NAME: &str = "lz4";

/// Whether it was built in.
pub(crate) const BUILT_IN: bool = cfg!(feature = "c-lz4");

/// Compresses a page into at most `into.len()` bytes, or gives up early; the length.
#[cfg(feature = "c-lz4")]
pub(crate) fn compress(page: &PageBuf, into: &mut [u8]) -> Option<usize> {
    lz4::block::compress_to_buffer(&page.0, None, false, into).ok()
}

/// Decompresses a page; whether it was a whole one.
#[cfg(feature = "c-lz4")]
pub(crate) fn decompress(block: &[u8], into: &mut PageBuf) -> bool {
    let len = crate::units::PAGE_SIZE;
    let size = i32::try_from(len).ok();
    lz4::block::decompress_to_buffer(block, size, &mut into.0).is_ok_and(|done| done == len)
}

/// Nothing: it was not built in, and nobody asks.
#[cfg(not(feature = "c-lz4"))]
pub(crate) fn compress(_page: &PageBuf, _into: &mut [u8]) -> Option<usize> {
    None
}

/// Nothing: it was not built in, and nobody asks.
#[cfg(not(feature = "c-lz4"))]
pub(crate) fn decompress(_block: &[u8], _into: &mut PageBuf) -> bool {
    false
}
