//! The readers of the files that `top` shows, for whoever has them as texts: the checks in `fuzz`.

use std::io::Read;
use std::path::Path;

use super::batch::Batch;
use super::config::{Config, ConfigError};
use super::recording::{self, RecordingError};

/// Reads a `toprc`, and writes what it says.
///
/// # Errors
/// [`ConfigError`].
pub fn toprc(path: &Path, text: &str) -> Result<String, ConfigError> {
    Ok(Config::parse(path, text)?.text())
}

/// Reads a recording, and writes what it holds of the VMs that are in its first line.
///
/// # Errors
/// [`RecordingError`].
pub fn recorded(path: &Path, text: impl Read) -> Result<Vec<u8>, RecordingError> {
    let samples = recording::parse(path, text)?;
    let mut again = Vec::new();
    // A vector takes all, and a recording that was read has a sample.
    if let Ok(mut batch) = Batch::begin(&mut again, "host", &samples[0]) {
        for sample in &samples {
            let _ = batch.add(sample);
        }
    }
    Ok(again)
}
