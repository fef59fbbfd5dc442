//! All attachments of this host, and the rules of their life.
//!
//! Guarantees:
//! - A namespace has at most one attachment that is not on its way out.
//! - No two attachments share an address, a port or an Ethernet address.
//! - No more than [`BRIDGE_PORTS`] are on the bridge: what comes after has a routed port.
//! - What has ended by one generation is never ended by the news of an older one.
//! - No subnet overlaps another's, and none holds an address that is not the same attachment's.
//! - A certain address is its owner's wish or none's: nobody is moved for it, and it is never given while
//!   somebody else has it, or has just had it.
//! - An attachment leaves the book only by [`Book::forget`], after its kernel objects are gone; until
//!   then its address is taken.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::Ipv6Net;
use v6pod_proto::wishes::{NameWish, OtherWishes};
use v6pod_proto::{AttachmentId, ContainerId, LinkName, Mac, Mode, Uid, Wishes};

use super::Port;
use super::address::{Pool, Rest};
use super::attachment::{Attachment, Generation, NamespaceId, Phase, port_name};
use super::choice::Slices;
use super::hole::Holes;
use super::name::Label;
use super::step::{Also, ROUTED_GATEWAY, Role};
use super::subnet::{ByNet, Length};

/// How many ports a Linux bridge takes (BR_MAX_PORTS is 1024; port 0 is no port).
pub const BRIDGE_PORTS: usize = 1023;

/// All attachments.
#[derive(Debug)]
pub struct Book {
    terms: Terms,
    pool: Pool,
    /// Boxed: a table keeps room for up to twice as many as there are.
    attachments: HashMap<AttachmentId, Box<Attachment>>,
    by_ifindex: HashMap<u32, AttachmentId>,
    by_inode: HashMap<u64, Vec<AttachmentId>>,
    by_container: HashMap<(Uid, ContainerId), Vec<AttachmentId>>,
    macs: HashMap<Mac, AttachmentId>,
    by_net: ByNet<AttachmentId>,
    per_owner: HashMap<Uid, usize>,
    /// How many elements of openings each owner has.
    holes: HashMap<Uid, usize>,
    slices: Slices,
    /// Those that are being given another address than they got at first.
    replacing: HashSet<AttachmentId>,
    /// Those that are being given a subnet.
    giving: HashSet<AttachmentId>,
    /// What the kernel still has open of those of which something else is to be by now.
    behind: HashMap<AttachmentId, Holes>,
    bridged: usize,
    generation: Generation,
    made: u64,
    released: u64,
}

impl Book {
    /// An empty book.
    pub fn new(terms: Terms) -> Self {
        let pool = Pool::new(terms.prefix, terms.quarantine);
        let slices = Slices::new(terms.secret.clone(), terms.slice);
        Self {
            slices,
            replacing: HashSet::new(),
            giving: HashSet::new(),
            terms,
            pool,
            attachments: HashMap::new(),
            by_ifindex: HashMap::new(),
            by_inode: HashMap::new(),
            by_container: HashMap::new(),
            macs: HashMap::new(),
            by_net: ByNet::default(),
            per_owner: HashMap::new(),
            holes: HashMap::new(),
            behind: HashMap::new(),
            bridged: 0,
            generation: Generation::default(),
            made: 0,
            released: 0,
        }
    }

    /// What does not change between attachments.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The addresses.
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How many were made and how many released since the book was opened.
    pub const fn turnover(&self) -> (u64, u64) {
        (self.made, self.released)
    }

    /// All that a caller may be shown, in no order.
    pub fn shown(&self) -> impl Iterator<Item = &Attachment> {
        self.all().filter(|a| a.phase.shown().is_some())
    }

