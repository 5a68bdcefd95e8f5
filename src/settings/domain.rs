//! With which other VMs a VM shares pages.
//!
//! Sharing across VMs lets a guest find out, by how long a write takes, what is in the memory of another. ESX
//! therefore salts: VMs share only if their salts are equal, and since 2014 a VM to which no salt was given has
//! one of its own unless `Mem.ShareForceSalting` says otherwise.

use super::choice::ForceSalting;
use crate::units::VmId;

/// A set of VMs that share pages with each other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Domain {
    /// All VMs that are in no other domain.
    Common,
    /// The VMs of this salt.
    Salt(String),
    /// This VM alone: it shares within itself.
    Own(VmId),
    /// No sharing at all, not even within the VM.
    None,
}

impl Domain {
    /// The domain of a VM. `salt` is its `sched.mem.pshare.salt`, where an empty text means a domain
    /// of its own; `sharing` is its `sched.mem.pshare.enable`.
    #[must_use]
    pub fn of(id: VmId, salt: Option<&str>, sharing: bool, force: ForceSalting) -> Self {
        match (force, salt) {
            _ if !sharing => Self::None,
            (ForceSalting::Ignore, _) | (ForceSalting::Common, None) => Self::Common,
            (_, Some(salt)) if !salt.is_empty() => Self::Salt(salt.to_owned()),
            _ => Self::Own(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_follows_the_table_of_esx() {
        let id = VmId(7);
        let salted = || Domain::Salt("a".to_owned());
        for (force, with_salt, with_empty, without) in [
            (
                ForceSalting::Ignore,
                Domain::Common,
                Domain::Common,
                Domain::Common,
            ),
            (
                ForceSalting::Common,
                salted(),
                Domain::Own(id),
                Domain::Common,
            ),
            (
                ForceSalting::Own,
                salted(),
                Domain::Own(id),
                Domain::Own(id),
            ),
        ] {
            let domain = |salt| Domain::of(id, salt, true, force);
            assert_eq!(domain(Some("a")), with_salt, "{force:?}");
            assert_eq!(domain(Some("")), with_empty, "{force:?}");
            assert_eq!(domain(None), without, "{force:?}");
            assert_eq!(Domain::of(id, Some("a"), false, force), Domain::None);
        }
    }
}
