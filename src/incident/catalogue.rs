//! The incidents: guests over time, and the controller with which it happened.
//!
//! Sizes are smaller than they were, so that all fit one host; what matters is how they relate. Each incident has an end
//! that every law could reach: the host has room for all that guests touch.

use super::guest::{Agent, BUNDLED, Described, Load};
use super::naive;
use crate::policy::Law;
use crate::units::Pages;

/// An incident.
#[derive(Clone, Copy, Debug)]
pub struct Incident {
    /// Its name.
    pub name: &'static str,
    /// Who ran into it: repository and number.
    pub source: &'static str,
    /// What happened, in a sentence.
    pub about: &'static str,
    /// The memory of the host.
    pub budget: Pages,
    /// The most that a balloon may take, in % of a guest.
    pub balloon_max_percent: u32,
    /// The guests.
    pub guests: &'static [Described],
    /// For how long it runs, in seconds.
    pub seconds: u64,
    /// The controller with which it happened.
    pub naive: &'static dyn Law,
}

/// The names of [`ALL`].
pub const NAMES: &[&str] = &[
    "shrink",
    "idle-cycle",
    "stuck-release",
    "boot-storm",
    "late-relief",
];

/// All incidents.
pub const ALL: &[Incident] = &[SHRINK, IDLE_CYCLE, STUCK_RELEASE, BOOT_STORM, LATE_RELIEF];

const fn mib(mib: u64) -> Pages {
    Pages(mib * 256)
}

const fn load(at_s: u64, allocated: u64, hot: u64) -> Load {
    Load {
        at_s,
        allocated: mib(allocated),
        hot: mib(hot),
    }
}

/// A guest with 16 MiB of kernel and as much swap of its own as memory.
const fn guest(name: &'static str, size: u64, loads: &'static [Load]) -> Described {
    Described {
        name,
        size: mib(size),
        kernel: mib(16),
        swap: mib(size),
        ballooned: Pages(0),
        loads,
        agent: BUNDLED,
    }
}

/// The guest has its memory taken once and for all, then begins to work.
const SHRINK: Incident = Incident {
    name: "shrink",
    source: "arcboxlabs/arcbox#390",
    about: "a guest is shrunk without asking, and thrashes at 1590 % CPU for 18 h",
    budget: mib(576),
    balloon_max_percent: 80,
    guests: &[
        guest("build", 512, &[load(0, 96, 32), load(60, 400, 320)]),
        guest("idle", 512, &[load(0, 200, 20)]),
    ],
    seconds: 300,
    naive: &naive::Shrink,
};

/// A guest that is idle for most of the time, and works for twenty seconds in each minute, beside one that works.
const IDLE_CYCLE: Incident = Incident {
    name: "idle-cycle",
    source: "arcboxlabs/arcbox#518",
    about: "a formula for idle guests drives MemAvailable to 0, for 98 s in each cycle",
    budget: mib(448),
    balloon_max_percent: 95,
    guests: &[
        guest("other", 512, &[load(0, 256, 64)]),
        guest(
            "desktop",
            512,
            &[
                load(0, 128, 64),
                load(40, 256, 224),
                load(60, 128, 64),
                load(100, 256, 224),
                load(120, 128, 64),
                load(160, 256, 224),
                load(180, 128, 64),
                load(220, 256, 224),
                load(240, 128, 64),
                load(280, 256, 224),
                load(300, 128, 64),
            ],
        ),
    ],
    seconds: 360,
    naive: &naive::Idle,
};

/// A guest of which the balloon holds four fifths needs them back; its agent looks seldom, is slow, and hangs for a while.
const STUCK_RELEASE: Incident = Incident {
    name: "stuck-release",
    source: "vm0-ai/vm0#30221",
    about: "a release is computed from what the balloon holds, and stays 10 min where it got stuck",
    budget: mib(1024),
    balloon_max_percent: 80,
    guests: &[Described {
        ballooned: mib(384),
        agent: Agent {
            looks_every_s: 5,
            deflates: 2048,
            stuck_s: (62, 80),
            ..BUNDLED
        },
        ..guest("sandbox", 512, &[load(0, 80, 64), load(60, 400, 360)])
    }],
    seconds: 600,
    naive: &naive::FromActual,
};

/// Two guests boot at once beside one that works at its limit and one that is idle.
const BOOT_STORM: Incident = Incident {
    name: "boot-storm",
    source: "home-assistant/operating-system#4805",
    about: "above 80 % of use all VMs are shrunk to their minimum, also those under pressure",
    budget: mib(1280),
    balloon_max_percent: 65,
    guests: &[
        guest("home", 512, &[load(0, 448, 384)]),
        guest("idle", 512, &[load(0, 448, 32)]),
        guest(
            "boots-1",
            384,
            &[load(0, 0, 0), load(60, 300, 200), load(90, 160, 120)],
        ),
        guest(
            "boots-2",
            384,
            &[load(0, 0, 0), load(60, 300, 200), load(90, 160, 120)],
        ),
    ],
    seconds: 300,
    naive: &naive::AllToMinimum,
};

/// A process starts that needs the memory of a large balloon, in a guest without swap, on a host that another guest fills.
const LATE_RELIEF: Incident = Incident {
    name: "late-relief",
    source: "firecracker-microvm/firecracker#4324",
    about: "a balloon deflates on OOM so slowly that the guest seems to hang",
    budget: mib(704),
    balloon_max_percent: 80,
    guests: &[
        Described {
            ballooned: mib(384),
            swap: Pages(0),
            ..guest("microvm", 512, &[load(0, 64, 32), load(30, 416, 384)])
        },
        guest("batch", 512, &[load(0, 400, 64)]),
    ],
    seconds: 180,
    naive: &naive::Fixed,
};

impl Incident {
    /// The second in which a guest changes what it does for the last time.
    pub(super) fn last_change_s(&self) -> u64 {
        let loads = self.guests.iter().flat_map(|guest| guest.loads);
        loads.map(|load| load.at_s).max().unwrap_or_default()
    }
}
