//! Shares alone: every page costs the same, used or not. The policy to compare others with.

use super::{Config, HostSnapshot, Policy, VmSnapshot, Worth};

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Equal;

impl Policy for Equal {
    fn name(&self) -> &'static str {
        "equal"
    }

    fn about(&self) -> &'static str {
        "by shares alone, whatever VMs do with their memory"
    }

    fn worth(&self, vm: &VmSnapshot, _: &HostSnapshot, _: &Config) -> Worth {
        Worth {
            shares: vm.shares,
            in_use: vm.size,
            tax_percent: 0,
        }
    }

    fn because(&self, _: &VmSnapshot) -> String {
        "every page of every VM counts the same".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::properties::{config, host};
    use super::super::Esx;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_is_esx_without_a_tax(host in host(), config in config()) {
            let untaxed = Config { idle_tax_percent: 0, ..config };
            prop_assert_eq!(Equal.plan(&host, &config), Esx.plan(&host, &untaxed));
        }
    }
}
