//! Other programs' firewalls: which of their chains stop containers' packets, and how to live together.
//!
//! A packet passes a hook only if every base chain there lets it pass: what v6pod's own table accepts, a
//! `policy drop` of another table still drops. Who wrote the table is told by the names that ufw,
//! firewalld and docker give.
//!
//! What is said is what is certain: a chain that refuses whatever no rule of it accepts, and that has no
//! rule about containers where they need one. Rules are not interpreted any further: a chain that
//! refuses containers in particular is its administrator's will.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;

use v6pod_proto::Obstacle;

use super::Prefix;

/// The families whose chains see IPv6 packets, or the frames that hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `inet`.
    Inet,
    /// `ip6`.
    Ip6,
    /// `bridge`.
    Bridge,
}

/// Where a base chain is asked (`enum nf_inet_hooks`, of which `nf_br_hooks` are the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// All that comes in.
    Prerouting,
    /// What is for this host.
    Input,
    /// What goes on.
    Forward,
    /// What this host sends.
    Output,
    /// All that goes out.
    Postrouting,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its base chains.
    pub bases: Vec<Base>,
    /// What its chains do, base chains too; none of those without rules.
    pub chains: HashMap<String, Chain>,
    /// The names of all its chains.
    pub names: HashSet<String>,
}

/// A chain that the kernel asks by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// Where it is asked.
    pub hook: Hook,
    /// Whether its policy is to drop.
    pub drops: bool,
}

/// What the rules of one chain do, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// One of them drops or rejects everything.
    pub refuses: bool,
    /// One of them lets pass, or hands on, what containers send; by their addresses or their bridge.
    pub from_containers: bool,
    /// The same of what is sent to them.
    pub to_containers: bool,
    /// One of them lets pass, or hands on, some of ICMPv6.
    pub icmpv6: bool,
    /// The chains that its rules go to.
    pub targets: HashSet<String>,
}

/// Whose table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Ufw,
    Firewalld,
    Docker,
    Ip6tables,
    Nft,
}

/// What containers miss at a hook.
#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    from: bool,
    to: bool,
    /// Their questions for their gateway (RFC 4861, section 7.2).
    neighbours: bool,
    /// Their questions for names.
    names: bool,
}

/// What stands in the way of containers of this prefix, who are to ask for names there, if anywhere.
pub fn obstacles(tables: &[Table], prefix: Prefix, resolver: Option<Ipv6Addr>) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for table in tables {
        for base in &table.bases {
            let mut missing = table.missing(base);
            missing.names &= resolver.is_some();
            if missing.from || missing.to || missing.neighbours || missing.names {
                let mut obstacle = table.obstacle(base, missing, prefix);
                let plain = is_plain(&table.name) && is_plain(&base.name);
                if let Some(resolver) = resolver.filter(|_| missing.names && plain) {
                    obstacle.advice.extend(table.let_ask(base, prefix, resolver));
                }
                found.push(obstacle);
            }
        }
    }
    found
}

/// Whether containers can ask this host for names, as far as is known: no chain that decides what comes to it
/// refuses what it has no rule about.
pub fn may_ask(obstacles: &[Obstacle]) -> bool {
    obstacles.iter().all(|obstacle| obstacle.hook != Hook::Input.name())
}

/// The same for tables of the legacy ip6tables, which only it can read: `names` as in
/// `/proc/net/ip6_tables_names`.
pub fn legacy(names: &str, prefix: Prefix) -> Option<Obstacle> {
    let program = "ip6tables-legacy";
    names.lines().any(|name| name == "filter").then(|| Obstacle {
        program: program.to_owned(),
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        hook: "forward".to_owned(),
        meaning:
            "rules of the old kind are loaded, which v6podd cannot read; where `ip6tables-legacy \
                  -S FORWARD` shows a policy or a rule that drops, no container is reached from \
                  outside this host or reaches beyond it"
                .to_owned(),
        advice: ["-d", "-s"]
            .map(|end| format!("{program} -I FORWARD {end} {prefix} -j ACCEPT"))
            .into(),
    })
}

impl Table {
    /// Whether anybody need know its rules: whether a base chain can stop anything.
    pub fn may_refuse(&self) -> bool {
        self.bases.iter().any(|base| self.refuses(base))
    }

    fn refuses(&self, base: &Base) -> bool {
        base.drops || self.chains.get(&base.name).is_some_and(|chain| chain.refuses)
    }

