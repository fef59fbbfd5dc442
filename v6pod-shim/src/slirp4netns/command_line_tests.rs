//! Every command line that podman is known to make, hand-made traps, and glibc itself as a judge.

use std::process::{Command, Stdio};

use super::*;

const NETNS: &str = "/run/user/1000/netns/netns-7e6e5c5f-30a2-4f0c-9c5c-4a5ed6b0a3a1";

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(|w| OsString::from(w.replace("NETNS", NETNS))).collect()
}

fn parse(line: &str) -> Option<CommandLine> {
    CommandLine::parse(&words(line), false)
}

fn process(pid: i32) -> Target {
    Target::Process(Pid::from_raw(pid).unwrap())
}

/// Podman's line, exit descriptor, whether the target is a path, the line without IPv6.
type Row = (&'static str, &'static str, Option<i32>, bool, &'static str);

/// The containers' lines of podman 1.0 to 5.8, then the calls that are no container's.
const PODMAN: [Row; 14] = [
    ("1.0", "-c -e 3 -r 4 4711 tap0", Some(3), false, "-c -e 3 -r 4 4711 tap0"),
    (
        "1.1, with ports",
        "-c -e 3 -r 4 --api-socket /run/user/1000/libpod/tmp/x.net 4711 tap0",
        Some(3),
        false,
        "-c -e 3 -r 4 --api-socket /run/user/1000/libpod/tmp/x.net 4711 tap0",
    ),
    (
        "1.2 to 1.5",
        "--api-socket /s --disable-host-loopback --mtu 65520 -c -e 3 -r 4 4711 tap0",
        Some(3),
        false,
        "--api-socket /s --disable-host-loopback --mtu 65520 -c -e 3 -r 4 4711 tap0",
    ),
    (
        "1.6 to 2.2",
        "--disable-host-loopback --mtu 65520 --enable-sandbox --enable-seccomp -c -e 3 -r 4 \
         --netns-type=path NETNS tap0",
        Some(3),
        true,
        "--disable-host-loopback --mtu 65520 --enable-sandbox --enable-seccomp -c -e 3 -r 4 \
         --netns-type=path NETNS tap0",
    ),
    (
        "3.0.1",
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         --cidr=10.1.2.0/24 --enable-ipv6 --outbound-addr=192.0.2.1 \
         --outbound-addr6=2001:db8::1 --api-socket /s -c -e 3 -r 4 --netns-type=path NETNS tap0",
        Some(3),
        true,
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         --cidr=10.1.2.0/24 --outbound-addr=192.0.2.1 \
         --api-socket /s -c -e 3 -r 4 --netns-type=path NETNS tap0",
    ),
    (
        "3.0.1, userns",
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp -c -e 3 -r 4 \
         4711 tap0",
        Some(3),
        false,
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp -c -e 3 -r 4 \
         4711 tap0",
    ),
    (
        "4.3.1",
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 \
         -c -e 3 -r 4 --netns-type=path NETNS tap0",
        Some(3),
        true,
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         -c -e 3 -r 4 --netns-type=path NETNS tap0",
    ),
    (
        "4.3.1, userns and ports by slirp4netns",
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 \
         -c -e 3 -r 4 --api-socket /s 4711 tap0",
        Some(3),
        false,
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         -c -e 3 -r 4 --api-socket /s 4711 tap0",
    ),
    (
        "4.6 to 5.8, descriptors the other way round",
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 \
         -c -r 3 -e 4 --api-socket /s --netns-type=path NETNS tap0",
        Some(4),
        true,
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         -c -r 3 -e 4 --api-socket /s --netns-type=path NETNS tap0",
    ),
    (
        "3.2 to 3.4, rootless bridge",
        "--disable-host-loopback --mtu=65520 -c -r 3 --netns-type=path /netns/rootless-cni-ns tap0",
        None,
        true,
        "--disable-host-loopback --mtu=65520 -c -r 3 --netns-type=path /netns/rootless-cni-ns tap0",
    ),
    (
        "4.0 to 4.9, rootless bridge",
        "--mtu=65520 --enable-ipv6 -c -r 3 --netns-type=path /r/netns/rootless-netns-0a1b tap0",
        None,
        true,
        "--mtu=65520 -c -r 3 --netns-type=path /r/netns/rootless-netns-0a1b tap0",
    ),
    (
        "5.x, rootless bridge",
        "-c -r 3 --netns-type=path /r/networks/rootless-netns/rootless-netns tap0",
        None,
        true,
        "-c -r 3 --netns-type=path /r/networks/rootless-netns/rootless-netns tap0",
    ),
    (
        "4.6 to 5.x, build",
        "--mtu=65520 -c -r 3 --netns-type=path /proc/4711/ns/net tap0",
        None,
        true,
        "--mtu=65520 -c -r 3 --netns-type=path /proc/4711/ns/net tap0",
    ),
    (
        "build before 4.6",
        "--mtu 65520 -r 3 -c 4711 tap0",
        None,
        false,
        "--mtu 65520 -r 3 -c 4711 tap0",
    ),
];

#[test]
fn the_lines_of_every_podman_are_understood() {
    for (version, line, exit_fd, by_path, without_ipv6) in PODMAN {
        let read = parse(line).unwrap_or_else(|| panic!("podman {version}"));
        assert_eq!(read.exit_fd, exit_fd, "podman {version}");
        assert_eq!(matches!(read.target, Target::Mounted(_)), by_path, "podman {version}");
        assert_eq!(read.without_ipv6, words(without_ipv6), "podman {version}");
    }
}

#[test]
fn the_numbers_are_read_from_the_options_and_not_assumed() {
    for (line, exit_fd, ready_fd, pid) in [
        ("-c -e 7 -r 9 1 tap0", Some(7), Some(9), 1),
        ("-ce7 -r9 1 tap0", Some(7), Some(9), 1),
        ("--exit-fd=7 --ready-fd 9 12 tap0", Some(7), Some(9), 12),
        ("1 tap0 -e 7", Some(7), None, 1),
        ("1 -e 7 tap0 -e 8", Some(8), None, 1),
        ("-e 7 --netns-type pid --target-type=netns 1 tap0 more", Some(7), None, 1),
    ] {
        let read = parse(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((read.exit_fd, read.ready_fd), (exit_fd, ready_fd), "{line}");
        assert_eq!(read.target, process(pid), "{line}");
    }
}

#[test]
fn what_is_no_start_of_a_container_or_not_understood_is_none() {
    for line in [
        "",
        "--help",
        "-h",
        "--version",
        "-e 3 1 tap0 --vers",
        "-cv -e 3 1 tap0",
        "-e 3 1",      // no tap name
        "-e 3 tap0 1", // no process
        "-e 3 0 tap0", // nobody's process
        "-e 3 -- -1 tap0",
        "-e 3 2147483648 tap0",
        "-e x 1 tap0",
        "-e -3 1 tap0",
        "-e +3 1 tap0",
        "--exit-fd= 1 tap0",
        "1 tap0 -e", // value missing
        "1 tap0 --exit-fd",
        "-e 3 -x 1 tap0", // no such option
        "-e 3 -c- 1 tap0",
        "-e 3 --frobnicate 1 tap0",
        "-e 3 --enable-ipv6=yes 1 tap0", // takes no value
        "-e 3 --enable-s 1 tap0",        // sandbox or seccomp
        "-e 3 --outbound 1 tap0",        // addr or addr6
        "-e 3 --netns-type=tapfd 5 tap0",
        "-e 3 --netns-type=other /x tap0",
        "-e 3 --target-type=bess /x.sock tap0",
    ] {
        assert_eq!(parse(line), None, "{line}");
    }
}

#[test]
fn ipv6_is_left_out_in_every_spelling_and_nothing_else_with_it() {
    for (line, left) in [
        ("-6 -e 3 1 tap0", "-e 3 1 tap0"),
        ("-c6 -e 3 1 tap0", "-c -e 3 1 tap0"),
        ("-6c6 -e 3 1 tap0", "-c -e 3 1 tap0"),
        ("-66 -e 3 1 tap0", "-e 3 1 tap0"),
        ("-6e3 1 tap0", "-e3 1 tap0"),
        ("-6e 3 1 tap0", "-e 3 1 tap0"),
        ("-e 3 1 tap0 -6", "-e 3 1 tap0"),
        ("-e 3 --enable-ip 1 tap0", "-e 3 1 tap0"),
        ("-e 3 --outbound-addr6 2001:db8::1 1 tap0", "-e 3 1 tap0"),
        ("-e 3 --outbound-addr6=2001:db8::1 1 tap0", "-e 3 1 tap0"),
        // Values that look like options.
        ("-e 3 -a -6 1 tap0", "-e 3 -a -6 1 tap0"),
        ("-e 3 -a6 1 tap0", "-e 3 -a6 1 tap0"),
        ("-e 3 --api-socket --enable-ipv6 1 tap0", "-e 3 --api-socket --enable-ipv6 1 tap0"),
        (
            "-e 3 --outbound-addr --outbound-addr6 1 tap0",
            "-e 3 --outbound-addr --outbound-addr6 1 tap0",
        ),
        ("-e 3 --outbound-addr6 -6 -6 1 tap0", "-e 3 1 tap0"),
        ("-m 6 -e 6 1 tap0", "-m 6 -e 6 1 tap0"),
        ("-e6 -r 4 1 tap0", "-e6 -r 4 1 tap0"),
        // Operands that look like options.
        ("-e 3 -- 1 -6", "-e 3 -- 1 -6"),
        ("-e 3 1 -- --enable-ipv6", "-e 3 1 -- --enable-ipv6"),
        ("-a -- -6 -e 3 1 tap0", "-a -- -e 3 1 tap0"),
        ("-e 3 1 tap0 -", "-e 3 1 tap0 -"),
    ] {
        let read = parse(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(read.without_ipv6, words(left), "{line}");
    }
}

#[test]
fn with_posixly_correct_nothing_is_an_option_behind_the_first_operand() {
    let read = CommandLine::parse(&words("-6 -e 3 1 tap0 -6 --help --"), true).unwrap();
    assert_eq!(read.without_ipv6, words("-e 3 1 tap0 -6 --help --"));
    assert_eq!(CommandLine::parse(&words("1 tap0 -e 3"), true).unwrap().exit_fd, None);
}

#[test]
fn bytes_that_are_no_text_are_handed_on() {
    let odd = OsString::from_vec(b"/run/\xff\xfe".to_vec());
    let mut line = words("-6 -e 3 --netns-type=path");
    line.extend([odd.clone(), "tap0".into()]);
    let read = CommandLine::parse(&line, false).unwrap();
    assert_eq!(read.target, Target::Mounted(PathBuf::from(&odd)));
    let mut left = words("-e 3 --netns-type=path");
    left.extend([odd, "tap0".into()]);
    assert_eq!(read.without_ipv6, left);
}

/// What glibc's `getopt_long` makes of a line, by way of getopt(1): options in order, each followed
/// by its value, then `--` and the operands. `None` if it refuses the line.
fn by_glibc(line: &[OsString]) -> Option<Vec<String>> {
    let names = LONG.map(|o| match o.takes {
        Takes::Nothing => o.name.to_owned(),
        Takes::Value => format!("{}:", o.name),
    });
    let output = Command::new("getopt")
        .args(["-u", "-o", "ce:r:m:a:6hv", "-l", &names.join(","), "--"])
        .args(line)
        .env_remove("POSIXLY_CORRECT")
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| text.split_whitespace().map(str::to_owned).collect())
}

/// The same without the IPv6 options.
fn less_ipv6(read: Vec<String>) -> Vec<String> {
    let mut left = Vec::new();
    let mut read = read.into_iter();
    while let Some(word) = read.next() {
        match word.as_str() {
            "--" => {
                left.push(word);
                left.extend(read.by_ref());
            }
            "-6" | "--enable-ipv6" => {}
            "--outbound-addr6" => drop(read.next()),
            _ => {
                let valued = match word.strip_prefix("--") {
                    Some(name) => long_option(name.as_bytes()).map(|o| o.takes),
                    None => short_option(word.as_bytes()[1]).map(|(takes, _)| takes),
                };
                left.push(word);
                if valued == Some(Takes::Value) {
                    left.extend(read.next());
                }
            }
        }
    }
    left
}

/// Lines of words that are likely to be mistaken for one another, drawn by a fixed sequence.
fn odd_lines(count: usize) -> impl Iterator<Item = Vec<OsString>> {
    const WORDS: [&str; 32] = [
        "-6",
        "-c",
        "-c6",
        "-6c",
        "-e",
        "-e3",
        "-e6",
        "-ce6",
        "-6e",
        "-r",
        "-r4",
        "-a",
        "-a-6",
        "-m",
        "--",
        "-",
        "3",
        "6",
        "tap0",
        "4711",
        "--enable-ipv6",
        "--enable-ip",
        "--enable-s",
        "--outbound-addr6",
        "--outbound-addr6=6",
        "--outbound-addr",
        "--outbound-addr=6",
        "--exit-fd=3",
        "--ex",
        "--api-socket",
        "--netns-type=path",
        "-x",
    ];
    // Knuth's MMIX constants; the high bits are the good ones.
    let mut state: u64 = 20;
    let mut draw = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    (0..count).map(move |_| {
        let mut line: Vec<OsString> = (0..draw(8)).map(|_| WORDS[draw(32)].into()).collect();
        // Two operands, or hardly any line would be one that slirp4netns serves.
        line.extend(["4711".into(), "tap0".into()]);
        line
    })
}

#[test]
fn glibc_reads_the_line_without_ipv6_as_the_given_one_but_for_ipv6() {
    if Command::new("getopt").arg("-T").output().is_err() {
        assert_ne!(std::env::var("V6POD_TEST_REQUIRE").as_deref(), Ok("all"), "needs getopt(1)");
        eprintln!("skipped: needs getopt(1) of util-linux");
        return;
    }
    let mut understood = 0;
    for line in odd_lines(1500) {
        let Some(read) = CommandLine::parse(&line, false) else { continue };
        understood += 1;
        let given = by_glibc(&line).unwrap_or_else(|| panic!("glibc refuses {line:?}"));
        let left = by_glibc(&read.without_ipv6).unwrap();
        assert_eq!(left, less_ipv6(given.clone()), "{line:?}");
        if given == left {
            assert_eq!(read.without_ipv6, line, "nothing to leave out, and yet changed");
        }
    }
    assert!(understood > 200, "only {understood} lines were worth a look");
}
