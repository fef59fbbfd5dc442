//! What the machine gives a rootless container: subordinate ids, user namespaces, a tunnel device, room, a clock.

use super::finding::{By, Finding, word};
use super::programs::Version;

/// How many subordinate ids a container wants.
const IDS: u64 = 65_536;
/// Where they begin, as useradd gives them.
const FIRST_ID: u64 = 100_000;

/// What `/dev/net/tun` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tun {
    /// The device, which everybody may open.
    Fine,
    /// The device, which not everybody may open.
    Closed,
    /// Something else, or nothing.
    Missing,
}

/// What a file system has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) size_kib: u64,
    pub(crate) free_kib: u64,
    pub(crate) free_files: u64,
}

/// What was seen of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Who starts containers: the caller, or for root whoever is logged in.
    pub(crate) users: Vec<(u32, String)>,
    /// `/etc/subuid` and `/etc/subgid`; none where something else says them.
    pub(crate) subordinate: Option<(String, String)>,
    pub(crate) tun: Tun,
    /// Whether the kernel has the driver loaded.
    pub(crate) tun_driver: bool,
    pub(crate) kernel: Option<Version>,
    /// `user.max_user_namespaces`.
    pub(crate) max_user_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian's older kernels.
    pub(crate) userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, and no profile of podman's.
    pub(crate) apparmor_restricts: bool,
    pub(crate) selinux_enforces: bool,
    pub(crate) run: Option<Room>,
    /// How far the clock is before the time at which v6podctl was installed, in days.
    pub(crate) clock_behind: u64,
    /// Whether Linux was started without IPv6.
    pub(crate) without_ipv6: bool,
}

impl Facts {
    /// What is wrong with who a user is in his containers.
    pub(crate) fn judge_ids(&self) -> Vec<Finding> {
        let Some((uids, gids)) = &self.subordinate else { return Vec::new() };
        let has = |text: &str, uid: u32, name: &str| {
            entries(text)
                .any(|(who, _, count)| count > 0 && (who == name || who == uid.to_string()))
        };
        let mut free = [uids, gids]
            .into_iter()
            .flat_map(|text| entries(text))
            .map(|(_, first, count)| first.saturating_add(count))
            .fold(FIRST_ID, u64::max);
        let mut found = Vec::new();
        for (uid, name) in &self.users {
            let options: Vec<String> = [("uids", uids), ("gids", gids)]
                .into_iter()
                .filter(|(_, text)| !has(text, *uid, name))
                .map(|(kind, _)| format!("--add-sub{kind} {free}-{}", free + IDS - 1))
                .collect();
            if options.is_empty() {
                continue;
            }
            free += IDS;
            let what = format!(
                "{name} has no subordinate ids in /etc/subuid or /etc/subgid: most images cannot be unpacked, and no container of theirs starts"
            );
            let line = format!("usermod {} {}", options.join(" "), word(name));
            // What podman has mapped once it goes on with; this stops the user's containers.
            let finding = Finding::broken("subuid-missing", what).root(line);
            found.push(finding.run(By::User(name.clone()), "podman system migrate"));
        }
        found
    }

    /// What is wrong with what the kernel and the system let a user have.
    pub(crate) fn judge_system(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let no_namespace = "an ordinary user's podman starts nothing";
        if self.max_user_namespaces == Some(0) {
            let what = format!("user.max_user_namespaces is 0: {no_namespace}");
            found.push(
                Finding::broken("userns-off", what)
                    .root("sysctl -w user.max_user_namespaces=28633"),
            );
        }
        if self.userns_clone == Some(0) {
            let what = format!("kernel.unprivileged_userns_clone is 0: {no_namespace}");
            found.push(
                Finding::broken("userns-off", what)
                    .root("sysctl -w kernel.unprivileged_userns_clone=1"),
            );
        }
        if self.apparmor_restricts {
            let what = format!(
                "AppArmor keeps unprivileged user namespaces from who has no profile, and podman has none: {no_namespace}"
            );
            let line = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
            found.push(Finding::broken("userns-apparmor", what).root(line));
        }
        if self.selinux_enforces {
            let what = "SELinux enforces its policy, with which v6pod was never tried; `ausearch -m avc -c v6podd` shows what it denies";
            found.push(Finding::warning("selinux", what));
        }
        if let Some(kernel) = self.kernel.filter(|kernel| *kernel < Version(5, 10, 0)) {
            let what = format!("Linux {kernel} is older than 5.10: v6podd does not work with it");
            found.push(Finding::broken("kernel-old", what));
        }
        if self.without_ipv6 {
            let what =
                "Linux was started without IPv6 (ipv6.disable=1): there are no addresses to be had";
            found.push(Finding::broken("ipv6-off", what));
        }
        if self.clock_behind > 0 {
            let what = format!(
                "the clock is {} days before the time at which v6podctl was installed: certificates are not valid, and ages mean nothing",
                self.clock_behind
            );
            found.push(Finding::warning("clock", what).root("timedatectl set-ntp true"));
        }
        found.extend(self.judge_tun());
        found.extend(self.judge_room());
        found
    }

