use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;

const STATE: &[u8] = include_bytes!("fixtures/runc-state.json");
const LIST: &[u8] = include_bytes!("fixtures/containers.json");

fn me() -> Uid {
    Uid::new(rustix::process::geteuid().as_raw()).unwrap()
}

fn web() -> ContainerId {
    "247fa2c6109782b636e6a81088c8df502f1cf1c7d72d6e24545b96aa8ad6c6ff".parse().unwrap()
}

#[tokio::test]
async fn a_container_is_found_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let (run_user, home) = (directory.path().join("run"), directory.path().join("home"));
    let state = run_user.join(me().to_string()).join("runc").join(web().as_str());
    let lists = home.join(".local/share/containers/storage/vfs-containers");
    fs::create_dir_all(&state).unwrap();
    fs::create_dir_all(&lists).unwrap();
    fs::write(state.join("state.json"), STATE).unwrap();
    fs::write(lists.join("containers.json"), LIST).unwrap();
    let limits = Limits { deadline: std::time::Duration::from_secs(60), ..Limits::default() };
    let containers = Containers::new(Places { run_user, home: Some(home) }, limits);

    assert_eq!(containers.find(me(), &web()).await.unwrap().pid, 21497);
    let named = containers.name(me(), &web()).await;
    assert_eq!(named.unwrap().unwrap().name, "web");

    let unknown = "0".repeat(64).parse().unwrap();
    let error = containers.find(me(), &unknown).await.unwrap_err();
    assert!(matches!(error, NotFound::Container(..)), "{error:?}");
    assert_eq!(containers.name(me(), &unknown).await, Ok(None));

    let nobody = Uid::new(4_000_000_000).unwrap();
    let error = containers.find(nobody, &web()).await.unwrap_err();
    assert!(matches!(error, NotFound::User(_, Refused::Absent)), "{error:?}");
    assert_eq!(containers.name(nobody, &web()).await, Ok(None));
}

#[tokio::test]
async fn a_name_that_cannot_be_read_is_not_taken_for_none() {
    let directory = tempfile::tempdir().unwrap();
    let (run_user, home) = (directory.path().join("run"), directory.path().join("home"));
    let list = home.join(".local/share/containers/storage/vfs-containers/containers.json");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    let places = Places { run_user, home: Some(home) };
    let patient = Limits { deadline: std::time::Duration::from_secs(60), ..Limits::default() };
    let containers = Containers::new(places.clone(), patient);
    assert_eq!(containers.name(me(), &web()).await, Ok(None), "there is no list");
    fs::write(&list, vec![b' '; beneath::LIMIT as usize + 1]).unwrap();
    assert_eq!(containers.name(me(), &web()).await, Err(Unknown), "too large a list");
    fs::write(&list, LIST).unwrap();
    assert_eq!(containers.name(me(), &web()).await.unwrap().unwrap().name, "web");
    // Others are at it for as long as anybody waits.
    let deadline = std::time::Duration::from_millis(10);
    let busy = Containers::new(places, Limits { in_all: 0, deadline, ..patient });
    assert_eq!(busy.name(me(), &web()).await, Err(Unknown));
}

#[tokio::test]
async fn a_home_is_looked_up_in_the_passwd_database() {
    let places = Places::default();
    let Some(user) = User::from_uid(me().as_raw().into()).unwrap() else {
        panic!("the tests' user has no passwd entry");
    };
    // Some users have none, or one that is not theirs, such as `nobody`.
    let theirs =
        fs::metadata(&user.dir).is_ok_and(|dir| dir.is_dir() && dir.uid() == me().as_raw());
    assert_eq!(places.home(me()).unwrap().map(|home| home.path), theirs.then_some(user.dir));
    assert!(places.home(Uid::new(4_000_000_000).unwrap()).unwrap().is_none());
}
