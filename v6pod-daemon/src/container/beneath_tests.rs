use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;
use crate::container::reader::{Limits, Reader, Unread};

/// Somebody else, who need not exist.
const OTHER: u32 = 54321;

struct Scene {
    directory: TempDir,
    folder: Folder,
}

fn me() -> Uid {
    Uid::new(rustix::process::geteuid().as_raw()).unwrap()
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("inner")).unwrap();
    fs::write(directory.path().join("inner/good"), "good").unwrap();
    let folder = Folder::open(directory.path(), me()).unwrap();
    Scene { directory, folder }
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Refused> {
        self.folder.read(Path::new(name))
    }
}

/// Whether to go on with a test that needs root.
fn root() -> bool {
    let root = me().is_root();
    if !root {
        let required = std::env::var("V6POD_TEST_REQUIRE").is_ok_and(|value| value == "all");
        assert!(!required, "needs root");
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs the test in a mount namespace of its own: what it mounts goes with its thread.
fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        test();
    });
    thread.join().unwrap();
}

/// A FUSE file system whose server never answers: nobody reads from the descriptor. Its end ends
/// every wait for it.
fn stalled_fuse(at: &Path, mounter: u32) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let fd = device.as_fd().as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id={mounter},group_id=0");
    mount(Some("stalled"), at, Some("fuse"), MsFlags::empty(), Some(data.as_str())).unwrap();
    device
}

#[test]
fn a_regular_file_of_the_owner_is_read() {
    let scene = scene();
    assert_eq!(scene.read("inner/good").unwrap(), b"good");
    assert!(matches!(scene.read("inner/none"), Err(Refused::Absent)));
    assert!(matches!(scene.read("inner/good/x"), Err(Refused::Absent)));
}

#[test]
fn attack_02_no_symbolic_link_is_followed() {
    let scene = scene();
    symlink("good", scene.path("inner/last")).unwrap();
    symlink("inner", scene.path("middle")).unwrap();
    symlink("/proc/self/root/etc/hostname", scene.path("magic")).unwrap();
    for name in ["inner/last", "middle/good", "magic"] {
        assert!(matches!(scene.read(name), Err(Refused::Link)), "{name}");
    }
}

#[test]
fn attack_02_nothing_above_the_folder_is_reached() {
    let scene = scene();
    let inner = Folder::open(&scene.path("inner"), me()).unwrap();
    fs::write(scene.path("above"), "above").unwrap();
    for name in ["../above", "/etc/hostname", "../inner/good"] {
        assert!(matches!(inner.read(Path::new(name)), Err(Refused::Outside)), "{name}");
    }
}

