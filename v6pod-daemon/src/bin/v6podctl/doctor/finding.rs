//! What a doctor says: what is wrong and for whom, and the command that mends it.
//!
//! Guarantee: every command is one line that can be pasted into a shell as it stands, whatever is in the names and
//! paths that it is about ([`word`]); where those have in them what a terminal does not show, there is none.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::table::printable;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Containers start without an address, or do not start, or their address is of no use.
    Broken,
    /// They have one, and something else is not as it should be, or will not be after the next boot.
    Warning,
}

/// Who has to run a command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// The administrator.
    Root,
    /// An ordinary user, by his name.
    User(String),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::User(name) => f.write_str(name),
        }
    }
}

impl Serialize for By {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A command that mends something, and who has to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Command {
    #[serde(rename = "as")]
    pub(crate) by: By,
    pub(crate) line: String,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// One of docs/doctor.md; it never changes its meaning.
    pub(crate) code: &'static str,
    pub(crate) severity: Severity,
    /// One sentence.
    pub(crate) what: String,
    /// In this order. None where only the administrator can know what is wanted, or no line says it.
    pub(crate) commands: Vec<Command>,
}

impl Finding {
    pub(crate) fn broken(code: &'static str, what: impl Into<String>) -> Self {
        Self { code, severity: Severity::Broken, what: what.into(), commands: Vec::new() }
    }

    pub(crate) fn warning(code: &'static str, what: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::broken(code, what) }
    }

    /// What root has to run, next.
    pub(crate) fn root(self, line: impl Into<String>) -> Self {
        self.run(By::Root, line)
    }

    /// What this one has to run, next.
    pub(crate) fn run(mut self, by: By, line: impl Into<String>) -> Self {
        let line = line.into();
        // A name may have an end of line in it: as text it would be another's, and as JSON more than one line.
        if printable(&line) == line {
            self.commands.push(Command { by, line });
        }
        self
    }
}

/// Something that was not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NotSeen {
    pub(crate) check: &'static str,
    pub(crate) why: String,
    /// Whether it is somebody else's to see: that is no failure of the doctor's.
    pub(crate) by_others: bool,
}

/// All that was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    /// The checks that found nothing.
    pub(crate) passed: Vec<&'static str>,
    pub(crate) not_seen: Vec<NotSeen>,
    /// The versions of the programs that are here.
    pub(crate) versions: BTreeMap<&'static str, String>,
}

impl Report {
    /// Takes down what a check has found.
    pub(crate) fn check(&mut self, check: &'static str, findings: Vec<Finding>) {
        if findings.is_empty() {
            self.passed.push(check);
        }
        self.findings.extend(findings);
    }

    /// Takes down that a check could not be made.
    pub(crate) fn not_seen(&mut self, check: &'static str, why: impl Into<String>) {
        self.not_seen.push(NotSeen { check, why: why.into(), by_others: false });
    }

    /// Takes down that somebody else has to make a check.
    pub(crate) fn by_others(&mut self, check: &'static str, why: impl Into<String>) {
        self.not_seen.push(NotSeen { check, why: why.into(), by_others: true });
    }
}

/// A text as one word of a shell's.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_a_name_with_an_end_of_line_is_not_printed() {
        let of = |name| Finding::broken("odd", "it is odd").root(format!("rm {}", word(name)));
        assert_eq!(of("it's ä").commands[0].line, r"rm 'it'\''s ä'");
        for name in ["a\nreboot", "a\tb", "a\u{1b}[2Kb", "a\u{202e}b"] {
            assert_eq!(of(name).commands, [], "{name:?}");
            assert_eq!(of(name).what, "it is odd");
        }
    }

    #[test]
    fn a_word_is_what_a_shell_makes_of_it() {
        for text in ["/etc/a", "", "a b", "it's", "$(reboot)", "`x`", "a\nb", "-n", "*", "~", "ä;"]
        {
            let script = format!("printf %s. {}", word(text));
            let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{text}."), "{script}");
        }
        assert_eq!(word("/etc/a"), "/etc/a");
    }
}
