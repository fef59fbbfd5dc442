//! Podman's configuration as it is in force for a user: does it lead to v6pod's programs, and does a container
//! get an address without asking?
//!
//! Podman reads several files, of which a later one overrules an earlier one key by key (containers.conf(5)):
//! `/usr/share/containers`, `/etc/containers`, its drop-ins, the user's own and its drop-ins. `CONTAINERS_CONF`
//! takes the place of all, `CONTAINERS_CONF_OVERRIDE` is read last.

use serde::Deserialize;

use super::finding::{By, Finding, word};
use super::programs::Version;

/// Where our drop-in is.
pub(crate) const DROP_IN: &str = "/etc/containers/containers.conf.d/10-v6pod.conf";
/// What it says.
const DROP_IN_TEXT: &str = include_str!("../../../../../systemd/10-v6pod.conf");
/// Where programs are in that text.
const LIBEXEC: &str = "/usr/libexec/v6pod";
/// What older podmans read alone.
const MAIN: &str = "/etc/containers/containers.conf";

/// Since when podman reads drop-ins.
const DROP_INS: Version = Version(3, 3, 0);
/// Since when it knows pasta, and since when that is its default.
const PASTA: Version = Version(4, 4, 0);
const PASTA_FIRST: Version = Version(5, 0, 0);
/// Since when it has no slirp4netns.
const NO_SLIRP4NETNS: Version = Version(6, 0, 0);

/// Who may change a file, or where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Everybody's.
    System,
    /// The caller's own.
    User,
    /// The caller's own, by this variable.
    Variable(&'static str),
}

/// Why there is no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The caller may not read it.
    Denied,
    /// Something else.
    Failed(String),
}

/// One file, in the order in which podman reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) path: String,
    pub(crate) whose: Whose,
    pub(crate) text: Result<String, Unread>,
    /// Whether every user can read it.
    pub(crate) for_all: bool,
}

/// What was seen of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) layers: Vec<Layer>,
    /// Whose configuration it is; root's is what every user starts from.
    pub(crate) user: By,
    pub(crate) podman: Version,
    /// Where v6pod's programs are.
    pub(crate) libexec: String,
    /// `CONTAINERS_HELPER_BINARY_DIR`, which comes before all of `helper_binaries_dir`.
    pub(crate) first_helpers: Option<String>,
}

/// What of a file matters here. Keys that are not here mean nothing to us; a value of the wrong type is one that
/// podman does not take either.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    engine: Engine,
    containers: Containers,
    network: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Engine {
    network_cmd_path: Option<String>,
    helper_binaries_dir: Option<Vec<Item>>,
    hooks_dir: Option<Vec<Item>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Containers {
    netns: Option<String>,
    annotations: Option<Vec<Item>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    default_rootless_network_cmd: Option<String>,
}

/// An element of a list. `{append=true}` has the list appended to what was there.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Item {
    Text(String),
    Attribute { append: bool },
}

/// A value, and which file it is of.
#[derive(Debug, Clone)]
struct Set<'a, T> {
    value: T,
    by: &'a Layer,
}

/// What is in force.
#[derive(Debug, Default)]
struct Effective<'a> {
    network_cmd_path: Option<Set<'a, String>>,
    helper_binaries_dir: Option<Set<'a, Vec<String>>>,
    hooks_dir: Option<Set<'a, Vec<String>>>,
    netns: Option<Set<'a, String>>,
    annotations: Option<Set<'a, Vec<String>>>,
    network_cmd: Option<Set<'a, String>>,
}

impl<'a> Effective<'a> {
    fn take(&mut self, layer: &'a Layer, file: File) {
        fn text<'a>(slot: &mut Option<Set<'a, String>>, value: Option<String>, by: &'a Layer) {
            // Set to nothing is not set.
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                *slot = Some(Set { value, by });
            }
        }
        fn list<'a>(
            slot: &mut Option<Set<'a, Vec<String>>>,
            items: Option<Vec<Item>>,
            by: &'a Layer,
        ) {
            let Some(items) = items else { return };
            let appends = items.iter().any(|item| matches!(item, Item::Attribute { append: true }));
            let before = slot.take().filter(|_| appends).map_or_else(Vec::new, |set| set.value);
            let new = items.into_iter().filter_map(|item| match item {
                Item::Text(text) => Some(text),
                Item::Attribute { .. } => None,
            });
            *slot = Some(Set { value: before.into_iter().chain(new).collect(), by });
        }
        text(&mut self.network_cmd_path, file.engine.network_cmd_path, layer);
        list(&mut self.helper_binaries_dir, file.engine.helper_binaries_dir, layer);
        list(&mut self.hooks_dir, file.engine.hooks_dir, layer);
        text(&mut self.netns, file.containers.netns, layer);
        list(&mut self.annotations, file.containers.annotations, layer);
        text(&mut self.network_cmd, file.network.default_rootless_network_cmd, layer);
    }
}

