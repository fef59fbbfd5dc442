//! Issue 8: compose as docs/users.md shows it.
//!
//! ```text
//!   outside ── up0  host ── v6podd
//!                    ├── v6eth0 ┌ web (page) ┐ eth0 ── a bridge of podman's, for the project
//!                    └── v6eth0 ┌ db         ┐ eth0 ──┘
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use v6pod_tests::{
    Config, Finished, HostNs, IMAGE, PATIENCE, Stage, eventually, require, run, run_within,
    shown_to_users,
};

/// How long podman-compose may take, which asks podman some twenty times.
const LIMIT: Duration = Duration::from_secs(120);

/// The project that docs/users.md shows, with a page to serve, and a second service.
#[track_caller]
fn project() -> String {
    let shown = shown_to_users("yaml\nservices:\n");
    let page = "    command: [sh, -c, 'echo Hello >/index.html; exec httpd -f -p 80 -h /']\n";
    let second = "  db:\n    image: IMAGE\n    annotations:\n      v6pod: 'true'\n    command: [sleep, '1000']\n";
    format!("services:\n{shown}{page}{second}").replace("IMAGE", IMAGE)
}

#[test]
fn a_projects_services_have_an_address_each_and_are_called_as_podman_calls_them() {
    let _machine = require!(Podman, Compose);
    let stage = Stage::on(HostNs::new(), &Config::default(), 1);
    let user = stage.user();
    user.use_hook(&stage.daemon.socket());
    let write = "mkdir shop && printf %s \"$1\" >shop/compose.yaml";
    run(user.command("sh").args(["-ec", write, "sh", &project()])).ok();
    let compose = |words: &[&str]| -> Finished {
        let file = ["-f", "shop/compose.yaml"];
        run_within(LIMIT, user.command("podman-compose").args(file).args(words))
    };
    let named = || -> BTreeMap<String, Ipv6Addr> {
        let all = stage.daemon.attachments();
        let names = all.iter().flat_map(|a| a.names.iter().map(|n| (n.name.clone(), a.address)));
        names.collect()
    };
    let web = |addresses: &BTreeMap<String, Ipv6Addr>| {
        let page = format!("http://[{}]/", addresses["shop-web-1"]);
        let words = ["-sS", "--retry-connrefused", "--retry", "5", &page];
        run(stage.host.outside("curl").args(words)).ok().to_owned()
    };
    let before = stage.daemon.footprint();
    // And once more: what is down has left nothing that is in the way.
    for _ in 0..2 {
        compose(&["up", "--detach"]).ok();
        let both = eventually(PATIENCE, "two services with names", || {
            let now = named();
            now.keys().eq(["shop-db-1", "shop-web-1"]).then_some(now)
        });
        assert_ne!(both["shop-db-1"], both["shop-web-1"]);
        assert_eq!(web(&both), "Hello");
        // The other goes on without it.
        compose(&["stop", "--timeout", "0", "db"]).ok();
        eventually(PATIENCE, "one of them has ended", || {
            named().keys().eq(["shop-web-1"]).then_some(())
        });
        assert_eq!(web(&both), "Hello");
        compose(&["down", "--timeout", "0"]).ok();
        before.comes_back(&stage.daemon);
    }
}
