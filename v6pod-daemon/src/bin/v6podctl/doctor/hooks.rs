//! The OCI hook files of this machine. Podman reads them all at each start of a container, and one that is no hook
//! keeps every container of every user from starting.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::conf::Unread;
use super::finding::{Finding, word};

/// Where podman reads them, for every user.
pub(crate) const FOLDER: &str = "/usr/share/containers/oci/hooks.d";
/// What ours is called there.
const OURS: &str = "v6pod.json";
/// What it says.
const OURS_TEXT: &str = include_str!("../../../../../systemd/v6pod-hook.json");
/// Where programs are in that text.
const LIBEXEC: &str = "/usr/libexec/v6pod";

/// When a hook can be run (oci-hooks(5)).
const STAGES: [&str; 7] = [
    "precreate",
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// One file that ends with `.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookFile {
    pub(crate) name: String,
    pub(crate) text: Result<String, Unread>,
    /// Whether every user can read it.
    pub(crate) for_all: bool,
}

/// What was seen of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) files: Vec<HookFile>,
    /// Where v6pod's programs are.
    pub(crate) libexec: String,
}

#[derive(Debug, Deserialize)]
struct Versioned {
    version: String,
}

/// The parts without which a file is no hook (oci-hooks(5)).
#[derive(Debug, Deserialize)]
struct Hook {
    hook: Program,
    when: BTreeMap<String, IgnoredAny>,
    stages: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Program {
    path: String,
}

/// The program of the hook that a text is, or why it is none. Of hooks of the older kind nothing is said.
fn parse(text: &str) -> Result<Option<String>, String> {
    let Versioned { version } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match &*version {
        "1.0.0" => {}
        "0.1.0" => return Ok(None),
        other => return Err(format!("version {other:?} is not 1.0.0")),
    }
    let hook: Hook = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Some(stage) = hook.stages.iter().find(|stage| !STAGES.contains(&&***stage)) {
        return Err(format!("{stage:?} is no stage"));
    }
    if hook.stages.is_empty() || hook.when.is_empty() {
        return Err("it says no stage, or not when".to_owned());
    }
    if !hook.hook.path.starts_with('/') {
        return Err(format!("the program's path {:?} is not absolute", hook.hook.path));
    }
    Ok(Some(hook.hook.path))
}

impl Facts {
    /// What is wrong with them.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut found: Vec<_> = self.files.iter().filter_map(|file| self.judge_one(file)).collect();
        if !self.files.iter().any(|file| file.name == OURS) {
            let what = format!(
                "{FOLDER}/{OURS} is not there: what containers ask for by annotations is not heard"
            );
            found.push(Finding::broken("hook-missing", what).root(self.write()));
        }
        found
    }

    fn judge_one(&self, file: &HookFile) -> Option<Finding> {
        let path = format!("{FOLDER}/{}", file.name);
        let ours = file.name == OURS;
        let nobody = "no container of any user starts";
        let why = match &file.text {
            Ok(_) if !file.for_all => None,
            Err(Unread::Denied) => None,
            Err(Unread::Failed(why)) => Some(why.clone()),
            Ok(text) => match parse(text) {
                Ok(Some(program)) if ours && program != format!("{}/v6pod-hook", self.libexec) => {
                    let what = format!(
                        "{path} names {program:?}, which is not v6pod's: what containers ask for by annotations is not heard"
                    );
                    return Some(Finding::broken("hook-elsewhere", what).root(self.write()));
                }
                Ok(_) => return None,
                Err(why) => Some(why),
            },
        };
        let Some(why) = why else {
            let what = format!("{path} cannot be read by everybody: {nobody}");
            let line = format!("chmod a+r {}", word(&path));
            return Some(Finding::broken("hook-unreadable", what).root(line));
        };
        let what = format!("{path} is no hook: {nobody}: {why}");
        Some(if ours {
            Finding::broken("hook-broken", what).root(self.write())
        } else {
            let line = format!("mv -f {0} {0}.broken", word(&path));
            Finding::broken("hook-of-others-broken", what).root(line)
        })
    }

    /// Makes our file what it was; in one go, for half a hook is none.
    fn write(&self) -> String {
        let text = OURS_TEXT.replace(LIBEXEC, &self.libexec);
        let line: String = text.lines().map(str::trim).collect();
        format!(
            "printf '%s\\n' {} | install -D -m 0644 /dev/stdin {FOLDER}/.v6pod.new && mv -f {FOLDER}/.v6pod.new {FOLDER}/{OURS}",
            word(&line)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> HookFile {
        HookFile { name: name.to_owned(), text: Ok(text.to_owned()), for_all: true }
    }

    fn judged(files: Vec<HookFile>) -> Vec<&'static str> {
        let facts = Facts { files, libexec: LIBEXEC.to_owned() };
        facts.judge().into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_is_no_hook_is_named_whosever_it_is() {
        let fine = || file(OURS, OURS_TEXT);
        assert_eq!(judged(vec![fine(), file("other.json", OURS_TEXT)]), [""; 0]);
        assert_eq!(judged(Vec::new()), ["hook-missing"]);
        for wrong in [
            "",
            "{",
            "{}",
            &OURS_TEXT.replace("1.0.0", "2.0.0"),
            &OURS_TEXT.replace("poststop", "poststopp"),
            &OURS_TEXT.replace("/usr/libexec", "usr/libexec"),
        ] {
            assert_eq!(judged(vec![file(OURS, wrong)]), ["hook-broken"], "{wrong}");
            assert_eq!(judged(vec![fine(), file("a.json", wrong)]), ["hook-of-others-broken"]);
        }
        assert_eq!(
            judged(vec![file(OURS, &OURS_TEXT.replace("/usr/", "/opt/"))]),
            ["hook-elsewhere"]
        );
        let older = r#"{"version": "0.1.0", "hook": "/usr/bin/x"}"#;
        assert_eq!(judged(vec![fine(), file("a.json", older)]), [""; 0]);
        let closed = HookFile { for_all: false, ..fine() };
        assert_eq!(judged(vec![closed.clone()]), ["hook-unreadable"]);
        let denied = HookFile { text: Err(Unread::Denied), ..closed };
        assert_eq!(judged(vec![denied]), ["hook-unreadable"]);
    }
}
