//! Against a real Consul: an agent of its own for each test, on free ports of `[::1]` alone.
//!
//! The binary is `$V6POD_CONSUL`, or the one in `$PATH`, or what `tests/setup/consul.sh` has put into
//! /var/cache/v6pod-tests. Without one, or without dig, these tests are skipped and say so; with
//! `V6POD_TEST_REQUIRE=all` they fail.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout};
use v6pod_proto::NameState;

use super::*;
use crate::config::{Authority, ConsulUrl};
use crate::core::Instance;
use crate::registry::testing::{mark, registration, service};
use crate::registry::{Embedded, Registrar, Registration, system_jitter};
use crate::report::chain;

/// Long enough for an agent to start and elect itself on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the issue allows after Consul is back, and as much again for a busy machine.
const BACK: Duration = Duration::from_secs(20);

/// The programs that these tests need, or a word about what is missing.
pub(super) fn consul() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        |name: &str| std::env::split_paths(&path).map(|d| d.join(name)).find(|f| f.is_file());
    let named = std::env::var_os("V6POD_CONSUL").map(PathBuf::from);
    let cached = PathBuf::from("/var/cache/v6pod-tests/consul");
    let consul =
        named.or_else(|| in_path("consul")).or_else(|| Some(cached).filter(|f| f.is_file()));
    let missing = match (&consul, in_path("dig")) {
        (Some(_), Some(_)) => return consul,
        (None, _) => "consul (tests/setup/consul.sh brings it)",
        (_, None) => "dig (bind9-dnsutils)",
    };
    let required = std::env::var_os("V6POD_TEST_REQUIRE").is_some_and(|v| v == "all");
    assert!(!required, "needs {missing}");
    eprintln!("skipped: needs {missing}");
    None
}

/// An agent that can be killed, stopped and started again, always at the same place.
pub(super) struct LiveAgent {
    binary: PathBuf,
    /// http, dns, serf, server.
    ports: [u16; 4],
    pub(super) settings: String,
    child: Option<Child>,
}

