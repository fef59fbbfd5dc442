//! The programs that a container's start needs: v6pod's own, those that they stand in for, and what a user
//! namespace is made with.

use std::fmt;

use super::daemon::RESTART;
use super::finding::{Finding, word};

/// A program's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// The first number with a dot in what a program says of itself, such as `podman version 4.3.1`.
    pub(crate) fn find(text: &str) -> Option<Self> {
        let first = text.lines().next()?;
        first.split_whitespace().find_map(|word| {
            let mut parts = word.trim_start_matches('v').split(['.', '-', '+', '~', ',']);
            let mut number = || parts.next().and_then(|part| part.parse().ok());
            Some(Self(number()?, number()?, number().unwrap_or(0)))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What was found of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is there and can be run.
    Fine,
    /// This file is there, and not everybody can run it.
    NotExecutable(String),
    /// There is none.
    Missing,
}

/// What packages are installed with here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installer {
    Apt,
    Dnf,
}

impl Installer {
    pub(crate) fn install(self, debian: &str, fedora: &str) -> String {
        match self {
            Self::Apt => format!("apt-get install --yes {debian}"),
            Self::Dnf => format!("dnf install --assumeyes {fedora}"),
        }
    }
}

/// A helper that maps subordinate ids, which wants root's right to do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mapper {
    /// It has it.
    Fine,
    /// This one has not.
    Powerless(String),
    /// There is none.
    Missing,
}

/// What was seen of programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) libexec: String,
    pub(crate) installer: Option<Installer>,
    /// None: there is no podman, or it does not tell.
    pub(crate) podman: Option<Version>,
    pub(crate) podman_found: Found,
    /// `v6pod-shim`, `v6pod-hook`, `v6pod-wishes`.
    pub(crate) own: Vec<(&'static str, Found)>,
    /// Which of `slirp4netns` and `pasta` are no links to `v6pod-shim`.
    pub(crate) broken_links: Vec<&'static str>,
    pub(crate) slirp4netns: Found,
    pub(crate) pasta: Found,
    pub(crate) nft: Found,
    /// `newuidmap` and `newgidmap`.
    pub(crate) mappers: Vec<(&'static str, Mapper)>,
}

impl Facts {
    /// What is wrong with them.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        match &self.podman_found {
            Found::Fine => {}
            Found::NotExecutable(path) => {
                found.push(not_executable("podman-not-executable", path, "no container starts"));
            }
            Found::Missing => {
                let finding = Finding::broken("podman-missing", "podman is not installed");
                found.push(self.installed(finding, "podman", "podman"));
            }
        }
        self.judge_own(&mut found);
        self.judge_real(&mut found);
        let closed = "v6podd does not start without its rules";
        match &self.nft {
            Found::Fine => {}
            Found::NotExecutable(path) => {
                let finding = not_executable("nft-not-executable", path, closed);
                found.push(finding.root(RESTART));
            }
            Found::Missing => {
                let what = format!("nftables is not installed: {closed}");
                let finding = Finding::broken("nft-missing", what);
                found.push(self.installed(finding, "nftables", "nftables").root(RESTART));
            }
        }
        self.judge_mappers(&mut found);
        found
    }

    fn installed(&self, finding: Finding, debian: &str, fedora: &str) -> Finding {
        match self.installer {
            Some(installer) => finding.root(installer.install(debian, fedora)),
            None => finding,
        }
    }

    /// What v6pod's programs stand in for.
    fn judge_real(&self, found: &mut Vec<Finding>) {
        let first = self.podman.is_none_or(|podman| podman < Version(5, 0, 0));
        let slirp4netns = ("slirp4netns", &self.slirp4netns, "slirp4netns", first);
        for (name, program, package, default) in
            [slirp4netns, ("pasta", &self.pasta, "passt", !first)]
        {
            let meaning = format!("containers on {name} do not start");
            let (missing, dead) = match name {
                "pasta" => ("pasta-missing", "pasta-not-executable"),
                _ => ("slirp4netns-missing", "slirp4netns-not-executable"),
            };
            match program {
                Found::NotExecutable(path) => found.push(not_executable(dead, path, &meaning)),
                // The one that this podman does not use unless it is told to may well not be there.
                Found::Missing if default => {
                    let what = format!("{name} is not installed: {meaning}");
                    found.push(self.installed(Finding::broken(missing, what), package, package));
                }
                Found::Missing | Found::Fine => {}
            }
        }
    }

    fn judge_mappers(&self, found: &mut Vec<Finding>) {
        for (name, mapper) in &self.mappers {
            let meaning = "an ordinary user's podman starts nothing";
            match mapper {
                Mapper::Fine => {}
                Mapper::Powerless(path) => {
                    let what = format!(
                        "{path} may not map users (no setuid bit, no capability): {meaning}"
                    );
                    let line = format!("chmod u+s {}", word(path));
                    found.push(Finding::broken("id-mapper-powerless", what).root(line));
                }
                Mapper::Missing => {
                    let what = format!("{name} is not installed: {meaning}");
                    let finding = Finding::broken("id-mapper-missing", what);
                    found.push(self.installed(finding, "uidmap", "shadow-utils"));
                }
            }
        }
    }

    fn judge_own(&self, found: &mut Vec<Finding>) {
        for (name, program) in &self.own {
            let meaning = match *name {
                "v6pod-shim" => {
                    "containers do not start, for podman runs it in place of slirp4netns and pasta"
                }
                "v6pod-hook" => "containers that ask for an address do not get one",
                _ => "labels and published ports are not heard",
            };
            match program {
                Found::Fine => {}
                Found::NotExecutable(path) => {
                    found.push(not_executable("program-not-executable", path, meaning));
                }
                Found::Missing => {
                    let what = format!("{}/{name} is not there: {meaning}", self.libexec);
                    let finding = Finding::broken("program-missing", what);
                    found.push(match self.installer {
                        Some(Installer::Apt) => {
                            finding.root("apt-get install --reinstall --yes v6pod")
                        }
                        _ => finding,
                    });
                }
            }
        }
        for name in &self.broken_links {
            let path = format!("{}/{name}", self.libexec);
            let what = format!(
                "{path} is no link to v6pod-shim: containers on {name} do not start, or get no address"
            );
            let line = format!("ln -sfn v6pod-shim {}", word(&path));
            found.push(Finding::broken("program-link", what).root(line));
        }
    }
}

