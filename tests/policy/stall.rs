//! The policy `stall`: memory moves to the guest whose threads wait for what was evicted from it.

use super::rig::{Host, eventually};
use super::{PATIENCE, end, filled, line, mib, pair};

in_one_engine!(guest_that_waits_for_evicted_pages_gets_memory_from_one_that_does_not);

const NAMES: [&str; 2] = ["idle", "busy"];

/// Two guests with equal shares and without balloons fill more than there is. Then one of them touches next to nothing,
/// and the other all it has. Nothing is sampled, so only the policy `stall` knows which is which.
fn guest_that_waits_for_evicted_pages_gets_memory_from_one_that_does_not(engine: &str) {
    let args = [
        "--policy",
        "stall",
        "--set",
        "Mem.ShareRateMax=0",
        "--set",
        "Mem.SamplePeriod=0",
        "--set",
        "Mem.CtlMaxPercent=0",
    ];
    let host = Host::start(engine, "44M", &args);
    assert_eq!(host.status().policy, "stall");
    let toucher = "--memory 32M --workload toucher,size=29M,content=random";
    let idle = host.guest("idle", &format!("{toucher},rate=100M,active=64K"));
    let busy = host.guest("busy", &format!("{toucher},rate=60M"));
    filled(&host, "busy", 29);
    // By shares alone each may hold some 20 MiB.
    let moved = eventually("memory has moved", PATIENCE, || {
        let status = host.status();
        let [idle, busy] = pair(&status, NAMES)?;
        let has = busy.consumed_pages >= mib(25) && idle.consumed_pages <= mib(16);
        has.then_some(status)
    });
    eprintln!("{engine}: {}", line(&moved));
    end(host, [idle, busy], &[]);
}
