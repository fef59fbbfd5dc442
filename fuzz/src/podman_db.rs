//! Podman's databases, as v6pod-wishes reads them: its modules are compiled in here.

#[path = "../../v6pod-shim/src/wishes/bolt.rs"]
mod bolt;
#[path = "../../v6pod-shim/src/wishes/sqlite.rs"]
mod sqlite;

/// As in the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Found(Vec<u8>),
    Nothing,
    Moved,
}

/// As in the program.
pub(crate) type Read<'a> = &'a mut dyn FnMut(u64, usize) -> Option<Vec<u8>>;

/// As much is read of one file in all; here it bounds the work as well.
const ALL: usize = 8 << 20;

const CONTAINER: &str = "abababababababababababababababababababababababababababababababab";

fn look_up(data: &[u8], find: impl Fn(Read<'_>) -> Lookup) -> Option<Vec<u8>> {
    let mut left = ALL;
    let mut read = |at: u64, length: usize| {
        left = left.checked_sub(length)?;
        let at = usize::try_from(at).ok()?;
        data.get(at..at.checked_add(length)?).map(<[u8]>::to_vec)
    };
    match find(&mut read) {
        Lookup::Found(value) => Some(value),
        Lookup::Nothing => None,
        Lookup::Moved => panic!("nobody writes to it"),
    }
}

/// What is found in a Bolt database stands there in one piece.
pub fn podman_bolt(data: &[u8]) {
    let path = [&b"ctr"[..], CONTAINER.as_bytes(), b"config"];
    if let Some(value) = look_up(data, |read| bolt::find(read, &path)) {
        assert!(value.is_empty() || data.windows(value.len()).any(|window| window == value));
    }
}

/// What is found in an SQLite database is no longer than all of it, unless its pages are used more
/// than once, and begins somewhere in it.
pub fn podman_sqlite(data: &[u8]) {
    for what in [sqlite::What::Container, sqlite::What::Pod] {
        let Some(value) = look_up(data, |read| sqlite::find(read, what, CONTAINER)) else {
            continue;
        };
        assert!(value.len() <= ALL);
        let start = &value[..value.len().min(8)];
        assert!(start.is_empty() || data.windows(start.len()).any(|window| window == start));
    }
}
