use super::*;

const UP0: &str = "up0";
const P: &str = "2001:db8:1:2:3::/80";

fn link(name: &str) -> Link {
    Link {
        name: name.to_owned(),
        up: true,
        forwarding: Some(0),
        force_forwarding: Some(1),
        accept_ra: Some(1),
        disable_ipv6: Some(0),
    }
}

fn to(net: &str, link: &str) -> Route {
    Route { net: net.parse().unwrap(), gateway: None, flags: 1, link: link.to_owned() }
}

fn on(address: &str, link: &str) -> Address {
    Address { address: address.parse().unwrap(), length: 64, link: link.to_owned() }
}

fn fine() -> Facts {
    let default = Route { gateway: Some("2001:db8:ffff::1".parse().unwrap()), ..to("::/0", UP0) };
    Facts {
        serving: true,
        prefixes: vec![P.parse().unwrap()],
        bridge: "v6pod0".to_owned(),
        uplink_wanted: None,
        uplink: Some(UP0.to_owned()),
        ndp_proxy: false,
        config_path: "/etc/v6pod/v6pod.toml".to_owned(),
        links: vec![link("lo"), link(UP0), link("v6pod0")],
        forwarding: Some(0),
        routes: vec![
            default,
            to("2001:db8:ffff::/64", UP0),
            to("2001:db8:1:2:3::5/128", "v6pod0"),
            to("2001:db8:1:2:3::6/128", "v6p0123456789ab"),
            Route { flags: 1 | REJECT, ..to(P, "lo") },
            Route { flags: 1 | LOCAL, ..to("2001:db8:1:2:3::1/128", "v6pod0") },
        ],
        addresses: vec![on("2001:db8:1:2:3::1", "v6pod0"), on("2001:db8:ffff::2", UP0)],
        conntrack: Some(Filling { entries: 10, most: 100 }),
        neighbours: None,
        bridge_calls: Some(0),
    }
}

/// Each with the first command.
fn judged(facts: &Facts) -> Vec<(&'static str, Option<String>)> {
    let all = [facts.judge_ways(), facts.judge_prefix(), facts.judge_limits()].concat();
    all.into_iter().map(|f| (f.code, f.commands.into_iter().next().map(|c| c.line))).collect()
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = fine();
    change(&mut facts);
    facts
}

