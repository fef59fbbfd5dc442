//! How the daemon starts: on a fresh host, or on what an earlier daemon left.
//!
//! Guarantees: when [`start`] returns, what is recorded and real is served on, what was half made or
//! half taken away is gone, and so is what nobody recorded. Events are listened for from before the
//! first look, so no end is missed between look and listening.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::unistd::gethostname;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use v6pod_proto::{AttachmentId, Mac, Uid};

use super::events::{self, Events as Told};
use super::holding::Holds;
use super::joining::Watches;
use super::memberships::{Memberships, Remembered};
use super::naming::Conflicts;
use super::obstacles::{self, Obstacles};
use super::prefixes::{self, AtStart, Changing};
use super::records::{Records, Rejected};
use super::resting::{Rested, Resting};
use super::rules::{self, Rules, RulesError};
use super::spoken::Spoken;
use super::sweeping::Waiting;
use super::traffic::Readings;
use super::view::most_members;
use super::{
    Attachments, Ended, Ledger, Metrics, Shared, ending, heeding, lasting, lock, mending, proxying,
    renumbering, reserving,
};
use crate::access::Access;
use crate::closer::Closer;
use crate::config::{self, Config, PrefixSource};
use crate::container::{Containers, Limits, Places};
use crate::core::address::Rest;
use crate::core::attachment::Attachment;
use crate::core::book::{Book, Terms};
use crate::core::description::Descriptions;
use crate::core::hole::Holes;
use crate::core::member::Members;
use crate::core::name::{Label, Names};
use crate::core::open::Rights;
use crate::core::reconcile::{Plan, PortSeen, Seen, reconcile};
use crate::core::ruleset::{Elements, Policy};
use crate::core::secret::Secret;
use crate::core::{Links, Prefix};
use crate::failpoint;
use crate::kernel::firewall::Losses;
use crate::kernel::firewall::nft::NftError;
use crate::kernel::host::{Forwarding, PrepareError};
use crate::kernel::observe::Stray;
use crate::kernel::{self, Events, Observed, Process, Topology, Worker, Workers};
use crate::pace::Paces;
use crate::registry::{Consul, Embedded, Mark, Registrar, system_jitter};

