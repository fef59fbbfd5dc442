//! How many descriptors the daemon may have.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it may be raised, and gives it. Programs that still use select(2) are
/// why it begins low (systemd.exec(5), LimitNOFILE=); the daemon does not.
pub fn raise_limit() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (current, maximum.unwrap_or(u64::MAX)) else { return Ok(u64::MAX) };
    // Where nothing is to be raised nothing is called: a sandbox may forbid it.
    if soft < hard {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(hard)
}

/// The limit as it is.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_high_as_it_can_be() {
        let before = getrlimit(Resource::Nofile);
        // As low as a login has it: other tests of this process need some.
        let low = Rlimit { current: before.maximum.map(|most| most.min(1024)), ..before };
        setrlimit(Resource::Nofile, low).unwrap();
        let limit = raise_limit().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.maximum), (before.maximum, before.maximum));
        assert_eq!(limit, before.maximum.unwrap_or(u64::MAX));
        assert_eq!(raise_limit().unwrap(), limit);
    }
}
