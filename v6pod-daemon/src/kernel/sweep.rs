//! Deleting many ports at once.
//!
//! One port costs the kernel 20 to 30 ms, because each deletion waits for RCU by itself; a link group
//! is deleted with one such wait, 200 ports in 60 ms. Where ports wait, they go together.
//!
//! Guarantee: only links of our own two groups are touched. A port moves from the ports' group to the
//! doomed one, from which nothing comes back: whoever starts after a crash deletes what he finds there.
//! It is up until it is deleted, for "down" costs as much. The firewall holds the doomed group to the
//! ports' rules, and once its elements are gone nothing of it passes.

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::error::{Error, gone_is_fine};
use super::host::Host;
use super::message;
use super::netlink::RouteSocket;
use super::wire::{find_port, remove_elements, undo};
use super::workers::Worker;
use crate::core::links::Links;
use crate::core::step::{Port, Step, detach};
use crate::failpoint;

/// Undoes all steps of all these ports; what failed, port by port. The records must say by now that
/// all of them have ended: unlike [`undo_all`](super::wire::undo_all), this leaves ports up to the last.
pub fn sweep(worker: &mut Worker, host: &Host, ports: &[&Port]) -> Vec<Vec<Error>> {
    if ports.is_empty() {
        return Vec::new();
    }
    let mut errors: Vec<Vec<Error>> = ports
        .iter()
        .map(|port| doom(&mut worker.socket, host, port).err().into_iter().collect())
        .collect();
    failpoint::reach("sweep:doomed");
    for (port, errors) in ports.iter().zip(&mut errors) {
        let apart = |step: &&Step| matches!(step, Step::Up | Step::Pair | Step::Rules);
        let others = detach(port.mode).filter(|step| !apart(step));
        errors.extend(others.filter_map(|s| undo(worker, host, port, s).err()));
        errors.extend(remove_elements(worker, host, port).err());
    }
    forget_flows(worker, ports, &mut errors);
    failpoint::reach("sweep:cleared");
    if let Err(error) = remove_doomed(&mut worker.socket, &host.links) {
        tracing::warn!(%error, "cannot delete ports together; trying one by one");
        for (port, errors) in ports.iter().zip(&mut errors) {
            errors.extend(delete_doomed(worker, host, port).err());
        }
    }
    failpoint::reach("sweep:deleted");
    errors
}

/// The rest of [`Step::Rules`]. To look for the flows of one address takes milliseconds, for those of a
/// thousand no longer.
fn forget_flows(worker: &mut Worker, ports: &[&Port], errors: &mut [Vec<Error>]) {
    let all = ports.iter().flat_map(|port| port.nets()).collect();
    let Err(error) = worker.rules.forget_flows(&all) else { return };
    tracing::warn!(%error, "cannot forget flows together; trying one by one");
    for (port, errors) in ports.iter().zip(errors) {
        errors.extend(worker.rules.forget_flows(&port.nets().collect()).err());
    }
}

/// Deletes whatever is doomed.
pub fn remove_doomed(socket: &mut RouteSocket, links: &Links) -> Result<(), Error> {
    let mut group = LinkMessage::default();
    group.attributes.push(LinkAttribute::Group(links.doomed()));
    gone_is_fine(socket.ack("delete doomed ports", &Message::DelLink(group), 0))
}

fn doom(socket: &mut RouteSocket, host: &Host, port: &Port) -> Result<(), Error> {
    let Some(index) = find_port(socket, host, port)? else { return Ok(()) };
    let mut link = message::link(index);
    link.attributes.push(LinkAttribute::Group(host.links.doomed()));
    gone_is_fine(socket.ack(format!("doom {}", port.name), &Message::SetLink(link), 0))
}

fn delete_doomed(worker: &mut Worker, host: &Host, port: &Port) -> Result<(), Error> {
    let Some(link) = message::find_link(&mut worker.socket, &port.name)? else { return Ok(()) };
    if link.group != host.links.doomed() {
        return undo(worker, host, port, &Step::Pair);
    }
    let doing = format!("delete {}", port.name);
    gone_is_fine(worker.socket.ack(doing, &Message::DelLink(message::link(link.index)), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::observe::{Observed, observe};
    use crate::kernel::testing::{Bench, Container, in_netns, port, routed, sh};

    #[test]
    fn many_go_together_and_nobody_else_does() {
        in_netns(|| {
            let mut bench = Bench::new();
            let containers: Vec<_> = (1..=20).map(|_| Container::new()).collect();
            let port_of = |n: u8| if n.is_multiple_of(2) { routed(n) } else { port(n) };
            for (n, container) in (1..).zip(&containers) {
                bench.attach(container, &port_of(n));
            }
            sh("ip link add v6kx type veth peer name v6ky");
            let ports: Vec<_> = (2..=20).map(port_of).collect();
            // With one that is gone already, and one that never was.
            containers[1].sh("ip link del eth0");
            let unheard_of = port(77);
            let all: Vec<_> = ports.iter().chain([&unheard_of]).collect();
            for _ in 0..2 {
                let errors = sweep(&mut bench.worker, &bench.host, &all);
                assert!(errors.len() == 20 && errors.iter().all(Vec::is_empty), "{errors:?}");
                let links = bench.host.links.clone();
                let seen = observe(&mut bench.worker.socket, &links).unwrap();
                assert_eq!(
                    seen.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
                    ["v6k-1"]
                );
                assert_eq!(seen.routes, [(port(1).address, bench.host.bridge)]);
                assert_eq!(seen.neighbours.len(), 1);
            }
            assert!(sh("ip -o link").contains("v6kx"));
        });
    }

    /// A port is up until it is deleted, and the rules know ports by their group.
    #[test]
    fn a_doomed_port_is_not_free_of_the_rules() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            bench.attach(&container, &port(1));
            // How many frames the bridge has been handed, before and after one to all nodes: what the
            // rules of the bridge keep back, and no other.
            let received = || sh("awk '/v6k0:/ { print $3 }' /proc/net/dev");
            let send = || container.sh("ping -6 -n -L -c 1 -W 1 ff02::1%eth0; true");
            doom(&mut bench.worker.socket, &bench.host, &port(1)).unwrap();
            let before = received();
            send();
            assert_eq!(received(), before, "a doomed port sends to all nodes");
            sh("nft flush chain bridge v6pod-v6k prerouting");
            send();
            assert_ne!(received(), before, "without the rules it arrives");
        });
    }

    #[test]
    fn what_could_not_be_deleted_together_goes_by_itself() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            bench.attach(&container, &port(1));
            doom(&mut bench.worker.socket, &bench.host, &port(1)).unwrap();
            let errors = crate::kernel::wire::undo_all(&mut bench.worker, &bench.host, &port(1));
            assert!(errors.is_empty(), "{errors:?}");
            assert!(!sh("ip -o link").contains("v6k-1"));
        });
    }

    #[test]
    fn what_a_crash_left_doomed_goes_with_the_rest() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            bench.attach(&container, &port(1));
            doom(&mut bench.worker.socket, &bench.host, &port(1)).unwrap();
            let links = bench.host.links.clone();
            let seen = observe(&mut bench.worker.socket, &links).unwrap();
            assert_eq!(seen.ports, []);
            assert_ne!(seen, Observed::default());
            remove_doomed(&mut bench.worker.socket, &links).unwrap();
            assert!(!sh("ip -o link").contains("v6k-1"));
            assert!(sh("ip -o link").contains("v6k0"));
        });
    }
}
