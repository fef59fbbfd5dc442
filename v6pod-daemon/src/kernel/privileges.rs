//! The daemon's capabilities: four, and no way to more.
//!
//! Guarantee: after [`keep_only_needed`] neither this thread nor any thread or program that it starts
//! can have another capability. Capabilities belong to threads: it must be called before there is a
//! second one.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;

/// What the daemon needs, and what for.
pub const NEEDED: [Capability; 4] = [
    // Links, addresses, routes, sysctls.
    Capability::CAP_NET_ADMIN,
    // To enter a namespace and to ask who owns it.
    Capability::CAP_SYS_ADMIN,
    // Other users' /proc/PID/ns.
    Capability::CAP_SYS_PTRACE,
    // Other users' container state, read by id.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Why the capabilities are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Started without some of them.
    #[error("v6podd needs to be started as root or with {}", names(.0))]
    Missing(Vec<Capability>),
    /// The kernel refused.
    #[error("cannot give up capabilities")]
    Caps(#[from] CapsError),
    /// The kernel refused no_new_privs.
    #[error("cannot renounce new privileges")]
    NoNewPrivs(#[source] Errno),
}

/// Gives up every capability but the [`NEEDED`] ones, for good.
pub fn keep_only_needed() -> Result<(), PrivilegeError> {
    let needed = CapsHashSet::from(NEEDED);
    let permitted = caps::read(None, CapSet::Permitted)?;
    let missing: Vec<_> = NEEDED.into_iter().filter(|cap| !permitted.contains(cap)).collect();
    if !missing.is_empty() {
        return Err(PrivilegeError::Missing(missing));
    }
    // The bounding set can be cut with CAP_SETPCAP only. Who starts us without that, as systemd does,
    // has cut it; where not, no_new_privs keeps programs from gaining by it.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for cap in caps::read(None, CapSet::Bounding)?.difference(&needed) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    // What is as it should be is not set again: the unit's filter has no capset. The effective ones
    // first: they must be permitted at every moment.
    for set in [CapSet::Effective, CapSet::Permitted] {
        if caps::read(None, set)? != needed {
            caps::set(None, set, &needed)?;
        }
    }
    // With no_new_privs they give a program nothing unless they are ambient as well.
    if !caps::read(None, CapSet::Inheritable)?.is_subset(&needed) {
        caps::clear(None, CapSet::Inheritable)?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivs)
}

/// Runs `start` with CAP_NET_ADMIN ambient: a program that it starts on this thread (`nft`) has this
/// one capability, also where the daemon is not root, and cannot gain another. Nothing else that the
/// daemon starts has any. Of root's programs the bounding set decides, as ever.
pub fn lending_net_admin<T>(start: impl FnOnce() -> T) -> Result<T, PrivilegeError> {
    let lent = Lent::new()?;
    let result = start();
    drop(lent);
    Ok(result)
}

/// While it lives, this thread's programs have CAP_NET_ADMIN.
struct Lent;

impl Lent {
    fn new() -> Result<Self, PrivilegeError> {
        // The kernel makes ambient only what can be inherited (capabilities(7)). Started by the unit
        // the daemon has that already, and could not add it.
        if !caps::has_cap(None, CapSet::Inheritable, Capability::CAP_NET_ADMIN)? {
            caps::raise(None, CapSet::Inheritable, Capability::CAP_NET_ADMIN)?;
        }
        caps::raise(None, CapSet::Ambient, Capability::CAP_NET_ADMIN)?;
        Ok(Self)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = caps::drop(None, CapSet::Ambient, Capability::CAP_NET_ADMIN) {
            tracing::error!(%error, "a thread keeps a capability for its programs");
        }
    }
}

fn names(caps: &[Capability]) -> String {
    caps.iter().map(Capability::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;
    use crate::kernel::testing::in_netns;

    /// Capabilities belong to threads, and a child has those of the thread that made it.
    fn status() -> String {
        let output = Command::new("grep")
            .args(["-E", "^(Cap|NoNewPrivs)", "/proc/self/status"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn four_capabilities_stay_and_no_program_gets_more() {
        in_netns(|| {
            keep_only_needed().unwrap();
            // Bits 2, 12, 19 and 21.
            let four = "0000000000281004";
            let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            for (set, bits) in [
                ("CapInh", "0000000000000000"),
                ("CapPrm", four),
                ("CapEff", four),
                ("CapBnd", four),
                ("CapAmb", "0000000000000000"),
                ("NoNewPrivs", "1"),
            ] {
                assert!(own.contains(&format!("{set}:\t{bits}\n")), "{set}: {own}");
            }
            // root's programs get what the bounding set lets them, and no more.
            assert!(status().contains(&format!("CapEff:\t{four}")), "{}", status());
            // Once more is fine, and so is a start that was given just these.
            keep_only_needed().unwrap();
            thread::spawn(|| keep_only_needed().unwrap()).join().unwrap();
        });
    }

    #[test]
    fn a_program_is_lent_one_capability_and_the_next_has_none() {
        in_netns(|| {
            keep_only_needed().unwrap();
            let lent = lending_net_admin(status).unwrap();
            assert!(lent.contains("CapAmb:\t0000000000001000"), "{lent}");
            assert!(status().contains("CapAmb:\t0000000000000000"));
        });
    }

    #[test]
    fn a_missing_capability_is_named() {
        in_netns(|| {
            caps::drop(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap();
            caps::drop(None, CapSet::Permitted, Capability::CAP_SYS_PTRACE).unwrap();
            let error = keep_only_needed().unwrap_err().to_string();
            assert!(error.ends_with("with CAP_SYS_PTRACE"), "{error}");
        });
    }
}
