//! The policy `stall`: memory moves to the guest whose threads wait for what was evicted from it.

use super::common::{TestHost, eventually};
use super::{PATIENCE, end, filled, line, mib, pair};

in_both_engines!(guest_that_waits_for_evicted_pages_gets_memory_from_one_that_does_not);

const NAMES: [&str; 2] = ["idle", "busy"];

/// Two guests with equal shares and without balloons fill more than there is. Then one of them touches next to nothing,
/// and the other all it has. Nothing is sampled, so only the policy `stall` knows which is which.
fn guest_that_waits_for_evicted_pages_gets_memory_from_one_that_does_not(engine: &str) {
    let host = TestHost::start(&[
        "--engine",
        engine,
        "--memory",
        "44M",
        "--policy",
        "stall",
        "--set",
        "Mem.ShareRateMax=0",
        "--set",
        "Mem.SamplePeriod=0",
        "--set",
        "Mem.CtlMaxPercent=0",
    ]);
    assert_eq!(host.status().policy, "stall");
    let idle = "toucher,size=29M,content=random,rate=100M,active=64K";
    let idle = host.guest("idle", "32M", &[idle], &[]);
    let busy = "toucher,size=29M,content=random,rate=60M";
    let busy = host.guest("busy", "32M", &[busy], &[]);
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
