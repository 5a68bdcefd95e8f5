//! Swapped pages that come back because an operator asks for them, or by themselves.

use memvisor::telemetry::VmStatus;
use memvisor::units::Pages;

use super::rig::{Host, PATIENCE, Process, eventually};
use super::{end, filled, host, mib};

in_both_engines!(
    swapped_pages_come_back_when_an_operator_asks,
    swapped_pages_come_back_by_themselves_where_that_is_set,
);

/// A guest that has filled 40 MiB, touches little of it, and had more than half of it swapped out by a limit that is gone
/// again.
fn swapped_out(host: &Host) -> (Process, VmStatus) {
    let words = "--memory 64M --limit 20M --no-agent \
                 --workload toucher,size=40M,active=4M,rate=40M,content=random";
    let guest = host.guest("g", words);
    filled(host, "g", 40);
    eventually("it is down to its limit", PATIENCE, || {
        let vm = host.vm("g");
        (vm.consumed_pages <= mib(21)).then_some(())
    });
    host.set_vm("g", "limit=none");
    let vm = host.vm("g");
    assert!(vm.homes.swapped_pages >= mib(15), "{vm:#?}");
    (guest, vm)
}

fn come_back(host: &Host, engine: &str) {
    let what = format!("{engine}: all pages are back, and the order has ended");
    let vm = host.await_vm("g", &what, |vm| {
        vm.homes.swapped_pages == Pages(0) && vm.swap.unswap_rate == 0
    });
    // The guest has asked for some itself meanwhile.
    assert!(Pages(vm.swap.unswapped) >= mib(8), "{vm:#?}");
}

fn swapped_pages_come_back_when_an_operator_asks(engine: &str) {
    let host = host(engine, "128M", &[]);
    let (guest, vm) = swapped_out(&host);
    assert_eq!(vm.swap.unswapped, 0, "nobody has asked");
    let asked = host.command("vm unswap g --rate 16M").output();
    let said = String::from_utf8(asked.expect("it runs").stdout).expect("text");
    let expected = "in the swap file, 16.0 MiB a second come back while memory is free";
    assert!(said.contains(expected), "{said}");
    come_back(&host, engine);
    end(host, [guest], &[]);
}

fn swapped_pages_come_back_by_themselves_where_that_is_set(engine: &str) {
    let host = host(engine, "128M", &["Memvisor.UnswapRate=64"]);
    let (guest, _) = swapped_out(&host);
    come_back(&host, engine);
    end(host, [guest], &[]);
}
