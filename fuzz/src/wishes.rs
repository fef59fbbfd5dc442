//! What containers ask for.

use v6pod_proto::Wishes;

/// Annotations, one a line. Wishes that are read are written so that they are read as the same, and
/// what is wrong is told in one line that names the annotation.
pub fn wishes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let annotations = text.lines().filter_map(|line| line.split_once('='));
    match Wishes::read(annotations.clone()) {
        Ok(wishes) => {
            let written = wishes.annotations();
            let again = Wishes::read(written.iter().map(|(name, value)| (*name, value.as_str())));
            assert_eq!(again.as_ref(), Ok(&wishes));
            let json = serde_json::to_vec(&wishes).expect("wishes can be written");
            assert_eq!(serde_json::from_slice::<Wishes>(&json).ok(), Some(wishes));
        }
        Err(wrong) => {
            assert!(annotations.clone().any(|(name, _)| name == wrong.annotation));
            assert!(wrong.to_string().contains(wrong.right));
        }
    }
}
