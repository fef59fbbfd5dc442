//! What the shim reads. It is a program and no library: its pure modules are compiled in here.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

#[path = "../../v6pod-shim/src/slirp4netns/command_line.rs"]
mod command_line;
#[allow(dead_code, reason = "the parts that read the environment and files are not called")]
#[path = "../../v6pod-shim/src/config.rs"]
mod settings;

use crate::flat_toml;
use command_line::CommandLine;
use settings::{Loading, Program};
use v6pod_proto::oci::State;
use v6pod_proto::wishes::is_wish;

/// Settings come out whatever goes in, complaints have one line, and a document that the `toml`
/// crate takes is read with the same strings at its top.
pub fn shim_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut loading = Loading::default();
    loading.text(text, &"shim.toml");
    let socket = &loading.config.socket;
    assert!(socket.is_absolute() && socket.as_os_str().len() <= 107);
    if let Program::At(program) = &loading.config.slirp4netns {
        assert!(program.is_absolute());
    }
    assert!(loading.complaint.is_none_or(|c| !c.to_string().contains('\n')));

    if let Ok(table) = toml::from_str::<toml::Table>(text) {
        let entries = flat_toml::parse(text).expect("TOML to one reader is TOML to the other");
        for (key, value) in &table {
            let entry = entries.iter().find(|entry| entry.key == *key);
            let entry = entry.unwrap_or_else(|| panic!("{key:?} was not seen"));
            assert_eq!(entry.value.as_deref(), value.as_str(), "{key:?}");
        }
        assert!(entries.iter().all(|entry| table.contains_key(&entry.key)));
    }
}

/// What a runtime gives its hooks: of the annotations wishes alone are kept, and those as they stand.
pub fn oci_state(data: &[u8]) {
    let Some(state) = State::read(data) else { return };
    assert!(state.annotations.keys().all(|name| is_wish(name)));
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    assert_eq!(json["id"].as_str(), Some(state.id.as_str()));
    for (name, value) in &state.annotations {
        assert_eq!(json["annotations"][name].as_str(), Some(value.as_str()));
    }
}

/// The words stand between zero bytes. Of a line that is understood, IPv6 options alone go: what is
/// left is in its order, means the same, and has nothing more to take away.
pub fn slirp4netns(data: &[u8]) {
    let words: Vec<OsString> =
        data.split(|&b| b == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    for posixly_correct in [false, true] {
        let Some(line) = CommandLine::parse(&words, posixly_correct) else { continue };
        let left = &line.without_ipv6;
        let again = CommandLine::parse(left, posixly_correct).expect("still understood");
        assert_eq!(again, line);
        let mut given = words.iter();
        for word in left {
            assert!(given.any(|from| is_left_of(word, from)), "{word:?} was not there");
        }
        if !words.iter().any(may_be_ipv6) {
            assert_eq!(*left, words);
        }
    }
}

/// Whether a word is what can be left of another: all of it, or a cluster of letters without 6.
fn is_left_of(word: &OsString, from: &OsString) -> bool {
    let (word, from) = (word.as_bytes(), from.as_bytes());
    let mut rest = word.iter().peekable();
    let fewer = from.iter().all(|b| rest.next_if_eq(&b).is_some() || *b == b'6');
    word == from || (fewer && rest.peek().is_none() && from[0] == b'-' && from[1] != b'-')
}

fn may_be_ipv6(word: &OsString) -> bool {
    let bytes = word.as_bytes();
    let cluster = bytes.starts_with(b"-") && bytes.contains(&b'6');
    cluster || bytes.starts_with(b"--e") || bytes.starts_with(b"--o")
}
