//! The weight of a guest when memory is divided.

use std::str::FromStr;

use thiserror::Error;

use crate::PAGE_SIZE;

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;

/// A weight as people write it: `low`, `normal`, `high` (5, 10, 20 shares for each MiB, as in vSphere)
/// or a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shares {
    /// A number of shares for each MiB of the configured size.
    PerMib(u32),
    /// A number of shares for the whole VM.
    Custom(u32),
}

/// Why a text is not a number of shares.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a number of shares: use low, normal, high or 0 to {max}", max = Shares::MAX)]
pub struct SharesError(String);

impl Shares {
    /// The most shares a VM can have, so that sums over all VMs stay far from overflow.
    pub const MAX: u32 = 1_000_000_000;

    /// The number of shares of a VM of `pages` pages. A number per MiB gives at least 1.
    #[must_use]
    pub fn count(self, pages: u64) -> u32 {
        match self {
            Self::Custom(shares) => shares,
            Self::PerMib(shares) => {
                let count = (pages / PAGES_PER_MIB).saturating_mul(shares.into());
                // At least 1: without shares a VM of less than 1 MiB would get its reservation only.
                u32::try_from(count)
                    .unwrap_or(Self::MAX)
                    .clamp(1, Self::MAX)
            }
        }
    }
}

impl FromStr for Shares {
    type Err = SharesError;

    fn from_str(text: &str) -> Result<Self, SharesError> {
        match text {
            "low" => Ok(Self::PerMib(5)),
            "normal" => Ok(Self::PerMib(10)),
            "high" => Ok(Self::PerMib(20)),
            number => match number.parse() {
                Ok(shares) if shares <= Self::MAX => Ok(Self::Custom(shares)),
                _ => Err(SharesError(text.to_owned())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_size_unless_given() {
        let count = |text: &str| text.parse::<Shares>().expect(text).count(256 << 8);
        assert_eq!(
            ["low", "normal", "high", "77"].map(count),
            [1280, 2560, 5120, 77]
        );
        assert_eq!(Shares::PerMib(20).count(u64::MAX), Shares::MAX);
        assert_eq!(
            (Shares::PerMib(5).count(255), Shares::Custom(0).count(255)),
            (1, 0)
        );
        for text in ["medium", "-1", "1000000001"] {
            let error = text.parse::<Shares>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