    /// All that there are, with those that are on their way out, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.values().map(Box::as_ref)
    }

    /// How many attachments there are, with those that are on their way out.
    pub fn len(&self) -> usize {
        self.attachments.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.attachments.is_empty()
    }

    /// How many this owner has.
    pub fn of_owner(&self, owner: Uid) -> usize {
        self.per_owner.get(&owner).copied().unwrap_or(0)
    }

    /// The attachment with this id, on its way out or not.
    pub fn find(&self, id: &AttachmentId) -> Option<&Attachment> {
        self.attachments.get(id).map(Box::as_ref)
    }

    /// The attachment whose port has this index.
    pub fn by_ifindex(&self, ifindex: u32) -> Option<&Attachment> {
        self.find(self.by_ifindex.get(&ifindex)?)
    }

    /// The attachment that has this very address, on its way out or not.
    pub fn by_address(&self, address: Ipv6Addr) -> Option<&Attachment> {
        self.find(self.by_net.get(&Ipv6Net::from(address))?)
    }

    /// This owner's attachment of this container, the latest if a restart left two.
    pub fn of_container(&self, owner: Uid, container: &ContainerId) -> Option<&Attachment> {
        self.starts(owner, container).max_by_key(|a| (a.generation, a.since))
    }

    /// This owner's attachments of this container that are not on their way out: what an earlier
    /// start of it left behind, in another namespace.
    pub fn starts_of(&self, owner: Uid, container: &ContainerId) -> Vec<AttachmentId> {
        self.starts(owner, container).map(|a| a.id.clone()).collect()
    }

    /// What is at this namespace.
    pub fn at(&self, owner: Uid, namespace: &NamespaceId) -> Found {
        let Some(ids) = self.by_inode.get(&namespace.inode) else { return Found::Nothing };
        let here = ids
            .iter()
            .filter_map(|id| self.find(id))
            .find(|a| a.owner == owner && a.namespace.is(namespace));
        match here {
            None => Found::Nothing,
            Some(a) if matches!(a.phase, Phase::Reserved | Phase::Releasing) => Found::InMotion,
            Some(a) => Found::Attached(a.id.clone()),
        }
    }

    /// Reserves an address and all names for a new attachment. The caller has seen
    /// [`Found::Nothing`] under the same lock.
    pub fn reserve<E>(
        &mut self,
        wanted: Wanted,
        now: Instant,
        mut random: impl FnMut() -> Result<u128, E>,
    ) -> Result<&Attachment, Refusal<E>> {
        let limit = self.terms.per_owner;
        // What this one replaces does not count. What is being taken away does, or whoever is quick
        // could fill the host with it.
        let container = wanted.container.as_ref();
        let replaced = container.map_or(0, |c| self.starts(wanted.owner, c).count());
        if self.of_owner(wanted.owner) - replaced >= limit {
            return Err(Refusal::Quota { owner: wanted.owner, limit });
        }
        let id = AttachmentId::from_bits(random().map_err(Refusal::Random)?);
        let mac = self.free_mac(&mut random).map_err(Refusal::Random)?;
        let (address, net) = self.take(&wanted, now, random)?;
        let mode = if self.bridged < BRIDGE_PORTS { self.terms.mode } else { Mode::Routed };
        let gateway = self.terms.gateway(mode);
        let port = Port {
            name: port_name(&id),
            interface: wanted.interface,
            mac,
            address,
            gateway,
            mtu: self.terms.mtu,
            owner: wanted.owner,
            open: wanted.open.holes(),
            subnet: None,
            also: net.zip(wanted.subnet).map(staying(gateway)).into_iter().collect(),
            alias: format!("v6pod {} uid {}", id.short(), wanted.owner),
            mode,
        };
        self.made += 1;
        let generation = self.next_generation();
        Ok(self.insert(Attachment {
            container: wanted.container.unwrap_or_else(|| id.stand_in()),
            id,
            owner: wanted.owner,
            name: wanted.name,
            label: None,
            further: Vec::new(),
            wishes: wanted.wishes,
            found: wanted.found.into(),
            open: wanted.open,
            namespace: wanted.namespace,
            port,
            holder: wanted.holder,
            lease: wanted.lease,
            since: wanted.since,
            network: wanted.network,
            attempt: wanted.attempt,
            generation,
            phase: Phase::Reserved,
            ifindex: None,
        }))
    }

    /// Takes the address that an attachment is to have, and its subnet, if it is to have one.
    fn take<E>(
        &mut self,
        wanted: &Wanted,
        now: Instant,
        mut random: impl FnMut() -> Result<u128, E>,
    ) -> Result<(Ipv6Addr, Option<Ipv6Net>), Refusal<E>> {
        let owner = wanted.owner;
        let spot = self.spot(owner, wanted.container.as_ref(), &wanted.choice, None, now)?;
        let range = self.slices.of(owner, self.terms.prefix);
        let range = range.ok_or(NoSpot::Slices(self.terms.prefix))?;
        let address = match spot {
            Spot::At(address) => self.pool.take_for(address, owner, now).then_some(address),
            Spot::Anywhere => {
                self.pool.draw_in(range, now, &mut random).map_err(Refusal::Random)?
            }
        };
        let address = address.ok_or(Refusal::Addresses(range))?;
        let drawn = wanted.subnet.map(|length| self.draw_subnet(owner, length, now, &mut random));
        let net = match drawn.transpose() {
            Ok(Some(Err(no))) => Err(Refusal::Spot(no)),
            Ok(net) => Ok(net.and_then(Result::ok)),
            Err(error) => Err(Refusal::Random(error)),
        };
        let net = net.inspect_err(|_| self.pool.give_back(address))?;
        Ok((address, net))
    }

    /// Takes over what a record and the kernel say is there, after a restart. False if its address
    /// or Ethernet address is another's already: then one of the records lies.
    pub fn adopt(&mut self, mut attachment: Attachment, ifindex: u32) -> bool {
        let known = self.attachments.contains_key(&attachment.id)
            || self.macs.contains_key(&attachment.port.mac)
            || self.by_ifindex.contains_key(&ifindex);
        let all: Vec<_> = attachment.port.nets().collect();
        if known || all.iter().any(|net| self.by_net.overlaps(net)) {
            return false;
        }
        let took: Vec<_> = all.iter().copied().take_while(|net| self.adopt_net(*net)).collect();
        if took.len() < all.len() {
            took.into_iter().for_each(|net| self.give_net_back(net));
            return false;
        }
        // A daemon had no time to give it what it asks for.
        let prefix = self.terms.prefix;
        let comes = |also: &Also| {
            also.subnet.is_none() && also.role == Role::Coming && prefix.contains(also.address)
        };
        if prefix.contains(attachment.port.address) && attachment.port.also.iter().any(comes) {
            attachment.forget_place();
        }
        attachment.generation = self.next_generation();
        attachment.phase = Phase::Serving;
        attachment.ifindex = Some(ifindex);
        self.by_ifindex.insert(ifindex, attachment.id.clone());
        self.insert(attachment);
        true
    }

    /// Lets an address or a subnet rest that was released before the book was opened.
    pub fn rest(&mut self, net: Ipv6Net, rest: Rest) {
        match Length::new(net.prefix_len()) {
            Some(_) => self.pool.rest_subnet(net, rest),
            None => self.pool.rest(net.addr(), rest),
        }
    }

    /// The interface inside gets another name than was wanted: that one is taken.
    pub fn rename_interface(&mut self, id: &AttachmentId, interface: &LinkName) {
        if let Some(a) = self.attachments.get_mut(id) {
            a.port.interface = interface.clone();
        }
    }

    /// The bridge took no port, though it should have had room: others have put theirs on it. The
    /// attachment gets a routed port.
    pub fn reroute(&mut self, id: &AttachmentId) -> Option<&Attachment> {
        let a = self.attachments.get_mut(id)?;
        self.bridged -= usize::from(a.port.mode == Mode::Bridge);
        a.port.mode = Mode::Routed;
        a.port.gateway = ROUTED_GATEWAY;
        a.port.also.iter_mut().for_each(|also| also.gateway = ROUTED_GATEWAY);
        Some(a)
    }

    /// From here new ports have this MTU.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.terms.mtu = mtu;
    }

    /// The steps have been run. False if somebody has asked for the end of it meanwhile: then the
    /// caller undoes the steps.
    pub fn wired(&mut self, id: &AttachmentId, ifindex: u32) -> bool {
        let Some(a) = self.attachments.get_mut(id) else { return false };
        a.ifindex = Some(ifindex);
        self.by_ifindex.insert(ifindex, id.clone());
        if a.phase != Phase::Reserved {
            return false;
        }
        a.phase = Phase::Wired;
        true
    }

    /// The caller is being answered.
    pub fn serving(&mut self, id: &AttachmentId) {
        if let Some(a) = self.attachments.get_mut(id)
            && a.phase == Phase::Wired
        {
            a.phase = Phase::Serving;
        }
    }

    /// The container's name has become known, if it has, and what it bears. `Some` if that is news.
    pub fn named(
        &mut self,
        id: &AttachmentId,
        name: Option<&str>,
        label: Option<&Label>,
        further: &[Label],
    ) -> Option<&Attachment> {
        let a = self.attachments.get_mut(id)?;
        let name = name.or(a.name.as_deref());
        if a.name.as_deref() == name && a.label.as_ref() == label && a.further == further {
            return None;
        }
        a.name = name.map(str::to_owned);
        a.label = label.cloned();
        a.further = further.to_vec();
        Some(a)
    }

    /// What the container asks to be registered by is this from now on.
    pub fn rename(&mut self, id: &AttachmentId, name: NameWish) {
        if let Some(a) = self.attachments.get_mut(id) {
            a.wishes.name = Some(name);
        }
    }

    /// What was said of the container becomes known: which it is, if that was open, and what it asks
    /// for, if that was. `Some` if any of it is news; of another container than this one nothing is.
    pub fn describe(
        &mut self,
        id: &AttachmentId,
        container: &ContainerId,
        wishes: &Wishes,
        found: &OtherWishes,
    ) -> Option<&Attachment> {
        let a = self.attachments.get_mut(id)?;
        let before = (a.wishes.clone(), a.found.clone());
        let identified = !a.is_identified();
        if identified {
            let old = std::mem::replace(&mut a.container, container.clone());
            remove_from(&mut self.by_container, &(a.owner, old), id);
            let key = (a.owner, container.clone());
            self.by_container.entry(key).or_default().push(id.clone());
        } else if a.container != *container {
            return None;
        }
        a.wishes.complete(wishes);
        if *found != OtherWishes::default() {
            a.found.complete(found);
        }
        (identified || (&a.wishes, &a.found) != (&before.0, &before.1)).then_some(a)
    }

    fn starts(&self, owner: Uid, container: &ContainerId) -> impl Iterator<Item = &Attachment> {
        let ids = self.by_container.get(&(owner, container.clone()));
        let all = ids.into_iter().flatten().filter_map(|id| self.find(id));
        all.filter(|a| a.phase.shown().is_some())
    }

    fn next_generation(&mut self) -> Generation {
        self.generation.0 += 1;
        self.generation
    }

    fn free_mac<E>(&self, random: &mut impl FnMut() -> Result<u128, E>) -> Result<Mac, E> {
        loop {
            let [a, b, c, d, e, f, ..] = random()?.to_be_bytes();
            let mac = Mac::local([a, b, c, d, e, f]);
            if !self.macs.contains_key(&mac) {
                return Ok(mac);
            }
        }
    }

    fn insert(&mut self, attachment: Attachment) -> &Attachment {
        let id = attachment.id.clone();
        self.count_holes(attachment.owner, attachment.port.open.each().len(), 0);
        self.bridged += usize::from(attachment.port.mode == Mode::Bridge);
        self.macs.insert(attachment.port.mac, id.clone());
        for net in attachment.port.nets() {
            self.by_net.insert(net, id.clone());
        }
        self.by_inode.entry(attachment.namespace.inode).or_default().push(id.clone());
        let container = (attachment.owner, attachment.container.clone());
        self.by_container.entry(container).or_default().push(id.clone());
        *self.per_owner.entry(attachment.owner).or_default() += 1;
        self.attachments.entry(id).insert_entry(Box::new(attachment)).into_mut()
    }
}

#[path = "book_asking.rs"]
mod asking;
#[path = "book_ending.rs"]
mod ending;
#[path = "book_moving.rs"]
mod moving;
#[path = "book_opening.rs"]
mod opening;
#[path = "book_placing.rs"]
mod placing;
#[path = "book_subnets.rs"]
mod subnets;

pub use asking::{Found, NoSpot, Refusal, Spot, Terms, Wanted};
pub use ending::Released;

/// A subnet as what an attachment has for good.
fn staying(gateway: Ipv6Addr) -> impl Fn((Ipv6Net, Length)) -> Also {
    move |(net, length)| Also {
        address: net.network(),
        subnet: Some(length),
        gateway,
        role: Role::Staying,
    }
}

fn remove_from<K: Eq + Hash>(map: &mut HashMap<K, Vec<AttachmentId>>, key: &K, id: &AttachmentId) {
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|i| i != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
