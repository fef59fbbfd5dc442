//! For whom something is printed: a person at a terminal is told more, by name and in colour; whatever reads a
//! pipe gets the same plain text on every machine.

use std::io::{IsTerminal as _, stderr, stdout};

use nix::unistd::User;
use v6pod_proto::{Attachment, NameState, State, Uid};

/// How a text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Not at all.
    Plain,
    /// What is looked for.
    Bold,
    /// What only says what stands beside it.
    Quiet,
    /// What is as it should be.
    Good,
    /// What is not.
    Warn,
}

/// For whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    person: bool,
    colour: bool,
}

impl Look {
    /// For whatever reads a pipe.
    #[cfg(test)]
    pub(crate) const PIPE: Self = Self { person: false, colour: false };
    /// For a person who can do with colours.
    #[cfg(test)]
    pub(crate) const COLOUR: Self = Self { person: true, colour: true };

    /// For whoever standard output goes to. `NO_COLOR` (no-color.org) and a terminal that says that it is dumb
    /// are heeded.
    pub(crate) fn of_stdout() -> Self {
        let person = stdout().is_terminal();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { person, colour: person && !dumb && !is_set("NO_COLOR") }
    }

    /// This text, already printable, in this ink (ECMA-48, SGR).
    pub(crate) fn ink(self, text: &str, ink: Ink) -> String {
        let code = match ink {
            Ink::Bold => "1",
            Ink::Quiet => "2",
            Ink::Good => "32",
            Ink::Warn => "33",
            Ink::Plain => return text.to_owned(),
        };
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Who that is: his account's name for a person, if he has one.
    pub(crate) fn who(self, uid: Uid) -> String {
        let account = self.person.then(|| User::from_uid(uid.as_raw().into()));
        // Who is not to be had by name now has his number.
        account.and_then(Result::ok).flatten().map_or_else(|| uid.to_string(), |user| user.name)
    }

    /// Tells a person where to go next, on standard error, if that is a terminal too.
    pub(crate) fn hint(self, words: &str) {
        if self.person && stderr().is_terminal() {
            eprintln!("{}", self.ink(words, Ink::Quiet));
        }
    }
}

/// In which ink a state stands.
pub(crate) const fn of_state(state: State) -> Ink {
    match state {
        State::Serving => Ink::Good,
        State::Reserved | State::Wired | State::Ending => Ink::Warn,
    }
}

/// Where to go from a list.
pub(crate) fn after_list(attachments: &[Attachment]) -> &'static str {
    if attachments.is_empty() {
        "None of yours. `v6podctl status` says what v6podd does and does not; `v6podctl watch` tells of the next one."
    } else {
        "`v6podctl show NAME` says all of one, `v6podctl watch` what happens from now on."
    }
}

/// Where to go from one.
pub(crate) fn after_one(a: &Attachment) -> &'static str {
    if a.names.iter().any(|name| name.state == NameState::Refused) {
        "`v6podctl rename NAME OTHER` has it registered by a name that is free."
    } else if a.openings.is_empty() {
        "Nothing is open: `v6podctl open NAME tcp/80` opens a port, `v6podctl explain outside NAME tcp/80` says why."
    } else {
        "`v6podctl explain outside NAME tcp/80` says who reaches a port, `v6podctl close NAME tcp/80` closes it."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_neither_colours_nor_accounts() {
        let root = Uid::new(0).unwrap();
        assert_eq!(
            (Look::PIPE.ink("x", Ink::Good).as_str(), Look::PIPE.who(root)),
            ("x", "0".into())
        );
        assert_eq!(Look::COLOUR.ink("x", Ink::Good), "\u{1b}[32mx\u{1b}[0m");
        assert_eq!(Look::COLOUR.ink("", Ink::Bold), "");
        assert_eq!(Look::COLOUR.who(root), "root");
    }

    #[test]
    fn who_has_no_account_is_a_number() {
        assert_eq!(Look::COLOUR.who(Uid::new(3_999_999_999).unwrap()), "3999999999");
    }
}
