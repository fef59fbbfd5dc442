//! Questions and answers as they are on the wire (RFC 1035, RFC 6891).
//!
//! Guarantees: what is no question is never answered, so that no two servers can keep each other busy;
//! what is handed on to another resolver is written anew from what was understood, so no byte of a
//! container's reaches it but name, type and a few bits; and an answer is never longer than its asker
//! takes.

use std::net::Ipv6Addr;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::{
    AdditionalBuilder, AnswerBuilder, PushError, StaticCompressor,
};
use domain::base::name::{Name, ToName as _};
use domain::base::{Message, MessageBuilder, Rtype, Serial, Ttl};
use domain::rdata::{Aaaa, Ptr, Soa};

/// A name, uncompressed.
pub(super) type AnyName = Name<Vec<u8>>;

/// Where messages are written: names that were written before are referred to.
type Target = StaticCompressor<Vec<u8>>;

/// What we and who asks without EDNS take by UDP, in bytes (RFC 1035, section 4.2.1).
const PLAIN: usize = 512;
/// What is sent by UDP at most: what passes every path of IPv6 in one piece (DNS flag day 2020).
pub(super) const LARGEST: u16 = 1232;
/// By TCP.
const STREAM: usize = u16::MAX as usize;
/// An OPT record without options.
const OPT: usize = 11;

/// What came from an asker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Nothing that anybody answers.
    Noise,
    /// A question that nobody need look into.
    Settled(Vec<u8>),
    /// A question.
    Asked(Question),
}

/// A question, all of it that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The asker's number for it.
    id: u16,
    /// Whether it is to be asked on.
    pub(super) recursion: bool,
    /// CD of RFC 4035, section 3.2.2.
    checking_disabled: bool,
    /// The name, its letters as the asker wrote them.
    pub(super) name: AnyName,
    /// What is asked for.
    pub(super) rtype: Rtype,
    /// What the asker says by EDNS, if he speaks that.
    edns: Option<Edns>,
    /// How long an answer may be, in bytes.
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    dnssec_ok: bool,
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// In a datagram.
    Udp,
    /// By a connection.
    Tcp,
}

/// What a name of ours has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// These addresses.
    Addresses(Vec<Ipv6Addr>),
    /// These names.
    Names(Vec<AnyName>),
    /// That of the zone itself.
    Zone,
    /// Nothing of what is asked for.
    NoData,
    /// The name is nobody's.
    NoName,
}

impl Incoming {
    /// What these bytes are.
    pub(super) fn read(bytes: &[u8], transport: Transport) -> Self {
        let Ok(message) = Message::from_octets(bytes) else { return Self::Noise };
        let header = message.header();
        // An answer to an answer would be another one.
        if header.qr() {
            return Self::Noise;
        }
        if header.opcode() != Opcode::QUERY {
            return Self::Settled(bare(header.id(), header.opcode(), Rcode::NOTIMP));
        }
        match Question::of(&message, transport) {
            Ok(question) => Self::Asked(question),
            Err(rcode) => Self::Settled(bare(header.id(), Opcode::QUERY, rcode)),
        }
    }
}

impl Question {
    fn of(message: &Message<&[u8]>, transport: Transport) -> Result<Self, Rcode> {
        let (header, counts) = (message.header(), message.header_counts());
        // One question and what is said about it: OPT, perhaps a signature that nobody here checks.
        let few = (counts.qdcount(), counts.ancount(), counts.nscount()) == (1, 0, 0);
        let asked = message.sole_question().map_err(|_| Rcode::FORMERR)?;
        if !few || counts.arcount() > 2 {
            return Err(Rcode::FORMERR);
        }
        if asked.qclass() != Class::IN {
            return Err(Rcode::REFUSED);
        }
        let mut additional = message.additional().map_err(|_| Rcode::FORMERR)?;
        additional.try_for_each(|record| record.map(drop)).map_err(|_| Rcode::FORMERR)?;
        let opt = message.opt();
        if opt.as_ref().is_some_and(|opt| opt.version() != 0) {
            // As from one who does not know it at all (RFC 6891, section 7).
            return Err(Rcode::FORMERR);
        }
        let size =
            opt.as_ref().map_or(PLAIN, |opt| usize::from(opt.udp_payload_size().min(LARGEST)));
        Ok(Self {
            id: header.id(),
            recursion: header.rd(),
            checking_disabled: header.cd(),
            name: asked.qname().to_vec(),
            rtype: asked.qtype(),
            edns: opt.map(|opt| Edns { dnssec_ok: opt.dnssec_ok() }),
            limit: match transport {
                Transport::Udp => size.max(PLAIN),
                Transport::Tcp => STREAM,
            },
        })
    }

    /// An answer without an answer.
    pub(super) fn refuse(&self, rcode: Rcode) -> Vec<u8> {
        self.build(rcode, false, |_| Ok(()), None)
    }

