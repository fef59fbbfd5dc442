//! What the fuzz targets need to see (docs/fuzzing.md).

use std::net::Ipv6Addr;

use domain::base::Message;
use domain::base::name::ToName as _;

use super::message::{Found, Incoming, Question, Transport};
use super::zone::{Subject, Zone};

/// The number that other resolvers are asked under.
const NUMBER: u16 = 0x7654;

/// Bytes of an asker's. What is a question gets every kind of answer, each of which is one to it and no
/// longer than it may be; and asked on it is the same question.
pub fn question(bytes: &[u8]) {
    let prefix = "2001:db8:1:2:3::/80".parse().ok();
    let Some(zone) =
        prefix.and_then(|prefix| Zone::new("v6pod.internal", [prefix].into_iter().collect()).ok())
    else {
        unreachable!("a zone and a prefix");
    };
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let question = match Incoming::read(bytes, transport) {
            Incoming::Noise => continue,
            Incoming::Settled(answer) => {
                assert!(matches!(Incoming::read(&answer, transport), Incoming::Noise));
                continue;
            }
            Incoming::Asked(question) => question,
        };
        if let Subject::Label(label) = zone.subject(&question.name) {
            let name = zone.name_of(&label);
            assert!(name.is_some_and(|name| name.name_eq(&question.name)));
        }
        let authority = zone.authority(&question.name);
        let names = Found::Names(vec![authority.clone(); 40]);
        let addresses = |count| Found::Addresses(vec![Ipv6Addr::LOCALHOST; count]);
        let all = [Found::NoName, Found::NoData, Found::Zone, names, addresses(1), addresses(3000)];
        for found in all {
            let answer = question.answer(&found, &authority);
            assert!(answer.len() <= limit && bytes[..2] == answer[..2]);
            assert!(echoes(&answer, &question));
        }
        let mut onward = question.onward(NUMBER);
        let Incoming::Asked(again) = Incoming::read(&onward, transport) else {
            unreachable!("what we ask is a question");
        };
        assert!(again.name.name_eq(&question.name) && again.rtype == question.rtype);
        // Sent back as an answer, it is one.
        onward[2] |= 0x80;
        assert!(question.passed_on(NUMBER, onward).is_some());
    }
}

/// Bytes of another resolver's. What is passed on is an answer to what was asked, or an error.
pub fn answer(bytes: &[u8]) {
    let asked =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x1c\x00\x01";
    let Incoming::Asked(question) = Incoming::read(asked, Transport::Udp) else {
        unreachable!("a question");
    };
    let Some(passed) = question.passed_on(NUMBER, bytes.to_vec()) else { return };
    assert!(bytes[..2] == NUMBER.to_be_bytes() && passed[..2] == [0x12, 0x34]);
    assert!(passed.len() <= 512 && passed[2] & 0x80 != 0);
    assert!(echoes(&passed, &question) || passed[3] & 0x0f != 0);
}

/// Whether this is an answer to this question.
fn echoes(answer: &[u8], question: &Question) -> bool {
    let Ok(message) = Message::from_octets(answer) else { return false };
    let same = message.sole_question().is_ok_and(|echoed| {
        echoed.qname().name_eq(&question.name) && echoed.qtype() == question.rtype
    });
    same && message.header().qr()
}
