//! What is on disk of the prefixes, and what a daemon makes of it when it starts.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::attachments::records::{self, absent_is_fine};
use crate::config::{Config, PrefixSource};
use crate::core::Prefix;
use crate::core::delegations::Delegations;

/// The file in the run directory.
pub(crate) const FILE: &str = "prefix.json";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Kept {
    pub(super) version: u32,
    /// The configuration's when that was written: a change of that counts more than what came before it.
    pub(super) configured: String,
    pub(super) in_force: String,
    pub(super) source: String,
    pub(super) former: Vec<String>,
    /// The ranges that were delegated to this host and have had their turn; first the one that counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) delegated: Vec<String>,
}

pub(super) const VERSION: u32 = 1;

/// The prefixes at the start of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct AtStart {
    pub(in super::super) in_force: Prefix,
    pub(in super::super) former: Vec<Prefix>,
    pub(super) source: String,
    pub(super) delegations: Delegations,
}

impl AtStart {
    /// Those of a daemon that is configured like this and would have this prefix, after one that has kept this.
    pub(in super::super) fn of(config: &Config, base: Prefix, kept: Option<&Kept>) -> Self {
        let plain = Self {
            in_force: base,
            former: Vec::new(),
            source: source_of(config).into(),
            delegations: Delegations::default(),
        };
        let Some(kept) = kept else { return plain };
        let parse = |text: &String| text.parse::<Prefix>().ok();
        let former = kept.former.iter().filter_map(parse);
        match parse(&kept.in_force) {
            Some(in_force) if kept.configured == configured(config, base) => {
                let former = former.filter(|former| former.is_apart_from(in_force)).collect();
                let source = kept.source.clone();
                Self { in_force, former, source, delegations: kept.delegations() }
            }
            // Somebody has written another one: to that everybody moves.
            before => {
                let all = before.into_iter().chain(former);
                let former = all.filter(|former| former.is_apart_from(base)).collect();
                Self { former, ..plain }
            }
        }
    }

    /// The same with the configured prefix, because something is in the way of the other one.
    pub(in super::super) fn fall_back(self, config: &Config, base: Prefix) -> Self {
        let former = [self.in_force].into_iter().chain(self.former);
        let former = former.filter(|former| former.is_apart_from(base)).collect();
        let source = source_of(config).into();
        Self { in_force: base, former, source, delegations: Delegations::default() }
    }

    /// The prefix, and those before it.
    pub(in super::super) fn all(&self) -> impl Iterator<Item = Prefix> {
        [self.in_force].into_iter().chain(self.former.iter().copied())
    }
}

impl Kept {
    /// Puts it in the place of the file, in one step.
    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        let beside = file.with_extension("new");
        fs::write(&beside, serde_json::to_vec(self)?)?;
        fs::rename(&beside, file)
    }

    fn delegations(&self) -> Delegations {
        let ranges: Vec<_> = self.delegated.iter().filter_map(|text| text.parse().ok()).collect();
        let first = ranges.first().copied();
        Delegations::heard(ranges.into_iter().collect(), first)
    }
}

const fn source_of(config: &Config) -> &'static str {
    match config.prefix {
        PrefixSource::Static(_) => "static",
        PrefixSource::Auto | PrefixSource::File(_) => "auto",
    }
}

pub(super) fn configured(config: &Config, base: Prefix) -> String {
    match &config.prefix {
        PrefixSource::Static(_) => base.to_string(),
        PrefixSource::Auto => "auto".to_owned(),
        PrefixSource::File(path) => format!("file:{}", path.display()),
    }
}

/// What an earlier daemon of this boot kept; nothing if there was none, or if that is none.
pub(in super::super) fn kept(config: &Config) -> Option<Kept> {
    let path = config.run_dir().join(FILE);
    if !path.exists() {
        return None;
    }
    let kept = records::read(&path).and_then(|bytes| {
        serde_json::from_slice::<Kept>(&bytes).map_err(|error| error.to_string())
    });
    match kept {
        Ok(kept) if kept.version == VERSION => Some(kept),
        Ok(kept) => {
            tracing::error!("{} has version {}, not {VERSION}", path.display(), kept.version);
            None
        }
        Err(why) => {
            tracing::error!("{} does not say what the prefix was: {why}", path.display());
            None
        }
    }
}

/// Removes what is kept of prefixes.
pub(crate) fn forget(config: &Config) -> io::Result<()> {
    absent_is_fine(fs::remove_file(config.run_dir().join(FILE)))
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(crate) fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    pub(crate) fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    pub(crate) fn kept(config: &Config, base: Prefix, in_force: &str) -> Kept {
        Kept {
            version: VERSION,
            configured: configured(config, base),
            in_force: in_force.to_owned(),
            source: "dhclient".to_owned(),
            former: vec!["2001:db8:9::/80".to_owned()],
            delegated: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{config, kept, prefix};
    use super::*;

    #[test]
    fn what_was_put_survives_a_restart_and_a_change_of_the_configuration_counts_more() {
        let base = prefix("2001:db8:1::/80");
        let same = config("prefix = \"2001:db8:1::/80\"");
        let kept = kept(&same, base, "2001:db8:2::/80");
        let start = AtStart::of(&same, base, Some(&kept));
        assert_eq!(start.in_force, prefix("2001:db8:2::/80"));
        assert_eq!((start.former, &*start.source), (vec![prefix("2001:db8:9::/80")], "dhclient"));
        let (other, base) = (config("prefix = \"2001:db8:3::/80\""), prefix("2001:db8:3::/80"));
        let start = AtStart::of(&other, base, Some(&kept));
        assert_eq!((start.in_force, &*start.source), (base, "static"));
        assert_eq!(start.former, [prefix("2001:db8:2::/80"), prefix("2001:db8:9::/80")]);
        assert_eq!(AtStart::of(&other, base, None).former, []);
        // One that lies in the other has no place beside it.
        let (around, base) = (config("prefix = \"2001:db8:2::/64\""), prefix("2001:db8:2::/64"));
        assert_eq!(AtStart::of(&around, base, Some(&kept)).former, [prefix("2001:db8:9::/80")]);
    }
}
