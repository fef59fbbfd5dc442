//! Attack 3, over every call: what is another's is answered like what is not there, byte by byte.
//!
//! ```text
//!   v6t1 asks about ──▶ the attachment of v6t2: by id, container, name, address, owner …
//!                   └─▶ the same of nobody, in the same shape
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::os::fd::AsFd;

use v6pod_proto::{Activate, Attachment, NameState};
use v6pod_tests::{
    Body, Caller, OwnedNs, PATIENCE, Response, Stage, User, eventually, random_container_id,
    require, run,
};

/// A uid that owns nothing here and has no account.
const NOBODY: u32 = 3_999_999_999;

/// Everything in an answer that its receiver could tell it by. The date is the clock's; a request's
/// id, which refusals other than 404 bear, is a counter.
fn told(response: &Response) -> (u16, Vec<(String, String)>, String) {
    let mut headers: Vec<_> = response.headers.clone().into_iter().collect();
    headers.retain(|(name, _)| name != "date");
    headers.sort();
    let body = String::from_utf8_lossy(&response.body).into_owned();
    if response.status == 404 {
        return (response.status, headers, body);
    }
    let id = body.split("\"request_id\":\"").nth(1).and_then(|rest| rest.split('"').next());
    (response.status, headers, body.replace(id.unwrap_or("\0"), "ID"))
}

/// What can be known of an attachment, and what looks like it and is nobody's.
fn pairs(a: &Attachment) -> Vec<(String, String)> {
    let nothing = random_container_id();
    let unknown_id: String = a.id.as_str().chars().rev().collect();
    let address = a.address.to_string();
    let unknown_address = {
        let mut segments = a.address.segments();
        segments[7] ^= 1;
        std::net::Ipv6Addr::from(segments).to_string()
    };
    let upper = |text: &str| text.to_uppercase();
    [
        (a.id.to_string(), unknown_id.clone()),
        (a.id.as_str()[..8].to_owned(), unknown_id[..8].to_owned()),
        (a.container.to_string(), nothing.to_string()),
        (a.container.as_str()[..12].to_owned(), nothing.as_str()[..12].to_owned()),
        ("db".to_owned(), "no".to_owned()),
        (address.clone(), unknown_address.clone()),
        (upper(&address), upper(&unknown_address)),
        (a.port.to_string(), "v6p0123456789".to_owned()),
        (a.mac.to_string(), "02:00:00:00:00:00".to_owned()),
    ]
    .into()
}

#[track_caller]
fn same(what: &str, theirs: &Response, nobodys: &Response) {
    assert_eq!(told(theirs), told(nobodys), "{what}");
}

/// One call about one reference, over all methods there are.
fn ask_about_references(caller: &Caller, a: &Attachment) {
    for (theirs, nobodys) in pairs(a) {
        for method in ["GET", "HEAD", "DELETE", "PATCH", "PUT", "POST", "OPTIONS"] {
            let ask = |reference: &str| {
                let path = format!("/api/attachments/{reference}");
                caller.call(method, &path, Body::None, None).0
            };
            same(&format!("{method} {theirs}"), &ask(&theirs), &ask(&nobodys));
        }
        let list = |name: &str| caller.get(&format!("/api/attachments?name={name}"));
        same(&format!("name={theirs}"), &list(&theirs), &list(&nobodys));
    }
}

fn ask_about_owners(caller: &Caller, a: &Attachment, owner: u32) {
    let nothing = random_container_id();
    let list = |uid: u32| caller.get(&format!("/api/attachments?owner={uid}"));
    same("another's list", &list(owner), &list(NOBODY));
    for path in ["/api/activate", "/activate", "/api/deactivate", "/deactivate"] {
        for more in ["", "&plug=false", "&exclusive=true", "&name=db", "&interface=eth0"] {
            let ask = |user: u32, id: &str| {
                let form = format!("user={user}&id={id}{more}");
                caller.post(path, Body::Form(&form))
            };
            let nobodys = ask(NOBODY, nothing.as_str());
            for (what, user, id) in [
                ("his, by his uid", owner, a.container.as_str()),
                ("none of his", owner, nothing.as_str()),
                ("root's", 0, nothing.as_str()),
                ("his, by nobody's uid", NOBODY, a.container.as_str()),
            ] {
                same(&format!("{path}{more}: {what}"), &ask(user, id), &nobodys);
            }
        }
        // As if it were one's own.
        let ask = |id: &str| caller.post(path, Body::Form(&format!("id={id}")));
        same(&format!("{path}, no user"), &ask(a.container.as_str()), &ask(nothing.as_str()));
    }
}

/// The whole answer to GET over TCP as curl prints it, less the date.
fn over_tcp(user: &User, reference: &str) -> String {
    let url = format!("http://localhost:6781/api/attachments/{reference}");
    let finished = run(user.command("curl").args(["-sS", "--globoff", "-i", "-m", "20", &url]));
    let lines = finished.ok().lines().filter(|line| !line.starts_with("date:"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn attack_03_no_call_tells_what_is_anothers_from_what_is_not_there() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(2);
    let [attacker, victim] = &stage.users[..] else { unreachable!("two users") };
    let namespace = OwnedNs::new(victim);
    let request = Activate { name: Some("db".into()), ..Activate::new(random_container_id()) };
    let owner = stage.daemon.as_user(victim.uid());
    let (made, _) = owner.activate(&request, namespace.network().as_fd());
    made.unwrap_or_else(|refused| panic!("{refused}"));
    let a = eventually(PATIENCE, "the victim's name is registered", || {
        let a = stage.daemon.the_attachment();
        a.names.iter().any(|name| name.state == NameState::Registered).then_some(a)
    });
    // The references are good ones: their owner is told more.
    let ambiguous = ["v6p", "02:"];
    for (theirs, nobodys) in pairs(&a) {
        let get = |reference: &str| owner.get(&format!("/api/attachments/{reference}")).status;
        if !ambiguous.iter().any(|start| nobodys.starts_with(start)) {
            assert_eq!((get(&theirs), get(&nobodys)), (200, 404), "{theirs}");
        }
    }
    // Not from one who has nothing, not from one who has something, not from one without an account.
    let caller = stage.daemon.as_user(attacker.uid());
    for uid in [attacker.uid(), attacker.subordinate_ids().start] {
        let caller = stage.daemon.as_user(uid);
        ask_about_references(&caller, &a);
        ask_about_owners(&caller, &a, victim.uid());
    }
    let own = OwnedNs::new(attacker);
    let (made, _) = caller.activate(&Activate::new(random_container_id()), own.network().as_fd());
    made.unwrap_or_else(|refused| panic!("{refused}"));
    ask_about_references(&caller, &a);
    ask_about_owners(&caller, &a, victim.uid());
    for (theirs, nobodys) in pairs(&a) {
        assert_eq!(over_tcp(attacker, &theirs), over_tcp(attacker, &nobodys), "{theirs} by TCP");
    }
    assert_eq!(namespace.addresses(), [a.address]);
}