    fn missing(&self, base: &Base) -> Missing {
        if !self.refuses(base) {
            return Missing::default();
        }
        let all = self.reached(&base.name);
        let from = !all.from_containers;
        let to = !all.to_containers;
        match (base.hook, self.family) {
            // No frame goes from one port of the bridge to another.
            (Hook::Forward, Family::Bridge) => Missing::default(),
            (Hook::Forward, _) => Missing { from, to, ..Missing::default() },
            // What containers may send to this host is its own firewall's to say, but for the one
            // question without which they send nothing at all; and it has to be known whether they can ask
            // for names.
            (Hook::Input, family) => Missing {
                neighbours: from && !all.icmpv6,
                names: from && family != Family::Bridge,
                ..Missing::default()
            },
            (Hook::Prerouting, Family::Bridge) => Missing { from, ..Missing::default() },
            (Hook::Prerouting, _) => Missing { from, to, ..Missing::default() },
            (Hook::Output, _) => Missing { to, ..Missing::default() },
            (Hook::Postrouting, Family::Bridge) => Missing { to, ..Missing::default() },
            (Hook::Postrouting, _) => Missing { from, to, ..Missing::default() },
        }
    }

    /// What all chains together do that a packet may come to from this one.
    fn reached(&self, from: &str) -> Chain {
        let (mut all, mut seen, mut next) = (Chain::default(), HashSet::new(), vec![from]);
        while let Some(name) = next.pop() {
            let Some(chain) = self.chains.get(name).filter(|_| seen.insert(name)) else { continue };
            all.from_containers |= chain.from_containers;
            all.to_containers |= chain.to_containers;
            all.icmpv6 |= chain.icmpv6;
            next.extend(chain.targets.iter().map(String::as_str));
        }
        all
    }

    fn program(&self) -> Program {
        let has = |begin: &str| self.names.iter().any(|name| name.starts_with(begin));
        match (self.family, self.name.as_str()) {
            (Family::Inet | Family::Ip6, "firewalld") => Program::Firewalld,
            (Family::Ip6, "filter") if has("ufw6-") => Program::Ufw,
            (Family::Ip6, "filter") if self.names.contains("DOCKER-USER") => Program::Docker,
            (Family::Ip6, "filter" | "mangle" | "raw" | "security") if has("FORWARD") => {
                Program::Ip6tables
            }
            _ => Program::Nft,
        }
    }

    fn obstacle(&self, base: &Base, missing: Missing, prefix: Prefix) -> Obstacle {
        let program = self.program();
        let how = if base.drops { "has the policy drop" } else { "ends with a rule that refuses" };
        let what = match (base.hook, missing) {
            (Hook::Input, Missing { neighbours: false, .. }) => {
                "containers do not reach v6podd's resolver, and keep their own"
            }
            (Hook::Input, _) => "containers do not learn where their gateway is, and send nothing",
            (Hook::Output, _) => "this host's own processes do not reach containers",
            (_, Missing { from: true, to: true, .. }) => {
                "no container is reached from outside this host or reaches beyond it"
            }
            (_, Missing { to: true, .. }) => {
                "no container is reached from outside this host, by what it has asked for even"
            }
            _ => "no container reaches beyond this host",
        };
        Obstacle {
            program: program.name().to_owned(),
            table: format!("{} {}", self.family.name(), self.name),
            chain: base.name.clone(),
            hook: base.hook.name().to_owned(),
            meaning: format!(
                "it {how} and no rule about containers: {what}, whatever v6pod lets in"
            ),
            // A name that is no plain word is not given to anybody's shell.
            advice: if is_plain(&self.name) && is_plain(&base.name) {
                self.advice(program, base, missing, prefix)
            } else {
                Vec::new()
            },
        }
    }

    fn advice(
        &self,
        program: Program,
        base: &Base,
        missing: Missing,
        prefix: Prefix,
    ) -> Vec<String> {
        let (family, table, chain) = (self.family.name(), &self.name, &base.name);
        match (program, base.hook) {
            (_, Hook::Input) if !missing.neighbours => Vec::new(),
            (Program::Ufw, Hook::Forward) => {
                let ends = missing.ends("to", "from");
                ends.map(|end| format!("ufw route allow {end} {prefix}")).collect()
            }
            (Program::Ufw, Hook::Output) => vec![format!("ufw allow out to {prefix}")],
            (Program::Firewalld, Hook::Forward | Hook::Input) => firewalld(prefix),
            (Program::Docker, Hook::Forward) => {
                let ends = missing.ends("-d", "-s");
                ends.map(|end| format!("ip6tables -I DOCKER-USER {end} {prefix} -j ACCEPT"))
                    .collect()
            }
            (Program::Ufw | Program::Docker | Program::Ip6tables, Hook::Input) => vec![format!(
                "ip6tables -t {table} -I {chain} -s {prefix} -p icmpv6 --icmpv6-type \
                 neighbour-solicitation -j ACCEPT"
            )],
            (Program::Ufw | Program::Docker | Program::Ip6tables, _) => {
                let ends = missing.ends("-d", "-s");
                ends.map(|end| format!("ip6tables -t {table} -I {chain} {end} {prefix} -j ACCEPT"))
                    .collect()
            }
            (Program::Nft, Hook::Input) => vec![format!(
                "nft insert rule {family} {table} {chain} ip6 saddr {prefix} icmpv6 type \
                 nd-neighbor-solicit accept"
            )],
            (Program::Nft | Program::Firewalld, _) => {
                let ends = missing.ends("daddr", "saddr");
                ends.map(|end| {
                    format!("nft insert rule {family} {table} {chain} ip6 {end} {prefix} accept")
                })
                .collect()
            }
        }
    }
}

