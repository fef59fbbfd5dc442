//! The registry of one host: a table in the daemon's memory.
//!
//! A restarted daemon fills it again from its records, so nothing of it is kept on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use v6pod_proto::AttachmentId;

use super::{Backend, BackendError, Listed, Service, ServiceId};
use crate::core::Label;

/// The table. Clones are the same table.
#[derive(Debug, Clone, Default)]
pub struct Embedded(Arc<Mutex<Table>>);

/// The services are those of the wishes, not copies of them.
#[derive(Debug, Default)]
struct Table {
    services: BTreeMap<ServiceId, Arc<Service>>,
    by_label: BTreeSet<(Label, ServiceId)>,
    by_address: BTreeSet<(Ipv6Addr, ServiceId)>,
}

impl Embedded {
    /// Who bears the label, in order of id. Case makes no difference (RFC 4343).
    pub fn lookup(&self, label: &str) -> Vec<(AttachmentId, Ipv6Addr)> {
        let Ok(label) = label.to_ascii_lowercase().parse::<Label>() else { return Vec::new() };
        let table = self.table();
        let services = table.services_in(&table.by_label, label);
        // Of one attachment several services may bear it: a container and its port, a pod and its member.
        let mut bearers: Vec<_> =
            services.filter_map(|service| Some((service.attachment()?, service.address))).collect();
        bearers.dedup();
        bearers
    }

    /// The labels that are borne at the address, in order of id: the address is its container's, and not that of
    /// the members of its pod.
    pub fn borne(&self, address: Ipv6Addr) -> Vec<(AttachmentId, Label)> {
        let table = self.table();
        let services = table.services_in(&table.by_address, address);
        let own = services.filter(|service| !service.is_members());
        let mut borne = Vec::new();
        for bearer in own.filter_map(|s| Some((s.attachment()?, s.label.clone()))) {
            if !borne.contains(&bearer) {
                borne.push(bearer);
            }
        }
        borne
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No panic can come between the two halves of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The services that an index has under this key, in order of id.
    fn services_in<'a, K: Ord + Clone + 'a>(
        &'a self,
        index: &'a BTreeSet<(K, ServiceId)>,
        key: K,
    ) -> impl Iterator<Item = &'a Service> {
        let from = index.range((key.clone(), ServiceId::new(""))..);
        let under = from.take_while(move |(other, _)| *other == key);
        under.filter_map(|(_, id)| self.services.get(id).map(AsRef::as_ref))
    }

    fn remove(&mut self, id: &ServiceId) {
        let Some(service) = self.services.remove(id) else { return };
        self.by_label.remove(&(service.label.clone(), id.clone()));
        self.by_address.remove(&(service.address, id.clone()));
    }
}

impl Backend for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn register(&self, service: &Arc<Service>) -> Result<(), BackendError> {
        let mut table = self.table();
        table.remove(&service.id);
        table.by_label.insert((service.label.clone(), service.id.clone()));
        table.by_address.insert((service.address, service.id.clone()));
        table.services.insert(service.id.clone(), Arc::clone(service));
        Ok(())
    }

    async fn deregister(&self, id: &ServiceId) -> Result<(), BackendError> {
        self.table().remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, BackendError> {
        let table = self.table();
        let services = table.services.values();
        Ok(services.map(|s| Listed { id: s.id.clone(), service: Some(Arc::clone(s)) }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Instance;
    use crate::core::member::Place;
    use crate::core::offer::Part;
    use crate::registry::testing::registration;
    use crate::registry::{Mark, Registration};

    #[tokio::test]
    async fn a_member_is_found_at_its_pods_address_which_is_called_as_the_pod() {
        let mark = Mark::new("h", Instance::default());
        let table = Embedded::default();
        let pod = registration(1, "pod");
        let place = Place::try_from(3).unwrap();
        let member = |label: &str| Registration {
            part: Part::Member(place),
            container: "ab".repeat(32).parse().unwrap(),
            label: label.parse().unwrap(),
            ..pod.clone()
        };
        for registration in [&pod, &member("db")] {
            table.register(&Arc::new(Service::new(&mark, registration))).await.unwrap();
        }
        assert_eq!(table.lookup("db"), [(pod.id.clone(), pod.address)]);
        assert_eq!(table.borne(pod.address), [(pod.id.clone(), pod.label.clone())]);
        // Called as its pod, it is not found twice.
        table.register(&Arc::new(Service::new(&mark, &member("pod")))).await.unwrap();
        assert_eq!(table.lookup("pod"), [(pod.id.clone(), pod.address)]);
        assert!(table.lookup("db").is_empty());
        let service = Service::new(&mark, &member("db"));
        assert_eq!(service.id, ServiceId::new(format!("{}-m3", mark.service_id(&pod.id).as_str())));
    }

    #[tokio::test]
    async fn a_label_finds_all_who_bear_it() {
        let mark = Mark::new("h", Instance::default());
        let table = Embedded::default();
        let [one, two] = [1, 2].map(|n| Arc::new(Service::new(&mark, &registration(n, "web"))));
        table.register(&one).await.unwrap();
        table.register(&two).await.unwrap();
        table.register(&two).await.unwrap();
        let found = table.lookup("WEB");
        assert_eq!(found.iter().map(|(_, a)| *a).collect::<Vec<_>>(), [one.address, two.address]);

        // Under another name, the old one is gone.
        table.register(&Arc::new(Service::new(&mark, &registration(1, "db")))).await.unwrap();
        assert_eq!(table.lookup("web").len(), 1);
        assert_eq!(table.borne(one.address), [(AttachmentId::from_bits(1), "db".parse().unwrap())]);
        table.deregister(&two.id).await.unwrap();
        table.deregister(&two.id).await.unwrap();
        assert!(table.lookup("web").is_empty() && table.lookup("").is_empty());
        assert!(table.borne(two.address).is_empty());
        assert_eq!(table.list().await.unwrap().len(), 1);
        let inside = table.table();
        assert_eq!((inside.by_label.len(), inside.by_address.len()), (1, 1), "nothing empty stays");
    }
}
