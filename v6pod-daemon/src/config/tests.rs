use super::*;

const SAMPLE: &str = include_str!("../../../systemd/v6pod.toml");

fn mistake(text: &str) -> Mistake {
    match Config::parse(text) {
        Ok(config) => panic!("{text:?} was taken: {config:?}"),
        Err(mistake) => mistake,
    }
}

/// Asserts that the text is refused for a value.
fn refused(text: &str) {
    let mistake = mistake(text);
    assert!(matches!(mistake, Mistake::Value { .. }), "{text:?}: {mistake}");
}

#[test]
fn no_file_means_the_defaults() {
    let config = Config::parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.run_dir(), Path::new("/run/v6pod"));
    assert_eq!(config.socket(), Path::new(v6pod_proto::DEFAULT_SOCKET));
    assert_eq!(config.state_dir(), Path::new("/var/lib/v6pod"));
}

#[test]
fn the_sample_file_is_the_defaults() {
    assert_eq!(Config::parse(SAMPLE).unwrap(), Config::default());
}

#[test]
fn a_file_is_read_into_types() {
    let config = Config::parse(
        r#"
        prefix = "2001:db8:1:2::/64"
        subnet = 7
        instance = "other"
        mtu = 1400
        uplink = "wan0"
        mode = "routed"
        addresses.quarantine = "90s"
        limits.per_owner = 3
        firewall.ingress = "allow"
        firewall.openings = ["labels", "annotations"]
        firewall.allow = [
            { users = ["*"], ports = ["tcp/8000-8999", "udp/53"] },
            { users = ["@web"], ports = ["tcp/80"] },
        ]
        limits.users = ["alice", "1000", "@staff"]
        limits.operators = ["@wheel"]
        api.tcp = []
        [registry]
        kind = "consul"
        reserved = ["db"]
        consul = { address = "http://Consul.example:8501/", token_file = "/etc/v6pod/token", datacenter = "dc1" }
        "#,
    )
    .unwrap();
    assert_eq!(config.prefix, PrefixSource::Static("2001:db8:1:2:7::/80".parse().unwrap()));
    assert_eq!(config.socket(), Path::new("/run/other/other.sock"));
    assert_eq!((config.mtu, config.mode), (Some(1400), Mode::Routed));
    assert_eq!(config.uplink, Some("wan0".parse().unwrap()));
    assert_eq!(config.quarantine, Duration::from_secs(90));
    assert_eq!((config.per_owner, config.tcp.len()), (3, 0));
    assert_eq!(config.ingress, Ingress::Allow);
    assert_eq!(config.openings, Ways { annotations: true, published: false, labels: true });
    let allow = config.allow.unwrap();
    assert_eq!(
        [allow[0].users.0.clone(), allow[1].users.0.clone()],
        [vec![Who::Everybody], vec![Who::Group("web".to_owned())],]
    );
    let ports: Vec<_> = allow.iter().flat_map(|allow| &allow.ports).collect();
    assert_eq!(ports.iter().map(|p| p.ports.last()).collect::<Vec<_>>(), [8999, 53, 80]);
    assert_eq!(config.reserved, ["db"]);
    let user = |name: &str| Who::User(name.to_owned());
    let group = |name: &str| Who::Group(name.to_owned());
    assert_eq!(config.users.0, [user("alice"), user("1000"), group("staff")]);
    assert_eq!(config.operators.0, [group("wheel")]);
    let Registry::Consul(consul) = config.registry else { panic!("{:?}", config.registry) };
    let ConsulUrl::Http(address) = consul.address else { panic!("{:?}", consul.address) };
    assert_eq!(address.to_string(), "consul.example:8501");
    assert_eq!(consul.token_file, Some("/etc/v6pod/token".into()));
    assert_eq!(consul.datacenter.as_deref(), Some("dc1"));
}

#[test]
fn without_a_word_everybody_opens_every_port_and_with_one_only_who_is_meant() {
    let allow = |text: &str| Config::parse(text).unwrap().allow;
    assert_eq!(allow(""), None);
    assert_eq!(allow("firewall.allow = []"), Some(vec![]));
    let text = "[[firewall.allow]]\nusers = [\"@web\"]\nports = [\"tcp/80\"]\n";
    assert_eq!(allow(&text.repeat(2)).unwrap().len(), 2);
    let openings = |text: &str| Config::parse(text).unwrap().openings;
    let usual = Ways { annotations: true, published: true, labels: false };
    assert_eq!(
        (openings(""), openings("firewall.openings = [\"annotations\", \"published\"]")),
        (usual, usual)
    );
    let none = Ways { annotations: false, published: false, labels: false };
    assert_eq!(openings("firewall.openings = []"), none);
}

