use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;
use v6pod_proto::Uid;

use super::*;

const LIST: &[u8] = include_bytes!("fixtures/containers.json");
const CREATE_CONFIG: &[u8] = include_bytes!("fixtures/create-config");

fn web() -> ContainerId {
    "247fa2c6109782b636e6a81088c8df502f1cf1c7d72d6e24545b96aa8ad6c6ff".parse().unwrap()
}

fn named(name: &str) -> Option<Name> {
    Some(Name { name: name.to_owned(), infra: false })
}

/// A user's two directories.
struct User {
    directory: TempDir,
}

impl User {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["home", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// conmon's link.
    fn link(&self, target: &Path) {
        let folder = self.path("run/libpod/tmp/socket");
        fs::create_dir_all(&folder).unwrap();
        let link = folder.join(web().as_str());
        let _ = fs::remove_file(&link);
        symlink(target, link).unwrap();
    }

    fn said(&self) -> Result<Option<Name>, Unknown> {
        let owner = Uid::new(rustix::process::geteuid().as_raw()).unwrap();
        let place = |name: &str| {
            let path = self.path(name);
            Some(Place { folder: Folder::open(&path, owner).unwrap(), path })
        };
        name(&Places { runtime: place("run"), home: place("home") }, &web())
    }

    fn name(&self) -> Option<Name> {
        self.said().ok().flatten()
    }
}

#[test]
fn the_name_stands_in_the_storages_list() {
    let user = User::new();
    assert_eq!(user.name(), None);
    user.put("home/.local/share/containers/storage/vfs-containers/containers.json", LIST);
    assert_eq!(user.name(), named("web"));
}

#[test]
fn the_volatile_lists_are_read_too() {
    for folder in ["home/.local/share/containers/storage", "run/containers"] {
        let user = User::new();
        user.put(&format!("{folder}/overlay-containers/containers.json"), b"[]");
        user.put(&format!("{folder}/overlay-containers/volatile-containers.json"), LIST);
        assert_eq!(user.name(), named("web"), "{folder}");
    }
}

#[test]
fn a_list_that_cannot_be_read_does_not_hide_the_next() {
    let user = User::new();
    user.put("home/.local/share/containers/storage/overlay-containers/containers.json", b"{");
    user.put("home/.local/share/containers/storage/vfs-containers/containers.json", LIST);
    assert_eq!(user.name(), named("web"));
}

#[test]
fn a_list_that_is_there_and_cannot_be_read_may_have_the_name() {
    let user = User::new();
    assert_eq!(user.said(), Ok(None));
    let storage = "home/.local/share/containers/storage";
    let large = vec![b' '; super::super::beneath::LIMIT as usize + 1];
    user.put(&format!("{storage}/overlay-containers/containers.json"), &large);
    user.put(&format!("{storage}/vfs-containers/containers.json"), b"[]");
    assert_eq!(user.said(), Err(Unknown));
    user.put(&format!("{storage}/vfs-containers/containers.json"), LIST);
    assert_eq!(user.said(), Ok(named("web")));
}

#[test]
fn the_name_stands_in_podman_1s_create_config() {
    for bundle in ["home/some/place/userdata", "run/bundle"] {
        let user = User::new();
        user.put(&format!("{bundle}/artifacts/create-config"), CREATE_CONFIG);
        user.link(&user.path(bundle));
        assert_eq!(user.name(), named("web"), "{bundle}");
    }
}

#[test]
fn without_a_create_config_behind_the_link_the_list_counts() {
    let user = User::new();
    fs::create_dir_all(user.path("home/bundle/artifacts")).unwrap();
    user.link(&user.path("home/bundle"));
    user.put("home/.local/share/containers/storage/vfs-containers/containers.json", LIST);
    assert_eq!(user.name(), named("web"));
}

#[test]
fn attack_02_conmons_link_leads_nowhere_but_below_the_users_own_directories() {
    let user = User::new();
    user.put("elsewhere/artifacts/create-config", CREATE_CONFIG);
    user.put("home/bundle/artifacts/create-config", CREATE_CONFIG);
    for target in [
        user.path("elsewhere"),
        user.path("home/../elsewhere"),
        user.path("home/bundle/../bundle"),
        "../../../../home/bundle".into(),
        "/".into(),
    ] {
        user.link(&target);
        assert_eq!(user.name(), None, "{target:?}");
    }
    // A second link on the way is not followed either.
    symlink(user.path("elsewhere"), user.path("home/second")).unwrap();
    user.link(&user.path("home/second"));
    assert_eq!(user.name(), None);
    user.link(&user.path("home/bundle"));
    assert_eq!(user.name(), named("web"));
}

#[test]
fn a_name_is_one_that_podman_takes() {
    for wrong in ["", "-x", ".", "a b", "a\\nb", "a/b", "\\u001b[31m", "é", &"a".repeat(256)] {
        let text = format!(r#"{{"Name":"{wrong}"}}"#);
        assert_eq!(parse_create_config(text.as_bytes()), None, "{wrong}");
        let text = format!(r#"[{{"id":"{}","names":["{wrong}"]}}]"#, web());
        assert_eq!(parse_list(text.as_bytes(), &web()), None, "{wrong}");
    }
    assert_eq!(parse_create_config(br#"{"Name":"a_B.c-9"}"#), named("a_B.c-9"));
}

#[test]
fn an_infra_containers_name_is_known_as_such() {
    let text = format!(r#"[{{"id":"{}","names":["0123456789ab-infra"]}}]"#, web());
    assert!(parse_list(text.as_bytes(), &web()).unwrap().infra);
}

proptest! {
    #[test]
    fn parsers_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert_eq!(parse_create_config(&bytes), None);
        prop_assert_eq!(parse_list(&bytes, &web()), None);
    }

    #[test]
    fn a_damaged_file_gives_a_plain_name_or_none(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let damaged = |fixture: &[u8]| {
            let mut bytes = fixture.to_vec();
            for (at, byte) in &changes {
                bytes[at.index(fixture.len())] = *byte;
            }
            bytes
        };
        let plain = |name: Name| name.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        prop_assert!(parse_create_config(&damaged(CREATE_CONFIG)).is_none_or(plain));
        prop_assert!(parse_list(&damaged(LIST), &web()).is_none_or(plain));
    }
}