impl LiveAgent {
    pub(super) fn new(binary: PathBuf, settings: &str) -> Self {
        let free = [(); 4].map(|()| TcpListener::bind("[::1]:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        Self { binary, ports, settings: settings.to_owned(), child: None }
    }

    /// Starts it with an empty memory and waits until it has a leader.
    pub(super) async fn start(&mut self) {
        let [http, dns, serf, server] = self.ports.map(|port| port.to_string());
        // setpriv: the agent goes with the test, also if that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.binary)
            .args(["agent", "-dev", "-node", "v6r", "-bind", "::1", "-client", "::1"])
            .args(["-http-port", &http, "-dns-port", &dns, "-serf-lan-port", &serf])
            .args(["-server-port", &server, "-serf-wan-port", "-1", "-grpc-port", "-1"])
            .args(["-hcl", "disable_update_check = true", "-hcl", &self.settings])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let http = self.http();
        eventually("the agent has a leader", async || {
            let answer = http.call(Method::GET, "/v1/status/leader", Vec::new()).await;
            answer.is_ok_and(|a| a.status.is_success() && a.body.len() > 4)
        })
        .await;
    }

    pub(super) fn endpoint(&self) -> Authority {
        format!("[::1]:{}", self.ports[0]).parse().unwrap()
    }

    pub(super) fn http(&self) -> Agent {
        Agent::new(Endpoint::Tcp(self.endpoint()), None)
    }

    pub(super) fn backend(&self) -> Consul {
        Consul::new(mark(), &plain(&self.endpoint(), None))
    }

    pub(super) fn registrar(&self) -> Registrar {
        Registrar::start(mark(), self.backend(), system_jitter())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What a user's resolver is told, in order.
    async fn addresses(&self, name: &str) -> Vec<String> {
        let port = self.ports[1].to_string();
        let name = format!("{name}.service.consul");
        let dig = tokio::task::spawn_blocking(move || {
            Command::new("dig")
                .args(["@::1", "-p", &port, &name, "AAAA", "+short", "+time=1", "+tries=1"])
                .output()
                .unwrap()
        });
        let output = dig.await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut addresses: Vec<_> =
            text.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect();
        addresses.sort();
        addresses
    }

    async fn finds(&self, name: &str, wanted: &[&Registration]) {
        let wanted: Vec<_> = wanted.iter().map(|r| r.address.to_string()).collect();
        eventually(&format!("{name} is {wanted:?}"), async || self.addresses(name).await == wanted)
            .await;
    }

    /// The ids of all services, whosever they are.
    pub(super) async fn ids(&self) -> Vec<String> {
        let answer = self.http().call(Method::GET, "/v1/agent/services", Vec::new()).await.unwrap();
        let services: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&answer.success().unwrap()).unwrap();
        services.into_keys().collect()
    }

    /// Registers something that v6pod did not make.
    async fn plant(&self, definition: serde_json::Value) {
        let body = definition.to_string().into_bytes();
        let path = "/v1/agent/service/register";
        self.http().call(Method::PUT, path, body).await.unwrap().success().unwrap();
    }
}

impl Drop for LiveAgent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An agent without TLS.
pub(super) fn plain(at: &Authority, token_file: Option<PathBuf>) -> config::Consul {
    let address = ConsulUrl::Http(at.clone());
    config::Consul { address, datacenter: None, token_file, ca_file: None, identity: None }
}

pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn settled(registrar: &Registrar) {
    let waited = timeout(BACK, registrar.settled()).await;
    assert!(waited.is_ok(), "{:?}", registrar.health());
}

#[tokio::test]
async fn a_name_is_found_while_it_is_registered() {
    let Some(consul) = consul() else { return };
    let mut agent = LiveAgent::new(consul, "");
    agent.start().await;
    let registrar = agent.registrar();
    let [one, two, other] = [(1, "web"), (2, "web"), (3, "db")].map(|(n, l)| registration(n, l));
    for registration in [&one, &two, &other] {
        registrar.wish(registration);
    }
    settled(&registrar).await;
    agent.finds("web", &[&one, &two]).await;
    agent.finds("alice.db", &[&other]).await;
    agent.finds("nobody.db", &[]).await;

    registrar.withdraw(&one.id);
    settled(&registrar).await;
    agent.finds("web", &[&two]).await;
    registrar.withdraw(&two.id);
    settled(&registrar).await;
    agent.finds("web", &[]).await;
    agent.finds("db", &[&other]).await;
    let unknown = agent.backend().deregister(&mark().service_id(&one.id)).await;
    assert!(unknown.is_ok(), "taking out what is not there is a success: {unknown:?}");
}

#[tokio::test]
async fn a_consul_that_is_away_and_comes_back_empty_is_made_right() {
    let Some(consul) = consul() else { return };
    let mut agent = LiveAgent::new(consul, "");
    let registrar = agent.registrar();
    let all: Vec<_> = (0..200).map(|n| registration(n, "web")).collect();
    registrar.reconcile(&all);
    sleep(Duration::from_secs(1)).await;
    assert!(!registrar.health().healthy);
    assert_eq!(registrar.state(&all[0].id), Some(NameState::Pending));

    agent.start().await;
    settled(&registrar).await;
    assert_eq!(agent.ids().await.len(), 200);

    agent.kill();
    registrar.withdraw(&all[0].id);
    eventually("the outage is noticed", async || !registrar.health().healthy).await;
    agent.start().await;
    settled(&registrar).await;
    let ids = agent.ids().await;
    assert_eq!(ids.len(), 199, "each once, and not the one that ended meanwhile");

    // Quicker than anybody can notice.
    agent.kill();
    agent.start().await;
    eventually("all are back", async || agent.ids().await == ids).await;
}

#[tokio::test]
async fn a_stopped_consul_keeps_nobody() {
    let Some(consul) = consul() else { return };
    let mut agent = LiveAgent::new(consul, "");
    agent.start().await;
    let registrar = agent.registrar();
    registrar.wish(&registration(0, "web"));
    settled(&registrar).await;
    agent.signal(Signal::SIGSTOP);

    for n in 1..100 {
        registrar.wish(&registration(n, "web"));
        assert_eq!(registrar.state(&registration(n, "web").id), Some(NameState::Pending));
    }
    registrar.withdraw(&registration(0, "web").id);
    // The runtime is not kept either: another registrar works on it.
    let table = Embedded::default();
    let other = Registrar::start(mark(), table.clone(), system_jitter());
    other.wish(&registration(1, "web"));
    settled(&other).await;
    assert_eq!(table.lookup("web").len(), 1);
    eventually("it is noticed", async || !registrar.health().healthy).await;

    agent.signal(Signal::SIGCONT);
    settled(&registrar).await;
    let mut living: Vec<_> = (1..100).map(|n| service(n, "web").id.to_string()).collect();
    living.sort();
    eventually("exactly the living are there", async || agent.ids().await == living).await;
}

#[tokio::test]
async fn reconciling_takes_the_stale_and_touches_nothing_foreign() {
    let Some(consul) = consul() else { return };
    let mut agent = LiveAgent::new(consul, "");
    agent.start().await;
    // A former run of this daemon left three; one lives on, one has another address now.
    for n in 1..=3 {
        agent.backend().register(&service(n, "web")).await.unwrap();
    }
    let other = Mark::new("host", "v6b".parse::<Instance>().unwrap());
    let others = Arc::new(Service::new(&other, &registration(1, "web")));
    Consul::new(other, &plain(&agent.endpoint(), None)).register(&others).await.unwrap();
    agent.plant(serde_json::json!({ "ID": "postgres", "Name": "postgres" })).await;
    // Looks like ours by its id alone.
    let like = format!("v6pod-host-v6pod-{:032x}", 77);
    agent.plant(serde_json::json!({ "ID": like, "Name": "like" })).await;
    // Ours by its mark, by an id that wants to be a path.
    let ours = mark();
    let meta: BTreeMap<_, _> = ours.meta().into_iter().collect();
    agent.plant(serde_json::json!({ "ID": "a b/?c#%", "Name": "odd", "Meta": meta })).await;

    let mut moved = registration(2, "web");
    moved.address = "2001:db8::2:2".parse().unwrap();
    let registrar = agent.registrar();
    registrar.reconcile(&[registration(1, "web"), moved.clone(), registration(4, "new")]);
    settled(&registrar).await;
    let mut left: Vec<_> = [1, 2, 4].map(|n| service(n, "x").id.to_string()).into();
    left.extend([others.id.to_string(), "postgres".to_owned(), like]);
    left.sort();
    assert_eq!(agent.ids().await, left);
    let listed = agent.backend().list().await.unwrap();
    assert_eq!(listed.len(), 3, "the agent filters");
    let wanted = Arc::new(Service::new(&mark(), &moved));
    assert!(listed.iter().any(|l| l.service.as_ref() == Some(&wanted)));
}

#[tokio::test]
async fn a_token_is_needed_where_consul_wants_one() {
    const TOKEN: &str = "0f3a1c52-9d1e-4b6f-8a57-3a1f0e5d7c11";
    let Some(consul) = consul() else { return };
    let mut agent = LiveAgent::new(
        consul,
        r#"acl { enabled = true, default_policy = "deny", tokens {
            master = "0f3a1c52-9d1e-4b6f-8a57-3a1f0e5d7c11" } }"#,
    );
    agent.start().await;
    let without = agent.registrar();
    without.wish(&registration(1, "web"));
    let id = registration(1, "web").id;
    eventually("it is refused", async || without.state(&id) == Some(NameState::Refused)).await;
    assert!(without.error(&id).unwrap().contains("403"));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let backend = Consul::new(mark(), &plain(&agent.endpoint(), Some(file.path().to_owned())));
    let with = Registrar::start(mark(), backend, system_jitter());
    with.wish(&registration(2, "db"));
    // The ACLs of a new agent come up behind its leader.
    settled(&with).await;
    assert_eq!(with.state(&registration(2, "db").id), Some(NameState::Registered));
}

