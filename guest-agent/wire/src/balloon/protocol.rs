//! The protocols in which an agent can name pages, and how one of them is agreed on.

use std::fmt;
use std::str::FromStr;

use super::Capabilities;

/// How pages are named in a session, who chooses them, and when the guest may use them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// `LOCK` and `UNLOCK` of ranges.
    #[default]
    Ranges,
    /// Lists of single pages, as VMware's balloon driver sends them.
    PageLists,
    /// Arrays of page numbers without statuses, as virtio-balloon sends them.
    PfnArrays,
    /// Ranges, and besides the guest reports what it does not use.
    Reporting,
    /// The guest offers what it does not use, the host wants some of it, the guest gives what is still unused.
    Hints,
    /// The host takes pages that a map in shared memory shows to be free.
    Bitmap,
}

impl Protocol {
    /// All of them; where an agent offers several, the host uses the last that it allows.
    pub const ALL: [Self; 6] = [
        Self::Ranges,
        Self::PageLists,
        Self::PfnArrays,
        Self::Reporting,
        Self::Hints,
        Self::Bitmap,
    ];

    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ranges => "ranges",
            Self::PageLists => "page-lists",
            Self::PfnArrays => "pfn-arrays",
            Self::Reporting => "reporting",
            Self::Hints => "hints",
            Self::Bitmap => "bitmap",
        }
    }

    /// The capabilities by which an agent offers it: none for ranges, which every agent speaks.
    #[must_use]
    pub const fn capabilities(self) -> Capabilities {
        match self {
            Self::Ranges => Capabilities::empty(),
            Self::PageLists => Capabilities::PAGE_LISTS,
            Self::PfnArrays => Capabilities::PFN_ARRAYS
                .union(Capabilities::MUST_TELL_HOST)
                .union(Capabilities::DEFLATE_ON_OOM),
            Self::Reporting => Capabilities::REPORTING,
            Self::Hints => Capabilities::HINTS,
            Self::Bitmap => Capabilities::BITMAP,
        }
    }

    /// The capabilities of this protocol and no other among those that are `offered`.
    #[must_use]
    pub fn chosen_from(self, offered: Capabilities) -> Capabilities {
        let own = self.capabilities();
        let others = Self::ALL.iter().map(|other| other.capabilities());
        let others = others.fold(Capabilities::empty(), Capabilities::union);
        offered.difference(others.difference(own))
    }

    /// The protocol that these capabilities offer: the last one if there are several.
    #[must_use]
    pub fn of(offered: Capabilities) -> Self {
        let is_offered = |protocol: &&Self| match protocol {
            Self::Ranges => true,
            Self::PfnArrays => offered.contains(Capabilities::PFN_ARRAYS),
            other => offered.contains(other.capabilities()),
        };
        let last = Self::ALL.iter().rfind(is_offered);
        last.copied().unwrap_or_default()
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let named = Self::ALL.into_iter().find(|known| known.name() == text);
        named.ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_is_found_by_its_name_and_by_its_capabilities() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
            let offered = Capabilities::COMMON | protocol.capabilities();
            assert_eq!(Protocol::of(offered), protocol);
            assert_eq!(protocol.chosen_from(Capabilities::all()), offered);
        }
        assert_eq!("range".parse::<Protocol>(), Err(()));
    }

    #[test]
    fn of_several_protocols_the_last_is_used_and_the_others_are_not() {
        let offered = Capabilities::COMMON | Capabilities::PAGE_LISTS | Capabilities::HINTS;
        let used = Protocol::of(offered);
        assert_eq!(used, Protocol::Hints);
        assert_eq!(
            used.chosen_from(offered),
            Capabilities::COMMON | Capabilities::HINTS
        );
        // Flags of arrays are no offer of arrays.
        let flags = Capabilities::COMMON | Capabilities::DEFLATE_ON_OOM;
        assert_eq!(Protocol::of(flags), Protocol::Ranges);
        assert_eq!(Protocol::Ranges.chosen_from(flags), Capabilities::COMMON);
    }
}
