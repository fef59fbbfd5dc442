//! The settings of the shim, the hook and the plugins: those that are not used, and those that lead nowhere.
//!
//! Guarantee: the line that a command takes out of use is one that means nothing, or one without which the shim
//! looks for itself.

use v6pod_shim::{Mistake, Written};

use super::conf::Unread;
use super::finding::{By, Finding, word};

/// Where they are, unless `V6POD_SHIM_CONFIG` names another file.
pub(crate) const FILE: &str = "/etc/v6pod/shim.toml";

/// The file, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) path: String,
    /// Whose it is to mend: root never changes what lies where a user's variable says.
    pub(crate) by: By,
    /// What it means.
    pub(crate) written: Result<Written, Unread>,
    /// Whether all can read it whom it is for.
    pub(crate) for_all: bool,
    /// Whether there is a socket where it has v6podd asked.
    pub(crate) socket_there: bool,
    /// Of the programs that it names, the keys of those that not everybody can run.
    pub(crate) cannot_run: Vec<&'static str>,
}

impl Facts {
    /// What is wrong with it.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let path = word(&self.path);
        let written = match &self.written {
            Ok(written) if self.for_all => written,
            Ok(_) | Err(Unread::Denied) => {
                let what = format!("{}: users cannot read it: its settings do not hold", self.path);
                let line = format!("chmod a+r {path}");
                return vec![
                    Finding::warning("shim-conf-unreadable", what).run(self.by.clone(), line),
                ];
            }
            Err(Unread::Failed(why)) => {
                let what = format!("{}: {why}: its settings do not hold", self.path);
                return vec![Finding::warning("shim-conf-unreadable", what)];
            }
        };
        let mut found = Vec::new();
        if let Some(mistake) = &written.mistake {
            found.push(self.mistaken(mistake));
        }
        if !self.socket_there {
            let what = format!(
                "{}: there is no socket {}: whoever has no socket of his own beside it gets no address",
                self.path,
                written.socket.display()
            );
            found.push(
                Finding::broken("shim-socket", what).run(self.by.clone(), self.without("socket")),
            );
        }
        let programs = written.programs.iter().filter(|(key, _)| self.cannot_run.contains(key));
        found.extend(programs.map(|(key, program)| {
            let program = program.display();
            let what = format!(
                "{}: {key}: not everybody can run {program}: the first {key} that is found is run instead",
                self.path
            );
            Finding::warning("shim-program", what).run(self.by.clone(), self.without(key))
        }));
        found
    }

    fn mistaken(&self, mistake: &Mistake) -> Finding {
        let all = matches!(mistake, Mistake::Line(..));
        let lost = if all { "none of its settings holds" } else { "that does not hold" };
        let what = format!("{}: {mistake}: {lost}", self.path);
        let finding = Finding::warning("shim-conf-mistake", what);
        match mistake {
            Mistake::Line(line, _) => {
                let line = format!("sed -i '{line}s/^/#/' {}", word(&self.path));
                finding.run(self.by.clone(), line)
            }
            Mistake::Key(key, _) if is_plain(key) => {
                finding.run(self.by.clone(), self.without(key))
            }
            // Which of the lines is meant only who has written them can tell, and the first is in force.
            Mistake::Key(..) | Mistake::Twice(_) => finding,
        }
    }

    /// Comments the lines of a key out.
    fn without(&self, key: &str) -> String {
        format!("sed -i 's/^[[:space:]]*{key}[[:space:]]*=/#&/' {}", word(&self.path))
    }
}

/// Whether a key is written without quotes, and nothing in it means anything to sed.
fn is_plain(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Facts {
        let written = Ok(Written::read(text));
        Facts {
            path: FILE.to_owned(),
            by: By::Root,
            written,
            for_all: true,
            socket_there: true,
            cannot_run: vec![],
        }
    }

    fn judged(facts: &Facts) -> Vec<(&'static str, Option<String>)> {
        let line = |finding: &Finding| finding.commands.first().map(|command| command.line.clone());
        facts.judge().iter().map(|finding| (finding.code, line(finding))).collect()
    }

    #[test]
    fn the_sample_is_fine_and_so_is_nothing() {
        for text in [include_str!("../../../../../systemd/shim.toml"), "", "pasta = '/opt/pasta'"] {
            assert_eq!(judged(&facts(text)), [], "{text}");
        }
    }

    #[test]
    fn what_is_not_used_is_taken_out_of_use() {
        let sed = |words: &str| Some(format!("sed -i '{words}' {FILE}"));
        for (text, line) in [
            ("a = 'b'\non_error = 'fial'", sed("s/^[[:space:]]*a[[:space:]]*=/#&/")),
            ("on_error = 'fial'", sed("s/^[[:space:]]*on_error[[:space:]]*=/#&/")),
            ("\n[[[", sed("2s/^/#/")),
            ("'a/ e id;' = 1", None),
            ("on_error = 'fail'\non_error = 'fail'", None),
        ] {
            assert_eq!(judged(&facts(text)), [("shim-conf-mistake", line)], "{text}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_broken() {
        let nobody = Facts { socket_there: false, ..facts("socket = '/run/x'") };
        assert_eq!(judged(&nobody)[0].0, "shim-socket");
        let text = "slirp4netns = '/opt/slirp4netns'\npasta = '/opt/pasta'";
        let gone = Facts { cannot_run: vec!["pasta"], ..facts(text) };
        let line = format!("sed -i 's/^[[:space:]]*pasta[[:space:]]*=/#&/' {FILE}");
        assert_eq!(judged(&gone), [("shim-program", Some(line))]);
    }

    #[test]
    fn a_users_own_file_is_no_business_of_roots() {
        let by = By::User("anna".to_owned());
        let path = "/home/anna/shim.toml".to_owned();
        for text in ["[[[", "a = 'b'", "on_error = 'fial'"] {
            let own = Facts { path: path.clone(), by: by.clone(), ..facts(text) };
            let found = own.judge();
            assert!(found[0].commands.iter().all(|command| command.by == by), "{found:?}");
            assert_eq!(found[0].commands.len(), 1);
        }
    }

    #[test]
    fn what_users_cannot_read_is_opened_to_them() {
        let line = Some(format!("chmod a+r {FILE}"));
        for closed in [
            Facts { for_all: false, ..facts("") },
            Facts { written: Err(Unread::Denied), ..facts("") },
        ] {
            assert_eq!(judged(&closed), [("shim-conf-unreadable", line.clone())]);
        }
        let folder = Facts { written: Err(Unread::Failed("it is no file".into())), ..facts("") };
        assert_eq!(judged(&folder), [("shim-conf-unreadable", None)]);
    }
}