impl Facts {
    /// What is wrong with it.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut effective = Effective::default();
        for layer in &self.layers {
            match &layer.text {
                Err(Unread::Denied) => found.push(self.unreadable(layer)),
                Err(Unread::Failed(why)) => found.push(self.broken(layer, why)),
                Ok(text) => match toml::from_str(text) {
                    Ok(file) => effective.take(layer, file),
                    Err(error) => found.push(self.broken(layer, error.message())),
                },
            }
            let readable = layer.for_all || layer.whose != Whose::System || layer.text.is_err();
            if !readable {
                found.push(self.unreadable(layer));
            }
        }
        // Podman starts nothing at all: what is in force besides, is not.
        if found.is_empty() {
            self.judge_effective(&effective, &mut found);
        }
        found
    }

    fn judge_effective(&self, effective: &Effective<'_>, found: &mut Vec<Finding>) {
        let pasta_is_first = match effective.network_cmd.as_ref().map(|set| &*set.value) {
            Some("pasta") => true,
            Some("slirp4netns") => false,
            _ => self.podman >= PASTA_FIRST,
        };
        let slirp4netns = format!("{}/slirp4netns", self.libexec);
        if self.podman < NO_SLIRP4NETNS {
            match &effective.network_cmd_path {
                Some(set) if set.value == slirp4netns => {}
                Some(set) => {
                    let what = format!("network_cmd_path is {:?}", set.value);
                    let default = !pasta_is_first;
                    found.push(self.overridden(
                        set.by,
                        "network_cmd_path",
                        &what,
                        "slirp4netns",
                        default,
                    ));
                }
                None => found.push(self.missing(!pasta_is_first, "slirp4netns")),
            }
        }
        let helpers = effective.helper_binaries_dir.as_ref();
        let is_first = |set: &Set<'_, Vec<String>>| set.value.first() == Some(&self.libexec);
        match helpers.filter(|_| self.podman >= PASTA) {
            Some(set) if !is_first(set) => {
                let what = "helper_binaries_dir does not begin with v6pod's directory";
                found.push(self.overridden(
                    set.by,
                    "helper_binaries_dir",
                    what,
                    "pasta",
                    pasta_is_first,
                ));
            }
            None if self.podman >= PASTA => found.push(self.missing(pasta_is_first, "pasta")),
            _ => {}
        }
        // One file says both.
        let first = found.iter().position(|finding| finding.code == "dropin-missing");
        if let Some(first) = first {
            let one = found.remove(first);
            found.retain(|finding| finding.code != "dropin-missing");
            found.push(one);
        }
        self.judge_habits(effective, found);
    }

    /// What a container is, or asks for, that does not say.
    fn judge_habits(&self, effective: &Effective<'_>, found: &mut Vec<Finding>) {
        const HOOKS: &str = "/usr/share/containers/oci/hooks.d";
        let for_whom = self.for_whom();
        if let Some(set) = &effective.hooks_dir
            && !set.value.iter().any(|dir| dir.trim_end_matches('/') == HOOKS)
        {
            let what = format!(
                "{} has hooks_dir without {HOOKS}: what containers of {for_whom} ask for by annotations is not heard",
                set.by.path
            );
            found.push(self.drop_key(
                Finding::broken("hooks-dir-overridden", what),
                set.by,
                "hooks_dir",
            ));
        }
        if let Some(set) = &effective.netns
            && !matches!(&*set.value, "private" | "slirp4netns" | "pasta")
        {
            let what = format!(
                "{} has netns = {:?}: containers of {for_whom} get no address unless they name another network",
                set.by.path, set.value
            );
            found.push(self.drop_key(Finding::broken("network-default", what), set.by, "netns"));
        }
        if let Some(set) = &effective.annotations
            && set.value.iter().any(|annotation| annotation == "v6pod=false")
        {
            let what = format!(
                "{} has every container of {for_whom} ask for no address (v6pod=false)",
                set.by.path
            );
            let line = format!(
                r#"sed -i 's/"v6pod=false"[[:space:]]*,\{{0,1\}}//' {}"#,
                word(&set.by.path)
            );
            let mut finding = Finding::broken("declined-by-default", what);
            if set.by.text.as_ref().is_ok_and(|text| text.contains("\"v6pod=false\"")) {
                finding = finding.run(self.owner(set.by), line);
            }
            found.push(finding);
        }
        if let Some(dir) = &self.first_helpers
            && *dir != self.libexec
            && self.podman >= PASTA
        {
            let what = format!(
                "CONTAINERS_HELPER_BINARY_DIR is {dir:?} in this environment: containers of {for_whom} on pasta get no address"
            );
            let line = "unset CONTAINERS_HELPER_BINARY_DIR";
            found.push(Finding::broken("helpers-variable", what).run(self.user.clone(), line));
        }
    }

    fn for_whom(&self) -> String {
        match &self.user {
            By::Root => "every user".to_owned(),
            By::User(name) => name.clone(),
        }
    }

    fn owner(&self, layer: &Layer) -> By {
        if layer.whose == Whose::System { By::Root } else { self.user.clone() }
    }

    fn unreadable(&self, layer: &Layer) -> Finding {
        let path = &layer.path;
        let what =
            format!("{path} cannot be read by {}: their podman starts nothing", self.for_whom());
        let line = format!("chmod a+r {}", word(path));
        Finding::broken("podman-conf-unreadable", what).run(self.owner(layer), line)
    }

    fn broken(&self, layer: &Layer, why: &str) -> Finding {
        let path = &layer.path;
        let why = why.lines().next().unwrap_or_default();
        let what = format!("podman of {} starts nothing: {path}: {why}", self.for_whom());
        let finding = Finding::broken("podman-conf-broken", what);
        let by = self.owner(layer);
        match layer.whose {
            Whose::Variable(variable) => finding.run(by, format!("unset {variable}")),
            _ if *path == DROP_IN => finding.run(by, self.write_drop_in()),
            _ => finding.run(by, format!("mv -f {0} {0}.broken", word(path))),
        }
    }

    fn overridden(
        &self,
        by: &Layer,
        key: &str,
        what: &str,
        program: &str,
        default: bool,
    ) -> Finding {
        let what = format!(
            "{}: {what}: containers of {} on {program} get no address",
            by.path,
            self.for_whom()
        );
        let code = match by.whose {
            Whose::System => "dropin-overruled",
            Whose::User => "dropin-overruled-by-user",
            Whose::Variable(_) => "dropin-overruled-by-variable",
        };
        let finding =
            if default { Finding::broken(code, what) } else { Finding::warning(code, what) };
        self.drop_key(finding, by, key)
    }

    /// Neither file nor line of ours is in force.
    fn missing(&self, default: bool, program: &str) -> Finding {
        let is_it = |layer: &&Layer| layer.whose == Whose::Variable("CONTAINERS_CONF");
        let variable = self.layers.iter().find(is_it);
        let make = if default { Finding::broken } else { Finding::warning };
        let whom = self.for_whom();
        if let Some(layer) = variable {
            let what = format!(
                "CONTAINERS_CONF={} takes the place of all other files: containers of {whom} on {program} get no address",
                layer.path
            );
            let finding = make("dropin-overruled-by-variable", what);
            return finding.run(self.user.clone(), "unset CONTAINERS_CONF");
        }
        if self.podman < DROP_INS {
            let what = format!(
                "podman {} reads no drop-ins, and {MAIN} does not name v6pod's slirp4netns: no container gets an address",
                self.podman
            );
            let finding = make("dropin-not-read", what);
            return match self.add_to_main() {
                Some(line) => finding.root(line),
                None => finding,
            };
        }
        let what =
            format!("{DROP_IN} is not there: containers of {whom} on {program} get no address");
        make("dropin-missing", what).root(self.write_drop_in())
    }

    /// Has the main file say what our drop-in says; none where one line more does not. With a table twice it would
    /// be no TOML, and podman would start nothing for anybody.
    fn add_to_main(&self) -> Option<String> {
        let program = format!("{}/slirp4netns", self.libexec);
        let key = format!("network_cmd_path = \"{program}\"");
        let main = self.layers.iter().find(|layer| layer.path == MAIN);
        let text = main.map_or(Ok(""), |layer| layer.text.as_deref()).ok()?;
        let is_table = |line: &str| line.trim_start().starts_with("[engine]");
        let (after, command) = if text.lines().any(is_table) {
            let with_key = |line| match is_table(line) {
                true => format!("{line}\n{key}\n"),
                false => format!("{line}\n"),
            };
            let script = format!(r"/^[[:space:]]*\[engine\]/a {key}");
            (text.lines().map(with_key).collect(), format!("sed -i {} {MAIN}", word(&script)))
        } else {
            // The last line may have no end.
            let words = format!("'' '[engine]' {}", word(&key));
            (format!("{text}\n[engine]\n{key}\n"), format!("printf '%s\\n' {words} >>{MAIN}"))
        };
        let file: File = toml::from_str(&after).ok()?;
        (file.engine.network_cmd_path == Some(program)).then_some(command)
    }

    /// Makes our drop-in what it was.
    fn write_drop_in(&self) -> String {
        let text = DROP_IN_TEXT.replace(LIBEXEC, &self.libexec);
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let words: Vec<String> = lines.map(word).collect();
        format!("printf '%s\\n' {} | install -D -m 0644 /dev/stdin {DROP_IN}", words.join(" "))
    }

    /// Takes a key out of a file, or the file out of the environment.
    fn drop_key(&self, finding: Finding, layer: &Layer, key: &str) -> Finding {
        let by = self.owner(layer);
        if let Whose::Variable(variable) = layer.whose {
            return finding.run(by, format!("unset {variable}"));
        }
        let is_it = |line: &str| {
            let rest = line.trim_start().strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        if !layer.text.as_ref().is_ok_and(|text| text.lines().any(is_it)) {
            // Written in a way that a line's editor does not find.
            return finding;
        }
        let begin = format!("^[[:space:]]*{key}[[:space:]]*=");
        // A list may go over several lines, and a range's end is not looked for in its first.
        let script = format!("-e '/{begin}[^[]*$/d' -e '/{begin}.*]/d' -e '/{begin}/,/]/d'");
        finding.run(by, format!("sed -i {script} {}", word(&layer.path)))
    }
}

#[cfg(test)]
mod tests;