impl Table {
    /// The commands by which containers ask for names in spite of this chain.
    fn let_ask(&self, base: &Base, prefix: Prefix, resolver: Ipv6Addr) -> Vec<String> {
        let (family, table, chain) = (self.family.name(), &self.name, &base.name);
        match self.program() {
            Program::Ufw => vec![format!("ufw allow from {prefix} to {resolver} port 53")],
            // In the zone that is made for what is forwarded.
            Program::Firewalld => {
                ["firewall-cmd --permanent --zone=v6pod --add-service=dns", "firewall-cmd --reload"]
                    .map(str::to_owned)
                    .into()
            }
            Program::Docker | Program::Ip6tables => ["udp", "tcp"]
                .map(|protocol| {
                    format!(
                        "ip6tables -t {table} -I {chain} -s {prefix} -d {resolver} -p {protocol} \
                         --dport 53 -j ACCEPT"
                    )
                })
                .into(),
            Program::Nft => vec![format!(
                "nft insert rule {family} {table} {chain} ip6 saddr {prefix} ip6 daddr {resolver} \
                 th dport 53 accept"
            )],
        }
    }
}

impl Missing {
    /// Of these two, those that are missing.
    fn ends<'a>(self, to: &'a str, from: &'a str) -> impl Iterator<Item = &'a str> {
        [(self.to, to), (self.from, from)].into_iter().filter(|(m, _)| *m).map(|(_, end)| end)
    }
}

/// A zone of the containers, which may forward to everywhere and to which everywhere may: v6pod's own
/// table says what gets in. What they may send to this host stays what the zone's services say.
fn firewalld(prefix: Prefix) -> Vec<String> {
    let mut commands =
        vec!["--new-zone=v6pod".to_owned(), format!("--zone=v6pod --add-source={prefix}")];
    for (policy, ingress, egress) in [("v6pod-in", "ANY", "v6pod"), ("v6pod-out", "v6pod", "ANY")] {
        commands.push(format!("--new-policy={policy}"));
        commands.push(format!("--policy={policy} --add-ingress-zone={ingress}"));
        commands.push(format!("--policy={policy} --add-egress-zone={egress}"));
        commands.push(format!("--policy={policy} --set-target=ACCEPT"));
    }
    let permanent = commands.into_iter().map(|words| format!("firewall-cmd --permanent {words}"));
    permanent.chain(["firewall-cmd --reload".to_owned()]).collect()
}

fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    name.bytes().all(plain) && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
            Self::Docker => "docker",
            Self::Ip6tables => "ip6tables",
            Self::Nft => "nft",
        }
    }
}

impl Family {
    const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

impl Hook {
    const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        "2001:db8:1:2:3::/80".parse().unwrap()
    }

    fn base(name: &str, hook: Hook, drops: bool) -> Base {
        Base { name: name.into(), hook, drops }
    }

    fn table(family: Family, name: &str, bases: &[Base]) -> Table {
        Table {
            family,
            name: name.into(),
            names: bases.iter().map(|base| base.name.clone()).collect(),
            bases: bases.into(),
            chains: HashMap::new(),
        }
    }

    fn to(targets: &[&str]) -> Chain {
        Chain { targets: targets.iter().map(|t| (*t).to_owned()).collect(), ..Chain::default() }
    }

    fn advice(table: Table) -> Vec<String> {
        let found = obstacles(&[table], prefix(), None);
        found.into_iter().flat_map(|obstacle| obstacle.advice).collect()
    }

    #[test]
    fn a_chain_that_lets_pass_by_policy_is_no_obstacle() {
        let bases = [base("forward", Hook::Forward, false), base("output", Hook::Output, false)];
        assert_eq!(obstacles(&[table(Family::Inet, "filter", &bases)], prefix(), None), []);
    }

