//! What most have nothing of.
//!
//! Guarantee: what is as by default takes the room of a pointer, and reads as the default does. There are
//! thousands of attachments, and each would pay for what few ask for.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use v6pod_proto::wishes::OtherWishes;

/// What has one default for all.
pub trait Plain: Default + PartialEq + 'static {
    /// The default.
    fn plain() -> &'static Self;
}

impl Plain for OtherWishes {
    fn plain() -> &'static Self {
        static PLAIN: LazyLock<OtherWishes> = LazyLock::new(OtherWishes::default);
        &PLAIN
    }
}

/// Mostly the default.
#[derive(Clone)]
pub struct Rare<T>(Option<Box<T>>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Plain> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != *T::plain()).then(|| Box::new(value)))
    }
}

impl<T: Plain> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::plain(),
        }
    }
}

impl<T: Plain> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Plain> PartialEq for Rare<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + Eq> Eq for Rare<T> {}

impl<T: Plain + fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_takes_a_pointers_room_and_reads_as_the_default() {
        let mut rare = Rare::from(OtherWishes::default());
        assert!(rare.0.is_none());
        assert_eq!(*rare, OtherWishes::default());
        assert_eq!(size_of_val(&rare), size_of::<usize>());
        rare.ignored.push("x".into());
        assert_eq!(rare.ignored.len(), 1);
        assert_ne!(rare, Rare::default());
        assert!(Rare::from((*rare).clone()).0.is_some());
        rare.ignored.clear();
        assert_eq!(rare, Rare::default());
    }
}