#[test]
fn an_unknown_key_is_named_with_its_tables_and_line() {
    let Mistake::UnknownKey { line, key, reason } = mistake("\n[limits]\nper_user = 3\n") else {
        panic!();
    };
    assert_eq!((line, key.as_str()), (3, "limits.per_user"));
    assert!(reason.contains("per_owner"), "{reason}");
    for (text, named) in [
        ("prefx = 1", "prefx"),
        ("[firewal]", "firewal"),
        ("registry.consul.adress = \"\"", "registry.consul.adress"),
        ("[registry]\nconsul = { tokenfile = 1 }", "registry.consul.tokenfile"),
        ("[[firewall.allow]]\nusers = []\nports = []\nuser = 1", "firewall.allow.user"),
    ] {
        match mistake(text) {
            Mistake::UnknownKey { key, .. } => assert_eq!(key, named),
            other => panic!("{text:?}: {other}"),
        }
    }
}

#[test]
fn a_wrong_value_is_named_with_its_key_and_what_would_be_right() {
    let Mistake::Value { line, key, reason } = mistake("\naddresses.quarantine = \"5x\"") else {
        panic!();
    };
    assert_eq!((line, key.as_str()), (2, "addresses.quarantine"));
    assert!(reason.contains("5x") && reason.contains("5m"), "{reason}");
    let text = mistake("limits.users = [\"alice\", \"b b\"]").to_string();
    assert!(text.starts_with("line 1: limits.users: \"b b\""), "{text}");
}

#[test]
fn what_is_not_toml_is_told_by_its_line() {
    assert!(matches!(mistake("mtu = 1400\nprefix = \n"), Mistake::Syntax { line: 2, .. }));
    assert!(matches!(mistake("mtu = 1\nmtu = 2"), Mistake::Syntax { line: 2, .. }));
}

#[test]
fn wrong_values_are_wrong_before_they_are_too_early() {
    for text in [
        "prefix = \"fe80::/64\"",
        "prefix = \"2001:db8::1/80\"",
        "prefix = \"file:relative\"",
        "prefix = \"2001:db8::/64\"\nsubnet = 65536",
        "prefix = \"2001:db8::/64\"\nsubnet = -1",
        "mode = \"router\"",
        "instance = \"much-too-long\"",
        "mtu = 1279",
        "mtu = 65536",
        "mtu = -1",
        "mtu = \"1400\"",
        "uplink = \"a/b\"",
        "nat66 = true",
        "ndp_proxy = \"no\"",
        "addresses.quarantine = 5",
        "addresses.quarantine = \"-5m\"",
        "addresses.quarantine = \"5\"",
        "addresses.quarantine = \"m\"",
        "addresses.quarantine = \"5 m\"",
        "addresses.quarantine = \"366d\"",
        "addresses.quarantine = \"99999999999999999999s\"",
        "addresses.quarantine = \"18446744073709551615d\"",
        "addresses.per_owner = \"96\"",
        "addresses.per_owner = \"/128\"",
        "addresses.wished = [\"@\"]",
        "renumber.grace = \"10\"",
        "limits.per_owner = -1",
        "limits.per_owner = 4294967296",
        "limits.users = [\"a:b\"]",
        "limits.operators = \"root\"",
        "limits.operators = [\"alice\", \"*\"]",
        "firewall.ingress = \"drop\"",
        "firewall.openings = [\"image\"]",
        "firewall.east_west = \"allow\"",
        "firewall.allow = [{ users = [\"*\"], ports = [\"tcp/0\"] }]",
        "firewall.allow = [{ users = [\"*\"], ports = [\"tcp/9-8\"] }]",
        "firewall.allow = [{ users = [\"*\"], ports = [\"icmp/1\"] }]",
        "firewall.allow = [{ users = [\"*\"], ports = [\"tcp/80@2001:db8::/32\"] }]",
        "firewall.allow = [{ users = [\"*\"], ports = [\"tcp/80,tcp/81\"] }]",
        "registry.kind = \"etcd\"",
        "registry.name = \"{name}.{user}\"",
        "registry.name = \"web\"",
        "registry.reserved = [\"Consul\"]",
        "registry.consul.address = \"[::1]:8500\"",
        "registry.consul.address = \"http://[::1]\"",
        "registry.consul.address = \"http://::1:8500\"",
        "registry.consul.address = \"http://user@host:8500\"",
        "registry.consul.address = \"http://host:8500/v1\"",
        "registry.consul.address = \"http://127.0.0:8500\"",
        "registry.consul.address = \"http://host:+80\"",
        "registry.consul.address = \"ftp://host:21\"",
        "registry.consul.token_file = \"a/token\"",
        "registry.consul.token_file = \"..\"",
        "registry.consul.ca_file = \"/etc/../ca\"",
        "registry.consul.datacenter = \"a b\"",
        "dns.zone = \"a..b\"",
        "dns.scope = \"all\"",
        "api.tcp = [\"0.0.0.0:6781\"]",
        "api.tcp = [\"[::ffff:127.0.0.1]:6781\"]",
        "api.tcp = [\"127.0.0.1:0\"]",
        "api.tcp = [\"localhost:6781\"]",
    ] {
        refused(text);
    }
}

