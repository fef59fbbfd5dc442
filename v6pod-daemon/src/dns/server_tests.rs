use std::path::Path;

use domain::base::{Message, MessageBuilder};

use super::*;
use crate::core::Label;
use crate::dns::Asker;
use crate::dns::message::AnyName;

const ALICE: Uid = match Uid::new(1001) {
    Some(uid) => uid,
    None => unreachable!(),
};
const BOB: Uid = match Uid::new(1002) {
    Some(uid) => uid,
    None => unreachable!(),
};

/// Alice's `web` at ::a and Bob's `db` at ::b; Alice's container at ::c is confined and has no name.
struct Two;

fn at(last: &str) -> Ipv6Addr {
    format!("2001:db8:1:2:3::{last}").parse().unwrap()
}

impl Directory for Two {
    fn asker(&self, address: Ipv6Addr) -> Option<Asker> {
        let all = [("a", ALICE, false), ("b", BOB, false), ("c", ALICE, true)];
        let found = all.into_iter().find(|(last, ..)| at(last) == address);
        found.map(|(_, owner, confined)| Asker { owner, confined })
    }

    fn bearers(&self, label: &Label) -> Vec<Bearer> {
        match label.as_str() {
            "web" => vec![Bearer { address: at("a"), owner: ALICE }],
            "db" => vec![Bearer { address: at("b"), owner: BOB }],
            _ => vec![],
        }
    }

    fn borne(&self, address: Ipv6Addr) -> Vec<(Label, Bearer)> {
        let all = ["web", "db"].map(|label| label.parse::<Label>().unwrap());
        let all = all.into_iter().map(|label| (self.bearers(&label)[0], label));
        all.filter(|(bearer, _)| bearer.address == address).map(|(b, l)| (l, b)).collect()
    }
}

fn server(scope: Scope) -> Arc<Server<Two>> {
    let zone =
        Zone::new("v6pod.internal", ["2001:db8:1:2:3::/80".parse().unwrap()].into_iter().collect())
            .unwrap();
    let upstream = Upstream::new(Path::new("/nonexistent"), Ipv6Addr::LOCALHOST, None);
    Server::new(Two, zone, scope, upstream, Counts::default())
}

fn asked(name: &str, rtype: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((&name.parse::<AnyName>().unwrap(), rtype)).unwrap();
    question.finish()
}

/// The code and the number of records that an asker at this address gets; none if it is asked on.
fn told(server: &Server<Two>, from: Ipv6Addr, name: &str, rtype: Rtype) -> Option<(Rcode, u16)> {
    let from = server.who(from).unwrap();
    match server.due(&asked(name, rtype), from, Transport::Udp) {
        Due::Answer(bytes) => {
            let answer = Message::from_octets(&bytes[..]).unwrap();
            Some((answer.header().rcode(), answer.header_counts().ancount()))
        }
        Due::AskOn(_) => None,
        Due::Nothing => panic!("no answer"),
    }
}

const WEB: &str = "a.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";

#[test]
fn a_name_has_an_address_and_an_address_a_name() {
    let server = server(Scope::Host);
    let host = "fd3a:9ca3:76d6::53".parse().unwrap();
    for from in [at("a"), at("b"), at("c"), at("1"), host] {
        let told = |name: &str, rtype| told(&server, from, name, rtype);
        assert_eq!(told("web.v6pod.internal", Rtype::AAAA), Some((Rcode::NOERROR, 1)));
        assert_eq!(told("WEB.v6pod.internal", Rtype::ANY), Some((Rcode::NOERROR, 1)));
        assert_eq!(told("web.v6pod.internal", Rtype::A), Some((Rcode::NOERROR, 0)));
        assert_eq!(told("nobody.v6pod.internal", Rtype::AAAA), Some((Rcode::NXDOMAIN, 0)));
        assert_eq!(told("v6pod.internal", Rtype::SOA), Some((Rcode::NOERROR, 1)));
        assert_eq!(told("v6pod.internal", Rtype::AAAA), Some((Rcode::NOERROR, 0)));
        assert_eq!(told("v6pod.internal", Rtype::AXFR), Some((Rcode::REFUSED, 0)));
        assert_eq!(told(WEB, Rtype::PTR), Some((Rcode::NOERROR, 1)));
        let nameless = format!("c{}", &WEB[1..]);
        assert_eq!(told(&nameless, Rtype::PTR), Some((Rcode::NXDOMAIN, 0)));
        assert_eq!(told(&WEB[2..], Rtype::PTR), Some((Rcode::NOERROR, 0)));
    }
}

#[test]
fn attack_19_what_an_asker_is_not_to_see_is_not_there_to_the_byte() {
    let server = server(Scope::Owner);
    let due = |from: Ipv6Addr, name: &str, rtype| {
        let from = server.who(from).unwrap();
        match server.due(&asked(name, rtype), from, Transport::Udp) {
            Due::Answer(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    };
    // As long a name, so that only its letters differ.
    let nobody = due(at("b"), "wxb.v6pod.internal", Rtype::AAAA);
    for from in [at("b"), "fd3a:9ca3:76d6::53".parse().unwrap()] {
        let mut hidden = due(from, "web.v6pod.internal", Rtype::AAAA);
        let differs: Vec<_> = (0..hidden.len()).filter(|i| hidden[*i] != nobody[*i]).collect();
        assert_eq!((differs.len(), hidden.len()), (1, nobody.len()));
        hidden[differs[0]] = b'x';
        assert_eq!(hidden, nobody);
        assert_eq!(told(&server, from, WEB, Rtype::PTR), Some((Rcode::NXDOMAIN, 0)));
    }
    for from in [at("a"), at("c")] {
        let told = told(&server, from, "web.v6pod.internal", Rtype::AAAA);
        assert_eq!(told, Some((Rcode::NOERROR, 1)));
    }
}

#[test]
fn attack_19_nobody_is_asked_on_for_but_containers_that_may_reach_others() {
    let server = server(Scope::Host);
    let asks = |from: Ipv6Addr| told(&server, from, "example.org", Rtype::A);
    assert_eq!(asks(at("a")), None);
    for from in [at("c"), at("1"), "::1".parse().unwrap()] {
        assert_eq!(asks(from), Some((Rcode::REFUSED, 0)), "{from}");
    }
    // Somebody's until just now.
    assert_eq!(server.who(at("d")), None);
    assert_eq!((server.counts.of("refused"), server.counts.of("ours")), (3, 0));
    assert!(told(&server, at("a"), "nobody.v6pod.internal", Rtype::A).is_some());
    assert_eq!((server.counts.of("refused"), server.counts.of("ours")), (3, 1));
}
