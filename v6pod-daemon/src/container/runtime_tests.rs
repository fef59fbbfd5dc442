use proptest::prelude::*;

use super::*;

const STATE: &[u8] = include_bytes!("fixtures/runc-state.json");
const STATUS: &[u8] = include_bytes!("fixtures/crun-status");

fn state_id() -> ContainerId {
    "247fa2c6109782b636e6a81088c8df502f1cf1c7d72d6e24545b96aa8ad6c6ff".parse().unwrap()
}

fn status_id() -> ContainerId {
    "c7c58f2cc90458127bcfc6dad9b50fcc37856307df7d423f7472869578dd8984".parse().unwrap()
}

/// The fixture of runc with something else in the place of its pid.
fn state_with_pid(pid: &str) -> Result<Found, Unusable> {
    let text = std::str::from_utf8(STATE).unwrap();
    let changed =
        text.replace("\"init_process_pid\":21497", &format!("\"init_process_pid\":{pid}"));
    assert!(pid == "21497" || changed != text);
    parse_state(changed.as_bytes(), &state_id())
}

#[test]
fn a_real_state_file_of_runc_is_understood() {
    let found = parse_state(STATE, &state_id()).unwrap();
    let start_time = Some(240152);
    assert_eq!(found, Found { pid: 21497, start_time, runtime: Runtime::Runc });
}

#[test]
fn a_real_status_file_of_crun_is_understood() {
    let found = parse_status(STATUS, &status_id()).unwrap();
    let start_time = Some(240234);
    assert_eq!(found, Found { pid: 21671, start_time, runtime: Runtime::Crun });
}

#[test]
fn the_file_of_another_container_is_refused() {
    assert!(matches!(parse_state(STATE, &status_id()), Err(Unusable::OtherId)));
    assert!(matches!(parse_status(STATUS, &state_id()), Err(Unusable::OtherId)));
}

#[test]
fn a_pid_is_one_that_a_container_can_have() {
    assert_eq!(state_with_pid("2").unwrap().pid, 2);
    assert_eq!(state_with_pid("4194304").unwrap().pid, 4_194_304);
    for wrong in ["0", "1", "-1", "-21497", "4194305", "4294967298", "9223372036854775807"] {
        assert!(matches!(state_with_pid(wrong), Err(Unusable::Pid(_))), "{wrong}");
    }
    for wrong in ["\"21497\"", "21497.0", "2e3", "null", "[21497]", "18446744073709551617", "true"]
    {
        assert!(matches!(state_with_pid(wrong), Err(Unusable::Json(_))), "{wrong}");
    }
}

#[test]
fn an_id_is_whole() {
    let text = std::str::from_utf8(STATE).unwrap();
    let id = state_id();
    for wrong in [&id.as_str()[..63], &format!("{id}0"), "", &id.as_str().to_uppercase()] {
        let changed = text.replacen(id.as_str(), wrong, 1);
        assert!(matches!(parse_state(changed.as_bytes(), &id), Err(Unusable::Json(_))), "{wrong}");
    }
}

#[test]
fn what_is_said_twice_or_followed_by_more_is_refused() {
    let id = state_id();
    for wrong in [
        format!(r#"{{"id":"{id}","init_process_pid":5,"init_process_pid":6}}"#),
        format!(r#"{{"id":"{id}","id":"{id}","init_process_pid":5}}"#),
        format!(r#"{{"id":"{id}","init_process_pid":5}} x"#),
        format!(r#"{{"id":"{id}"}}"#),
        format!(r#"{{"id":"{id}","init_process_pid":5"#),
        "[]".to_owned(),
        String::new(),
    ] {
        assert!(matches!(parse_state(wrong.as_bytes(), &id), Err(Unusable::Json(_))), "{wrong}");
    }
    let plain = format!(r#"{{"id":"{id}","init_process_pid":5,"init_process_start":0}}"#);
    assert_eq!(parse_state(plain.as_bytes(), &id).unwrap().start_time, None);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let id = state_id();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let text = format!(r#"{{"config":{deep},"id":"{id}","init_process_pid":5}}"#);
        // Skipped or refused, but never followed.
        if let Ok(found) = parse_state(text.as_bytes(), &id) {
            assert_eq!(found.pid, 5);
        }
        let text = format!(r#"{{"id":{deep},"init_process_pid":5}}"#);
        assert!(parse_state(text.as_bytes(), &id).is_err());
    }
}

#[test]
fn crun_is_asked_where_runc_knows_nothing_usable() {
    let directory = tempfile::tempdir().unwrap();
    let id = status_id();
    let owner = v6pod_proto::Uid::new(rustix::process::geteuid().as_raw()).unwrap();
    let folder = Folder::open(directory.path(), owner).unwrap();
    let absent = find(&folder, &id);
    assert!(matches!(absent, Err(Unusable::Refused(Refused::Absent))), "{absent:?}");
    let put = |runtime: &str, file: &str, bytes: &[u8]| {
        let path = directory.path().join(runtime).join(id.as_str());
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(file), bytes).unwrap();
    };
    put("runc", "state.json", b"{");
    assert!(matches!(find(&folder, &id), Err(Unusable::Json(_))));
    put("crun", "status", STATUS);
    assert_eq!(find(&folder, &id).unwrap().runtime, Runtime::Crun);
}

proptest! {
    #[test]
    fn parsers_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(parse_state(&bytes, &state_id()).is_err());
        prop_assert!(parse_status(&bytes, &status_id()).is_err());
    }

    #[test]
    fn a_damaged_file_gives_a_possible_process_or_none(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        end in any::<proptest::sample::Index>(),
    ) {
        for (fixture, id, parse) in [
            (STATE, state_id(), parse_state as fn(&[u8], &ContainerId) -> _),
            (STATUS, status_id(), parse_status),
        ] {
            let mut bytes = fixture.to_vec();
            for (at, byte) in &changes {
                bytes[at.index(fixture.len())] = *byte;
            }
            for bytes in [&bytes[..], &bytes[..end.index(bytes.len())]] {
                if let Ok(Found { pid, .. }) = parse(bytes, &id) {
                    prop_assert!((2..=1 << 22).contains(&pid));
                }
            }
        }
    }
}
