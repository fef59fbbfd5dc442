//! The daemon's configuration file: whether it can be done, and if not, whether the line can go that keeps it from that.
//!
//! Guarantee: of a line that can go nobody is worse off. It says one thing alone, that thing means nothing where it
//! stands, and it is no restriction that somebody has put into the wrong place.

use toml::{Table, Value};
use v6pod_daemon::config::{Config, Mistake};

/// The tables in which nothing restricts anybody: the top, and this one. A table that is new is none of them.
const HARMLESS: [&str; 2] = ["", "renumber"];

/// Where a key that means nothing at its place may have been meant to stand.
const MEANT: [&str; 8] =
    ["", "addresses.", "limits.", "firewall.", "registry.", "registry.consul.", "dns.", "api."];

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    /// It can be done.
    Fine,
    /// It cannot, because of this line.
    Wrong {
        /// The first is 1.
        line: usize,
        /// The line, and what is wrong with it.
        why: String,
        /// Whether nothing is lost with it.
        can_go: bool,
    },
    /// The caller may not read it.
    Unread,
}

/// The configuration that a file's text means, if it can be done.
pub(crate) fn read(text: &str) -> (Option<Config>, Written) {
    let mistake = match Config::parse(text) {
        Ok(config) => return (Some(config), Written::Fine),
        Err(mistake) => mistake,
    };
    let (line, can_go) = match &mistake {
        Mistake::Syntax { line, .. } | Mistake::Value { line, .. } => (*line, false),
        Mistake::UnknownKey { line, key, .. } => (*line, can_go(text, *line, key)),
    };
    (None, Written::Wrong { line, why: mistake.to_string(), can_go })
}

/// Whether nothing is lost with the line on which this unknown key begins.
fn can_go(text: &str, line: usize, key: &str) -> bool {
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    HARMLESS.contains(&table) && !is_meant_elsewhere(name) && is_alone(text, line, table, name)
}

/// Whether another table has a key of this name, or one that cannot be asked for.
fn is_meant_elsewhere(name: &str) -> bool {
    MEANT.iter().any(|table| {
        let written = Config::parse(&format!("{table}{name} = 0"));
        !matches!(written, Err(Mistake::UnknownKey { .. }))
    })
}

/// Whether the text without the line is the text without the key, whose value is neither a list nor a table: those
/// may well be restrictions under a name that is mistyped.
fn is_alone(text: &str, line: usize, table: &str, name: &str) -> bool {
    let lines = text.split_inclusive('\n').enumerate();
    let without: String = lines.filter(|(at, _)| at + 1 != line).map(|(_, text)| text).collect();
    let parse = |text: &str| toml::from_str::<Table>(text);
    let (Ok(mut whole), Ok(rest)) = (parse(text), parse(&without)) else { return false };
    let of = match table {
        "" => Some(&mut whole),
        table => whole.get_mut(table).and_then(Value::as_table_mut),
    };
    let gone = of.and_then(|of| of.remove(name));
    gone.is_some_and(|value| !value.is_table() && !value.is_array()) && whole == rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can_go_of(text: &str) -> bool {
        match read(text) {
            (None, Written::Wrong { can_go, .. }) => can_go,
            other => panic!("{text:?} is {other:?}"),
        }
    }

    #[test]
    fn a_line_that_may_restrict_somebody_is_not_to_be_commented_out() {
        for text in [
            // Values, of whatever key.
            "[limits]\nusers = [\"alice\", \"b b\"]",
            "[firewall]\negress = \"denied\"",
            "[api]\ntcp = [\"192.0.2.1:80\"]",
            "nat66 = \"nevr\"",
            "prefix = ",
            // Mistyped, of a table that restricts.
            "[limits]\nuser = [\"alice\"]",
            "[limits]\nper_user = 3",
            "[firewall]\negres = \"deny\"",
            "[[firewall.allow]]\nusers = []\nports = []\nuser = 1",
            "[addresses]\nwish = \"alice\"",
            "[dns]\nscop = \"owner\"",
            "[registry]\nreservd = \"db\"",
            "[registry.consul]\ndatacentre = \"a\"",
            // Mistyped tables, in which restrictions are.
            "[firewal]\negress = \"deny\"",
            "firewal.egress = \"deny\"",
            "limit = { users = [\"alice\"] }",
            "[[alow]]\nusers = []",
            "userz = [\"alice\"]",
            // At the end of a file, and so in its last table; or at its beginning, and so in none.
            "[renumber]\ngrace = \"1m\"\nnat66 = \"never\"",
            "[renumber]\negress = \"deny\"",
            "egress = \"deny\"",
            "ingress = \"deny\"\n[firewall]",
            "scope = \"owner\"",
            "reserved = \"db\"",
            "datacenter = \"a\"",
            // Commented out, it would be something else.
            "uplnk = \"\"\"\nup0\"\"\"",
            "renumber = { grase = \"1m\", settle = \"5s\" }",
            "\"a b\" = 1",
        ] {
            assert!(!can_go_of(text), "{text}");
        }
    }

    #[test]
    fn a_key_that_nothing_knows_can_go() {
        for text in [
            "uplnk = \"up0\"",
            "prefix = \"auto\"\nuplnk = \"up0\" # mine\n[limits]\nusers = [\"alice\"]\n",
            "[renumber]\n  grase = \"1m\"\n[firewall]\negress = \"deny\"\n",
        ] {
            assert!(can_go_of(text), "{text}");
        }
        assert_eq!(read("").1, Written::Fine);
    }
}