    /// The word of who knows all names of the zone. What is not there is not there for now: nobody is to
    /// remember it.
    pub(super) fn answer(&self, found: &Found, zone: &AnyName) -> Vec<u8> {
        let rcode = if *found == Found::NoName { Rcode::NXDOMAIN } else { Rcode::NOERROR };
        let ttl = Ttl::ZERO;
        let push = |answer: &mut AnswerBuilder<Target>| match found {
            Found::Addresses(addresses) => addresses.iter().try_for_each(|address| {
                answer.push((&self.name, Class::IN, ttl, Aaaa::new(*address)))
            }),
            Found::Names(names) => names
                .iter()
                .try_for_each(|name| answer.push((&self.name, Class::IN, ttl, Ptr::new(name)))),
            Found::Zone => answer.push((&self.name, Class::IN, ttl, soa(zone))),
            Found::NoData | Found::NoName => Ok(()),
        };
        let negative = matches!(found, Found::NoData | Found::NoName);
        self.build(rcode, true, push, negative.then_some(zone))
    }

    /// What to ask another resolver, under this number.
    pub(super) fn onward(&self, id: u16) -> Vec<u8> {
        let mut builder = builder();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(self.checking_disabled);
        let mut question = builder.question();
        // A name, a type and a class are shorter than what a message takes.
        let _infallible = question.push((&self.name, self.rtype));
        let mut additional = question.additional();
        self.push_edns(&mut additional);
        additional.finish().into_target()
    }

    /// What another resolver has answered to [`Self::onward`], for who asked; none if these bytes are no
    /// answer to that.
    pub(super) fn passed_on(&self, id: u16, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let message = Message::from_octets(&bytes[..]).ok()?;
        let header = message.header();
        if !header.qr() || header.id() != id || header.opcode() != Opcode::QUERY {
            return None;
        }
        // Who does not understand a question may leave it out.
        let failed = message.header_counts().qdcount() == 0 && header.rcode() != Rcode::NOERROR;
        let same = message.sole_question().is_ok_and(|echoed| {
            echoed.qname().name_eq(&self.name)
                && (echoed.qtype(), echoed.qclass()) == (self.rtype, Class::IN)
        });
        if !same && !failed {
            return None;
        }
        if bytes.len() > self.limit {
            return Some(self.truncated());
        }
        bytes.get_mut(..2)?.copy_from_slice(&self.id.to_be_bytes());
        Some(bytes)
    }

    /// The answer that says to ask again by TCP.
    fn truncated(&self) -> Vec<u8> {
        let mut bytes = self.build(Rcode::NOERROR, false, |_| Ok(()), None);
        // TC (RFC 1035, section 4.1.1).
        if let Some(flags) = bytes.get_mut(2) {
            *flags |= 0b10;
        }
        bytes
    }

    fn build(
        &self,
        rcode: Rcode,
        authoritative: bool,
        push: impl FnOnce(&mut AnswerBuilder<Target>) -> Result<(), PushError>,
        zone: Option<&AnyName>,
    ) -> Vec<u8> {
        let mut builder = builder();
        builder.set_push_limit(self.limit - OPT);
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion);
        header.set_cd(self.checking_disabled);
        header.set_ra(true);
        header.set_aa(authoritative);
        header.set_rcode(rcode);
        let mut question = builder.question();
        let _infallible = question.push((&self.name, self.rtype));
        let mut answer = question.answer();
        // Half of an answer is none: it is asked for again by TCP.
        if push(&mut answer).is_err() {
            answer = answer.tc_rewind_into();
        }
        let mut authority = answer.authority();
        let said = zone.map(|zone| authority.push((zone, Class::IN, Ttl::ZERO, soa(zone))));
        if said.is_some_and(|said| said.is_err()) {
            authority = authority.tc_rewind_into();
        }
        let mut additional = authority.additional();
        additional.clear_push_limit();
        self.push_edns(&mut additional);
        additional.finish().into_target()
    }

    /// Says what we take, to who speaks EDNS.
    fn push_edns(&self, additional: &mut AdditionalBuilder<Target>) {
        let Some(edns) = self.edns else { return };
        let _infallible = additional.opt(|opt| {
            opt.set_udp_payload_size(LARGEST);
            opt.set_dnssec_ok(edns.dnssec_ok);
            Ok(())
        });
    }
}

/// A message that is to be written.
fn builder() -> MessageBuilder<Target> {
    // Memory for a header is never refused.
    let target = StaticCompressor::new(Vec::new());
    MessageBuilder::from_target(target).unwrap_or_else(|never| match never {})
}

/// An answer to what was not understood.
fn bare(id: u16, opcode: Opcode, rcode: Rcode) -> Vec<u8> {
    let mut builder = builder();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_qr(true);
    header.set_opcode(opcode);
    header.set_rcode(rcode);
    builder.finish().into_target()
}

/// The zone's own record. Nobody copies the zone, so its numbers mean nothing; the last is for how long it
/// may be remembered that a name is not there (RFC 2308).
fn soa(zone: &AnyName) -> Soa<&AnyName> {
    Soa::new(zone, zone, Serial(1), Ttl::HOUR, Ttl::HOUR, Ttl::HOUR, Ttl::ZERO)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