#[test]
fn a_token_is_a_file_or_a_credential() {
    for (written, at) in [("/etc/token", "/etc/token"), ("consul-token", "/etc/v6pod/consul-token")]
    {
        let text = format!("registry = {{ kind = \"consul\", consul.token_file = \"{written}\" }}");
        let Registry::Consul(consul) = Config::parse(&text).unwrap().registry else { panic!() };
        // Tests have no credentials.
        assert_eq!(Config::secret(&consul.token_file.unwrap()), Path::new(at));
    }
}

#[test]
fn consul_is_reached_by_tls_or_a_unix_socket() {
    let consul = |text: &str| match Config::parse(&format!("registry.kind = \"consul\"\n{text}")) {
        Ok(Config { registry: Registry::Consul(consul), .. }) => consul,
        other => panic!("{other:?}"),
    };
    let unix = consul("registry.consul.address = \"unix:///run/consul/http.sock\"");
    assert_eq!(unix.address, ConsulUrl::Unix("/run/consul/http.sock".into()));
    if !cfg!(feature = "consul-tls") {
        refused("registry.consul.address = \"https://[2001:db8::1]:8501\"");
        return;
    }
    let tls = consul(
        "[registry.consul]\naddress = \"https://[2001:db8::1]:8501\"\nca_file = \"/etc/ca.pem\"\n\
         cert_file = \"consul-cert\"\nkey_file = \"consul-key\"",
    );
    assert!(matches!(&tls.address, ConsulUrl::Https(at) if at.to_string() == "[2001:db8::1]:8501"));
    assert_eq!(tls.ca_file, Some("/etc/ca.pem".into()));
    let identity = tls.identity.unwrap();
    assert_eq!(
        (identity.cert_file, identity.key_file),
        ("consul-cert".into(), "consul-key".into())
    );
    // What would be without effect, or half of it, is refused.
    for wrong in [
        "registry.consul.ca_file = \"/etc/ca.pem\"",
        "registry.consul = { address = \"https://[::1]:8501\", key_file = \"/etc/key.pem\" }",
        "registry.consul = { address = \"https://[::1]:8501\", cert_file = \"/etc/cert.pem\" }",
    ] {
        refused(wrong);
    }
}

#[test]
fn slices_are_parts_of_the_prefix() {
    let slice = |text: &str| Config::parse(text).unwrap().slice;
    assert_eq!(slice("addresses.per_owner = \"none\""), None);
    assert_eq!(slice("addresses.per_owner = \"/96\""), Some(96));
    assert_eq!(slice("prefix = \"2001:db8::/80\"\naddresses.per_owner = \"/81\""), Some(81));
    for not in ["/80", "/79"] {
        refused(&format!("prefix = \"2001:db8::/80\"\naddresses.per_owner = \"{not}\""));
    }
    let wished = Config::parse("addresses.wished = [\"alice\", \"@staff\"]").unwrap().wished;
    let [alice, staff] = ["alice", "@staff"].map(|who| who.parse().unwrap());
    assert_eq!(wished, People(vec![alice, staff]));
}

