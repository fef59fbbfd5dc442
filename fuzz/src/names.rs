//! Names and identifiers.

use std::fmt::Display;
use std::str::FromStr;

use v6pod_daemon::core::{Label, Names, Prefix};
use v6pod_proto::{AttachmentId, ContainerId, LinkName, Mac, Uid};

/// Any name becomes a label or has nothing that could stand in one; the label is its own label; two
/// owners who ask for the name never bear the same.
pub fn label(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let Some(label) = Label::from_name(name) else {
        return assert!(!name.bytes().any(|b| b.is_ascii_alphanumeric()));
    };
    valid(&label);
    assert_eq!(Label::from_name(label.as_str()).as_ref(), Some(&label));
    assert_eq!(Label::from_name(&name.to_ascii_uppercase()), Some(label));

    let mut names = Names::new([]);
    let owners = [1000, 1001].map(|uid| Uid::new(uid).expect("not -1"));
    let ids = [1, 2].map(AttachmentId::from_bits);
    let borne: Vec<_> = ids
        .iter()
        .zip(owners)
        .filter_map(|(id, owner)| {
            let borne = names.claim(id, owner, name).label()?.clone();
            valid(&borne);
            assert!(borne.bound_to().is_none_or(|uid| uid == owner), "{borne} is another's");
            Some(borne)
        })
        .collect();
    assert!(borne.len() == 2 && borne[0] != borne[1], "{borne:?}");
    for id in &ids {
        names.release(id);
    }
    assert!(names.is_empty());
}

fn valid(label: &Label) {
    let text = label.as_str();
    assert!((1..=63).contains(&text.len()));
    assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
    assert!(!text.starts_with('-') && !text.ends_with('-'));
    assert_eq!(text.parse().as_ref(), Ok(label));
}

/// Identifiers: what is taken is written as it was read, save for case and leading zeros.
pub fn ids(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    same::<ContainerId>(text, str::to_owned);
    same::<AttachmentId>(text, str::to_owned);
    same::<LinkName>(text, str::to_owned);
    same::<Mac>(text, str::to_ascii_lowercase);
    same::<Uid>(text, |text| {
        let digits = text.trim_start_matches('0');
        if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
    });
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
}

fn same<T: FromStr + Display>(text: &str, usual: fn(&str) -> String) {
    if let Ok(id) = text.parse::<T>() {
        assert_eq!(id.to_string(), usual(text));
    }
}
