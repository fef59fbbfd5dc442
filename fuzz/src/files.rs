//! Files of runtimes, engines and of the daemon itself. Where all of the file is JSON to a plain
//! reader too, that reader is the judge of what stands in it.

use serde_json::Value;
use v6pod_daemon::container::podman::{parse_create_config, parse_list};
use v6pod_daemon::container::runtime::{Found, Unusable, parse_state, parse_status};
use v6pod_daemon::container::{Name, Runtime};
use v6pod_daemon::fuzz;
use v6pod_proto::{ContainerId, storage};

/// The container of the fixtures of runc and podman.
const WEB: &str = "247fa2c6109782b636e6a81088c8df502f1cf1c7d72d6e24545b96aa8ad6c6ff";
/// The container of crun's fixture.
const CRUN: &str = "c7c58f2cc90458127bcfc6dad9b50fcc37856307df7d423f7472869578dd8984";

fn id(text: &str) -> ContainerId {
    text.parse().expect("64 hex digits")
}

/// runc's `state.json`: a process that a container can have, and the one that the file names.
pub fn state_json(data: &[u8]) {
    let found = parse_state(data, &id(WEB));
    process(found, data, Runtime::Runc, ["init_process_pid", "init_process_start"]);
}

/// crun's `status`: the same.
pub fn crun_status(data: &[u8]) {
    let found = parse_status(data, &id(CRUN));
    process(found, data, Runtime::Crun, ["pid", "process-start-time"]);
}

fn process(found: Result<Found, Unusable>, data: &[u8], runtime: Runtime, keys: [&str; 2]) {
    let Ok(found) = found else { return };
    assert_eq!(found.runtime, runtime);
    assert!((2..=1 << 22).contains(&found.pid));
    assert_ne!(found.start_time, Some(0));
    if let Ok(json) = serde_json::from_slice::<Value>(data) {
        assert_eq!(json[keys[0]].as_i64(), Some(found.pid.into()));
        assert_eq!(json[keys[1]].as_u64().filter(|time| *time != 0), found.start_time);
    }
}

/// podman 1.x's `create-config`: a name that podman takes, and the one that the file names.
pub fn create_config(data: &[u8]) {
    let Some(name) = parse_create_config(data) else { return };
    plain(&name);
    if let Ok(json) = serde_json::from_slice::<Value>(data) {
        assert_eq!(json["Name"].as_str(), Some(name.name.as_str()));
    }
}

/// containers/storage's lists, as the shim and as the daemon read them: the name of that container
/// and of no other, and to the daemon only one that podman takes.
pub fn containers_json(data: &[u8]) {
    let id = id(WEB);
    let raw = storage::name_in(data, &id);
    if let Some(name) = &raw {
        assert!(!name.is_empty());
        if let Ok(json) = serde_json::from_slice::<Value>(data) {
            let mut entries = json.as_array().into_iter().flatten();
            let entry = entries.find(|entry| entry["id"] == id.as_str());
            assert_eq!(entry.and_then(|e| e["names"][0].as_str()), Some(name.as_str()));
        }
    }
    if let Some(name) = parse_list(data, &id) {
        plain(&name);
        assert_eq!(Some(name.name), raw);
    }
}

fn plain(name: &Name) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    assert!((1..=255).contains(&name.name.len()) && name.name.bytes().all(allowed));
    assert!(name.name.as_bytes()[0].is_ascii_alphanumeric());
    assert_eq!(name.infra, storage::is_infra(&name.name));
}

/// A record of the daemon's: one that is taken is written back so that it says the same, and is
/// taken under no other name.
pub fn record(data: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(data) else {
        assert_eq!(fuzz::record("x.json", data), None, "what is no JSON is no record");
        return;
    };
    let file = format!("{}.json", json["id"].as_str().unwrap_or_default());
    let Some(written) = fuzz::record(&file, data) else { return };
    assert_eq!(fuzz::record(&file, &written).as_ref(), Some(&written));
    assert_eq!(fuzz::record(&format!("0{file}"), data), None);
    assert_eq!(json["version"], 1);
}