    fn judge_tun(&self) -> Option<Finding> {
        let meaning = "no container on slirp4netns or pasta starts";
        match self.tun {
            Tun::Fine => None,
            Tun::Closed => {
                let what = format!("/dev/net/tun cannot be opened by everybody: {meaning}");
                Some(Finding::broken("tun-closed", what).root("chmod 0666 /dev/net/tun"))
            }
            Tun::Missing => {
                let finding =
                    Finding::broken("tun-missing", format!("/dev/net/tun is no device: {meaning}"));
                Some(if self.tun_driver {
                    // c 10 200 is the device's number since Linux has it (devices.txt).
                    finding.root("mkdir -p /dev/net && rm -f /dev/net/tun && mknod -m 0666 /dev/net/tun c 10 200")
                } else {
                    finding.root("modprobe tun")
                })
            }
        }
    }

    fn judge_room(&self) -> Option<Finding> {
        /// One record of an attachment takes a page; podman's files of a container take some.
        const LEAST_KIB: u64 = 256;

        let room = self.run?;
        if room.free_kib >= LEAST_KIB && room.free_files > 0 {
            return None;
        }
        let (left, more) = (room.free_kib, room.size_kib + room.size_kib.max(65_536));
        let what = format!(
            "/run is full ({left} KiB and {} files are left): no container gets an address",
            room.free_files
        );
        let line = match room.free_files {
            0 => "mount -o remount,nr_inodes=0 /run".to_owned(),
            _ => format!("mount -o remount,size={more}k /run"),
        };
        Some(Finding::broken("run-full", what).root(line))
    }
}

/// The entries of `/etc/subuid`: whose, the first, how many.
fn entries(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut parts = line.split(':');
        let who = parts.next()?;
        let mut number = || parts.next().and_then(|part| part.trim().parse().ok());
        Some((who, number()?, number()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        let ids = "anna:100000:65536\n";
        Facts {
            users: vec![(1000, "anna".to_owned())],
            subordinate: Some((ids.to_owned(), ids.to_owned())),
            tun: Tun::Fine,
            tun_driver: true,
            kernel: Some(Version(5, 10, 0)),
            max_user_namespaces: Some(1000),
            userns_clone: None,
            apparmor_restricts: false,
            selinux_enforces: false,
            run: Some(Room { size_kib: 1000, free_kib: 500, free_files: 10 }),
            clock_behind: 0,
            without_ipv6: false,
        }
    }

    #[test]
    fn who_has_no_ids_gets_such_as_nobody_has() {
        assert_eq!(fine().judge_ids(), []);
        let by_number = Some(("1000:5:9\n".to_owned(), "1000:5:9\n".to_owned()));
        assert_eq!(Facts { subordinate: by_number, ..fine() }.judge_ids(), []);
        let lines = |facts: Facts| -> Vec<String> {
            facts.judge_ids().iter().map(|finding| finding.commands[0].line.clone()).collect()
        };
        let others = Some(("bert:165536:65536\n".to_owned(), "anna:100000:65536\n".to_owned()));
        assert_eq!(
            lines(Facts { subordinate: others, ..fine() }),
            ["usermod --add-subuids 231072-296607 anna"]
        );
        let none = Some((String::new(), "# nothing\n".to_owned()));
        let users = vec![(1000, "anna".to_owned()), (1001, "bert b".to_owned())];
        assert_eq!(
            lines(Facts { subordinate: none, users, ..fine() }),
            [
                "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 anna",
                "usermod --add-subuids 165536-231071 --add-subgids 165536-231071 'bert b'",
            ]
        );
    }

    #[test]
    fn each_thing_that_the_system_withholds_is_named() {
        assert_eq!(fine().judge_system(), []);
        let full = Some(Room { size_kib: 1000, free_kib: 0, free_files: 10 });
        let many = Some(Room { size_kib: 1000, free_kib: 500, free_files: 0 });
        let cases: [(&str, Facts, Option<&str>); 12] = [
            (
                "userns-off",
                Facts { max_user_namespaces: Some(0), ..fine() },
                Some("sysctl -w user.max_user_namespaces=28633"),
            ),
            (
                "userns-off",
                Facts { userns_clone: Some(0), ..fine() },
                Some("sysctl -w kernel.unprivileged_userns_clone=1"),
            ),
            (
                "userns-apparmor",
                Facts { apparmor_restricts: true, ..fine() },
                Some("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
            ),
            ("selinux", Facts { selinux_enforces: true, ..fine() }, None),
            ("kernel-old", Facts { kernel: Some(Version(5, 4, 200)), ..fine() }, None),
            ("ipv6-off", Facts { without_ipv6: true, ..fine() }, None),
            ("clock", Facts { clock_behind: 3, ..fine() }, Some("timedatectl set-ntp true")),
            ("tun-closed", Facts { tun: Tun::Closed, ..fine() }, Some("chmod 0666 /dev/net/tun")),
            (
                "tun-missing",
                Facts { tun: Tun::Missing, tun_driver: false, ..fine() },
                Some("modprobe tun"),
            ),
            (
                "tun-missing",
                Facts { tun: Tun::Missing, ..fine() },
                Some(
                    "mkdir -p /dev/net && rm -f /dev/net/tun && mknod -m 0666 /dev/net/tun c 10 200",
                ),
            ),
            ("run-full", Facts { run: full, ..fine() }, Some("mount -o remount,size=66536k /run")),
            ("run-full", Facts { run: many, ..fine() }, Some("mount -o remount,nr_inodes=0 /run")),
        ];
        for (code, facts, line) in cases {
            let found = facts.judge_system();
            let [finding] = &*found else { panic!("{code}: {found:#?}") };
            assert_eq!((finding.code, finding.commands.first().map(|c| &*c.line)), (code, line));
        }
    }
}