#[tokio::test]
async fn an_agent_is_reached_by_its_unix_socket() {
    let Some(consul) = consul() else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("http.sock");
    let settings = format!(r#"addresses {{ http = "::1 unix://{}" }}"#, socket.display());
    let mut agent = LiveAgent::new(consul, &settings);
    agent.start().await;
    let unix =
        config::Consul { address: ConsulUrl::Unix(socket), ..plain(&agent.endpoint(), None) };
    let registrar = Registrar::start(mark(), Consul::new(mark(), &unix), system_jitter());
    registrar.wish(&registration(1, "web"));
    settled(&registrar).await;
    agent.finds("web", &[&registration(1, "web")]).await;
}

/// Counts what is asked of Consul.
struct Counted(Consul, Arc<[AtomicUsize; 3]>);

impl Backend for Counted {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn register(&self, service: &Arc<Service>) -> Result<(), BackendError> {
        self.1[0].fetch_add(1, Ordering::Relaxed);
        self.0.register(service).await
    }

    async fn deregister(&self, id: &ServiceId) -> Result<(), BackendError> {
        self.1[1].fetch_add(1, Ordering::Relaxed);
        self.0.deregister(id).await
    }

    async fn list(&self) -> Result<Vec<Listed>, BackendError> {
        self.1[2].fetch_add(1, Ordering::Relaxed);
        self.0.list().await
    }
}

/// `cargo test -p v6pod-daemon --lib cold_start -- --ignored --nocapture` prints what docs/consul.md
/// has.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_cold_start_with_a_thousand_names_is_counted() {
    let Some(consul) = consul() else { return };
    let all: Vec<_> = (0..1000).map(|n| registration(n, &format!("n{n}"))).collect();
    for round in 0..3 {
        let mut agent = LiveAgent::new(consul.clone(), "");
        agent.start().await;
        let counts = Arc::new([0, 0, 0].map(AtomicUsize::new));
        let counted = Counted(agent.backend(), Arc::clone(&counts));
        let told = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        let began = Instant::now();
        let registrar = Registrar::start(mark(), counted, system_jitter());
        registrar.reconcile(&all);
        settled(&registrar).await;
        let (took, [puts, removals, lists]) = (began.elapsed(), told());
        eprintln!(
            "round {round}: {puts} registrations, {removals} removals, {lists} lists in {took:.2?}"
        );
        assert_eq!((puts, removals, agent.ids().await.len()), (1000, 0, 1000));
        let began = Instant::now();
        let again = Registrar::start(mark(), agent.backend(), system_jitter());
        again.reconcile(&all);
        settled(&again).await;
        eprintln!("round {round}: a restarted daemon knows after {:.2?}", began.elapsed());
        sleep(Duration::from_secs(30)).await;
        let [later, _, looked] = told();
        eprintln!(
            "round {round}: in half a minute of quiet {} writes, {} lists",
            later - puts,
            looked - lists
        );
    }
}