#[test]
fn a_prefix_can_come_later_and_is_cut_by_the_same_number_each_time() {
    let config = |text: &str| Config::parse(text).unwrap();
    let usual = config("");
    assert_eq!((usual.subnet, usual.grace.as_secs(), usual.settle.as_secs()), (None, 600, 5));
    let file = config("prefix = \"file:/run/prefix\"\nsubnet = 9");
    assert_eq!(file.prefix, PrefixSource::File("/run/prefix".into()));
    assert_eq!(file.subnet, Some(9));
    let auto = config("subnet = 9\n[renumber]\ngrace = \"0s\"\nsettle = \"1m\"");
    assert_eq!((auto.prefix, auto.subnet), (PrefixSource::Auto, Some(9)));
    assert_eq!((auto.grace.as_secs(), auto.settle.as_secs()), (0, 60));
}

#[test]
fn what_containers_may_reach_and_how_much_of_it() {
    let config = |text: &str| Config::parse(text).unwrap();
    let usual = Config::default();
    let text = "limits.flows = 16384\n[firewall]\negress = \"allow\"\neast_west = \"policy\"\nhost = \"as-outside\"\n";
    assert_eq!(config(text), usual);
    let text =
        "limits.flows = 0\n[firewall]\negress = \"deny\"\neast_west = \"deny\"\nhost = \"deny\"\n";
    let strict = config(text);
    assert_eq!(strict.egress, Egress::Deny(vec![]));
    assert_eq!((strict.east_west, strict.host), (EastWest::Deny, HostAccess::Deny));
    assert_eq!((strict.flows, usual.flows.map(NonZeroU32::get)), (None, Some(16_384)));
    for wrong in ["firewall.egress = \"drop\"", "firewall.host = \"allow\"", "limits.flows = -1"] {
        assert!(Config::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn names_are_answered_unless_the_file_says_otherwise_or_there_are_none() {
    let dns = |text: &str| Config::parse(text).unwrap().dns;
    assert_eq!(dns(""), Some(Dns::default()));
    let written = "dns.zone = \"pods.example\"\ndns.scope = \"owner\"\ndns.containers = false";
    let expected = Dns { zone: "pods.example".into(), scope: Scope::Owner, containers: false };
    assert_eq!(dns(written), Some(expected));
    assert_eq!(dns("dns.enabled = false\ndns.forward = \"auto\""), None);
    assert_eq!(dns("registry.kind = \"none\"\ndns.enabled = true"), None);
}

#[test]
fn only_the_default_file_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let error = Config::load(Some(&missing)).unwrap_err();
    assert!(matches!(&error, ConfigError::Missing(path) if *path == missing), "{error}");
    let error = Config::load(Some(folder.path())).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable(..)), "{error}");
    let wrong = folder.path().join("wrong.toml");
    fs::write(&wrong, "mtu = 1\n").unwrap();
    let error = Config::load(Some(&wrong)).unwrap_err().to_string();
    assert!(error.starts_with(wrong.to_str().unwrap()) && error.contains("line 1"), "{error}");
}

#[test]
fn what_is_off_is_said_once_each() {
    let off = Config::default().switched_off();
    let answering = Config { ndp_proxy: true, ..Config::default() }.switched_off();
    let left: Vec<_> = off.iter().filter(|entry| !answering.contains(entry)).collect();
    assert!(matches!(left[..], [entry] if entry.feature == "ndp-proxy"), "{left:?}");
    assert!(off.iter().all(|entry| entry.feature != "openings"));
    assert!(off.iter().all(|entry| entry.feature != "firewall.ingress"));
    for (at, entry) in off.iter().enumerate() {
        assert!(entry.meaning.ends_with('.'), "{entry:?}");
        assert!(off[..at].iter().all(|other| other.feature != entry.feature), "{entry:?}");
    }
    let nameless = Config { registry: Registry::None, ..Config::default() };
    assert_eq!(nameless.switched_off().len(), off.len() + 1);
    let mute = Config { dns: None, ..Config::default() };
    assert!(mute.switched_off().iter().any(|entry| entry.feature == "dns"));
    assert!(off.iter().all(|entry| entry.feature != "dns"));
    let open = Config { ingress: Ingress::Allow, ..Config::default() };
    assert!(open.switched_off().iter().any(|entry| entry.feature == "firewall.ingress"));
}