    #[test]
    fn a_chain_that_drops_questions_for_names_is_one_where_they_are_answered() {
        let resolver: Ipv6Addr = "fd3a:9ca3:76d6::53".parse().unwrap();
        let mut mine = table(Family::Inet, "mine", &[base("in", Hook::Input, true)]);
        let knows = Chain { icmpv6: true, ..Chain::default() };
        mine.chains.insert("in".into(), knows.clone());
        assert_eq!(obstacles(&[mine.clone()], prefix(), None), []);
        let found = obstacles(&[mine.clone()], prefix(), Some(resolver));
        assert!(found[0].meaning.contains("keep their own") && !may_ask(&found), "{found:?}");
        let command = "nft insert rule inet mine in ip6 saddr 2001:db8:1:2:3::/80 ip6 daddr \
                       fd3a:9ca3:76d6::53 th dport 53 accept";
        assert_eq!(found[0].advice, [command]);
        mine.chains.insert("in".into(), Chain { from_containers: true, ..knows });
        assert_eq!(obstacles(&[mine], prefix(), Some(resolver)), []);
        // What is in the way of something else says nothing about questions.
        let forward = table(Family::Inet, "mine", &[base("fwd", Hook::Forward, true)]);
        assert!(may_ask(&obstacles(&[forward], prefix(), Some(resolver))));
    }

    #[test]
    fn each_program_is_known_by_its_names_and_gets_its_own_commands() {
        let forward = |name: &str| [base(name, Hook::Forward, true)];
        let mut ufw = table(Family::Ip6, "filter", &forward("FORWARD"));
        let mut docker = ufw.clone();
        let tables = ufw.clone();
        ufw.names.insert("ufw6-before-forward".into());
        docker.names.insert("DOCKER-USER".into());
        let firewalld = table(Family::Inet, "firewalld", &forward("filter_FORWARD"));
        let nft = table(Family::Inet, "mine", &forward("fwd"));
        for (table, program, first, count) in [
            (ufw, "ufw", "ufw route allow to 2001:db8:1:2:3::/80", 2),
            (docker, "docker", "ip6tables -I DOCKER-USER -d 2001:db8:1:2:3::/80 -j ACCEPT", 2),
            (
                tables,
                "ip6tables",
                "ip6tables -t filter -I FORWARD -d 2001:db8:1:2:3::/80 -j ACCEPT",
                2,
            ),
            (firewalld, "firewalld", "firewall-cmd --permanent --new-zone=v6pod", 11),
            (nft, "nft", "nft insert rule inet mine fwd ip6 daddr 2001:db8:1:2:3::/80 accept", 2),
        ] {
            let found = obstacles(&[table], prefix(), None);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].program, program);
            assert_eq!((&*found[0].advice[0], found[0].advice.len()), (first, count));
        }
    }

    #[test]
    fn what_is_let_pass_is_looked_for_where_the_chain_leads_and_nowhere_else() {
        let mut table = table(Family::Ip6, "filter", &[base("FORWARD", Hook::Forward, true)]);
        table.chains.insert("FORWARD".into(), to(&["a", "gone"]));
        table.chains.insert("a".into(), to(&["b", "a"]));
        table.chains.insert("b".into(), Chain { to_containers: true, ..to(&["FORWARD"]) });
        table.chains.insert("nat".into(), Chain { from_containers: true, ..to(&[]) });
        assert_eq!(
            advice(table.clone()),
            ["ip6tables -t filter -I FORWARD -s 2001:db8:1:2:3::/80 -j ACCEPT"]
        );
        table.chains.entry("a".into()).or_default().from_containers = true;
        assert!(advice(table).is_empty());
    }

    #[test]
    fn a_last_rule_that_refuses_is_as_good_as_a_policy() {
        let mut table = table(Family::Inet, "mine", &[base("fwd", Hook::Forward, false)]);
        table.chains.insert("fwd".into(), Chain { refuses: true, ..Chain::default() });
        assert!(table.may_refuse());
        let found = obstacles(&[table], prefix(), None);
        assert!(found[0].meaning.contains("ends with a rule that refuses"), "{found:?}");
    }

    #[test]
    fn of_what_is_for_the_host_only_the_question_for_the_gateway_counts() {
        let mut table = table(Family::Inet, "mine", &[base("in", Hook::Input, true)]);
        let found = advice(table.clone());
        assert!(found[0].ends_with("icmpv6 type nd-neighbor-solicit accept"), "{found:?}");
        table.chains.insert("in".into(), Chain { icmpv6: true, ..Chain::default() });
        assert!(advice(table).is_empty());
    }

    #[test]
    fn a_name_that_is_no_word_is_not_given_to_a_shell() {
        let forward = [base("x; reboot", Hook::Forward, true)];
        let found = obstacles(&[table(Family::Inet, "mine", &forward)], prefix(), None);
        assert_eq!((found.len(), found[0].advice.len()), (1, 0));
    }

    #[test]
    fn legacy_tables_are_told_of_where_they_filter() {
        assert_eq!(legacy("nat\nmangle\n", prefix()), None);
        assert_eq!(legacy("nat\nfilter\n", prefix()).unwrap().advice.len(), 2);
    }
}
