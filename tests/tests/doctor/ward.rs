//! A host that is broken and mended: what both doctors say of it, and what is run of what they say.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::Value;
use v6pod_tests::{Finished, IMAGE, Login, PATIENCE, PREFIX, WholeHost};

use crate::breaks::{Break, Containers};

/// A host, who is on it, and what was broken on it so far.
pub(crate) struct Ward<'a> {
    pub(crate) host: &'a WholeHost,
    pub(crate) anna: Login<'a>,
    pub(crate) table: String,
    pub(crate) broken: usize,
}

/// What a doctor's JSON says.
pub(crate) struct Seen {
    report: Value,
    said: Finished,
}

impl Seen {
    #[track_caller]
    fn of(said: Finished) -> Self {
        let report = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        Self { report, said }
    }

    #[track_caller]
    pub(crate) fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("findings")
    }

    fn finding(&self, code: &str) -> Option<&Value> {
        self.findings().iter().find(|finding| finding["code"] == code)
    }

    fn is_healthy(&self) -> bool {
        self.findings().is_empty() && self.said.status.success()
    }
}

/// Who runs a command, and the command.
#[track_caller]
pub(crate) fn commands(finding: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = finding["commands"].as_array().expect("commands").iter();
    let all: Vec<_> = all.map(|command| (text(&command["as"]), text(&command["line"]))).collect();
    assert!(!all.is_empty(), "nothing mends {finding}");
    all
}

impl<'a> Ward<'a> {
    #[track_caller]
    pub(crate) fn new(host: &'a WholeHost) -> Self {
        // A new network has it on where br_netfilter is loaded: the machine's doing, not the host's.
        host.sh("f=/proc/sys/net/bridge/bridge-nf-call-ip6tables; [ ! -e $f ] || echo 0 >$f").ok();
        let ward = Self { host, anna: host.log_in("anna"), table: String::new(), broken: 0 };
        ward.all_is_well();
        ward
    }

    #[track_caller]
    pub(crate) fn by_root(&self) -> Seen {
        Seen::of(self.host.sh("v6podctl --json doctor || exit $?"))
    }

    #[track_caller]
    pub(crate) fn by_anna(&self, before: &str) -> Seen {
        Seen::of(self.anna.run("sh", &["-c", &format!("{before} v6podctl --json doctor")]))
    }

    #[track_caller]
    pub(crate) fn all_is_well(&self) {
        for doctor in [&(|| self.by_root()) as &dyn Fn() -> Seen, &|| self.by_anna("")] {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let seen = doctor();
                if seen.is_healthy() {
                    break;
                }
                assert!(Instant::now() < deadline, "{:#}\n{}", seen.report, seen.said);
            }
        }
    }

    /// Whether a container of anna's has its address.
    #[track_caller]
    pub(crate) fn serves(&self, before: &str) -> bool {
        let prefix = PREFIX.strip_suffix("::/80").expect("a /80");
        let inside = format!("ip -6 -o addr | grep -q {prefix}");
        let line = format!("{before} podman run --rm {IMAGE} sh -c '{inside}'");
        self.anna.run("sh", &["-c", &line]).status.success()
    }

    /// Runs a command as who is to run it.
    #[track_caller]
    pub(crate) fn mend(&self, (by, line): &(String, String)) {
        let said = match &**by {
            "root" => self.host.sh(line),
            "anna" => self.anna.run("sh", &["-c", line]),
            other => panic!("{other} is nobody here: {line}"),
        };
        assert!(said.status.success(), "{said}\n{}", self.host.journal("v6podd.service"));
    }

    /// Waits until a doctor names it, and gives the commands.
    #[track_caller]
    pub(crate) fn named(&self, code: &str, doctor: impl Fn() -> Seen) -> Vec<(String, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = doctor();
            if let Some(finding) = seen.finding(code) {
                let broken = finding["severity"] == "broken";
                assert_eq!(seen.said.status.code(), Some(i32::from(broken)), "{}", seen.said);
                return commands(finding);
            }
            assert!(Instant::now() < deadline, "{code} is not in {:#}", seen.report);
        }
    }

    /// Notes what was mended, and how.
    pub(crate) fn note(&mut self, code: &str, commands: &[(String, String)], began: Instant) {
        self.broken += 1;
        let took = began.elapsed().as_millis();
        let (by, line) = &commands[0];
        let _ = writeln!(self.table, "{:2}  {code:30} {took:5} ms  {by}: {line}", self.broken);
        eprintln!("{:2}  {code:30} {took:5} ms  {by}: {line}", self.broken);
    }

    /// Breaks something of the host's as root, has it named by both doctors and mended.
    #[track_caller]
    pub(crate) fn host_is_mended(&mut self, (code, script, containers): Break) {
        let began = Instant::now();
        let restart = "systemctl restart v6podd.service || :";
        self.host.sh(&script.replace("RESTART", restart)).ok();
        let commands = self.named(code, || self.by_root());
        assert_eq!(self.named(code, || self.by_anna("")), commands, "they say the same");
        self.ends_well(code, containers, &commands, began);
    }

    /// Breaks something of anna's as her.
    #[track_caller]
    pub(crate) fn anna_is_mended(&mut self, (code, script, containers): Break) {
        let began = Instant::now();
        let script = format!("mkdir -p ~/.config/containers; cd ~/.config/containers; {script}");
        self.anna.run("sh", &["-c", &script]).ok();
        let commands = self.named(code, || self.by_anna(""));
        assert!(commands.iter().all(|(by, _)| by == "anna"), "{commands:?}");
        self.ends_well(code, containers, &commands, began);
        self.anna.run("sh", &["-c", "rm -r ~/.config/containers"]).ok();
    }

    #[track_caller]
    fn ends_well(
        &mut self,
        code: &str,
        containers: Containers,
        commands: &[(String, String)],
        began: Instant,
    ) {
        match containers {
            Containers::Stop => assert!(!self.serves(""), "{code}: a container has its address"),
            Containers::Start => assert!(self.serves(""), "{code}: a container has no address"),
            Containers::Depend => {}
        }
        commands.iter().for_each(|command| self.mend(command));
        self.all_is_well();
        if containers != Containers::Start {
            assert!(self.serves(""), "{code}: {commands:?} does not give containers their address");
        }
        self.note(code, commands, began);
    }

    /// Breaks anna's environment, which what mends it mends in her shell alone.
    #[track_caller]
    pub(crate) fn shell_is_mended(&mut self, (code, variable): (&str, &str)) {
        let began = Instant::now();
        let broken = format!("export {variable};");
        let commands = self.named(code, || self.by_anna(&broken));
        assert!(!self.serves(&broken), "{code}: a container has its address");
        let [(by, line)] = &*commands else { panic!("{commands:?}") };
        assert_eq!(by, "anna");
        let mended = format!("{broken} {line};");
        let seen = self.by_anna(&mended);
        assert!(seen.is_healthy() && self.serves(&mended), "{:#}", seen.report);
        self.note(code, &commands, began);
    }
}
