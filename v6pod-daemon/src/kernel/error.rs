//! One error for all that is asked of the kernel.

use std::borrow::Cow;
use std::io;

use nix::errno::Errno;
use v6pod_proto::LinkName;

/// What the kernel was asked for, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {cause}")]
pub struct Error {
    doing: Cow<'static, str>,
    cause: Cause,
}

/// Why.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// The kernel refused a message; `text` is its extended acknowledgement.
    #[error("{errno}{}", text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Kernel { errno: Errno, text: Option<Box<str>> },
    /// A system call failed.
    #[error("{0}")]
    Io(io::Error),
    /// The container has an interface of that name.
    #[error("there is an interface {0} in the namespace")]
    NameTaken(LinkName),
    /// The namespace's owner has switched IPv6 off for new interfaces.
    #[error("IPv6 is switched off in the namespace (net.ipv6.conf.default.disable_ipv6)")]
    NoIpv6,
    /// A link bears a name that is ours and is not one of ours.
    #[error("the link {0} exists and is not of this instance")]
    NotOurs(LinkName),
    /// The tables of the firewall are not there.
    #[error("there is no firewall table {0}: was the ruleset flushed? Restart v6podd")]
    NoRules(Box<str>),
    /// No answer within the time a kernel needs.
    #[error("no answer from the kernel")]
    Silent,
    /// Something changed again and again while it was read.
    #[error("it changes faster than it can be read")]
    Unsettled,
    /// An answer that is none.
    #[error("the kernel's answer makes no sense: {0}")]
    Garbled(&'static str),
    /// The job that should have done it panicked.
    #[error("the job panicked or was dropped")]
    Lost,
}

impl Error {
    pub(super) fn new(doing: impl Into<Cow<'static, str>>, cause: Cause) -> Self {
        Self { doing: doing.into(), cause }
    }

    pub(super) fn io(doing: impl Into<Cow<'static, str>>, error: impl Into<io::Error>) -> Self {
        Self::new(doing, Cause::Io(error.into()))
    }

    /// The same cause, said in words of who asked.
    pub(super) fn while_doing(self, doing: impl Into<Cow<'static, str>>) -> Self {
        Self { doing: doing.into(), ..self }
    }

    /// The kernel's error number, if there is one.
    pub fn errno(&self) -> Option<Errno> {
        match &self.cause {
            Cause::Kernel { errno, .. } => Some(*errno),
            Cause::Io(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// It is there already.
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// What was to be changed or taken away is not there: a link, a route, an entry, a process.
    pub fn is_gone(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, ENODEV, ENOENT, ENXIO, ESRCH};
        matches!(self.errno(), Some(ENODEV | ENOENT | ENXIO | ESRCH | EADDRNOTAVAIL))
    }

    /// The bridge has no port left (EXFULL: 1,023 is Linux's limit).
    pub fn is_full(&self) -> bool {
        self.errno() == Some(Errno::EXFULL)
    }

    /// The daemon lacks a capability, or its sandbox forbids it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno(), Some(Errno::EPERM | Errno::EACCES | Errno::EROFS))
    }

    /// The container has an interface of the wanted name: another name may do.
    pub fn name_taken(&self) -> Option<&LinkName> {
        match &self.cause {
            Cause::NameTaken(name) => Some(name),
            _ => None,
        }
    }

    /// The container's namespace has IPv6 switched off for new interfaces.
    pub fn has_no_ipv6(&self) -> bool {
        matches!(self.cause, Cause::NoIpv6)
    }

    /// The firewall's tables are gone: somebody flushed the ruleset.
    pub fn has_no_rules(&self) -> bool {
        matches!(self.cause, Cause::NoRules(_))
    }

    /// A link has our name and is somebody else's.
    pub fn is_not_ours(&self) -> bool {
        matches!(self.cause, Cause::NotOurs(_))
    }
}

/// Makes "is gone already" a success.
pub(super) fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_tried_and_what_the_kernel_said() {
        let cause = Cause::Kernel { errno: Errno::EXFULL, text: Some("too many ports".into()) };
        let error = Error::new("add a port", cause);
        assert!(error.is_full() && !error.is_gone());
        assert_eq!(error.to_string(), "cannot add a port: EXFULL: Exchange full (too many ports)");
    }
}