#[cfg(feature = "consul-tls")]
#[tokio::test]
async fn an_agent_is_reached_by_tls_if_each_is_who_he_should_be() {
    let Some(consul) = consul() else { return };
    let folder = tempfile::tempdir().unwrap();
    let make = |args: &[&str]| {
        let made = Command::new(&consul).arg("tls").args(args).current_dir(folder.path()).output();
        assert!(made.unwrap().status.success(), "{args:?}");
    };
    make(&["ca", "create"]);
    make(&["cert", "create", "-server", "-additional-ipaddress", "::1"]);
    make(&["cert", "create", "-client"]);
    make(&["ca", "create", "-domain", "other"]);
    let file = |name: &str| folder.path().join(name);
    let https = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let settings = format!(
        r#"ports {{ https = {} }} ca_file = "{}" cert_file = "{}" key_file = "{}"
           verify_incoming_https = true"#,
        https.port(),
        file("consul-agent-ca.pem").display(),
        file("dc1-server-consul-0.pem").display(),
        file("dc1-server-consul-0-key.pem").display(),
    );
    let mut agent = LiveAgent::new(consul.clone(), &settings);
    agent.start().await;
    let right = config::Consul {
        address: ConsulUrl::Https(https.to_string().parse().unwrap()),
        datacenter: None,
        token_file: None,
        ca_file: Some(file("consul-agent-ca.pem")),
        identity: Some(config::Identity {
            cert_file: file("dc1-client-consul-0.pem"),
            key_file: file("dc1-client-consul-0-key.pem"),
        }),
    };
    let registrar = Registrar::start(mark(), Consul::new(mark(), &right), system_jitter());
    registrar.wish(&registration(1, "web"));
    settled(&registrar).await;
    agent.finds("web", &[&registration(1, "web")]).await;

    let list = async |wrong: config::Consul| {
        let error = Consul::new(mark(), &wrong).list().await.unwrap_err();
        assert!(matches!(error, BackendError::Unreachable(_)), "{error:?}");
        chain(&error)
    };
    // Another's certificate, none shown, another host's name.
    let other = config::Consul { ca_file: Some(file("other-agent-ca.pem")), ..right.clone() };
    assert!(list(other).await.contains("certificate"));
    list(config::Consul { identity: None, ..right.clone() }).await;
    let name = format!("ip6-localhost:{}", https.port()).parse().unwrap();
    let named = list(config::Consul { address: ConsulUrl::Https(name), ..right.clone() }).await;
    assert!(named.contains("not valid for name") || named.contains("lookup"), "{named}");

    // A key that is replaced counts, and one that is none is not told.
    let key = file("dc1-client-consul-0-key.pem");
    let good = std::fs::read(&key).unwrap();
    let backend = Consul::new(mark(), &right);
    assert!(backend.list().await.is_ok());
    std::fs::write(&key, "s3cret").unwrap();
    let error = chain(&backend.list().await.unwrap_err());
    assert!(error.contains("no private key") && !error.contains("s3cret"), "{error}");
    std::fs::write(&key, good).unwrap();
    assert!(backend.list().await.is_ok());
}