#[test]
fn attack_33_what_is_no_regular_file_is_never_opened() {
    let scene = scene();
    mkfifo(&scene.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(scene.path("socket")).unwrap();
    for (name, found) in
        [("fifo", FileType::Fifo), ("socket", FileType::Socket), ("inner", FileType::Directory)]
    {
        assert!(matches!(scene.read(name), Err(Refused::Type(f)) if f == found), "{name}");
    }
    if root() {
        let mode = nix::sys::stat::Mode::S_IRWXU;
        mknod(&scene.path("device"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
        assert!(matches!(scene.read("device"), Err(Refused::Type(FileType::CharacterDevice))));
    }
}

#[test]
fn a_file_is_read_up_to_the_limit_and_not_beyond() {
    let scene = scene();
    let file = File::create(scene.path("large")).unwrap();
    file.set_len(LIMIT).unwrap();
    assert_eq!(scene.read("large").unwrap().len() as u64, LIMIT);
    file.set_len(LIMIT + 1).unwrap();
    assert!(matches!(scene.read("large"), Err(Refused::TooLarge)));
}

#[test]
fn a_file_that_grows_while_it_is_read_has_an_end() {
    assert!(matches!(drain(io::repeat(0)), Err(Refused::TooLarge)));
}

#[test]
fn attack_02_a_file_of_somebody_else_is_refused_also_by_a_hard_link() {
    if !root() {
        return;
    }
    let scene = scene();
    fs::write(scene.path("theirs"), "secret").unwrap();
    chown(scene.path("theirs"), Some(OTHER), None).unwrap();
    fs::hard_link(scene.path("theirs"), scene.path("inner/link")).unwrap();
    for name in ["theirs", "inner/link"] {
        assert!(matches!(scene.read(name), Err(Refused::Owner(OTHER))), "{name}");
    }
    // Nor is anything in a folder of somebody else.
    let other = Uid::new(OTHER).unwrap();
    assert!(matches!(Folder::open(scene.directory.path(), other), Err(Refused::Owner(0))));
}

#[test]
fn a_file_that_its_owner_alone_can_read_is_read_by_root() {
    if !root() {
        return;
    }
    let scene = scene();
    let file = scene.path("inner/good");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    for path in [scene.directory.path(), &scene.path("inner"), &file] {
        chown(path, Some(OTHER), None).unwrap();
    }
    let folder = Folder::open(scene.directory.path(), Uid::new(OTHER).unwrap()).unwrap();
    assert_eq!(folder.read(Path::new("inner/good")).unwrap(), b"good");
}

#[test]
fn a_link_is_read_and_not_followed() {
    let scene = scene();
    symlink("/etc/hostname", scene.path("link")).unwrap();
    let read = |name: &str| scene.folder.read_link(Path::new(name));
    assert_eq!(read("link").unwrap(), Path::new("/etc/hostname"));
    assert!(matches!(read("inner/good"), Err(Refused::Type(FileType::RegularFile))));
    assert!(matches!(read("none"), Err(Refused::Absent)));
}

#[test]
fn attack_02_no_mount_is_crossed() {
    if !root() {
        return;
    }
    with_own_mounts(|| {
        let scene = scene();
        fs::create_dir(scene.path("mounted")).unwrap();
        let (from, to) = (scene.path("inner"), scene.path("mounted"));
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        // The very same file, by the mount and beside it.
        assert_eq!(
            fs::metadata(to.join("good")).unwrap().ino(),
            fs::metadata(from.join("good")).unwrap().ino()
        );
        assert!(matches!(scene.read("mounted/good"), Err(Refused::Outside)));
        assert_eq!(scene.read("inner/good").unwrap(), b"good");
        umount2(&to, MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn attack_33_a_users_fuse_mount_is_refused_without_asking_its_server() {
    if !root() {
        return;
    }
    with_own_mounts(|| {
        let scene = scene();
        let _server = stalled_fuse(&scene.path("inner"), OTHER);
        assert!(matches!(scene.read("inner/good"), Err(Refused::Outside)));
        assert!(matches!(Folder::open(&scene.path("inner"), me()), Err(Refused::Fuse)));
        umount2(&scene.path("inner"), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn attack_33_a_fuse_server_that_never_answers_is_cut_off_by_the_deadline() {
    if !root() {
        return;
    }
    with_own_mounts(|| {
        let scene = scene();
        let inner = scene.path("inner");
        // Mounted by our own user, so that even statfs is the server's to answer.
        let server = stalled_fuse(&inner, me().as_raw());
        let limits = Limits { in_all: 2, per_owner: 1, deadline: Duration::from_millis(300) };
        let reader = Reader::new(limits);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let at = inner.clone();
        // The reader's thread is made by this one and so sees its mounts.
        let stuck = runtime.block_on(reader.run(me(), move || Folder::open(&at, me()).map(drop)));
        assert!(matches!(stuck, Err(Unread::TimedOut)), "{stuck:?}");
        let other = Uid::new(OTHER).unwrap();
        assert_eq!(runtime.block_on(reader.run(other, || 1)).unwrap(), 1);
        drop(server);
        umount2(&inner, MntFlags::MNT_DETACH).unwrap();
    });
}