fn not_executable(code: &'static str, path: &str, meaning: &str) -> Finding {
    let what = format!("{path} cannot be run by everybody: {meaning}");
    Finding::broken(code, what).root(format!("chmod 0755 {}", word(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        Facts {
            libexec: "/usr/libexec/v6pod".to_owned(),
            installer: Some(Installer::Apt),
            podman: Some(Version(4, 3, 1)),
            podman_found: Found::Fine,
            own: ["v6pod-shim", "v6pod-hook", "v6pod-wishes"]
                .map(|name| (name, Found::Fine))
                .into(),
            broken_links: Vec::new(),
            slirp4netns: Found::Fine,
            pasta: Found::Missing,
            nft: Found::Fine,
            mappers: ["newuidmap", "newgidmap"].map(|name| (name, Mapper::Fine)).into(),
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("podman version 4.3.1", Version(4, 3, 1)),
            ("podman version 5.8.0-dev", Version(5, 8, 0)),
            ("slirp4netns version 1.2.0\ncommit: 656", Version(1, 2, 0)),
            ("runc version 1.1.5+ds1", Version(1, 1, 5)),
            ("crun version 1.8.1", Version(1, 8, 1)),
            ("nftables v1.0.6 (Lester Gooch #5)", Version(1, 0, 6)),
        ] {
            assert_eq!(Version::find(text), Some(version), "{text}");
        }
        assert_eq!(Version::find("no number"), None);
        assert_eq!(Version::find(""), None);
    }

    #[test]
    fn each_program_that_is_not_right_is_named_with_what_mends_it() {
        assert_eq!(fine().judge(), []);
        let dead = |path: &str| Found::NotExecutable(path.to_owned());
        let cases: [(&str, Facts, &str); 9] = [
            (
                "podman-missing",
                Facts { podman_found: Found::Missing, ..fine() },
                "apt-get install --yes podman",
            ),
            (
                "podman-not-executable",
                Facts { podman_found: dead("/usr/bin/podman"), ..fine() },
                "chmod 0755 /usr/bin/podman",
            ),
            (
                "program-not-executable",
                Facts {
                    own: vec![("v6pod-shim", dead("/usr/libexec/v6pod/v6pod-shim"))],
                    ..fine()
                },
                "chmod 0755 /usr/libexec/v6pod/v6pod-shim",
            ),
            (
                "program-link",
                Facts { broken_links: vec!["pasta"], ..fine() },
                "ln -sfn v6pod-shim /usr/libexec/v6pod/pasta",
            ),
            (
                "slirp4netns-missing",
                Facts { slirp4netns: Found::Missing, ..fine() },
                "apt-get install --yes slirp4netns",
            ),
            (
                "pasta-missing",
                Facts { podman: Some(Version(5, 4, 2)), installer: Some(Installer::Dnf), ..fine() },
                "dnf install --assumeyes passt",
            ),
            (
                "nft-missing",
                Facts { nft: Found::Missing, ..fine() },
                "apt-get install --yes nftables",
            ),
            (
                "id-mapper-powerless",
                Facts {
                    mappers: vec![("newuidmap", Mapper::Powerless("/usr/bin/newuidmap".into()))],
                    ..fine()
                },
                "chmod u+s /usr/bin/newuidmap",
            ),
            (
                "id-mapper-missing",
                Facts { mappers: vec![("newgidmap", Mapper::Missing)], ..fine() },
                "apt-get install --yes uidmap",
            ),
        ];
        for (code, facts, line) in cases {
            let found = facts.judge();
            let [finding] = &*found else { panic!("{code}: {found:#?}") };
            assert_eq!((finding.code, &*finding.commands[0].line), (code, line));
        }
    }
}
