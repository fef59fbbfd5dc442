//! Where a user's own socket is.
//!
//! Beside the socket for everybody there is one for each user, in the folder [`FOLDER`], and nobody but him can
//! connect to it. A crowd in front of the common one therefore keeps out those alone who are in it. Who finds
//! none of his own, or nobody behind it, asks at the common one.

use std::path::{Path, PathBuf};

use crate::Uid;

/// The folder of the users' own sockets, beside the common one.
pub const FOLDER: &str = "users";

/// The folder of the users' own sockets beside this common one, if that has a folder itself.
pub fn folder(common: &Path) -> Option<PathBuf> {
    let beside = common.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    Some(beside.join(FOLDER))
}

/// What this user's own socket is called.
pub fn name(uid: Uid) -> String {
    format!("{uid}.sock")
}

/// Whose socket is called so.
pub fn owner(name: &str) -> Option<Uid> {
    let uid = name.strip_suffix(".sock")?.parse().ok()?;
    (self::name(uid) == name).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_socket_it_is_and_no_two_say_the_same() {
        for uid in [0, 1000, u32::MAX - 1].map(|uid| Uid::new(uid).unwrap()) {
            assert_eq!(owner(&name(uid)), Some(uid));
        }
        for other in
            ["", ".sock", "1000", "01.sock", "+1.sock", "-1.sock", "4294967295.sock", "1.sock.sock"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_socket_without_a_folder_has_none_beside_it() {
        assert_eq!(folder(Path::new("v6pod.sock")), None);
        assert_eq!(folder(Path::new(crate::DEFAULT_SOCKET)), Some("/run/v6pod/users".into()));
    }
}