#[test]
fn each_thing_that_is_not_right_is_named_with_what_mends_it() {
    assert_eq!(judged(&fine()), []);
    let restart = "systemctl restart v6podd.service";
    let cases: [(&str, &str, Facts); 15] = [
        ("bridge-down", restart, with(|f| f.links[2].up = false)),
        ("bridge-down", restart, with(|f| drop(f.links.pop()))),
        ("bridge-down", restart, with(|f| drop(f.addresses.remove(0)))),
        (
            "forwarding-off",
            "sysctl -w net/ipv6/conf/up0/force_forwarding=1",
            with(|f| f.links[1].force_forwarding = Some(0)),
        ),
        (
            "uplink-without-ipv6",
            "sysctl -w net/ipv6/conf/up0/disable_ipv6=0",
            with(|f| f.links[1].disable_ipv6 = Some(1)),
        ),
        (
            "ra-lost",
            "sysctl -w net/ipv6/conf/up0/accept_ra=2",
            with(|f| {
                f.links[1].forwarding = Some(1);
                f.routes[0].flags |= ADDRCONF;
            }),
        ),
        (
            "ra-lost",
            "sysctl -w net/ipv6/conf/up0/accept_ra=2",
            with(|f| {
                f.links[1].forwarding = Some(1);
                f.uplink = None;
                f.routes.remove(0);
            }),
        ),
        (
            "uplink-missing",
            "sed -i 's/^[[:space:]]*uplink[[:space:]]*=/#&/' /etc/v6pod/v6pod.toml && systemctl restart v6podd.service",
            with(|f| f.uplink_wanted = Some("wan0".to_owned())),
        ),
        (
            "prefix-clash",
            "ip -6 route del 2001:db8:1:2:3:4::/96 dev dummy0",
            with(|f| f.routes.push(to("2001:db8:1:2:3:4::/96", "dummy0"))),
        ),
        (
            "prefix-clash",
            "ip -6 route del unreachable 2001:db8:1:2:3:4::/96 dev lo && systemctl restart v6podd.service",
            with(|f| {
                f.serving = false;
                f.routes.push(Route { flags: 1 | REJECT, ..to("2001:db8:1:2:3:4::/96", "lo") });
            }),
        ),
        (
            "prefix-clash",
            "ip -6 addr del 2001:db8:1:2:3::9/64 dev dummy0",
            with(|f| {
                f.addresses.push(on("2001:db8:1:2:3::9", "dummy0"));
                f.routes.push(to("2001:db8:1:2::/64", "dummy0"));
            }),
        ),
        (
            "prefix-clash",
            "ip -6 route del 2001:db8:1:2::/64 dev dummy0",
            with(|f| f.routes.push(to("2001:db8:1:2::/64", "dummy0"))),
        ),
        (
            "prefix-on-link",
            "sed -i -e '1i ndp_proxy = true' -e '/^[[:space:]]*ndp_proxy[[:space:]]*=/d' /etc/v6pod/v6pod.toml && systemctl restart v6podd.service",
            with(|f| f.routes.push(to("2001:db8:1:2::/64", UP0))),
        ),
        (
            "conntrack-full",
            "sysctl -w net.netfilter.nf_conntrack_max=200",
            with(|f| f.conntrack = Some(Filling { entries: 91, most: 100 })),
        ),
        (
            "bridge-calls",
            "sysctl -w net.bridge.bridge-nf-call-ip6tables=0",
            with(|f| f.bridge_calls = Some(1)),
        ),
    ];
    for (code, line, facts) in cases {
        assert_eq!(judged(&facts), [(code, Some(line.to_owned()))]);
    }
    // What nobody can know a command for.
    assert_eq!(judged(&with(|f| drop(f.routes.remove(0)))), [("no-default-route", None)]);
}

#[test]
fn an_unreachable_route_around_the_prefix_is_no_clash() {
    for serving in [true, false] {
        let around = |flags| {
            with(|f| {
                f.serving = serving;
                f.routes.push(Route { flags, ..to("2001:db8:1:2::/64", "lo") });
            })
        };
        assert_eq!(judged(&around(1 | REJECT)), []);
        assert_eq!(judged(&around(1))[0].0, "prefix-clash");
    }
}

#[test]
fn where_linux_forwards_for_all_or_not_at_all_advertisements_are_kept_first() {
    let facts = with(|f| f.links.iter_mut().for_each(|link| link.force_forwarding = None));
    let found = judged(&facts);
    let line = "sysctl -w net/ipv6/conf/up0/accept_ra=2 net/ipv6/conf/all/forwarding=1";
    assert_eq!(found[0], ("forwarding-off", Some(line.to_owned())));
    assert_eq!(judged(&Facts { forwarding: Some(1), ..facts }), []);
}

#[test]
fn a_daemon_that_is_away_is_no_reason_to_look_for_its_bridge() {
    let away = with(|f| {
        f.serving = false;
        f.links.pop();
        f.addresses.remove(0);
    });
    assert_eq!(judged(&away), []);
}

#[test]
fn the_kernels_tables_are_read() {
    let text = "20010db8000100020003000000000000 50 00000000000000000000000000000000 00 \
                00000000000000000000000000000000 006f0a17 00000001 00000000 00200200       lo\n\
                00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                20010db8ffff00000000000000000001 00000400 00000001 00000000 00000003      up0\n\
                garbage\n";
    let [ours, default] = &*routes(text) else { panic!() };
    assert_eq!((ours.net.to_string(), &*ours.link), (P.to_owned(), "lo"));
    assert!(ours.flags & REJECT != 0 && !ours.is_default());
    assert!(default.is_default() && default.gateway == "2001:db8:ffff::1".parse().ok());
    let text = "20010db8ffff00000000000000000002 02 40 00 80      up0\n\n";
    let found = addresses(text);
    assert_eq!(found, [on("2001:db8:ffff::2", "up0")]);
}
