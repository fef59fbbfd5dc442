use domain::base::message::Message as AnyMessage;

use super::*;

fn zone() -> AnyName {
    "v6pod.internal".parse().unwrap()
}

/// A question as a client asks it.
fn asked(name: &str, rtype: Rtype, size: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((&name.parse::<AnyName>().unwrap(), rtype)).unwrap();
    let mut additional = question.additional();
    if let Some(size) = size {
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                opt.set_dnssec_ok(true);
                Ok(())
            })
            .unwrap();
    }
    additional.finish()
}

fn read(bytes: &[u8], transport: Transport) -> Question {
    let Incoming::Asked(question) = Incoming::read(bytes, transport) else { panic!("{bytes:?}") };
    question
}

fn message(bytes: &[u8]) -> AnyMessage<&[u8]> {
    AnyMessage::from_octets(bytes).unwrap()
}

#[test]
fn attack_18_what_is_no_question_is_not_answered_and_what_is_odd_is_refused() {
    let plain = asked("web.v6pod.internal", Rtype::AAAA, None);
    let with = |at: usize, byte: u8| {
        let mut bytes = plain.clone();
        bytes[at] = byte;
        bytes
    };
    for noise in [&b""[..], &plain[..11], &with(2, 0x81)] {
        assert!(matches!(Incoming::read(noise, Transport::Udp), Incoming::Noise), "{noise:?}");
    }
    let rcode = |bytes: &[u8]| match Incoming::read(bytes, Transport::Udp) {
        Incoming::Settled(answer) => {
            assert_eq!(answer[..2], bytes[..2]);
            assert!(matches!(Incoming::read(&answer, Transport::Udp), Incoming::Noise));
            message(&answer).header().rcode()
        }
        other => panic!("{other:?}"),
    };
    // NOTIFY and UPDATE; none and two questions; answers in a question; half of one; a name that refers to
    // itself.
    assert_eq!(rcode(&with(2, 0x20)), Rcode::NOTIMP);
    assert_eq!(rcode(&with(2, 0x28)), Rcode::NOTIMP);
    for (at, byte) in [(5, 0), (5, 2), (7, 1), (9, 1), (11, 9), (4, 0xff), (10, 0xff), (12, 0xc0)] {
        assert_eq!(rcode(&with(at, byte)), Rcode::FORMERR, "{at} {byte}");
    }
    assert_eq!(rcode(&plain[..plain.len() - 1]), Rcode::FORMERR);
    assert_eq!(rcode(&with(plain.len() - 1, 3)), Rcode::REFUSED, "CHAOS");
}

#[test]
fn an_answer_says_what_was_asked_and_that_nobody_is_to_remember_it() {
    let question = read(&asked("Web.V6pod.internal", Rtype::AAAA, None), Transport::Udp);
    let address = "2001:db8::7".parse().unwrap();
    let bytes = question.answer(&Found::Addresses(vec![address]), &zone());
    let answer = message(&bytes);
    assert!(answer.header().aa() && answer.header().ra() && answer.header().rd());
    assert_eq!(answer.sole_question().unwrap().qname().to_string(), "Web.V6pod.internal");
    let records: Vec<_> = answer.answer().unwrap().limit_to::<Aaaa>().map(Result::unwrap).collect();
    assert_eq!(
        (records.len(), records[0].data().addr(), records[0].ttl()),
        (1, address, Ttl::ZERO)
    );
    assert!(answer.opt().is_none(), "who speaks no EDNS is told none");
    for (found, rcode) in [(Found::NoName, Rcode::NXDOMAIN), (Found::NoData, Rcode::NOERROR)] {
        let bytes = question.answer(&found, &zone());
        let answer = message(&bytes);
        assert_eq!((answer.header().rcode(), answer.header_counts().ancount()), (rcode, 0));
        let mut authority = answer.authority().unwrap().limit_to::<Soa<_>>();
        let soa = authority.next().unwrap().unwrap();
        assert_eq!((soa.ttl(), soa.data().minimum()), (Ttl::ZERO, Ttl::ZERO));
    }
}

#[test]
fn an_answer_is_as_long_as_its_asker_takes_and_else_by_tcp() {
    let many = Found::Addresses(vec![Ipv6Addr::LOCALHOST; 30]);
    let name = "web.v6pod.internal";
    for (size, transport, whole) in [
        (None, Transport::Udp, false),
        (Some(100), Transport::Udp, false),
        (Some(4096), Transport::Udp, true),
        (None, Transport::Tcp, true),
    ] {
        let question = read(&asked(name, Rtype::AAAA, size), transport);
        let bytes = question.answer(&many, &zone());
        let answer = message(&bytes);
        assert_eq!(answer.header().tc(), !whole, "{size:?}");
        assert_eq!(answer.header_counts().ancount(), if whole { 30 } else { 0 });
        assert_eq!(answer.opt().is_some(), size.is_some());
        let huge = question.answer(&Found::Addresses(vec![Ipv6Addr::LOCALHOST; 3000]), &zone());
        assert!(message(&huge).header().tc());
        assert!(huge.len() <= if transport == Transport::Udp { 1232 } else { 65_535 });
    }
}

#[test]
fn attack_19_what_is_asked_on_is_written_anew_and_only_its_answer_is_one() {
    let mut bytes = asked("example.org", Rtype::MX, Some(4096));
    // An option of the asker's, which could be anything.
    let length = bytes.len();
    bytes[length - 1] = 8;
    bytes.extend_from_slice(b"\xff\xfe\x00\x04leak");
    let question = read(&bytes, Transport::Udp);
    let onward = question.onward(0x4321);
    assert!(!onward.windows(4).any(|part| part == b"leak"));
    assert!(message(&onward).opt().unwrap().dnssec_ok());

    let mut answer = onward.clone();
    answer[2] |= 0x80;
    let passed = question.passed_on(0x4321, answer.clone()).unwrap();
    assert_eq!((&passed[..2], &passed[2..]), (&[0x12, 0x34][..], &answer[2..]));
    assert_eq!(question.passed_on(0x4322, answer.clone()), None, "another number");
    assert_eq!(question.passed_on(0x4321, onward), None, "a question");
    let other = read(&asked("example.com", Rtype::MX, None), Transport::Udp);
    assert_eq!(other.passed_on(0x4321, answer.clone()), None, "another name");
    let error = [&answer[..3], &[0x81, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert!(other.passed_on(0x4321, error).is_some(), "an error says no name");

    let plain = read(&asked("example.org", Rtype::MX, None), Transport::Udp);
    answer.resize(513, 0);
    let passed = plain.passed_on(0x4321, answer).unwrap();
    assert!(message(&passed).header().tc() && passed.len() < 50);
}
