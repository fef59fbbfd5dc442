//! Which rule decides about a flow, and whether the kernel does what is said.
//!
//! Guarantees: a caller is told of the openings of containers that he may see, and of no others. Of
//! another's container he gets the answer that he would get if nobody had its address, and of a flow of which
//! neither end is one that he may see, the one that is given for what is not there.
//!
//! What the answer depends on is looked up in the kernel's sets, for this answer, while nobody changes
//! what is open. A change that is noted and not yet made is no difference: it is waited for. What ends
//! meanwhile is looked for again, and is not there any more.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use v6pod_proto::explain as told;
use v6pod_proto::explain::{Explain, Explanation};
use v6pod_proto::{AttachmentId, Uid};

use super::view::{find, unopened};
use super::{Attachments, Ledger, Refused, Shared, Viewer};
use crate::core::attachment::{Attachment, Phase};
use crate::core::explain::{End, Explained, Probe, Query, explain};
use crate::kernel::{self, Worker};

/// How often it is looked before the kernel is said to do otherwise.
const LOOKS: usize = 4;

/// How long it takes between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// An end, before it is known which container it is, if it is one.
#[derive(Debug, Clone)]
enum Named {
    Host(Option<Ipv6Addr>),
    Outside,
    Address(Ipv6Addr),
    Reference(String),
}

/// An end, without a hold on the book.
enum Place {
    /// And which of its addresses was named, if one was.
    Container(AttachmentId, Option<Ipv6Addr>),
    Other(End<'static>),
}

impl Attachments {
    /// Which rule decides about a flow: for a viewer, who asks as this user, in this one's turn.
    pub async fn explain(
        &self,
        viewer: Viewer,
        asker: Uid,
        caller: Uid,
        asked: Explain,
    ) -> Result<Explanation, Refused> {
        let shared = Arc::clone(&self.0);
        let job = move |worker: &mut Worker| shared.explained(worker, viewer, asker, &asked);
        self.0.work_for(caller, job).await
    }
}

impl Shared {
    fn explained(
        &self,
        worker: &mut Worker,
        viewer: Viewer,
        asker: Uid,
        asked: &Explain,
    ) -> Result<Explanation, Refused> {
        let source = named(worker, &asked.source)?;
        let destination = named(worker, &asked.destination)?;
        if asked.uid.is_some() && !matches!(source, Named::Host(_)) {
            return Err(Refused::Unclear("`uid` is for a process on this host".to_owned()));
        }
        for look in 1..=LOOKS {
            let rules = self.rules.hold();
            let places =
                self.places(worker, viewer, asked.uid.unwrap_or(asker), [&source, &destination])?;
            let in_force = self.rules.are_in_force(worker)?;
            let alone = self.rules.change_alone();
            let Some((answer, probes)) = self.answer(&self.ledger(), &places, asked)? else {
                // Of what is noted the kernel is told by whoever has noted it.
                drop((alone, rules));
                thread::sleep(PAUSE);
                continue;
            };
            let elements = self.seen(worker, &probes)?;
            drop((alone, rules));
            let agrees = in_force && elements.iter().all(|e| e.wanted == e.there);
            if agrees || look == LOOKS {
                let kernel = told::Kernel { agrees, rules: in_force, elements };
                if !agrees {
                    tracing::error!(
                        flow = %asked.flow, elements = ?kernel.elements, rules = kernel.rules,
                        "the kernel does not do what the rules say: somebody has changed the tables"
                    );
                }
                return Ok(Explanation { kernel, ..answer });
            }
            thread::sleep(PAUSE);
        }
        Err(Refused::NotReady("what is open of it is being changed"))
    }

    /// Who is meant. The kernel is asked before the book is: nobody waits for it there.
    fn places(
        &self,
        worker: &mut Worker,
        viewer: Viewer,
        uid: Uid,
        ends: [&Named; 2],
    ) -> Result<[Place; 2], Refused> {
        let place = |named: &Named| self.place(viewer, uid, named);
        let [mut source, destination] = [place(ends[0])?, place(ends[1])?];
        let is_container = |place: &Place| matches!(place, Place::Container(..));
        if viewer != Viewer::All && !is_container(&source) && !is_container(&destination) {
            return Err(Refused::Unknown);
        }
        let to = match &destination {
            Place::Container(_, Some(address)) => Some(*address),
            Place::Container(id, None) => self.ledger().book.find(id).map(|a| a.port.address),
            Place::Other(_) => None,
        };
        if let (Place::Other(End::Host { address, .. }), Some(to)) = (&mut source, to)
            && address.is_none()
        {
            *address = kernel::source_for(&mut worker.socket, to)?;
        }
        Ok([source, destination])
    }

    /// Whether it is of the prefix in force, or of one before it that somebody still has an address of.
    fn is_of_a_range(&self, address: Ipv6Addr) -> bool {
        self.rules.policy().prefixes().any(|prefix| prefix.contains(address))
    }

