//! The daemon, and the network that it has to do with.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv6Net;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::unistd::User;
use tokio::time::timeout;
use v6pod_daemon::client::Client;
use v6pod_daemon::config::{Config, DEFAULT_PATH, PrefixSource};
use v6pod_daemon::core::Links;
use v6pod_daemon::report::chain;
use v6pod_proto::{DEFAULT_SOCKET, Status};

use super::super::daemon::{Facts, Socket, UNITS, Unit};
use super::super::network::{self, Filling, Link};
use super::super::written::{self, Written};
use super::{caller, number, search, text, variable};

/// How long it may take to answer; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// What there is of the daemon, and its configuration, if there is one that can be done.
pub(crate) async fn daemon(socket: &Path) -> (Facts, Option<Config>) {
    let (config, written) = configuration();
    let (units, consul_unit) = units();
    let client = Client::new(socket);
    let asked = timeout(PATIENCE, client.get::<Status>("/api/status")).await;
    let status = match asked {
        Ok(status) => status.map_err(|error| chain(&error)),
        // Its socket takes callers also while it does not start.
        Err(_) => Err(format!("no answer for {} s", PATIENCE.as_secs())),
    };
    let by_variable =
        variable("V6POD_SOCKET").is_some_and(|path| path != Path::new(DEFAULT_SOCKET));
    let facts = Facts {
        units,
        config: written,
        config_path: DEFAULT_PATH.to_owned(),
        socket: socket_of(socket, Path::new(DEFAULT_SOCKET)),
        socket_path: socket.display().to_string(),
        socket_by_variable: by_variable,
        account: User::from_name("v6pod").is_ok_and(|user| user.is_some()),
        status,
        resolver_wanted: config.as_ref().is_some_and(|config| config.dns.is_some()),
        consul_unit,
        own_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    (facts, config)
}

fn configuration() -> (Option<Config>, Written) {
    let text = match text(Path::new(DEFAULT_PATH)) {
        None => String::new(),
        Some(Ok(text)) => text,
        Some(Err(_)) => return (None, Written::Unread),
    };
    written::read(&text)
}

/// What systemd knows of ours, and whether it knows Consul; none where it does not run, or does not say.
fn units() -> (Option<[Unit; 3]>, bool) {
    if !Path::new("/run/systemd/system").is_dir() {
        return (None, false);
    }
    let properties = "--property=LoadState,ActiveState,UnitFileState,ExecMainStatus,DropInPaths";
    let words = [&["show", properties][..], &UNITS, &["consul.service"]].concat();
    let systemctl = search::find("systemctl", &search::folders(), &caller());
    let said = systemctl.and_then(|systemctl| systemctl.say(&words).ok());
    let Some(said) = said else { return (None, false) };
    let units: Vec<Unit> = said.split("\n\n").map(unit).collect();
    let [service, socket, dns, consul] = &*units else { return (None, false) };
    (Some([service.clone(), socket.clone(), dns.clone()]), consul.load == "loaded")
}

fn unit(said: &str) -> Unit {
    let value = |key: &str| {
        let mut lines = said.lines().filter_map(|line| line.split_once('='));
        lines.find(|(name, _)| *name == key).map_or("", |(_, value)| value).to_owned()
    };
    let drop_ins = value("DropInPaths");
    let drop_ins = drop_ins.split_whitespace().filter(|path| path.starts_with("/etc/"));
    Unit {
        load: value("LoadState"),
        active: value("ActiveState"),
        file: value("UnitFileState"),
        status: value("ExecMainStatus").parse().unwrap_or(0),
        drop_ins: drop_ins.map(str::to_owned).collect(),
    }
}

/// Of another socket than the usual one nothing is looked at: it may be in a folder of one user's, which is to stay so.
fn socket_of(asked: &Path, usual: &Path) -> Socket {
    if asked != usual {
        return Socket::NotAsked;
    }
    let file = match fs::symlink_metadata(usual) {
        Ok(file) if !file.file_type().is_socket() => return Socket::Missing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Socket::Missing,
        other => other,
    };
    let is_for_all = |file: &Metadata, bits| file.permissions().mode() & bits == bits;
    match usual.parent().map(fs::metadata) {
        Some(Ok(folder)) if !is_for_all(&folder, 0o005) => return Socket::Hidden,
        _ => {}
    }
    match file {
        Ok(file) if is_for_all(&file, 0o006) => Socket::Fine,
        Ok(_) => Socket::Closed,
        Err(_) => Socket::Missing,
    }
}

/// The network, as this daemon and this configuration mean it.
pub(crate) fn network(facts: &Facts, config: Option<&Config>) -> Result<network::Facts, String> {
    let status = facts.status.as_ref().ok();
    let default = Config::default();
    let config = config.unwrap_or(&default);
    let prefixes = match (status, &config.prefix) {
        (Some(status), _) => {
            let former = status.prefix.former.iter();
            let all = [&status.prefix.prefix].into_iter().chain(former);
            all.filter_map(|net| net.parse::<Ipv6Net>().ok()).collect()
        }
        (None, PrefixSource::Static(prefix)) => vec![prefix.net()],
        (None, PrefixSource::File(_) | PrefixSource::Auto) => Vec::new(),
    };
    let bridge = status
        .map_or_else(|| Links::of(&config.instance).bridge.to_string(), |s| s.bridge.to_string());
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let containers = status.map_or(0, |status| status.counts.attachments);
    Ok(network::Facts {
        serving: status.is_some(),
        prefixes,
        uplink_wanted: config.uplink.as_ref().map(ToString::to_string),
        uplink: status.and_then(|status| status.uplink.as_ref()).map(ToString::to_string),
        ndp_proxy: config.ndp_proxy,
        config_path: facts.config_path.clone(),
        links: links(&bridge)?,
        bridge,
        forwarding: number("/proc/sys/net/ipv6/conf/all/forwarding"),
        routes: network::routes(&read("/proc/net/ipv6_route")?),
        addresses: network::addresses(&read("/proc/net/if_inet6")?),
        conntrack: filling(
            number("/proc/sys/net/netfilter/nf_conntrack_count"),
            number("/proc/sys/net/netfilter/nf_conntrack_max"),
        ),
        neighbours: filling(
            neighbours(containers),
            number("/proc/sys/net/ipv6/neigh/default/gc_thresh3"),
        ),
        bridge_calls: number("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
    })
}

fn filling(entries: Option<u64>, most: Option<u64>) -> Option<Filling> {
    Some(Filling { entries: entries?, most: most.filter(|most| *most > 0)? })
}

/// How many neighbours count against the kernel's limit: those of containers, a few each, do not.
fn neighbours(containers: u64) -> Option<u64> {
    const OF_ONE: u64 = 3;

    let text = fs::read_to_string("/proc/net/stat/ndisc_cache").ok()?;
    let first = text.lines().nth(1)?.split_whitespace().next()?;
    let all = u64::from_str_radix(first, 16).ok()?;
    Some(all.saturating_sub(containers.saturating_mul(OF_ONE)))
}

/// All interfaces but containers' ports, of which there may be thousands.
fn links(bridge: &str) -> Result<Vec<Link>, String> {
    let found = getifaddrs().map_err(|error| format!("the interfaces: {error}"))?;
    let found: BTreeSet<(String, bool)> = found
        .map(|link| (link.interface_name, link.flags.contains(InterfaceFlags::IFF_UP)))
        .filter(|(name, _)| name == bridge || !name.starts_with("v6p"))
        .collect();
    let link = |(name, up): (String, bool)| {
        let setting = |key: &str| number(&format!("/proc/sys/net/ipv6/conf/{name}/{key}"));
        Link {
            up,
            forwarding: setting("forwarding"),
            force_forwarding: setting("force_forwarding"),
            accept_ra: setting("accept_ra"),
            disable_ipv6: setting("disable_ipv6"),
            name,
        }
    };
    Ok(found.into_iter().map(link).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_is_not_the_usual_one_is_not_opened_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let [usual, own, file] = ["usual", "own", "file"].map(|name| dir.path().join(name));
        let _listeners = [&usual, &own].map(|path| UnixListener::bind(path).unwrap());
        fs::write(&file, "").unwrap();
        let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        for path in [&usual, &own, &file] {
            allow(path, 0o600).unwrap();
        }
        let judged = |path: &Path| socket_of(path, path);
        for (folder, expected) in [(0o755, Socket::Closed), (0o700, Socket::Hidden)] {
            allow(dir.path(), folder).unwrap();
            assert_eq!(socket_of(&own, &usual), Socket::NotAsked);
            assert_eq!(judged(&usual), expected);
            // Not `chmod`, whatever it is.
            assert_eq!(judged(&file), Socket::Missing);
            assert_eq!(judged(&dir.path().join("none")), Socket::Missing);
        }
        allow(dir.path(), 0o755).unwrap();
        allow(&usual, 0o666).unwrap();
        assert_eq!(judged(&usual), Socket::Fine);
    }
}