/// How many threads work on requests. Most of an activation is the kernel's, under one lock. One more
/// than any one caller gets.
const WORKERS: usize = 3;

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be made, or a file in it cannot be read or written.
    #[error("cannot use {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon of this instance runs.
    #[error("another v6podd of the instance {0} is running; stop it, or set `instance`")]
    Running(crate::core::Instance),
    /// The prefix cannot be used, or the kernel refuses what is needed.
    #[error(transparent)]
    Host(#[from] PrepareError),
    /// The kernel refuses what is needed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The firewall's rules cannot be in force.
    #[error("cannot protect containers: {0}")]
    Rules(#[from] NftError),
    /// No random numbers for a prefix of this host's own.
    #[error("no random numbers")]
    Random(#[source] rand::rngs::SysError),
}

impl StartError {
    /// Whether it will not pass by itself: somebody must change the configuration or install
    /// something.
    pub const fn lasts(&self) -> bool {
        matches!(self, Self::Host(PrepareError::Overlap(_)) | Self::Rules(NftError::Missing))
    }
}

impl From<RulesError> for StartError {
    fn from(error: RulesError) -> Self {
        match error {
            RulesError::Kernel(error) => Self::Kernel(error),
            RulesError::Nft(error) => Self::Rules(error),
        }
    }
}

/// Starts: prepares the host, takes up what was left, and begins to listen for ends.
pub async fn start(config: Config, closer: Closer) -> Result<Attachments, StartError> {
    let lock = prepare_folders(&config)?;
    let base = prefix(&config)?;
    let kept = prefixes::kept(&config);
    let mut prefixes = AtStart::of(&config, base, kept.as_ref());
    let links = Links::of(&config.instance);
    let mut topology = Topology {
        prefix: prefixes.in_force,
        former: prefixes.former.clone(),
        links: links.clone(),
        mtu: config.mtu,
        uplink: config.uplink.clone(),
        forwarding: Forwarding::probe()?,
        proxy: config.ndp_proxy,
        resolver: config.dns.as_ref().map(|_| links.resolver),
    };
    let mut policy = Policy {
        links: links.clone(),
        prefix: prefixes.in_force,
        former: prefixes.former.clone(),
        ingress: config.ingress,
        east_west: config.east_west,
        host: config.host,
        flows: config.flows,
        resolver: topology.resolver,
        nat66: None,
    };
    let paces = Paces::default();
    let workers = Workers::start(WORKERS, paces.clone())?;
    // Before anything of the host is touched: without rules there is no daemon.
    let wanted = policy.clone();
    workers.run(move |_: &mut Worker| Rules::check(&wanted).map_err(StartError::Rules)).await?;
    let (sweeper, askers) = (Workers::start(1, paces.clone())?, Workers::start(1, paces.clone())?);
    // Before the first look, or an end between look and listening would be missed.
    let (events, losses) = (Events::listen(&links)?, Losses::listen(&links)?);
    let mut host = prepare(&workers, &topology).await;
    // What came later must not keep a daemon from starting that the configuration would let.
    if let Err(PrepareError::Overlap(overlaps)) = &host
        && prefixes.in_force != base
    {
        tracing::error!("{overlaps}; going back to the configured one");
        prefixes = prefixes.fall_back(&config, base);
        (topology.prefix, topology.former) = (prefixes.in_force, prefixes.former.clone());
        (policy.prefix, policy.former) = (topology.prefix, topology.former.clone());
        host = prepare(&workers, &topology).await;
    }
    let host = host?;
    policy.nat66 = host.uplink.clone().filter(|_| config.nat66);
    let changing = Changing::new(&config, base, &prefixes);
    changing.keep_after(kept.as_ref()).map_err(in_file(&config.run_dir()))?;

    failpoint::reach("restoring:prepared");
    let records = Records::open(&config.run_dir()).map_err(in_file(&config.run_dir()))?;
    let (resting, rests) = Resting::open(&config.run_dir());
    let (spoken, descriptions) =
        Spoken::open(&config.run_dir()).map_err(in_file(&config.run_dir()))?;
    let (memberships, remembered) =
        Memberships::open(&config.run_dir()).map_err(in_file(&config.run_dir()))?;
    let secret = lasting::secret(&config.state_dir(), reserving::random);
    let secret = secret.map_err(StartError::Random)?;
    let (ended, news) = mpsc::unbounded_channel();
    let names = Embedded::default();
    let shared = Arc::new(Shared {
        links,
        rules: Rules::new(policy),
        obstacles: Obstacles::default(),
        changing,
        ranges: prefixes.all().collect(),
        started: Instant::now(),
        ledger: Mutex::new(ledger(
            &config,
            terms(&config, prefixes.in_force, host.mtu, secret),
            &rests,
            descriptions,
        )),
        rested: Notify::new(),
        records,
        resting,
        spoken,
        memberships,
        workers,
        sweeper,
        askers,
        paces,
        access: Access::new(&config),
        waiting: Waiting::default(),
        containers: Containers::new(Places::default(), Limits::default()),
        registrar: registrar(&config, &names),
        names,
        accounts: Mutex::default(),
        host_name: host_name(),
        events: Told::default(),
        ended,
        holds: Holds::default(),
        watches: Watches::default(),
        closer,
        runtime: Handle::current(),
        metrics: Metrics::default(),
        readings: Readings::default(),
        full: Readings::default(),
        host: Mutex::new(host),
        preparing: Mutex::new(()),
        topology,
        config,
        _lock: lock,
    });
    // Before anything is wished for, so that nothing of it is missed.
    if let Some(news) = shared.registrar.news() {
        tokio::spawn(events::pass_on(Arc::clone(&shared), news));
    }
    restore(&shared, remembered).await?;
    tokio::spawn(ending::heed(Arc::clone(&shared), news));
    tokio::spawn(heeding::watch(Arc::clone(&shared), events));
    tokio::spawn(rules::watch(Arc::clone(&shared), losses));
    tokio::spawn(obstacles::watch(Arc::clone(&shared)));
    tokio::spawn(renumbering::follow(Arc::clone(&shared)));
    tokio::spawn(renumbering::watch_file(Arc::clone(&shared)));
    Ok(Attachments(shared))
}

async fn prepare(workers: &Workers, topology: &Topology) -> Result<kernel::Host, PrepareError> {
    let topology = topology.clone();
    let job = move |worker: &mut Worker| kernel::host::prepare(&mut worker.socket, &topology);
    workers.run(job).await
}

/// Makes the daemon's folders and takes the lock by which it is the only one of its instance.
pub(crate) fn prepare_folders(config: &Config) -> Result<File, StartError> {
    let (run, state) = (config.run_dir(), config.state_dir());
    for (path, mode) in [(&run, 0o755), (&state, 0o700)] {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(in_file(path))?;
    }
    let path = run.join("lock");
    let lock = lock::take(&path).map_err(in_file(&path))?;
    lock.ok_or_else(|| StartError::Running(config.instance.clone()))
}

/// The configured prefix, or this host's own unique local one, generated once and kept (RFC 4193,
/// section 3.2: a site keeps its global id).
fn prefix(config: &Config) -> Result<Prefix, StartError> {
    if let PrefixSource::Static(prefix) = config.prefix {
        return Ok(prefix);
    }
    let path = config.state_dir().join("prefix");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<Prefix>() {
            Ok(prefix) if prefix.is_ula() => return Ok(prefix),
            _ => tracing::warn!("the kept prefix is not one; generating another"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(StartError::File { path, source }),
    }
    let bits = reserving::random().map_err(StartError::Random)?;
    let prefix = Prefix::unique_local(bits as u64);
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{prefix}\n"))
        .and_then(|()| fs::rename(&beside, &path))
        .map_err(in_file(&path))?;
    Ok(prefix)
}

fn terms(config: &Config, prefix: Prefix, mtu: u32, secret: Secret) -> Terms {
    Terms {
        prefix,
        mtu,
        mode: config.mode,
        quarantine: config.quarantine,
        per_owner: usize::try_from(config.per_owner).unwrap_or(usize::MAX),
        slice: config.slice,
        secret,
    }
}

fn ledger(config: &Config, terms: Terms, rests: &[Rested], descriptions: Descriptions) -> Ledger {
    let reserved = config.reserved.iter().filter_map(|name| Label::from_name(name));
    let (mut book, now) = (Book::new(terms), Instant::now());
    for Rested { net, age, owner } in rests {
        // Longer than the clock has run: long enough.
        let Some(since) = now.checked_sub(*age) else { continue };
        book.rest(*net, Rest { since, owner: *owner });
    }
    lasting::slices(&config.state_dir()).into_iter().for_each(|slice| book.recall_slice(slice));
    Ledger {
        book,
        names: Names::new(reserved),
        members: Members::with_room(most_members()),
        conflicts: Conflicts::new(),
        descriptions,
    }
}

fn host_name() -> String {
    gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn registrar(config: &Config, names: &Embedded) -> Registrar {
    let mark = Mark::new(&host_name(), config.instance.clone());
    match &config.registry {
        config::Registry::None => Registrar::none(),
        config::Registry::Embedded => Registrar::start(mark, names.clone(), system_jitter()),
        config::Registry::Consul(consul) => {
            Registrar::start(mark.clone(), Consul::new(mark, consul), system_jitter())
        }
    }
}

/// Takes up what an earlier daemon left.
async fn restore(shared: &Arc<Shared>, remembered: Remembered) -> Result<(), StartError> {
    let folder = shared.config.run_dir();
    let (mut recorded, rejected) = shared.records.load().map_err(in_file(&folder))?;
    for file in rejected {
        tell_rejected(&file);
    }
    failpoint::reach("restoring:loaded");
    let judged = judge(shared, &mut recorded.living).await;
    let state = Arc::clone(shared);
    let job = move |worker: &mut Worker| -> Result<Vec<Adopted>, StartError> {
        kernel::sweep::remove_doomed(&mut worker.socket, &state.links)?;
        let observed = kernel::observe::observe(&mut worker.socket, &state.links)?;
        failpoint::reach("restoring:observed");
        let topology = state.topology();
        let usable = |address| topology.prefixes().any(|prefix| prefix.contains(address));
        let plan = reconcile(recorded, &seen(&observed), usable);
        // In one transaction, so that what goes on is at no moment open or cut off. What does not go
        // on has no elements from here, known to a record or not.
        let elements: Vec<_> =
            plan.adopt.iter().flat_map(|(a, _)| Elements::of_all(&a.port)).collect();
        state.rules.load(worker, &elements)?;
        failpoint::reach("restoring:ruled");
        clean(&state, worker, &observed, &plan);
        failpoint::reach("restoring:cleaned");
        Ok(plan.adopt.into_iter().map(|(a, i)| with_holder(a, i)).collect())
    };
    let adopted = shared.workers.run(job).await?;
    adopt(shared, adopted, &judged, remembered).await
}

/// Judges anew what is open of the attachments that an earlier daemon left: the configuration may be
/// another one, and records of before there were openings say nothing of it. Gives those of which other
/// things are open now. Where nobody can tell what an owner may open, it stays as it was.
async fn judge(shared: &Arc<Shared>, living: &mut [Attachment]) -> HashSet<AttachmentId> {
    let owners: HashSet<Uid> = living.iter().map(|a| a.owner).collect();
    let mut asked = JoinSet::new();
    for owner in owners {
        let shared = Arc::clone(shared);
        asked.spawn(async move { (owner, shared.access.rights(owner).await) });
    }
    let rights: HashMap<Uid, Option<Rights>> = asked.join_all().await.into_iter().collect();
    let mut changed = HashSet::new();
    // Who was there first has what he had, if there is not room for all.
    living.sort_by_key(|a| (a.since, a.id.clone()));
    let mut used: HashMap<Uid, usize> = HashMap::new();
    for a in living {
        let used = used.entry(a.owner).or_default();
        let rights = rights.get(&a.owner).cloned().flatten();
        let room = Holes::MOST_OF_OWNER.saturating_sub(*used);
        let terms = shared.open_terms(a.owner, rights.clone().unwrap_or_else(Rights::none), room);
        let open = match rights {
            Some(_) => a.open.again(&a.wishes, &a.found, &terms),
            None => a.open.clone().reaching(&a.wishes, &a.found, &terms),
        };
        *used += open.holes().each().len();
        if open.recorded() != a.open.recorded() {
            changed.insert(a.id.clone());
        }
        a.port.open = open.holes();
        a.open = open;
    }
    changed
}

/// Ends, behind the start, what was begun and is not let in any more.
fn end_flows_soon(shared: &Arc<Shared>) {
    let state = Arc::clone(shared);
    tokio::spawn(async move {
        let shared = Arc::clone(&state);
        let job = move |worker: &mut Worker| shared.end_flows(worker, None);
        if let Err(error) = state.sweeper.run(job).await {
            tracing::warn!(%error, "cannot end flows to what is not open any more");
        }
    });
}

fn seen(observed: &Observed) -> Seen {
    let ports = observed.ports.iter().filter_map(|port| {
        Some(PortSeen { ifindex: port.ifindex, name: port.name.parse().ok()?, up: port.up })
    });
    let neighbours = observed.neighbours.iter();
    let forwarding = observed.forwarding.iter();
    Seen {
        bridge: observed.bridge,
        ports: ports.collect(),
        routes: observed.routes.iter().copied().collect(),
        subnets: observed.subnets.iter().copied().collect(),
        neighbours: neighbours.map(|(a, link, mac)| ((*a, *link), Mac::local(*mac))).collect(),
        forwarding: forwarding.map(|(ifindex, mac)| (*ifindex, Mac::local(*mac))).collect(),
    }
}

/// Undoes what is half or has ended, removes what is nobody's, and mends what goes on. What fails is
/// said, and tried at the next start.
fn clean(shared: &Shared, worker: &mut Worker, observed: &Observed, plan: &Plan) {
    let ports: Vec<_> = plan.undo.iter().map(|attachment| &attachment.port).collect();
    let undone = kernel::sweep::sweep(worker, &shared.host(), &ports);
    for (attachment, errors) in plan.undo.iter().zip(undone) {
        failpoint::reach("restoring:undone");
        if !errors.is_empty() {
            let errors = ending::join(&errors);
            tracing::error!(attachment = %attachment.id, errors, "cannot take it away");
            continue;
        }
        tracing::info!(
            attachment = %attachment.id, owner = %attachment.owner,
            "taken away: it ended while the daemon was away, or was not whole"
        );
        shared.note_rest(attachment);
        for net in attachment.port.nets() {
            let rest = Rest { since: Instant::now(), owner: Some(attachment.owner) };
            shared.ledger().book.rest(net, rest);
        }
        if let Err(error) = shared.records.remove(&attachment.id) {
            tracing::warn!(attachment = %attachment.id, %error, "cannot remove the record");
        }
    }
    for attachment in &plan.lies {
        let reason = "it claims what is another's";
        tell_rejected(&shared.records.reject(&attachment.id, reason));
    }
    for (attachment, ifindex) in &plan.mend {
        mending::mend_at_start(shared, worker, observed, attachment, *ifindex);
    }
    let ports = plan.stray_ports.iter().filter_map(|name| {
        observed
            .ports
            .iter()
            .find(|port| port.name == name.as_str())
            .map(|p| Stray::Port(p.ifindex))
    });
    let both = |&(address, link): &(Ipv6Addr, u32)| {
        [Stray::Route(address, link), Stray::Neighbour(address, link)]
    };
    // Before the address that they are by.
    let subnets = plan.stray_subnets.iter().map(|(net, link)| Stray::Subnet(*net, *link));
    for stray in ports.chain(subnets).chain(plan.stray_addresses.iter().flat_map(both)) {
        tracing::warn!(?stray, "removing what no record speaks of");
        if let Err(error) = kernel::observe::remove_stray(&mut worker.socket, stray) {
            tracing::error!(%error, "cannot remove it");
        }
        failpoint::reach("restoring:stray");
    }
}

fn tell_rejected(rejected: &Rejected) {
    tracing::error!(
        file = rejected.file,
        "put aside a file that is no record: {}",
        rejected.reason
    );
}

/// An attachment that goes on, the number of its port, the process that it ends with, and whether that
/// has ended already. No descriptor left to look after it, for instance, is no news of a process.
type Adopted = (Attachment, u32, Option<Process>, bool);

fn with_holder(attachment: Attachment, ifindex: u32) -> Adopted {
    let Some(holder) = attachment.holder else { return (attachment, ifindex, None, false) };
    match Process::pin(holder.pid) {
        Ok(process) if process.start_time() == holder.start_time => {
            (attachment, ifindex, Some(process), false)
        }
        Err(error) if !error.is_gone() => {
            tracing::warn!(attachment = %attachment.id, %error, "cannot watch its process");
            (attachment, ifindex, None, false)
        }
        Ok(_) | Err(_) => (attachment, ifindex, None, true),
    }
}

async fn adopt(
    shared: &Arc<Shared>,
    adopted: Vec<Adopted>,
    judged: &HashSet<AttachmentId>,
    remembered: Remembered,
) -> Result<(), StartError> {
    let mut named = Vec::new();
    for (attachment, ifindex, process, orphaned) in adopted {
        let id = attachment.id.clone();
        if !shared.ledger().book.adopt(attachment.clone(), ifindex) {
            tracing::error!(attachment = %id, "its record contradicts another's; left alone");
            continue;
        }
        if judged.contains(&id)
            && let Err(error) = shared.records.write(&attachment)
        {
            tracing::warn!(attachment = %id, %error, "cannot record what is open by now");
        }
        let Some(generation) = shared.ledger().book.find(&id).map(|a| a.generation) else {
            continue;
        };
        shared.hold(&id, generation, process, false);
        if orphaned {
            // What it should have ended with has ended. The usual grace applies.
            let _ = shared.ended.send(Ended { id: id.clone(), generation });
        }
        named.push(attachment);
    }
    if !named.is_empty() {
        tracing::info!(count = named.len(), "took up the attachments of an earlier daemon");
    }
    failpoint::reach("restoring:adopted");
    proxying::settle(shared).await;
    failpoint::reach("restoring:proxied");
    end_flows_soon(shared);
    shared.take_up(remembered).await?;
    shared.name_again(named).await;
    failpoint::reach("restoring:named");
    Ok(())
}

fn in_file(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { path, source }
}
