//! ESX's own policy: shares, and the idle memory tax on pages that a VM does not use (OSDI 2002, section 5.2).

use super::{Config, HostSnapshot, Policy, VmSnapshot, Worth};

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Esx;

impl Policy for Esx {
    fn name(&self) -> &'static str {
        "esx"
    }

    fn about(&self) -> &'static str {
        "by shares, with a tax on idle memory, as ESX does"
    }

    fn worth(&self, vm: &VmSnapshot, _: &HostSnapshot, config: &Config) -> Worth {
        Worth {
            shares: vm.shares,
            // While it is not known what a VM uses, none of its pages count as idle.
            in_use: vm.active.unwrap_or(vm.size),
            tax_percent: config.idle_tax_percent,
        }
    }

    fn because(&self, vm: &VmSnapshot) -> String {
        match vm.active {
            Some(active) => format!("it uses {} by sampling", active.bytes()),
            None => "what it uses is not known yet, so all it holds counts".to_owned(),
        }
    }
}