    fn place(&self, viewer: Viewer, uid: Uid, named: &Named) -> Result<Place, Refused> {
        let ledger = self.ledger();
        let container = |a: &Attachment, at: Option<Ipv6Addr>| match a.phase {
            Phase::Reserved => Err(Refused::NotReady("it is still being made")),
            _ => Ok(Place::Container(a.id.clone(), at)),
        };
        let other = |end| Ok(Place::Other(end));
        match named {
            Named::Host(address) => other(End::Host { uid, address: *address }),
            Named::Outside => other(End::Outside),
            Named::Reference(reference) => container(find(&ledger, viewer, reference)?, None),
            Named::Address(address) => {
                let there = ledger.book.has(*address).filter(|a| a.phase.shown().is_some());
                match there.filter(|a| viewer.sees(a)) {
                    Some(a) => container(a, Some(*address)),
                    // Who sees all sees that nobody has it; others are told of no address of others.
                    None if viewer == Viewer::All && self.is_of_a_range(*address) => {
                        other(End::Vacant(*address))
                    }
                    None => other(End::Address(*address)),
                }
            }
        }
    }

    /// The answer but for the kernel's part, and what that depends on; none while the kernel is still to
    /// be told what is open.
    fn answer(
        &self,
        ledger: &Ledger,
        places: &[Place; 2],
        asked: &Explain,
    ) -> Result<Option<(Explanation, Vec<Probe>)>, Refused> {
        let behind = |place: &Place| match place {
            Place::Container(id, _) => ledger.book.is_behind(id),
            Place::Other(_) => false,
        };
        if places.iter().any(behind) {
            return Ok(None);
        }
        let end = |place: &Place| match place {
            Place::Container(id, _) => {
                let there = ledger.book.find(id).filter(|a| a.phase.shown().is_some());
                there.map(End::Container)
            }
            Place::Other(end) => Some(*end),
        };
        let [from, to] = [end(&places[0]), end(&places[1])];
        let (from, to) = (from.ok_or(Refused::Unknown)?, to.ok_or(Refused::Unknown)?);
        if asked.sends_as.is_some() && !matches!(from, End::Container(_)) {
            return Err(Refused::Unclear("`sends_as` is for a container that sends".to_owned()));
        }
        let at = |place: &Place| match place {
            Place::Container(_, at) => *at,
            Place::Other(_) => None,
        };
        let sends_as = asked.sends_as.or_else(|| at(&places[0]));
        let query = Query { from, sends_as, to, sent_to: at(&places[1]), kind: asked.flow };
        let Explained { verdict, chain } = explain(&self.rules.policy(), &query);
        let last = chain.last().map(|(_, step)| step.clone()).ok_or(Refused::Unknown)?;
        let probes = chain.iter().flat_map(|(_, step)| step.probes.clone()).collect();
        let met = chain.into_iter().map(|(hook, step)| told::Met {
            hook: hook.as_str().to_owned(),
            rule: step.rule,
            why: step.why,
        });
        let answer = Explanation {
            source: shown(from, true),
            destination: shown(to, false),
            flow: asked.flow,
            verdict,
            rule: last.rule,
            why: last.why,
            opened: last.opened,
            unopened: last.unopened.iter().map(unopened).collect(),
            chain: met.collect(),
            kernel: told::Kernel { agrees: false, rules: false, elements: Vec::new() },
        };
        Ok(Some((answer, probes)))
    }

    /// What the kernel has of what an answer depends on.
    fn seen(&self, worker: &mut Worker, probes: &[Probe]) -> Result<Vec<told::Element>, Refused> {
        let seen = |Probe { element, wanted }: &Probe| {
            Ok(told::Element {
                set: element.set().to_owned(),
                element: element.text(),
                wanted: *wanted,
                there: worker.rules.has(&self.links, element)?,
            })
        };
        probes.iter().map(seen).collect()
    }
}

fn named(worker: &mut Worker, text: &str) -> Result<Named, Refused> {
    Ok(match (text, text.parse()) {
        ("host", _) => Named::Host(None),
        ("outside", _) => Named::Outside,
        (_, Ok(IpAddr::V4(_))) => {
            return Err(Refused::Unclear("v6pod's rules are about IPv6 alone".to_owned()));
        }
        (_, Ok(IpAddr::V6(address))) => match kernel::is_local(&mut worker.socket, address) {
            Ok(true) => Named::Host(Some(address)),
            // One to which there is no way is nobody's here.
            Ok(false) | Err(_) => Named::Address(address),
        },
        (reference, Err(_)) => Named::Reference(reference.to_owned()),
    })
}

/// An end as the caller is told of it.
fn shown(end: End<'_>, sends: bool) -> told::End {
    match end {
        End::Container(a) => told::End::Container {
            container: a.container.clone(),
            name: a.name.clone(),
            owner: a.owner,
            address: a.port.address,
        },
        End::Host { uid, address } => told::End::Host { uid: sends.then_some(uid), address },
        End::Address(address) | End::Vacant(address) => told::End::Address { address },
        End::Outside => told::End::Outside,
    }
}
