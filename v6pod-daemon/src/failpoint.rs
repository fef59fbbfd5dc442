//! Points at which a test can have the daemon die, as by `kill -9`, and such at which it can have the kernel refuse.
//!
//! Guarantee: without the cargo feature `failpoints` there is nothing of it in the program. With it,
//! `V6POD_FAILPOINT=NAME` ends the process where that point is first reached, `NAME:N` where it is
//! reached for the Nth time: at once, with nothing written, closed or undone. Of what can [fail](fails) it is that
//! time that does.

/// All points.
#[cfg(any(feature = "failpoints", test))]
mod names;

#[cfg(feature = "failpoints")]
pub(crate) use armed::{fails, reach, reach_step};
#[cfg(any(feature = "failpoints", test))]
pub use names::NAMES;

/// The daemon dies here, if this is the point that was asked for.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn reach(_: &str) {}

/// The same between two steps, for `PHASE:STEP`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn reach_step(_: &str, _: &crate::core::Step) {}

/// Whether what is asked of the kernel next is to fail.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn fails(_: &str) -> bool {
    false
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::env;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use crate::core::Step;

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let wish = env::var("V6POD_FAILPOINT").ok()?;
        let counted = wish.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?)));
        let (name, count) = counted.unwrap_or((wish.as_str(), 1));
        Some(Armed { name: name.to_owned(), left: AtomicU64::new(count) })
    });

    pub(crate) fn fails(name: &str) -> bool {
        let armed = ARMED.as_ref().filter(|armed| armed.name == name);
        armed.is_some_and(|armed| armed.left.fetch_sub(1, Ordering::Relaxed) == 1)
    }

    pub(crate) fn reach(name: &str) {
        if fails(name) {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            // Not one instruction further, should the signal take its time.
            loop {
                std::thread::park();
            }
        }
    }

    pub(crate) fn reach_step(phase: &str, step: &Step) {
        if ARMED.is_some() {
            reach(&super::step_name(phase, step));
        }
    }
}

/// The point behind a step.
#[cfg(any(feature = "failpoints", test))]
fn step_name(phase: &str, step: &crate::core::Step) -> String {
    format!("{phase}:{step:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use v6pod_proto::Mode;

    use super::*;
    use crate::core::step::attach;

    #[test]
    fn there_is_a_point_behind_every_step_and_every_undo() {
        for step in [Mode::Bridge, Mode::Routed].into_iter().flat_map(attach) {
            for phase in ["making", "undo"] {
                let name = step_name(phase, step);
                assert!(NAMES.contains(&name.as_str()), "{name} is missing from NAMES");
            }
        }
    }

    #[test]
    fn no_point_is_named_twice() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
